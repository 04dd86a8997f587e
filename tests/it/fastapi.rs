//! The answers of FastAPI to hundreds of valid and invalid requests, compared with those of this
//! service.
//!
//! FastAPI wrote `contract/fastapi_answers.json`: see `tests/contract/fastapi_answers.py`.

use axum::body::Body;
use axum::http::Request;
use base64::Engine;
use serde_json::Value;

use crate::support::test_app::TestApp;

/// Where this service answers differently on purpose, and why.
const DIFFERENT: &[(&str, &str)] = &[
    (
        "agent_id_invalid_utf-8",
        "such bytes are no id; FastAPI replaces them with U+FFFD, which gives another id",
    ),
    ("post_agent_id_invalid_utf-8", "the same, and it would record the task under that other id"),
    ("post_agent_id_nul_byte", "a NUL cannot be stored, so it is refused"),
    ("post_agent_id_300_characters", "ids have at most 255 characters"),
    ("object_user_tokens", "secrets are not sent back"),
    ("all_fields_wrong", "the same: one of them is a text for `user_tokens`"),
    ("text_escapes", "the text has a NUL, which cannot be stored"),
    ("object_of_everything", "a key is a NUL, which cannot be stored"),
    ("lenient_NaN", "JSON has no NaN: it cannot be sent back"),
    ("lenient_Infinity", "JSON has no Infinity"),
    ("lenient_minus_Infinity", "JSON has no Infinity"),
    ("lenient_number_of_4301_digits", "numbers of any length are stored unchanged"),
    ("lenient_number_of_minus_4301_digits", "numbers of any length are stored unchanged"),
    ("bytes_utf-16", "JSON is UTF-8 (RFC 8259, 8.1)"),
    ("bytes_utf-32", "JSON is UTF-8 (RFC 8259, 8.1)"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn same_status_and_same_detail() {
    let app = TestApp::start().await;
    let table = include_str!("contract/fastapi_answers.json");
    let cases: Vec<Value> = serde_json::from_str(table).expect("a table");
    assert!(cases.len() > 800, "the table has {} cases", cases.len());
    let mut failures = Vec::new();
    let mut excused = Vec::new();
    for case in &cases {
        let name = case["name"].as_str().expect("a name");
        let difference = compare(&app, case).await;
        let reason = DIFFERENT.iter().find(|(prefix, _)| name.starts_with(prefix));
        match (difference, reason) {
            (None, _) => {}
            (Some(_), Some((prefix, _))) => excused.push(*prefix),
            (Some(difference), None) => failures.push(format!("{name}: {difference}")),
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {} differ\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
    for (prefix, reason) in DIFFERENT {
        assert!(excused.contains(prefix), "no case called {prefix}… differs, although {reason}");
    }
}

/// The difference, if there is one.
async fn compare(app: &TestApp, case: &Value) -> Option<String> {
    let text = |key: &str| case.get(key).and_then(Value::as_str);
    let mut request = Request::builder()
        .method(text("method")?)
        .uri(text("target")?)
        .header("x-api-key", &app.key);
    if let Some(content_type) = text("content_type") {
        request = request.header("content-type", content_type);
    }
    let body = match (text("body"), text("body_base64")) {
        (Some(body), _) => body.as_bytes().to_vec(),
        (None, Some(encoded)) => base64::prelude::BASE64_STANDARD.decode(encoded).expect("base64"),
        (None, None) => Vec::new(),
    };
    let request = match request.body(Body::from(body)) {
        Ok(request) => request,
        Err(error) => return Some(format!("it cannot be sent: {error}")),
    };
    let answer = app.send(request).await;
    assert!(!answer.status.is_server_error(), "{case}: {}", answer.text);
    let expected = &case["answer"];
    let shown = |text: String| text.chars().take(400).collect::<String>();
    if u64::from(answer.status.as_u16()) != case["status"].as_u64().expect("a status") {
        return Some(format!(
            "{} instead of {}: {}",
            answer.status,
            case["status"],
            shown(answer.text)
        ));
    }
    let actual = answer.json();
    let same = if answer.status.is_success() {
        expected.is_null()
            || ["page", "per_page"].iter().all(|key| same(&actual[key], &expected[key]))
    } else {
        same(&actual, expected)
    };
    (!same).then(|| {
        format!(
            "\n  FastAPI  {}\n  here     {}",
            shown(expected.to_string()),
            shown(actual.to_string())
        )
    })
}

/// Whether two values are equal as JSON. The order of keys and the notation of numbers do not
/// matter.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.to_string(), b.to_string());
            // Long integers are compared digit by digit.
            let as_floats =
                a.contains(['.', 'e', 'E']) || b.contains(['.', 'e', 'E']) || a.len() < 16;
            a == b || (as_floats && a.parse::<f64>().ok() == b.parse().ok())
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}
