//! Signals: the drain, its order and its limits.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use rustix::process::Signal;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::process::{Folder, PATIENCE, Process};
use crate::wire;

/// What a stop may take beyond its limits, on a busy machine.
const SLACK: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_request_in_flight_finishes_and_the_exit_is_clean() {
    for signal in [Signal::TERM, Signal::INT] {
        let folder = Folder::new();
        let (mut process, url) = folder.serve([("APP_ENV", "test")]).await;
        let post = wire::begin_post(&url, "").await;
        process.signal(signal);
        process.line("no longer accepting").await;
        let answer = wire::finish_post(post).await;
        assert!(answer.starts_with("HTTP/1.1 201 Created"), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");

        let ended = process.ended().await;
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        assert!(ended.err.is_empty(), "{ended:#?}");
        assert!(ended.out.last().unwrap().contains("stopped"), "{ended:#?}");
        assert!(!folder.path().join("data/plinth.db-wal").exists(), "the database was closed");
    }
}

#[tokio::test]
async fn the_pre_stop_delay_refuses_readiness_and_serves_on_until_a_second_signal() {
    let folder = Folder::new();
    let long = [("APP_SERVER__PRE_STOP_DELAY", "10m"), ("APP_SERVER__DRAIN_TIMEOUT", "10m")];
    let (mut process, url) = folder.serve(long).await;
    process.signal(Signal::TERM);
    process.line("draining").await;
    for (path, status) in [
        ("/health/ready", StatusCode::SERVICE_UNAVAILABLE),
        ("/health/live", StatusCode::OK),
        ("/health/startup", StatusCode::OK),
        ("/api/v1/plans", StatusCode::OK),
    ] {
        // A new connection each.
        let answer = reqwest::get(format!("{url}{path}")).await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
    }

    let port = url.rsplit_once(':').unwrap().1;
    let asked = folder.healthcheck([("PORT", port)]).await;
    assert_eq!(asked.code, Some(1));
    assert!(asked.err[0].contains("not ready: 503"), "{asked:#?}");

    let _in_flight = wire::begin_post(&url, "").await;
    let start = Instant::now();
    process.signal(Signal::TERM);
    let ended = process.ended().await;
    println!("second signal: {:.2} s", start.elapsed().as_secs_f64());
    assert!(start.elapsed() < SLACK);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(ended.text().contains("aborted=1"), "{ended:#?}");
}

#[tokio::test]
async fn no_client_holds_up_the_stop_for_longer_than_the_drain() {
    let folder = Folder::new();
    let drain = Duration::from_secs(1);
    let (process, url) = folder
        .serve([
            ("APP_SERVER__DRAIN_TIMEOUT", "1s"),
            ("APP_SERVER__HEADER_TIMEOUT", "10m"),
            ("APP_SERVER__IDLE_TIMEOUT", "10m"),
            ("APP_SERVER__BODY_IDLE_TIMEOUT", "10m"),
            ("APP_SERVER__BODY_TIMEOUT", "9m"),
            ("APP_SERVER__REQUEST_TIMEOUT", "10m"),
        ])
        .await;
    let _silent = wire::connect(&url).await;
    let mut head = wire::connect(&url).await;
    head.write_all(b"GET / HTTP/1.1\r\nhost").await.unwrap();
    let _stalled_body = wire::begin_post(&url, "").await;
    let start = Instant::now();
    let ended = process.stop().await;
    let took = start.elapsed();
    println!("stop with three attacks open: {:.2} s, drain cap 1 s", took.as_secs_f64());
    assert!(took >= drain && took < drain + SLACK, "{took:?}");
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}

#[tokio::test]
async fn a_signal_while_starting_is_heeded() {
    // The system accepts; nobody ever answers.
    let database = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://u:hunter2@{}/d", database.local_addr().unwrap());
    let folder = Folder::new();
    let variables = [("DATABASE_URL", url.as_str()), ("APP_DATABASE__ACQUIRE_TIMEOUT", "10m")];
    let process = Process::spawn(&mut folder.plinth(&[], variables));
    let _asked = timeout(PATIENCE, database.accept()).await.unwrap().unwrap();
    let start = Instant::now();
    let ended = process.stop().await;
    println!("stop while starting: {:.2} s", start.elapsed().as_secs_f64());
    assert!(start.elapsed() < SLACK);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(!ended.text().contains("hunter2"), "{ended:#?}");
}

#[tokio::test]
async fn it_serves_on_when_nobody_reads_its_log_any_more() {
    let folder = Folder::new();
    let (mut process, url) = folder.serve([]).await;
    process.stop_reading();
    for _ in 0..3 {
        let answer = reqwest::get(format!("{url}/api/v1/plans")).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }
    assert_eq!(process.stop().await.code, Some(0));
}
