//! Redis killed, then frozen, under 200 requests a second: nobody notices but the log.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::alone;
use crate::process::{Folder, Process};
use crate::support::redis::PrivateRedis;
use crate::support::until;

const PER_SECOND: u32 = 200;

/// How long each state of Redis is kept up.
const SPAN: Duration = Duration::from_secs(4);

/// What an outage may add to a request, and how long the way back may take.
const MAY_ADD: Duration = Duration::from_millis(100);
const MAY_TAKE: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_redis_is_seen_in_the_log_alone() {
    let _alone = alone().await;
    let Some(mut redis) = PrivateRedis::start().await else { return };
    let folder = Folder::new();
    let url = redis.url();
    let (process, service) = folder
        .serve([
            ("REDIS_URL", url.expose()),
            ("APP_RATE_LIMIT__DEFAULT", "1000000/hour"),
            ("APP_FLOOD_GUARD__ENABLED", "false"),
        ])
        .await;
    let plan = create(&service).await;
    load(&plan, async || {}).await;
    let usual = load(&plan, async || {}).await;
    let (p99, slowest) = (usual[usual.len() * 99 / 100], usual[usual.len() - 1]);
    let shared = remaining(&plan).await;

    let killed = *load(&plan, async || redis.kill()).await.last().unwrap();
    // From nothing, and one by one.
    let local = [remaining(&plan).await, remaining(&plan).await];
    assert!(local[0] > shared && local[1] == local[0] - 1, "{local:?} after {shared}");
    redis.appear().await;
    let back = returned(&process, 1).await;

    let frozen = *load(&plan, async || redis.freeze()).await.last().unwrap();
    let local = [remaining(&plan).await, remaining(&plan).await];
    assert_eq!(local[1], local[0] - 1);
    redis.thaw();
    let thawed = returned(&process, 2).await;

    println!(
        "usual p99 {p99:?}, slowest {slowest:?}; slowest with Redis killed {killed:?}, frozen {frozen:?}; back after \
         {back:?} and {thawed:?}"
    );
    // Of the slowest, which on a busy machine is slow by itself.
    assert!(killed < slowest + MAY_ADD, "killed: {killed:?}, where {slowest:?} is usual");
    assert!(frozen < slowest + MAY_ADD, "frozen: {frozen:?}, where {slowest:?} is usual");
    assert!(back < MAY_TAKE && thawed < MAY_TAKE, "{back:?}, {thawed:?}");
}

async fn create(service: &str) -> String {
    let plan = json!({"name": "a", "start_date": "2027-03-01", "end_date": "2027-05-31"});
    let plans = format!("{service}/api/v1/plans");
    let created = reqwest::Client::new().post(&plans).json(&plan).send().await.unwrap();
    let created: Value = created.json().await.unwrap();
    format!("{plans}/{}", created["id"].as_str().unwrap())
}

/// So many requests a second, with `event` after a quarter of them; how long each took, in order.
/// All are answered as if nothing had been.
async fn load(url: &str, event: impl AsyncFnOnce()) -> Vec<Duration> {
    let client = reqwest::Client::new();
    let count = SPAN.as_secs() as u32 * PER_SECOND;
    let mut event = Some(event);
    let mut pace = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
    let mut requests = Vec::new();
    for index in 0..count {
        pace.tick().await;
        if index == count / 4
            && let Some(event) = event.take()
        {
            event().await;
        }
        let request = client.get(url);
        requests.push(tokio::spawn(async move {
            let start = Instant::now();
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), 200);
            assert!(answer.headers().contains_key("x-ratelimit-remaining"));
            start.elapsed()
        }));
    }
    let mut times = Vec::new();
    for request in requests {
        times.push(request.await.unwrap());
    }
    times.sort_unstable();
    times
}

/// What is left of the quota after one more request.
async fn remaining(url: &str) -> u32 {
    let answer = reqwest::get(url).await.unwrap();
    answer.headers()["x-ratelimit-remaining"].to_str().unwrap().parse().unwrap()
}

/// Waits until the log says for the `nth` time that Redis is back, having said as often, and no more
/// often, that it was away.
async fn returned(process: &Process, nth: usize) -> Duration {
    let start = Instant::now();
    let count = |text| process.lines().iter().filter(|line| line.contains(text)).count();
    until("Redis is back", async || count("Redis is back") == nth).await;
    assert_eq!(count("Redis is away"), nth);
    start.elapsed()
}
