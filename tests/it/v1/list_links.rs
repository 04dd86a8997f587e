//! The `Link` header of the task lists: cursors and page numbers.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::support::test_app::{Answer, TestApp};

/// The URL that a page's `Link` header gives for a relation.
fn link(answer: &Answer, relation: &str) -> Option<String> {
    let links = answer.headers["link"].to_str().expect("text").to_owned();
    let link = links.split(", ").find(|link| link.ends_with(&format!("; rel=\"{relation}\"")))?;
    Some(link.split_once('>').expect("a reference").0.trim_start_matches('<').to_owned())
}

/// Following `next` returns each task that existed at the start exactly once. Tasks that are
/// recorded or deleted meanwhile do not change this.
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
        // A new first task shifts all page numbers.
        app.advance(1.0);
        app.invoke("a", json!({ "id": format!("new-{pages}"), "input": {} })).await.ok();
        if pages == 3 {
            // Deletes the task that the cursor points to.
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

/// A cursor is text of the client's: whatever it says, it is a position or a validation error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_cursor_is_never_an_error_of_the_service() {
    /// The earliest time of PostgreSQL, in microseconds since 1970.
    const EARLIEST: i64 = -210_866_803_200_000_000;

    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let mut random = StdRng::seed_from_u64(7);
    let mut cursors = vec![
        (format!(">{EARLIEST} x").into_bytes(), Some(200)),
        (format!("<{EARLIEST} x").into_bytes(), Some(200)),
        (format!(">{} x", EARLIEST - 1).into_bytes(), Some(422)),
        (b">-300000000000000000 x".to_vec(), Some(422)),
        (b">0 ".to_vec(), Some(422)),
        (b">0 a\0".to_vec(), Some(422)),
        (b">0 \xff".to_vec(), Some(422)),
        (b"=0 x".to_vec(), Some(422)),
        (format!(">0 {}", "x".repeat(256)).into_bytes(), Some(422)),
    ];
    for edge in [i64::MIN, i64::MAX, 0, -62_135_596_800_000_000, 253_402_300_800_000_000] {
        for direction in ['<', '>'] {
            cursors.push((format!("{direction}{edge} t").into_bytes(), None));
        }
    }
    for _ in 0..150 {
        let direction = if random.random() { '<' } else { '>' };
        let micros = random.random::<i64>() >> random.random_range(0..64);
        let id: String = (0..random.random_range(1..5)).map(|_| random.random::<char>()).collect();
        cursors.push((format!("{direction}{micros} {id}").into_bytes(), None));
        let bytes = (0..random.random_range(0..40)).map(|_| random.random()).collect();
        cursors.push((bytes, None));
    }
    let mut positions = 0;
    for (bytes, expected) in cursors {
        let cursor = BASE64_URL_SAFE_NO_PAD.encode(&bytes);
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        for list in ["/v1/tasks?page=2", "/v1/agents/a/tasks?user_id=u"] {
            let answer = app.get(&format!("{list}&cursor={cursor}")).await;
            let status = answer.status.as_u16();
            assert!(expected.is_none_or(|expected| expected == status), "{shown:?}: {status}");
            match status {
                200 => positions += 1,
                422 => {
                    let error = &answer.json()["detail"][0];
                    assert_eq!(error["type"], "value_error", "{shown:?}");
                    assert_eq!(error["loc"], json!(["query", "cursor"]));
                    assert_eq!(error["input"], cursor);
                }
                _ => panic!("{shown:?}: {status} {}", answer.text),
            }
        }
    }
    assert!(positions > 50, "only {positions} forged cursors are positions");
}

/// The length of an answer's head on the wire, with the headers that the server adds.
fn head_bytes(answer: &Answer) -> usize {
    let added = "HTTP/1.1 200 OK\r\ndate: Mon, 23 Mar 2026 00:45:22 GMT\r\n\r\n".len();
    let headers = answer.headers.iter();
    added + headers.map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_repeat_only_what_the_route_knows() {
    let app = TestApp::start().await;
    for id in ["1", "2", "3"] {
        app.invoke("a", json!({ "id": id, "input": {} })).await.ok();
    }
    let unknown = format!("x={}", "%E8".repeat(9_000));
    let query = format!("per_page=1&{unknown}&status=failed&page=2&status=pending&{unknown}");
    let answer = app.get(&format!("/v1/agents/a/tasks?{query}")).await;
    assert_eq!(answer.ok()["items"][0]["id"], "2");
    let list = "/v1/agents/a/tasks?per_page=1&status=pending";
    assert_eq!(link(&answer, "first"), Some(format!("{list}&page=1")));
    assert_eq!(link(&answer, "last"), Some(format!("{list}&page=3")));
    assert!(link(&answer, "next").is_some_and(|next| next.starts_with(list)));
    assert!(head_bytes(&answer) < 4_096, "{} bytes", head_bytes(&answer));
    // The filters of another route are unknown here.
    let answer = app.get("/v1/agents/a/tasks?from_date=2020-01-01").await;
    assert_eq!(link(&answer, "first"), Some("/v1/agents/a/tasks?page=1".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_stays_short_whatever_the_query() {
    let app = TestApp::start().await;
    let id = "語".repeat(143);
    let encoded: String = form_urlencoded::byte_serialize(id.as_bytes()).collect();
    for n in 0..3 {
        let task = format!("{n}{}", "語".repeat(142));
        let body = json!({ "id": task, "input": { "user": { "id": id, "email": "x" } } });
        app.invoke(&encoded, body).await.ok();
    }
    let request_id = "r".repeat(128);
    let get = async |target: &str| {
        let request = axum::http::Request::get(target)
            .header("x-api-key", &app.key)
            .header("x-request-id", &request_id)
            .body(axum::body::Body::empty());
        let answer = app.send(request.expect("a request")).await;
        assert!(head_bytes(&answer) < 4_096, "{} bytes: {target}", head_bytes(&answer));
        answer
    };
    // One long text: some links. Two: only the next page. More: none.
    let one = get(&format!("/v1/tasks?user_id={encoded}&per_page=1&page=2")).await;
    assert_eq!(one.ok()["total"], 3);
    assert!(link(&one, "next").is_some() && link(&one, "last").is_none());
    let two = get(&format!("/v1/agents/{encoded}/tasks?user_id={encoded}&per_page=1")).await;
    assert_eq!(two.ok()["total"], 3);
    assert_eq!((link(&two, "first"), link(&two, "last")), (None, None));
    let next = get(&link(&two, "next").expect("a next page")).await;
    assert_eq!((&next.ok()["page"], &next.ok()["total"]), (&json!(2), &json!(3)));
    assert_eq!(next.ok()["items"].as_array().map(Vec::len), Some(1));
    let many = ["user_id", "parent_task_id", "triggering_agent_id"]
        .map(|name| format!("{name}={encoded}"));
    let many = get(&format!("/v1/agents/{encoded}/tasks?{}", many.join("&"))).await;
    many.ok();
    assert!(!many.headers.contains_key("link"));
    let long = get(&format!("/v1/tasks?agent_id={}", "x".repeat(60_000))).await;
    assert_eq!(long.ok()["total"], 0);
    assert!(!long.headers.contains_key("link"));
    get(&format!("/v1/tasks/?agent_id={}", "x".repeat(60_000))).await;
    get(&format!("/{}/", "x".repeat(60_000))).await;
}
