//! When keys were last used: noted here, and written once a minute, so that no request writes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{store, ticks};
use crate::db::Db;
use crate::error::chain;

const FLUSH_EVERY: Duration = Duration::from_secs(60);

/// Uses that are not written yet, the latest of each key.
#[derive(Default)]
pub(super) struct LastUsed {
    noted: Mutex<BTreeMap<Uuid, DateTime<Utc>>>,
    /// What is being written is no longer noted: who closes waits for it.
    writing: tokio::sync::Mutex<()>,
}

impl LastUsed {
    pub(super) fn note(&self, key: Uuid, at: DateTime<Utc>) {
        let mut noted = self.lock();
        let latest = noted.entry(key).or_insert(at);
        *latest = at.max(*latest);
    }

    /// Writes what is noted, once a minute, without end.
    pub(super) async fn keep_written(self: Arc<Self>, db: Db) -> Infallible {
        let mut ticks = ticks(FLUSH_EVERY);
        loop {
            ticks.tick().await;
            self.flush(&db).await;
        }
    }

    /// Writes what is noted; what the database does not take is kept for the next time.
    pub(super) async fn flush(&self, db: &Db) {
        let _writing = self.writing.lock().await;
        let mut noted = std::mem::take(&mut *self.lock());
        while let Some((key, at)) = noted.pop_first() {
            if let Err(error) = store::used(db, key, at).await {
                tracing::warn!(
                    error = chain(&error),
                    "when API keys were last used is not written"
                );
                self.note(key, at);
                noted.into_iter().for_each(|(key, at)| self.note(key, at));
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, DateTime<Utc>>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
