//! Listing: pages, totals and filters.

use chrono::{DateTime, Utc};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use task_history::domain::{
    AgentId, Input, Invocation, InvocationOptions, OrganizationId, PageRequest, PageStart, Report,
    ShortText, Status, TaskFilter, TaskId, TaskSummary, UserId, WireEnum,
};

use task_history::store::Store;

use crate::support::cluster;
use crate::support::test_app::{Answer, TestApp, single_connection_store};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_have_the_contracts_keys_in_its_order() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": { "text": "hello" } })).await.ok();
    let page = app.get("/v1/agents/a/tasks").await;
    let keys =
        |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&page.ok()), ["items", "total", "page", "per_page", "total_pages"]);
    assert_eq!(
        keys(&page.ok()["items"][0]),
        [
            "id",
            "agent_id",
            "user_id",
            "parent_task_id",
            "triggering_agent_id",
            "organization_id",
            "status",
            "created_at",
            "updated_at",
            "source_node_type",
            "result",
            "title",
        ]
    );
}

fn ids(page: &Value) -> Vec<String> {
    let items = page["items"].as_array().expect("items");
    items.iter().map(|item| item["id"].as_str().expect("an id").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newest_first_and_then_by_id() {
    let app = TestApp::start().await;
    for id in ["b", "Z", "ä", "a"] {
        app.invoke("a", json!({ "id": id, "input": {} })).await.ok();
    }
    app.advance(0.000_001);
    app.invoke("a", json!({ "id": "later", "input": {} })).await.ok();
    app.advance(1.0);
    app.report("a", json!({ "status": "completed" })).await.ok();
    // Ids are compared byte by byte; being worked on does not move a task.
    assert_eq!(ids(&app.get("/v1/agents/a/tasks").await.ok()), ["later", "ä", "b", "a", "Z"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_are_counted_after_filters() {
    let app = TestApp::start().await;
    for n in 0..7 {
        app.advance(1.0);
        app.invoke("a", json!({ "id": format!("t{n}"), "input": {} })).await.ok();
        if n < 5 {
            app.report(&format!("t{n}"), json!({ "status": "completed" })).await.ok();
        }
    }
    app.invoke("b", json!({ "id": "elsewhere", "input": {} })).await.ok();
    let page = app.get("/v1/agents/a/tasks?status=completed&page=2&per_page=2").await.ok();
    assert_eq!(ids(&page), ["t2", "t1"]);
    assert_eq!(
        (&page["total"], &page["page"], &page["per_page"], &page["total_pages"]),
        (&json!(5), &json!(2), &json!(2), &json!(3))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_past_the_end_is_empty() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "input": {} })).await.ok();
    for page in ["2", "9223372036854775807", "18446744073709551616", "12345678901234567890123"] {
        let answer = app.get(&format!("/v1/agents/a/tasks?page={page}&per_page=50")).await;
        answer.ok();
        assert_eq!(
            answer.text,
            format!(r#"{{"items":[],"total":1,"page":{page},"per_page":50,"total_pages":1}}"#)
        );
    }
    // What is newer than a range comes on top of what is skipped.
    for page in ["7", "9223372036854775807"] {
        let answer =
            app.get(&format!("/v1/tasks?to_date=2026-03-22&page={page}&per_page=50")).await.ok();
        assert_eq!((&answer["items"], &answer["total"]), (&json!([]), &json!(0)), "{page}");
    }
    let none = app.get("/v1/agents/nobody/tasks").await.ok();
    assert_eq!(
        none,
        json!({ "items": [], "total": 0, "page": 1, "per_page": 20, "total_pages": 0 })
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_filter_alone_and_together() {
    let app = TestApp::start().await;
    app.invoke(
        "a",
        json!({
            "id": "t",
            "input": { "user": { "id": "u+1", "email": "x" } },
            "parent_execution_id": "p",
            "triggering_agent_id": "g"
        }),
    )
    .await
    .ok();
    app.report("t", json!({ "status": "paused", "internal_status": "50% done" })).await.ok();
    app.invoke("a", json!({ "id": "plain", "input": {} })).await.ok();
    let matching = [
        "user_id=u%2B1",
        "parent_task_id=p",
        "triggering_agent_id=g",
        "status=paused",
        "internal_status=50%25+done",
        "user_id=u%2B1&parent_task_id=p&triggering_agent_id=g&status=paused&internal_status=50%25%20done",
        "status=completed&status=paused",
    ];
    for query in matching {
        let page = app.get(&format!("/v1/agents/a/tasks?{query}")).await.ok();
        assert_eq!((ids(&page), &page["total"]), (vec!["t".to_owned()], &json!(1)), "{query}");
    }
    let failing = [
        "user_id=u",
        "user_id=U%2B1",
        "parent_task_id=plain",
        "triggering_agent_id=a",
        "status=stopped",
        "internal_status=50%25",
        "internal_status=%25",
        "user_id=u%2B1&status=stopped",
        "user_id=",
    ];
    for query in failing {
        let page = app.get(&format!("/v1/agents/a/tasks?{query}")).await.ok();
        assert_eq!((ids(&page), &page["total"]), (vec![], &json!(0)), "{query}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_stored_matches_nothing() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "input": {} })).await.ok();
    let long = "x".repeat(2000);
    for name in ["user_id", "parent_task_id", "triggering_agent_id", "internal_status"] {
        for value in ["%00", "a%00b", "%FF", "%F0%9F%98%80", "%27%3B--", &long] {
            let page = app.get(&format!("/v1/agents/a/tasks?{name}={value}")).await.ok();
            assert_eq!((&page["total"], &page["items"]), (&json!(0), &json!([])), "{name}={value}");
        }
    }
    for agent in ["%00", "a%00", &long, "%20", "%2F", "..%2F..", "%F0%9F%98%80"] {
        let page = app.get(&format!("/v1/agents/{agent}/tasks")).await.ok();
        assert_eq!(page["total"], 0, "{agent}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timestamps_are_written_as_pydantic_writes_them() {
    let app = TestApp::start().await;
    for (advance, written) in [
        (0.0, "2026-03-23T00:45:22Z"),
        (0.5, "2026-03-23T00:45:22.500000Z"),
        (0.000_001, "2026-03-23T00:45:22.500001Z"),
    ] {
        app.advance(advance);
        let task = app.invoke("a", json!({ "input": {} })).await.ok();
        assert_eq!(task["created_at"], written);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_organization_sees_nothing() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let (other, _) = app.other_organization().await;
    assert_eq!(app.request_as(&other, "GET", "/v1/agents/a/tasks", None).await.ok()["total"], 0);
    assert_eq!(app.request_as(&other, "GET", "/v1/tasks/t", None).await.status, 404);
    let report = Some(json!({ "status": "stopped" }));
    assert_eq!(
        app.request_as(&other, "PATCH", "/agent-execution/t/update", report).await.status,
        404
    );
    assert_eq!(app.get("/v1/tasks/t").await.ok()["status"], "pending");
}

/// How many tasks the walk below is about.
const TASKS: usize = 400;

/// The address that a page's `Link` header gives for a relation.
fn link(answer: &Answer, relation: &str) -> Option<String> {
    let links = answer.headers["link"].to_str().expect("text").to_owned();
    let link = links.split(", ").find(|link| link.ends_with(&format!("; rel=\"{relation}\"")))?;
    Some(link.split_once('>').expect("a reference").0.trim_start_matches('<').to_owned())
}

/// A walk by `next` meets each task that was there at its start once, whatever is recorded and deleted meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_lead_through_a_list_that_changes() {
    let app = TestApp::start().await;
    for n in 0..25 {
        app.advance(1.0);
        app.invoke("a", json!({ "id": format!("old-{n:02}"), "input": {} })).await.ok();
    }
    let mut seen = Vec::new();
    let mut address = Some("/v1/agents/a/tasks?per_page=4".to_owned());
    let mut pages = 0;
    while let Some(next) = address {
        let answer = app.get(&next).await;
        let page = answer.ok();
        pages += 1;
        assert!(pages < 20, "the walk ends");
        assert_eq!((&page["page"], &page["total"]), (&json!(pages), &json!(25 + pages - 1)));
        seen.extend(page["items"].as_array().expect("items").iter().map(|item| item["id"].clone()));
        address = link(&answer, "next");
        // One more at the front, which moves all page numbers on.
        app.advance(1.0);
        app.invoke("a", json!({ "id": format!("new-{pages}"), "input": {} })).await.ok();
        if pages == 3 {
            // The task that the cursor is of.
            let id = seen.last().and_then(Value::as_str).expect("an id").to_owned();
            app.request("DELETE", &format!("/v1/tasks/{id}"), None).await;
            app.invoke("a", json!({ "id": "another", "input": {} })).await.ok();
        }
    }
    let expected: Vec<_> = (0..25).rev().map(|n| format!("old-{n:02}")).collect();
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_keep_the_filter() {
    let app = TestApp::start().await;
    for n in 0..5 {
        app.invoke("a%20b%3E", json!({ "id": n.to_string(), "input": {} })).await.ok();
    }
    let answer = app.get("/v1/agents/a%20b%3E/tasks?status=pending&per_page=2&page=2").await;
    assert_eq!(answer.ok()["items"][0]["id"], "2");
    let list = "/v1/agents/a%20b%3E/tasks?status=pending&per_page=2";
    assert_eq!(link(&answer, "first"), Some(format!("{list}&page=1")));
    assert_eq!(link(&answer, "last"), Some(format!("{list}&page=3")));
    let next = app.get(&link(&answer, "next").expect("a next page")).await;
    assert_eq!(next.ok()["items"][0]["id"], "0");
    assert_eq!(next.ok()["page"], 3);
    assert_eq!(link(&next, "next"), None);
    let previous = app.get(&link(&answer, "prev").expect("a previous page")).await;
    assert_eq!(previous.ok()["items"][1]["id"], "3");
    assert_eq!(link(&previous, "prev"), None);
    let empty = app.get("/v1/tasks?agent_id=unknown").await;
    assert_eq!((link(&empty, "next"), link(&empty, "prev")), (None, None));
    assert_eq!(link(&empty, "last"), Some("/v1/tasks?agent_id=unknown&page=1".to_owned()));
    for cursor in ["x", "", "PjEy", "Pjk5OTk5OTk5OTk5OTk5OTk5OTk5IGE"] {
        let answer = app.get(&format!("{list}&cursor={cursor}")).await;
        assert_eq!(answer.status, 422, "{cursor}");
        assert_eq!(answer.json()["detail"][0]["loc"], json!(["query", "cursor"]));
    }
}

/// Walks every page of many filters and compares with `TaskFilter::matches`: rows with equal times, missing values,
/// several agents and two organizations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_of_every_filter_agrees_with_the_rule() {
    let app = TestApp::start().await;
    let (_, other) = app.other_organization().await;
    let mut random = StdRng::seed_from_u64(1);
    let mut all = Vec::new();
    for n in 0..TASKS {
        if random.random_ratio(1, 3) {
            // Some months, and then an hour that has more tasks than lie before a deep page.
            let half_days = if n < TASKS / 6 { random.random_range(0..6_u32) } else { 0 };
            app.advance(f64::from(half_days) * 43_200.0 + 0.000_001);
        }
        let organization = if random.random_ratio(1, 4) { other } else { app.organization };
        all.push(record_random_task(&app, organization, n, &mut random).await);
    }
    let mine: Vec<_> =
        all.iter().filter(|task| task.organization_id == app.organization).cloned().collect();
    // Rows must not come in the right order by the grace of an index that happens to be read.
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
            // A bound, so that a fault fails here and does not walk for ever.
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

/// All tasks by the cursors of the pages: to the end, and back to the beginning.
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
    let report = Report {
        status: Some(
            Status::ALL[usize::from(
                pick(&["0", "1", "5", "5", "5", "6"]).expect("one").as_bytes()[0] - b'0',
            )],
        ),
        internal_status: pick(&["", "", "done", "u1"])
            .map(|text| ShortText::parse(text).expect("a label")),
        ..Report::default()
    };
    let recorded = app
        .store
        .record_invocation(organization, invocation, app.now())
        .await
        .expect("a task")
        .summary;
    let reported = app
        .store
        .record_report(organization, &recorded.id, report, app.now())
        .await
        .expect("a report");
    reported.summary
}

/// Every combination of a few values of each field, some of which nothing has.
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
    // A range that begins and ends at times that tasks have, with pages deep enough to be led to, and one that is empty.
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
