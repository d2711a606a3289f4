//! Counts in this process, at some 35 MiB for a million windows.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Cost;
use super::caller::Subject;
use super::class::Window;
use super::verdict::{Verdict, WindowState};

/// Tables, each behind a lock of its own. One caller's windows of one class are all in one.
const SHARDS: usize = 64;

/// Windows a table has room for in 2^16 places; 3.7 million in all tables, 71 MiB. Once a table
/// is full, those who are new to it share one count a class.
const ROOM: usize = (1 << 16) / 8 * 7;

/// Milliseconds since the memory began. They wrap after 49 days, so times are only compared with
/// [`Entry::left`].
pub(super) type Tick = u32;

/// Further ahead than this, 37 days, lies no end of a window (31 days at most): it is past.
const LONGEST: Tick = Tick::MAX - (1 << 30);

pub(super) struct Memory {
    began: Instant,
    /// Keyed at random, so that nobody can choose whom to share a count with.
    hasher: RandomState,
    room: usize,
    shards: [Mutex<Shard>; SHARDS],
}

/// By what [`Memory::hasher`] made of class and subject, and by length of window.
type Shard = HashMap<u64, Entry, BuildHasherDefault<AsIs>>;

#[derive(Debug, Clone, Copy)]
struct Entry {
    count: u32,
    end: Tick,
}

/// Keys are hashes already.
#[derive(Default)]
struct AsIs(u64);

impl Memory {
    pub(super) fn new() -> Self {
        Self::with_room(ROOM)
    }

    fn with_room(room: usize) -> Self {
        Self {
            room,
            began: Instant::now(),
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    pub(super) fn now(&self) -> Tick {
        self.began.elapsed().as_millis() as Tick
    }

    /// Looks at all these windows, then counts in each if every one has room.
    pub(super) fn look(
        &self,
        class: &str,
        subject: &Subject<'_>,
        windows: &[Window],
        cost: Cost,
        now: Tick,
    ) -> Verdict {
        let hash = self.hasher.hash_one((class, Some(subject)));
        let mut shard = lock(&self.shards[shard_of(hash)]);
        let is_known = |window: &Window| shard.contains_key(&key(hash, window));
        let hash = if shard.len() < self.room || windows.iter().any(is_known) {
            hash
        } else {
            self.hasher.hash_one((class, None::<&Subject<'_>>))
        };
        let states = windows.iter().map(|window| state(&shard, hash, window, now));
        let mut verdict = Verdict::before_counting(states.collect());
        if verdict.allowed && cost == Cost::OneRequest {
            for (window, state) in windows.iter().zip(&mut verdict.windows) {
                count(&mut shard, hash, window, now);
                state.remaining -= 1;
            }
        }
        verdict
    }

    /// Forgets windows that have ended, and gives their memory back. Others get to run in between.
    pub(super) async fn sweep(&self, now: Tick) {
        for shard in &self.shards {
            sweep(&mut lock(shard), now);
            tokio::task::yield_now().await;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }
}

impl Entry {
    /// Nothing counted yet. The tick that has begun is not counted as time that has gone by, so
    /// that no window ends early.
    fn first(now: Tick, window: &Window) -> Self {
        let length = Tick::try_from(window.policy.window.as_millis()).unwrap_or(LONGEST - 1);
        Self { count: 0, end: now.wrapping_add(length + 1) }
    }

    /// Time until the end, if that is to come.
    fn left(self, now: Tick) -> Option<Duration> {
        let left = self.end.wrapping_sub(now);
        (1..=LONGEST).contains(&left).then(|| Duration::from_millis(left.into()))
    }
}

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    /// For other keys than there are.
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}

fn state(shard: &Shard, hash: u64, window: &Window, now: Tick) -> WindowState {
    let entry = shard.get(&key(hash, window));
    match entry.and_then(|entry| Some((entry.count, entry.left(now)?))) {
        Some((count, left)) => window.with_count(count, Some(left)),
        None => window.with_count(0, None),
    }
}

fn count(shard: &mut Shard, hash: u64, window: &Window, now: Tick) {
    let first = Entry::first(now, window);
    let entry = shard.entry(key(hash, window)).or_insert(first);
    if entry.left(now).is_none() {
        *entry = first;
    }
    entry.count += 1;
}

fn sweep(shard: &mut Shard, now: Tick) {
    shard.retain(|_, entry| entry.left(now).is_some());
    // Not at once: what was needed a moment ago may be needed again.
    if shard.capacity() > 4 * shard.len() {
        shard.shrink_to(2 * shard.len());
    }
}

/// From bits that the tables themselves do not go by.
fn shard_of(hash: u64) -> usize {
    usize::from((hash >> 32) as u8) % SHARDS
}

fn key(hash: u64, window: &Window) -> u64 {
    hash ^ window.policy.window.as_secs().wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::class::{Class, all};
    use super::*;
    use crate::config::RateLimitConfig;

    const ALICE: Subject<'_> = Subject::Principal("user:alice");

    fn class(limit: &str) -> Class {
        let limit = limit.parse().unwrap();
        all(&RateLimitConfig { default: limit, ..RateLimitConfig::default() }).0
    }

    fn take(memory: &Memory, class: &Class, subject: &Subject<'_>, now: Tick) -> Verdict {
        memory.look("default", subject, &class.windows(None), Cost::OneRequest, now)
    }

    fn remaining(verdict: &Verdict) -> Vec<u32> {
        verdict.windows.iter().map(|window| window.remaining).collect()
    }

    #[test]
    fn a_window_begins_with_a_request_and_lasts_as_long_as_it_says() {
        let class = class("2/minute");
        // Also where ticks wrap.
        for start in [7, Tick::MAX - 30_000] {
            let memory = Memory::new();
            let at = |ms: Tick| take(&memory, &class, &ALICE, start.wrapping_add(ms));
            let first = at(0);
            assert_eq!((first.allowed, remaining(&first)), (true, vec![1]));
            assert_eq!(first.windows[0].reset, Duration::from_secs(60));
            let second = at(20_000);
            assert_eq!((second.allowed, remaining(&second)), (true, vec![0]));
            assert_eq!(second.windows[0].reset, Duration::from_millis(40_001));
            assert!(!at(60_000).allowed, "the first may have come late in its millisecond");
            assert_eq!(remaining(&at(60_001)), [1]);
            assert_eq!(remaining(&at(60_001)), [0]);
        }
    }

    #[test]
    fn the_longest_window_there_may_be_is_counted_to_its_end() {
        let (memory, class) = (Memory::new(), class("1/31 days"));
        let day = 86_400_000;
        assert!(take(&memory, &class, &ALICE, 20 * day).allowed);
        assert!(!take(&memory, &class, &ALICE, (20 * day).wrapping_add(31 * day)).allowed);
        assert!(take(&memory, &class, &ALICE, (20 * day).wrapping_add(31 * day + 1)).allowed);
    }

    #[test]
    fn a_refused_request_costs_nothing_in_any_window() {
        let (memory, class) = (Memory::new(), class("2/second, 3/minute"));
        for (now, allowed, left) in [
            (0, true, [1, 2]),
            (0, true, [0, 1]),
            (10, false, [0, 1]),
            (20, false, [0, 1]),
            (1_001, true, [1, 0]),
            (1_002, false, [1, 0]),
            (2_002, false, [2, 0]),
            (60_001, true, [1, 2]),
        ] {
            let verdict = take(&memory, &class, &ALICE, now);
            assert_eq!((verdict.allowed, remaining(&verdict)), (allowed, left.to_vec()), "{now}");
        }
    }

    #[test]
    fn a_full_table_lets_strangers_share_one_count() {
        let (memory, class) = (Memory::with_room(1), class("1/minute"));
        let names: Vec<String> = (0..10_000).map(|id| format!("user:{id}")).collect();
        let allowed = names
            .iter()
            .filter(|name| take(&memory, &class, &Subject::Principal(name), 0).allowed)
            .count();
        assert_eq!(allowed, 2 * SHARDS, "one with a count of its own, one for all others");
        assert_eq!(memory.len(), 2 * SHARDS);
        assert!(take(&memory, &class, &Subject::Principal(&names[0]), 60_001).allowed);
    }

    #[tokio::test]
    async fn a_sweep_forgets_what_has_ended_and_nothing_else() {
        let (memory, short, long) = (Memory::new(), class("1/second"), class("1/minute"));
        for id in 0..10_000 {
            take(&memory, &short, &Subject::ApiKey(&id.to_string()), 0);
        }
        take(&memory, &long, &ALICE, 0);
        let room = || memory.shards.iter().map(|shard| lock(shard).capacity()).sum::<usize>();
        memory.sweep(1_000).await;
        assert_eq!(memory.len(), 10_001, "they end a millisecond later");
        let before = room();
        memory.sweep(1_001).await;
        assert_eq!(memory.len(), 1);
        assert!(room() < before / 100, "{} of {before}", room());
        assert!(!take(&memory, &long, &ALICE, 1_001).allowed);
    }
}
