//! The document's operations, the places of their bodies, and requests made from them.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use serde_json::{Map, Value, json};
use task_history::domain::Limits;
use tower::ServiceExt;

use crate::support::test_app::{Answer, TestApp, short_limits};

/// One operation of the document.
pub struct Operation {
    pub name: String,
    pub method: String,
    pub path: String,
    pub parameters: Vec<Value>,
    pub body: Option<Value>,
    pub statuses: BTreeSet<u16>,
    pub needs_key: bool,
}

/// A place in a body: the body itself, a field, or an item of an array.
pub struct Site {
    pub loc: Vec<Value>,
    /// The schema without references and without its alternative null.
    pub schema: Value,
    pub is_nullable: bool,
    /// Whether it is required; `None` if it cannot be left out.
    pub is_required: Option<bool>,
}

/// The service and its document.
pub struct Walk {
    pub app: TestApp,
    pub document: Value,
    pub operations: Vec<Operation>,
}

impl Walk {
    pub async fn start() -> Self {
        let invoke_timeout = Duration::from_millis(1);
        let app = TestApp::start_with(Limits { invoke_timeout, ..short_limits() }).await;
        let document = app.get("/openapi.json").await.ok();
        let mut operations = Vec::new();
        for (path, methods) in document["paths"].as_object().expect("paths") {
            for (method, operation) in methods.as_object().expect("operations") {
                let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
                let content = operation.pointer("/requestBody/content/application~1json/schema");
                let statuses = operation["responses"].as_object().expect("responses").keys();
                operations.push(Operation {
                    name: format!("{method} {path}"),
                    method: method.to_uppercase(),
                    path: path.clone(),
                    parameters: parameters.into_iter().filter(|one| one["in"] == "query").collect(),
                    body: content.cloned(),
                    statuses: statuses.map(|status| status.parse().expect("a status")).collect(),
                    needs_key: operation.get("security").is_some(),
                });
            }
        }
        assert!(operations.len() >= 30, "only {} operations were found", operations.len());
        Self { app, document, operations }
    }

    /// Records the task `x` of the agent `x`, which every filter with the value `x` matches. Bodies
    /// name its turn 1. What names no turn is about a later one, and may end it.
    pub async fn record_task(&self) {
        let invocation = json!({
            "id": "x",
            "input": { "user": { "id": "x", "email": "x" } },
            "parent_execution_id": "x",
            "triggering_agent_id": "x",
        });
        self.app.invoke("x", invocation.clone()).await.ok();
        self.app.invoke("x", invocation).await.ok();
        let report = json!({ "status": "executing", "internal_status": "x" });
        self.app.report("x", report).await.ok();
    }

    /// The address of an operation, with one id for everything but the organization.
    pub fn target(&self, operation: &Operation, id: &str) -> String {
        let mut target =
            operation.path.replace("{organization_id}", &self.app.organization.to_string());
        for name in ["{agent_id}", "{task_id}", "{id}", "{user_id}"] {
            target = target.replace(name, id);
        }
        target
    }

    /// Sends a request. The body of a stream is not read: it may have no end.
    pub async fn send(
        &self,
        key: &str,
        method: &str,
        target: &str,
        body: Option<Vec<u8>>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(target).header("x-api-key", key);
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(body.map_or_else(Body::empty, Body::from)).expect("a request");
        let response = self.app.router.clone().oneshot(request).await.expect("infallible");
        let (parts, body) = response.into_parts();
        let is_stream =
            parts.headers.get("content-type").is_some_and(|kind| kind == "text/event-stream");
        let bytes = if is_stream {
            Vec::new()
        } else {
            axum::body::to_bytes(body, usize::MAX).await.expect("a body").to_vec()
        };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Answer { status: parts.status, headers: parts.headers, text }
    }

    /// Sends an operation with a query and a body, about the task `x`.
    pub async fn call(&self, operation: &Operation, query: &str, body: Option<&Value>) -> Answer {
        let target = format!("{}{query}", self.target(operation, "x"));
        let body = body.map(|body| body.to_string().into_bytes());
        self.send(&self.app.key, &operation.method, &target, body).await
    }

    /// A schema without references, and whether it allows null.
    pub fn resolve(&self, schema: &Value) -> (Value, bool) {
        if let Some(reference) = schema["$ref"].as_str() {
            let pointer = reference.strip_prefix('#').expect("a local reference");
            return self.resolve(self.document.pointer(pointer).expect(reference));
        }
        if let Some(branches) = schema["anyOf"].as_array() {
            let value = branches.iter().find(|one| one["type"] != "null").expect("a value");
            let has_null = branches.iter().any(|one| one["type"] == "null");
            let (schema, is_nullable) = self.resolve(value);
            return (schema, is_nullable || has_null);
        }
        if let Some(types) = schema["type"].as_array() {
            let mut schema = schema.clone();
            schema["type"] = types[0].clone();
            return (schema, types.contains(&json!("null")));
        }
        (schema.clone(), schema.get("type").is_none())
    }

    /// All places of a body with this schema, the body itself first.
    pub fn sites(&self, schema: &Value, loc: Vec<Value>, is_required: Option<bool>) -> Vec<Site> {
        let (schema, is_nullable) = self.resolve(schema);
        let within = |segment: Value| [loc.clone(), vec![segment]].concat();
        let mut inner = Vec::new();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let required = schema["required"].as_array();
            let is_required = required.is_some_and(|names| names.contains(&json!(name)));
            inner.extend(self.sites(property, within(json!(name)), Some(is_required)));
        }
        if schema["additionalProperties"].is_object() {
            let others = &schema["additionalProperties"];
            inner.extend(self.sites(others, within(json!("other")), Some(false)));
        }
        if schema["items"].is_object() {
            inner.extend(self.sites(&schema["items"], within(json!(0)), None));
        }
        let mut sites = vec![Site { loc, schema, is_nullable, is_required }];
        sites.extend(inner);
        sites
    }

    pub fn body_sites(&self, operation: &Operation) -> Vec<Site> {
        let schema = operation.body.as_ref();
        schema.map(|schema| self.sites(schema, vec![json!("body")], None)).unwrap_or_default()
    }

    /// A value with everything that the schema documents. Every string is `x`.
    pub fn example(&self, schema: &Value) -> Value {
        let (schema, _) = self.resolve(schema);
        if let Some(words) = schema["enum"].as_array() {
            return words[0].clone();
        }
        match schema["type"].as_str() {
            Some("integer") => json!(1),
            Some("number") => json!(1.5),
            Some("boolean") => json!(true),
            Some("array") => json!([self.example(&schema["items"])]),
            Some("object") => {
                let properties = schema["properties"].as_object().into_iter().flatten();
                let mut fields: Map<String, Value> =
                    properties.map(|(name, schema)| (name.clone(), self.example(schema))).collect();
                if schema["additionalProperties"].is_object() {
                    let other = self.example(&schema["additionalProperties"]);
                    fields.insert("other".to_owned(), other);
                }
                Value::Object(fields)
            }
            _ => json!("x"),
        }
    }
}

/// The body with another value at a place, or without what is there.
pub fn replaced(body: &Value, loc: &[Value], value: Option<Value>) -> Value {
    let Some((last, parents)) = loc[1..].split_last() else { return value.expect("a body") };
    let mut body = body.clone();
    let parent = parents.iter().fold(&mut body, |parent, segment| match segment.as_u64() {
        Some(index) => &mut parent[usize::try_from(index).expect("an index")],
        None => &mut parent[segment.as_str().expect("a name")],
    });
    match (last.as_str(), value) {
        (Some(name), Some(value)) => parent[name] = value,
        (Some(name), None) => drop(parent.as_object_mut().expect("an object").remove(name)),
        (None, value) => parent[0] = value.expect("an item"),
    }
    body
}

/// The error of a 422 about one place; its absence fails the test.
#[track_caller]
pub fn error_at(answer: &Answer, loc: &[Value], what: &str) -> Value {
    assert_eq!(answer.status, 422, "{what}: {}", answer.text);
    let detail = answer.json()["detail"].as_array().expect("errors").clone();
    let found = detail.into_iter().find(|error| error["loc"] == json!(loc));
    found.unwrap_or_else(|| panic!("{what}: no error names {loc:?} in {}", answer.text))
}

/// Checks that an error lists exactly the documented words.
#[track_caller]
pub fn check_words(error: &Value, words: &[&str], what: &str) {
    assert_eq!(error["type"], "enum", "{what}");
    let expected = error["ctx"]["expected"].as_str().expect("words").replace(" or ", ", ");
    let expected: Vec<_> = expected.split(", ").map(|word| word.trim_matches('\'')).collect();
    assert_eq!(expected, words, "{what}");
}

/// How many tasks a list answers.
#[track_caller]
pub fn count(answer: &Answer) -> usize {
    let body = answer.ok();
    let items = body.get("items").unwrap_or(&body);
    items.as_array().unwrap_or_else(|| panic!("no list: {}", answer.text)).len()
}
