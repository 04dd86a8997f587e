//! The OpenAPI document, in the dialect of the public contract.
//!
//! utoipa generates a document from the routes. This pass rewrites it as FastAPI would write it, so
//! that tools made for the contract's own document find the same names and shapes. Tests compare
//! both documents as JSON and list the differences.

pub(crate) mod errors;
pub(crate) mod schemas;

use serde_json::{Map, Value, json};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::{Components, Info, License, OpenApi};
use utoipa::{PartialSchema, ToSchema};

use crate::api::response::TASK_TURN;

/// The document before any route is in it.
pub(super) fn base() -> OpenApi {
    let mut info = Info::new("task-history", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "A persistent history of what AI agents did. Each invocation of an agent is recorded; \
         invocations that carry the same `id` are turns of one conversation and update one task \
         record.\n\nEvery request but the probes carries an API key in `x-api-key`, which \
         determines the organization."
            .to_owned(),
    );
    info.license = Some(License::new("MIT OR Apache-2.0"));
    let mut components = Components::new();
    let mut key = ApiKeyValue::new("x-api-key");
    key.description = Some("API Key for authentication".to_owned());
    components.add_security_scheme("APIKeyHeader", SecurityScheme::ApiKey(ApiKey::Header(key)));
    // utoipa does not collect schemas that only parameters or declared errors refer to.
    for (name, schema) in [
        (schemas::StatusFilter::name(), schemas::StatusFilter::schema()),
        (schemas::ErrorDetail::name(), schemas::ErrorDetail::schema()),
    ] {
        components.schemas.insert(name.into_owned(), schema);
    }
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
            for operation in operations.as_object_mut().into_iter().flat_map(Map::values_mut) {
                rewrite_operation(operation);
                add_security(operation);
                // The contract documents JSON here but sends events, so both are documented.
                if path.ends_with("/invoke/stream") {
                    operation["responses"]["200"]["content"]["text/event-stream"] =
                        json!({ "schema": {} });
                    operation["responses"]["200"]["headers"] = turn_header();
                }
                if path.starts_with("/{organization_id}") {
                    name_organization(operation);
                }
            }
        }
    }
    if let Some(schemas) =
        document.pointer_mut("/components/schemas").and_then(Value::as_object_mut)
    {
        rewrite_components(schemas);
    }
    document
}

/// Every operation takes an API key, unless it declares `security(())`.
fn add_security(operation: &mut Value) {
    let Some(operation) = operation.as_object_mut() else { return };
    match operation.get("security") {
        None => {
            operation.insert("security".to_owned(), json!([{ "APIKeyHeader": [] }]));
        }
        Some(_) => {
            operation.remove("security");
        }
    }
}

/// `AgentExecutionStatus_Input` is `AgentExecutionStatus-Input` in the contract. A Rust name has no
/// hyphen.
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
    for parameter in
        operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten()
    {
        can_be_invalid = true;
        rewrite_parameter(parameter);
    }
    if let Some(body) = operation.get_mut("requestBody").and_then(Value::as_object_mut) {
        body.insert("required".to_owned(), true.into());
    }
    if let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) {
        document_turn(responses);
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
                        "application/json": {
                            "schema": { "$ref": "#/components/schemas/HTTPValidationError" }
                        }
                    }
                }),
            );
        }
    }
}

/// An answer that is a task tells the number of its turn.
fn document_turn(responses: &mut Map<String, Value>) {
    const SCHEMA: &str = "/content/application~1json/schema/$ref";
    let Some(response) = responses.get_mut("200") else { return };
    let Some(Value::String(schema)) = response.pointer(SCHEMA) else { return };
    if schema.ends_with("/AgentExecution") || schema.ends_with("/CreatedTask") {
        response["headers"] = turn_header();
    }
}

fn turn_header() -> Value {
    json!({
        TASK_TURN: {
            "description": "The number of the turn that the answer is about",
            "schema": { "type": "integer", "minimum": 1 }
        }
    })
}

/// A route of the official SDK with the organization before it: the same operation with another id.
fn name_organization(operation: &mut Value) {
    if let Some(Value::String(id)) = operation.get_mut("operationId") {
        id.push_str("_with_organization");
    }
    // Another organization than the caller's own does not exist for it.
    operation["responses"]["404"] = json!({
        "description": "The organization has no such task, or is not the caller's own",
        "content": {
            "application/json": { "schema": { "$ref": "#/components/schemas/ErrorDetail" } }
        }
    });
    if let Some(Value::Array(parameters)) = operation.get_mut("parameters") {
        parameters.insert(
            0,
            json!({
                "name": "organization_id",
                "in": "path",
                "required": true,
                "description": "The caller's own organization",
                "schema": {
                    "type": "string",
                    "title": "Organization Id",
                    "description": "The caller's own organization"
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
    // A parameter is absent or has a value: a query string cannot express null.
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
    // Null is the second of two alternatives.
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
    for (name, property) in
        fields.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten()
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
    let capitalized = name.split('_').map(|word| {
        let (first, rest) = word.split_at(word.len().min(1));
        first.to_uppercase() + rest
    });
    capitalized.collect::<Vec<_>>().join(" ")
}

/// The class's own name, without what FastAPI adds to distinguish classes of one name.
fn component_title(name: &str) -> String {
    let name = name.trim_end_matches("_Input").trim_end_matches("_Output");
    let name = name.rsplit("__").next().unwrap_or(name);
    match name.strip_suffix('_').and_then(|generic| generic.split_once('_')) {
        Some((generic, of)) => format!("{generic}[{of}]"),
        None => name.to_owned(),
    }
}
