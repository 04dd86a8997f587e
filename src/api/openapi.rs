//! The OpenAPI document, in the dialect of the public contract.
//!
//! utoipa generates a document from the routes; this pass rewrites it as FastAPI would have written it, so that tools
//! made for the contract's own document find the same names and shapes. Where the two differ is told by
//! `tests/it/openapi.rs`, which compares with the contract's document as JSON.

use serde_json::{Map, Value, json};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::{Components, Info, License, OpenApi};
use utoipa::{PartialSchema, ToSchema};

use super::schemas;

/// The document before any route is in it.
pub(super) fn base() -> OpenApi {
    let mut info = Info::new("task-history", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "A persistent history of what AI agents did. Each invocation of an agent is recorded; invocations that carry \
         the same `id` are turns of one conversation and update one task record.\n\nEvery request but the signs of \
         life carries an API key in `x-api-key`, which says whose data it sees."
            .to_owned(),
    );
    info.license = Some(License::new("MIT OR Apache-2.0"));
    let mut components = Components::new();
    let mut key = ApiKeyValue::new("x-api-key");
    key.description = Some("API Key for authentication".to_owned());
    components.add_security_scheme("APIKeyHeader", SecurityScheme::ApiKey(ApiKey::Header(key)));
    // What only a parameter refers to is not collected from the routes.
    components.schemas.insert(schemas::StatusFilter::name().into_owned(), schemas::StatusFilter::schema());
    let mut document = OpenApi::new(info, utoipa::openapi::Paths::new());
    document.components = Some(components);
    document
}

/// Rewrites a generated document as FastAPI writes it.
pub(super) fn in_fastapi_dialect(document: &OpenApi) -> Value {
    let mut document = serde_json::to_value(document).expect("a generated document is JSON");
    rewrite_references(&mut document);
    if let Some(paths) = document.pointer_mut("/paths").and_then(Value::as_object_mut) {
        for (path, operations) in paths.iter_mut() {
            for (method, operation) in operations.as_object_mut().into_iter().flatten() {
                rewrite_operation(operation);
                // The contract's own document is kept to the letter, and it has none.
                if path != FOUNDING_PATH {
                    add_errors(path, method, operation);
                }
                // The contract documents JSON here, and sends events; so both are said.
                if path.ends_with("/invoke/stream") {
                    operation["responses"]["200"]["content"]["text/event-stream"] = json!({ "schema": {} });
                }
                if path.starts_with("/{organization_id}") {
                    name_organization(operation);
                }
            }
        }
    }
    if let Some(schemas) = document.pointer_mut("/components/schemas").and_then(Value::as_object_mut) {
        rewrite_components(schemas);
    }
    document
}

/// The route whose documentation the public contract gives in full.
const FOUNDING_PATH: &str = "/v1/agents/{agent_id}/tasks";

/// Documents the errors that every route has in common: of the key, of the body, of an unknown task.
fn add_errors(path: &str, method: &str, operation: &mut Value) {
    let takes_key = operation.get("security").is_some();
    let names_task = path.starts_with("/v1/tasks/") || (!path.starts_with("/v1/") && path.contains('{'));
    let errors = [
        ("400", operation.get("requestBody").is_some(), "The body is no JSON"),
        ("401", takes_key, "The API key is missing, or not valid"),
        ("403", takes_key && method != "get", "The API key may only read"),
        ("404", names_task, "The organisation has no such task"),
    ];
    for (status, applies, description) in errors {
        if applies {
            operation["responses"][status] = json!({
                "description": description,
                "content": {
                    "application/json": { "schema": { "$ref": "#/components/schemas/ErrorDetail" } }
                }
            });
        }
    }
}

/// `AgentExecutionStatus_Input` is `AgentExecutionStatus-Input` in the contract; a hyphen can't be said in Rust.
fn contract_name(name: &str) -> String {
    for suffix in ["Input", "Output"] {
        if let Some(start) = name.strip_suffix(suffix).and_then(|start| start.strip_suffix('_')) {
            return format!("{start}-{suffix}");
        }
    }
    name.to_owned()
}

fn rewrite_references(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get_mut("$ref")
                && let Some((path, name)) = reference.rsplit_once('/')
            {
                *reference = format!("{path}/{}", contract_name(name));
            }
            fields.values_mut().for_each(rewrite_references);
        }
        Value::Array(items) => items.iter_mut().for_each(rewrite_references),
        _ => {}
    }
}

fn rewrite_operation(operation: &mut Value) {
    let Some(operation) = operation.as_object_mut() else { return };
    let mut can_be_invalid = operation.contains_key("requestBody");
    for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
        can_be_invalid = true;
        rewrite_parameter(parameter);
    }
    if let Some(body) = operation.get_mut("requestBody").and_then(Value::as_object_mut) {
        body.insert("required".to_owned(), true.into());
    }
    if let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) {
        let untyped = responses.get_mut("200").and_then(Value::as_object_mut);
        if let Some(response) = untyped.filter(|response| !response.contains_key("content")) {
            response.insert("content".to_owned(), json!({ "application/json": { "schema": {} } }));
        }
        if can_be_invalid {
            responses.insert(
                "422".to_owned(),
                json!({
                    "description": "Validation Error",
                    "content": {
                        "application/json": { "schema": { "$ref": "#/components/schemas/HTTPValidationError" } }
                    }
                }),
            );
        }
    }
}

/// A route of the official SDK with the organisation before it: the same operation under another id.
fn name_organization(operation: &mut Value) {
    if let Some(Value::String(id)) = operation.get_mut("operationId") {
        id.push_str("_with_organization");
    }
    if let Some(Value::Array(parameters)) = operation.get_mut("parameters") {
        parameters.insert(
            0,
            json!({
                "name": "organization_id",
                "in": "path",
                "required": true,
                "description": "The caller's own organisation",
                "schema": {
                    "type": "string",
                    "title": "Organization Id",
                    "description": "The caller's own organisation"
                }
            }),
        );
    }
}

fn rewrite_parameter(parameter: &mut Value) {
    let name = parameter["name"].as_str().unwrap_or_default().to_owned();
    let description = parameter.get("description").cloned();
    let Some(parameter) = parameter.as_object_mut() else { return };
    parameter.entry("required").or_insert(false.into());
    let Some(schema) = parameter.get_mut("schema") else { return };
    // A parameter is absent or it has a value; there is no way to write null.
    let nullable =
        schema.get("oneOf").and_then(Value::as_array).and_then(|branches| branches.last().cloned());
    if let Some(value) = nullable {
        *schema = value;
    }
    if let Some(Value::Array(types)) = schema.get("type") {
        schema["type"] = types[0].clone();
    }
    rewrite_schema(schema);
    let Some(schema) = schema.as_object_mut() else { return };
    if !schema.contains_key("$ref") {
        schema.insert("title".to_owned(), title_of(&name).into());
    }
    if let Some(description) = description {
        schema.insert("description".to_owned(), description);
    }
}

fn rewrite_components(schemas: &mut Map<String, Value>) {
    let generated = std::mem::take(schemas);
    for (name, mut schema) in generated {
        rewrite_schema(&mut schema);
        schema["title"] = component_title(&name).into();
        schemas.insert(contract_name(&name), schema);
    }
    if let Some(mut created) = schemas.get("AgentExecution").cloned() {
        created["title"] = "CreatedTask".into();
        schemas.insert("CreatedTask".to_owned(), created);
    }
    schemas.insert(
        "HTTPValidationError".to_owned(),
        json!({
            "title": "HTTPValidationError",
            "type": "object",
            "properties": {
                "detail": {
                    "title": "Detail",
                    "type": "array",
                    "items": { "$ref": "#/components/schemas/ValidationError" }
                }
            }
        }),
    );
    schemas.insert(
        "ValidationError".to_owned(),
        json!({
            "title": "ValidationError",
            "type": "object",
            "required": ["loc", "msg", "type"],
            "properties": {
                "loc": {
                    "title": "Location",
                    "type": "array",
                    "items": { "anyOf": [{ "type": "string" }, { "type": "integer" }] }
                },
                "msg": { "title": "Message", "type": "string" },
                "type": { "title": "Error Type", "type": "string" }
            }
        }),
    );
}

fn rewrite_schema(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    if matches!(fields.get("format").and_then(Value::as_str), Some("int32" | "int64")) {
        fields.remove("format");
    }
    if fields.get("type") == Some(&"object".into()) && !fields.contains_key("properties") {
        fields.insert("additionalProperties".to_owned(), true.into());
    }
    if let Some(items) = fields.get_mut("items") {
        rewrite_schema(items);
    }
    // Null is one of two alternatives, and the second.
    if let Some(Value::Array(mut branches)) = fields.remove("oneOf") {
        branches.iter_mut().for_each(rewrite_schema);
        branches.sort_by_key(|branch| branch["type"] == "null");
        fields.insert("anyOf".to_owned(), branches.into());
    } else if let Some(Value::Array(types)) = fields.get("type") {
        let value_type = types[0].clone();
        let mut value = Map::new();
        for key in ["format", "items", "additionalProperties"] {
            if let Some(part) = fields.remove(key) {
                value.insert(key.to_owned(), part);
            }
        }
        fields.remove("type");
        if value_type == "object" {
            value.insert("additionalProperties".to_owned(), true.into());
        }
        value.insert("type".to_owned(), value_type);
        fields.insert("anyOf".to_owned(), json!([value, { "type": "null" }]));
    }
    let mut optional = Vec::new();
    for (name, property) in fields.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten()
    {
        rewrite_schema(property);
        if property.get("default").is_some() {
            optional.push(name.clone());
        }
        let refers = property.get("$ref").is_some() || property.pointer("/anyOf/0/$ref").is_some();
        if !refers {
            property["title"] = title_of(name).into();
        }
    }
    if let Some(Value::Array(required)) = fields.get_mut("required") {
        required.retain(|name| !optional.iter().any(|optional| name == optional));
        if required.is_empty() {
            fields.remove("required");
        }
    }
}

/// `user_id` is titled "User Id".
fn title_of(name: &str) -> String {
    let capitalised = name.split('_').map(|word| {
        let (first, rest) = word.split_at(word.len().min(1));
        first.to_uppercase() + rest
    });
    capitalised.collect::<Vec<_>>().join(" ")
}

/// The class's own name: without what FastAPI puts around it to tell namesakes apart.
fn component_title(name: &str) -> String {
    let name = name.trim_end_matches("_Input").trim_end_matches("_Output");
    let name = name.rsplit("__").next().unwrap_or(name);
    match name.strip_suffix('_').and_then(|generic| generic.split_once('_')) {
        Some((generic, of)) => format!("{generic}[{of}]"),
        None => name.to_owned(),
    }
}
