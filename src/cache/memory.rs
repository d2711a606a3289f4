//! Entries in this process, bounded by their size.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use moka::Expiry;
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::entry::{Ticket, generation_of, grave_ttl, stamp_of, tombstone};

/// What moka and its bookkeeping take for an entry beside its bytes, roughly.
const OVERHEAD: usize = 200;

#[derive(Clone)]
pub(super) struct Memory {
    entries: Cache<String, Entry>,
    /// The generation of spaces that have none of their own. [`Memory::clear`] takes tombstones
    /// along, so it changes this: a load that was begun before can then put nothing back.
    generation: Arc<ArcSwap<Bytes>>,
}

#[derive(Clone)]
struct Entry {
    raw: Bytes,
    ttl: Duration,
}

struct ByEntry;

impl Expiry<String, Entry> for ByEntry {
    fn expire_after_create(&self, _: &String, entry: &Entry, _: Instant) -> Option<Duration> {
        Some(entry.ttl)
    }

    fn expire_after_update(
        &self,
        _: &String,
        entry: &Entry,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.ttl)
    }
}

impl Memory {
    pub(super) fn new(max_bytes: u64) -> Self {
        let weight = |key: &String, entry: &Entry| {
            u32::try_from(key.len() + entry.raw.len() + OVERHEAD).unwrap_or(u32::MAX)
        };
        // Least recently used: the default policy may turn a newcomer away, and a tombstone must
        // not be turned away.
        let entries = Cache::builder()
            .max_capacity(max_bytes)
            .weigher(weight)
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(ByEntry)
            .build();
        Self { entries, generation: Arc::new(ArcSwap::from_pointee(tombstone())) }
    }

    /// An entry and its space's generation.
    pub(super) fn get(&self, name: &str, space: &str) -> (Option<Bytes>, Option<Bytes>) {
        let raw = |name: &str| self.entries.get(name).map(|entry| entry.raw);
        let generation = || Bytes::clone(&self.generation.load());
        (raw(name), Some(raw(&generation_of(space)).unwrap_or_else(generation)))
    }

    pub(super) fn put(&self, name: String, ticket: &Ticket, raw: Bytes, ttl: Duration) {
        self.entries.entry(name).and_compute_with(|there| {
            let stamp = there.and_then(|there| stamp_of(&there.value().raw));
            if stamp == ticket.stamp { Op::Put(Entry { raw, ttl }) } else { Op::Nop }
        });
    }

    pub(super) fn bury(&self, name: &str) {
        self.entries.insert(name.to_owned(), Entry { raw: tombstone(), ttl: grave_ttl(name) });
    }

    pub(super) fn clear(&self) {
        self.generation.store(Arc::new(tombstone()));
        self.entries.invalidate_all();
    }
}
