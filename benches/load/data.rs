//! Tasks as a life of a year would leave them, the same for the same seed.

use std::fmt::Write;

use chrono::{DateTime, SecondsFormat};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The agent that one task in three is of.
pub(crate) const BIG_AGENT: &str = "agent-0";

/// The user that one task in ten is of.
pub(crate) const BUSY_USER: &str = "user-0";

/// How many agents share what the big one leaves, the first the most: `agent-1` has twice what `agent-2` has.
const OTHER_AGENTS: u32 = 200;

/// How many users share what the busy one leaves.
const OTHER_USERS: u32 = 2000;

/// Bytes of a chunk of lines.
const CHUNK: usize = 1 << 20;

/// The first moment of the year, in microseconds since 1970: 2025-01-01.
const YEAR_START: i64 = 1_735_689_600_000_000;

const MINUTE: i64 = 60_000_000;
const YEAR: i64 = 365 * 24 * 60 * MINUTE;

/// How many in a thousand tasks end how.
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
    "agent", "invoice", "report", "customer", "the", "of", "and", "summary", "draft", "meeting", "quarter",
    "table", "analysis", "search", "result", "email", "answer", "question", "document", "file", "next",
    "step", "review", "for", "with", "latest", "compare", "price", "market", "data", "team", "plan",
    "schedule", "task", "write", "in", "a", "check", "source", "found",
];

/// A task with its turns.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) agent: String,
    pub(crate) user: Option<String>,
    pub(crate) parent: Option<String>,
    pub(crate) triggering_agent: Option<String>,
    pub(crate) source: &'static str,
    pub(crate) title: String,
    pub(crate) created_at: i64,
    pub(crate) updated_at: i64,
    pub(crate) turns: Vec<Turn>,
}

/// A turn; times are microseconds since 1970.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    pub(crate) text: String,
    pub(crate) status: &'static str,
    pub(crate) internal_status: Option<&'static str>,
    pub(crate) result: Option<String>,
    pub(crate) created_at: i64,
    pub(crate) started_at: Option<i64>,
    pub(crate) finished_at: Option<i64>,
}

/// A task that has sub-tasks, and how many more it gets.
struct Parent {
    id: String,
    agent: String,
    children: u32,
}

/// Makes the tasks of a data set, oldest first.
pub(crate) struct Generator {
    rng: StdRng,
    /// Words to cut titles, inputs and results out of: drawing each word would take most of the time.
    corpus: String,
    /// For each of the other agents the share of those up to it.
    shares: Vec<f64>,
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
        let shares = weights
            .scan(0.0, |sum, weight| {
                *sum += weight / total;
                Some(*sum)
            })
            .collect();
        Self { rng, corpus, shares, parent: None, next: 0, count }
    }

    fn text(&mut self, bytes: std::ops::RangeInclusive<usize>) -> String {
        let length = self.rng.random_range(bytes);
        let start = self.rng.random_range(0..self.corpus.len() - length);
        // A blank at an end would be lost on its way through some formats.
        self.corpus[start..start + length].trim().to_owned()
    }

    fn agent(&mut self) -> String {
        if self.next.is_multiple_of(3) {
            return BIG_AGENT.to_owned();
        }
        let draw: f64 = self.rng.random();
        let rank = self.shares.partition_point(|share| *share < draw).min(self.shares.len() - 1) + 1;
        format!("agent-{rank}")
    }

    fn user(&mut self) -> Option<String> {
        match self.rng.random_range(0..100) {
            0..10 => Some(BUSY_USER.to_owned()),
            10..90 => Some(format!("user-{}", self.rng.random_range(1..=OTHER_USERS))),
            _ => None,
        }
    }

    /// The parent of a task, for 15 of a hundred, and the parent's agent, who triggered it.
    fn draw_parent(&mut self) -> Option<(String, String)> {
        let parent = self.parent.as_mut().filter(|parent| parent.children > 0)?;
        if !self.rng.random_bool(0.15) {
            return None;
        }
        parent.children -= 1;
        Some((parent.id.clone(), parent.agent.clone()))
    }

    fn turns(&mut self, created_at: i64) -> Vec<Turn> {
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
        let mut at = created_at;
        (1..=count)
            .map(|number| {
                let status = if number == count { status } else { "completed" };
                let internal_status = (number == count && self.rng.random_bool(0.3))
                    .then(|| INTERNAL_STATUSES[self.rng.random_range(0..INTERNAL_STATUSES.len())]);
                let started_at =
                    (status != "pending").then(|| at + self.rng.random_range(1_000..MINUTE / 60));
                let has_ended = matches!(status, "completed" | "failed" | "error" | "stopped");
                let finished_at = started_at
                    .filter(|_| has_ended)
                    .map(|at| at + self.rng.random_range(MINUTE / 60..3 * MINUTE));
                let turn = Turn {
                    text: self.text(20..=400),
                    status,
                    internal_status,
                    result: has_ended.then(|| self.text(100..=2000)),
                    created_at: at,
                    started_at,
                    finished_at,
                };
                at = turn.changed_at() + self.rng.random_range(MINUTE..60 * MINUTE);
                turn
            })
            .collect()
    }
}

impl Turn {
    /// When it changed last.
    fn changed_at(&self) -> i64 {
        self.finished_at.or(self.started_at).unwrap_or(self.created_at)
    }
}

impl Iterator for Generator {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        if self.next == self.count {
            return None;
        }
        let id = uuid::Builder::from_random_bytes(self.rng.random()).into_uuid().to_string();
        let agent = self.agent();
        let user = self.user();
        let (parent, triggering_agent) = self.draw_parent().unzip();
        if parent.is_none() && self.parent.as_ref().is_none_or(|parent| parent.children == 0) {
            let children = self.rng.random_range(3..=7);
            self.parent = Some(Parent { id: id.clone(), agent: agent.clone(), children });
        }
        let source = SOURCES[self.rng.random_range(0..SOURCES.len())];
        let title = self.text(20..=120);
        // Evenly over the year, each somewhere in its place.
        let place = i64::try_from(self.next).ok()?;
        let width = YEAR / i64::try_from(self.count).ok()?;
        let created_at = YEAR_START + place * width + self.rng.random_range(0..width.max(1));
        let turns = self.turns(created_at);
        let updated_at = turns.last().map_or(created_at, Turn::changed_at);
        self.next += 1;
        Some(Record {
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

/// A time as both JSON and PostgreSQL read it.
pub(crate) fn time(microseconds: i64) -> String {
    let time = DateTime::from_timestamp_micros(microseconds).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

impl Record {
    /// Writes it as a line of what `task-history import` reads. The texts hold nothing that JSON would escape.
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
            time(self.created_at),
            time(self.updated_at)
        )?;
        for (at, turn) in self.turns.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            turn.write_json(self.user.as_deref(), out)?;
        }
        out.push_str("]}\n");
        Ok(())
    }
}

impl Turn {
    /// What was asked, as JSON.
    pub(crate) fn input(&self, user: Option<&str>) -> String {
        let user = user
            .map_or_else(|| "null".to_owned(), |id| format!(r#"{{"id":"{id}","email":"{id}@example.com"}}"#));
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
        write!(out, r#","created_at":"{}""#, time(self.created_at))?;
        for (name, at) in [("started_at", self.started_at), ("finished_at", self.finished_at)] {
            if let Some(at) = at {
                write!(out, r#","{name}":"{}""#, time(at))?;
            }
        }
        out.push('}');
        Ok(())
    }
}

/// The records as lines of JSON, in chunks.
pub(crate) fn lines(mut records: impl Iterator<Item = Record>) -> impl Iterator<Item = Vec<u8>> {
    std::iter::from_fn(move || {
        let mut chunk = String::with_capacity(CHUNK + 16 * 1024);
        while chunk.len() < CHUNK {
            let Some(record) = records.next() else { break };
            record.write_line(&mut chunk).expect("text can be written to a string");
        }
        (!chunk.is_empty()).then(|| chunk.into_bytes())
    })
}
