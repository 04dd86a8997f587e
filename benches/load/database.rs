//! Direct access to the service's PostgreSQL: statements, their log, and the sizes of relations.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, Row};

use crate::http::Client;
use crate::pgbench::Script;
use crate::service::{Programs, RunningService};

/// The columns of `tasks`, in the order in which the baselines write them.
pub(crate) const TASK_COLUMNS: &str = "organization_id, id, agent_id, user_id, parent_task_id, \
                                       triggering_agent_id, status, internal_status, source, \
                                       title, result, turns, created_at, updated_at";

/// Connects as the superuser, over the server's Unix socket.
pub(crate) async fn connect(service: &RunningService) -> anyhow::Result<PgConnection> {
    let options = PgConnectOptions::new_without_pgpass()
        .socket(&service.socket)
        .port(5432)
        .username("postgres")
        .database("task_history")
        .options([("statement_timeout", "0")]);
    options.connect().await.context("cannot connect to the service's PostgreSQL")
}

/// Executes one or more statements without parameters.
pub(crate) async fn execute(connection: &mut PgConnection, statements: &str) -> anyhow::Result<()> {
    let sql = AssertSqlSafe(statements.to_owned());
    sqlx::raw_sql(sql).execute(connection).await.with_context(|| statements.to_owned())?;
    Ok(())
}

/// Completes the background work of the server, as an idle night would. So no measurement includes
/// the cost of the writes before it.
pub(crate) async fn vacuum_and_checkpoint(connection: &mut PgConnection) -> anyhow::Result<()> {
    for statement in [
        "VACUUM (ANALYZE) tasks",
        "VACUUM (ANALYZE) task_turns",
        "VACUUM (ANALYZE) task_counts",
        "CHECKPOINT",
    ] {
        execute(connection, statement).await?;
    }
    Ok(())
}

/// The text that a statement with text parameters returns, if it returns a row.
pub(crate) async fn text(
    connection: &mut PgConnection,
    statement: &'static str,
    values: &[&str],
) -> anyhow::Result<Option<String>> {
    let mut query = sqlx::query(statement);
    for value in values {
        query = query.bind(*value);
    }
    let row = query.fetch_optional(connection).await.context(statement)?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}

/// The integer that a statement with text parameters returns.
pub(crate) async fn integer(
    connection: &mut PgConnection,
    statement: &'static str,
    values: &[&str],
) -> anyhow::Result<i64> {
    let mut query = sqlx::query(statement);
    for value in values {
        query = query.bind(*value);
    }
    Ok(query.fetch_one(connection).await.context(statement)?.try_get(0)?)
}

/// A table or an index, and its size.
pub(crate) struct Relation {
    pub(crate) name: String,
    pub(crate) bytes: i64,
}

/// The sizes of the tables of tasks, turns and counts, of their TOAST tables and of their indexes.
pub(crate) async fn relations(connection: &mut PgConnection) -> anyhow::Result<Vec<Relation>> {
    let statement = "
        WITH table_ids AS (
            SELECT unnest(ARRAY['tasks', 'task_turns', 'task_counts'])::regclass AS id
        )
        SELECT id::text AS name, 0 AS section, pg_relation_size(id) AS bytes FROM table_ids
        UNION ALL
        SELECT id || ' (TOAST)', 1, pg_total_relation_size(reltoastrelid)
        FROM table_ids JOIN pg_class ON oid = id WHERE reltoastrelid <> 0
        UNION ALL
        SELECT indexrelid::regclass::text, 2, pg_relation_size(indexrelid)
        FROM table_ids JOIN pg_index ON indrelid = id
        ORDER BY 2, 3 DESC, 1";
    let rows = sqlx::query(statement).fetch_all(connection).await?;
    rows.iter()
        .map(|row| Ok(Relation { name: row.try_get("name")?, bytes: row.try_get("bytes")? }))
        .collect()
}

/// How long the service may take to write what PostgreSQL says into its log.
const LOG_DELAY: Duration = Duration::from_millis(100);

/// Records the statements that the service sends for a request, from the server's log.
pub(crate) struct StatementRecorder {
    /// A second service on the same database. The setting that makes the server log statements
    /// applies to new connections only, so the connections of the measured service do not pay for
    /// it.
    service: RunningService,
    client: Client,
    log: PathBuf,
}

impl StatementRecorder {
    pub(crate) async fn start(
        programs: &Programs,
        service: &RunningService,
        connection: &mut PgConnection,
    ) -> anyhow::Result<Self> {
        let statement = "ALTER DATABASE task_history SET log_min_duration_statement = 0";
        execute(connection, statement).await?;
        let second = service.start_second(programs).await?;
        let client = Client::connect(second.port).await?;
        Ok(Self { service: second, client, log: service.directory.join("postgres.log") })
    }

    /// The statements of a request without those that authenticate it, as two scripts: one with
    /// parameters, one with literals.
    pub(crate) async fn record(&mut self, request: &[u8]) -> anyhow::Result<[Script; 2]> {
        // The first request opens connections, so the log of the second has its statements only.
        self.client.send(request).await?;
        let before = self.written_log().await?;
        self.client.send(request).await?;
        self.written_log().await?;
        let mut statements = parse_log(&read_from(&self.log, before)?);
        // Neither authentication nor the heartbeat belongs to the request.
        let is_other = |text: &str| ["api_keys", "transaction_read_only"].map(|t| text.contains(t));
        statements.retain(|statement| !is_other(&statement.text).contains(&true));
        ensure!(!statements.is_empty(), "the server's log has no statement of the request");
        Ok([script(&statements, false), script(&statements, true)])
    }

    /// The length of the log once the service has written what PostgreSQL has said.
    async fn written_log(&self) -> anyhow::Result<u64> {
        let mut length = fs::metadata(&self.log)?.len();
        loop {
            tokio::time::sleep(LOG_DELAY).await;
            let now = fs::metadata(&self.log)?.len();
            if now == length {
                return Ok(length);
            }
            length = now;
        }
    }

    pub(crate) async fn stop(self, connection: &mut PgConnection) -> anyhow::Result<()> {
        let statement = "ALTER DATABASE task_history RESET log_min_duration_statement";
        execute(connection, statement).await?;
        drop(self.client);
        self.service.stop().await
    }
}

fn read_from(path: &Path, start: u64) -> anyhow::Result<String> {
    let mut file = fs::File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A statement as the server received it, and the values of its parameters; `None` is NULL.
struct Statement {
    text: String,
    values: Vec<Option<String>>,
}

/// The executed statements in a server's log.
fn parse_log(log: &str) -> Vec<Statement> {
    let mut statements: Vec<Statement> = Vec::new();
    let mut is_executed = false;
    // The lines of an entry after its first line begin with a tab.
    for entry in log.replace("\n\t", "\u{1}").lines() {
        let entry = entry.replace('\u{1}', "\n");
        if let Some((_, message)) = entry.split_once("LOG:  duration: ") {
            let prepared =
                message.split_once(" ms  execute ").and_then(|(_, rest)| rest.split_once(": "));
            let executed = prepared.or_else(|| message.split_once(" ms  statement: "));
            is_executed = executed.is_some();
            if let Some((_, text)) = executed {
                statements.push(Statement { text: text.trim().to_owned(), values: Vec::new() });
            }
        } else if let Some((_, values)) = entry.split_once("DETAIL:  parameters: ")
            && is_executed
            && let Some(last) = statements.last_mut()
        {
            last.values = parse_values(values);
        }
    }
    statements
}

/// The values in `$1 = 'it''s', $2 = NULL`.
fn parse_values(text: &str) -> Vec<Option<String>> {
    let mut values = Vec::new();
    let mut rest = text;
    while let Some((_, value)) = rest.split_once(" = ") {
        let Some(quoted) = value.strip_prefix('\'') else {
            values.push(None);
            rest = value;
            continue;
        };
        let bytes = quoted.as_bytes();
        let mut end = 0;
        // A doubled quote is part of the value.
        while end < bytes.len() && (bytes[end] != b'\'' || bytes.get(end + 1) == Some(&b'\'')) {
            end += if bytes[end] == b'\'' { 2 } else { 1 };
        }
        values.push(Some(quoted[..end].replace("\'\'", "'")));
        rest = quoted.get(end + 1..).unwrap_or_default();
    }
    values
}

/// A script for `pgbench`: statements with variables for their parameters, or with literals.
fn script(statements: &[Statement], with_literals: bool) -> Script {
    let mut script = Script::default();
    for (number, Statement { text, values }) in statements.iter().enumerate() {
        // String literals contain no parameters.
        for (index, part) in text.split('\'').enumerate() {
            if index > 0 {
                script.text.push('\'');
            }
            if index % 2 == 1 {
                script.text.push_str(part);
                continue;
            }
            push_replaced(&mut script.text, part, |parameter| {
                let value = values.get(parameter.checked_sub(1)?)?;
                Some(match value {
                    None => "NULL".to_owned(),
                    // A variable of pgbench cannot be NULL or empty.
                    Some(value) if with_literals || value.is_empty() => literal(value),
                    Some(_) => format!(":s{number}p{parameter}"),
                })
            });
        }
        script.text.push_str(";\n");
        if !with_literals {
            let variables = values.iter().enumerate().filter_map(|(index, value)| {
                let value = value.clone().filter(|value| !value.is_empty())?;
                Some((format!("s{number}p{}", index + 1), value))
            });
            script.variables.extend(variables);
        }
    }
    script
}

/// Appends a part of a statement with its parameters replaced; `replacement` gets their numbers.
fn push_replaced(out: &mut String, part: &str, replacement: impl Fn(usize) -> Option<String>) {
    let mut pieces = part.split('$');
    out.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        let digits = piece.bytes().take_while(u8::is_ascii_digit).count();
        let (parameter, rest) = piece.split_at(digits);
        match parameter.parse().ok().and_then(&replacement) {
            Some(text) => out.push_str(&text),
            None => out.extend(["$", parameter]),
        }
        out.push_str(rest);
    }
}

/// A value as a literal. Colons are escaped because a colon begins a variable of `pgbench`.
fn literal(value: &str) -> String {
    let doubled = value.replace('\'', "''");
    if doubled.contains([':', '\\']) {
        format!("E'{}'", doubled.replace('\\', "\\\\").replace(':', "\\x3a"))
    } else {
        format!("'{doubled}'")
    }
}
