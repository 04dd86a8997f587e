//! Logs: where they go and in which format. What a request logs is in `api/middleware.rs`.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error. Without a format: text on a terminal, otherwise JSON.
pub fn init(format: Option<LogFormat>, filter: &str) -> anyhow::Result<()> {
    let quiet = format!("sqlx::postgres::notice=warn,{filter}");
    let filter = EnvFilter::builder().parse(&quiet).with_context(|| {
        format!("--log takes a level or a list of targets with levels, not `{filter}`")
    })?;
    let is_terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format.unwrap_or(if is_terminal { LogFormat::Text } else { LogFormat::Json }) {
        LogFormat::Text => builder.with_target(false).with_ansi(is_terminal).init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).init(),
    }
    Ok(())
}
