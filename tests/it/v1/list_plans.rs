//! Which index serves which list.
//!
//! The table is empty and has only the index under test, and every other scan method is off. The
//! plan then shows what the index can do. It needs no data and does not depend on cost estimates.

use serde_json::Value;
use task_history::domain::{AgentId, PageRequest, ShortText, Status, TaskFilter, TaskId, UserId};
use task_history::store::Store;

use crate::support::cluster;
use crate::support::test_app::{TestApp, single_connection_store};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_filter_has_its_index() {
    let all = TaskFilter::default;
    let agent = || TaskFilter { agent_id: Some(AgentId::parse("a").expect("an id")), ..all() };
    let user = UserId::parse("u").expect("an id");
    let parent = TaskId::parse("p").expect("an id");
    let trigger = AgentId::parse("g").expect("an id");
    let label = ShortText::parse("s").expect("a label");
    let time = "2026-01-01T00:00:00Z".parse().expect("a time");
    let by_parent = |filter| TaskFilter { parent_task_id: Some(parent.clone()), ..filter };
    let cases = [
        ("tasks_by_agent", agent()),
        (
            "tasks_by_agent",
            TaskFilter { created_from: Some(time), created_to: Some(time), ..agent() },
        ),
        ("tasks_by_agent_status", TaskFilter { statuses: vec![Status::Completed], ..agent() }),
        ("tasks_by_agent_user", TaskFilter { user_id: Some(user.clone()), ..agent() }),
        ("tasks_by_parent", by_parent(agent())),
        (
            "tasks_by_agent_triggering_agent",
            TaskFilter { triggering_agent_id: Some(trigger.clone()), ..agent() },
        ),
        (
            "tasks_by_agent_internal_status",
            TaskFilter { internal_status: Some(label.clone()), ..agent() },
        ),
        ("tasks_by_organization", all()),
        ("tasks_by_organization", TaskFilter { created_from: Some(time), ..all() }),
        ("tasks_by_organization", TaskFilter { created_to: Some(time), ..all() }),
        ("tasks_by_status", TaskFilter { statuses: vec![Status::Completed], ..all() }),
        ("tasks_by_user", TaskFilter { user_id: Some(user), ..all() }),
        ("tasks_by_parent", by_parent(all())),
        ("tasks_by_triggering_agent", TaskFilter { triggering_agent_id: Some(trigger), ..all() }),
        ("tasks_by_internal_status", TaskFilter { internal_status: Some(label), ..all() }),
    ];
    for (index, filter) in cases {
        let of_parent = filter.parent_task_id.is_some();
        // A deep page too: skipped rows are read from the index alone.
        for page in [1, 100] {
            let plan = plan_with_only(index, &filter, page).await;
            let mut scans = Vec::new();
            collect_scans(&plan, &mut scans);
            // One scan reads the page. A deep page also skips rows, from either end.
            let read = if page > 1 { 3 } else { 1 };
            assert!(scans.len() >= read, "{filter:?}: {read} scans are wanted: {plan:#}");
            let counted = scans.len() - read;
            let has_range = filter.created_from.is_some() || filter.created_to.is_some();
            assert!(if has_range { counted <= 3 } else { counted == 0 }, "{filter:?}: {plan:#}");
            for scan in scans {
                assert_eq!(scan["Index Name"], index, "{filter:?}: {plan:#}");
                // A parent has few sub-tasks, so the scan filters them by agent, in the index.
                let filtered = scan.get("Filter").and_then(Value::as_str);
                let looks_at = (of_parent && filter.agent_id.is_some()).then_some("agent_id");
                match looks_at {
                    None => assert_eq!(filtered, None, "{filter:?}: {plan:#}"),
                    Some(column) => {
                        assert!(filtered.is_some_and(|text| text.contains(column)), "{plan:#}");
                    }
                }
            }
            assert!(!plan.to_string().contains("\"Sort\""), "the index gives the order: {plan:#}");
        }
    }
}

/// A covering index counts the tasks of each combination of filters, or `task_counts` has the total.
/// The table has rows and is vacuumed: on an empty table, fetching rows costs nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_combination_of_filters_reads_the_table_to_count() {
    let app = TestApp::start().await;
    let fill = format!(
        "INSERT INTO tasks (organization_id, id, agent_id, user_id, parent_task_id,
                            triggering_agent_id, status, internal_status, source, title, turns,
                            created_at, updated_at)
         SELECT '{}', n::text, (ARRAY['a', 'b'])[1 + n % 2], (ARRAY['u', 'v', 'w'])[1 + n % 3],
                CASE n % 40 WHEN 1 THEN 'p' ELSE n::text END,
                (ARRAY['g', 'h', 'i', 'j', 'k', 'l', 'm'])[1 + n % 7],
                (ARRAY['completed', 'failed'])[1 + n / 2 % 2]::task_status,
                (ARRAY['s', 't', 'u', 'v', 'w'])[1 + n / 4 % 5], 'api',
                repeat('title', 50), 1, '2026-01-01'::timestamptz + n * interval '1 minute', now()
         FROM generate_series(1, 5000) AS n",
        app.organization
    );
    cluster::execute(&app.database, &fill).await;
    cluster::execute(&app.database, "VACUUM ANALYZE tasks").await;
    let store = restricted_store(&app.database).await;
    let page = PageRequest::new(1, 20).expect("in range");
    let time = Some("2026-01-01T00:30:00Z".parse().expect("a time"));
    let mut counted_in_table = 0;
    for bits in 0..128_u32 {
        let has = |bit: u32| bits & (1 << bit) != 0;
        let filter = TaskFilter {
            agent_id: has(0).then(|| AgentId::parse("a").expect("an id")),
            user_id: has(1).then(|| UserId::parse("u").expect("an id")),
            parent_task_id: has(2).then(|| TaskId::parse("p").expect("an id")),
            triggering_agent_id: has(3).then(|| AgentId::parse("g").expect("an id")),
            statuses: if has(4) { vec![Status::Completed] } else { Vec::new() },
            internal_status: has(5).then(|| ShortText::parse("s").expect("a label")),
            created_from: time.filter(|_| has(6)),
            created_to: None,
        };
        let plan =
            store.explain_list_tasks(app.organization, &filter, &page).await.expect("a plan");
        let mut aggregates = Vec::new();
        collect(&plan, &|node| node["Node Type"] == "Aggregate", &mut aggregates);
        let mut scans = Vec::new();
        for aggregate in &aggregates {
            collect_scans(aggregate, &mut scans);
        }
        for scan in &scans {
            assert_eq!(scan["Node Type"], "Index Only Scan", "{filter:?}: {scan:#}");
        }
        // `task_counts` has one of these fields at a time, and none of them for a range of times.
        let facets = [1, 2, 3, 5].into_iter().filter(|&bit| has(bit)).count();
        if facets > 1 || (facets == 1 && has(6)) {
            assert!(!scans.is_empty(), "{filter:?}: no index counts its tasks: {plan:#}");
            counted_in_table += 1;
        }
    }
    assert_eq!(counted_in_table, 104, "of 128 combinations");
}

/// The plan of the list if the table has only this index.
async fn plan_with_only(index: &str, filter: &TaskFilter, number: u64) -> Value {
    let app = TestApp::start().await;
    let database = &app.database;
    let drop_others = format!(
        "DO $$ DECLARE other name; BEGIN
            FOR other IN SELECT indexname FROM pg_indexes
                WHERE indexname LIKE 'tasks\\_by\\_%' AND indexname <> '{index}'
            LOOP EXECUTE format('DROP INDEX %I', other); END LOOP;
        END $$"
    );
    cluster::execute(database, &drop_others).await;
    let page = PageRequest::new(number, 20).expect("in range");
    restricted_store(database)
        .await
        .explain_list_tasks(app.organization, filter, &page)
        .await
        .expect("a plan")
}

/// A store whose connections read only by indexes, without a sort.
async fn restricted_store(database: &str) -> Store {
    for setting in ["enable_seqscan", "enable_bitmapscan", "enable_sort"] {
        cluster::execute(database, &format!("ALTER DATABASE {database} SET {setting} = off")).await;
    }
    // Settings of a database apply to new connections.
    single_connection_store(database)
}

fn collect_scans(node: &Value, scans: &mut Vec<Value>) {
    collect(node, &|node| node.get("Relation Name").is_some_and(|name| name == "tasks"), scans);
}

fn collect(node: &Value, wanted: &dyn Fn(&Value) -> bool, found: &mut Vec<Value>) {
    if wanted(node) {
        found.push(node.clone());
    }
    match node {
        Value::Object(fields) => fields.values().for_each(|value| collect(value, wanted, found)),
        Value::Array(items) => items.iter().for_each(|value| collect(value, wanted, found)),
        _ => {}
    }
}
