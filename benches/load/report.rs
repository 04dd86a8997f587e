//! The report: tables of measurements, and the targets.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value, json};

use crate::statistics::median;

/// A cell of a table.
#[derive(Debug, Clone)]
pub(crate) enum Cell {
    Text(String),
    /// A number, and its significant decimals.
    Number(f64, usize),
    /// Not measured, or not applicable.
    None,
}

impl Cell {
    /// The median of the rounds, or `None` without rounds.
    pub(crate) fn median(numbers: &[f64], decimals: usize) -> Self {
        match numbers {
            [] => Self::None,
            _ => Self::Number(median(numbers.iter().copied()), decimals),
        }
    }

    pub(crate) fn of_count(count: impl TryInto<u32>) -> Self {
        count.try_into().map_or(Self::None, |count| Self::Number(f64::from(count), 0))
    }

    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number, _) if !number.is_finite() => "-".to_owned(),
            Self::Number(number, decimals) => format!("{number:.decimals$}"),
            Self::None => "-".to_owned(),
        }
    }

    fn value(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Number(number, _) => json!(number),
            Self::None => Value::Null,
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// A table with a title.
pub(crate) struct Section {
    name: String,
    columns: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Section {
    pub(crate) fn new(name: impl Into<String>, columns: &[&'static str]) -> Self {
        Self { name: name.into(), columns: columns.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn push_row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len(), "one cell a column: {}", self.name);
        self.rows.push(cells);
    }
}

/// A limit for a measured value.
struct Target {
    name: &'static str,
    what: &'static str,
    limit: Limit,
}

enum Limit {
    AtLeast(f64),
    AtMost(f64),
    /// No limit: the value explains the one before it.
    None,
}

const TARGETS: [Target; 15] = [
    Target {
        name: "page-rate",
        what: "page 1 with its total, requests/s against pgbench",
        limit: Limit::AtLeast(0.5),
    },
    Target {
        name: "page-cpu",
        what: "service's CPU a list request against PostgreSQL's",
        limit: Limit::AtMost(1.0),
    },
    Target {
        name: "size",
        what: "p50 of page 1, big data set against small",
        limit: Limit::AtMost(1.2),
    },
    Target {
        name: "depth",
        what: "p50 of the last or a random page against page 1",
        limit: Limit::AtMost(2.0),
    },
    Target {
        name: "status",
        what: "p50 with one status, common or rare, against page 1",
        limit: Limit::AtMost(1.5),
    },
    Target {
        name: "write-rate",
        what: "durable turns/s, 64 connections, against pgbench",
        limit: Limit::AtLeast(2.0),
    },
    Target {
        name: "write-rate-bare",
        what: "  the same, pgbench without triggers",
        limit: Limit::None,
    },
    Target {
        name: "write-alone",
        what: "p50 of one write alone against pgbench",
        limit: Limit::AtMost(1.2),
    },
    Target { name: "import", what: "imported records/s against COPY", limit: Limit::AtLeast(0.5) },
    Target { name: "import-bare", what: "  the same, COPY without triggers", limit: Limit::None },
    Target {
        name: "paging",
        what: "paging through all tasks, last page against first",
        limit: Limit::AtMost(2.0),
    },
    Target {
        name: "stalled",
        what: "memory of twenty streams and six lists that nobody reads, MiB",
        limit: Limit::AtMost(100.0),
    },
    Target {
        name: "neighbor-write",
        what: "slowest write of a quiet organization beside a busy one, ms",
        limit: Limit::AtMost(250.0),
    },
    Target {
        name: "neighbor-list",
        what: "slowest list of a quiet organization beside a busy one, ms",
        limit: Limit::AtMost(100.0),
    },
    Target {
        name: "memory",
        what: "peak memory of the service under load, MiB",
        limit: Limit::AtMost(64.0),
    },
];

/// Everything that was measured.
#[derive(Default)]
pub(crate) struct Report {
    /// What it was measured on and with.
    pub(crate) setting: Map<String, Value>,
    sections: Vec<Section>,
    measured: Vec<(&'static str, f64)>,
}

impl Report {
    pub(crate) fn add_section(&mut self, section: Section) {
        self.sections.push(section);
    }

    /// Sets the measured value of a target.
    pub(crate) fn set_measured(&mut self, target: &'static str, value: f64) {
        debug_assert!(TARGETS.iter().any(|known| known.name == target), "{target} is no target");
        self.measured.push((target, value));
    }

    /// The report as plain text.
    pub(crate) fn to_text(&self) -> String {
        let setting: Vec<String> =
            self.setting.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let mut text = format!("{}\n", setting.join(", "));
        for section in self.sections.iter().chain([&self.targets()]) {
            let mut table = Table::new();
            table.load_preset(presets::NOTHING);
            table.set_header(&section.columns);
            for row in &section.rows {
                table.add_row(row.iter().map(Cell::text));
            }
            // The first column has names, the others have numbers.
            for column in table.column_iter_mut().skip(1) {
                column.set_cell_alignment(CellAlignment::Right);
            }
            text.extend(["\n", &section.name, "\n\n", &table.trim_fmt(), "\n"]);
        }
        text
    }

    /// The report as JSON.
    pub(crate) fn to_json(&self) -> Value {
        let targets = self.targets();
        let sections = self.sections.iter().chain([&targets]).map(|section| {
            let rows: Vec<Value> = section
                .rows
                .iter()
                .map(|row| {
                    let cells = section.columns.iter().zip(row);
                    cells.map(|(column, cell)| ((*column).to_owned(), cell.value())).collect()
                })
                .collect();
            (section.name.clone(), Value::Array(rows))
        });
        json!({ "setting": self.setting, "sections": sections.collect::<Map<_, _>>() })
    }

    fn targets(&self) -> Section {
        let mut section = Section::new("Targets", &["what", "target", "measured", "met"]);
        for target in &TARGETS {
            let measured = self
                .measured
                .iter()
                .find(|(name, _)| *name == target.name)
                .map(|(_, value)| *value);
            let (limit, is_met) = match target.limit {
                Limit::AtLeast(limit) => {
                    (format!(">= {limit}"), measured.map(|value| value >= limit))
                }
                Limit::AtMost(limit) => {
                    (format!("<= {limit}"), measured.map(|value| value <= limit))
                }
                Limit::None => ("-".to_owned(), None),
            };
            section.push_row(vec![
                Cell::from(target.what),
                Cell::Text(limit),
                measured.map_or(Cell::None, |value| Cell::Number(value, 2)),
                Cell::from(match (is_met, measured) {
                    (Some(true), _) => "yes",
                    (Some(false), _) => "NO",
                    (None, Some(_)) => "-",
                    (None, None) => "not measured",
                }),
            ]);
        }
        section
    }
}
