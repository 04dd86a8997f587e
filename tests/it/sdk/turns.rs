//! Reports that name their turn, and answers that tell it.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use super::push;
use crate::support::cluster;
use crate::support::sse_client::SseClient;
use crate::support::test_app::{Answer, TestApp};

/// A task with two turns, which ask `one` and `two`.
async fn app_with_two_turns() -> TestApp {
    let app = TestApp::start().await;
    for text in ["one", "two"] {
        app.invoke("a", json!({ "id": "t", "input": { "text": text } })).await.ok();
    }
    app
}

/// The contents of the task's thread.
async fn thread(app: &TestApp) -> Vec<Value> {
    let thread = app.get("/v1/tasks/t/thread").await.ok();
    let messages = thread.as_array().expect("messages").iter();
    messages.map(|message| message["content"].clone()).collect()
}

async fn metrics(app: &TestApp, body: Value) -> Answer {
    app.request("POST", "/agents-metrics/a/execution", Some(body)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_report_is_about_its_own_turn() {
    let app = app_with_two_turns().await;
    let before = app.get("/v1/tasks/t").await.ok();
    let item = app.get("/v1/tasks").await.ok()["items"][0].clone();
    app.advance(1.0);
    let late = json!({
        "turn": 1, "status": "completed", "result": "answer of one", "internal_status": "late",
        "title": "Late", "source": "mobile", "tokens": { "total_tokens": 1 }
    });
    let late = app.report("t", late).await;
    assert_eq!(late.headers["x-task-turn"], "1");
    let late = late.ok();
    assert_eq!((&late["input"]["text"], &late["result"]), (&json!("one"), &json!("answer of one")));
    assert_eq!((&late["status"], &late["title"]), (&json!("completed"), &json!("Late")));
    assert_eq!(late["finished_at"], "2026-03-23T00:45:23Z");
    assert_eq!(late["tokens"]["total_tokens"], 1);

    // The latest turn, which lists show, is as it was.
    assert_eq!(app.get("/v1/tasks/t").await.ok(), before);
    assert_eq!(app.get("/v1/tasks").await.ok()["items"][0], item);
    assert_eq!(thread(&app).await, ["one", "answer of one", "two"]);
    assert_eq!(app.get("/v1/tasks?status=completed").await.ok()["total"], 0);

    let latest = app.report("t", json!({ "turn": 2, "status": "completed", "result": "r" })).await;
    assert_eq!(latest.headers["x-task-turn"], "2");
    assert_eq!(app.get("/v1/tasks/t").await.ok(), latest.ok());
    assert_eq!(app.get("/v1/tasks?status=completed").await.ok()["items"][0]["result"], "r");
    let told = app.store.verify(app.organization, "default").await.expect("a recount").drift;
    assert_eq!(told, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_outcome_of_an_ended_turn_is_final() {
    let app = app_with_two_turns().await;
    let outcome = json!({ "turn": 1, "status": "completed", "result": "answer" });
    let ended = app.report("t", outcome.clone()).await.ok();
    app.advance(1.0);
    assert_eq!(app.report("t", outcome).await.ok(), ended, "said again, nothing changes");
    for refused in [
        json!({ "turn": 1, "status": "failed" }),
        json!({ "turn": 1, "status": "executing", "result": "answer" }),
        json!({ "turn": 1, "result": "another", "tokens": { "total_tokens": 9 } }),
    ] {
        let answer = app.report("t", refused.clone()).await;
        assert_eq!(answer.status, 409, "{refused}");
        let detail = "This turn has ended, and its status and its result are final";
        assert_eq!(answer.json(), json!({ "detail": detail }));
    }
    // What is not its outcome may come later.
    let tokens = json!({ "total_tokens": 3 });
    let more = app.report("t", json!({ "turn": 1, "tokens": tokens, "duration": 1.5 })).await.ok();
    let mut expected = ended;
    expected["tokens"] = tokens;
    expected["duration"] = json!(1.5);
    assert_eq!(more, expected);
    // A report that names no turn may change any status, as the contract has it.
    app.report("t", json!({ "turn": 2, "status": "completed" })).await.ok();
    assert_eq!(app.report("t", json!({ "turn": 2, "status": "paused" })).await.status, 409);
    assert_eq!(app.report("t", json!({ "status": "paused" })).await.ok()["status"], "paused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_does_not_exist_is_not_found() {
    let app = app_with_two_turns().await;
    let before = app.get("/v1/tasks/t").await.ok();
    for turn in [3_i64, i64::from(i32::MAX), i64::MAX] {
        let report = app.report("t", json!({ "turn": turn, "status": "completed" })).await;
        let metrics = metrics(&app, json!({ "execution_id": "t", "turn": turn })).await;
        let events = json!([{ "type": "chunk" }, { "type": "chunk", "turn": turn }]);
        for answer in [report, metrics, push(&app, "t", events).await] {
            assert_eq!(answer.status, 404, "{turn}");
            assert_eq!(answer.json(), json!({ "detail": "This task has no such turn" }));
        }
    }
    for turn in [json!(0), json!(-1)] {
        let answer = app.report("t", json!({ "turn": turn })).await;
        assert_eq!(answer.status, 422);
        let error = &answer.json()["detail"][0];
        assert_eq!(error["type"], "greater_than_equal");
        assert_eq!((&error["loc"], &error["input"]), (&json!(["body", "turn"]), &turn));
    }
    assert_eq!(app.get("/v1/tasks/t").await.ok(), before);
    let mut connection = cluster::connect(&app.database).await;
    let events: i64 = sqlx::query_scalar("SELECT events FROM tasks")
        .fetch_one(&mut connection)
        .await
        .expect("a number");
    assert_eq!(events, 2, "nothing was recorded but two turns");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_and_events_may_name_their_turn() {
    let app = app_with_two_turns().await;
    let before = app.get("/v1/tasks/t").await.ok();
    let tokens = json!({ "worker": { "total_tokens": 5 } });
    let sent = json!({ "execution_id": "t", "turn": 1, "llm_tokens": tokens, "duration": 2.0 });
    let answer = metrics(&app, sent).await;
    assert_eq!(answer.headers["x-task-turn"], "1");
    assert_eq!(answer.ok()["tokens"]["total_tokens"], 5);
    assert_eq!(app.get("/v1/tasks/t").await.ok(), before);

    let events = json!([
        { "type": "chunk", "data": "a", "turn": 1 }, { "type": "chunk", "data": "b" },
        { "type": "chunk", "data": "c", "turn": 2 }, { "type": "chunk", "data": "d", "turn": 1 }
    ]);
    assert_eq!(push(&app, "t", events).await.ok()["accepted"], 4);
    let mut connection = cluster::connect(&app.database).await;
    let stored: Vec<(i64, i32, String)> =
        sqlx::query_as("SELECT event, turn, data::text FROM task_events ORDER BY event")
            .fetch_all(&mut connection)
            .await
            .expect("events");
    // Two turns and the metrics were numbered before.
    let expected = [(4, 1, "\"a\""), (5, 2, "\"b\""), (6, 2, "\"c\""), (7, 1, "\"d\"")];
    assert_eq!(stored, expected.map(|(event, turn, data)| (event, turn, data.to_owned())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_an_earlier_turn_does_not_end_the_stream_of_a_later_one() {
    let app = app_with_two_turns().await;
    let mut stream = SseClient::follow(&app, "t").await;
    assert_eq!(stream.next().await.expect("the task")["data"]["input"]["text"], "two");
    let late = app.report("t", json!({ "turn": 1, "status": "failed", "result": "late" })).await;
    let event = stream.next().await.expect("an event");
    assert_eq!((&event["type"], &event["data"]), (&json!("task_finished"), &late.ok()));
    let last = app.report("t", json!({ "status": "completed", "result": "done" })).await.ok();
    assert_eq!(stream.next().await.expect("an event")["data"], last);
    assert_eq!(stream.next().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_that_is_a_task_tells_its_turn() {
    let app = app_with_two_turns().await;
    let invocation = || Some(json!({ "id": "t", "input": {} }));
    let report = || Some(json!({ "result": "r" }));
    let cases = [
        ("GET", "/v1/tasks/t", None, 2),
        ("GET", "/agent-execution/t/status", None, 2),
        ("PATCH", "/agent-execution/t/update", report(), 2),
        ("POST", "/agents-metrics/a/execution", Some(json!({ "execution_id": "t" })), 2),
        ("POST", "/v1/tasks/t/stop", None, 2),
        ("DELETE", "/agent-execution/t", None, 2),
        ("POST", "/v1/agents/a/invoke/async", invocation(), 3),
        ("POST", "/agent-execution/a", invocation(), 4),
        ("POST", "/agent-execution/a/report_task", Some(json!({ "id": "t" })), 5),
        ("POST", "/v1/agents/a/invoke", invocation(), 6),
    ];
    for (method, target, body, turn) in cases {
        let answer = app.request(method, target, body).await;
        let told = answer.headers.get("x-task-turn").expect(target);
        assert_eq!(told, &turn.to_string(), "{method} {target}: {}", answer.text);
    }
    let request = Request::post("/v1/agents/a/invoke/stream")
        .header("x-api-key", &app.key)
        .header("content-type", "application/json")
        .body(Body::from(r#"{"id":"t","input":{}}"#));
    let request = request.expect("a request");
    let response =
        tower::ServiceExt::oneshot(app.router.clone(), request).await.expect("an answer");
    assert_eq!(response.headers()["x-task-turn"], "7");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_that_ran_elsewhere_at_once_keep_their_own_answers() {
    let app = TestApp::start().await;
    let send = |n: usize| {
        let body = json!({
            "id": "t", "input": format!("question {n}"), "result": format!("answer {n}"),
            "tokens": { "total_tokens": n }
        });
        app.request("POST", "/agent-execution/a/report_task", Some(body))
    };
    let rounds = [0, 40].map(|first| futures_util::future::join_all((first..first + 40).map(send)));
    let answers: Vec<_> =
        futures_util::future::join_all(rounds).await.into_iter().flatten().collect();
    let mut turns = Vec::new();
    for (n, answer) in answers.iter().enumerate() {
        let task = answer.ok();
        assert_eq!(task["input"]["text"], format!("question {n}"));
        assert_eq!(
            (&task["status"], &task["finished_at"]),
            (&json!("completed"), &task["created_at"])
        );
        assert_eq!(task["result"], format!("answer {n}"));
        assert_eq!(task["tokens"]["total_tokens"], n);
        turns.push(answer.headers["x-task-turn"].to_str().expect("a number").to_owned());
    }
    turns.sort_unstable_by_key(|turn| turn.parse::<usize>().expect("a number"));
    let expected: Vec<_> = (1..=80).map(|turn: usize| turn.to_string()).collect();
    assert_eq!(turns, expected, "each is a turn of its own");
    let thread = thread(&app).await;
    assert_eq!(thread.len(), 160);
    for pair in thread.chunks(2) {
        let question = pair[0].as_str().expect("a text").replace("question", "answer");
        assert_eq!(pair[1], question);
    }
    let mut connection = cluster::connect(&app.database).await;
    let pending = "SELECT count(*) FROM task_turns
                   WHERE status <> 'completed' OR finished_at IS NULL OR reported::text = '{}'";
    let pending: i64 = sqlx::query_scalar(pending).fetch_one(&mut connection).await.expect("a row");
    assert_eq!(pending, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_ran_elsewhere_is_streamed_with_its_outcome() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let mut stream = SseClient::follow(&app, "t").await;
    stream.next().await.expect("the task");
    let body = json!({ "id": "t", "input": "in", "result": "out" });
    let answer = app.request("POST", "/agent-execution/a/report_task", Some(body)).await.ok();
    let created = stream.next().await.expect("an event");
    assert_eq!(
        (&created["type"], &created["data"]["status"]),
        (&json!("task_created"), &json!("pending"))
    );
    assert_eq!(
        (&created["data"]["result"], &created["data"]["input"]["text"]),
        (&Value::Null, &json!("in"))
    );
    let finished = stream.next().await.expect("an event");
    assert_eq!((&finished["type"], &finished["data"]), (&json!("task_finished"), &answer));
    assert_eq!(stream.next().await, None);
}
