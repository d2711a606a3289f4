//! What is seen of each SQL statement: a span, its time in metrics, the number of its rows. Never
//! its values.

use std::ops::DerefMut;
use std::time::Instant;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use metrics::histogram;
use sqlx::error::BoxDynError;
use sqlx::postgres::PgQueryResult;
use sqlx::sqlite::SqliteQueryResult;
use sqlx::{Database, Describe, Either, Execute, Executor, SqlStr};
use tracing::Span;
use tracing::field::Empty;

use crate::child_span;

/// A connection whose statements are seen. [`on!`](crate::on) makes it.
#[derive(Debug)]
pub struct Observed<E>(E);

/// Sees the statements on a connection, however it is held.
pub fn observed<C>(held: &mut impl DerefMut<Target = C>) -> Observed<&mut C> {
    Observed(&mut **held)
}

impl<'c, E> Executor<'c> for Observed<E>
where
    E: Executor<'c>,
    <E::Database as Database>::QueryResult: Affected,
{
    type Database = E::Database;

    fn fetch_many<'e, 'q: 'e, Q>(
        self,
        query: Q,
    ) -> BoxStream<
        'e,
        sqlx::Result<
            Either<<Self::Database as Database>::QueryResult, <Self::Database as Database>::Row>,
        >,
    >
    where
        'c: 'e,
        Q: 'q + Execute<'q, Self::Database>,
    {
        let (query, mut statement) = Statement::begin(query);
        self.0.fetch_many(query).inspect(move |step| statement.saw(step)).boxed()
    }

    fn fetch_optional<'e, 'q: 'e, Q>(
        self,
        query: Q,
    ) -> BoxFuture<'e, sqlx::Result<Option<<Self::Database as Database>::Row>>>
    where
        'c: 'e,
        Q: 'q + Execute<'q, Self::Database>,
    {
        let (query, mut statement) = Statement::begin(query);
        self.0.fetch_optional(query).inspect(move |row| statement.saw_one(row)).boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [<Self::Database as Database>::TypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<<Self::Database as Database>::Statement>>
    where
        'c: 'e,
    {
        self.0.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<Self::Database>>>
    where
        'c: 'e,
    {
        self.0.describe(sql)
    }
}

/// A query whose text was looked at, which takes it apart.
struct Query<DB: Database> {
    sql: SqlStr,
    arguments: Option<Result<Option<DB::Arguments>, BoxDynError>>,
    persistent: bool,
}

impl<DB: Database> Execute<'_, DB> for Query<DB> {
    fn sql(self) -> SqlStr {
        self.sql
    }

    fn statement(&self) -> Option<&DB::Statement> {
        None
    }

    fn take_arguments(&mut self) -> Result<Option<DB::Arguments>, BoxDynError> {
        self.arguments.take().unwrap_or(Ok(None))
    }

    fn persistent(&self) -> bool {
        self.persistent
    }
}

/// Rows that a statement changed.
pub trait Affected {
    fn rows(&self) -> u64;
}

impl Affected for SqliteQueryResult {
    fn rows(&self) -> u64 {
        self.rows_affected()
    }
}

impl Affected for PgQueryResult {
    fn rows(&self) -> u64 {
        self.rows_affected()
    }
}

/// A statement under way. Dropping it writes what was seen.
struct Statement {
    start: Instant,
    system: &'static str,
    operation: &'static str,
    collection: String,
    rows: u64,
    outcome: &'static str,
    span: Span,
}

impl Statement {
    fn begin<'q, DB: Database>(mut query: impl Execute<'q, DB>) -> (Query<DB>, Self) {
        let persistent = query.persistent();
        let arguments = Some(query.take_arguments());
        let sql = query.sql();
        let (operation, collection) = summary(sql.as_str());
        let system = if DB::NAME == "SQLite" { "sqlite" } else { "postgresql" };
        let span = child_span!(
            "sql",
            otel.name = format_args!("{operation} {collection}"),
            otel.kind = "client",
            db.system.name = system,
            db.operation.name = operation,
            db.collection.name = collection,
            db.response.returned_rows = Empty,
            error.type = Empty,
            otel.status_code = Empty,
        );
        let collection = collection.to_owned();
        let (start, outcome) = (Instant::now(), "cancelled");
        let statement = Self { start, system, operation, collection, rows: 0, outcome, span };
        (Query { sql, arguments, persistent }, statement)
    }

    fn saw<R: Affected, T>(&mut self, step: &sqlx::Result<Either<R, T>>) {
        match step {
            Ok(Either::Right(_)) => self.rows += 1,
            Ok(Either::Left(result)) => {
                self.outcome = "ok";
                if self.operation != "SELECT" {
                    self.rows = self.rows.max(result.rows());
                }
            }
            Err(_) => self.outcome = "error",
        }
    }

    fn saw_one<T>(&mut self, row: &sqlx::Result<Option<T>>) {
        match row {
            Ok(row) => {
                self.outcome = "ok";
                self.rows = u64::from(row.is_some());
            }
            Err(_) => self.outcome = "error",
        }
    }
}

impl Drop for Statement {
    fn drop(&mut self) {
        histogram!(
            "db_client_operation_duration_seconds",
            "db_system_name" => self.system,
            "db_operation_name" => self.operation,
            "db_collection_name" => std::mem::take(&mut self.collection),
            "outcome" => self.outcome
        )
        .record(self.start.elapsed());
        self.span.record("db.response.returned_rows", self.rows);
        if self.outcome != "ok" {
            self.span.record("error.type", self.outcome);
            self.span.record("otel.status_code", "ERROR");
        }
    }
}

/// What a statement does, and the first table it names.
fn summary(sql: &str) -> (&'static str, &str) {
    const OPERATIONS: [&str; 5] = ["SELECT", "INSERT", "UPDATE", "DELETE", "WITH"];
    const BEFORE_TABLE: [&str; 3] = ["FROM", "INTO", "UPDATE"];
    let is = |word: &str, known: &&str| word.eq_ignore_ascii_case(known);
    let mut words = sql.split_whitespace();
    let first = words.clone().next().unwrap_or_default();
    let operation = OPERATIONS.into_iter().find(|known| is(first, known)).unwrap_or("OTHER");
    let table = words
        .find(|word| BEFORE_TABLE.iter().any(|known| is(word, known)))
        .and_then(|_| words.next())
        .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric() && c != '_'));
    (operation, table.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_known_by_its_operation_and_table() {
        for (sql, expected) in [
            ("SELECT id FROM plans WHERE id = $1", ("SELECT", "plans")),
            ("select count(*)\n  from \"plans\";", ("SELECT", "plans")),
            ("INSERT INTO plans (id) VALUES ($1)", ("INSERT", "plans")),
            ("UPDATE plans SET name = 'FROM x'", ("UPDATE", "plans")),
            ("DELETE FROM api_keys", ("DELETE", "api_keys")),
            ("WITH old AS (SELECT 1) DELETE FROM plans", ("WITH", "plans")),
            ("SELECT 1", ("SELECT", "")),
            ("PRAGMA optimize", ("OTHER", "")),
            ("", ("OTHER", "")),
        ] {
            assert_eq!(summary(sql), expected, "{sql}");
        }
    }
}
