//! What statements are made of: SQL text that takes only literals, array parameters, JSON columns.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::QueryScalar;
use sqlx::{Encode, Executor, Postgres, QueryBuilder, Type};

use super::StoreError;
use super::pool::Transaction;

/// The text of a statement that is built at run time, with its bound values.
///
/// The text takes only literals, so no value of a request can become SQL.
pub(super) struct Sql(QueryBuilder<Postgres>);

impl Sql {
    pub(super) fn new(text: &'static str) -> Self {
        Self(QueryBuilder::new(text))
    }

    /// Appends a part of the text.
    pub(super) fn push(&mut self, text: &'static str) -> &mut Self {
        self.0.push(text);
        self
    }

    /// Appends a parameter with its value.
    pub(super) fn push_bind<'t, T>(&mut self, value: T) -> &mut Self
    where
        T: 't + Encode<'t, Postgres> + Type<Postgres>,
    {
        self.0.push_bind(value);
        self
    }

    /// Runs the statement and returns its rows.
    pub(super) async fn fetch_all<'c>(
        mut self,
        executor: impl Executor<'c, Database = Postgres>,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        self.0.build().fetch_all(executor).await
    }

    /// Runs the statement and returns the only column of its only row.
    pub(super) async fn fetch_scalar<'c, T>(
        mut self,
        executor: impl Executor<'c, Database = Postgres>,
    ) -> Result<T, sqlx::Error>
    where
        (T,): for<'r> sqlx::FromRow<'r, PgRow>,
        T: Send + Unpin,
    {
        let query: QueryScalar<'_, Postgres, T, PgArguments> = self.0.build_query_scalar();
        query.fetch_one(executor).await
    }
}

/// Replaces the time limits of a transaction: of each statement, and of the caller between them.
pub(super) async fn set_time_limits(
    transaction: &mut Transaction,
    statement: Duration,
    idle: Duration,
) -> Result<(), sqlx::Error> {
    let mut sql = Sql::new("SELECT set_config('statement_timeout', ");
    sql.push_bind(statement.as_millis().to_string());
    sql.push(", true), set_config('idle_in_transaction_session_timeout', ");
    sql.push_bind(idle.as_millis().to_string()).push(", true)");
    sql.fetch_all(&mut *transaction).await?;
    transaction.set_statement_timeout(statement);
    Ok(())
}

/// The value of an array parameter: one element for each row.
pub(super) fn column<'a, R, T>(rows: &'a [R], value: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

/// JSON as text, which the statements cast. sqlx would bind it as jsonb, which sorts keys.
pub(super) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings, numbers and booleans serialize as JSON")
}

/// Parses a JSON column. `row` names the row if the JSON is not what the service writes.
pub(super) fn parse_json<T: DeserializeOwned>(
    table: &'static str,
    text: &str,
    row: impl Fn() -> String,
) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|source| StoreError::corrupt(table, row(), source))
}
