//! What handlers share, opened and closed as one.

use std::time::Duration;

use axum::extract::FromRef;

use crate::cache::Cache;
use crate::config::Config;
use crate::db::Db;
use crate::health::Health;

/// What handlers may ask for, each by its own type: `State<Db>`, `State<Cache>`.
#[derive(Clone, FromRef)]
pub struct AppState {
    pub db: Db,
    pub cache: Cache,
    pub health: Health,
}

impl AppState {
    /// Opens everything, migrates the database, and begins to watch over both.
    ///
    /// # Errors
    /// One line: what could not be opened, and why.
    pub async fn connect(config: &Config, health: Health) -> anyhow::Result<Self> {
        let db = Db::connect(&config.database).await?;
        if config.database.migrate_on_start {
            db.migrate().await?;
        } else {
            db.require_migrated().await?;
        }
        let cache = Cache::connect(&config.cache).await?;
        let (primary, replica, checked) = (db.clone(), db.clone(), cache.clone());
        health.watch("database", true, move || primary.clone().ping()).await;
        if db.has_replica() {
            health.watch("replica", false, move || replica.clone().ping_replica()).await;
        }
        health.watch("cache", false, move || std::future::ready(checked.check())).await;
        Ok(Self { db, cache, health })
    }

    /// Closes what is open, waiting no longer than `limit`.
    pub async fn close(&self, limit: Duration) {
        self.db.close(limit).await;
    }
}
