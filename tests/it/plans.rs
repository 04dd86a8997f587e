//! Which index serves which list: asked on an empty table that has only that index, with every other way of reading
//! turned off. It says what each index can do, needs no data, and does not change with the planner's mood.

use serde_json::Value;
use task_history::domain::{AgentId, Label, PageRequest, Status, TaskFilter, TaskId, UserId};
use task_history::store::{DatabaseUrl, Store};

use crate::cluster;
use crate::harness::{TestApp, tests};

tests![each_filter_has_its_index];

async fn each_filter_has_its_index() {
    let all = TaskFilter::default;
    let agent = || TaskFilter { agent_id: Some(AgentId::parse("a").expect("an id")), ..all() };
    let user = UserId::parse("u").expect("an id");
    let parent = TaskId::parse("p").expect("an id");
    let trigger = AgentId::parse("g").expect("an id");
    let label = Label::parse("s").expect("a label");
    let time = "2026-01-01T00:00:00Z".parse().expect("a time");
    // The last column: what is looked at on each row, beyond what the index finds.
    let cases = [
        ("tasks_by_agent", agent(), None),
        ("tasks_by_agent", TaskFilter { created_from: Some(time), created_to: Some(time), ..agent() }, None),
        ("tasks_by_agent_status", TaskFilter { statuses: vec![Status::Completed], ..agent() }, None),
        ("tasks_by_agent_user", TaskFilter { user_id: Some(user.clone()), ..agent() }, None),
        // A parent has few sub-tasks, so their agent is looked at.
        ("tasks_by_parent", TaskFilter { parent_task_id: Some(parent.clone()), ..agent() }, Some("agent_id")),
        (
            "tasks_by_agent_triggering_agent",
            TaskFilter { triggering_agent_id: Some(trigger.clone()), ..agent() },
            None,
        ),
        (
            "tasks_by_agent_internal_status",
            TaskFilter { internal_status: Some(label.clone()), ..agent() },
            None,
        ),
        ("tasks_by_organization", all(), None),
        ("tasks_by_organization", TaskFilter { created_from: Some(time), ..all() }, None),
        ("tasks_by_organization", TaskFilter { created_to: Some(time), ..all() }, None),
        ("tasks_by_status", TaskFilter { statuses: vec![Status::Completed], ..all() }, None),
        ("tasks_by_user", TaskFilter { user_id: Some(user), ..all() }, None),
        ("tasks_by_parent", TaskFilter { parent_task_id: Some(parent), ..all() }, None),
        ("tasks_by_triggering_agent", TaskFilter { triggering_agent_id: Some(trigger), ..all() }, None),
        ("tasks_by_internal_status", TaskFilter { internal_status: Some(label), ..all() }, None),
    ];
    for (index, filter, looked_at) in cases {
        let plan = plan_with_only(index, &filter).await;
        let mut scans = Vec::new();
        collect_scans(&plan, &mut scans);
        assert_eq!(scans.len(), 2, "one for the page, one for the total: {plan:#}");
        for scan in scans {
            assert_eq!(scan["Index Name"], index, "{filter:?}: {plan:#}");
            let filtered = scan.get("Filter").and_then(Value::as_str);
            match looked_at {
                None => assert_eq!(filtered, None, "{filter:?}: {plan:#}"),
                Some(column) => assert!(filtered.is_some_and(|text| text.contains(column)), "{plan:#}"),
            }
        }
        assert!(only_sorts_the_page(&plan), "the index gives the order: {plan:#}");
    }
}

/// How the list would be read if the table had no index but this one.
async fn plan_with_only(index: &str, filter: &TaskFilter) -> Value {
    let app = TestApp::start().await;
    let database = &app.database;
    let drop_others = format!(
        "DO $$ DECLARE other name; BEGIN
            FOR other IN SELECT indexname FROM pg_indexes WHERE indexname LIKE 'tasks\\_by\\_%' AND indexname <> '{index}'
            LOOP EXECUTE format('DROP INDEX %I', other); END LOOP;
        END $$"
    );
    cluster::execute(database, &drop_others).await;
    for setting in ["enable_seqscan", "enable_bitmapscan", "enable_sort"] {
        cluster::execute(database, &format!("ALTER DATABASE {database} SET {setting} = off")).await;
    }
    // Settings of a database hold for connections made from now on.
    let store = Store::new(&DatabaseUrl::parse(&cluster::url_of(database)).expect("a URL"), 1);
    let page = PageRequest::new(1, 20).expect("in range");
    store.explain_list_tasks(app.organization, filter, page).await.expect("a plan")
}

fn collect_scans(node: &Value, scans: &mut Vec<Value>) {
    match node {
        Value::Object(fields) => {
            if fields.get("Relation Name").is_some_and(|name| name == "tasks") {
                scans.push(node.clone());
            }
            fields.values().for_each(|value| collect_scans(value, scans));
        }
        Value::Array(items) => items.iter().for_each(|value| collect_scans(value, scans)),
        _ => {}
    }
}

/// The one sort allowed is the last step, over the rows of one page.
fn only_sorts_the_page(plan: &Value) -> bool {
    !plan[0]["Plan"]["Plans"].to_string().contains("\"Sort\"")
}
