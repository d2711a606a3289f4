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
    returned: u64,
    affected: u64,
    outcome: &'static str,
    span: Span,
}

impl Statement {
    fn begin<'q, DB: Database>(mut query: impl Execute<'q, DB>) -> (Query<DB>, Self) {
        let persistent = query.persistent();
        let arguments = Some(query.take_arguments());
        let sql = query.sql();
        let (operation, collection) = summary(sql.as_str());
        let statement = Self::new::<DB>(operation, collection.to_owned());
        (Query { sql, arguments, persistent }, statement)
    }

    fn new<DB: Database>(operation: &'static str, collection: String) -> Self {
        let system = if DB::NAME == "SQLite" { "sqlite" } else { "postgresql" };
        let span = child_span!(
            "sql",
            otel.name = format!("{operation} {collection}").trim_end(),
            otel.kind = "client",
            db.system.name = system,
            db.operation.name = operation,
            db.collection.name = collection,
            db.response.returned_rows = Empty,
            db.affected_rows = Empty,
            error.type = Empty,
            otel.status_code = Empty,
        );
        let (start, outcome) = (Instant::now(), "cancelled");
        let (returned, affected) = (0, 0);
        Self { start, system, operation, collection, returned, affected, outcome, span }
    }

    fn saw<R: Affected, T>(&mut self, step: &sqlx::Result<Either<R, T>>) {
        match step {
            Ok(Either::Right(_)) => self.returned += 1,
            Ok(Either::Left(result)) => {
                self.outcome = "ok";
                // Of a SELECT, SQLite tells what the statement before it changed.
                if self.operation != "SELECT" {
                    self.affected += result.rows();
                }
            }
            Err(_) => self.outcome = "error",
        }
    }

    fn saw_one<T>(&mut self, row: &sqlx::Result<Option<T>>) {
        match row {
            Ok(row) => {
                self.outcome = "ok";
                self.returned = u64::from(row.is_some());
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
        self.span.record("db.response.returned_rows", self.returned);
        self.span.record("db.affected_rows", self.affected);
        if self.outcome != "ok" {
            self.span.record("error.type", self.outcome);
            self.span.record("otel.status_code", "ERROR");
        }
    }
}

/// Runs the end of a transaction, where a database waits for its disk.
pub(super) async fn observed_commit<DB: Database>(
    commit: impl Future<Output = sqlx::Result<()>>,
) -> sqlx::Result<()> {
    let mut statement = Statement::new::<DB>("COMMIT", String::new());
    let committed = commit.await;
    statement.outcome = if committed.is_ok() { "ok" } else { "error" };
    committed
}

/// What a statement does, and the first table it names; no table where that is not plain to see.
fn summary(sql: &str) -> (&'static str, &str) {
    const OPERATIONS: [&str; 5] = ["SELECT", "INSERT", "UPDATE", "DELETE", "WITH"];
    const BEFORE_TABLE: [&str; 3] = ["FROM", "INTO", "UPDATE"];
    let is = |word: &str, known: &&str| word.eq_ignore_ascii_case(known);
    let mut words = sql.split_whitespace();
    let first = words.clone().next().unwrap_or_default();
    let operation = OPERATIONS.into_iter().find(|known| is(first, known)).unwrap_or("OTHER");
    let before = words.find(|word| BEFORE_TABLE.iter().any(|known| is(word, known)));
    let table = before.and_then(|_| words.next()).unwrap_or_default();
    (operation, name_in(table, before.is_some_and(|word| is(word, &"INTO"))))
}

/// The name that a word begins with. Before a bracket it is a function's, unless columns follow it.
fn name_in(word: &str, before_columns: bool) -> &str {
    let word = word.trim_start_matches('"');
    let end = word.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'));
    let (name, rest) = word.split_at(end.unwrap_or(word.len()));
    if rest.starts_with('(') && !before_columns { "" } else { name }
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
            ("INSERT INTO plans(id) VALUES ($1)", ("INSERT", "plans")),
            ("UPDATE plans SET name = 'FROM x'", ("UPDATE", "plans")),
            ("DELETE FROM public.api_keys", ("DELETE", "public.api_keys")),
            ("WITH old AS (SELECT 1) DELETE FROM plans", ("WITH", "plans")),
            ("SELECT * FROM (SELECT 1) AS one", ("SELECT", "")),
            ("SELECT * FROM generate_series(1,7)", ("SELECT", "")),
            ("SELECT * FROM 'a secret'", ("SELECT", "")),
            ("SELECT 1", ("SELECT", "")),
            ("PRAGMA optimize", ("OTHER", "")),
            ("", ("OTHER", "")),
        ] {
            assert_eq!(summary(sql), expected, "{sql}");
        }
    }
}
