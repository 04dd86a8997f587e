//! The structs that are stored as JSON, as checks: they keep no values, and they refuse names that
//! would be lost.

use serde::Deserialize;

use super::json::{Object, Text};
use crate::domain::{OutputFormat, ReasoningEffort, ThinkMode};

/// Mirrors `Input`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InputCheck {
    #[serde(rename = "text")]
    _text: Option<Text>,
    #[serde(rename = "files")]
    _files: Option<Vec<Text>>,
    #[serde(rename = "user")]
    _user: Option<UserCheck>,
    #[serde(rename = "attachments", default)]
    _attachments: Vec<Object>,
    #[serde(rename = "principal")]
    _principal: Option<Object>,
}

/// Mirrors `User`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UserCheck {
    #[serde(rename = "id")]
    _id: Option<Text>,
    #[serde(rename = "first_name")]
    _first_name: Option<Text>,
    #[serde(rename = "last_name")]
    _last_name: Option<Text>,
    #[serde(rename = "email")]
    _email: Text,
    #[serde(rename = "additional_attributes")]
    _additional_attributes: Option<Object>,
    #[serde(rename = "role")]
    _role: Option<Text>,
    #[serde(rename = "is_super_admin")]
    _is_super_admin: Option<bool>,
    #[serde(rename = "timezone")]
    _timezone: Option<Text>,
}

/// Mirrors `InvocationOptions`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OptionsCheck {
    #[serde(rename = "title")]
    _title: Option<Text>,
    #[serde(rename = "payload_extension")]
    _payload_extension: Option<Object>,
    #[serde(rename = "agent_version")]
    _agent_version: Option<Text>,
    #[serde(rename = "worker_id")]
    _worker_id: Option<Text>,
    #[serde(rename = "additional_context")]
    _additional_context: Option<Text>,
    #[serde(rename = "expected_output")]
    _expected_output: Option<Text>,
    #[serde(rename = "output_format")]
    _output_format: Option<OutputFormat>,
    #[serde(rename = "output_schema")]
    _output_schema: Option<Object>,
    #[serde(rename = "events_streaming")]
    _events_streaming: Option<bool>,
    #[serde(rename = "mcp_servers")]
    _mcp_servers: Option<Vec<Object>>,
    #[serde(rename = "think_mode")]
    _think_mode: Option<ThinkMode>,
    #[serde(rename = "disable_attachment_injection")]
    _disable_attachment_injection: Option<bool>,
    #[serde(rename = "instructions_override")]
    _instructions_override: Option<Text>,
    #[serde(rename = "test_run_node_id")]
    _test_run_node_id: Option<Text>,
    #[serde(rename = "return_metrics", default)]
    _return_metrics: bool,
    #[serde(rename = "llm_model_provider")]
    _llm_model_provider: Option<Text>,
    #[serde(rename = "llm_model_name")]
    _llm_model_name: Option<Text>,
    #[serde(rename = "llm_reasoning_effort")]
    _llm_reasoning_effort: Option<ReasoningEffort>,
    #[serde(rename = "voice_id")]
    _voice_id: Option<Text>,
    #[serde(rename = "tool_call_limit")]
    _tool_call_limit: Option<i64>,
    #[serde(rename = "harness_cli")]
    _harness_cli: Option<Text>,
    #[serde(rename = "permission_mode")]
    _permission_mode: Option<Text>,
}

/// Mirrors `TurnDetails`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DetailsCheck {
    #[serde(rename = "tokens")]
    _tokens: Option<Object>,
    #[serde(rename = "duration")]
    _duration: Option<f64>,
    #[serde(rename = "used_tools")]
    _used_tools: Option<Vec<Text>>,
    #[serde(rename = "hitl_request")]
    _hitl_request: Option<Object>,
    #[serde(rename = "pending_eca_request")]
    _pending_eca_request: Option<Object>,
    #[serde(rename = "deep_planning")]
    _deep_planning: Option<Object>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::domain::{Input, InvocationOptions, TurnDetails, User};

    #[expect(clippy::unnecessary_wraps, reason = "the fields are options")]
    fn object() -> Option<Map<String, Value>> {
        Some(Map::from_iter([("any".to_owned(), json!([1, 1.5, 1e30, -2, null, { "a": true }]))]))
    }

    #[expect(clippy::unnecessary_wraps, reason = "the fields are options")]
    fn text() -> Option<String> {
        Some("text".to_owned())
    }

    /// Whether the check accepts a value with all its fields, and with none that it does not know.
    fn mirrors<T: for<'de> Deserialize<'de>>(full: &impl serde::Serialize, fields: usize) {
        let mut json = serde_json::to_value(full).expect("JSON");
        assert_eq!(json.as_object().map(Map::len), Some(fields), "all fields are set: {json}");
        serde_json::from_str::<T>(&json.to_string()).map(|_| ()).expect("all fields are known");
        json["color"] = json!("red");
        let unknown = serde_json::from_str::<T>(&json.to_string()).map(|_| ());
        assert!(unknown.expect_err("a check").to_string().contains("unknown field `color`"));
    }

    /// What the service stores is accepted. A new field must be added to the checks too.
    #[test]
    fn the_checks_mirror_what_is_stored() {
        let user = User {
            id: text(),
            first_name: text(),
            last_name: text(),
            email: "email".to_owned(),
            additional_attributes: object(),
            role: text(),
            is_super_admin: Some(true),
            timezone: text(),
        };
        mirrors::<UserCheck>(&user, 8);
        let input = Input {
            text: text(),
            files: Some(vec!["file".to_owned()]),
            user: Some(user),
            attachments: object().into_iter().collect(),
            principal: object(),
        };
        mirrors::<InputCheck>(&input, 5);
        let options = InvocationOptions {
            title: text(),
            payload_extension: object(),
            agent_version: text(),
            worker_id: text(),
            additional_context: text(),
            expected_output: text(),
            output_format: Some(OutputFormat::Voice),
            output_schema: object(),
            events_streaming: Some(true),
            mcp_servers: object().map(|server| vec![server]),
            think_mode: Some(ThinkMode::Harder),
            disable_attachment_injection: Some(true),
            instructions_override: text(),
            test_run_node_id: text(),
            return_metrics: true,
            llm_model_provider: text(),
            llm_model_name: text(),
            llm_reasoning_effort: Some(ReasoningEffort::Xhigh),
            voice_id: text(),
            tool_call_limit: Some(7),
            harness_cli: text(),
            permission_mode: text(),
        };
        mirrors::<OptionsCheck>(&options, 22);
        let details = TurnDetails {
            tokens: object(),
            duration: Some(1.5),
            used_tools: Some(vec!["tool".to_owned()]),
            hitl_request: object(),
            pending_eca_request: object(),
            deep_planning: object(),
        };
        mirrors::<DetailsCheck>(&details, 6);
    }
}
