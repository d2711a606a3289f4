//! Two processes and one Redis: a limit is one limit, whatever each takes the time to be.

use std::path::{Path, PathBuf};
use std::process::Command;

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::alone;
use crate::process::{Folder, Process};
use crate::support::redis::PrivateRedis;

const LIMIT: usize = 100;
const REQUESTS: usize = 1_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_kept_to_the_request_by_two_processes() {
    let _alone = alone().await;
    let Some(redis) = PrivateRedis::start().await else { return };
    let folders = [Folder::new(), Folder::new()];
    let (_one, first) = serve(&folders[0], &redis, &[]).await;
    let (_two, second) = serve(&folders[1], &redis, &[]).await;
    println!("two processes: {} of {REQUESTS} allowed", allowed(&[first, second]).await);
}

/// The time of one is a minute ahead, by a library put before the system's.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn the_same_with_clocks_a_minute_apart() {
    let _alone = alone().await;
    let Some(redis) = PrivateRedis::start().await else { return };
    let folders = [Folder::new(), Folder::new()];
    let ahead = clock_a_minute_ahead(folders[1].path());
    let preload = [("LD_PRELOAD", ahead.to_str().unwrap())];
    let (_one, first) = serve(&folders[0], &redis, &[]).await;
    let (mut two, second) = serve(&folders[1], &redis, &preload).await;
    let skew = time_of(&mut two).await - Utc::now();
    assert!(skew.num_seconds() > 50, "the clock is not ahead: {skew}");
    println!(
        "two processes, {} s apart: {} of {REQUESTS} allowed",
        skew.num_seconds(),
        allowed(&[first, second]).await
    );
}

async fn serve(folder: &Folder, redis: &PrivateRedis, more: &[(&str, &str)]) -> (Process, String) {
    let url = redis.url();
    let variables = [
        ("REDIS_URL", url.expose()),
        ("APP_RATE_LIMIT__DEFAULT", "100/hour"),
        ("APP_FLOOD_GUARD__ENABLED", "false"),
        ("APP_SERVER__MAX_IN_FLIGHT", "2000"),
        ("APP_SERVER__MAX_IN_FLIGHT_PER_CLIENT", "2000"),
        // Of two debug builds on a busy machine, none is to take Redis for gone.
        ("APP_CACHE__BUDGET", "30s"),
        ("APP_LOG__FORMAT", "json"),
    ];
    folder.serve(variables.into_iter().chain(more.iter().copied())).await
}

/// Asks all of them at once, and counts who was let in: as many as the limit says.
async fn allowed(urls: &[String]) -> usize {
    let client = reqwest::Client::new();
    let requests: Vec<_> = (0..REQUESTS)
        .map(|index| client.get(format!("{}/api/v1/plans", urls[index % urls.len()])).send())
        .map(tokio::spawn)
        .collect();
    let mut statuses = Vec::new();
    for request in requests {
        statuses.push(request.await.unwrap().unwrap().status().as_u16());
    }
    let count = |status| statuses.iter().filter(|given| **given == status).count();
    assert_eq!((count(200), count(429)), (LIMIT, REQUESTS - LIMIT));
    count(200)
}

fn clock_a_minute_ahead(folder: &Path) -> PathBuf {
    let library = folder.join("ahead.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/load/ahead.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).args([&library, &source]);
    assert!(compiler.status().unwrap().success());
    library
}

async fn time_of(process: &mut Process) -> DateTime<Utc> {
    let line: Value = serde_json::from_str(&process.line("\"ready\"").await).unwrap();
    line["timestamp"].as_str().unwrap().parse().unwrap()
}
