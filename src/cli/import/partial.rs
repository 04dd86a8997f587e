//! A task in the making: what may follow its line.

use super::records::Position;
use crate::domain::{ExportedEvent, ExportedTask, ExportedTurn};

/// A task whose turns and events are being read.
pub(super) struct PartialTask {
    pub(super) task: ExportedTask,
    pub(super) begins: Position,
    pub(super) turns: Vec<ExportedTurn>,
    pub(super) events: Vec<ExportedEvent>,
    /// Of the turns and events above.
    pub(super) bytes: usize,
    pub(super) turns_seen: i32,
    pub(super) events_seen: i64,
    last_event: i64,
    /// Whether the writer has a part of it.
    pub(super) is_large: bool,
}

impl PartialTask {
    pub(super) fn new(task: ExportedTask, begins: Position) -> Self {
        Self {
            task,
            begins,
            turns: Vec::new(),
            events: Vec::new(),
            bytes: 0,
            turns_seen: 0,
            events_seen: 0,
            last_event: 0,
            is_large: false,
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.turns_seen == self.task.turns && self.events_seen == self.task.events
    }

    pub(super) fn add_turn(&mut self, turn: ExportedTurn) -> Result<(), String> {
        if self.events_seen > 0 {
            return Err("turns come before events".to_owned());
        }
        if self.turns_seen >= self.task.turns {
            return Err(format!("the task has only {} turns", self.task.turns));
        }
        let expected = self.turns_seen + 1;
        if turn.number != expected {
            return Err(format!(
                "turns are numbered from 1 without gaps: {expected} is expected, not {}",
                turn.number
            ));
        }
        self.turns_seen = expected;
        self.turns.push(turn);
        Ok(())
    }

    pub(super) fn add_event(&mut self, event: ExportedEvent) -> Result<(), String> {
        if self.turns_seen < self.task.turns {
            return Err(format!(
                "events come after the turns, of which only {} of {} are there",
                self.turns_seen, self.task.turns
            ));
        }
        if self.events_seen >= self.task.events {
            return Err(format!("the task has only {} events", self.task.events));
        }
        if event.number <= self.last_event {
            return Err("events are numbered from 1 and in order".to_owned());
        }
        if self.task.last_event != 0 && event.number > self.task.last_event {
            return Err(format!("`last_event` of the task is {}", self.task.last_event));
        }
        if !(1..=self.task.turns).contains(&event.turn) {
            return Err(format!("the task has no turn {}", event.turn));
        }
        self.last_event = event.number;
        self.events_seen += 1;
        self.events.push(event);
        Ok(())
    }

    /// The task, with what follows from its turns and events.
    pub(super) fn into_task(self) -> ExportedTask {
        let mut task = self.task;
        task.last_event = task.last_event.max(self.last_event).max(i64::from(task.turns));
        task
    }
}
