//! What a record may contain: everything that the service can read back, and nothing else.

use chrono::{DateTime, Datelike, Utc};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::error::{RecordError, from_part, offset_in};
use super::json::Json;
use super::mirror::{DetailsCheck, InputCheck, OptionsCheck};
use super::{ExportedEvent, ExportedTurn, MAX_EVENT_NUMBER};
use crate::domain::{EventKind, TurnState};

/// A time that clients of the contract can read.
pub(super) fn time<'de, D: Deserializer<'de>>(from: D) -> Result<DateTime<Utc>, D::Error> {
    let time = DateTime::<Utc>::deserialize(from)?;
    if is_readable(time) { Ok(time) } else { Err(D::Error::custom(OTHER_YEAR)) }
}

/// Null, or a time that clients of the contract can read.
pub(super) fn optional_time<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<DateTime<Utc>>, D::Error> {
    let time = Option::<DateTime<Utc>>::deserialize(from)?;
    if time.is_none_or(is_readable) { Ok(time) } else { Err(D::Error::custom(OTHER_YEAR)) }
}

const OTHER_YEAR: &str = "a time must be in the years 1 to 9999, in UTC";

fn is_readable(time: DateTime<Utc>) -> bool {
    (1..=9999).contains(&time.year())
}

/// Checks a turn.
pub(super) fn check_turn(text: &str, turn: &ExportedTurn<&RawValue>) -> Result<(), RecordError> {
    from_part::<InputCheck>(text, turn.input)?;
    turn.request.map(|raw| from_part::<OptionsCheck>(text, raw)).transpose()?;
    turn.reported.map(|raw| from_part::<DetailsCheck>(text, raw)).transpose()?;
    Ok(())
}

/// Checks an event.
pub(super) fn check_event(text: &str, event: &ExportedEvent<&RawValue>) -> Result<(), RecordError> {
    let fail = |reason: String| Err(RecordError::new(offset_in(text, event.data.get()), reason));
    if !(1..=MAX_EVENT_NUMBER).contains(&event.number) {
        return fail(format!("events are numbered from 1 to {MAX_EVENT_NUMBER}"));
    }
    from_part::<Json>(text, event.data)?;
    let kind = event.r#type.as_str();
    if EventKind::is_state_type(kind) && kind != EventKind::CREATED {
        let state: TurnState = from_part(text, event.data)?;
        let times = [state.started_at, state.paused_at, state.finished_at];
        if !times.into_iter().flatten().all(is_readable) {
            return fail(OTHER_YEAR.to_owned());
        }
        if EventKind::Reported(state).as_str() != kind {
            return fail(format!("the status does not belong to an event of type `{kind}`"));
        }
    }
    Ok(())
}

/// An error if a text of the record contains NUL.
pub(super) fn find_nul(text: &str) -> Result<(), RecordError> {
    let checked = serde_json::from_str::<Json>(text);
    checked.map(|_| ()).map_err(|error| RecordError::of_json(text, text, &error))
}
