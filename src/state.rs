//! What handlers share, opened and closed as one.

use std::time::Duration;

use axum::extract::FromRef;

use crate::auth::{Auth, Known};
use crate::cache::Cache;
use crate::config::{Config, Environment};
use crate::db::Db;
use crate::health::Health;
use crate::ratelimit::Limits;

/// What handlers may ask for, each by its own type: `State<Db>`, `State<Cache>`.
#[derive(Clone, FromRef)]
pub struct AppState {
    pub db: Db,
    pub cache: Cache,
    pub auth: Auth,
    pub limits: Limits,
    pub health: Health,
    pub env: Environment,
}

impl AppState {
    /// Opens everything, migrates the database, and begins to watch over both. What the principals
    /// file names is held against `known`.
    ///
    /// # Errors
    /// One line: what could not be opened, and why; or every fault of the principals file.
    pub async fn connect(
        config: &Config,
        health: Health,
        known: &Known<'_>,
    ) -> anyhow::Result<Self> {
        let db = Db::connect(&config.database).await?;
        if config.database.migrate_on_start {
            db.migrate().await?;
        } else {
            db.require_migrated().await?;
        }
        let cache = Cache::connect(&config.cache).await?;
        let auth = Auth::connect(&config.auth, db.clone(), known).await?;
        let limits = Limits::new(&config.rate_limit, cache.redis());
        let (primary, replica, checked) = (db.clone(), db.clone(), cache.clone());
        health.watch("database", true, move || primary.clone().ping()).await;
        if db.has_replica() {
            health.watch("replica", false, move || replica.clone().ping_replica()).await;
        }
        health.watch("cache", false, move || std::future::ready(checked.check())).await;
        let counted = limits.clone();
        health.gauge("quota_entries", move || counted.tracked());
        Ok(Self { db, cache, auth, limits, health, env: config.env })
    }

    /// Closes what is open, waiting no longer than `limit`.
    pub async fn close(&self, limit: Duration) {
        if tokio::time::timeout(limit, self.auth.close()).await.is_err() {
            tracing::warn!("it could not be written when keys were last used");
        }
        self.db.close(limit).await;
    }
}
