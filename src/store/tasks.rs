//! Reading: lists with their totals, and single tasks.

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Postgres, QueryBuilder, Row};

use super::counts::Counted;
use super::{Store, StoreError};
use crate::domain::{
    AgentId, Cursor, Label, OrganizationId, PageRequest, Position, Progress, Status, Task, TaskFilter,
    TaskId, TaskPage, TaskSummary, Turn, UserId,
};

pub(super) type Sql = QueryBuilder<Postgres>;

/// Selects whole tasks into [`TaskRow`]s. `t` is the row of `tasks` and `l` that of its latest turn, however the
/// two clauses that are given (what comes before SELECT, and FROM to the end) find or make them.
macro_rules! select_task {
    ($before:literal, $from:literal, $($bind:expr),+ $(,)?) => {
        sqlx::query_as!(
            TaskRow,
            $before
                + r#"
                SELECT t.organization_id AS "organization_id: OrganizationId",
                       t.id AS "id: TaskId",
                       t.agent_id AS "agent_id: AgentId",
                       t.user_id AS "user_id: UserId",
                       t.parent_task_id AS "parent_task_id: TaskId",
                       t.triggering_agent_id AS "triggering_agent_id: AgentId",
                       t.status AS "status: Status",
                       t.internal_status AS "internal_status: Label",
                       t.source AS "source: Label",
                       t.title, t.result, t.created_at, t.updated_at,
                       l.input::text AS "input!",
                       l.request::text AS "request!",
                       l.reported::text AS "reported!",
                       t.events, l.turn,
                       l.last_executed_node_id, l.is_manually_stopped, l.created_at AS turn_created_at,
                       l.started_at, l.paused_at, l.finished_at,
                       ARRAY(
                           SELECT c.id FROM tasks c
                           WHERE c.organization_id = t.organization_id AND c.parent_task_id = t.id
                           ORDER BY c.created_at, c.id
                       ) AS "sub_executions!: Vec<TaskId>",
                       ARRAY(
                           SELECT c.id FROM tasks c
                           WHERE c.organization_id = t.organization_id AND c.parent_task_id = t.id
                             AND c.status IN ('error', 'failed', 'completed', 'stopped')
                           ORDER BY c.created_at, c.id
                       ) AS "finished_sub_executions!: Vec<TaskId>"
                "#
                + $from,
            $($bind),+
        )
    };
}
pub(super) use select_task;

/// A whole task as selected.
pub(super) struct TaskRow {
    pub(super) organization_id: OrganizationId,
    pub(super) id: TaskId,
    pub(super) agent_id: AgentId,
    pub(super) user_id: Option<UserId>,
    pub(super) parent_task_id: Option<TaskId>,
    pub(super) triggering_agent_id: Option<AgentId>,
    pub(super) status: Status,
    pub(super) internal_status: Option<Label>,
    pub(super) source: Label,
    pub(super) title: Option<String>,
    pub(super) result: Option<String>,
    pub(super) created_at: DateTime<Utc>,
    pub(super) updated_at: DateTime<Utc>,
    pub(super) input: String,
    pub(super) request: String,
    pub(super) reported: String,
    pub(super) events: i64,
    pub(super) turn: i32,
    pub(super) last_executed_node_id: Option<String>,
    pub(super) is_manually_stopped: bool,
    pub(super) turn_created_at: DateTime<Utc>,
    pub(super) started_at: Option<DateTime<Utc>>,
    pub(super) paused_at: Option<DateTime<Utc>>,
    pub(super) finished_at: Option<DateTime<Utc>>,
    pub(super) sub_executions: Vec<TaskId>,
    pub(super) finished_sub_executions: Vec<TaskId>,
}

impl TaskRow {
    pub(super) fn into_task(self) -> Result<Task, StoreError> {
        let row = || format!("{}, {}, turn {}", self.organization_id, self.id, self.turn);
        let turn = Turn {
            number: self.turn,
            input: parse_json("task_turns", &self.input, row)?,
            request: parse_json("task_turns", &self.request, row)?,
            reported: parse_json("task_turns", &self.reported, row)?,
            progress: Progress {
                status: self.status,
                internal_status: self.internal_status.clone(),
                result: self.result.clone(),
                last_executed_node_id: self.last_executed_node_id,
                is_manually_stopped: self.is_manually_stopped,
                started_at: self.started_at,
                paused_at: self.paused_at,
                finished_at: self.finished_at,
            },
            created_at: self.turn_created_at,
        };
        let summary = TaskSummary {
            organization_id: self.organization_id,
            id: self.id,
            agent_id: self.agent_id,
            user_id: self.user_id,
            parent_task_id: self.parent_task_id,
            triggering_agent_id: self.triggering_agent_id,
            status: self.status,
            internal_status: self.internal_status,
            source: self.source,
            title: self.title,
            result: self.result,
            created_at: self.created_at,
            updated_at: self.updated_at,
        };
        Ok(Task {
            summary,
            turn,
            sub_executions: self.sub_executions,
            finished_sub_executions: self.finished_sub_executions,
            events: self.events,
        })
    }
}

pub(super) fn parse_json<T: DeserializeOwned>(
    table: &'static str,
    text: &str,
    row: impl Fn() -> String,
) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|source| StoreError::Corrupt { table, row: row(), source })
}

impl Store {
    /// A task with its latest turn, or `None` where the organisation has no such task.
    pub async fn get_task(
        &self,
        organization: OrganizationId,
        id: &TaskId,
    ) -> Result<Option<Task>, StoreError> {
        let mut connection = self.pool.get().await?;
        let task = fetch_task(&mut connection, organization, id).await?;
        connection.done();
        Ok(task)
    }

    /// One page of an organisation's tasks, newest first, and how many there are on all pages.
    pub async fn list_tasks(
        &self,
        organization: OrganizationId,
        filter: &TaskFilter,
        page: &PageRequest,
    ) -> Result<TaskPage, StoreError> {
        let mut connection = self.pool.get().await?;
        let rows = list_statement("", organization, filter, page).build().fetch_all(&mut *connection).await?;
        connection.done();
        // The total comes on every row, and on one row without a task where the page is empty.
        let total = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
        let items = rows
            .iter()
            .filter_map(|row| read_summary(organization, row).transpose())
            .collect::<Result<_, sqlx::Error>>()?;
        Ok(TaskPage::new(items, total, page))
    }

    /// How the server would run the statement behind [`Store::list_tasks`]: `EXPLAIN (FORMAT JSON)`.
    pub async fn explain_list_tasks(
        &self,
        organization: OrganizationId,
        filter: &TaskFilter,
        page: &PageRequest,
    ) -> Result<serde_json::Value, StoreError> {
        let mut connection = self.pool.get().await?;
        let mut statement = list_statement("EXPLAIN (FORMAT JSON) ", organization, filter, page);
        let plan = statement.build_query_scalar().fetch_one(&mut *connection).await?;
        connection.done();
        Ok(plan)
    }
}

pub(super) async fn fetch_task(
    connection: &mut PgConnection,
    organization: OrganizationId,
    id: &TaskId,
) -> Result<Option<Task>, StoreError> {
    select_task!(
        "",
        r#"
        FROM tasks t
        JOIN task_turns l ON l.organization_id = t.organization_id AND l.task_id = t.id AND l.turn = t.turns
        WHERE t.organization_id = $1 AND t.id = $2
        "#,
        organization as OrganizationId,
        id as &TaskId
    )
    .fetch_optional(connection)
    .await?
    .map(TaskRow::into_task)
    .transpose()
}

/// How many tasks may come before a page that is read from the list's first task on.
const SHALLOW: i64 = 100;

// Statements are planned once and not for each value (`Store::new`), and then the planner takes a LIMIT that is bound for a
// tenth of the table. A literal one below it says what it can be at most: SHALLOW and a page of 1,000, and one more.
//
// The statement leaves the order of a page to whoever reads it: sorting twenty rows as wide as these is a sixth of what
// PostgreSQL does for them.

/// Page and total in one statement, so that both are of one snapshot.
fn list_statement(
    start: &'static str,
    organization: OrganizationId,
    filter: &TaskFilter,
    page: &PageRequest,
) -> Sql {
    let mut sql = Sql::new(start);
    let offset = page.offset();
    let is_deep = matches!(page.position(), Position::Number) && offset > SHALLOW;
    if is_deep {
        push_edge(&mut sql, organization, filter, offset);
        sql.push("SELECT (SELECT total FROM counted)");
    } else {
        sql.push("SELECT ");
        push_total(&mut sql, organization, filter);
    }
    sql.push(
        " AS total, page.* FROM (SELECT) AS always LEFT JOIN (\
         SELECT t.id, t.agent_id, t.user_id, t.parent_task_id, t.triggering_agent_id, t.status, t.internal_status, \
         t.source, t.title, t.result, t.created_at, t.updated_at FROM (SELECT * FROM tasks",
    );
    push_filter(&mut sql, organization, filter);
    match page.position() {
        // A row comparison, not its OR expansion: only this form is an index condition.
        Position::Number if is_deep => {
            sql.push(
                " AND (created_at, id) <= ((SELECT created_at FROM edge), (SELECT id FROM edge)) \
                 ORDER BY created_at DESC, id DESC LIMIT 1101) AS t LIMIT ",
            );
            sql.push_bind(page.limit());
        }
        Position::Number => {
            sql.push(" ORDER BY created_at DESC, id DESC LIMIT 1101) AS t LIMIT ").push_bind(page.limit());
            sql.push(" OFFSET ").push_bind(offset);
        }
        // One task more than asked for tells whether there are more.
        Position::After(Cursor { created_at, id }) => {
            sql.push(" AND (created_at, id) < (").push_bind(*created_at);
            sql.push(", ").push_bind(id.clone());
            sql.push(") ORDER BY created_at DESC, id DESC LIMIT 1101) AS t LIMIT ")
                .push_bind(page.limit() + 1);
        }
        Position::Before(Cursor { created_at, id }) => {
            sql.push(" AND (created_at, id) > (").push_bind(*created_at);
            sql.push(", ").push_bind(id.clone());
            sql.push(") ORDER BY created_at, id LIMIT 1101) AS t LIMIT ").push_bind(page.limit() + 1);
        }
    }
    sql.push(") AS page ON true");
    sql
}

/// How many tasks a filter shows, an expression.
fn push_total(sql: &mut Sql, organization: OrganizationId, filter: &TaskFilter) {
    if let Some(counted) = Counted::by(filter) {
        counted.push_total(sql, organization);
    } else {
        sql.push("(SELECT count(*) FROM tasks");
        push_filter(sql, organization, filter);
        sql.push(")");
    }
}

/// Pushes the common table expressions that find where a deep page begins: `counted.total` is the list's total, and `edge`
/// the sort key of the task with `offset` others before it; no row where there is none. What is skipped is not fetched from
/// the table, and is no more than half of the span that the task lies in: the hour that the counts lead to, or, where they
/// don't, the list.
fn push_edge(sql: &mut Sql, organization: OrganizationId, filter: &TaskFilter, offset: i64) {
    sql.push("WITH counted AS MATERIALIZED (SELECT ");
    push_total(sql, organization, filter);
    sql.push(" AS total), ");
    // The counts of the hours know nothing of a range, so neither may what is skipped in an hour.
    let within_hour = TaskFilter { created_from: None, created_to: None, ..filter.clone() };
    let way = Counted::by(&within_hour).filter(Counted::leads_to_pages);
    let skipped = if let Some(way) = &way {
        way.push_way(sql, organization, filter.created_to, offset);
        &within_hour
    } else {
        sql.push("span AS MATERIALIZED (SELECT total AS number, ").push_bind(offset);
        sql.push("::bigint AS skip FROM counted)");
        filter
    };
    sql.push(", edge AS MATERIALIZED ((SELECT created_at, id FROM tasks");
    push_filter(sql, organization, skipped);
    if way.is_some() {
        sql.push(" AND created_at < (SELECT until FROM span)");
    }
    sql.push(
        " AND (SELECT skip < number - skip FROM span) \
         ORDER BY created_at DESC, id DESC LIMIT 1 OFFSET (SELECT skip FROM span)) \
         UNION ALL (SELECT created_at, id FROM tasks",
    );
    push_filter(sql, organization, skipped);
    if way.is_some() {
        sql.push(" AND created_at >= (SELECT since FROM span)");
    }
    sql.push(
        " AND (SELECT skip < number AND skip >= number - skip FROM span) \
         ORDER BY created_at, id LIMIT 1 OFFSET (SELECT GREATEST(number - skip - 1, 0) FROM span))) ",
    );
}

/// The WHERE clause that the page and the count share. Only what is set is pushed: a condition that allows for an
/// unset filter (`$1 IS NULL OR …`) could use no index under a generic plan.
pub(super) fn push_filter(sql: &mut Sql, organization: OrganizationId, filter: &TaskFilter) {
    // No `..`: a new field of `TaskFilter` does not compile until it is pushed here.
    let TaskFilter {
        agent_id,
        user_id,
        parent_task_id,
        triggering_agent_id,
        statuses,
        internal_status,
        created_from,
        created_to,
    } = filter;
    sql.push(" WHERE organization_id = ").push_bind(organization);
    if let Some(agent_id) = agent_id {
        sql.push(" AND agent_id = ").push_bind(agent_id.clone());
    }
    if let Some(user_id) = user_id {
        sql.push(" AND user_id = ").push_bind(user_id.clone());
    }
    if let Some(parent_task_id) = parent_task_id {
        sql.push(" AND parent_task_id = ").push_bind(parent_task_id.clone());
    }
    if let Some(triggering_agent_id) = triggering_agent_id {
        sql.push(" AND triggering_agent_id = ").push_bind(triggering_agent_id.clone());
    }
    match statuses.as_slice() {
        [] => {}
        // Its own form: only this keeps the order of an index on the status.
        [status] => {
            sql.push(" AND status = ").push_bind(*status);
        }
        several => {
            sql.push(" AND status = ANY(").push_bind(several.to_vec()).push(")");
        }
    }
    if let Some(internal_status) = internal_status {
        sql.push(" AND internal_status = ").push_bind(internal_status.clone());
    }
    if let Some(from) = created_from {
        sql.push(" AND created_at >= ").push_bind(*from);
    }
    if let Some(to) = created_to {
        sql.push(" AND created_at <= ").push_bind(*to);
    }
}

/// The task on a row of [`list_statement`], by position; `None` on the row that an empty page has. The types are those that the
/// statement selects, so they are not asked for value by value, which is a few percent of what a list costs.
fn read_summary(organization_id: OrganizationId, row: &PgRow) -> Result<Option<TaskSummary>, sqlx::Error> {
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
