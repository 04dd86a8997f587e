//! Totals, and the seek to a deep page, from `task_counts` instead of from the tasks themselves.
//!
//! The database keeps the counts, in the transaction that changes the tasks. A total is a sum of a
//! few of them, whatever the number of tasks. The counts say how many tasks each month, day and
//! hour has. They therefore also say in which hour the first task of a page is, so everything
//! before that hour is skipped without being read.

use chrono::{DateTime, Datelike, Duration, DurationRound, Months, TimeDelta, TimeZone, Utc};

use super::filter::push_filter;
use crate::domain::{OrganizationId, ShortText, Status, TaskFilter, WireEnum};
use crate::store::sql::Sql;

/// A filter whose tasks rows of `task_counts` count, apart from its range of `created_at`.
pub(super) struct CountableFilter<'a> {
    filter: &'a TaskFilter,
    facet: Facet<'a>,
}

/// What is counted beside the agent and the status: one thing at a time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Facet<'a> {
    None,
    User(&'a str),
    Parent(&'a str),
    TriggeringAgent(&'a str),
    InternalStatus(&'a ShortText),
}

impl<'a> CountableFilter<'a> {
    /// `None` if the tasks themselves must be counted, which an index answers alone: for several
    /// selective filters, or one together with a range of times.
    ///
    /// A new field of the filter needs a decision here. `Some` costs a facet in the counting
    /// trigger, two rows of counts a task, and makes its total one row. `None` counts in the
    /// covering indexes, in time that grows with the number of tasks that match.
    pub(super) fn for_filter(filter: &'a TaskFilter) -> Option<Self> {
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
            (None, None, None, None) => Facet::None,
            (None, Some(user), None, None) => Facet::User(user.as_str()),
            (Some(parent), None, None, None) => Facet::Parent(parent.as_str()),
            (None, None, Some(agent), None) => Facet::TriggeringAgent(agent.as_str()),
            (None, None, None, Some(status)) => Facet::InternalStatus(status),
            _ => return None,
        };
        let has_range = created_from.is_some() || created_to.is_some();
        (facet == Facet::None || !has_range).then_some(Self { filter, facet })
    }

    /// Whether the counts locate a page of the filter's list.
    pub(super) fn supports_seek(&self) -> bool {
        self.facet == Facet::None
    }

    /// Pushes the total, an expression.
    pub(super) fn push_total(&self, sql: &mut Sql, organization: OrganizationId) {
        if self.filter.created_from.is_some() || self.filter.created_to.is_some() {
            let (from, to) = (self.filter.created_from, self.filter.created_to);
            self.push_total_in(sql, organization, from, to);
            return;
        }
        sql.push("COALESCE((SELECT ");
        self.push_status_sum(sql);
        self.push_counts_where(sql, organization);
        sql.push(" AND grain = 0 AND since = '-infinity'), 0)");
    }

    /// Pushes how many tasks there are in a range of `created_at`, inclusive: an expression.
    fn push_total_in(
        &self,
        sql: &mut Sql,
        organization: OrganizationId,
        from: Option<DateTime<Utc>>,
        to: Option<DateTime<Utc>>,
    ) {
        sql.push("0::bigint");
        for part in range_parts(from, to) {
            match part {
                RangePart::Counts(grain, from, until) => {
                    sql.push(" + COALESCE((SELECT sum(");
                    self.push_status_sum(sql);
                    sql.push(")::bigint");
                    self.push_counts_where(sql, organization);
                    sql.push(" AND grain = ").push_bind(grain.number());
                    if let Some(from) = from {
                        sql.push(" AND since >= ").push_bind(from);
                    }
                    if let Some(until) = until {
                        sql.push(" AND since < ").push_bind(until);
                    }
                    sql.push("), 0)");
                }
                RangePart::Tasks(created_from, created_to) => {
                    let filter = TaskFilter { created_from, created_to, ..self.filter.clone() };
                    sql.push(" + (SELECT count(*) FROM tasks");
                    push_filter(sql, organization, &filter);
                    sql.push(")");
                }
            }
        }
    }

    /// Pushes the common table expressions that find the hour of the task with `offset` others
    /// between it and `to`, the end of the list.
    ///
    /// `bucket.since` and `bucket.until` bound the hour, `bucket.number` is how many tasks it has,
    /// `bucket.skip` how many of them are newer. It has no row if there are not as many tasks.
    pub(super) fn push_seek(
        &self,
        sql: &mut Sql,
        organization: OrganizationId,
        to: Option<DateTime<Utc>>,
        offset: i64,
    ) {
        // Half of the largest number, so that the sum below does not overflow: no list is as long.
        sql.push("start AS MATERIALIZED (SELECT ").push_bind(offset.min(i64::MAX / 2));
        sql.push("::bigint");
        if let Some(after) = to.and_then(|to| to.checked_add_signed(MICROSECOND)) {
            sql.push(" + ");
            self.push_total_in(sql, organization, Some(after), None);
        }
        sql.push(" AS skip), month AS MATERIALIZED (");
        self.push_seek_step(sql, organization, Grain::Month);
        sql.push("), day AS MATERIALIZED (");
        self.push_seek_step(sql, organization, Grain::Day);
        sql.push("), bucket AS MATERIALIZED (");
        self.push_seek_step(sql, organization, Grain::Hour);
        sql.push(")");
    }

    /// Pushes the SELECT of one step of the seek: the month, day or hour of the task, and how many
    /// of its tasks are newer. It reads the counts from the newest on, only as far as needed.
    fn push_seek_step(&self, sql: &mut Sql, organization: OrganizationId, grain: Grain) {
        sql.push(match grain {
            Grain::Month => {
                "SELECT since, since + interval '1 month' AS until, (SELECT skip FROM start)"
            }
            Grain::Day => {
                "SELECT since, since + interval '1 day' AS until, (SELECT skip FROM month)"
            }
            Grain::Hour => {
                "SELECT since, since + interval '1 hour' AS until, (SELECT skip FROM day)"
            }
        });
        sql.push(
            " - newer AS skip, number FROM (\
             SELECT since, number, \
             sum(number) OVER (ORDER BY since DESC ROWS UNBOUNDED PRECEDING) - number AS newer \
             FROM (SELECT since, (",
        );
        self.push_status_sum(sql);
        // The sum of integers is a bigint, and twice as fast as that of bigints.
        sql.push(")::integer AS number");
        self.push_counts_where(sql, organization);
        sql.push(" AND grain = ").push_bind(grain.number());
        sql.push(match grain {
            Grain::Month => ") AS counts) AS sums WHERE newer + number > (SELECT skip FROM start)",
            Grain::Day => {
                " AND since >= (SELECT since FROM month) AND since < (SELECT until FROM month)\
                 ) AS counts) AS sums WHERE newer + number > (SELECT skip FROM month)"
            }
            Grain::Hour => {
                " AND since >= (SELECT since FROM day) AND since < (SELECT until FROM day)\
                 ) AS counts) AS sums WHERE newer + number > (SELECT skip FROM day)"
            }
        });
        sql.push(" ORDER BY since DESC LIMIT 1");
    }

    /// Pushes how many tasks one row counts, an expression.
    fn push_status_sum(&self, sql: &mut Sql) {
        let statuses = self.filter.statuses.as_slice();
        let statuses = if statuses.is_empty() { Status::ALL } else { statuses };
        for (index, status) in statuses.iter().enumerate() {
            // A repeated status selects the same tasks.
            if statuses[..index].contains(status) {
                continue;
            }
            if index > 0 {
                sql.push(" + ");
            }
            sql.push(match status {
                Status::Pending => "pending",
                Status::Executing => "executing",
                Status::Paused => "paused",
                Status::Error => "error",
                Status::Failed => "failed",
                Status::Completed => "completed",
                Status::Stopped => "stopped",
            });
        }
    }

    /// Pushes FROM and WHERE up to the grain.
    fn push_counts_where(&self, sql: &mut Sql, organization: OrganizationId) {
        sql.push(" FROM task_counts WHERE organization_id = ").push_bind(organization);
        // '' means all agents; agent ids are never empty.
        let agent = self.filter.agent_id.as_ref().map_or("", |agent| agent.as_str()).to_owned();
        sql.push(" AND agent_id = ").push_bind(agent);
        let (facet, value) = match self.facet {
            Facet::None => (" AND facet = ''", ""),
            Facet::User(user) => (" AND facet = 'user'", user),
            Facet::Parent(parent) => (" AND facet = 'parent'", parent),
            Facet::TriggeringAgent(agent) => (" AND facet = 'triggering_agent'", agent),
            Facet::InternalStatus(status) => (" AND facet = 'internal_status'", status.as_str()),
        };
        sql.push(facet).push(" AND value = ").push_bind(value.to_owned());
    }
}

/// The period that one row counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grain {
    Month,
    Day,
    Hour,
}

impl Grain {
    /// The value in `task_counts.grain`.
    fn number(self) -> i16 {
        match self {
            Self::Month => 1,
            Self::Day => 2,
            Self::Hour => 3,
        }
    }

    /// The start of a time's month, day or hour; `None` past the end of the calendar.
    fn floor(self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self {
            Self::Month => Utc.with_ymd_and_hms(time.year(), time.month(), 1, 0, 0, 0).single(),
            Self::Day => time.date_naive().and_hms_opt(0, 0, 0).map(|day| day.and_utc()),
            Self::Hour => time.duration_trunc(TimeDelta::hours(1)).ok(),
        }
    }

    /// The first start of a month, day or hour that is not before a time.
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

/// Part of a range of `created_at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RangePart {
    /// Whole months, days or hours: from the first, inclusive, to the second, exclusive.
    Counts(Grain, Option<DateTime<Utc>>, Option<DateTime<Utc>>),
    /// Less than an hour, inclusive: the tasks themselves are counted.
    Tasks(Option<DateTime<Utc>>, Option<DateTime<Utc>>),
}

/// The resolution of PostgreSQL's timestamps.
const MICROSECOND: Duration = Duration::microseconds(1);

/// Divides an inclusive range into the fewest parts: at most two of each grain.
fn range_parts(from: Option<DateTime<Utc>>, to: Option<DateTime<Utc>>) -> Vec<RangePart> {
    let until = to.and_then(|to| to.checked_add_signed(MICROSECOND));
    let mut found = Vec::new();
    let tasks = |from: Option<DateTime<Utc>>, until: Option<DateTime<Utc>>| {
        RangePart::Tasks(from, until.map(|until| until - MICROSECOND))
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
        // Past the end of the calendar there are no tasks.
        match (first, end) {
            (Some(None), _) | (_, Some(None)) => None,
            (first, end) => Some((first.flatten(), end.flatten())),
        }
    };
    let (mut start, mut end) = (from, until);
    let mut outer: Option<Grain> = None;
    for grain in [Grain::Hour, Grain::Day, Grain::Month] {
        let part = |from, until| match outer {
            None => tasks(from, until),
            Some(outer) => RangePart::Counts(outer, from, until),
        };
        match inner(grain, start, end).filter(|(first, last)| !is_empty(*first, *last)) {
            None => {
                found.push(part(start, end));
                return found;
            }
            Some((first, last)) => {
                if first != start {
                    found.push(part(start, first));
                }
                if last != end {
                    found.push(part(last, end));
                }
                (start, end) = (first, last);
                outer = Some(grain);
            }
        }
    }
    found.push(RangePart::Counts(Grain::Month, start, end));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    /// Whether a time is in one of the parts; panics if it is in several.
    fn covers(parts: &[RangePart], at: DateTime<Utc>) -> bool {
        let within = |part: &&RangePart| match **part {
            RangePart::Counts(grain, from, until) => {
                let since = grain.floor(at).expect("a time of our age");
                from.is_none_or(|from| from <= since) && until.is_none_or(|until| since < until)
            }
            RangePart::Tasks(from, to) => {
                from.is_none_or(|from| from <= at) && to.is_none_or(|to| at <= to)
            }
        };
        let count = parts.iter().filter(within).count();
        assert!(count <= 1, "{at} is counted {count} times in {parts:?}");
        count == 1
    }

    #[test]
    fn parts_cover_a_range_once() {
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
                let parts = range_parts(from, to);
                assert!(parts.len() <= 7, "{parts:?}");
                for at in edges {
                    let expected =
                        from.is_none_or(|from| from <= at) && to.is_none_or(|to| at <= to);
                    assert_eq!(
                        covers(&parts, at),
                        expected,
                        "{at} in {from:?} to {to:?}: {parts:?}"
                    );
                }
            }
        }
        let day = range_parts(
            Some(time("2026-01-05T00:00:00Z")),
            Some(time("2026-01-05T23:59:59.999999Z")),
        );
        assert_eq!(day.len(), 1, "a whole day is one count: {day:?}");
        assert!(matches!(day[0], RangePart::Counts(Grain::Day, ..)));
    }
}
