//! The database: one [`Db`] over PostgreSQL or SQLite, chosen by the URL's scheme.
//!
//! It holds a writer and a reader pool. On SQLite the writer is one connection (there can be but
//! one writer, and a deferred transaction that turns into a write fails at once) and the readers
//! are read-only; on PostgreSQL the reader is the replica, where there is one. Queries are written
//! once, with `$1` placeholders, and [`on!`](crate::on) expands them for both engines, so that each
//! engine's types are checked. The price is losing `sqlx::query!`; it is paid by running every
//! store test on both.

mod connect;
mod migrate;
mod observed;
mod pool;
mod usage;

use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use sqlx::{PgConnection, Postgres, Sqlite, SqliteConnection, Transaction};
use tracing::Instrument;

pub use migrate::{Migration, State};
use observed::observed_commit;
pub use observed::{Observed, observed};
pub use pool::{Pool, PoolStatus};
pub use usage::{Usage, counted, inherit_usage, track_usage};

use crate::config::DatabaseConfig;
use crate::telemetry::panic;

/// One of a pair, by engine.
#[derive(Debug, Clone)]
pub enum Engine<S, P> {
    Sqlite(S),
    Postgres(P),
}

/// A transaction that [`Db::begin`] began. Dropped without [`Tx::commit`], it is rolled back.
#[derive(Debug)]
pub struct Tx {
    engine: Engine<Transaction<'static, Sqlite>, Transaction<'static, Postgres>>,
    limit: Duration,
}

/// Runs one query, written once, on whichever engine is behind a [`Pool`] or a [`Tx`]. Its time
/// and count go to the request's access log line, the statement itself to traces and metrics.
///
/// ```
/// use plinth::db::{Db, Pool};
///
/// async fn count(db: &Db) -> sqlx::Result<i64> {
///     plinth::on!(db.reader(), |conn| sqlx::query_scalar("SELECT COUNT(*) FROM plans")
///         .fetch_one(conn)
///         .await)
/// }
/// ```
#[macro_export]
macro_rules! on {
    ($target:expr, |$conn:ident| $query:expr) => {
        $crate::db::counted(async {
            match $target.connection().await? {
                $crate::db::Engine::Sqlite(mut held) => {
                    let $conn = $crate::db::observed(&mut held);
                    $query
                }
                $crate::db::Engine::Postgres(mut held) => {
                    let $conn = $crate::db::observed(&mut held);
                    $query
                }
            }
        })
        .await
    };
}

/// The database handle. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Db {
    writer: Pool,
    reader: Pool,
    probe: Pool,
    replica_probe: Option<Pool>,
    config: std::sync::Arc<DatabaseConfig>,
}

impl Db {
    /// Opens the database, and makes SQLite's file and folder where they are missing.
    ///
    /// # Errors
    /// One line that says what could not be reached or opened, and why.
    pub async fn connect(config: &DatabaseConfig) -> anyhow::Result<Self> {
        connect::connect(config).await
    }

    /// Where changes go.
    pub fn writer(&self) -> &Pool {
        &self.writer
    }

    /// Where reads go that must see every change: never a replica. SQLite's readers do, and leave
    /// its one writer free.
    pub fn primary(&self) -> &Pool {
        match self.writer.engine() {
            Engine::Sqlite(_) => &self.reader,
            Engine::Postgres(_) => &self.writer,
        }
    }

    /// Where reads go that may be a little behind: a replica, when there is one.
    pub fn reader(&self) -> &Pool {
        &self.reader
    }

    /// Begins a transaction on the writer (`BEGIN IMMEDIATE` on SQLite).
    ///
    /// It runs in a task of its own: a `begin` cancelled half way would leave its pooled
    /// connection inside a transaction nobody knows of, and fail the next query on it.
    ///
    /// # Errors
    /// As any query, [`sqlx::Error::PoolTimedOut`] among them.
    #[expect(clippy::disallowed_methods, reason = "this is the begin that is safe to cancel")]
    pub async fn begin(&self) -> sqlx::Result<Tx> {
        let limit = self.round_trip();
        let writer = self.writer.clone();
        let begin = async move {
            let begun = async {
                Ok(match writer.engine() {
                    Engine::Sqlite(pool) => {
                        Engine::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await?)
                    }
                    Engine::Postgres(pool) => Engine::Postgres(pool.begin().await?),
                })
            };
            Ok(Tx { engine: writer.waited_for(bounded(limit, begun)).await?, limit })
        };
        let begin = tokio::spawn(begin.in_current_span());
        counted(async { begin.await.map_err(|_| sqlx::Error::WorkerCrashed)? }).await
    }

    /// Asks the writer's server for a sign of life, on a connection kept for that, so that a busy
    /// pool is not taken for a dead database.
    ///
    /// # Errors
    /// Whatever stands in the way.
    pub async fn ping(self) -> sqlx::Result<()> {
        self.probe.ping().await
    }

    /// The same of the replica, where there is one.
    ///
    /// # Errors
    /// Whatever stands in the way.
    pub async fn ping_replica(self) -> sqlx::Result<()> {
        match &self.replica_probe {
            Some(probe) => probe.ping().await,
            None => Ok(()),
        }
    }

    pub fn has_replica(&self) -> bool {
        self.replica_probe.is_some()
    }

    /// Longest that a connection and one statement on it may take.
    fn round_trip(&self) -> Duration {
        self.config.acquire_timeout + self.config.statement_timeout
    }

    /// The engine's name.
    pub fn engine(&self) -> &'static str {
        match self.writer.engine() {
            Engine::Sqlite(_) => "sqlite",
            Engine::Postgres(_) => "postgres",
        }
    }

    /// How full each pool is. The reader is one of its own on SQLite, and where there is a replica.
    pub fn pools(&self) -> impl Iterator<Item = (&'static str, PoolStatus)> {
        let apart = self.reader.name() != self.writer.name();
        let pools = [Some(&self.writer), Some(&self.reader).filter(|_| apart)];
        pools.into_iter().flatten().map(|pool| (pool.name(), pool.status()))
    }

    /// Closes the pools, waiting no longer than `limit` for queries under way.
    pub async fn close(&self, limit: Duration) {
        let all = async {
            // The readers first: SQLite checkpoints its log when the last connection closes, and
            // only a writer can.
            self.reader.close().await;
            self.probe.close().await;
            if let Some(probe) = &self.replica_probe {
                probe.close().await;
            }
            self.writer.close().await;
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!("the database pools did not close in time");
        }
    }
}

impl Tx {
    /// The transaction's connection; there is nothing to wait for.
    ///
    /// # Errors
    /// None: it is fallible to be called as [`Pool::connection`] is.
    pub async fn connection(
        &mut self,
    ) -> sqlx::Result<Engine<&mut SqliteConnection, &mut PgConnection>> {
        Ok(match &mut self.engine {
            Engine::Sqlite(tx) => Engine::Sqlite(&mut **tx),
            Engine::Postgres(tx) => Engine::Postgres(&mut **tx),
        })
    }

    /// Makes the changes last.
    ///
    /// # Errors
    /// As [`Tx::commit_then`].
    pub async fn commit(self) -> sqlx::Result<()> {
        self.commit_then(async {}).await
    }

    /// Makes the changes last, then runs `after`: what must follow, such as forgetting cached
    /// copies. Once called it runs to its end, even if its caller is dropped meanwhile. `after`
    /// runs unless the database refused the commit: where the connection breaks, nobody knows.
    ///
    /// # Errors
    /// As any query; the changes are then undone, unless the connection broke during the commit.
    pub async fn commit_then(
        self,
        after: impl Future<Output = ()> + Send + 'static,
    ) -> sqlx::Result<()> {
        let task = async move {
            let commit = async {
                match self.engine {
                    Engine::Sqlite(tx) => observed_commit::<Sqlite>(tx.commit()).await,
                    Engine::Postgres(tx) => observed_commit::<Postgres>(tx.commit()).await,
                }
            };
            let committed = counted(bounded(self.limit, commit)).await;
            let refused = matches!(committed, Err(sqlx::Error::Database(_)));
            if !refused && let Err(panicked) = panic::catch(after).await {
                tracing::error!(%panicked, "what was to follow a commit did not");
            }
            committed
        };
        let task = tokio::spawn(inherit_usage(task).in_current_span());
        task.await.map_err(|_| sqlx::Error::WorkerCrashed)?
    }
}

/// Ends what a server that vanished would never answer; a task of its own has no other end.
async fn bounded<T>(
    limit: Duration,
    work: impl Future<Output = sqlx::Result<T>>,
) -> sqlx::Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// The time for a row's timestamps, to the microsecond, which is what PostgreSQL keeps: a row read
/// back equals the one written.
pub fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}

/// A pattern for `text` anywhere, for `LIKE … ESCAPE '\\'`; wildcards in it are meant literally. With
/// `LOWER` on both sides case is ignored: on SQLite that of ASCII alone.
pub fn containing(text: &str) -> String {
    format!("%{}%", text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_"))
}
