//! The database: its URLs, its pools and their timeouts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Secret, SecretUrl};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `sqlite://path` or `postgres://user:password@host/name`. Also `DATABASE_URL`.
    pub url: SecretUrl,
    /// A PostgreSQL replica for reads. Also `DATABASE_READ_URL`.
    pub read_url: Option<SecretUrl>,
    /// Takes the place of the password in both URLs, for one that is mounted apart.
    pub password: Option<Secret>,
    /// Connections in each pool, writer and reader. (SQLite's writer is always one.)
    pub max_connections: u32,
    /// Connections kept open while idle, in each pool.
    pub min_connections: u32,
    /// Longest wait for a free connection; longer is 503.
    #[serde(with = "humantime_serde")]
    pub acquire_timeout: Duration,
    /// Longest one statement may run (PostgreSQL).
    #[serde(with = "humantime_serde")]
    pub statement_timeout: Duration,
    /// Longest wait for a lock: `lock_timeout` on PostgreSQL, `busy_timeout` on SQLite.
    #[serde(with = "humantime_serde")]
    pub lock_timeout: Duration,
    /// Longest a transaction may sit idle before the server ends it (PostgreSQL).
    #[serde(with = "humantime_serde")]
    pub idle_in_transaction_timeout: Duration,
    /// Prepared statements kept per connection; `0` for PgBouncer in transaction mode.
    pub statement_cache_capacity: usize,
    /// Apply pending migrations before serving.
    pub migrate_on_start: bool,
    /// Let production serve a public address from SQLite.
    pub allow_sqlite: bool,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self {
            url: SecretUrl::new("sqlite://data/plinth.db"),
            read_url: None,
            password: None,
            max_connections: 10,
            min_connections: 1,
            acquire_timeout: Duration::from_secs(3),
            statement_timeout: Duration::from_secs(10),
            lock_timeout: Duration::from_secs(2),
            idle_in_transaction_timeout: Duration::from_secs(15),
            statement_cache_capacity: 100,
            migrate_on_start: true,
            allow_sqlite: false,
        }
    }
}
