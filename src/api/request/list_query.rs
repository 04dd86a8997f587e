//! The parameters that all task lists share: the page and the filters.

use super::query_reader::{LosslessInteger, QueryReader};
use crate::api::cursor::{self, CURSOR};
use crate::api::error::ApiError;
use crate::api::error::validation::{ValidationError, ValidationErrors};
use crate::domain::{
    AgentId, OrganizationId, PageRequest, PageStart, ShortText, Status, TaskFilter, TaskId,
    TaskPage, UserId,
};
use crate::store::Store;

/// How many tasks a page may have.
pub(crate) struct PageSizes {
    /// How many it has if the request does not say.
    pub(crate) default: i64,
    /// Most that a request may ask for.
    pub(crate) max: i64,
}

/// A page as requested. Without a request, there is a validation error.
pub(crate) struct ParsedPage {
    request: Option<PageRequest>,
    number: LosslessInteger,
}

impl ParsedPage {
    /// Reads `page` and `per_page`.
    pub(crate) fn read(query: &mut QueryReader<'_>, sizes: &PageSizes) -> Self {
        let number = query.positive_integer("page", 1, None);
        let per_page = query.positive_integer("per_page", sizes.default, Some(sizes.max));
        let numbers = u64::try_from(number.value).ok().zip(u16::try_from(per_page.value).ok());
        let request = numbers.and_then(|(page, per_page)| PageRequest::new(page, per_page));
        Self { request, number }
    }

    /// Reads `cursor`, which takes the place of the page's number.
    pub(crate) fn with_cursor(self, query: &mut QueryReader<'_>) -> Self {
        let start = read_start(query);
        Self { request: self.request.map(|request| request.starting_at(start)), ..self }
    }
}

/// The start of a page: at the cursor if there is one, otherwise by the page's number.
fn read_start(query: &mut QueryReader<'_>) -> PageStart {
    let Some(text) = query.string(CURSOR) else { return PageStart::FromNumber };
    cursor::parse(&text).unwrap_or_else(|| {
        let loc = vec!["query".into(), CURSOR.into()];
        let msg = "Value error, must be taken from a Link header as it is";
        query.push_error(ValidationError::new("value_error", loc, msg, text.into()));
        PageStart::FromNumber
    })
}

/// A page that was read, with what its answer repeats of the request.
pub(crate) struct ListedPage {
    /// The page.
    pub(crate) tasks: TaskPage,
    /// The request.
    pub(crate) request: PageRequest,
    /// The page's number in all its digits.
    pub(crate) number: serde_json::Number,
}

/// Reads the filters that all lists have, in the contract's order. `None` if nothing can match
/// them, because a text in them cannot be stored.
pub(crate) fn read_filter(
    query: &mut QueryReader<'_>,
    agent: Option<String>,
) -> Option<TaskFilter> {
    // Every parameter is read before the first `?`, so that every error is found.
    let agent_id = agent.map(AgentId::parse);
    let user_id = query.string("user_id").map(UserId::parse);
    let parent_task_id = query.string("parent_task_id").map(TaskId::parse);
    let triggering_agent_id = query.string("triggering_agent_id").map(AgentId::parse);
    let status: Option<Status> = query.one_of("status");
    let internal_status = query.string("internal_status").map(ShortText::parse);
    Some(TaskFilter {
        agent_id: agent_id.transpose().ok()?,
        user_id: user_id.transpose().ok()?,
        parent_task_id: parent_task_id.transpose().ok()?,
        triggering_agent_id: triggering_agent_id.transpose().ok()?,
        statuses: status.into_iter().collect(),
        internal_status: internal_status.transpose().ok()?,
        created_from: None,
        created_to: None,
    })
}

/// The requested page of the tasks that match the filter; empty without a filter.
pub(crate) async fn fetch_page(
    store: &Store,
    organization: OrganizationId,
    filter: Option<TaskFilter>,
    page: ParsedPage,
    errors: ValidationErrors,
) -> Result<ListedPage, ApiError> {
    let ParsedPage { request, number } = page;
    let Some(request) = request.filter(|_| errors.is_empty()) else { return Err(errors.into()) };
    let tasks = match filter {
        Some(filter) => store.list_tasks(organization, &filter, &request).await?,
        None => TaskPage::empty(),
    };
    Ok(ListedPage { tasks, request, number: number.exact })
}
