//! What reaches Sentry: one event for each 5xx, and nothing about anybody.

use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use crate::logs::drop_plans;
use crate::process::Folder;
use crate::sentry_server::Sentry;
use crate::wire::PLAN;

const CANARY: &str = "canary-91ce";
const CLIENT: &str = "203.0.113.77";

/// A request with something of everything that must not go further.
async fn ask(url: &str, method: &str, path: &str, id: &str) -> (StatusCode, Value) {
    let method = method.parse().unwrap();
    let request =
        Client::new().request(method, format!("{url}{path}?token={CANARY}&page={CANARY}"));
    let answer = request
        .header("x-request-id", id)
        .header("x-forwarded-for", CLIENT)
        .header("proxy-authorization", format!("Bearer {CANARY}"))
        .header("cookie", format!("session={CANARY}"))
        .header("user-agent", CANARY)
        .header("content-type", "application/json")
        .body(PLAN.replace("A plan", CANARY))
        .send()
        .await
        .unwrap();
    (answer.status(), answer.json().await.unwrap_or_default())
}

#[tokio::test]
async fn each_5xx_is_one_event_and_no_4xx_is_one() {
    let sentry = Sentry::start().await;
    let folder = Folder::new();
    let variables = [
        ("APP_ENV", "test"),
        ("SENTRY_DSN", sentry.dsn.as_str()),
        ("APP_SENTRY__ENVIRONMENT", "staging"),
        ("APP_SERVER__TRUSTED_PROXIES", "127.0.0.0/8"),
    ];
    let (process, url) = folder.serve(variables).await;
    let plan = "/api/v1/plans/0199f3c2-7b1e-7cc0-b7a5-3f1d2f3c4d5e";
    for (method, path, status) in [
        ("GET", "/nowhere", StatusCode::NOT_FOUND),
        ("GET", plan, StatusCode::NOT_FOUND),
        ("GET", "/api/v1/plans/x", StatusCode::BAD_REQUEST),
        ("DELETE", "/api/v1/plans", StatusCode::METHOD_NOT_ALLOWED),
        ("PUT", plan, StatusCode::PRECONDITION_REQUIRED),
    ] {
        assert_eq!(ask(&url, method, path, "4xx").await.0, status, "{method} {path}");
    }
    drop_plans(&folder).await;
    let mut failed = Vec::new();
    for (id, method, path) in
        [("one", "GET", plan), ("two", "POST", "/api/v1/plans"), ("three", "POST", "/api/v1/plans")]
    {
        let (status, problem) = ask(&url, method, path, id).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{problem}");
        failed.push((id, method, problem));
    }
    // Nothing is waited for: what is not sent yet goes out before the exit.
    let ended = process.stop().await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");

    let events = sentry.items("event");
    assert_eq!(events.len(), 3, "{events:#?}");
    for (id, method, problem) in failed {
        let of_id: Vec<_> = events.iter().filter(|e| e["tags"]["request_id"] == id).collect();
        let [event] = of_id.as_slice() else { panic!("{id}: {events:#?}") };
        let route = if id == "one" { "/api/v1/plans/{id}" } else { "/api/v1/plans" };
        assert_eq!(event["tags"]["error_id"], problem["error_id"]);
        assert_eq!(event["tags"]["route"], route);
        assert_eq!(event["transaction"], format!("{method} {route}"));
        assert_eq!(event["release"], concat!("plinth@", env!("CARGO_PKG_VERSION")));
        assert_eq!(event["environment"], "staging");
        let exception = &event["exception"]["values"][0];
        assert!(exception["value"].as_str().unwrap().contains("no such table"), "{event:#?}");
        assert_eq!(event["user"], json!({"ip_address": CLIENT}), "as logs and limits know it");
        assert!(event.get("request").is_none(), "{event:#?}");
    }
    for envelope in sentry.envelopes.borrow().iter() {
        for word in [CANARY, "client_ip", "Bearer", "user_agent", "cookie"] {
            assert!(!envelope.contains(word), "{word}: {envelope}");
        }
    }
    println!("an event: {}", events[0]);
}

/// More failures than Sentry's queue holds, and nobody to take them.
#[tokio::test]
async fn a_sentry_that_never_answers_delays_neither_requests_nor_the_exit() {
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dsn = format!("http://public@{}/1", mute.local_addr().unwrap());
    for failures in [1, 60] {
        let folder = Folder::new();
        let variables = [("APP_ENV", "test"), ("SENTRY_DSN", dsn.as_str())];
        let (process, url) = folder.serve(variables).await;
        drop_plans(&folder).await;
        let start = Instant::now();
        for _ in 0..failures {
            let answer = reqwest::get(format!("{url}/api/v1/plans")).await.unwrap();
            assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        }
        println!("{failures} failed requests: {:.2} s", start.elapsed().as_secs_f64());
        assert!(start.elapsed() < Duration::from_secs(30));

        let start = Instant::now();
        let ended = process.stop().await;
        println!("exit after {failures}: {:.2} s", start.elapsed().as_secs_f64());
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    }
}
