//! Opening the pools of either engine.

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sqlx::pool::{PoolConnectionMetadata, PoolOptions};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, Database, PgConnection, SqlitePool};

use super::{Db, Engine, Pool};
use crate::config::{DatabaseConfig, SecretUrl};

/// A pooled connection idle for longer is pinged before it is used. sqlx would ping before every
/// use, a round trip a query; not at all would hand out what a restarted server had closed.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

/// Longest a ping may take. sqlx bounds none, and a server that vanished answers none: each would
/// hold its place in the pool for good.
const PING_TIMEOUT: Duration = Duration::from_millis(500);

const SQLITE_BUSY: &str = "5";
const BUSY_RETRY: Duration = Duration::from_millis(20);

pub(super) async fn connect(config: &DatabaseConfig) -> anyhow::Result<Db> {
    match config.url.scheme() {
        "sqlite" => sqlite(config).await,
        "postgres" | "postgresql" => postgres(config).await,
        scheme => bail!("DATABASE_URL must begin with sqlite:// or postgres://, not {scheme}://"),
    }
}

async fn sqlite(config: &DatabaseConfig) -> anyhow::Result<Db> {
    let options = sqlite_options(config)?;
    let writer = sqlite_writer(config, &options)
        .await
        .with_context(|| format!("cannot open the SQLite database {}; does DATABASE_URL name a file that may be written?", config.url))?;
    // A reader cannot optimize, and sqlx does not wait for a connection whose closing fails: it
    // would outlive the writer, and leave its log (-wal) beside the database.
    let readers = options.read_only(true).optimize_on_close(false, None);
    Ok(Db {
        writer: Pool::new("writer", Engine::Sqlite(writer)),
        reader: Pool::new(
            "reader",
            Engine::Sqlite(pool_options(config).connect_lazy_with(readers.clone())),
        ),
        probe: Pool::new(
            "probe",
            Engine::Sqlite(SqlitePoolOptions::new().max_connections(1).connect_lazy_with(readers)),
        ),
        replica_probe: None,
        config: Arc::new(config.clone()),
    })
}

/// Of processes that open a new database at once, one makes its log a WAL, and the others are told
/// that it is locked: the one lock that `busy_timeout` does not wait for.
async fn sqlite_writer(
    config: &DatabaseConfig,
    options: &SqliteConnectOptions,
) -> sqlx::Result<SqlitePool> {
    let start = Instant::now();
    loop {
        let writer = pool_options(config)
            .max_connections(1)
            .connect_with(options.clone().create_if_missing(true));
        match writer.await {
            Err(sqlx::Error::Database(error))
                if error.code().as_deref() == Some(SQLITE_BUSY)
                    && start.elapsed() < config.lock_timeout =>
            {
                tokio::time::sleep(BUSY_RETRY).await;
            }
            outcome => return outcome,
        }
    }
}

async fn postgres(config: &DatabaseConfig) -> anyhow::Result<Db> {
    let primary = postgres_options(config, &config.url)?;
    reach(config, &config.url, &primary).await?;
    let pool = |name, options: &PgConnectOptions| {
        let pool = pool_options(config).connect_lazy_with(options.clone());
        Pool::new(name, Engine::Postgres(pool))
    };
    let probe = |name, options: &PgConnectOptions| {
        let pool = pool_options(config).max_connections(1).min_connections(0);
        Pool::new(name, Engine::Postgres(pool.connect_lazy_with(options.clone())))
    };
    let writer = pool("writer", &primary);
    let (reader, replica_probe) = match &config.read_url {
        Some(url) => {
            let replica = postgres_options(config, url)?;
            reach(config, url, &replica).await?;
            (pool("reader", &replica), Some(probe("replica probe", &replica)))
        }
        None => (writer.clone(), None),
    };
    Ok(Db {
        writer,
        reader,
        probe: probe("probe", &primary),
        replica_probe,
        config: Arc::new(config.clone()),
    })
}

/// A pool retries until its timeout, and then says only that; one plain connection says why.
async fn reach(
    config: &DatabaseConfig,
    url: &SecretUrl,
    options: &PgConnectOptions,
) -> anyhow::Result<()> {
    let connect = PgConnection::connect_with(options);
    tokio::time::timeout(config.acquire_timeout, connect)
        .await
        .map_err(|_| anyhow::anyhow!("no answer within {:?}", config.acquire_timeout))
        .and_then(|connection| Ok(connection?))
        .with_context(|| {
            format!("cannot reach PostgreSQL at {url}; is it up, and is DATABASE_URL right?")
        })?
        .close()
        .await?;
    Ok(())
}

/// What both of SQLite's pools and its migrations connect with; makes the folder.
pub(super) fn sqlite_options(config: &DatabaseConfig) -> anyhow::Result<SqliteConnectOptions> {
    let url = config.url.expose();
    if url.contains(":memory:") || url.contains("mode=memory") {
        bail!(
            "DATABASE_URL names SQLite in memory, which is one database a connection; use a file"
        );
    }
    let options = SqliteConnectOptions::from_str(url)
        .with_context(|| format!("DATABASE_URL {} is not a SQLite URL", config.url))?
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .foreign_keys(true)
        .busy_timeout(config.lock_timeout)
        .statement_cache_capacity(config.statement_cache_capacity)
        .optimize_on_close(true, None);
    if let Some(folder) = options.get_filename().parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    Ok(options)
}

/// What PostgreSQL's pools connect with: the URL, the password and the server-side timeouts.
fn postgres_options(config: &DatabaseConfig, url: &SecretUrl) -> anyhow::Result<PgConnectOptions> {
    let milliseconds = |duration: Duration| duration.as_millis().to_string();
    Ok(untimed_postgres_options(config, url)?.options([
        ("statement_timeout", milliseconds(config.statement_timeout)),
        ("lock_timeout", milliseconds(config.lock_timeout)),
        ("idle_in_transaction_session_timeout", milliseconds(config.idle_in_transaction_timeout)),
    ]))
}

/// The same without the timeouts, for migrations: they wait for one another, and take their time.
pub(super) fn untimed_postgres_options(
    config: &DatabaseConfig,
    url: &SecretUrl,
) -> anyhow::Result<PgConnectOptions> {
    let options = PgConnectOptions::from_str(url.expose())
        .with_context(|| format!("{url} is not a PostgreSQL URL"))?
        .application_name(env!("CARGO_PKG_NAME"))
        // Or every start would log that the table of migrations exists already.
        .options([("client_min_messages", "warning")])
        .statement_cache_capacity(config.statement_cache_capacity);
    Ok(match &config.password {
        Some(password) => options.password(password.expose()),
        None => options,
    })
}

fn pool_options<DB: Database>(config: &DatabaseConfig) -> PoolOptions<DB> {
    PoolOptions::new()
        .max_connections(config.max_connections)
        .min_connections(config.min_connections)
        .acquire_timeout(config.acquire_timeout)
        .test_before_acquire(false)
        .before_acquire(|connection: &mut DB::Connection, idle: PoolConnectionMetadata| {
            Box::pin(async move {
                if idle.idle_for > TRUSTED_IDLE { ping(connection).await } else { Ok(true) }
            })
        })
        .after_release(|connection: &mut DB::Connection, _| Box::pin(ping(connection)))
}

/// An error makes the pool drop the connection and open another when it needs one.
async fn ping<C: Connection>(connection: &mut C) -> sqlx::Result<bool> {
    let answered = tokio::time::timeout(PING_TIMEOUT, connection.ping()).await;
    answered.map_err(|_| sqlx::Error::PoolTimedOut)?.map(|()| true)
}
