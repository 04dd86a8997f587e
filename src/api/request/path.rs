//! Path parameters, typed by what they name.

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;

use crate::api::error::ApiError;
use crate::domain::TaskId;

/// The path parameter with the organization, which the official SDK may put first.
pub(crate) const ORGANIZATION_PARAM: &str = "organization_id";

/// The task in a path. A text that cannot be a task's id is answered 404: no task has it.
pub(crate) struct TaskPath(pub(crate) TaskId);

/// The agent in a path, as the client wrote it: any text but the empty one. A list of an agent that
/// cannot exist is empty; an invocation of it is invalid.
pub(crate) struct AgentPath(pub(crate) String);

/// The user in a path, as the client wrote it: any text but the empty one.
pub(crate) struct UserPath(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for TaskPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let id = param(parts, state, "task_id").await?;
        TaskId::parse(id).map(Self).map_err(|_| ApiError::TaskNotFound)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for AgentPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        param(parts, state, "agent_id").await.map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for UserPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        param(parts, state, "user_id").await.map(Self)
    }
}

/// The decoded parameter with a name, or with the name `id`, which the official SDK's document uses
/// for both tasks and agents.
async fn param<S: Send + Sync>(
    parts: &mut Parts,
    state: &S,
    name: &str,
) -> Result<String, ApiError> {
    // The extractor refuses bytes that are not UTF-8: no id has them.
    let params = RawPathParams::from_request_parts(parts, state)
        .await
        .map_err(|_| ApiError::RouteNotFound)?;
    if params.iter().any(|(name, id)| name != ORGANIZATION_PARAM && id.is_empty()) {
        return Err(ApiError::RouteNotFound);
    }
    let named = params.iter().find(|(other, _)| *other == name || *other == "id");
    named
        .map(|(_, id)| id.to_owned())
        .ok_or_else(|| ApiError::Internal(format!("the route has no path parameter {name}")))
}
