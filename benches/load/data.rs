//! Random tasks of one year, deterministic by seed.

use std::fmt::Write;

use chrono::{DateTime, SecondsFormat};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The agent of one task in three.
pub(crate) const BIG_AGENT: &str = "agent-0";

/// The user of one task in ten.
pub(crate) const BUSY_USER: &str = "user-0";

/// Agents that share the other tasks. The share of `agent-N` is proportional to 1/N: `agent-1` has
/// twice the tasks of `agent-2`.
const OTHER_AGENTS: u32 = 200;

/// Users that share the other tasks.
const OTHER_USERS: u32 = 2000;

/// The least bytes of a chunk of NDJSON lines, except the last chunk.
const CHUNK: usize = 1 << 20;

/// The start of the year, in microseconds since 1970: 2025-01-01.
const YEAR_START: i64 = 1_735_689_600_000_000;

const MINUTE: i64 = 60_000_000;
const YEAR: i64 = 365 * 24 * 60 * MINUTE;

/// Final statuses, and their shares of a thousand tasks.
const STATUSES: [(u32, &str); 7] = [
    (920, "completed"),
    (30, "failed"),
    (20, "error"),
    (15, "stopped"),
    (10, "executing"),
    (4, "pending"),
    (1, "paused"),
];

const INTERNAL_STATUSES: [&str; 5] =
    ["planning", "waiting_for_tool", "tool_finished", "answering", "reviewed"];

const SOURCES: [&str; 4] = ["api", "sdk", "webhook", "schedule"];

const WORDS: [&str; 40] = [
    "agent", "invoice", "report", "customer", "the", "of", "and", "summary", "draft", "meeting",
    "quarter", "table", "analysis", "search", "result", "email", "answer", "question", "document",
    "file", "next", "step", "review", "for", "with", "latest", "compare", "price", "market",
    "data", "team", "plan", "schedule", "task", "write", "in", "a", "check", "source", "found",
];

/// A task with its turns; times are microseconds since 1970.
#[derive(Debug, Clone)]
pub(crate) struct GeneratedTask {
    pub(crate) id: String,
    pub(crate) agent: String,
    pub(crate) user: Option<String>,
    pub(crate) parent: Option<String>,
    pub(crate) triggering_agent: Option<String>,
    pub(crate) source: &'static str,
    pub(crate) title: String,
    pub(crate) created_at: i64,
    pub(crate) updated_at: i64,
    pub(crate) turns: Vec<GeneratedTurn>,
}

/// A turn; times are microseconds since 1970.
#[derive(Debug, Clone)]
pub(crate) struct GeneratedTurn {
    pub(crate) text: String,
    pub(crate) status: &'static str,
    pub(crate) internal_status: Option<&'static str>,
    pub(crate) result: Option<String>,
    pub(crate) created_at: i64,
    pub(crate) started_at: Option<i64>,
    pub(crate) finished_at: Option<i64>,
}

/// A task that gets sub-tasks.
struct Parent {
    id: String,
    agent: String,
    /// Sub-tasks that are still to be made.
    remaining_children: u32,
}

/// An iterator over the tasks of a data set, oldest first.
pub(crate) struct Generator {
    rng: StdRng,
    /// Text that titles, inputs and results are cut from. To draw each word would take most of the
    /// time.
    corpus: String,
    /// Cumulative shares of the other agents.
    cumulative_shares: Vec<f64>,
    parent: Option<Parent>,
    next: u64,
    count: u64,
}

impl Generator {
    pub(crate) fn new(count: u64, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut corpus = String::new();
        while corpus.len() < 256 << 10 {
            corpus.push_str(WORDS[rng.random_range(0..WORDS.len())]);
            corpus.push(' ');
        }
        let weights = (1..=OTHER_AGENTS).map(|rank| 1.0 / f64::from(rank));
        let total: f64 = weights.clone().sum();
        let cumulative_shares = weights
            .scan(0.0, |sum, weight| {
                *sum += weight / total;
                Some(*sum)
            })
            .collect();
        Self { rng, corpus, cumulative_shares, parent: None, next: 0, count }
    }

    fn text(&mut self, bytes: std::ops::RangeInclusive<usize>) -> String {
        let length = self.rng.random_range(bytes);
        let start = self.rng.random_range(0..self.corpus.len() - length);
        // Not all formats keep a space at either end.
        self.corpus[start..start + length].trim().to_owned()
    }

    fn agent(&mut self) -> String {
        if self.next.is_multiple_of(3) {
            return BIG_AGENT.to_owned();
        }
        let draw: f64 = self.rng.random();
        let shares = &self.cumulative_shares;
        let rank = shares.partition_point(|share| *share < draw).min(shares.len() - 1) + 1;
        format!("agent-{rank}")
    }

    fn user(&mut self) -> Option<String> {
        match self.rng.random_range(0..100) {
            0..10 => Some(BUSY_USER.to_owned()),
            10..90 => Some(format!("user-{}", self.rng.random_range(1..=OTHER_USERS))),
            _ => None,
        }
    }

    /// The parent of a task and the parent's agent, for 15 % of the tasks that can have one. The
    /// parent's agent is the triggering agent.
    fn draw_parent(&mut self) -> Option<(String, String)> {
        let parent = self.parent.as_mut().filter(|parent| parent.remaining_children > 0)?;
        if !self.rng.random_bool(0.15) {
            return None;
        }
        parent.remaining_children -= 1;
        Some((parent.id.clone(), parent.agent.clone()))
    }

    fn turns(&mut self, created_at: i64) -> Vec<GeneratedTurn> {
        let count = match self.rng.random_range(0..100) {
            0..85 => 1,
            85..97 => 2,
            _ => 3,
        };
        let draw = self.rng.random_range(0..1000);
        let mut sum = 0;
        let status = STATUSES.iter().find(|(share, _)| {
            sum += share;
            draw < sum
        });
        let status = status.map_or("completed", |(_, status)| status);
        let mut next_created_at = created_at;
        (1..=count)
            .map(|number| {
                let created_at = next_created_at;
                let status = if number == count { status } else { "completed" };
                let internal_status = (number == count && self.rng.random_bool(0.3))
                    .then(|| INTERNAL_STATUSES[self.rng.random_range(0..INTERNAL_STATUSES.len())]);
                let started_at = (status != "pending")
                    .then(|| created_at + self.rng.random_range(1_000..MINUTE / 60));
                let has_ended = matches!(status, "completed" | "failed" | "error" | "stopped");
                let finished_at = started_at
                    .filter(|_| has_ended)
                    .map(|started_at| started_at + self.rng.random_range(MINUTE / 60..3 * MINUTE));
                let turn = GeneratedTurn {
                    text: self.text(20..=400),
                    status,
                    internal_status,
                    result: has_ended.then(|| self.text(100..=2000)),
                    created_at,
                    started_at,
                    finished_at,
                };
                next_created_at = turn.changed_at() + self.rng.random_range(MINUTE..60 * MINUTE);
                turn
            })
            .collect()
    }
}

impl GeneratedTurn {
    /// The time of the last change.
    fn changed_at(&self) -> i64 {
        self.finished_at.or(self.started_at).unwrap_or(self.created_at)
    }
}

impl Iterator for Generator {
    type Item = GeneratedTask;

    fn next(&mut self) -> Option<GeneratedTask> {
        if self.next == self.count {
            return None;
        }
        let id = uuid::Builder::from_random_bytes(self.rng.random()).into_uuid().to_string();
        let agent = self.agent();
        let user = self.user();
        let (parent, triggering_agent) = self.draw_parent().unzip();
        if parent.is_none()
            && self.parent.as_ref().is_none_or(|parent| parent.remaining_children == 0)
        {
            let remaining_children = self.rng.random_range(3..=7);
            self.parent = Some(Parent { id: id.clone(), agent: agent.clone(), remaining_children });
        }
        let source = SOURCES[self.rng.random_range(0..SOURCES.len())];
        let title = self.text(20..=120);
        // The year has one slot for each task; the task is created at a random time in its slot.
        let slot = i64::try_from(self.next).ok()?;
        let width = YEAR / i64::try_from(self.count).ok()?;
        let created_at = YEAR_START + slot * width + self.rng.random_range(0..width.max(1));
        let turns = self.turns(created_at);
        let updated_at = turns.last().map_or(created_at, GeneratedTurn::changed_at);
        self.next += 1;
        Some(GeneratedTask {
            id,
            agent,
            user,
            parent,
            triggering_agent,
            source,
            title,
            created_at,
            updated_at,
            turns,
        })
    }
}

/// A time in a form that both the import and PostgreSQL accept.
pub(crate) fn format_time(microseconds: i64) -> String {
    let time = DateTime::from_timestamp_micros(microseconds).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

impl GeneratedTask {
    /// Writes the task as a line of NDJSON for `task-history import`. Its texts contain no
    /// character that JSON requires to be escaped.
    fn write_line(&self, out: &mut String) -> std::fmt::Result {
        write!(out, r#"{{"id":"{}","agent_id":"{}""#, self.id, self.agent)?;
        for (name, value) in [
            ("user_id", &self.user),
            ("parent_task_id", &self.parent),
            ("triggering_agent_id", &self.triggering_agent),
        ] {
            if let Some(value) = value {
                write!(out, r#","{name}":"{value}""#)?;
            }
        }
        write!(
            out,
            r#","source":"{}","title":"{}","created_at":"{}","updated_at":"{}","turns":["#,
            self.source,
            self.title,
            format_time(self.created_at),
            format_time(self.updated_at)
        )?;
        for (index, turn) in self.turns.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            turn.write_json(self.user.as_deref(), out)?;
        }
        out.push_str("]}\n");
        Ok(())
    }
}

impl GeneratedTurn {
    /// The input of the turn, as JSON.
    pub(crate) fn input(&self, user: Option<&str>) -> String {
        let user = user.map_or_else(
            || "null".to_owned(),
            |id| format!(r#"{{"id":"{id}","email":"{id}@example.com"}}"#),
        );
        format!(r#"{{"text":"{}","files":[],"user":{user}}}"#, self.text)
    }

    fn write_json(&self, user: Option<&str>, out: &mut String) -> std::fmt::Result {
        write!(out, r#"{{"input":{},"status":"{}""#, self.input(user), self.status)?;
        if let Some(status) = self.internal_status {
            write!(out, r#","internal_status":"{status}""#)?;
        }
        if let Some(result) = &self.result {
            write!(out, r#","result":"{result}""#)?;
        }
        write!(out, r#","created_at":"{}""#, format_time(self.created_at))?;
        for (name, time) in [("started_at", self.started_at), ("finished_at", self.finished_at)] {
            if let Some(time) = time {
                write!(out, r#","{name}":"{}""#, format_time(time))?;
            }
        }
        out.push('}');
        Ok(())
    }
}

/// The tasks as lines of NDJSON, in chunks.
pub(crate) fn ndjson_chunks(
    mut tasks: impl Iterator<Item = GeneratedTask>,
) -> impl Iterator<Item = Vec<u8>> {
    std::iter::from_fn(move || {
        let mut chunk = String::with_capacity(CHUNK + 16 * 1024);
        while chunk.len() < CHUNK {
            let Some(task) = tasks.next() else { break };
            task.write_line(&mut chunk).expect("a string accepts all writes");
        }
        (!chunk.is_empty()).then(|| chunk.into_bytes())
    })
}

/// An id that no other run has used. A run with the same seed on the same data set must not reuse
/// ids.
#[expect(clippy::disallowed_methods, reason = "the harness has no injected clock")]
pub(crate) fn unique_id() -> uuid::Uuid {
    uuid::Uuid::now_v7()
}
