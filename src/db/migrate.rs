//! Migrations: applied once each, however many processes start at once.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context, bail};
use sqlx::migrate::{AppliedMigration, Migrate, MigrateError, Migrator};
use sqlx::{Connection, PgConnection, SqliteConnection};

use super::connect::{sqlite_options, untimed_postgres_options};
use super::{Db, Engine};

/// Passes over what a newer release applied, so that a rollback to this one starts.
static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!();
    migrator.set_ignore_missing(true);
    migrator
});

/// One migration and how it stands.
#[derive(Debug)]
pub struct Migration {
    pub version: i64,
    pub description: String,
    pub state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Applied,
    Pending,
    /// Its file is not what was applied.
    Changed,
    /// Applied by a newer release; this one has no such file.
    Unknown,
}

impl Db {
    /// Applies what is pending. Others that start at the same time wait for it: on PostgreSQL's
    /// advisory lock, on SQLite on a lock file beside the database, since sqlx locks nothing there.
    ///
    /// # Errors
    /// One line: a migration was changed after it ran, is half applied, or failed.
    pub async fn migrate(&self) -> anyhow::Result<()> {
        let outcome = match self.writer.engine() {
            Engine::Sqlite(_) => {
                let options = sqlite_options(&self.config)?;
                let _lock = lock_file(options.get_filename()).await?;
                let mut connection = SqliteConnection::connect_with(&options).await?;
                let outcome = MIGRATOR.run_direct(None, &mut connection, false).await;
                let closed = connection.close().await;
                outcome.and(closed.map_err(MigrateError::from))
            }
            Engine::Postgres(_) => {
                let options = untimed_postgres_options(&self.config, &self.config.url)?;
                let mut connection = PgConnection::connect_with(&options).await?;
                let outcome = MIGRATOR.run_direct(None, &mut connection, false).await;
                // Closing gives the advisory lock back where a failed run did not.
                let closed = connection.close().await;
                outcome.and(closed.map_err(MigrateError::from))
            }
        };
        outcome.map_err(explain)
    }

    /// Every migration, of the files and of the database, by version.
    ///
    /// # Errors
    /// As any query.
    pub async fn migrations(&self) -> anyhow::Result<Vec<Migration>> {
        let applied = if self.has_history().await? {
            match self.writer.engine() {
                Engine::Sqlite(pool) => applied(&mut *pool.acquire().await?).await?,
                Engine::Postgres(pool) => applied(&mut *pool.acquire().await?).await?,
            }
        } else {
            Vec::new()
        };
        let mut applied: HashMap<_, _> =
            applied.into_iter().map(|migration| (migration.version, migration.checksum)).collect();
        let mut all: Vec<Migration> = MIGRATOR
            .iter()
            .map(|file| Migration {
                version: file.version,
                description: file.description.to_string(),
                state: match applied.remove(&file.version) {
                    None => State::Pending,
                    Some(checksum) if checksum == file.checksum => State::Applied,
                    Some(_) => State::Changed,
                },
            })
            .collect();
        all.extend(applied.into_keys().map(|version| Migration {
            version,
            description: "applied by another release".into(),
            state: State::Unknown,
        }));
        all.sort_by_key(|migration| migration.version);
        Ok(all)
    }

    /// Refuses a database that is older than this release, for where it must not migrate itself.
    ///
    /// # Errors
    /// One line with what is pending and what to run.
    pub async fn require_migrated(&self) -> anyhow::Result<()> {
        let pending: Vec<String> = self
            .migrations()
            .await?
            .into_iter()
            .filter(|migration| migration.state == State::Pending)
            .map(|migration| migration.version.to_string())
            .collect();
        if pending.is_empty() {
            return Ok(());
        }
        bail!(
            "the database is older than this release (migrations pending: {}); run `{} migrate run`, \
             or set APP_DATABASE__MIGRATE_ON_START=true",
            pending.join(", "),
            env!("CARGO_PKG_NAME"),
        )
    }

    /// Whether any migration ever ran here. The table is not made to find out: who asks may be
    /// allowed to read only.
    async fn has_history(&self) -> sqlx::Result<bool> {
        const SQLITE: &str = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = $1)";
        const POSTGRES: &str = "SELECT to_regclass($1) IS NOT NULL";
        let table = &*MIGRATOR.table_name;
        match self.writer.engine() {
            Engine::Sqlite(pool) => sqlx::query_scalar(SQLITE).bind(table).fetch_one(pool).await,
            Engine::Postgres(pool) => {
                sqlx::query_scalar(POSTGRES).bind(table).fetch_one(pool).await
            }
        }
    }
}

async fn applied<C: Migrate>(connection: &mut C) -> Result<Vec<AppliedMigration>, MigrateError> {
    connection.list_applied_migrations(&MIGRATOR.table_name).await
}

/// Held until the file is dropped, by the system, so that a crash gives it back.
async fn lock_file(database: &Path) -> anyhow::Result<File> {
    let mut path = database.as_os_str().to_owned();
    path.push(".migrate.lock");
    let path = PathBuf::from(path);
    tokio::task::spawn_blocking(move || {
        let file = File::create(&path)
            .with_context(|| format!("cannot write the lock file {}", path.display()))?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    })
    .await?
}

fn explain(error: MigrateError) -> anyhow::Error {
    match error {
        MigrateError::VersionMismatch(version) => anyhow::anyhow!(
            "migration {version} was changed after it ran here; restore its file, and put the \
             change in a new migration"
        ),
        MigrateError::Dirty(version) => anyhow::anyhow!(
            "migration {version} is half applied; mend the schema by hand, then remove its row \
             from _sqlx_migrations"
        ),
        other => other.into(),
    }
}
