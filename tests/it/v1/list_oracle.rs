//! Every page of every filter, compared with the rule `TaskFilter::matches`.

use chrono::{DateTime, Utc};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use task_history::domain::{
    AgentId, Input, Invocation, InvocationOptions, OrganizationId, PageRequest, PageStart, Report,
    ShortText, Status, TaskFilter, TaskId, TaskSummary, UserId,
};
use task_history::store::Store;

use crate::support::cluster;
use crate::support::test_app::{TestApp, single_connection_store};

/// The number of tasks that the test records.
const TASKS: usize = 400;

/// Reads every page of many filters and compares it with `TaskFilter::matches`. The rows have equal
/// times, missing values, several agents and two organizations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_of_every_filter_agrees_with_the_rule() {
    let app = TestApp::start().await;
    let (_, other) = app.other_organization().await;
    let mut random = StdRng::seed_from_u64(1);
    let mut all = Vec::new();
    for n in 0..TASKS {
        if random.random_ratio(1, 3) {
            // A few months, then one hour with more tasks than precede a deep page.
            let half_days = if n < TASKS / 6 { random.random_range(0..6_u32) } else { 0 };
            app.advance(f64::from(half_days) * 43_200.0 + 0.000_001);
        }
        let organization = if random.random_ratio(1, 4) { other } else { app.organization };
        all.push(record_random_task(&app, organization, n, &mut random).await);
    }
    let mine: Vec<_> =
        all.iter().filter(|task| task.organization_id == app.organization).cloned().collect();
    // Without these settings an index scan could return the right order by accident.
    for setting in ["enable_indexscan", "enable_indexonlyscan", "enable_bitmapscan"] {
        cluster::execute(
            &app.database,
            &format!("ALTER DATABASE {} SET {setting} = off", app.database),
        )
        .await;
    }
    let store = single_connection_store(&app.database);
    let times: std::collections::HashSet<_> = mine.iter().map(|task| task.created_at).collect();
    assert!(times.len() * 2 < mine.len(), "most times are shared");

    let mut walked = 0;
    for filter in filters(&all.iter().map(|task| task.created_at).collect::<Vec<_>>()) {
        let mut expected: Vec<_> =
            mine.iter().filter(|task| filter.matches(task)).cloned().collect();
        expected.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
        walked += usize::from(!expected.is_empty());
        let per_page = [1, 7, 20, 50][random.random_range(0..4)];
        let mut seen = Vec::new();
        for number in 1.. {
            let request = PageRequest::new(number, per_page).expect("in range");
            let page = store.list_tasks(app.organization, &filter, &request).await.expect("a page");
            assert_eq!(page.total, i64::try_from(expected.len()).expect("few"), "{filter:?}");
            let is_last = number >= u64::try_from(request.pages_for(page.total)).expect("positive");
            assert!(is_last || page.items.len() == usize::from(per_page), "{filter:?}");
            seen.extend(page.items);
            // A bound: a defect must fail the test, not loop without end.
            if is_last || seen.len() > expected.len() {
                break;
            }
        }
        assert_eq!(seen, expected, "{filter:?}, {per_page} a page");
        let (forth, back) =
            walk_by_cursors(&store, app.organization, &filter, expected.len()).await;
        assert_eq!(forth, expected, "{filter:?}, by cursors");
        assert_eq!(back, expected, "{filter:?}, by cursors and back");
    }
    assert!(walked > 100, "only {walked} filters matched anything");
}

/// Reads all tasks by cursors, from the first page to the last and back.
async fn walk_by_cursors(
    store: &Store,
    organization: OrganizationId,
    filter: &TaskFilter,
    count: usize,
) -> (Vec<TaskSummary>, Vec<TaskSummary>) {
    let first = PageRequest::new(1, 30).expect("in range");
    let read = async |position| {
        let request = first.clone().starting_at(position);
        store.list_tasks(organization, filter, &request).await.expect("a page")
    };
    let mut page = read(PageStart::FromNumber).await;
    let mut forth = page.items.clone();
    while let Some(next) = page.next.filter(|_| forth.len() <= count) {
        page = read(PageStart::After(next)).await;
        forth.extend(page.items.iter().cloned());
    }
    let mut back = page.items;
    while let Some(previous) = page.previous.filter(|_| back.len() <= count) {
        page = read(PageStart::Before(previous)).await;
        back.splice(0..0, page.items);
    }
    (forth, back)
}

/// The statuses of the tasks: half of them are completed.
const STATUSES: [Status; 6] = [
    Status::Pending,
    Status::Executing,
    Status::Completed,
    Status::Completed,
    Status::Completed,
    Status::Stopped,
];

async fn record_random_task(
    app: &TestApp,
    organization: OrganizationId,
    n: usize,
    random: &mut StdRng,
) -> TaskSummary {
    let mut pick = |texts: &[&str]| {
        let at = random.random_range(0..texts.len());
        Some(texts[at].to_owned()).filter(|text| !text.is_empty())
    };
    let invocation = Invocation {
        id: TaskId::parse(format!("task-{:03}", n * 7 % TASKS)).expect("an id"),
        agent_id: AgentId::parse(pick(&["a1", "a2", "a3"]).expect("an agent")).expect("an id"),
        input: Input {
            text: Some(format!("text {n}")),
            files: None,
            user: None,
            attachments: Vec::new(),
            principal: None,
        },
        options: InvocationOptions::default(),
        user_id: pick(&["", "u1", "u2", "a1"]).map(|id| UserId::parse(id).expect("an id")),
        parent_task_id: pick(&["", "", "p1", "p2"]).map(|id| TaskId::parse(id).expect("an id")),
        triggering_agent_id: pick(&["", "a1", "a2"]).map(|id| AgentId::parse(id).expect("an id")),
        source: ShortText::parse("api").expect("a label"),
    };
    let internal_status = pick(&["", "", "done", "u1"]);
    let report = Report {
        status: STATUSES.choose(random).copied(),
        internal_status: internal_status.map(|text| ShortText::parse(text).expect("a label")),
        ..Report::default()
    };
    let id = invocation.id.clone();
    app.store.record_invocation(organization, invocation, app.now()).await.expect("a task");
    let reported =
        app.store.record_report(organization, &id, report, app.now()).await.expect("a report");
    reported.summary
}

/// Every combination of a few values of each field. Some values match no task.
fn filters(times: &[DateTime<Utc>]) -> Vec<TaskFilter> {
    let id = |text: &str| TaskId::parse(text).expect("an id");
    let agent = |text: &str| AgentId::parse(text).expect("an id");
    let user = |text: &str| UserId::parse(text).expect("an id");
    let label = |text: &str| ShortText::parse(text).expect("a label");
    let mut filters = vec![TaskFilter::default()];
    let mut vary = |apply: &dyn Fn(&TaskFilter) -> Vec<TaskFilter>| {
        filters = filters.iter().flat_map(apply).collect();
    };
    vary(&|filter| {
        let values = [None, Some("a1"), Some("a2"), Some("unknown")];
        values.map(|value| TaskFilter { agent_id: value.map(agent), ..filter.clone() }).into()
    });
    vary(&|filter| {
        let values = [None, Some("u1"), Some("")];
        let parse = |value: &str| if value.is_empty() { user("nobody") } else { user(value) };
        values.map(|value| TaskFilter { user_id: value.map(parse), ..filter.clone() }).into()
    });
    vary(&|filter| {
        [None, Some("p1")]
            .map(|value| TaskFilter { parent_task_id: value.map(id), ..filter.clone() })
            .into()
    });
    vary(&|filter| {
        [None, Some("a2")]
            .map(|value| TaskFilter { triggering_agent_id: value.map(agent), ..filter.clone() })
            .into()
    });
    vary(&|filter| {
        let several = vec![Status::Completed, Status::Pending];
        [vec![], vec![Status::Completed], several, vec![Status::Failed]]
            .map(|statuses| TaskFilter { statuses, ..filter.clone() })
            .into()
    });
    vary(&|filter| {
        [None, Some("done")]
            .map(|value| TaskFilter { internal_status: value.map(label), ..filter.clone() })
            .into()
    });
    // The bounds of a range are times of tasks. The ranges have pages deep enough for a seek, and
    // one range is empty.
    vary(&|filter| {
        let (first, last) = (times[times.len() / 20], times[times.len() / 20 * 19]);
        [
            (None, None),
            (Some(first), None),
            (None, Some(last)),
            (Some(first), Some(last)),
            (Some(last), Some(first)),
        ]
        .map(|(created_from, created_to)| TaskFilter { created_from, created_to, ..filter.clone() })
        .into()
    });
    filters
}
