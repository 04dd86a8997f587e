//! The connection that listens, and the locks of watches.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use futures_util::future::join_all;
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};
use task_history::domain::{Limits, TaskId};

use super::{get_events, instance, patient_limits};
use crate::events::until_unwatched;
use crate::support::proxy::Proxy;
use crate::support::sse_client::SseClient;
use crate::support::test_app::TestApp;
use crate::support::{TIMEOUT, cluster};

/// A transaction that has tested whether a task is watched, as a write does, and does not end.
async fn stuck_writer(app: &TestApp, id: &str) -> PgConnection {
    let mut writer = cluster::connect(&app.database).await;
    writer.execute("BEGIN").await.expect("a transaction");
    let test = "SELECT watched_tasks((SELECT id FROM organizations), ARRAY[$1])";
    sqlx::query(test).bind(id).execute(&mut writer).await.expect("a test");
    writer
}

/// An id whose lock is not that of `id`.
async fn unrelated(app: &TestApp, id: &str) -> String {
    let mut connection = cluster::connect(&app.database).await;
    let find = "SELECT other::text FROM generate_series(1, 10) AS other,
                       (SELECT watch_salt(id) AS salt FROM organizations) AS organization
                WHERE watch_key(salt, other::text) <> watch_key(salt, $1) LIMIT 1";
    sqlx::query_scalar(find).bind(id).fetch_one(&mut connection).await.expect("an id")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_does_not_end_delays_only_the_streams_of_its_task() {
    let limits = Limits { watch_timeout: Duration::from_secs(2), ..patient_limits() };
    let app = TestApp::start_with(limits).await;
    let other = unrelated(&app, "stuck").await;
    for id in ["stuck", &other] {
        app.invoke("a", json!({ "id": id, "input": {} })).await.ok();
    }
    let mut before = SseClient::follow(&app, &other).await;
    before.next().await.expect("an event");
    let mut writer = stuck_writer(&app, "stuck").await;
    let refused = app.get("/agent-execution/stuck/events");
    let others = async {
        // While the stream above waits, the listener goes on.
        let mut events = SseClient::follow(&app, &other).await;
        events.next().await.expect("an event");
        app.report(&other, json!({ "status": "executing" })).await.ok();
        for events in [&mut before, &mut events] {
            assert_eq!(events.next().await.expect("an event")["data"]["status"], "executing");
        }
        // Nor does the waiting stream stand in the way of other writers of its task.
        app.report("stuck", json!({ "status": "executing" })).await.ok();
    };
    let (refused, ()) = futures_util::future::join(refused, others).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.text);
    assert_eq!(refused.headers["retry-after"], "1");
    writer.execute("COMMIT").await.expect("an end");
    let mut events = SseClient::follow(&app, "stuck").await;
    assert_eq!(events.next().await.expect("an event")["data"]["status"], "executing");
    app.report("stuck", json!({ "status": "completed" })).await.ok();
    assert_eq!(events.rest().await, ["task_finished completed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_stream_waits_for_the_writers_that_do_not_know_of_it() {
    let app = TestApp::start_with(patient_limits()).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    // A write that found no watcher, so it stores and announces nothing.
    let mut writer = stuck_writer(&app, "t").await;
    let change = "UPDATE tasks SET events = events + 1 WHERE id = 't'";
    writer.execute(change).await.expect("a change");
    let commit = async {
        let mut connection = cluster::connect(&app.database).await;
        let locks = "SELECT count(*) FROM pg_locks
                     WHERE locktype = 'advisory' AND classid = 29810 AND database = (
                         SELECT oid FROM pg_database WHERE datname = current_database())";
        cluster::until_count(&mut connection, locks, |count| count > 0).await;
        writer.execute("COMMIT").await.expect("an end");
        connection.close().await.expect("an end");
    };
    let (mut events, ()) = futures_util::future::join(SseClient::follow(&app, "t"), commit).await;
    events.next().await.expect("an event");
    assert_eq!(events.last_id, Some(2), "the stream begins with what that write wrote");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_after_its_connections_have_fallen_silent() {
    let app = TestApp::start_with(patient_limits()).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let proxy = Proxy::start().await;
    let limits = Limits {
        listener_ping_interval: Duration::from_millis(200),
        listener_timeout: Duration::from_millis(500),
        ..patient_limits()
    };
    let router = instance(&app, &proxy.url_of(&app.database), limits);
    let mut events = SseClient::follow_at(&app, &router, "t").await;
    events.next().await.expect("an event");
    proxy.fall_silent();
    app.report("t", json!({ "status": "executing" })).await.ok();
    assert_eq!(events.next().await.expect("an event")["data"]["status"], "executing");
    app.report("t", json!({ "status": "completed" })).await.ok();
    assert_eq!(events.rest().await, ["task_finished completed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_organization_has_a_bounded_number_of_streams() {
    let limits = Limits { max_watches_per_organization: 2, ..patient_limits() };
    let app = TestApp::start_with(limits).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let first = SseClient::follow(&app, "t").await;
    let _second = SseClient::follow(&app, "t").await;
    let detail = json!({
        "detail": "The organization has 2 open event streams and waiting invocations, and may \
                   have no more: close some, then try again"
    });
    let refused = app.get("/agent-execution/t/events").await;
    assert_eq!((refused.status, refused.json()), (StatusCode::TOO_MANY_REQUESTS, detail.clone()));
    let body = json!({ "id": "waiting", "input": {} });
    let refused = app.request("POST", "/v1/agents/a/invoke", Some(body)).await;
    assert_eq!((refused.status, refused.json()), (StatusCode::TOO_MANY_REQUESTS, detail));
    assert_eq!(app.get("/v1/tasks/waiting").await.status, 404, "nothing is recorded");
    // Another organization has its own.
    let (key, _) = app.other_organization().await;
    let path = "/v1/agents/a/invoke/async";
    let body = json!({ "id": "theirs", "input": {} });
    app.request_as(&key, "POST", path, Some(body)).await.ok();
    let request = get_events(&key, "theirs").body(Body::empty()).expect("a request");
    SseClient::open(&app.router, request).await.next().await.expect("an event");
    drop(first);
    let mut connection = cluster::connect(&app.database).await;
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 29810
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    cluster::until_count(&mut connection, locks, |count| count == 1).await;
    SseClient::follow(&app, "t").await.next().await.expect("an event");
}

/// Other writes pay nothing for the watches of an organization, which locks itself as a whole
/// before it fills the server's lock table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_watches_cost_their_own_organization_only() {
    const WATCHES: usize = 600;
    let app = TestApp::start_with(patient_limits()).await;
    let (key, other) = app.other_organization().await;
    let ids: Vec<_> =
        (0..WATCHES).map(|n| TaskId::parse(format!("t{n}")).expect("an id")).collect();
    let watches = join_all(ids.iter().map(|id| app.store.watch_task(other, id))).await;
    let watches: Vec<_> = watches.into_iter().map(|watch| watch.expect("a watch")).collect();
    let mut connection = cluster::connect(&app.database).await;
    let mut count = async |what: &str| -> i64 {
        let statement = format!(
            "SELECT count(*) FROM {what} AND database = (
                SELECT oid FROM pg_database WHERE datname = current_database())"
        );
        let query = sqlx::query_scalar(sqlx::AssertSqlSafe(statement));
        query.fetch_one(&mut connection).await.expect("a count")
    };
    let locks = count("pg_locks WHERE locktype = 'advisory'").await;
    assert!(locks <= 257, "{locks} locks are held");
    assert_eq!(count("pg_locks WHERE locktype = 'advisory' AND classid = 29812").await, 1);
    let written = async || {
        let mut connection = cluster::connect(&app.database).await;
        let count = "SELECT count(*) FROM task_events";
        sqlx::query_scalar::<_, i64>(count).fetch_one(&mut connection).await.expect("a count")
    };
    for id in &ids[..100] {
        app.invoke("a", json!({ "id": id.as_str(), "input": {} })).await.ok();
    }
    assert_eq!(written().await, 0, "writes of an organization without watches");
    // The first watch has a lock of its task, the last one that of the organization.
    for n in [0, WATCHES - 1] {
        let body = json!({ "id": ids[n].as_str(), "input": {} });
        app.request_as(&key, "POST", "/v1/agents/a/invoke/async", Some(body)).await.ok();
        tokio::time::timeout(TIMEOUT, watches[n].changed()).await.expect("an announcement");
    }
    drop(watches);
    until_unwatched(&app).await;
}

/// The key of a task's lock follows from a secret of the database, so nobody else can choose an id
/// by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keys_of_locks_depend_on_a_secret() {
    let database = cluster::migrated_database().await;
    let mut connection = cluster::connect(&database).await;
    let keys = "SELECT array_agg(watch_key(watch_salt(gen), n::text))
                FROM generate_series(1, 8) AS n,
                     (SELECT '01234567-89ab-cdef-0123-456789abcdef'::uuid AS gen) AS organization";
    let mut seen = Vec::new();
    for _ in 0..2 {
        let found: Vec<i32> =
            sqlx::query_scalar(keys).fetch_one(&mut connection).await.expect("keys");
        let owners: Vec<_> = found.iter().map(|key| key >> 10).collect();
        assert!(owners.iter().all(|owner| *owner == owners[0]), "one organization: {found:?}");
        seen.push(found);
        let other = "UPDATE watch_secret SET secret = sha256(secret)";
        connection.execute(other).await.expect("another secret");
    }
    assert_ne!(seen[0], seen[1]);
}
