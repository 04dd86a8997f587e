//! The OpenAPI document: pinned, and compared with the public contract's own.

use serde_json::{Map, Value};

use crate::harness::{TestApp, tests};

tests![
    the_contract_holds_to_the_letter,
    the_committed_document_is_current,
    the_documentation_loads_nothing_foreign
];

/// The contract's document of an agent's list, with its prose left out. Never edited.
const CONTRACT: &str = include_str!("contract/agent_tasks.openapi.json");

/// Prose is ours to write, so it is not compared.
fn without_prose(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            // A property may be called `description` too; then its value is a schema.
            let is_prose =
                |key: &str, value: &Value| ["description", "summary"].contains(&key) && value.is_string();
            let kept = fields.iter().filter(|(key, value)| !is_prose(key, value));
            Value::Object(kept.map(|(key, value)| (key.clone(), without_prose(value))).collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_prose).collect()),
        other => other.clone(),
    }
}

async fn the_contract_holds_to_the_letter() {
    let app = TestApp::start().await;
    let ours = without_prose(&app.get("/openapi.json").await.ok());
    let contract = without_prose(&serde_json::from_str(CONTRACT).expect("JSON"));
    assert_eq!(ours["openapi"], contract["openapi"]);
    assert_eq!(
        ours["components"]["securitySchemes"], contract["components"]["securitySchemes"],
        "security schemes"
    );
    for (path, operations) in contract["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            assert_eq!(&ours["paths"][path][method], operation, "{method} {path}");
        }
    }
    for (name, schema) in contract["components"]["schemas"].as_object().expect("schemas") {
        assert_eq!(&ours["components"]["schemas"][name], schema, "{name}");
    }
}

async fn the_committed_document_is_current() {
    let document = task_history::api::openapi_document();
    let text = serde_json::to_string_pretty(&document).expect("JSON") + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &text).expect("written");
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == text,
        "docs/openapi.json is not current: run `UPDATE=1 cargo test openapi` and commit it"
    );
    let mut ids = Vec::new();
    for operations in document["paths"].as_object().expect("paths").values() {
        for operation in operations.as_object().expect("operations").values() {
            assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{operation}");
            ids.push(operation["operationId"].as_str().expect("an id").to_owned());
        }
    }
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "operation ids are unique");
    check_references(&document, &document);
}

fn check_references(value: &Value, document: &Value) {
    if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
        let pointer = reference.strip_prefix('#').expect("a local reference");
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    match value {
        Value::Object(fields) => fields.values().for_each(|value| check_references(value, document)),
        Value::Array(items) => items.iter().for_each(|value| check_references(value, document)),
        _ => {}
    }
}

async fn the_documentation_loads_nothing_foreign() {
    let app = TestApp::start().await;
    assert_eq!(app.get("/docs").await.headers["location"], "/docs/");
    let page = app.get("/docs/").await;
    assert_eq!(page.status, 200);
    let mut sources = Vec::new();
    for attribute in ["src=\"", "href=\""] {
        sources.extend(page.text.split(attribute).skip(1).filter_map(|rest| rest.split('"').next()));
    }
    assert!(sources.len() >= 3, "{}", page.text);
    for source in sources {
        assert!(!source.contains("//"), "{source} is somewhere else");
        let answer = app.get(&format!("/docs/{}", source.trim_start_matches("./"))).await;
        assert_eq!(answer.status, 200, "{source}");
    }
    let start = app.get("/docs/swagger-initializer.js").await;
    assert!(
        start.text.contains("/openapi.json") && start.text.contains("\"validatorUrl\": \"none\""),
        "{}",
        start.text
    );
}
