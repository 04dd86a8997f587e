//! Large answers: what they cost in memory, that they are complete, and how they end early.

use std::fmt::Write;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, header};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};
use task_history::domain::Limits;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tower::ServiceExt;

use crate::support::program::{DataDirectory, KEY, RunningService};
use crate::support::test_app::TestApp;
use crate::support::{TIMEOUT, cluster};

const MIB: usize = 1 << 20;

/// Records a task of each organization past the service: with `turns` turns, whose question and
/// answer are texts of so many bytes, and with so many small events and one large one.
async fn store_thread(database: &str, id: &str, turns: usize, bytes: usize, events: usize) {
    let large = bytes.min(MIB);
    let statements = format!(
        "INSERT INTO tasks (organization_id, id, agent_id, status, source, title, result, turns,
                            events, created_at, updated_at)
         SELECT id, '{id}', 'a', 'completed', 'api', repeat('q', {bytes}), repeat('a', {bytes}),
                {turns}, {events} + 1, '2026-01-01Z', '2026-01-01Z'
         FROM organizations;
         INSERT INTO task_turns (organization_id, task_id, turn, input, request, status, result,
                                 is_manually_stopped, created_at, finished_at)
         SELECT id, '{id}', turn, json_build_object('text', repeat('q', {bytes} - turn)), '{{}}',
                'completed', repeat('a', {bytes} - turn), false, '2026-01-01Z', '2026-01-02Z'
         FROM organizations, generate_series(1, {turns}) AS turn;
         INSERT INTO task_events (organization_id, task_id, event, turn, type, data, created_at)
         SELECT id, '{id}', event, 1, 'chunk',
                CASE WHEN event > {events} THEN to_json(repeat('e', {large})) ELSE '7' END,
                '2026-01-01Z'
         FROM organizations, generate_series(1, {events} + 1) AS event",
    );
    cluster::execute(database, &statements).await;
}

/// Records tasks for lists past the service, with two texts of so many bytes.
async fn store_tasks(database: &str, agent: &str, count: usize, bytes: usize) {
    let statement = format!(
        "INSERT INTO tasks (organization_id, id, agent_id, user_id, status, source, title, result,
                            turns, created_at, updated_at)
         SELECT id, '{agent}-' || n, '{agent}', '{agent}', 'completed', 'api',
                repeat('t', {bytes}), repeat('r', {bytes}), 1, '2026-01-01Z', '2026-01-01Z'
         FROM organizations, generate_series(1, {count}) AS n WHERE name = 'default'"
    );
    cluster::execute(database, &statement).await;
}

/// The program on a database of its own, with its name.
async fn start_program(directory: &DataDirectory) -> (RunningService, String) {
    let database = cluster::migrated_database().await;
    let mut command = directory.command(["serve", "--listen", "127.0.0.1:0"]);
    command.env("DATABASE_URL", cluster::url_of(&database));
    command.env("TASK_HISTORY_BOOTSTRAP_KEY", KEY);
    (RunningService::start(command).await, database)
}

/// A number of kilobytes in the status of a process, in bytes.
fn memory(service: &RunningService, name: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid()));
    let status = status.expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB")).expect("a size");
    number.trim().parse::<usize>().expect("a number") << 10
}

/// Forgets the process's highest memory use until now.
fn reset_peak(service: &RunningService) {
    std::fs::write(format!("/proc/{}/clear_refs", service.pid()), "5").expect("own process");
}

/// Reads an answer to its end, and returns its size.
async fn read(service: &RunningService, path: &str) -> usize {
    let request = reqwest::Client::new().get(format!("{}{path}", service.base));
    let mut body = request.header("x-api-key", KEY).send().await.expect("an answer");
    assert!(body.status().is_success(), "{path}: {}", body.status());
    let mut bytes = 0;
    while let Some(chunk) = body.chunk().await.expect("a whole body") {
        bytes += chunk.len();
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_does_not_depend_on_what_is_stored() {
    let directory = DataDirectory::new();
    let (service, database) = start_program(&directory).await;
    store_thread(&database, "big", 10, 2 * MIB, 20_000).await;
    store_tasks(&database, "large", 8, 3 * MIB).await;
    store_tasks(&database, "many", 1000, 20_000).await;
    // The caches of connections and of the allocator are warm from now on.
    join_all((0..8).map(|_| read(&service, "/v1/tasks?agent_id=none"))).await;
    for (path, bytes) in [
        ("/v1/tasks/big/thread", 40 * MIB),
        ("/v1/tasks/big/thread/full", 40 * MIB),
        ("/activity/a/big", 40 * MIB),
        ("/v1/tasks?agent_id=large&per_page=50", 48 * MIB),
        ("/agent-execution/executions/history/many", 38 * MIB),
    ] {
        reset_peak(&service);
        let before = memory(&service, "VmRSS");
        let sizes = join_all((0..2).map(|_| read(&service, path))).await;
        assert!(sizes.iter().all(|size| *size > bytes - MIB), "{path}: {sizes:?}");
        let grown = memory(&service, "VmHWM").saturating_sub(before);
        assert!(grown < 100 * MIB, "{path} takes {} MiB", grown / MIB);
    }
    service.stop().await;
}

/// Reads the head of an answer, and nothing more.
async fn read_head(service: &RunningService, path: &str) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", service.port)).await.expect("a connection");
    let mut stream = BufReader::new(stream);
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("a request");
    let mut line = String::new();
    stream.read_line(&mut line).await.expect("a head");
    assert!(line.starts_with("HTTP/1.1 200"), "{line}");
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stall_hold_little() {
    let directory = DataDirectory::new();
    let (service, database) = start_program(&directory).await;
    store_thread(&database, "big", 20, 2 * MIB, 0).await;
    store_tasks(&database, "large", 50, 4 * MIB).await;
    join_all((0..8).map(|_| read(&service, "/v1/tasks?agent_id=none"))).await;
    reset_peak(&service);
    let before = memory(&service, "VmRSS");
    let list = "/v1/tasks?agent_id=large&per_page=50";
    let lists = join_all((0..6).map(|_| read_head(&service, list))).await;
    let threads = join_all((0..20).map(|_| read_head(&service, "/v1/tasks/big/thread"))).await;
    let stalled = memory(&service, "VmHWM").saturating_sub(before);
    drop((lists, threads));
    // What they held is free for others now.
    read(&service, "/v1/tasks/big/thread").await;
    let grown = memory(&service, "VmHWM").saturating_sub(before);
    assert!(grown < 128 * MIB, "they take {} MiB, then {} MiB", stalled / MIB, grown / MIB);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_fails_midway_is_no_whole_answer() {
    let directory = DataDirectory::new();
    let (mut service, database) = start_program(&directory).await;
    store_thread(&database, "big", 20, 2 * MIB, 0).await;
    store_tasks(&database, "large", 30, 3 * MIB).await;
    let paths = ["/v1/tasks/big/thread", "/activity/a/big", "/v1/tasks?agent_id=large&per_page=50"];
    let mut answers = Vec::new();
    for path in paths {
        let request = reqwest::Client::new().get(format!("{}{path}", service.base));
        let answer = request.header("x-api-key", KEY).send().await.expect("an answer");
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        answers.push(answer);
    }
    cluster::execute(&database, "DROP TABLE tasks CASCADE; DROP TABLE task_turns CASCADE").await;
    for (path, mut answer) in paths.into_iter().zip(answers) {
        let mut bytes = 0;
        let end = loop {
            match answer.chunk().await {
                Ok(Some(chunk)) => bytes += chunk.len(),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        assert!(end.is_some(), "{path} ends like a whole body after {bytes} bytes");
        assert!(bytes < 80 * MIB, "{path}: {bytes} bytes");
        service.wait_for_log("answer aborted").await;
    }
    service.stop().await;
}

/// The next bytes of a body.
async fn next(body: &mut axum::body::BodyDataStream) -> Option<Result<Bytes, axum::Error>> {
    tokio::time::timeout(TIMEOUT, body.next()).await.expect("it goes on")
}

/// Reads the head and the first bytes of a thread.
async fn start_to_read(app: &TestApp) -> axum::body::BodyDataStream {
    let request = Request::get("/v1/tasks/big/thread").header("x-api-key", &app.key);
    let request = request.body(Body::empty()).expect("a request");
    let answer = app.router.clone().oneshot(request).await.expect("infallible");
    let mut body = answer.into_body().into_data_stream();
    assert!(next(&mut body).await.is_some_and(|chunk| chunk.is_ok()));
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stalls_frees_its_memory_in_time() {
    let slow_reader_timeout = Duration::from_millis(200);
    let app = TestApp::start_with(Limits { slow_reader_timeout, ..Limits::default() }).await;
    store_thread(&app.database, "big", 3, 4 * MIB, 0).await;
    let mut stalled = Vec::new();
    // Together they would take more than there is for all.
    for _ in 0..20 {
        stalled.push(start_to_read(&app).await);
    }
    let thread = app.get("/v1/tasks/big/thread").await.ok();
    assert_eq!(thread.as_array().map(Vec::len), Some(6));
    for body in &mut stalled {
        let end = loop {
            match next(body).await {
                Some(Ok(_)) => {}
                end => break end,
            }
        };
        assert!(end.is_some_and(|end| end.is_err()), "it is aborted");
    }
}

/// A text that differs from the others, with characters of several bytes and some to escape.
fn varied(number: usize, bytes: usize) -> String {
    let unit = format!("{number} \"ü語\\\n");
    unit.repeat(bytes / unit.len() + 1)
}

/// Sizes around all limits: of a step, of a share of a page, and of a body.
fn size(number: usize) -> usize {
    [10, 3000, MIB / 2, 30_000, MIB + 7, 200, 2 * MIB][number % 7]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_thread_is_exactly_its_messages() {
    let app = TestApp::start().await;
    let (mut thread, mut activity) = (Vec::new(), Vec::new());
    let user = json!({
        "id": "u", "first_name": null, "last_name": null, "email": "u@example.com",
        "additional_attributes": { "long": "x".repeat(100_000) }, "role": "member",
        "is_super_admin": false, "timezone": null, "display_name": "u@example.com"
    });
    let mut events = 0;
    for turn in 1..=30_usize {
        let (question, answer) = (varied(turn, size(turn)), varied(turn, size(turn + 3)));
        let mut input = json!({ "text": question });
        let shown_user = if turn >= 3 { &user } else { &Value::Null };
        if turn >= 3 {
            input["user"] = json!({
                "id": "u", "email": "u@example.com",
                "additional_attributes": user["additional_attributes"]
            });
        }
        app.invoke("a", json!({ "id": "t", "input": input })).await.ok();
        let at = app.now().timestamp();
        let time = app.now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        let mut message = |role: &str, shown: &str, text: &str, user: &Value| {
            let id = format!("t_{role}_{turn}");
            thread.push(json!({ "id": id, "role": shown, "content": text, "created_at": at }));
            json!({
                "id": id, "created_at": time, "role": role,
                "content": { "text": text, "files": [] }, "user": user
            })
        };
        activity.push(message("user", "user", &question, shown_user));
        let pushed: Vec<Value> = (0..turn * 10)
            .map(|number| json!({ "type": "chunk", "data": { "n": number } }))
            .chain([json!({ "type": "chunk", "data": { "long": varied(turn, size(turn + 5)) } })])
            .collect();
        for event in &pushed {
            events += 1;
            let mut entry = event["data"].clone();
            entry["created_at"] = json!(time);
            entry["type"] = json!("chunk");
            activity.push(entry);
        }
        let path = "/agent-execution/t/events/push";
        app.request("POST", path, Some(json!(pushed))).await.ok();
        app.report("t", json!({ "status": "completed", "result": answer })).await.ok();
        activity.push(message("agent", "assistant", &answer, &Value::Null));
        app.advance(1.0);
    }
    assert!(events > 4000, "{events} events");
    let read = app.get("/v1/tasks/t/thread").await;
    assert!(!read.headers.contains_key(header::CONTENT_LENGTH), "it is sent in parts");
    assert_eq!(read.headers[header::CONTENT_TYPE], "application/json");
    let wanted = json!(thread).to_string();
    assert!(read.text == wanted, "the thread differs");
    let full = app.get("/v1/tasks/t/thread/full").await;
    let wanted = json!({ "root": thread }).to_string();
    assert!(full.text == wanted, "the full thread differs");
    let log = app.get("/activity/a/t").await.ok();
    assert_eq!(log["created_at"], "2026-03-23T00:45:22Z");
    assert!(log["user"] == user, "the first user");
    let entries = log["messages"].as_array().expect("messages");
    assert_eq!(entries.len(), activity.len());
    for (entry, wanted) in entries.iter().zip(&activity) {
        let mut entry = entry.clone();
        if wanted.get("id").is_none() {
            // The number of an event is the service's.
            let id = entry.as_object_mut().and_then(|entry| entry.remove("id"));
            assert!(id.is_some_and(|id| id.to_string().starts_with("\"t_event_")));
        }
        assert!(entry == *wanted, "{} differs", wanted["id"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_thread_has_any_number_of_sub_tasks() {
    let app = TestApp::start().await;
    // `root` is an id like any other; its messages belong to the array of that name.
    let rows = format!(
        "INSERT INTO tasks (organization_id, id, agent_id, parent_task_id, status, source, turns,
                            created_at, updated_at)
         SELECT '{organization}', CASE n WHEN 0 THEN 'top' WHEN 700 THEN 'root' ELSE 's' || n END,
                'a', CASE WHEN n > 0 THEN CASE n % 3 WHEN 0 THEN 's1' ELSE 'top' END END,
                'pending', 'api', 2, '2026-01-01Z'::timestamptz - n * interval '1 second', now()
         FROM generate_series(0, 12000) AS n;
         INSERT INTO task_turns (organization_id, task_id, turn, input, request, status,
                                 is_manually_stopped, created_at)
         SELECT organization_id, id, turn, json_build_object('text', id || ' ' || turn), '{{}}',
                'pending', false, created_at
         FROM tasks, generate_series(1, 2) AS turn",
        organization = app.organization
    );
    cluster::execute(&app.database, &rows).await;
    let full = app.get("/v1/tasks/top/thread/full").await;
    let mut wanted = String::from("{");
    let created_at = |n: i64| 1_767_225_600 - n;
    let messages = |id: &str, n: i64| {
        let of_turn = |turn: i64| {
            json!({
                "id": format!("{id}_user_{turn}"), "role": "user",
                "content": format!("{id} {turn}"), "created_at": created_at(n)
            })
            .to_string()
        };
        format!("{},{}", of_turn(1), of_turn(2))
    };
    let _ = write!(wanted, "\"root\":[{},{}]", messages("top", 0), messages("root", 700));
    for n in (1..=12_000).rev().filter(|n| *n != 700) {
        let id = format!("s{n}");
        let _ = write!(wanted, ",\"{id}\":[{}]", messages(&id, n));
    }
    wanted.push('}');
    assert!(full.text == wanted, "the full thread differs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_has_the_ids_of_all_its_sub_tasks() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "top", "input": { "text": "语 \"sub_executions\":[" } }))
        .await
        .ok();
    let mut wanted = app.get("/v1/tasks/top").await.ok();
    for (last, finished) in [(9_999, 4_999), (10_000, 5_000), (12_345, 6_172)] {
        let fill = format!(
            "INSERT INTO tasks (organization_id, id, agent_id, parent_task_id, status, source,
                                turns, created_at, updated_at)
             SELECT '{}', 's' || n, 'a', 'top',
                    (ARRAY['pending', 'failed'])[1 + (n + 1) % 2]::task_status, 'api', 1,
                    '2026-01-01Z'::timestamptz + n * interval '1 second', now()
             FROM generate_series(1, {last}) AS n
             ON CONFLICT DO NOTHING",
            app.organization
        );
        cluster::execute(&app.database, &fill).await;
        let ids: Vec<_> = (1..=last).map(|n| format!("s{n}")).collect();
        let ended: Vec<_> = (1..=last).filter(|n| n % 2 == 0).map(|n| format!("s{n}")).collect();
        assert_eq!(ended.len(), finished);
        wanted["sub_executions"] = json!(ids);
        wanted["finished_sub_executions"] = json!(ended);
        for path in ["/v1/tasks/top", "/agent-execution/top/status"] {
            let read = app.get(path).await;
            let wanted = wanted.to_string();
            assert!(read.text == wanted, "{path} with {last} sub-tasks differs");
        }
    }
    // The answers to writes have the oldest.
    let keyed = |key: &str| {
        Request::post("/v1/agents/a/invoke/async")
            .header("x-api-key", &app.key)
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body(Body::from(r#"{"id":"top","input":{}}"#))
            .expect("a request")
    };
    for answer in [
        app.invoke("a", json!({ "id": "top", "input": {} })).await,
        app.send(keyed("first")).await,
        app.send(keyed("first")).await,
        app.report("top", json!({ "status": "completed" })).await,
    ] {
        assert_eq!(answer.ok()["sub_executions"].as_array().map(Vec::len), Some(10_000));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_one_organization_leave_memory_for_others() {
    let slow_reader_timeout = Duration::from_hours(1);
    let app = TestApp::start_with(Limits { slow_reader_timeout, ..Limits::default() }).await;
    let (other, _) = app.other_organization().await;
    store_thread(&app.database, "big", 3, 2 * MIB, 0).await;
    // Each keeps 2 MiB: seven fill the share, and the rest waits.
    let mut readers = stream::iter(0..30).map(|_| start_to_read(&app)).buffer_unordered(30);
    let stalled: Vec<_> = readers.by_ref().take(7).collect().await;
    assert_eq!(stalled.len(), 7);
    let read = app.request_as(&other, "GET", "/v1/tasks/big/thread", None);
    let read = tokio::time::timeout(TIMEOUT, read).await.expect("the others wait for nobody");
    assert_eq!(read.ok().as_array().map(Vec::len), Some(6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_large_tasks_is_exactly_its_items() {
    let app = TestApp::start().await;
    let mut wanted = Vec::new();
    for number in 0..50_usize {
        let id = format!("t{number:02}");
        let (title, result) = (varied(number, size(number)), varied(number, size(number + 2)));
        app.invoke("a", json!({ "id": id, "title": title, "input": {} })).await.ok();
        app.report(&id, json!({ "status": "completed", "result": result })).await.ok();
        let time = app.now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        wanted.push(json!({
            "id": id, "agent_id": "a", "user_id": null, "parent_task_id": null,
            "triggering_agent_id": null, "organization_id": app.organization.to_string(),
            "status": "completed", "created_at": time, "updated_at": time,
            "source_node_type": "api", "result": result, "title": title
        }));
        app.advance(1.0);
    }
    wanted.reverse();
    let array = app.get("/agent-execution/executions/history/a").await;
    let all = json!(wanted).to_string();
    assert!(array.text == all, "the SDK's list differs");
    for (page, per_page) in [(1, 50), (3, 7), (1, 1), (2, 20)] {
        let list = app.get(&format!("/v1/tasks?page={page}&per_page={per_page}")).await;
        let items: Vec<_> = wanted.iter().skip((page - 1) * per_page).take(per_page).collect();
        let body = json!({
            "items": items, "total": 50, "page": page, "per_page": per_page,
            "total_pages": 50_usize.div_ceil(per_page)
        })
        .to_string();
        assert!(list.text == body, "page {page} of {per_page} differs");
        assert!(list.headers.contains_key(header::LINK));
    }
    let small = app.get("/v1/agents/none/tasks").await;
    let length = small.text.len().to_string();
    assert_eq!(small.headers[header::CONTENT_LENGTH], length.as_str(), "a small one is sent whole");
}
