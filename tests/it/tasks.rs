//! The rest of REST v1's task routes: lists of all agents, threads, stopping, deleting, invoking and waiting. The examples
//! are those of the public contract's pages.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::cluster;
use crate::support::test_app::TestApp;

/// "Reply with exactly FIRST", then SECOND: the official example of a thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_thread() {
    let app = TestApp::start().await;
    let turns = [("FIRST", 1_774_226_722, 4.0), ("SECOND", 1_774_226_726, 4.0)];
    for (word, at, seconds) in turns {
        assert_eq!(app.now().timestamp(), at);
        app.invoke(
            "a",
            json!({ "id": "task-id", "input": { "text": format!("Reply with exactly {word}") } }),
        )
        .await
        .ok();
        app.advance(seconds);
        app.report("task-id", json!({ "status": "completed", "result": word })).await.ok();
    }
    let thread = json!([
        { "id": "task-id_user_1", "role": "user", "content": "Reply with exactly FIRST", "created_at": 1_774_226_722 },
        { "id": "task-id_agent_1", "role": "assistant", "content": "FIRST", "created_at": 1_774_226_726 },
        { "id": "task-id_user_2", "role": "user", "content": "Reply with exactly SECOND", "created_at": 1_774_226_726 },
        { "id": "task-id_agent_2", "role": "assistant", "content": "SECOND", "created_at": 1_774_226_730 }
    ]);
    assert_eq!(app.get("/v1/tasks/task-id/thread").await.ok(), thread);
    assert_eq!(app.get("/v1/tasks/task-id/thread/full").await.ok(), json!({ "root": thread }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thread_shows_what_is_there() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": { "files": ["https://example.com/x"] } }))
        .await
        .ok();
    let thread = app.get("/v1/tasks/t/thread").await.ok();
    assert_eq!(thread.as_array().map(Vec::len), Some(1), "no answer yet: {thread}");
    assert_eq!(thread[0]["content"], "");
    // A turn that was never reported keeps its place.
    app.invoke("a", json!({ "id": "t", "input": { "text": "again" } })).await.ok();
    app.report("t", json!({ "status": "error", "result": "it broke" })).await.ok();
    let thread = app.get("/v1/tasks/t/thread").await.ok();
    let said: Vec<_> =
        thread.as_array().expect("messages").iter().map(|message| &message["id"]).collect();
    assert_eq!(said, ["t_user_1", "t_user_2", "t_agent_2"]);
    for path in
        ["/v1/tasks/unknown/thread", "/v1/tasks/unknown/thread/full", "/v1/tasks/%00/thread"]
    {
        let answer = app.get(path).await;
        assert_eq!(
            (answer.status, answer.json()),
            (StatusCode::NOT_FOUND, json!({ "detail": "Task not found" }))
        );
    }
}

/// root > (a > (c > d), b)
async fn record_tree(app: &TestApp) {
    for (id, parent) in [
        ("root-task", None),
        ("a", Some("root-task")),
        ("b", Some("root-task")),
        ("c", Some("a")),
        ("d", Some("c")),
    ] {
        app.advance(1.0);
        let body = json!({ "id": id, "input": { "text": id }, "parent_execution_id": parent });
        app.invoke("agent", body).await.ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_thread_has_sub_tasks_to_any_depth() {
    let app = TestApp::start().await;
    record_tree(&app).await;
    let full = app.get("/v1/tasks/root-task/thread/full").await.ok();
    let keys: Vec<_> = full.as_object().expect("buckets").keys().cloned().collect();
    assert_eq!(keys, ["root", "a", "b", "c", "d"]);
    assert_eq!(full["d"][0]["content"], "d");
    assert_eq!(app.get("/v1/tasks/root-task/thread").await.ok().as_array().map(Vec::len), Some(1));
    let part = app.get("/v1/tasks/a/thread/full").await.ok();
    assert_eq!(part.as_object().map(serde_json::Map::len), Some(3), "{part}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn circles_of_parents_end() {
    let app = TestApp::start().await;
    for (id, parent) in [("x", "y"), ("y", "x"), ("self", "self")] {
        app.invoke("agent", json!({ "id": id, "input": {}, "parent_execution_id": parent }))
            .await
            .ok();
    }
    let full = app.get("/v1/tasks/x/thread/full").await.ok();
    assert_eq!(full.as_object().expect("buckets").keys().collect::<Vec<_>>(), ["root", "y"]);
    assert_eq!(app.get("/v1/tasks/self").await.ok()["sub_executions"], json!(["self"]));
    for (id, left) in [("self", 2), ("y", 0)] {
        assert_eq!(
            app.request("DELETE", &format!("/v1/tasks/{id}"), None).await.status,
            StatusCode::NO_CONTENT
        );
        assert_eq!(app.get("/v1/tasks").await.ok()["total"], left);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_takes_sub_tasks_along_and_nothing_else() {
    let app = TestApp::start().await;
    record_tree(&app).await;
    let (other, _) = app.other_organization().await;
    let theirs = json!({ "id": "c", "input": {}, "parent_execution_id": "a" });
    app.request_as(&other, "POST", "/v1/agents/agent/invoke/async", Some(theirs)).await.ok();
    let key = json!({ "id": "c", "input": { "text": "turn" } });
    app.invoke("agent", key).await.ok();

    let deleted = app.request("DELETE", "/v1/tasks/a", None).await;
    assert_eq!((deleted.status, deleted.text.as_str()), (StatusCode::NO_CONTENT, ""));
    let left = app.get("/v1/tasks").await.ok();
    let ids: Vec<_> =
        left["items"].as_array().expect("items").iter().map(|item| &item["id"]).collect();
    assert_eq!(ids, ["b", "root-task"]);
    assert_eq!(app.get("/v1/tasks/root-task").await.ok()["sub_executions"], json!(["b"]));
    assert_eq!(app.request_as(&other, "GET", "/v1/tasks/c", None).await.status, StatusCode::OK);
    for id in ["a", "d", "never"] {
        assert_eq!(
            app.request("DELETE", &format!("/v1/tasks/{id}"), None).await.status,
            StatusCode::NOT_FOUND
        );
    }
    let mut connection = cluster::connect(&app.database).await;
    let turns: i64 = sqlx::query_scalar("SELECT count(*) FROM task_turns")
        .fetch_one(&mut connection)
        .await
        .expect("rows");
    assert_eq!(turns, 3, "their turns are gone too");
    // The id is free again.
    assert_eq!(
        app.invoke("another", json!({ "id": "a", "input": {} })).await.ok()["agent_id"],
        "another"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_is_idempotent() {
    let app = TestApp::start().await;
    let stop = async |id: &str| app.request("POST", &format!("/v1/tasks/{id}/stop"), None).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    app.advance(1.0);
    let stopped = stop("t").await.ok();
    assert_eq!(stopped["status"], "stopped");
    assert_eq!(stopped["is_manually_stopped"], true);
    assert_eq!(stopped["finished_at"], "2026-03-23T00:45:23Z");
    app.advance(1.0);
    assert_eq!(stop("t").await.ok(), stopped, "stopped already, so nothing changes");
    for status in ["completed", "failed", "error"] {
        app.invoke("a", json!({ "id": status, "input": {} })).await.ok();
        let ended = app.report(status, json!({ "status": status, "result": "r" })).await.ok();
        app.advance(1.0);
        assert_eq!(stop(status).await.ok(), ended);
    }
    let resumed = app.report("t", json!({ "status": "executing" })).await.ok();
    assert_eq!(
        (&resumed["is_manually_stopped"], &resumed["finished_at"]),
        (&json!(false), &Value::Null)
    );
    assert_eq!(stop("unknown").await.status, StatusCode::NOT_FOUND);
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
    // The contract's own parameter stays one word.
    assert_eq!(
        app.get("/v1/tasks?status=completed,failed").await.status,
        StatusCode::UNPROCESSABLE_ENTITY
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_idempotency_key_records_once() {
    let app = TestApp::start().await;
    let send = async |key: &str, body: Value| {
        let request = axum::http::Request::post("/v1/agents/a/invoke/async")
            .header("x-api-key", &app.key)
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body(axum::body::Body::from(body.to_string()));
        app.send(request.expect("a request")).await
    };
    let body = json!({ "input": { "text": "once" } });
    let answers = futures_util::future::join_all((0..5).map(|_| send("k1", body.clone()))).await;
    for answer in &answers {
        assert_eq!((answer.status, &answer.text), (StatusCode::OK, &answers[0].text));
    }
    assert_eq!(app.get("/v1/agents/a/tasks").await.ok()["total"], 1);
    let id = answers[0].json()["id"].as_str().expect("an id").to_owned();
    app.report(&id, json!({ "status": "completed", "result": "done" })).await.ok();
    assert_eq!(
        send("k1", body.clone()).await.text,
        answers[0].text,
        "the answer of the first time"
    );
    assert_eq!(
        app.get(&format!("/v1/tasks/{id}/thread")).await.ok().as_array().map(Vec::len),
        Some(2)
    );

    let other = send("k1", json!({ "input": { "text": "something else" } })).await;
    assert_eq!(other.status, StatusCode::CONFLICT);
    assert_eq!(other.json()["detail"], "This Idempotency-Key was used with another request");
    send("k2", body.clone()).await.ok();
    assert_eq!(app.get("/v1/agents/a/tasks").await.ok()["total"], 2);
    assert_eq!(
        send(&"k".repeat(256), body).await.json()["detail"][0]["loc"],
        json!(["header", "idempotency-key"])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_is_the_agents_own() {
    let app = TestApp::start().await;
    let (other, _) = app.other_organization().await;
    for (key, agent) in [(&app.key, "a"), (&app.key, "b"), (&other, "a")] {
        let request = axum::http::Request::post(format!("/v1/agents/{agent}/invoke/async"))
            .header("x-api-key", key)
            .header("content-type", "application/json")
            .header("idempotency-key", "k")
            .body(axum::body::Body::from(r#"{"input":{}}"#));
        app.send(request.expect("a request")).await.ok();
    }
    assert_eq!(app.get("/v1/tasks").await.ok()["total"], 2);
}

/// The contract's examples: the request of both routes, and what their answers show.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_invocation_waits_for_its_outcome() {
    let app = TestApp::start().await;
    let shown = |task: &Value| {
        let keys = [
            "id",
            "agent_id",
            "organization_id",
            "status",
            "result",
            "created_at",
            "finished_at",
            "source",
        ];
        keys.into_iter().map(|key| (key.to_owned(), task[key].clone())).collect::<Value>()
    };
    let user = json!({ "id": "user_123", "email": "user@example.com" });
    let body =
        json!({ "id": "t", "input": { "text": "What can you help me with?", "user": user } });
    let pending = app.invoke("a", body.clone()).await.ok();
    assert_eq!(
        shown(&pending),
        json!({
            "id": "t",
            "agent_id": "a",
            "organization_id": app.organization.to_string(),
            "status": "pending",
            "result": null,
            "created_at": "2026-03-23T00:45:22Z",
            "finished_at": null,
            "source": "api"
        })
    );
    app.request("DELETE", "/v1/tasks/t", None).await;
    let invocation = app.request("POST", "/v1/agents/a/invoke", Some(body));
    let runner = async {
        while app.report("t", json!({ "status": "executing" })).await.status != StatusCode::OK {}
        app.report("t", json!({ "status": "completed", "result": "done" })).await.ok();
    };
    let (answer, ()) = futures_util::future::join(invocation, runner).await;
    let mut finished = shown(&pending);
    finished["status"] = "completed".into();
    finished["result"] = "done".into();
    finished["finished_at"] = "2026-03-23T00:45:22Z".into();
    assert_eq!(shown(&answer.ok()), finished);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_invocation_gives_up_waiting() {
    let app = TestApp::start().await;
    let task = app
        .request("POST", "/v1/agents/a/invoke", Some(json!({ "id": "t", "input": {} })))
        .await
        .ok();
    assert_eq!(task["status"], "pending");
    // The turn goes on.
    assert_eq!(app.report("t", json!({ "status": "completed" })).await.ok()["status"], "completed");
}
