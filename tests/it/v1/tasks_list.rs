//! `GET /v1/tasks` and `GET /v1/agents/{agent}/tasks`: items, pages, totals, filters and dates.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::test_app::TestApp;

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
    // Ids are compared byte by byte. A report does not move a task.
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
    // The offset of the page is added to the number of tasks newer than the range.
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
        "user_id=u%2B1&parent_task_id=p&triggering_agent_id=g&status=paused\
            &internal_status=50%25%20done",
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_of_an_organization_has_all_agents() {
    let app = TestApp::start().await;
    for (id, agent) in [("1", "a"), ("2", "b"), ("3", "a")] {
        app.advance(1.0);
        app.invoke(agent, json!({ "id": id, "input": {} })).await.ok();
    }
    let ids = async |query: &str| {
        let page = app.get(&format!("/v1/tasks?{query}")).await.ok();
        let ids = page["items"]
            .as_array()
            .expect("items")
            .iter()
            .map(|item| item["id"].as_str().expect("an id").to_owned());
        let ids: Vec<_> = ids.collect();
        assert_eq!(page["total"], ids.len());
        ids.concat()
    };
    assert_eq!(ids("").await, "321");
    assert_eq!(ids("agent_id=a").await, "31");
    assert_eq!(ids("agent_id=c").await, "");
    assert_eq!(ids("agent_id=%00").await, "");
    assert_eq!(ids("from_date=2026-03-23T00:45:24Z").await, "32");
    assert_eq!(ids("to_date=2026-03-23T00:45:24Z").await, "21", "both ends are included");
    assert_eq!(
        ids("from_date=2026-03-23T00:45:24Z&to_date=2026-03-23T00:45:24Z&agent_id=b").await,
        "2"
    );
    assert_eq!(ids("from_date=2026-03-23T01:45:24%2B01:00").await, "32");
    assert_eq!(ids("to_date=2026-03-23").await, "", "a date is its midnight");
    assert_eq!(ids("from_date=2026-03-23").await, "321");
}

/// Statuses and faults as FastAPI answers them for `datetime` parameters.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dates_are_read_as_pydantic_reads_them() {
    let app = TestApp::start().await;
    for good in [
        "2026-02-01T00:00:00Z",
        "2026-02-01",
        "2026-02-01T00:00",
        "2026-02-01%2000:00:00.123456%2B02:00",
        "1769904000",
        "1769904000.5",
    ] {
        assert_eq!(
            app.get(&format!("/v1/tasks?from_date={good}")).await.status,
            StatusCode::OK,
            "{good}"
        );
    }
    for (bad, reason) in [
        ("", "input is too short"),
        ("yesterday", "input is too short"),
        ("two days ago", "invalid character in year"),
        ("2026-13-01", "month value is outside expected range of 1-12"),
        ("2026-02-30", "day value is outside expected range"),
        ("2026-02-01T25:00:00Z", "unexpected extra characters at the end of the input"),
        ("2026-2-1", "input is too short"),
        ("99999999999999999999", "invalid date separator, expected `-`"),
    ] {
        let answer = app.get(&format!("/v1/tasks?to_date={}&page=0", bad.replace(' ', "+"))).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{bad}");
        assert_eq!(
            answer.json()["detail"][1],
            json!({
                "type": "datetime_from_date_parsing",
                "loc": ["query", "to_date"],
                "msg": format!("Input should be a valid datetime or date, {reason}"),
                "input": bad,
                "ctx": { "error": reason }
            }),
        );
    }
    // What is shorter than a microsecond is cut off, and does not make the time later.
    app.invoke("a", json!({ "input": {} })).await.ok();
    for time in ["22.0000009Z", "22.000000999Z", "22.0000009999999999Z", "22,000000999%2B00:00"] {
        let from = format!("/v1/tasks?from_date=2026-03-23T00:45:{time}");
        assert_eq!(app.get(&from).await.ok()["total"], 1, "{time}");
    }
    for (time, is_named) in [
        ("2026-01-01T00:00:00+02:00", true),
        ("2026-01-01T00:00:00.5+0200", true),
        ("2026-01-01T00:00:00%2B02:00+", false),
        ("2026-01-01+x", false),
    ] {
        let fault = app.get(&format!("/v1/tasks?to_date={time}")).await.json()["detail"][0].clone();
        assert_eq!(fault["type"], "datetime_from_date_parsing", "{time}");
        assert_eq!(fault["loc"], json!(["query", "to_date"]));
        let msg = fault["msg"].as_str().expect("text");
        assert!(msg.starts_with("Input should be a valid datetime or date, "), "{msg}");
        assert_eq!(msg.contains("write the time zone with %2B"), is_named, "{msg}");
    }
    let fault = app.get("/v1/tasks?to_date=0000-01-01").await.json()["detail"][0].clone();
    assert_eq!(
        (&fault["type"], &fault["ctx"]["error"]),
        (&json!("datetime_parsing"), &json!("year 0 is out of range"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_statuses_are_a_filter_of_their_own() {
    let app = TestApp::start().await;
    for status in ["completed", "failed", "executing"] {
        app.invoke("a", json!({ "id": status, "input": {} })).await.ok();
        app.report(status, json!({ "status": status })).await.ok();
    }
    let total =
        async |query: &str| app.get(&format!("/v1/tasks?{query}")).await.ok()["total"].clone();
    assert_eq!(total("status_in=completed,failed").await, 2);
    assert_eq!(total("status_in=completed").await, 1);
    assert_eq!(total("status_in=completed,failed&status=failed").await, 1);
    assert_eq!(total("status_in=completed&status=failed").await, 0);
    let answer = app.get("/v1/tasks?status_in=completed,running").await;
    assert_eq!(answer.json()["detail"][0]["loc"], json!(["query", "status_in"]));
    // The parameter `status` of the contract takes a single value.
    assert_eq!(
        app.get("/v1/tasks?status=completed,failed").await.status,
        StatusCode::UNPROCESSABLE_ENTITY
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_routes_answer_head_with_the_same_headers_and_no_body() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": { "text": "x" } })).await.ok();
    for target in ["/v1/tasks", "/v1/agents/a/tasks", "/v1/tasks/t"] {
        let mut get = app.get(target).await;
        let mut head = app.request("HEAD", target, None).await;
        assert_eq!((get.status, head.status), (StatusCode::OK, StatusCode::OK), "{target}");
        assert!(!get.text.is_empty(), "{target}");
        // Each request has an id of its own.
        let ids = [&mut get, &mut head].map(|answer| answer.headers.remove("x-request-id"));
        assert!(ids.iter().all(Option::is_some) && ids[0] != ids[1], "{target}: {ids:?}");
        assert_eq!((head.headers, head.text), (get.headers, String::new()), "{target}");
    }
}
