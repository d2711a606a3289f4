//! Entries in Redis, and the way out and back when it does not answer.
//!
//! One multiplexed connection serves all requests; checking one out of the pool each time would
//! cost a second round trip. There is a connection, or there is none: late or failed answers take
//! it away, and one background task, outside any request, brings it back.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{AsyncCommands, RedisError, Script, SetExpiry, SetOptions};
use deadpool_redis::{Connection, Pool, Runtime, Timeouts};

use super::entry::{self, Found, Stamp, Ticket, grave_ttl, new_stamp, tombstone};
use super::memory::Memory;
use crate::config::{CacheConfig, SecretUrl};

/// Longest the background task waits to connect; requests never wait for it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Removals remembered while Redis is away. Past that, all entries go when it is back.
const MAX_OWED: usize = 10_000;

/// Stores only if the first 16 bytes, the stamp, are still those that were seen.
static COMPARE_AND_SET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('GETRANGE', KEYS[1], 0, 15) ~= ARGV[1] then return 0 end
         redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
         return 1",
    )
});

pub(super) struct Redis {
    pool: Pool,
    prefix: String,
    budget: Duration,
    max_failures: u32,
    retry: Duration,
    connection: ArcSwapOption<Live>,
    failures: AtomicU32,
    /// Removals that Redis has not heard of yet, by name.
    owed: Mutex<HashSet<String>>,
    /// What serves while Redis is away; emptied on its return, so that the next time begins anew.
    memory: Memory,
}

/// A connection, with a name to know it by.
struct Live {
    stamp: Stamp,
    connection: MultiplexedConnection,
}

impl Redis {
    pub(super) async fn connect(
        url: &SecretUrl,
        config: &CacheConfig,
        memory: Memory,
    ) -> anyhow::Result<Arc<Self>> {
        let mut settings = deadpool_redis::Config::from_url(url.expose());
        let mut pool = deadpool_redis::PoolConfig::new(1);
        pool.timeouts = Timeouts {
            wait: Some(CONNECT_TIMEOUT),
            create: Some(CONNECT_TIMEOUT),
            recycle: Some(CONNECT_TIMEOUT),
        };
        settings.pool = Some(pool);
        let pool = settings
            .create_pool(Some(Runtime::Tokio1))
            .with_context(|| format!("REDIS_URL {url} is not a Redis URL"))?;
        let redis = Arc::new(Self {
            pool,
            prefix: config.key_prefix.clone(),
            budget: config.budget,
            max_failures: config.breaker_failures,
            retry: config.breaker_retry,
            connection: ArcSwapOption::empty(),
            failures: AtomicU32::new(0),
            owed: Mutex::default(),
            memory,
        });
        if let Err(error) = redis.try_return().await {
            tracing::warn!(%error, redis = %url, "Redis is not there; caching in process");
            redis.clone().return_later();
        }
        Ok(redis)
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection.load().is_some()
    }

    /// An entry of the space with this generation, or `None` when Redis did not say.
    pub(super) async fn get(self: &Arc<Self>, name: &str, generation: &str) -> Option<Found> {
        let live = self.connection.load_full()?;
        let keys = [self.key(name), self.key(generation)];
        let (raw, generation) =
            self.ask(&live, async move |mut redis| redis.mget(&keys).await).await?;
        Some(entry::read(raw, generation, Some(live.stamp)))
    }

    /// Keeps what was loaded, over the connection that saw it missing or not at all.
    pub(super) async fn put(
        self: &Arc<Self>,
        name: &str,
        ticket: &Ticket,
        connection: Stamp,
        raw: Bytes,
        ttl: Duration,
    ) {
        let live = self.connection.load_full();
        let Some(live) = live.filter(|live| live.stamp == connection) else { return };
        let key = self.key(name);
        let stamp = ticket.stamp.map_or(Vec::new(), Vec::from);
        self.ask(&live, async move |mut redis| {
            COMPARE_AND_SET
                .key(key)
                .arg(stamp)
                .arg(&raw[..])
                .arg(milliseconds(ttl))
                .invoke_async::<()>(&mut redis)
                .await
        })
        .await;
    }

    /// Puts a tombstone in an entry's place; if Redis cannot be told now, it is told before it is
    /// read again.
    pub(super) async fn bury(self: &Arc<Self>, name: String) {
        let Some(live) = self.connection_or_debt(&name) else { return };
        let key = self.key(&name);
        if self.ask(&live, async move |redis| bury(redis, key).await).await.is_none() {
            self.owe(name);
            // Whichever connection there is by now: only a return pays what is owed.
            if let Some(live) = self.connection.load_full() {
                self.leave(&live, "a removal did not get through");
            }
        }
    }

    /// Runs `ask` within the budget; `None`, and a mark against Redis, when that fails.
    async fn ask<T>(
        self: &Arc<Self>,
        live: &Arc<Live>,
        ask: impl AsyncFnOnce(MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Option<T> {
        match tokio::time::timeout(self.budget, ask(live.connection.clone())).await {
            Ok(Ok(answer)) => {
                self.failures.store(0, Relaxed);
                return Some(answer);
            }
            Ok(Err(error)) if error.is_unrecoverable_error() => {
                self.leave(live, &error.to_string())
            }
            Ok(Err(error)) => self.mark(live, &error.to_string()),
            Err(_) => self.mark(live, "no answer within the budget"),
        }
        None
    }

    fn mark(self: &Arc<Self>, live: &Arc<Live>, why: &str) {
        if self.failures.fetch_add(1, Relaxed) + 1 >= self.max_failures {
            self.leave(live, why);
        }
    }

    /// Goes on without the connection that failed. Of all that it fails at once, one is told and
    /// comes back for all.
    fn leave(self: &Arc<Self>, live: &Arc<Live>, why: &str) {
        let was = self.connection.compare_and_swap(live, None);
        if was.as_ref().is_some_and(|was| Arc::ptr_eq(was, live)) {
            tracing::warn!(why, "Redis is away; caching in process");
            self.clone().return_later();
        }
    }

    fn return_later(self: Arc<Self>) {
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(self.retry).await;
                if self.try_return().await.is_ok() {
                    tracing::info!("Redis is back");
                    return;
                }
            }
        });
    }

    async fn try_return(&self) -> anyhow::Result<()> {
        let connection = Connection::take(self.pool.get().await?);
        loop {
            let owed: Vec<String> = self.lock_owed().iter().cloned().collect();
            for name in &owed {
                let told = bury(connection.clone(), self.key(name));
                tokio::time::timeout(CONNECT_TIMEOUT, told).await??;
            }
            let mut asked = connection.clone();
            tokio::time::timeout(CONNECT_TIMEOUT, asked.ping::<()>()).await??;

            let mut left = self.lock_owed();
            left.retain(|name| !owed.contains(name));
            if left.is_empty() {
                // Under the lock: a removal sees either the debt list still in use or Redis.
                self.memory.clear();
                self.failures.store(0, Relaxed);
                self.connection.store(Some(Arc::new(Live { stamp: new_stamp(), connection })));
                return Ok(());
            }
        }
    }

    fn connection_or_debt(&self, name: &str) -> Option<Arc<Live>> {
        let mut owed = self.lock_owed();
        let live = self.connection.load_full();
        if live.is_none() {
            remember(&mut owed, name.to_owned());
        }
        live
    }

    fn owe(&self, name: String) {
        remember(&mut self.lock_owed(), name);
    }

    fn lock_owed(&self) -> MutexGuard<'_, HashSet<String>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.prefix)
    }
}

/// Past the limit, owing whole spaces is owing less: their generations' names, in braces.
fn remember(owed: &mut HashSet<String>, name: String) {
    if owed.len() >= MAX_OWED {
        *owed = owed.iter().filter_map(|name| space_of(name)).collect();
    }
    owed.insert(name);
}

fn space_of(name: &str) -> Option<String> {
    name.find('}').map(|end| name[..=end].to_owned())
}

async fn bury(mut redis: MultiplexedConnection, key: String) -> Result<(), RedisError> {
    let grave = SetOptions::default().with_expiration(SetExpiry::PX(milliseconds(grave_ttl(&key))));
    redis.set_options(key, &tombstone()[..], grave).await
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}
