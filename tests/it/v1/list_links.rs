//! The `Link` header of the task lists: cursors and page numbers.

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
