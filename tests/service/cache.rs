//! The cache: what it promises on both stores, and what it does while Redis is away.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use futures_util::future::join_all;
use plinth::cache::{Cache, Key, Store};
use plinth::config::{CacheConfig, SecretUrl};
use plinth::db::{Usage, track_usage};
use plinth::error::{Error, Result};
use reqwest::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use uuid::Uuid;

use crate::support::redis::PrivateRedis;
use crate::support::{Engine, TestApp, server, until};

const HOUR: Duration = Duration::from_secs(3600);

/// Writes each test once and runs it on both stores, on a cache of its own.
macro_rules! both_stores {
    ($(async fn $name:ident($cache:ident) $body:block)+) => {
        both_stores!(@ memory Memory $(async fn $name($cache) $body)+);
        both_stores!(@ redis Redis $(async fn $name($cache) $body)+);
    };
    (@ $module:ident $store:ident $(async fn $name:ident($cache:ident) $body:block)+) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    let Some(config) = config(Store::$store) else { return };
                    let $cache = Cache::connect(&config).await.unwrap();
                    $body
                    assert_eq!($cache.store(), Store::$store, "the store that was to be tested");
                }
            )+
        }
    };
}

/// Entries of its own, and as much time as a busy machine takes.
fn config(store: Store) -> Option<CacheConfig> {
    let redis_url = match store {
        Store::Memory | Store::MemoryWhileRedisIsAway => None,
        Store::Redis => Some(SecretUrl::new(server("TEST_REDIS_URL", "Redis")?)),
    };
    Some(CacheConfig {
        redis_url,
        key_prefix: format!("test-{}", Uuid::now_v7()),
        budget: Duration::from_secs(30),
        ..CacheConfig::default()
    })
}

/// On a Redis of the test's own, with a budget that a busy machine does not exceed by itself.
fn faulty(redis: &PrivateRedis) -> CacheConfig {
    CacheConfig { budget: Duration::from_secs(2), ..within_budget(redis) }
}

/// The same with the budget of production.
fn within_budget(redis: &PrivateRedis) -> CacheConfig {
    CacheConfig {
        redis_url: Some(redis.url()),
        breaker_retry: Duration::from_millis(250),
        ..CacheConfig::default()
    }
}

/// Where loads come from: it counts them, and may hold them.
#[derive(Clone)]
struct Source(Arc<Counts>);

struct Counts {
    gate: Semaphore,
    asked: AtomicU32,
    loads: AtomicU32,
    over: AtomicU32,
}

/// Of a get that may load: gone once the cache has loaded by it, or has found that it need not.
struct Ask(Source);

impl Drop for Ask {
    fn drop(&mut self) {
        self.0.0.over.fetch_add(1, SeqCst);
    }
}

impl Source {
    fn open() -> Self {
        let source = Self::held();
        source.release();
        source
    }

    /// Lets no load end before [`Source::release`].
    fn held() -> Self {
        Self(Arc::new(Counts {
            gate: Semaphore::new(0),
            asked: AtomicU32::new(0),
            loads: AtomicU32::new(0),
            over: AtomicU32::new(0),
        }))
    }

    fn release(&self) {
        self.0.gate.close();
    }

    fn loads(&self) -> u32 {
        self.0.loads.load(SeqCst)
    }

    /// Waits until of all that asked only one is loading: the rest have joined it.
    async fn shared_by(&self, asked: u32) {
        until("all share one load", async || {
            self.0.asked.load(SeqCst) == asked && self.0.over.load(SeqCst) == asked - 1
        })
        .await;
    }

    fn load<T: Send + 'static>(
        &self,
        outcome: Result<Option<T>>,
    ) -> impl Future<Output = Result<Option<T>>> + Send + 'static {
        self.0.asked.fetch_add(1, SeqCst);
        let ask = Ask(self.clone());
        async move {
            ask.0.0.loads.fetch_add(1, SeqCst);
            let closed = ask.0.0.gate.acquire().await.is_err();
            assert!(closed, "a gate opens by being closed for good");
            outcome
        }
    }

    fn gives(&self, text: &str) -> impl Future<Output = Result<Option<String>>> + Send + 'static {
        self.load(Ok(Some(text.to_owned())))
    }
}

/// A get, together with the load that it begins and the keeping of what was loaded.
async fn get<T>(
    cache: &Cache,
    key: &Key,
    load: impl Future<Output = Result<Option<T>>> + Send + 'static,
) -> Result<Option<T>>
where
    T: Serialize + DeserializeOwned + Send + 'static,
{
    let usage = Arc::new(Usage::default());
    let got = track_usage(usage.clone(), cache.get_or_load(key, load)).await;
    settled(&usage).await;
    got
}

/// Waits for the tasks that were begun for `usage`: each holds it to its end.
async fn settled(usage: &Arc<Usage>) {
    until("what was loaded is kept", async || Arc::strong_count(usage) == 1).await;
}

async fn text(cache: &Cache, key: &Key, source: &Source, loaded: &str) -> String {
    get(cache, key, source.gives(loaded)).await.unwrap().unwrap()
}

/// A get in a task of its own.
fn asking(
    cache: &Cache,
    usage: &Arc<Usage>,
    load: impl Future<Output = Result<Option<String>>> + Send + 'static,
) -> JoinHandle<String> {
    let cache = cache.clone();
    let get = async move { cache.get_or_load(&key(), load).await.unwrap().unwrap() };
    tokio::spawn(track_usage(usage.clone(), get))
}

fn key() -> Key {
    Key::new("texts", "a/b: {c}")
}

/// Past its soft age as soon as it is kept.
fn stale_key() -> Key {
    key().with_ttl(Duration::ZERO, HOUR)
}

both_stores! {
    async fn an_entry_is_loaded_once(cache) {
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        struct Row {
            id: Uuid,
            name: Option<String>,
            at: chrono::DateTime<chrono::Utc>,
        }
        let source = Source::open();
        let row = || Row { id: Uuid::max(), name: None, at: chrono::DateTime::UNIX_EPOCH };
        for _ in 0..3 {
            let got = get(&cache, &key(), source.load(Ok(Some(row())))).await.unwrap();
            assert_eq!(got, Some(row()));
        }
        assert_eq!(source.loads(), 1);
        let other = Key::new("texts", "another");
        assert_eq!(text(&cache, &other, &source, "another").await, "another");
        assert_eq!(source.loads(), 2);
    }

    async fn what_is_not_there_is_not_kept(cache) {
        let source = Source::open();
        for loads in 1..=2 {
            let got = get::<String>(&cache, &key(), source.load(Ok(None))).await;
            assert!(got.unwrap().is_none());
            assert_eq!(source.loads(), loads);
        }
        assert_eq!(text(&cache, &key(), &source, "now").await, "now");
    }

    async fn an_error_of_the_load_is_told_and_not_kept(cache) {
        let source = Source::open();
        for loads in 1..=2 {
            let conflict = source.load::<String>(Err(Error::Conflict("mine")));
            let error = get(&cache, &key(), conflict).await.unwrap_err();
            assert!(matches!(error, Error::Conflict("mine")), "{error:?}");
            assert_eq!(source.loads(), loads);
        }
        assert_eq!(text(&cache, &key(), &source, "now").await, "now");
    }

    async fn a_load_that_panics_fails_those_who_wait_and_nobody_after(cache) {
        let panics = async { panic!("on purpose") };
        let error = get::<String>(&cache, &key(), panics).await.unwrap_err();
        assert!(matches!(error, Error::Internal(_)), "{error:?}");
        assert_eq!(text(&cache, &key(), &Source::open(), "now").await, "now");
    }

    async fn a_hundred_at_once_share_one_load(cache) {
        let source = Source::held();
        let usage = Arc::new(Usage::default());
        let gets: Vec<_> =
            (0..100).map(|_| asking(&cache, &usage, source.gives("one"))).collect();
        source.shared_by(100).await;
        source.release();
        for got in join_all(gets).await {
            assert_eq!(got.unwrap(), "one");
        }
        assert_eq!(source.loads(), 1);
    }

    async fn who_leaves_takes_no_load_along(cache) {
        let source = Source::held();
        let usage = Arc::new(Usage::default());
        let leader = asking(&cache, &usage, source.gives("one"));
        until("the leader loads", async || source.loads() == 1).await;
        let follower = asking(&cache, &usage, source.gives("two"));
        source.shared_by(2).await;
        leader.abort();
        assert!(leader.await.unwrap_err().is_cancelled());
        source.release();
        assert_eq!(follower.await.unwrap(), "one");
        settled(&usage).await;
        assert_eq!(text(&cache, &key(), &source, "two").await, "one", "it was kept");
        assert_eq!(source.loads(), 1);
    }

    async fn past_its_soft_age_an_entry_is_served_and_renewed_once(cache) {
        text(&cache, &stale_key(), &Source::open(), "old").await;
        let source = Source::held();
        let usage = Arc::new(Usage::default());
        let gets: Vec<_> =
            (0..100).map(|_| asking(&cache, &usage, source.gives("new"))).collect();
        for got in join_all(gets).await {
            assert_eq!(got.unwrap(), "old", "while its renewal is held");
        }
        source.shared_by(100).await;
        source.release();
        settled(&usage).await;
        assert_eq!(source.loads(), 1);
        assert_eq!(text(&cache, &key(), &source, "newer").await, "new");
        assert_eq!(source.loads(), 1, "it is fresh again");
    }

    async fn past_its_hard_age_an_entry_is_gone(cache) {
        let short = key().with_ttl(Duration::ZERO, Duration::from_millis(200));
        text(&cache, &short, &Source::open(), "old").await;
        // Its renewal fails, so nothing but its age can end it.
        until("it is gone", async || {
            match get::<String>(&cache, &short, async { Err(Error::Timeout) }).await {
                Ok(got) => {
                    assert_eq!(got.unwrap(), "old");
                    false
                }
                Err(error) => matches!(error, Error::Timeout),
            }
        })
        .await;
        assert_eq!(text(&cache, &key(), &Source::open(), "new").await, "new");
    }

    async fn an_entry_outlives_the_failures_of_its_source(cache) {
        text(&cache, &stale_key(), &Source::open(), "old").await;
        let source = Source::open();
        for loads in 1..=20 {
            let got = get(&cache, &key(), source.load::<String>(Err(Error::Timeout))).await;
            assert_eq!(got.unwrap().unwrap(), "old");
            assert_eq!(source.loads(), loads, "each time the source is tried again");
        }
        assert_eq!(text(&cache, &key(), &source, "new").await, "old");
        assert_eq!(text(&cache, &key(), &source, "newer").await, "new", "the source was back");
    }

    async fn a_removed_entry_is_loaded_again(cache) {
        let neighbour = Key::new("texts", "neighbour");
        let source = Source::open();
        text(&cache, &key(), &source, "old").await;
        text(&cache, &neighbour, &source, "old").await;
        cache.remove(&key()).await;
        assert_eq!(text(&cache, &key(), &source, "new").await, "new");
        assert_eq!(text(&cache, &key(), &source, "newer").await, "new", "it is kept again");
        assert_eq!(text(&cache, &neighbour, &source, "new").await, "old");
    }

    async fn a_removed_space_is_empty_and_its_neighbour_is_not(cache) {
        let neighbour = Key::new("text", "1");
        let ours: Vec<Key> = (0..50).map(|id| Key::new("texts", id)).collect();
        let source = Source::open();
        text(&cache, &neighbour, &source, "old").await;
        for key in &ours {
            text(&cache, key, &source, "old").await;
        }
        cache.remove_all("texts").await;
        for key in &ours {
            assert_eq!(text(&cache, key, &source, "new").await, "new");
            assert_eq!(text(&cache, key, &source, "newer").await, "new", "it is kept again");
        }
        assert_eq!(text(&cache, &neighbour, &source, "new").await, "old");
    }

    async fn a_load_begun_before_a_removal_is_not_kept_after_it(cache) {
        for first in [None, Some("older")] {
            if let Some(first) = first {
                cache.remove(&key()).await;
                text(&cache, &stale_key(), &Source::open(), first).await;
            }
            outrun(&cache, async || cache.remove(&key()).await).await;
        }
    }

    async fn a_load_begun_before_its_space_was_removed_is_not_kept_after_it(cache) {
        for first in [None, Some("older")] {
            if let Some(first) = first {
                cache.remove(&key()).await;
                text(&cache, &stale_key(), &Source::open(), first).await;
            }
            outrun(&cache, async || cache.remove_all("texts").await).await;
        }
    }

    async fn the_load_of_a_reader_after_a_removal_survives_the_one_before(cache) {
        let before = Source::held();
        let usage = Arc::new(Usage::default());
        let old = asking(&cache, &usage, before.gives("old"));
        until("the first loads", async || before.loads() == 1).await;
        cache.remove(&key()).await;
        let after = Source::open();
        assert_eq!(text(&cache, &key(), &after, "new").await, "new", "it did not join the first");
        before.release();
        assert_eq!(old.await.unwrap(), "old", "whoever asked before may see it");
        settled(&usage).await;
        assert_eq!(text(&cache, &key(), &after, "newer").await, "new");
        assert_eq!(after.loads(), 1);
    }

    async fn what_cannot_be_read_is_loaded_anew(cache) {
        text(&cache, &key(), &Source::open(), "not a number").await;
        let source = Source::open();
        for _ in 0..2 {
            let got = get(&cache, &key(), source.load(Ok(Some(vec![1, 2])))).await.unwrap();
            assert_eq!(got, Some(vec![1, 2]));
        }
        assert_eq!(source.loads(), 1, "it was replaced");
    }
}

/// Holds a load, removes what it loads, lets it end, and reads again.
async fn outrun(cache: &Cache, remove: impl AsyncFnOnce()) {
    let before = Source::held();
    let usage = Arc::new(Usage::default());
    let get = asking(cache, &usage, before.gives("old"));
    until("it loads", async || before.loads() == 1).await;
    remove().await;
    before.release();
    get.await.unwrap();
    settled(&usage).await;
    assert_eq!(text(cache, &key(), &Source::open(), "new").await, "new");
}

#[tokio::test]
async fn memory_is_bounded() {
    let mut config = config(Store::Memory).unwrap();
    config.max_memory = ByteSize::mib(1);
    let cache = Cache::connect(&config).await.unwrap();
    let body = "x".repeat(10_000);
    for id in 0..1000 {
        text(&cache, &Key::new("texts", id), &Source::open(), &body).await;
    }
    // What has to go goes soon, not at once.
    until("it has shrunk", async || {
        let mut kept = 0;
        for id in 0..1000 {
            let gone = get::<String>(&cache, &Key::new("texts", id), async { Ok(None) }).await;
            kept += usize::from(gone.unwrap().is_some());
        }
        assert!(kept > 0, "it keeps something");
        kept * body.len() <= 1024 * 1024
    })
    .await;
    for id in 0..20_000 {
        cache.remove(&Key::new("texts", id)).await;
    }
    assert_eq!(text(&cache, &Key::new("texts", 0), &Source::open(), "new").await, "new");
}

#[tokio::test]
async fn processes_that_share_redis_see_one_another() {
    let Some(config) = config(Store::Redis) else { return };
    let one = Cache::connect(&config).await.unwrap();
    let two = Cache::connect(&config).await.unwrap();
    let source = Source::open();
    text(&one, &key(), &source, "old").await;
    assert_eq!(text(&two, &key(), &source, "new").await, "old");
    one.remove(&key()).await;
    assert_eq!(text(&two, &key(), &source, "new").await, "new");
    two.remove_all("texts").await;
    assert_eq!(text(&one, &key(), &source, "newer").await, "newer");

    // A load here does not put back what was removed there.
    one.remove(&key()).await;
    outrun(&one, async || two.remove(&key()).await).await;
    one.remove(&key()).await;
    outrun(&one, async || two.remove_all("texts").await).await;

    let apart = CacheConfig { key_prefix: format!("{}-2", config.key_prefix), ..config };
    let apart = Cache::connect(&apart).await.unwrap();
    assert_eq!(text(&apart, &key(), &source, "apart").await, "apart", "another prefix");
}

#[tokio::test]
async fn an_unusable_redis_url_is_one_line_without_its_password() {
    let mut config = config(Store::Memory).unwrap();
    config.redis_url = Some(SecretUrl::new("http://:hunter2@localhost"));
    let Err(error) = Cache::connect(&config).await else { panic!("it was taken") };
    let error = format!("{error:#}");
    assert!(error.contains("is not a Redis URL"), "{error}");
    assert!(!error.contains("hunter2") && !error.contains('\n'), "{error}");
}

async fn away(cache: &Cache) {
    until("Redis is left alone", async || {
        text(cache, &key(), &Source::open(), "any").await;
        cache.store() == Store::MemoryWhileRedisIsAway
    })
    .await;
}

async fn back(cache: &Cache) {
    until("Redis is back", async || cache.store() == Store::Redis).await;
}

#[tokio::test]
async fn without_redis_at_the_start_it_waits_for_it_in_memory() {
    let Some(mut redis) = PrivateRedis::absent() else { return };
    let cache = Cache::connect(&faulty(&redis)).await.unwrap();
    assert_eq!(cache.store(), Store::MemoryWhileRedisIsAway);
    assert!(cache.check().is_err());
    let source = Source::open();
    text(&cache, &key(), &source, "in memory").await;
    assert_eq!(text(&cache, &key(), &source, "again").await, "in memory");

    redis.appear().await;
    back(&cache).await;
    assert!(cache.check().is_ok());
    assert_eq!(text(&cache, &key(), &source, "in Redis").await, "in Redis");
    let other = Cache::connect(&faulty(&redis)).await.unwrap();
    assert_eq!(text(&other, &key(), &source, "again").await, "in Redis");
}

/// Gets all the while, each within the budget, from tasks of their own.
struct Traffic {
    gets: Arc<AtomicU64>,
    worst: Arc<AtomicU64>,
    over: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Traffic {
    fn begin(cache: &Cache) -> Self {
        let (gets, worst) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let over = CancellationToken::new();
        let tasks = (0..4).map(|_| {
            let (cache, gets, worst) = (cache.clone(), gets.clone(), worst.clone());
            let over = over.clone();
            tokio::spawn(async move {
                while !over.is_cancelled() {
                    let key = Key::new("traffic", fastrand::u8(..));
                    let start = Instant::now();
                    let got = cache.get_or_load(&key, async { Ok(Some(1)) }).await;
                    let took = u64::try_from(start.elapsed().as_micros()).unwrap();
                    assert_eq!(got.unwrap(), Some(1));
                    worst.fetch_max(took, SeqCst);
                    gets.fetch_add(1, SeqCst);
                    tokio::time::sleep(Duration::from_micros(200)).await;
                }
            })
        });
        let tasks = tasks.collect();
        Self { gets, worst, over, tasks }
    }

    async fn goes_on(&self) {
        let enough = self.gets.load(SeqCst) + 200;
        until("200 more gets", async || self.gets.load(SeqCst) > enough).await;
    }

    /// The longest that a get took.
    async fn end(self) -> Duration {
        self.over.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
        Duration::from_micros(self.worst.load(SeqCst))
    }
}

/// How late a thread of its own is woken: what the machine adds to any time that is measured.
struct Noise {
    over: CancellationToken,
    thread: std::thread::JoinHandle<Duration>,
}

impl Noise {
    fn listen() -> Self {
        let over = CancellationToken::new();
        let seen = over.clone();
        let thread = std::thread::spawn(move || {
            let mut worst = Duration::ZERO;
            while !seen.is_cancelled() {
                let start = Instant::now();
                std::thread::sleep(Duration::from_millis(1));
                worst = worst.max(start.elapsed());
            }
            worst
        });
        Self { over, thread }
    }

    fn worst(self) -> Duration {
        self.over.cancel();
        self.thread.join().unwrap()
    }
}

/// Breaks Redis under traffic: no get fails, none takes longer than the budget and what a busy
/// machine adds.
async fn survives(
    break_it: impl FnOnce(&mut PrivateRedis),
    mend: impl AsyncFnOnce(&mut PrivateRedis),
) {
    let Some(mut redis) = PrivateRedis::start().await else { return };
    let config = within_budget(&redis);
    let cache = Cache::connect(&config).await.unwrap();
    let noise = Noise::listen();
    let traffic = Traffic::begin(&cache);
    traffic.goes_on().await;
    back(&cache).await;
    break_it(&mut redis);
    until("Redis is left alone", async || cache.store() == Store::MemoryWhileRedisIsAway).await;
    traffic.goes_on().await;
    let source = Source::open();
    text(&cache, &key(), &source, "in memory").await;
    assert_eq!(text(&cache, &key(), &source, "again").await, "in memory");
    let (worst, noise) = (traffic.end().await, noise.worst());
    eprintln!("the slowest get took {worst:?}, on a machine that is {noise:?} late");
    let most = config.budget + Duration::from_millis(250) + 8 * noise;
    assert!(worst < most, "{worst:?}, on a machine that is {noise:?} late");

    let traffic = Traffic::begin(&cache);
    mend(&mut redis).await;
    let mended = Instant::now();
    back(&cache).await;
    eprintln!("it was back {:?} after Redis", mended.elapsed());
    traffic.goes_on().await;
    traffic.end().await;
    let other = Cache::connect(&faulty(&redis)).await.unwrap();
    until("entries are kept in Redis", async || {
        other.remove(&key()).await;
        text(&cache, &key(), &source, "in Redis").await;
        text(&other, &key(), &source, "not there").await == "in Redis"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_redis_costs_no_get_more_than_the_budget() {
    survives(PrivateRedis::kill, async |redis| redis.appear().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_redis_costs_no_get_more_than_the_budget() {
    survives(|redis| redis.freeze(), async |redis| redis.thaw()).await;
}

#[tokio::test]
async fn a_redis_that_is_frozen_at_the_start_is_waited_for_in_memory() {
    let Some(redis) = PrivateRedis::start().await else { return };
    redis.freeze();
    let cache = Cache::connect(&faulty(&redis)).await.unwrap();
    assert_eq!(cache.store(), Store::MemoryWhileRedisIsAway);
    assert_eq!(text(&cache, &key(), &Source::open(), "in memory").await, "in memory");
    redis.thaw();
    back(&cache).await;
}

#[tokio::test]
async fn what_was_removed_while_redis_was_away_stays_removed() {
    let Some(redis) = PrivateRedis::start().await else { return };
    let cache = Cache::connect(&faulty(&redis)).await.unwrap();
    let source = Source::open();
    let keys = [Key::new("one", 1), Key::new("one", 2), Key::new("all", 1), Key::new("all", 2)];
    for key in &keys {
        text(&cache, key, &source, "old").await;
    }
    redis.freeze();
    // The first finds out that Redis is away.
    cache.remove(&keys[0]).await;
    assert_eq!(cache.store(), Store::MemoryWhileRedisIsAway, "it must not be read again before");
    cache.remove(&keys[1]).await;
    cache.remove_all("all").await;
    for key in &keys {
        assert_eq!(text(&cache, key, &source, "new").await, "new");
    }
    redis.thaw();
    back(&cache).await;
    for key in &keys {
        assert_eq!(text(&cache, key, &source, "newer").await, "newer", "old is gone from Redis");
    }
}

#[tokio::test]
async fn more_removals_than_are_remembered_empty_their_spaces() {
    let Some(redis) = PrivateRedis::start().await else { return };
    let cache = Cache::connect(&faulty(&redis)).await.unwrap();
    let source = Source::open();
    let keys: Vec<Key> = (0..10_050).map(|id| Key::new("many", id)).collect();
    let (first, last) = (&keys[0], &keys[10_049]);
    let other = Key::new("other", 1);
    for key in [first, last, &other] {
        text(&cache, key, &source, "old").await;
    }
    redis.freeze();
    for key in &keys {
        cache.remove(key).await;
    }
    redis.thaw();
    back(&cache).await;
    for key in [first, last] {
        assert_eq!(text(&cache, key, &source, "new").await, "new");
    }
    assert_eq!(text(&cache, &other, &source, "new").await, "old");
}

#[tokio::test]
async fn a_load_that_outlasts_an_outage_puts_back_nothing_that_was_removed() {
    let Some(mut redis) = PrivateRedis::absent() else { return };
    let cache = Cache::connect(&faulty(&redis)).await.unwrap();
    // Begun in memory, removed there, and ended when Redis is back: not found in memory later.
    outrun(&cache, async || {
        cache.remove(&key()).await;
        redis.appear().await;
        back(&cache).await;
    })
    .await;
    redis.kill();
    let source = Source::open();
    until("Redis is left alone", async || {
        text(&cache, &Key::new("texts", "other"), &source, "any").await;
        cache.store() == Store::MemoryWhileRedisIsAway
    })
    .await;
    assert_eq!(text(&cache, &key(), &source, "newer").await, "newer");
}

#[tokio::test]
async fn a_load_that_outlasts_redis_itself_puts_back_nothing_that_was_removed() {
    let Some(mut redis) = PrivateRedis::start().await else { return };
    let cache = Cache::connect(&faulty(&redis)).await.unwrap();
    // The removal is known to Redis, which then forgets everything.
    outrun(&cache, async || {
        cache.remove(&key()).await;
        redis.kill();
        let other = Key::new("texts", "other");
        until("Redis is left alone", async || {
            text(&cache, &other, &Source::open(), "any").await;
            cache.store() == Store::MemoryWhileRedisIsAway
        })
        .await;
        redis.appear().await;
        back(&cache).await;
    })
    .await;
}

/// What the link to Redis logs, on this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl<S: tracing::Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        struct Message(String);
        impl Visit for Message {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        if event.metadata().target().starts_with("plinth::redis") {
            let mut message = Message(String::new());
            event.record(&mut message);
            self.0.lock().unwrap().push(message.0);
        }
    }
}

/// On one thread, so that its subscriber hears the tasks too.
#[tokio::test]
async fn each_change_is_one_log_line() {
    let Some(mut redis) = PrivateRedis::absent() else { return };
    let lines = Lines::default();
    let subscriber = tracing_subscriber::registry().with(lines.clone());
    // While there is but one subscriber, tracing asks only the thread that comes first to a line
    // whether anyone listens to it, and that may be another test's.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _guard = tracing::subscriber::set_default(subscriber);

    let cache = Cache::connect(&faulty(&redis)).await.unwrap();
    away(&cache).await;
    assert_eq!(lines.take(), ["Redis is not there; going on in process"]);
    redis.appear().await;
    back(&cache).await;
    assert_eq!(lines.take(), ["Redis is back"]);
    for _ in 0..2 {
        redis.freeze();
        let keys: Vec<Key> = (0..100).map(|id| Key::new("many", id)).collect();
        let gets = keys.iter().map(|key| cache.get_or_load(key, async { Ok(Some(1)) }));
        for got in join_all(gets).await {
            assert_eq!(got.unwrap(), Some(1));
        }
        join_all(keys.iter().map(|key| cache.remove(key))).await;
        assert_eq!(cache.store(), Store::MemoryWhileRedisIsAway);
        assert_eq!(lines.take(), ["Redis is away; going on in process"]);
        redis.thaw();
        back(&cache).await;
        assert_eq!(lines.take(), ["Redis is back"]);
    }
    redis.kill();
    away(&cache).await;
    assert_eq!(lines.take(), ["Redis is away; going on in process"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_redis_freezes_goes_on_and_comes_back() {
    let Some(redis) = PrivateRedis::start().await else { return };
    let change = |config: &mut plinth::config::Config| {
        config.cache = within_budget(&redis);
        config.health.interval = Duration::from_millis(50);
    };
    let app = TestApp::start_with(Engine::Sqlite, change).await.unwrap();
    let plan = json!({"name": "Spring", "start_date": "2027-03-01", "end_date": "2027-05-31"});
    let created = app.post("/api/v1/plans").json(&plan).send().await.unwrap();
    let path = created.headers()["location"].to_str().unwrap().to_owned();
    let read = async || {
        let answer = app.get(&path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        answer.json::<Value>().await.unwrap()["name"].clone()
    };
    let health = async || -> Value {
        let ready = app.get("/health/ready").send().await.unwrap();
        assert_eq!(ready.status(), StatusCode::OK, "Redis is not critical");
        app.get("/health").send().await.unwrap().json().await.unwrap()
    };
    let healthy = async || {
        let health = health().await;
        health["cache"] == "redis" && health["checks"]["cache"]["status"] == "pass"
    };
    assert_eq!(read().await, "Spring");
    until("it is healthy", healthy).await;

    redis.freeze();
    until("its health says so", async || {
        assert_eq!(read().await, "Spring");
        let health = health().await;
        health["cache"] == "memory_while_redis_is_away"
            && health["checks"]["cache"]["status"] == "fail"
    })
    .await;
    let plan = json!({"name": "Summer", "start_date": "2027-03-01", "end_date": "2027-05-31"});
    let changed = app.put(&path).header("if-match", "\"1\"").json(&plan).send().await.unwrap();
    assert_eq!(changed.status(), StatusCode::OK);
    assert_eq!(read().await, "Summer");

    redis.thaw();
    until("its health says so", async || {
        assert_eq!(read().await, "Summer", "what Redis still knew was not read again");
        healthy().await
    })
    .await;
    assert_eq!(read().await, "Summer");
}
