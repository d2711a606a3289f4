//! A pool of connections, and what waiting for one of them takes.

use std::time::Instant;

use metrics::{counter, gauge, histogram};
use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres, Sqlite, SqlitePool};

use super::Engine;
use crate::on;

/// A pool of connections.
#[derive(Debug, Clone)]
pub struct Pool {
    /// What metrics call it.
    name: &'static str,
    engine: Engine<SqlitePool, PgPool>,
}

/// How full a pool is.
#[derive(Debug, Clone, Copy, serde::Serialize, utoipa::ToSchema)]
pub struct PoolStatus {
    /// Connections open.
    pub size: u32,
    /// Of these, free.
    pub idle: usize,
    /// Most there can be.
    pub max: u32,
}

impl Pool {
    pub(super) fn new(name: &'static str, engine: Engine<SqlitePool, PgPool>) -> Self {
        counter!("db_client_connection_timeouts_total", "db_client_connection_pool_name" => name)
            .increment(0);
        Self { name, engine }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn engine(&self) -> &Engine<SqlitePool, PgPool> {
        &self.engine
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// [`sqlx::Error::PoolTimedOut`] when none was free in time; or why none can be opened.
    pub async fn connection(
        &self,
    ) -> sqlx::Result<Engine<PoolConnection<Sqlite>, PoolConnection<Postgres>>> {
        let acquire = async {
            Ok(match &self.engine {
                Engine::Sqlite(pool) => Engine::Sqlite(pool.acquire().await?),
                Engine::Postgres(pool) => Engine::Postgres(pool.acquire().await?),
            })
        };
        // Boxed, because it holds all that opening a connection takes: in place, it would make every
        // handler's future as large.
        self.waited_for(Box::pin(acquire)).await
    }

    /// Runs what takes a connection out of it.
    pub(super) async fn waited_for<T>(
        &self,
        taking: impl Future<Output = sqlx::Result<T>>,
    ) -> sqlx::Result<T> {
        let mut waiting = Waiting::begin(self.name);
        let taken = taking.await;
        waiting.in_vain = matches!(taken, Err(sqlx::Error::PoolTimedOut));
        taken
    }

    pub(super) fn status(&self) -> PoolStatus {
        match &self.engine {
            Engine::Sqlite(pool) => PoolStatus::of(pool),
            Engine::Postgres(pool) => PoolStatus::of(pool),
        }
    }

    pub(super) async fn ping(&self) -> sqlx::Result<()> {
        on!(self, |conn| sqlx::query("SELECT 1").execute(conn).await.map(drop))
    }

    pub(super) async fn close(&self) {
        match &self.engine {
            Engine::Sqlite(pool) => pool.close().await,
            Engine::Postgres(pool) => pool.close().await,
        }
    }
}

impl PoolStatus {
    fn of<DB: sqlx::Database>(pool: &sqlx::Pool<DB>) -> Self {
        let max = pool.options().get_max_connections();
        Self { size: pool.size(), idle: pool.num_idle(), max }
    }
}

/// Somebody who waits for a connection, until it is dropped.
struct Waiting {
    pool: &'static str,
    start: Instant,
    in_vain: bool,
}

impl Waiting {
    fn begin(pool: &'static str) -> Self {
        gauge!("db_client_connection_pending_requests", "db_client_connection_pool_name" => pool)
            .increment(1);
        Self { pool, start: Instant::now(), in_vain: false }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let name = ("db_client_connection_pool_name", self.pool);
        gauge!("db_client_connection_pending_requests", &[name]).decrement(1);
        histogram!("db_client_connection_wait_time_seconds", &[name]).record(self.start.elapsed());
        if self.in_vain {
            counter!("db_client_connection_timeouts_total", &[name]).increment(1);
        }
    }
}
