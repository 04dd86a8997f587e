//! Totals, and the way to a deep page, from `task_counts` instead of from the tasks themselves.
//!
//! The counts are kept by the database, in the transaction that changes the tasks. A total is a sum of a few of them,
//! whatever the number of tasks. And since they say how many tasks each month, day and hour has, they also say in
//! which hour the first task of a page lies: all that comes before is skipped without being looked at.

use chrono::{DateTime, Datelike, Duration, DurationRound, Months, TimeDelta, TimeZone, Utc};

use super::tasks::{Sql, push_filter};
use crate::domain::{Label, OrganizationId, Status, TaskFilter, Word};

/// Which rows of `task_counts` count the tasks that a filter shows, but for its range of `created_at`.
pub(super) struct Counted<'a> {
    filter: &'a TaskFilter,
    facet: Facet<'a>,
}

/// What beside the agent and the status is counted: one thing at a time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Facet<'a> {
    Nothing,
    User(&'a str),
    Parent(&'a str),
    TriggeringAgent(&'a str),
    InternalStatus(&'a Label),
}

impl<'a> Counted<'a> {
    /// `None` where the tasks themselves must be counted: those that several selective filters share, or one and a range of
    /// times. An index has all of it.
    pub(super) fn by(filter: &'a TaskFilter) -> Option<Self> {
        // No `..`: a new field of `TaskFilter` does not compile until it is decided here.
        let TaskFilter {
            agent_id: _,
            user_id,
            parent_task_id,
            triggering_agent_id,
            statuses: _,
            internal_status,
            created_from,
            created_to,
        } = filter;
        let facet = match (parent_task_id, user_id, triggering_agent_id, internal_status) {
            (None, None, None, None) => Facet::Nothing,
            (None, Some(user), None, None) => Facet::User(user.as_str()),
            (Some(parent), None, None, None) => Facet::Parent(parent.as_str()),
            (None, None, Some(agent), None) => Facet::TriggeringAgent(agent.as_str()),
            (None, None, None, Some(label)) => Facet::InternalStatus(label),
            _ => return None,
        };
        let has_range = created_from.is_some() || created_to.is_some();
        (facet == Facet::Nothing || !has_range).then_some(Self { filter, facet })
    }

    /// Whether the counts lead to a page of the filter's list.
    pub(super) fn leads_to_pages(&self) -> bool {
        self.facet == Facet::Nothing
    }

    /// Pushes the total, an expression.
    pub(super) fn push_total(&self, sql: &mut Sql, organization: OrganizationId) {
        if self.filter.created_from.is_some() || self.filter.created_to.is_some() {
            self.push_number_in(sql, organization, self.filter.created_from, self.filter.created_to);
            return;
        }
        sql.push("COALESCE((SELECT ");
        self.push_number(sql);
        self.push_rows(sql, organization);
        sql.push(" AND grain = 0 AND since = '-infinity'), 0)");
    }

    /// Pushes how many tasks there are in a range of `created_at`, the last moment included: an expression.
    fn push_number_in(
        &self,
        sql: &mut Sql,
        organization: OrganizationId,
        from: Option<DateTime<Utc>>,
        to: Option<DateTime<Utc>>,
    ) {
        sql.push("0::bigint");
        for piece in pieces(from, to) {
            match piece {
                Piece::Counts(grain, from, until) => {
                    sql.push(" + COALESCE((SELECT sum(");
                    self.push_number(sql);
                    sql.push(")::bigint");
                    self.push_rows(sql, organization);
                    sql.push(" AND grain = ").push_bind(grain.number());
                    if let Some(from) = from {
                        sql.push(" AND since >= ").push_bind(from);
                    }
                    if let Some(until) = until {
                        sql.push(" AND since < ").push_bind(until);
                    }
                    sql.push("), 0)");
                }
                Piece::Tasks(created_from, created_to) => {
                    let filter = TaskFilter { created_from, created_to, ..self.filter.clone() };
                    sql.push(" + (SELECT count(*) FROM tasks");
                    push_filter(sql, organization, &filter);
                    sql.push(")");
                }
            }
        }
    }

    /// Pushes the common table expressions that find the hour of the task that has `offset` others between it and `to`, the
    /// end of the list: `span.since` and `span.until` are the hour's ends, `span.number` is how many tasks it has, and
    /// `span.skip` how many of those are newer. No row where there are not as many tasks.
    pub(super) fn push_way(
        &self,
        sql: &mut Sql,
        organization: OrganizationId,
        to: Option<DateTime<Utc>>,
        offset: i64,
    ) {
        // Half of what fits, so that what is added fits too: no list is that long.
        sql.push("start AS MATERIALIZED (SELECT ").push_bind(offset.min(i64::MAX / 2));
        sql.push("::bigint");
        if let Some(after) = to.and_then(|to| to.checked_add_signed(INSTANT)) {
            sql.push(" + ");
            self.push_number_in(sql, organization, Some(after), None);
        }
        sql.push(" AS skip), month AS MATERIALIZED (");
        self.push_step(sql, organization, Grain::Month);
        sql.push("), day AS MATERIALIZED (");
        self.push_step(sql, organization, Grain::Day);
        sql.push("), span AS MATERIALIZED (");
        self.push_step(sql, organization, Grain::Hour);
        sql.push(")");
    }

    /// Pushes the SELECT of one step of the way: the month, day or hour that the task lies in, and how many of its tasks
    /// are newer. It reads the counts newest first, and only as far as it must.
    fn push_step(&self, sql: &mut Sql, organization: OrganizationId, grain: Grain) {
        match grain {
            Grain::Month => {
                sql.push("SELECT since, since + interval '1 month' AS until, (SELECT skip FROM start)")
            }
            Grain::Day => {
                sql.push("SELECT since, since + interval '1 day' AS until, (SELECT skip FROM month)")
            }
            Grain::Hour => {
                sql.push("SELECT since, since + interval '1 hour' AS until, (SELECT skip FROM day)")
            }
        };
        sql.push(
            " - newer AS skip, number FROM (\
             SELECT since, number, sum(number) OVER (ORDER BY since DESC ROWS UNBOUNDED PRECEDING) - number AS newer \
             FROM (SELECT since, (",
        );
        self.push_number(sql);
        // The sum of integers is a bigint, and twice as fast as that of bigints.
        sql.push(")::integer AS number");
        self.push_rows(sql, organization);
        sql.push(" AND grain = ").push_bind(grain.number());
        match grain {
            Grain::Month => sql.push(") AS counts) AS sums WHERE newer + number > (SELECT skip FROM start)"),
            Grain::Day => sql.push(
                " AND since >= (SELECT since FROM month) AND since < (SELECT until FROM month)) AS counts) AS sums \
                 WHERE newer + number > (SELECT skip FROM month)",
            ),
            Grain::Hour => sql.push(
                " AND since >= (SELECT since FROM day) AND since < (SELECT until FROM day)) AS counts) AS sums \
                 WHERE newer + number > (SELECT skip FROM day)",
            ),
        };
        sql.push(" ORDER BY since DESC LIMIT 1");
    }

    /// Pushes the number of tasks that one row counts, an expression.
    fn push_number(&self, sql: &mut Sql) {
        let statuses = self.filter.statuses.as_slice();
        let statuses = if statuses.is_empty() { Status::ALL } else { statuses };
        for (at, status) in statuses.iter().enumerate() {
            // The same status twice is the same tasks.
            if statuses[..at].contains(status) {
                continue;
            }
            if at > 0 {
                sql.push(" + ");
            }
            match status {
                Status::Pending => sql.push("pending"),
                Status::Executing => sql.push("executing"),
                Status::Paused => sql.push("paused"),
                Status::Error => sql.push("error"),
                Status::Failed => sql.push("failed"),
                Status::Completed => sql.push("completed"),
                Status::Stopped => sql.push("stopped"),
            };
        }
    }

    /// Pushes FROM and WHERE up to the grain.
    fn push_rows(&self, sql: &mut Sql, organization: OrganizationId) {
        sql.push(" FROM task_counts WHERE organization_id = ").push_bind(organization);
        // What stands for all agents is no agent's id: those have at least one character.
        let agent = self.filter.agent_id.as_ref().map_or("", |agent| agent.as_str()).to_owned();
        sql.push(" AND agent_id = ").push_bind(agent);
        let value = match self.facet {
            Facet::Nothing => {
                sql.push(" AND facet = ''");
                ""
            }
            Facet::User(user) => {
                sql.push(" AND facet = 'user'");
                user
            }
            Facet::Parent(parent) => {
                sql.push(" AND facet = 'parent'");
                parent
            }
            Facet::TriggeringAgent(agent) => {
                sql.push(" AND facet = 'triggering_agent'");
                agent
            }
            Facet::InternalStatus(label) => {
                sql.push(" AND facet = 'internal_status'");
                label.as_str()
            }
        };
        sql.push(" AND value = ").push_bind(value.to_owned());
    }
}

/// How long a time one row counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grain {
    Month,
    Day,
    Hour,
}

impl Grain {
    /// As `task_counts.grain` has it.
    fn number(self) -> i16 {
        match self {
            Self::Month => 1,
            Self::Day => 2,
            Self::Hour => 3,
        }
    }

    /// The beginning of the month, day or hour of a time; `None` beyond the end of the calendar.
    fn floor(self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self {
            Self::Month => Utc.with_ymd_and_hms(time.year(), time.month(), 1, 0, 0, 0).single(),
            Self::Day => time.date_naive().and_hms_opt(0, 0, 0).map(|day| day.and_utc()),
            Self::Hour => time.duration_trunc(TimeDelta::hours(1)).ok(),
        }
    }

    /// The first beginning of one that is not before a time.
    fn ceil(self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let floor = self.floor(time)?;
        if floor == time {
            return Some(floor);
        }
        match self {
            Self::Month => floor.checked_add_months(Months::new(1)),
            Self::Day => floor.checked_add_signed(Duration::days(1)),
            Self::Hour => floor.checked_add_signed(Duration::hours(1)),
        }
    }
}

/// A part of a range of `created_at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    /// Whole months, days or hours: from one, until before another.
    Counts(Grain, Option<DateTime<Utc>>, Option<DateTime<Utc>>),
    /// Less than an hour, the last moment included: the tasks themselves are counted.
    Tasks(Option<DateTime<Utc>>, Option<DateTime<Utc>>),
}

/// From one moment to the next: times have microseconds, as PostgreSQL's do.
const INSTANT: Duration = Duration::microseconds(1);

/// Cuts a range, the last moment included, into the fewest pieces: at most two of each kind.
fn pieces(from: Option<DateTime<Utc>>, to: Option<DateTime<Utc>>) -> Vec<Piece> {
    let until = to.and_then(|to| to.checked_add_signed(INSTANT));
    let mut found = Vec::new();
    let tasks = |from: Option<DateTime<Utc>>, until: Option<DateTime<Utc>>| {
        Piece::Tasks(from, until.map(|until| until - INSTANT))
    };
    let is_empty = |from: Option<DateTime<Utc>>, until: Option<DateTime<Utc>>| {
        from.zip(until).is_some_and(|(from, until)| from >= until)
    };
    if is_empty(from, until) {
        return found;
    }
    let inner = |grain: Grain, from: Option<DateTime<Utc>>, until: Option<DateTime<Utc>>| {
        let first = from.map(|from| grain.ceil(from));
        let end = until.map(|until| grain.floor(until));
        // Beyond the end of the calendar there are no tasks and no pieces.
        match (first, end) {
            (Some(None), _) | (_, Some(None)) => None,
            (first, end) => Some((first.flatten(), end.flatten())),
        }
    };
    let (mut start, mut end) = (from, until);
    let mut outer: Option<Grain> = None;
    for grain in [Grain::Hour, Grain::Day, Grain::Month] {
        let piece = |from, until| match outer {
            None => tasks(from, until),
            Some(outer) => Piece::Counts(outer, from, until),
        };
        match inner(grain, start, end).filter(|(first, last)| !is_empty(*first, *last)) {
            None => {
                found.push(piece(start, end));
                return found;
            }
            Some((first, last)) => {
                if first != start {
                    found.push(piece(start, first));
                }
                if last != end {
                    found.push(piece(last, end));
                }
                (start, end) = (first, last);
                outer = Some(grain);
            }
        }
    }
    found.push(Piece::Counts(Grain::Month, start, end));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    /// Whether a time is in exactly one of the pieces, or in none.
    fn covers(pieces: &[Piece], at: DateTime<Utc>) -> bool {
        let within = |piece: &&Piece| match **piece {
            Piece::Counts(grain, from, until) => {
                let since = grain.floor(at).expect("a time of our age");
                from.is_none_or(|from| from <= since) && until.is_none_or(|until| since < until)
            }
            Piece::Tasks(from, to) => from.is_none_or(|from| from <= at) && to.is_none_or(|to| at <= to),
        };
        let count = pieces.iter().filter(within).count();
        assert!(count <= 1, "{at} is counted {count} times in {pieces:?}");
        count == 1
    }

    #[test]
    fn pieces_cover_a_range_once() {
        let edges = [
            "2025-12-31T23:59:59.999999Z",
            "2026-01-01T00:00:00Z",
            "2026-01-01T00:00:00.000001Z",
            "2026-01-01T00:59:59.999999Z",
            "2026-01-01T01:00:00Z",
            "2026-01-15T12:30:00Z",
            "2026-01-31T23:59:59.999999Z",
            "2026-02-01T00:00:00Z",
            "2026-02-28T23:59:59.999999Z",
            "2026-03-01T00:00:00Z",
            "2026-03-01T05:10:00Z",
            "2027-07-01T00:00:00Z",
        ]
        .map(time);
        let ends = || edges.into_iter().map(Some).chain([None]);
        for from in ends() {
            for to in ends() {
                let pieces = pieces(from, to);
                assert!(pieces.len() <= 7, "{pieces:?}");
                for at in edges {
                    let expected = from.is_none_or(|from| from <= at) && to.is_none_or(|to| at <= to);
                    assert_eq!(covers(&pieces, at), expected, "{at} in {from:?} to {to:?}: {pieces:?}");
                }
            }
        }
        let day = pieces(Some(time("2026-01-05T00:00:00Z")), Some(time("2026-01-05T23:59:59.999999Z")));
        assert_eq!(day.len(), 1, "a whole day is one count: {day:?}");
        assert!(matches!(day[0], Piece::Counts(Grain::Day, ..)));
    }
}
