//! Quotas counted in Redis: exact for all who share it, and what happens while it is away.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_redis::redis::{self, AsyncCommands};
use futures_util::future::join_all;
use plinth::cache::Cache;
use plinth::config::{CacheConfig, OnStoreFailure, RateLimitConfig};
use plinth::error::Error;
use plinth::ratelimit::{Caller, Limits, Verdict};
use plinth::redis::Redis;

use crate::support::redis::PrivateRedis;
use crate::support::until;

/// One process's limits, with the link that they share with its cache.
struct Process {
    limits: Limits,
    redis: Arc<Redis>,
}

impl Process {
    async fn start(redis: &PrivateRedis, change: impl FnOnce(&mut RateLimitConfig)) -> Self {
        let link = CacheConfig {
            redis_url: Some(redis.url()),
            // Which a busy machine does not exceed by itself.
            budget: Duration::from_secs(4),
            breaker_failures: 1,
            breaker_retry: Duration::from_millis(250),
            ..CacheConfig::default()
        };
        let mut config =
            RateLimitConfig { default: "3/hour".parse().unwrap(), ..RateLimitConfig::default() };
        change(&mut config);
        let redis = Cache::connect(&link).await.unwrap().redis().unwrap();
        Self { limits: Limits::new(&config, Some(redis.clone())), redis }
    }

    async fn take(&self, principal: &str) -> Verdict {
        self.limits.take("default", &user(principal)).await.unwrap()
    }

    async fn left(&self, principal: &str) -> Vec<u32> {
        remaining(&self.limits.peek("default", &user(principal)).await.unwrap())
    }

    async fn away(&self) {
        until("Redis is left alone", async || {
            self.limits.peek("auth", &user("nobody")).await;
            !self.redis.is_connected()
        })
        .await;
    }

    async fn back(&self) {
        until("Redis is back", async || self.redis.is_connected()).await;
    }
}

fn user(principal: &str) -> Caller<'_> {
    let ip = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
    Caller { principal: Some(principal), api_key: None, ip, overrides: None }
}

fn remaining(verdict: &Verdict) -> Vec<u32> {
    verdict.windows.iter().map(|window| window.remaining).collect()
}

async fn commands(redis: &PrivateRedis) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(redis.url().expose()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

async fn size(commands: &mut redis::aio::MultiplexedConnection) -> u64 {
    redis::cmd("DBSIZE").query_async(commands).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_allow_exactly_the_limit_together() {
    let Some(redis) = PrivateRedis::start().await else { return };
    let hundred = |config: &mut RateLimitConfig| config.default = "100/hour".parse().unwrap();
    let processes = [Process::start(&redis, hundred).await, Process::start(&redis, hundred).await];
    let takes = (0..1_000).map(|index| {
        let limits = processes[index % 2].limits.clone();
        tokio::spawn(async move { limits.take("default", &user("user:alice")).await.unwrap() })
    });
    let verdicts: Vec<_> =
        join_all(takes).await.into_iter().map(|verdict| verdict.unwrap()).collect();
    let mut left: Vec<u32> =
        verdicts.iter().filter(|verdict| verdict.allowed).map(|v| remaining(v)[0]).collect();
    left.sort_unstable();
    assert_eq!(left, (0..100).collect::<Vec<_>>(), "each was told its own number");
    for process in &processes {
        assert!(process.redis.is_connected());
        assert_eq!(process.limits.tracked(), 0, "nothing was counted in memory");
        assert_eq!(process.left("user:alice").await, [0]);
        assert_eq!(process.left("user:bob").await, [100]);
    }
}

#[tokio::test]
async fn a_refused_request_costs_nothing_in_any_window() {
    let Some(redis) = PrivateRedis::start().await else { return };
    let windows = |config: &mut RateLimitConfig| config.default = "2/hour, 3/day".parse().unwrap();
    let process = Process::start(&redis, windows).await;
    for (allowed, left) in [(true, [1, 2]), (true, [0, 1]), (false, [0, 1]), (false, [0, 1])] {
        let verdict = process.take("user:alice").await;
        assert_eq!((verdict.allowed, remaining(&verdict)), (allowed, left.to_vec()));
    }
    let refused = process.take("user:alice").await;
    let Error::TooManyRequests { policies, retry_after } = refused.refusal() else {
        panic!("another error")
    };
    assert_eq!(policies, ["default-hour"]);
    assert!((Duration::from_secs(3_000)..=Duration::from_secs(3_600)).contains(&retry_after));
    assert_eq!(process.limits.tracked(), 0, "nothing was counted in memory");
}

#[tokio::test]
async fn a_window_ends_no_sooner_than_it_says_and_leaves_nothing() {
    let Some(redis) = PrivateRedis::start().await else { return };
    let second = |config: &mut RateLimitConfig| config.default = "2/second".parse().unwrap();
    let process = Process::start(&redis, second).await;
    let begun = Instant::now();
    // A peek begins no window.
    assert_eq!(process.left("user:alice").await, [2]);
    let mut commands = commands(&redis).await;
    assert_eq!(size(&mut commands).await, 0);
    until("as many as the limit are allowed", async || !process.take("user:alice").await.allowed)
        .await;
    until("a window has begun anew", async || process.take("user:alice").await.allowed).await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    until("nothing is left", async || size(&mut commands).await == 0).await;
    assert_eq!(process.limits.tracked(), 0, "nothing was counted in memory");
}

#[tokio::test]
async fn each_caller_is_one_key_that_ends_with_its_longest_window() {
    let Some(redis) = PrivateRedis::start().await else { return };
    let windows =
        |config: &mut RateLimitConfig| config.default = "5/minute, 9/hour".parse().unwrap();
    let process = Process::start(&redis, windows).await;
    let other = Process::start(&redis, |config| config.default = "5/minute".parse().unwrap()).await;
    process.take("user:al}i{ce").await;
    // A release with shorter windows does not forget those of another.
    other.take("user:al}i{ce").await;
    let mut commands = commands(&redis).await;
    let keys: Vec<String> = commands.keys("*").await.unwrap();
    assert_eq!(keys, ["plinth:ratelimit:{default:principal:user:al}i{ce}"]);
    let ttl: i64 = commands.pttl(&keys[0]).await.unwrap();
    assert!((3_000_000..=3_600_001).contains(&ttl), "{ttl}");
    assert_eq!(process.left("user:al}i{ce").await, [3, 8]);
}

/// Breaks Redis after two of three are taken, and brings it back.
async fn survives(
    break_it: impl FnOnce(&mut PrivateRedis),
    mend: impl AsyncFnOnce(&mut PrivateRedis),
    left_in_redis: u32,
) {
    let Some(mut redis) = PrivateRedis::start().await else { return };
    let local = Process::start(&redis, |_| {}).await;
    let deny =
        Process::start(&redis, |config| config.on_store_failure = OnStoreFailure::Deny).await;
    let allow =
        Process::start(&redis, |config| config.on_store_failure = OnStoreFailure::Allow).await;
    for process in [&local, &deny] {
        process.take("user:alice").await;
    }
    break_it(&mut redis);
    for process in [&local, &deny, &allow] {
        process.away().await;
    }

    for left in [2, 1, 0] {
        let verdict = local.take("user:alice").await;
        assert_eq!((verdict.allowed, remaining(&verdict)), (true, vec![left]), "counted here");
    }
    assert!(!local.take("user:alice").await.allowed);

    let denied = deny.take("user:alice").await;
    assert_eq!((denied.allowed, remaining(&denied)), (false, vec![0]));
    let Error::TooManyRequests { policies, retry_after } = denied.refusal() else {
        panic!("another error")
    };
    assert_eq!((policies, retry_after), (vec!["default-hour".to_owned()], Duration::from_secs(1)));

    for _ in 0..9 {
        assert_eq!(allow.limits.take("default", &user("user:alice")).await, None);
    }
    for process in [&deny, &allow] {
        for allowed in [true, true, true, true, true, false] {
            let guess = process.limits.take("auth", &user("user:mallory")).await.unwrap();
            assert_eq!(guess.allowed, allowed, "guesses stay counted");
        }
    }

    mend(&mut redis).await;
    for process in [&local, &deny, &allow] {
        process.back().await;
        assert_eq!(process.left("user:alice").await, [left_in_redis]);
    }
    local.take("user:alice").await;
    assert_eq!(deny.left("user:alice").await, [left_in_redis - 1], "they count together again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_redis_is_gone_on_without() {
    survives(PrivateRedis::kill, async |redis| redis.appear().await, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_redis_is_gone_on_without() {
    survives(|redis| redis.freeze(), async |redis| redis.thaw(), 1).await;
}

#[tokio::test]
async fn a_redis_that_forgets_the_script_is_told_again() {
    let Some(redis) = PrivateRedis::start().await else { return };
    let process = Process::start(&redis, |_| {}).await;
    process.take("user:alice").await;
    let mut commands = commands(&redis).await;
    let () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut commands).await.unwrap();
    let verdict = process.take("user:alice").await;
    assert_eq!((verdict.allowed, remaining(&verdict)), (true, vec![1]));
    assert_eq!(process.limits.tracked(), 0, "it was not counted in memory instead");
}

#[tokio::test]
async fn who_waits_on_a_connection_is_let_go_when_it_is_left() {
    let Some(redis) = PrivateRedis::start().await else { return };
    let process = Process::start(&redis, |_| {}).await;
    let live = process.redis.live().unwrap();
    let forever = async |_| std::future::pending().await;
    let waiting = process.redis.ask::<()>(&live, Duration::from_secs(3_600), forever);
    let leaving = async {
        tokio::task::yield_now().await;
        process.redis.leave("a test says so");
    };
    let both = async { tokio::join!(waiting, leaving) };
    let (answer, ()) = tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
    assert_eq!(answer, None);
    assert!(!process.redis.is_connected());
    process.back().await;
}
