//! The OpenAPI document: compared with the committed one and with the public contract's own.

use serde_json::{Map, Value};

use crate::support::test_app::TestApp;

/// The contract's document of an agent's list, without its prose. Never edited.
const CONTRACT: &str = include_str!("contract/agent_tasks.openapi.json");

/// The document without its prose. The service has prose of its own, so it is not compared.
fn without_prose(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            // A property may be called `description` too; then its value is a schema.
            let is_prose = |key: &str, value: &Value| {
                ["description", "summary"].contains(&key) && value.is_string()
            };
            let kept = fields.iter().filter(|(key, value)| !is_prose(key, value));
            Value::Object(
                kept.map(|(key, value)| (key.clone(), without_prose(value))).collect::<Map<_, _>>(),
            )
        }
        Value::Array(items) => Value::Array(items.iter().map(without_prose).collect()),
        other => other.clone(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
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

/// The contract's document of the other task routes, of 2025, without its prose. Never edited.
const SIBLINGS: &str = include_str!("contract/tasks.openapi.json");

/// How this service's document differs from that one: `+` is added, `-` is missing, `~` is changed.
/// Most additions come from the contract's pages of 2026, the others from the official SDK. That
/// document has no error but 422, and no header.
const DIFFERENCES: &str = "
    + /v1/tasks get parameters from_date
    + /v1/tasks get parameters to_date
    + /v1/tasks get parameters status_in
    + /v1/tasks get responses 401
    + /v1/tasks/{task_id} get responses 200 headers
    + /v1/tasks get responses 429
    + /v1/tasks/{task_id} get responses 401
    + /v1/tasks/{task_id} get responses 429
    + /v1/tasks/{task_id} get responses 404
    + /v1/tasks/{task_id} delete responses 401
    + /v1/tasks/{task_id} delete responses 429
    + /v1/tasks/{task_id} delete responses 403
    + /v1/tasks/{task_id} delete responses 404
    + /v1/tasks/{task_id}/thread get responses 401
    + /v1/tasks/{task_id}/thread get responses 429
    + /v1/tasks/{task_id}/thread get responses 404
    + /v1/tasks/{task_id}/thread/full get responses 401
    + /v1/tasks/{task_id}/thread/full get responses 429
    + /v1/tasks/{task_id}/thread/full get responses 404
    + /v1/agents/{agent_id}/invoke post responses 400
    + /v1/agents/{agent_id}/invoke post responses 408
    + /v1/agents/{agent_id}/invoke post responses 413
    + /v1/agents/{agent_id}/invoke post responses 503
    + /v1/agents/{agent_id}/invoke post responses 401
    + /v1/agents/{agent_id}/invoke post responses 429
    + /v1/agents/{agent_id}/invoke post responses 403
    + /v1/agents/{agent_id}/invoke/async post responses 400
    + /v1/agents/{agent_id}/invoke/async post responses 408
    + /v1/agents/{agent_id}/invoke/async post responses 413
    + /v1/agents/{agent_id}/invoke/async post responses 503
    + /v1/agents/{agent_id}/invoke/async post responses 401
    + /v1/agents/{agent_id}/invoke/async post responses 429
    + /v1/agents/{agent_id}/invoke/async post responses 403
    + /v1/agents/{agent_id}/invoke/stream post responses 400
    + /v1/agents/{agent_id}/invoke/stream post responses 408
    + /v1/agents/{agent_id}/invoke/stream post responses 413
    + /v1/agents/{agent_id}/invoke/stream post responses 503
    + /v1/agents/{agent_id}/invoke/stream post responses 401
    + /v1/agents/{agent_id}/invoke/stream post responses 429
    + /v1/agents/{agent_id}/invoke/stream post responses 403
    + /v1/agents/{agent_id}/invoke post parameters version
    + /v1/agents/{agent_id}/invoke post responses 200 headers
    + /v1/agents/{agent_id}/invoke post responses 409
    + /v1/agents/{agent_id}/invoke/async post parameters version
    + /v1/agents/{agent_id}/invoke/async post responses 200 headers
    + /v1/agents/{agent_id}/invoke/async post responses 409
    + /v1/agents/{agent_id}/invoke/stream post parameters version
    + /v1/agents/{agent_id}/invoke/stream post responses 200 headers
    + /v1/agents/{agent_id}/invoke/stream post responses 409
    + /v1/agents/{agent_id}/invoke/stream post responses 200 content text/event-stream
    + AgentExecution properties instructions_override
    + AgentExecution properties test_run_node_id
    + AgentExecution properties voice_id
    + AgentExecution properties user_oidc_token
    + AgentExecution properties is_orchestration
    + AgentExecution properties return_metrics
    + AgentExecution properties deep_planning
    + AgentExecution properties execution_attempts
    + AgentExecution properties user_tokens
    + AgentExecution properties tokens
    + AgentExecution properties llm_model_provider
    + AgentExecution properties llm_model_name
    + AgentExecution properties llm_reasoning_effort
    + AgentExecution properties duration
    + AgentExecution properties used_tools
    + AgentExecution properties tool_call_limit
    + AgentExecution properties harness_cli
    + AgentExecution properties permission_mode
    + AgentExecutionInput-Output properties attachments
    + AgentExecutionInput-Output properties principal
    + AgentExecutionRequest properties instructions_override
    + AgentExecutionRequest properties test_run_node_id
    + AgentExecutionRequest properties user_oidc_token
    + AgentExecutionRequest properties user_tokens
    + AgentExecutionRequest properties return_metrics
    + AgentExecutionRequest properties llm_model_provider
    + AgentExecutionRequest properties llm_model_name
    + AgentExecutionRequest properties llm_reasoning_effort
    - HumanInTheLoop properties operation_id
    - HumanInTheLoop properties approved_by
    - HumanInTheLoop properties rejected_by
    - HumanInTheLoop properties title
    - HumanInTheLoop properties description
    - HumanInTheLoop properties content
    + HumanInTheLoop properties wait_node_id
    ~ HumanInTheLoop required
    ~ OutputFormat enum
    + User-Input properties role
    + User-Input properties is_super_admin
    + User-Input properties timezone
    + User-Output properties role
    + User-Output properties is_super_admin
    + User-Output properties timezone
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sibling_routes_differ_only_as_listed() {
    let ours = without_prose(&task_history::api::openapi_document());
    let theirs = without_prose(&serde_json::from_str(SIBLINGS).expect("JSON"));
    let mut differences = Vec::new();
    for (path, operations) in theirs["paths"].as_object().expect("paths") {
        compare(path, operations, &ours["paths"][path], &mut differences);
    }
    let schemas = &ours["components"]["schemas"];
    for (name, schema) in theirs["components"]["schemas"].as_object().expect("schemas") {
        if name != "CreatedTask" {
            compare(name, schema, &schemas[name], &mut differences);
        }
    }
    let listed: Vec<_> =
        DIFFERENCES.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let (mut found, mut expected) = (differences.clone(), listed.clone());
    found.sort();
    expected.sort_unstable();
    assert_eq!(found, expected, "{}", differences.join("\n"));

    // A created task is a task.
    let mut created = schemas["AgentExecution"].clone();
    created["title"] = "CreatedTask".into();
    assert_eq!(schemas["CreatedTask"], created);
}

/// Collects the differences of two documents. Items that have names are compared by name.
fn compare(place: &str, theirs: &Value, ours: &Value, differences: &mut Vec<String>) {
    let by_name = |value: &Value| -> Option<Map<String, Value>> {
        match value {
            Value::Object(fields) => Some(fields.clone()),
            Value::Array(items) => {
                let named = items
                    .iter()
                    .map(|item| Some((item["name"].as_str()?.to_owned(), item.clone())));
                named.collect()
            }
            _ => None,
        }
    };
    match (by_name(theirs), by_name(ours)) {
        (Some(theirs), Some(ours)) if !theirs.is_empty() || !ours.is_empty() => {
            for (name, value) in &theirs {
                match ours.get(name) {
                    Some(other) => compare(&format!("{place} {name}"), value, other, differences),
                    None => differences.push(format!("- {place} {name}")),
                }
            }
            let added = ours.keys().filter(|name| !theirs.contains_key(*name));
            differences.extend(added.map(|name| format!("+ {place} {name}")));
        }
        _ if theirs == ours => {}
        _ => differences.push(format!("~ {place}")),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
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
        "docs/openapi.json is not current: run `cargo xtask update` and commit it"
    );
    let mut ids = Vec::new();
    for operations in document["paths"].as_object().expect("paths").values() {
        for operation in operations.as_object().expect("operations").values() {
            assert!(
                operation["summary"].as_str().is_some_and(|text| !text.is_empty()),
                "{operation}"
            );
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
        assert!(document.pointer(pointer).is_some(), "{reference} does not exist");
    }
    match value {
        Value::Object(fields) => {
            fields.values().for_each(|value| check_references(value, document));
        }
        Value::Array(items) => items.iter().for_each(|value| check_references(value, document)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documentation_loads_nothing_foreign() {
    let app = TestApp::start().await;
    assert_eq!(app.get("/docs").await.headers["location"], "/docs/");
    let page = app.get("/docs/").await;
    assert_eq!(page.status, 200);
    let mut sources = Vec::new();
    for attribute in ["src=\"", "href=\""] {
        sources
            .extend(page.text.split(attribute).skip(1).filter_map(|rest| rest.split('"').next()));
    }
    assert!(sources.len() >= 3, "{}", page.text);
    for source in sources {
        assert!(!source.contains("//"), "{source} is on another host");
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
