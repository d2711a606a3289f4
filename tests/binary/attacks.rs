//! The attacks of `tests/server.rs`, over the binary as it is wired and set by its environment.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{interval, timeout};

use crate::process::{Folder, PATIENCE};
use crate::wire;

const LIMIT: Duration = Duration::from_secs(1);

/// For a busy machine; the defaults that a limit could fall back to are 10 s and more.
const SLACK: Duration = Duration::from_secs(6);

#[tokio::test]
async fn slow_clients_are_closed_within_what_the_environment_says() {
    let folder = Folder::new();
    let (_process, url) = folder
        .serve([
            ("APP_SERVER__HEADER_TIMEOUT", "1s"),
            ("APP_SERVER__IDLE_TIMEOUT", "1s"),
            ("APP_SERVER__BODY_IDLE_TIMEOUT", "1s"),
        ])
        .await;
    let ((), (), (), ()) = tokio::join!(
        closed(&url, "connect, send nothing", b"", b""),
        closed(&url, "partial HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM", b""),
        closed(&url, "dribbled request head", b"GET / HTTP/1.1\r\n", b"x"),
        stalled_body(&url),
    );
}

async fn closed(url: &str, name: &str, opening: &[u8], drip: &[u8]) {
    let mut stream = wire::connect(url).await;
    let start = Instant::now();
    stream.write_all(opening).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let dripping = async {
        let mut tick = interval(LIMIT / 10);
        while !drip.is_empty() && writer.write_all(drip).await.is_ok() {
            tick.tick().await;
        }
        std::future::pending::<()>().await;
    };
    let mut buffer = [0; 1024];
    let ended = async { while matches!(reader.read(&mut buffer).await, Ok(1..)) {} };
    let either = async {
        tokio::select! {
            () = dripping => {}
            () = ended => {}
        }
    };
    timeout(PATIENCE, either).await.expect(name);
    report(name, start.elapsed());
}

async fn stalled_body(url: &str) {
    let mut stream: TcpStream = wire::begin_post(url, "x-request-id: stalled\r\n").await;
    let start = Instant::now();
    let answer = wire::rest(&mut stream).await;
    report("stalled body", start.elapsed());
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout"), "{answer}");
    assert!(answer.contains("\r\ncontent-type: application/problem+json\r\n"), "{answer}");
    let problem: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(problem["code"], "BODY_TIMEOUT");
    assert_eq!(problem["request_id"], "stalled");
}

fn report(name: &str, stood: Duration) {
    println!("{name}: {:.2} s", stood.as_secs_f64());
    assert!(stood < LIMIT + SLACK, "{name}: {stood:?}");
}
