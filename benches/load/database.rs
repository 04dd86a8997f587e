//! The service's PostgreSQL, past the service: what it was sent, what is in it, how large that is.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, Row};

use crate::http::Client;
use crate::pgbench::Script;
use crate::service::{Programs, Service};

/// Connects as the superuser, over the server's own socket.
pub(crate) async fn connect(service: &Service) -> anyhow::Result<PgConnection> {
    let options = PgConnectOptions::new_without_pgpass()
        .socket(&service.socket)
        .port(5432)
        .username("postgres")
        .database("task_history")
        .options([("statement_timeout", "0")]);
    options.connect().await.context("the service's PostgreSQL can't be reached")
}

/// Runs statements.
pub(crate) async fn execute(connection: &mut PgConnection, statements: &str) -> anyhow::Result<()> {
    let sql = AssertSqlSafe(statements.to_owned());
    sqlx::raw_sql(sql).execute(connection).await.with_context(|| statements.to_owned())?;
    Ok(())
}

/// Leaves the server with nothing to catch up on: what a night does to a server, so that no measurement pays for the
/// filling before it.
pub(crate) async fn settle(connection: &mut PgConnection) -> anyhow::Result<()> {
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

/// One text, by a statement that takes texts.
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

/// One number, by a statement that takes texts.
pub(crate) async fn number(
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

/// A table or an index, and its bytes.
pub(crate) struct Relation {
    pub(crate) name: String,
    pub(crate) bytes: i64,
}

/// What tasks, turns and counts take on the disk: each table, its long texts, each of its indexes.
pub(crate) async fn relations(connection: &mut PgConnection) -> anyhow::Result<Vec<Relation>> {
    let statement = "
        WITH kept AS (SELECT unnest(ARRAY['tasks', 'task_turns', 'task_counts'])::regclass AS id)
        SELECT id::text AS name, 0 AS place, pg_relation_size(id) AS bytes FROM kept
        UNION ALL
        SELECT id || ' (long texts)', 1, pg_total_relation_size(reltoastrelid)
        FROM kept JOIN pg_class ON oid = id WHERE reltoastrelid <> 0
        UNION ALL
        SELECT indexrelid::regclass::text, 2, pg_relation_size(indexrelid)
        FROM kept JOIN pg_index ON indrelid = id
        ORDER BY 2, 3 DESC, 1";
    let rows = sqlx::query(statement).fetch_all(connection).await?;
    rows.iter().map(|row| Ok(Relation { name: row.try_get("name")?, bytes: row.try_get("bytes")? })).collect()
}

/// Listens to what the service asks of the server.
pub(crate) struct Recorder {
    /// A second service on the same database: the setting that makes the server write statements down holds for new
    /// connections only, and those of the service that is measured shall not pay for it.
    service: Service,
    client: Client,
    log: PathBuf,
}

impl Recorder {
    pub(crate) async fn start(
        programs: &Programs,
        service: &Service,
        connection: &mut PgConnection,
    ) -> anyhow::Result<Self> {
        execute(connection, "ALTER DATABASE task_history SET log_min_duration_statement = 0").await?;
        let recording = service.start_beside(programs).await?;
        let client = Client::connect(recording.port).await?;
        Ok(Self { service: recording, client, log: service.directory.join("postgres.log") })
    }

    /// The statements behind a request, all but those that ask whose key it is, as scripts: with their parameters, and
    /// with their values written in.
    pub(crate) async fn record(&mut self, request: &[u8]) -> anyhow::Result<[Script; 2]> {
        // The first request opens connections; what that takes is no part of the second.
        self.client.send(request).await?;
        let before = fs::metadata(&self.log)?.len();
        self.client.send(request).await?;
        let statements = statements(&read_from(&self.log, before)?);
        let asked: Vec<Statement> =
            statements.into_iter().filter(|statement| !statement.text.contains("api_keys")).collect();
        ensure!(!asked.is_empty(), "the server's log has no statement of the request");
        Ok([script(&asked, false), script(&asked, true)])
    }

    pub(crate) async fn stop(self, connection: &mut PgConnection) -> anyhow::Result<()> {
        execute(connection, "ALTER DATABASE task_history RESET log_min_duration_statement").await?;
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

/// A statement as the server was sent it, and the values of its parameters; `None` is NULL.
struct Statement {
    text: String,
    values: Vec<Option<String>>,
}

/// The statements that a server's log says were executed.
fn statements(log: &str) -> Vec<Statement> {
    let mut found: Vec<Statement> = Vec::new();
    let mut is_executed = false;
    // Lines of one entry after its first begin with a tab.
    for entry in log.replace("\n\t", "\u{1}").lines() {
        let entry = entry.replace('\u{1}', "\n");
        if let Some((_, said)) = entry.split_once("LOG:  duration: ") {
            let executed = said.split_once(" ms  execute ").and_then(|(_, rest)| rest.split_once(": "));
            let sent = executed.or_else(|| said.split_once(" ms  statement: "));
            is_executed = sent.is_some();
            found
                .extend(sent.map(|(_, text)| Statement { text: text.trim().to_owned(), values: Vec::new() }));
        } else if let Some((_, values)) = entry.split_once("DETAIL:  parameters: ")
            && is_executed
            && let Some(last) = found.last_mut()
        {
            last.values = parse_values(values);
        }
    }
    found
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
        // Two quotes in a row are one of the value's.
        while end < bytes.len() && (bytes[end] != b'\'' || bytes.get(end + 1) == Some(&b'\'')) {
            end += if bytes[end] == b'\'' { 2 } else { 1 };
        }
        values.push(Some(quoted[..end].replace("\'\'", "'")));
        rest = quoted.get(end + 1..).unwrap_or_default();
    }
    values
}

/// Statements for `pgbench`, with parameters, or with values in their places.
fn script(statements: &[Statement], with_values: bool) -> Script {
    let mut script = Script::default();
    for (number, Statement { text, values }) in statements.iter().enumerate() {
        // What is between quotes has no parameters.
        for (at, part) in text.split('\'').enumerate() {
            if at > 0 {
                script.text.push('\'');
            }
            if at % 2 == 1 {
                script.text.push_str(part);
                continue;
            }
            push_part(&mut script.text, part, |place| {
                let value = values.get(place.checked_sub(1)?)?;
                Some(match value {
                    None => "NULL".to_owned(),
                    // No variable of pgbench's can be NULL or empty.
                    Some(value) if with_values || value.is_empty() => literal(value),
                    Some(_) => format!(":s{number}p{place}"),
                })
            });
        }
        script.text.push_str(";\n");
        if !with_values {
            let named = values.iter().enumerate().filter_map(|(at, value)| {
                let value = value.clone().filter(|value| !value.is_empty())?;
                Some((format!("s{number}p{}", at + 1), value))
            });
            script.variables.extend(named);
        }
    }
    script
}

/// Writes a part of a statement with something else in the places of its parameters.
fn push_part(out: &mut String, part: &str, instead: impl Fn(usize) -> Option<String>) {
    let mut pieces = part.split('$');
    out.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        let digits = piece.bytes().take_while(u8::is_ascii_digit).count();
        let (place, rest) = piece.split_at(digits);
        match place.parse().ok().and_then(&instead) {
            Some(text) => out.push_str(&text),
            None => out.extend(["$", place]),
        }
        out.push_str(rest);
    }
}

/// A value as a literal. A colon would begin a variable of `pgbench`'s.
fn literal(value: &str) -> String {
    let doubled = value.replace('\'', "''");
    if doubled.contains([':', '\\']) {
        format!("E'{}'", doubled.replace('\\', "\\\\").replace(':', "\\x3a"))
    } else {
        format!("'{doubled}'")
    }
}
