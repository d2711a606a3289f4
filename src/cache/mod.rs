//! One cache: Redis when it is configured and well, this process's memory when not.
//!
//! A read returns what is fresh; what is past its soft age is returned too, while one background
//! load renews it, so a slow or failing source is noticed only when an entry reaches its hard age.
//! Loads of one key are one load. Redis gets `budget` to answer; when it is late the request
//! loads for itself, when it is gone they go on from memory, and the cache returns to it by itself. A
//! cache never fails a request.
//!
//! Removing an entry leaves a tombstone, and storing is a compare-and-set against what the lookup
//! saw. So a load that read the old row just before a change cannot put it back afterwards.

mod entry;
mod flight;
mod memory;
mod shared;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metrics::counter;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::child_span;
use crate::config::CacheConfig;
use crate::error::{Error, Result};
use crate::redis::Redis;
use entry::{Found, Ticket};
use flight::Flights;
use memory::Memory;
use shared::Shared;

/// The cache handle. Cheap to clone.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    memory: Memory,
    shared: Option<Shared>,
    flights: Flights,
    ttl: Ttl,
}

/// What an entry is called: a space, which can be emptied as a whole, and an id in it.
#[derive(Debug, Clone)]
pub struct Key {
    space: &'static str,
    id: String,
    ttl: Option<Ttl>,
}

#[derive(Debug, Clone, Copy)]
struct Ttl {
    soft: Duration,
    hard: Duration,
}

/// Where entries are kept just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = CacheStore)]
pub enum Store {
    /// In process, as configured.
    Memory,
    Redis,
    /// In process, because Redis is not there.
    MemoryWhileRedisIsAway,
}

impl Key {
    pub fn new(space: &'static str, id: impl ToString) -> Self {
        Self { space, id: id.to_string(), ttl: None }
    }

    /// Other ages than the configured ones: renewed in the background past `soft`, gone at `hard`.
    #[must_use]
    pub fn with_ttl(self, soft: Duration, hard: Duration) -> Self {
        Self { ttl: Some(Ttl { soft, hard }), ..self }
    }

    /// Braces as Redis Cluster has them, around what is to share a slot: an entry and its space's
    /// generation are read at once.
    fn name(&self) -> String {
        format!("{{{}}}:{}", self.space, self.id)
    }

    /// Of what is done with the entry. Its id stays out: it may name a person.
    fn span(&self, operation: &'static str) -> Span {
        child_span!(
            "cache",
            otel.name = format_args!("cache {operation} {}", self.space),
            cache.operation = operation,
            cache.space = self.space,
            cache.outcome = Empty,
        )
    }
}

impl Cache {
    /// Opens the cache. Redis is given a second to be there; if it is not, the cache starts
    /// without it and goes on trying.
    ///
    /// # Errors
    /// Only a Redis URL that cannot be used.
    pub async fn connect(config: &CacheConfig) -> anyhow::Result<Self> {
        let memory = Memory::new(config.max_memory.as_u64());
        let shared = match &config.redis_url {
            Some(url) => Some(Shared::connect(config, url, memory.clone()).await?),
            None => None,
        };
        let ttl = Ttl { soft: config.soft_ttl, hard: config.hard_ttl };
        Ok(Self(Arc::new(Inner { memory, shared, flights: Flights::default(), ttl })))
    }

    /// The link to Redis, when one is configured, for others that keep something there.
    pub fn redis(&self) -> Option<Arc<Redis>> {
        self.0.shared.as_ref().map(|shared| shared.redis().clone())
    }

    /// The entry, or what `load` makes of it, which is then kept. `load` is polled only when it
    /// is needed, in a task of its own, so a client that leaves does not break it off for others.
    /// `None` is not kept.
    ///
    /// # Errors
    /// Those of `load`, when there is no entry to fall back on.
    pub async fn get_or_load<T, F>(&self, key: &Key, load: F) -> Result<Option<T>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        F: Future<Output = Result<Option<T>>> + Send + 'static,
    {
        let span = key.span("get");
        self.get(key, load, &span).instrument(span.clone()).await
    }

    async fn get<T, F>(&self, key: &Key, load: F, span: &Span) -> Result<Option<T>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        F: Future<Output = Result<Option<T>>> + Send + 'static,
    {
        let name = key.name();
        let found = self.find(key.space, &name).await;
        // What cannot be read was written by a release whose type was another one: load it anew.
        let cached = found.body.and_then(|body| serde_json::from_slice(&body).ok());
        let outcome = match &cached {
            Some(_) if found.fresh => "hit",
            Some(_) => "stale",
            None => "miss",
        };
        span.record("cache.outcome", outcome);
        counter!("cache_requests_total", "space" => key.space, "outcome" => outcome).increment(1);
        if found.fresh && cached.is_some() {
            return Ok(cached);
        }
        let ttl = key.ttl.unwrap_or(self.0.ttl);
        let load = counted(key.space, load);
        if cached.is_some() {
            drop(self.load(name.clone(), found.ticket, ttl, self.clone().renewal(name, load)));
            return Ok(cached);
        }
        let flight = self.load(name, found.ticket, ttl, load);
        match flight.await? {
            Some(body) => serde_json::from_slice(&body).map(Some).map_err(Error::internal),
            None => Ok(None),
        }
    }

    /// Forgets one entry, here and in Redis. Call it after the change has been committed.
    pub async fn remove(&self, key: &Key) {
        self.bury(key.name()).instrument(key.span("remove")).await;
    }

    /// Forgets every entry of a space, in one step, however many there are.
    pub async fn remove_all(&self, space: &'static str) {
        let span = Key::new(space, "").span("remove all");
        self.bury(entry::generation_of(space)).instrument(span).await;
    }

    /// The health check: whether entries are kept where they were meant to be.
    ///
    /// # Errors
    /// Redis is configured, and not there.
    pub fn check(&self) -> Result<(), &'static str> {
        match self.store() {
            Store::Memory | Store::Redis => Ok(()),
            Store::MemoryWhileRedisIsAway => Err("Redis does not answer; caching in process"),
        }
    }

    /// Where entries are kept just now.
    pub fn store(&self) -> Store {
        match &self.0.shared {
            None => Store::Memory,
            Some(shared) if shared.redis().is_connected() => Store::Redis,
            Some(_) => Store::MemoryWhileRedisIsAway,
        }
    }

    /// A load for which nobody waits: of its failure nobody else would hear, and what it no longer
    /// finds is gone.
    async fn renewal<T>(
        self,
        name: String,
        load: impl Future<Output = Result<Option<T>>>,
    ) -> Result<Option<T>> {
        let outcome = load.await;
        match &outcome {
            Ok(Some(_)) => {}
            Ok(None) => self.bury(name).await,
            Err(error) => {
                let (code, cause) = (error.code(), error.causes());
                tracing::warn!(entry = name, %code, cause, "a cached entry is not renewed");
            }
        }
        outcome
    }

    async fn bury(&self, name: String) {
        self.0.memory.bury(&name);
        if let Some(shared) = &self.0.shared {
            shared.bury(name).await;
        }
    }

    /// Looks in Redis, or in memory while that is away.
    async fn find(&self, space: &'static str, name: &str) -> Found {
        if let Some(shared) = &self.0.shared {
            if let Some(found) = shared.get(name, &entry::generation_of(space)).await {
                return found;
            }
            counter!("cache_fallbacks_total", "space" => space).increment(1);
            // Late once, but still in use: others' removals go there, so memory is not to be asked.
            if shared.redis().is_connected() {
                return entry::unknown();
            }
        }
        let (raw, generation) = self.0.memory.get(name, space);
        entry::read(raw, generation, None)
    }

    fn load<T, F>(&self, name: String, ticket: Ticket, ttl: Ttl, load: F) -> flight::Flight
    where
        T: Serialize + Send + 'static,
        F: Future<Output = Result<Option<T>>> + Send + 'static,
    {
        let cache = self.clone();
        let (stored_as, route) = (name.clone(), (name, ticket.clone()));
        let body = async move {
            let Some(value) = load.await? else { return Ok(None) };
            Ok(Some(Bytes::from(serde_json::to_vec(&value).map_err(Error::internal)?)))
        };
        let keep =
            move |body: Bytes| async move { cache.keep(stored_as, &ticket, ttl, &body).await };
        self.0.flights.join(route, body, keep)
    }

    /// Keeps what was loaded, in the store where it was missing, unless that has changed since.
    async fn keep(&self, name: String, ticket: &Ticket, ttl: Ttl, body: &[u8]) {
        let raw = entry::write(ticket, jittered(ttl.soft), body);
        let hard = jittered(ttl.hard);
        match (&self.0.shared, ticket.connection) {
            (Some(shared), Some(connection)) => {
                shared.put(&name, ticket, connection, raw, hard).await;
            }
            _ => self.0.memory.put(name, ticket, raw, hard),
        }
    }
}

async fn counted<T>(space: &'static str, load: impl Future<Output = Result<T>>) -> Result<T> {
    let loaded = load.await;
    let outcome = if loaded.is_ok() { "ok" } else { "error" };
    counter!("cache_loads_total", "space" => space, "outcome" => outcome).increment(1);
    loaded
}

/// `ttl` ±10 %, so that what was loaded together does not expire together.
fn jittered(ttl: Duration) -> Duration {
    ttl.mul_f64(0.9 + 0.2 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_differ_by_a_tenth_at_most() {
        let ttl = Duration::from_secs(100);
        let ages: Vec<_> = (0..1000).map(|_| jittered(ttl)).collect();
        let (least, most) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
        assert!(*least >= ttl.mul_f64(0.9) && *most <= ttl.mul_f64(1.1), "{least:?} to {most:?}");
        assert!(*least < ttl.mul_f64(0.95) && *most > ttl.mul_f64(1.05), "{least:?} to {most:?}");
    }
}
