//! Which parameters and fields a request's readers ask for, from the events that they emit.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tracing_subscriber::layer::{Context, Layer};

/// Collects the names of what is read, as `query/page` or `body/input/text`.
#[derive(Clone, Default)]
pub struct ReadFields(pub Arc<Mutex<BTreeSet<String>>>);

#[derive(Default)]
struct FieldVisitor {
    parent: Option<String>,
    name: String,
}

impl tracing::field::Visit for FieldVisitor {
    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        match field.name() {
            "parameter" => (self.parent, self.name) = (Some("query".into()), value.to_owned()),
            "field" => value.clone_into(&mut self.name),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn Debug) {
        if field.name() == "loc" {
            let loc: Value = serde_json::from_str(&format!("{value:?}")).expect("a loc");
            self.parent = Some(joined(loc.as_array().expect("segments")));
        }
    }
}

impl<S: tracing::Subscriber> Layer<S> for ReadFields {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "task_history::api::fields" {
            let mut visitor = FieldVisitor::default();
            event.record(&mut visitor);
            let name = format!("{}/{}", visitor.parent.expect("a place"), visitor.name);
            self.0.lock().expect("no panic").insert(name);
        }
    }
}

pub fn joined(loc: &[Value]) -> String {
    let segments =
        loc.iter().map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned));
    segments.collect::<Vec<_>>().join("/")
}
