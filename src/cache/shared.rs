//! Entries in Redis, which all processes share, and the removals that it has not heard of.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{AsyncCommands, RedisError, Script, SetExpiry, SetOptions};
use futures_util::FutureExt;

use super::entry::{self, Found, Ticket, grave_ttl, tombstone};
use super::memory::Memory;
use crate::config::{CacheConfig, SecretUrl};
use crate::redis::{ConnectionId, Live, Opened, Opening, Redis};

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

pub(super) struct Shared {
    redis: Arc<Redis>,
    debts: Arc<Debts>,
}

/// What must be settled before Redis is used again.
struct Debts {
    /// Removals that Redis has not heard of yet, by name.
    owed: Mutex<HashSet<String>>,
    /// What serves while Redis is away; emptied on its return, so that the next time begins anew.
    memory: Memory,
}

impl Shared {
    pub(super) async fn connect(
        config: &CacheConfig,
        url: &SecretUrl,
        memory: Memory,
    ) -> anyhow::Result<Self> {
        let debts = Arc::new(Debts { owed: Mutex::default(), memory });
        let debtor = debts.clone();
        let prepare = move |connection| debtor.clone().settle(connection).boxed();
        let redis = Redis::connect(config, url, Box::new(prepare)).await?;
        Ok(Self { redis, debts })
    }

    pub(super) fn redis(&self) -> &Arc<Redis> {
        &self.redis
    }

    /// An entry of the space with this generation, or `None` when Redis did not say.
    pub(super) async fn get(&self, name: &str, generation: &str) -> Option<Found> {
        let live = self.redis.live()?;
        let keys = [self.redis.key(name), self.redis.key(generation)];
        let (raw, generation) =
            self.ask(&live, async move |mut redis| redis.mget(&keys).await).await?;
        Some(entry::read(raw, generation, Some(live.id)))
    }

    /// Keeps what was loaded, over the connection that saw it missing or not at all.
    pub(super) async fn put(
        &self,
        name: &str,
        ticket: &Ticket,
        connection: ConnectionId,
        raw: Bytes,
        ttl: Duration,
    ) {
        let Some(live) = self.redis.live().filter(|live| live.id == connection) else { return };
        let key = self.redis.key(name);
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
    pub(super) async fn bury(&self, name: String) {
        let Some(live) = self.debts.connection_or_debt(&self.redis, &name) else { return };
        let key = self.redis.key(&name);
        if self.ask(&live, async move |redis| bury(redis, key).await).await.is_none() {
            self.debts.owe([name]);
            // Whichever connection there is by now: only a return pays what is owed.
            self.redis.leave("a removal did not get through");
        }
    }

    async fn ask<T>(
        &self,
        live: &Arc<Live>,
        ask: impl AsyncFnOnce(MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Option<T> {
        self.redis.ask(live, self.redis.budget(), ask).await
    }
}

impl Debts {
    /// Tells Redis what it is owed, then opens the connection.
    async fn settle(self: Arc<Self>, connection: Opening) -> anyhow::Result<Opened> {
        loop {
            let owed = {
                let mut owed = self.lock();
                if owed.is_empty() {
                    // Under the lock: a removal sees either the debt list still in use or Redis.
                    self.memory.clear();
                    return Ok(connection.open());
                }
                // Off the list while they are told: what is removed again meanwhile is told again.
                std::mem::take(&mut *owed)
            };
            for name in &owed {
                let key = connection.key(name);
                if let Err(error) = connection.ask(async move |redis| bury(redis, key).await).await
                {
                    self.owe(owed);
                    return Err(error);
                }
            }
        }
    }

    fn connection_or_debt(&self, redis: &Redis, name: &str) -> Option<Arc<Live>> {
        let mut owed = self.lock();
        let live = redis.live();
        if live.is_none() {
            remember(&mut owed, name.to_owned());
        }
        live
    }

    fn owe(&self, names: impl IntoIterator<Item = String>) {
        let mut owed = self.lock();
        for name in names {
            remember(&mut owed, name);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
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
