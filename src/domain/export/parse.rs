//! Reading lines of an export.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::check::{check_event, check_turn, find_nul, time};
use super::error::{RecordError, from_part, offset_in};
use super::{
    EXPORT_VERSION, ExportLine, ExportedEvent, ExportedTask, ExportedTurn, MAX_EVENT_NUMBER,
    raw_json,
};
use crate::domain::{AgentId, ShortText, TaskId, UserId};

/// A record of a file: a line of an export, or a whole task of version 1.
#[derive(Debug)]
pub enum ImportRecord<'a> {
    /// The first line of an export, of a version that is known.
    Header,
    /// A task, whose turns follow in records of their own.
    Task(Box<ExportedTask>),
    /// A turn.
    Turn(Box<ExportedTurn>),
    /// An event.
    Event(ExportedEvent),
    /// A task with its turns and events in one record.
    Whole(Box<WholeTask<'a>>),
}

/// A task of version 1. Its turns and events are parsed one by one, so that they are not in memory
/// a second time.
#[derive(Debug)]
pub struct WholeTask<'a> {
    /// The task.
    pub task: ExportedTask,
    text: &'a str,
    turns: Vec<&'a RawValue>,
    events: Vec<&'a RawValue>,
}

/// The fields of a record of version 1.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WholeTaskFields<'a> {
    id: TaskId,
    agent_id: AgentId,
    user_id: Option<UserId>,
    parent_task_id: Option<TaskId>,
    triggering_agent_id: Option<AgentId>,
    source: ShortText,
    title: Option<String>,
    #[serde(deserialize_with = "time")]
    created_at: DateTime<Utc>,
    #[serde(deserialize_with = "time")]
    updated_at: DateTime<Utc>,
    #[serde(borrow)]
    turns: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    events: Vec<&'a RawValue>,
}

/// The first name of a JSON object, which is the kind of a line. No white space may be before it.
pub fn first_name(text: &str) -> Option<&str> {
    let name = text.strip_prefix('{')?.trim_start().strip_prefix('"')?;
    name.split_once('"').map(|(name, _)| name)
}

impl<'a> ImportRecord<'a> {
    /// Reads a record. White space around it must be gone.
    pub fn parse(text: &'a str) -> Result<Self, RecordError> {
        let json = |error| RecordError::of_json(text, text, &error);
        // A record of version 1 has other names.
        let is_line = matches!(first_name(text), Some("export" | "task" | "turn" | "event"));
        let record = if is_line {
            match serde_json::from_str::<ExportLine<&RawValue>>(text).map_err(json)? {
                ExportLine::Export(header) if header.version > EXPORT_VERSION => {
                    let reason = format!(
                        "the file has version {} of the format, which a newer version of \
                         task-history wrote; import it with that version",
                        header.version
                    );
                    return Err(RecordError::new(0, reason));
                }
                ExportLine::Export(_) => Self::Header,
                ExportLine::Task(task) => {
                    check_numbers(&task)?;
                    Self::Task(Box::new(task))
                }
                ExportLine::Turn(turn) => Self::Turn(Box::new(own_turn(text, turn)?)),
                ExportLine::Event(event) => Self::Event(own_event(text, event)?),
            }
        } else {
            Self::Whole(Box::new(whole_task(text, serde_json::from_str(text).map_err(json)?)?))
        };
        // NUL can only be written as an escape, so most records need no closer look.
        if text.contains("\\u0000") { find_nul(text).map(|()| record) } else { Ok(record) }
    }
}

fn check_numbers(task: &ExportedTask) -> Result<(), RecordError> {
    let fail = |reason: String| Err(RecordError::new(0, reason));
    if task.turns < 1 {
        return fail("a task has at least one turn".to_owned());
    }
    if task.events < 0 {
        return fail("`events` must be at least 0".to_owned());
    }
    if task.last_event > MAX_EVENT_NUMBER {
        return fail(format!("`last_event` must be at most {MAX_EVENT_NUMBER}"));
    }
    if task.last_event != 0 && task.last_event < i64::from(task.turns) {
        return fail("`last_event` must be at least the number of turns".to_owned());
    }
    Ok(())
}

fn whole_task<'a>(
    text: &'a str,
    fields: WholeTaskFields<'a>,
) -> Result<WholeTask<'a>, RecordError> {
    let WholeTaskFields {
        id,
        agent_id,
        user_id,
        parent_task_id,
        triggering_agent_id,
        source,
        title,
        created_at,
        updated_at,
        turns,
        events,
    } = fields;
    let task = ExportedTask {
        id,
        agent_id,
        user_id,
        parent_task_id,
        triggering_agent_id,
        source,
        title,
        created_at,
        updated_at,
        turns: i32::try_from(turns.len()).unwrap_or(i32::MAX),
        events: i64::try_from(events.len()).unwrap_or(i64::MAX),
        last_event: 0,
    };
    check_numbers(&task)?;
    Ok(WholeTask { task, text, turns, events })
}

impl WholeTask<'_> {
    /// Its turns, and where each begins in the record.
    pub fn turns(&self) -> impl Iterator<Item = (usize, Result<ExportedTurn, RecordError>)> {
        (1..).zip(&self.turns).map(|(number, raw)| {
            let parsed = from_part(self.text, raw).and_then(|turn: ExportedTurn<&RawValue>| {
                if turn.number != 0 {
                    let offset = offset_in(self.text, raw.get());
                    return Err(RecordError::new(offset, "unknown field `number`"));
                }
                own_turn(self.text, ExportedTurn { number, ..turn })
            });
            (offset_in(self.text, raw.get()), parsed)
        })
    }

    /// Its events, and where each begins in the record.
    pub fn events(&self) -> impl Iterator<Item = (usize, Result<ExportedEvent, RecordError>)> {
        self.events.iter().map(|raw| {
            let parsed = from_part(self.text, raw).and_then(|event| own_event(self.text, event));
            (offset_in(self.text, raw.get()), parsed)
        })
    }
}

fn own(raw: &RawValue) -> Box<RawValue> {
    let has_breaks = raw.get().contains(['\n', '\r']);
    if has_breaks {
        raw_json(raw.get().to_owned()).expect("JSON stays JSON")
    } else {
        raw.to_owned()
    }
}

fn own_turn(text: &str, turn: ExportedTurn<&RawValue>) -> Result<ExportedTurn, RecordError> {
    check_turn(text, &turn)?;
    Ok(ExportedTurn {
        number: turn.number,
        input: own(turn.input),
        request: turn.request.map(own),
        reported: turn.reported.map(own),
        status: turn.status,
        internal_status: turn.internal_status,
        result: turn.result,
        last_executed_node_id: turn.last_executed_node_id,
        is_manually_stopped: turn.is_manually_stopped,
        created_at: turn.created_at,
        started_at: turn.started_at,
        paused_at: turn.paused_at,
        finished_at: turn.finished_at,
    })
}

fn own_event(text: &str, event: ExportedEvent<&RawValue>) -> Result<ExportedEvent, RecordError> {
    check_event(text, &event)?;
    Ok(ExportedEvent {
        number: event.number,
        turn: event.turn,
        r#type: event.r#type,
        data: own(event.data),
        created_at: event.created_at,
    })
}
