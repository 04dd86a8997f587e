//! Lists: one page and the exact total, of one snapshot.

use std::collections::HashMap;

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::filter::push_filter;
use super::totals::CountableFilter;
use crate::domain::{
    AgentId, Cursor, OrganizationId, PageRequest, PageStart, ShortText, Status, TaskFilter, TaskId,
    TaskPage, TaskSummary, UserId,
};
use crate::store::read_budget::Reservation;
use crate::store::sql::Sql;
use crate::store::{Store, StoreError};

impl Store {
    /// One page of an organization's tasks, newest first, and how many there are on all pages. Long
    /// texts are left out, see [`TaskPage::unread`].
    pub async fn list_tasks(
        &self,
        organization: OrganizationId,
        filter: &TaskFilter,
        page: &PageRequest,
    ) -> Result<TaskPage, StoreError> {
        let rows = list_statement("", organization, filter, page)
            .fetch_all(self.pool.of(organization))
            .await?;
        // The total is on every row. An empty page has one row without a task.
        let total = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
        let mut items = Vec::with_capacity(rows.len());
        let mut unread = HashMap::new();
        for row in &rows {
            let Some(task) = read_summary(organization, row)? else { continue };
            let bytes = usize::try_from(row.try_get_unchecked::<i32, _>(13)?).unwrap_or(0);
            if bytes != text_bytes(&task) {
                unread.insert(task.id.clone(), bytes);
            }
            items.push(task);
        }
        Ok(TaskPage::new(items, total, page).with_unread(unread))
    }

    /// Reads tasks of a page that are [`TaskPage::unread`], in the given order, as they are now.
    /// Their texts have at most `bytes` bytes.
    pub async fn read_summaries(
        &self,
        organization: OrganizationId,
        ids: &[TaskId],
        bytes: usize,
    ) -> Result<SummaryStep, StoreError> {
        let reservation = self.read_budget.reserve(organization, bytes).await?;
        let rows = sqlx::query!(
            r#"
            WITH sized AS (
                SELECT task.*, wanted.place,
                       COALESCE(octet_length(task.title), 0)
                           + COALESCE(octet_length(task.result), 0) AS bytes
                FROM unnest($2::text[]) WITH ORDINALITY AS wanted (id, place)
                JOIN tasks task ON task.organization_id = $1 AND task.id = wanted.id
            ),
            bounded AS (
                SELECT sized.*, sum(bytes) OVER (ORDER BY place ROWS UNBOUNDED PRECEDING) AS upto
                FROM sized
            )
            SELECT id AS "id: TaskId", agent_id AS "agent_id: AgentId",
                   user_id AS "user_id: UserId", parent_task_id AS "parent_task_id: TaskId",
                   triggering_agent_id AS "triggering_agent_id: AgentId",
                   status AS "status: Status", internal_status AS "internal_status: ShortText",
                   source AS "source: ShortText",
                   CASE WHEN upto <= $3 THEN title END AS title,
                   CASE WHEN upto <= $3 THEN result END AS result,
                   created_at, updated_at, bytes AS "bytes!"
            FROM bounded
            ORDER BY place
            "#,
            organization as OrganizationId,
            ids as &[TaskId],
            i64::try_from(bytes).unwrap_or(i64::MAX)
        )
        .fetch_all(self.pool.of(organization))
        .await?;
        let mut step = SummaryStep { tasks: HashMap::new(), unread: HashMap::new(), reservation };
        for row in rows {
            let task = TaskSummary {
                organization_id: organization,
                id: row.id,
                agent_id: row.agent_id,
                user_id: row.user_id,
                parent_task_id: row.parent_task_id,
                triggering_agent_id: row.triggering_agent_id,
                status: row.status,
                internal_status: row.internal_status,
                source: row.source,
                title: row.title,
                result: row.result,
                created_at: row.created_at,
                updated_at: row.updated_at,
            };
            let bytes = usize::try_from(row.bytes).unwrap_or(0);
            if bytes == text_bytes(&task) {
                step.tasks.insert(task.id.clone(), task);
            } else {
                step.unread.insert(task.id, bytes);
            }
        }
        Ok(step)
    }

    /// The plan of the statement behind [`Store::list_tasks`]: `EXPLAIN (FORMAT JSON)`.
    pub async fn explain_list_tasks(
        &self,
        organization: OrganizationId,
        filter: &TaskFilter,
        page: &PageRequest,
    ) -> Result<serde_json::Value, StoreError> {
        let statement = list_statement("EXPLAIN (FORMAT JSON) ", organization, filter, page);
        Ok(statement.fetch_scalar(self.pool.of(organization)).await?)
    }
}

/// Tasks of a page that were read after it. A task that is in neither was deleted meanwhile.
#[derive(Debug)]
pub struct SummaryStep {
    /// The tasks.
    pub tasks: HashMap<TaskId, TaskSummary>,
    /// Those that have grown meanwhile and exceed the bytes, with the size of their texts.
    pub unread: HashMap<TaskId, usize>,
    /// Their memory.
    pub reservation: Reservation,
}

/// The bytes of the texts that may be long.
fn text_bytes(task: &TaskSummary) -> usize {
    task.title.as_ref().map_or(0, String::len) + task.result.as_ref().map_or(0, String::len)
}

/// Most bytes of all titles and results that are read with a page. Each has an equal share; a
/// larger one is read on its own.
const PAGE_BYTES: i64 = 4 << 20;

/// Most tasks before a page that is read from the start of the list.
const MAX_SHALLOW_OFFSET: i64 = 100;

/// The literal LIMIT in the statements below.
///
/// Statements are planned once and not for each value (`DatabaseUrl::session_options`), and the
/// planner takes a bound LIMIT for a tenth of the table. A literal LIMIT below the bound one tells
/// it the most that a page needs: the shallow offset, the largest page, and one task more.
macro_rules! planned_limit {
    () => {
        1101
    };
}
const _: () = assert!(
    planned_limit!() == MAX_SHALLOW_OFFSET + PageRequest::MAX_PER_PAGE as i64 + 1,
    "the planned limit covers the largest page"
);

/// The page and the total in one statement, so that both are of one snapshot.
///
/// The caller sorts the page: sorting twenty rows as wide as these costs PostgreSQL a sixth of the
/// whole statement.
fn list_statement(
    start: &'static str,
    organization: OrganizationId,
    filter: &TaskFilter,
    page: &PageRequest,
) -> Sql {
    let mut sql = Sql::new(start);
    let offset = page.offset();
    let is_deep = matches!(page.start(), PageStart::FromNumber) && offset > MAX_SHALLOW_OFFSET;
    if is_deep {
        push_page_start(&mut sql, organization, filter, offset);
        sql.push("SELECT (SELECT total FROM total)");
    } else {
        sql.push("SELECT ");
        push_total(&mut sql, organization, filter);
    }
    sql.push(
        " AS total, page.* FROM (SELECT) AS always LEFT JOIN (\
         SELECT task.id, task.agent_id, task.user_id, task.parent_task_id, \
         task.triggering_agent_id, task.status, task.internal_status, task.source, \
         CASE WHEN octet_length(task.title) <= ",
    );
    let share = PAGE_BYTES / page.limit() / 2;
    sql.push_bind(share);
    sql.push(" THEN task.title END, CASE WHEN octet_length(task.result) <= ").push_bind(share);
    // The lengths of long texts are known without reading them.
    sql.push(
        " THEN task.result END, task.created_at, task.updated_at, \
         COALESCE(octet_length(task.title), 0) + COALESCE(octet_length(task.result), 0) \
         FROM (SELECT * FROM tasks",
    );
    push_filter(&mut sql, organization, filter);
    // A row comparison, not its OR expansion: only this form is an index condition.
    let limit = match page.start() {
        PageStart::FromNumber if is_deep => {
            sql.push(
                " AND (created_at, id) <= \
                 ((SELECT created_at FROM page_start), (SELECT id FROM page_start)) \
                 ORDER BY created_at DESC, id DESC",
            );
            page.limit()
        }
        PageStart::FromNumber => {
            sql.push(" ORDER BY created_at DESC, id DESC");
            page.limit()
        }
        // One task more than the page holds tells whether there are more.
        PageStart::After(Cursor { created_at, id }) => {
            sql.push(" AND (created_at, id) < (").push_bind(*created_at);
            sql.push(", ").push_bind(id.clone());
            sql.push(") ORDER BY created_at DESC, id DESC");
            page.limit() + 1
        }
        PageStart::Before(Cursor { created_at, id }) => {
            sql.push(" AND (created_at, id) > (").push_bind(*created_at);
            sql.push(", ").push_bind(id.clone());
            sql.push(") ORDER BY created_at, id");
            page.limit() + 1
        }
    };
    sql.push(concat!(" LIMIT ", planned_limit!(), ") AS task LIMIT ")).push_bind(limit);
    if matches!(page.start(), PageStart::FromNumber) && !is_deep {
        sql.push(" OFFSET ").push_bind(offset);
    }
    sql.push(") AS page ON true");
    sql
}

/// Pushes how many tasks a filter selects, an expression.
fn push_total(sql: &mut Sql, organization: OrganizationId, filter: &TaskFilter) {
    if let Some(countable) = CountableFilter::for_filter(filter) {
        countable.push_total(sql, organization);
    } else {
        sql.push("(SELECT count(*) FROM tasks");
        push_filter(sql, organization, filter);
        sql.push(")");
    }
}

/// Pushes the common table expressions that find the start of a deep page.
///
/// `total.total` is the list's total. `page_start` is the sort key of the task with `offset` others
/// before it; it has no row if there is no such task. Skipped tasks are read in the index only, and
/// at most half of the bucket that the task is in: the hour that the counts lead to, or the whole
/// list if the counts cannot locate the page.
fn push_page_start(sql: &mut Sql, organization: OrganizationId, filter: &TaskFilter, offset: i64) {
    sql.push("WITH total AS MATERIALIZED (SELECT ");
    push_total(sql, organization, filter);
    sql.push(" AS total), ");
    // The counts of an hour do not know the range, so the skip within an hour must not either.
    let without_range = TaskFilter { created_from: None, created_to: None, ..filter.clone() };
    let seek = CountableFilter::for_filter(&without_range).filter(CountableFilter::supports_seek);
    let skipped = if let Some(seek) = &seek {
        seek.push_seek(sql, organization, filter.created_to, offset);
        &without_range
    } else {
        sql.push("bucket AS MATERIALIZED (SELECT total AS number, ").push_bind(offset);
        sql.push("::bigint AS skip FROM total)");
        filter
    };
    sql.push(", page_start AS MATERIALIZED ((SELECT created_at, id FROM tasks");
    push_filter(sql, organization, skipped);
    if seek.is_some() {
        sql.push(" AND created_at < (SELECT until FROM bucket)");
    }
    sql.push(
        " AND (SELECT skip < number - skip FROM bucket) \
         ORDER BY created_at DESC, id DESC LIMIT 1 OFFSET (SELECT skip FROM bucket)) \
         UNION ALL (SELECT created_at, id FROM tasks",
    );
    push_filter(sql, organization, skipped);
    if seek.is_some() {
        sql.push(" AND created_at >= (SELECT since FROM bucket)");
    }
    sql.push(
        " AND (SELECT skip < number AND skip >= number - skip FROM bucket) \
         ORDER BY created_at, id LIMIT 1 \
         OFFSET (SELECT GREATEST(number - skip - 1, 0) FROM bucket))) ",
    );
}

/// The task on a row of [`list_statement`], by position; `None` on the row of an empty page.
///
/// The statement fixes the types, so they are not checked value by value, which would cost a few
/// percent of a list.
fn read_summary(
    organization_id: OrganizationId,
    row: &PgRow,
) -> Result<Option<TaskSummary>, sqlx::Error> {
    let Some(id) = row.try_get_unchecked(1)? else { return Ok(None) };
    Ok(Some(TaskSummary {
        organization_id,
        id,
        agent_id: row.try_get_unchecked(2)?,
        user_id: row.try_get_unchecked(3)?,
        parent_task_id: row.try_get_unchecked(4)?,
        triggering_agent_id: row.try_get_unchecked(5)?,
        status: row.try_get_unchecked(6)?,
        internal_status: row.try_get_unchecked(7)?,
        source: row.try_get_unchecked(8)?,
        title: row.try_get_unchecked(9)?,
        result: row.try_get_unchecked(10)?,
        created_at: row.try_get_unchecked(11)?,
        updated_at: row.try_get_unchecked(12)?,
    }))
}
