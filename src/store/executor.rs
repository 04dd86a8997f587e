//! What statements run on: the pool for a single statement, a transaction for several.

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use sqlx::postgres::{PgConnection, PgCopyIn, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Either, Execute, Executor, Postgres, SqlStr};

use super::error::commit_unknown;
use super::pool::{Autocommit, Deadline, OrganizationPool, PooledConnection, Transaction};

/// A connection for one statement.
enum Lent<'c> {
    Owned(PooledConnection),
    Autocommit(PooledConnection),
    OfTransaction(&'c mut PooledConnection),
}

impl Lent<'_> {
    fn connection(&mut self) -> &mut PooledConnection {
        match self {
            Self::Owned(connection) | Self::Autocommit(connection) => connection,
            Self::OfTransaction(connection) => connection,
        }
    }

    /// Gives the connection back, unless its transaction goes on.
    fn finish<T>(self, result: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        match (self, result) {
            (Self::Owned(connection) | Self::Autocommit(connection), Ok(output)) => {
                connection.release();
                Ok(output)
            }
            (Self::Autocommit(_), Err(error)) => Err(commit_unknown(error)),
            (_, result) => result,
        }
    }
}

impl<'p> OrganizationPool<'p> {
    async fn lend(self) -> Result<Lent<'p>, sqlx::Error> {
        Ok(Lent::Owned(self.get().await?))
    }
}

impl<'p> Autocommit<'p> {
    async fn lend(self) -> Result<Lent<'p>, sqlx::Error> {
        Ok(Lent::Autocommit(self.0.get().await?))
    }
}

impl Transaction {
    #[expect(clippy::unused_async, reason = "the signature that the executors call")]
    async fn lend(&mut self) -> Result<Lent<'_>, sqlx::Error> {
        Ok(Lent::OfTransaction(&mut self.0))
    }
}

/// Rows on their way into a table, with a deadline for each use.
pub(super) struct CopyIn<'t> {
    copy: PgCopyIn<&'t mut PgConnection>,
    deadline: Deadline,
}

impl Transaction {
    /// Starts `COPY ... FROM STDIN`.
    pub(super) async fn copy_in(
        &mut self,
        statement: &'static str,
    ) -> Result<CopyIn<'_>, sqlx::Error> {
        let deadline = self.0.deadline();
        let started = self.0.within(|connection| Box::pin(connection.copy_in_raw(statement)));
        Ok(CopyIn { copy: started.await?, deadline })
    }
}

impl CopyIn<'_> {
    pub(super) async fn send(&mut self, rows: &[u8]) -> Result<(), sqlx::Error> {
        self.deadline.limit(self.copy.send(rows)).await?;
        Ok(())
    }

    pub(super) async fn finish(self) -> Result<(), sqlx::Error> {
        self.deadline.limit(self.copy.finish()).await?;
        Ok(())
    }
}

/// Every other method of [`Executor`] calls one of these.
macro_rules! executor {
    ($lifetime:lifetime, $executor:ty) => {
        impl<$lifetime> Executor<$lifetime> for $executor {
            type Database = Postgres;

            fn execute<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxFuture<'e, Result<PgQueryResult, sqlx::Error>>
            where
                $lifetime: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                Box::pin(async move {
                    let mut lent = self.lend().await?;
                    let used = lent.connection().within(|connection| connection.execute(query));
                    let result = used.await;
                    lent.finish(result)
                })
            }

            fn fetch_many<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
            where
                $lifetime: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                // All rows at once: a reader that stops early would keep the connection.
                let steps = async move {
                    let mut lent = self.lend().await?;
                    let result = lent
                        .connection()
                        .within(|connection| {
                            Box::pin(connection.fetch_many(query).try_collect::<Vec<_>>())
                        })
                        .await;
                    let steps = lent.finish(result)?;
                    Ok::<_, sqlx::Error>(stream::iter(steps.into_iter().map(Ok)))
                };
                stream::once(steps).try_flatten().boxed()
            }

            fn fetch_optional<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
            where
                $lifetime: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                Box::pin(async move {
                    let mut lent = self.lend().await?;
                    let used =
                        lent.connection().within(|connection| connection.fetch_optional(query));
                    let result = used.await;
                    lent.finish(result)
                })
            }

            fn prepare_with<'e>(
                self,
                sql: SqlStr,
                parameters: &'e [PgTypeInfo],
            ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
            where
                $lifetime: 'e,
            {
                Box::pin(async move {
                    let mut lent = self.lend().await?;
                    let used = lent
                        .connection()
                        .within(|connection| connection.prepare_with(sql, parameters));
                    let result = used.await;
                    lent.finish(result)
                })
            }

            fn describe<'e>(
                self,
                sql: SqlStr,
            ) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, sqlx::Error>>
            where
                $lifetime: 'e,
            {
                Box::pin(async move {
                    let mut lent = self.lend().await?;
                    let used = lent.connection().within(|connection| connection.describe(sql));
                    let result = used.await;
                    lent.finish(result)
                })
            }
        }
    };
}

executor!('p, OrganizationPool<'p>);
executor!('p, Autocommit<'p>);
executor!('t, &'t mut Transaction);
