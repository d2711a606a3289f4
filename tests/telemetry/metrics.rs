//! What Prometheus reads.

use std::collections::BTreeSet;

use futures_util::StreamExt;
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::service::{Metrics, Service};
use crate::support::until;

/// Names and labels, without values.
fn series(metrics: &Metrics) -> BTreeSet<String> {
    metrics.series().map(|(series, _)| series.to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_unknown_paths_and_methods_add_no_series() {
    let service = Service::start([("RUST_LOG", "off,plinth=info,plinth::access=off")]).await;
    let ask = async |index: u32| {
        let method = if index.is_multiple_of(100) {
            Method::from_bytes(format!("M{index}").as_bytes()).unwrap()
        } else {
            Method::GET
        };
        let answer = service.request(method, &format!("/random/{index}")).send().await.unwrap();
        assert_eq!(answer.status(), 404);
    };
    ask(0).await;
    ask(1).await;
    service.management("/metrics").await;
    let before = series(&service.metrics().await);

    futures_util::stream::iter(2..10_000).for_each_concurrent(16, ask).await;
    let metrics = service.metrics().await;
    assert_eq!(series(&metrics), before);
    let name = "http_server_request_duration_seconds_count";
    let labels = ["http_route=\"unmatched\"", "http_response_status_code=\"404\""];
    assert_eq!(metrics.sum(name, &labels), 10_000.0);
    assert_eq!(metrics.sum(name, &["http_request_method=\"_OTHER\""]), 100.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_counted_by_method_route_and_status_with_what_it_did() {
    let service = Service::start([("APP_RATE_LIMIT__STRICT", "1/minute")]).await;
    let plan = service.plan("A plan").await;
    for _ in 0..3 {
        assert_eq!(service.get(&plan).await.status(), 200);
    }
    let missing = "/api/v1/plans/0199f3c2-7b1e-7cc0-b7a5-3f1d2f3c4d5e";
    assert_eq!(service.get(missing).await.status(), 404);
    let invalid = service.request(Method::POST, "/api/v1/plans").json(&json!({}));
    assert_eq!(invalid.send().await.unwrap().status(), 422);
    let refused = service.request(Method::GET, "/api/v1/plans").bearer_auth("nonsense");
    assert_eq!(refused.send().await.unwrap().status(), 401);

    let metrics = service.metrics().await;
    let counted = |name: &str, labels: &[&str], count: f64| {
        assert_eq!(metrics.sum(name, labels), count, "{name} {labels:?}\n{}", metrics.0);
    };
    let by_id = "http_route=\"/api/v1/plans/{id}\"";
    let duration = "http_server_request_duration_seconds_count";
    counted(duration, &["method=\"GET\"", by_id, "code=\"200\""], 3.0);
    counted(duration, &["method=\"GET\"", by_id, "code=\"404\""], 1.0);
    counted(duration, &["method=\"POST\"", "code=\"201\""], 1.0);
    let body =
        "{\"name\":\"A plan\",\"start_date\":\"2027-03-01\",\"end_date\":\"2027-05-31\"}".len();
    counted("http_server_request_body_size_bytes_sum", &["code=\"201\""], body as f64);
    assert!(metrics.sum("http_server_response_body_size_bytes_sum", &[by_id]) > 300.0);
    counted("http_server_active_requests", &[], 1.0);

    counted("cache_requests_total", &["space=\"plans\"", "outcome=\"miss\""], 2.0);
    counted("cache_requests_total", &["space=\"plans\"", "outcome=\"hit\""], 2.0);
    counted("cache_loads_total", &["outcome=\"ok\""], 2.0);
    let statement = "db_client_operation_duration_seconds_count";
    counted(statement, &["\"SELECT\"", "\"plans\"", "outcome=\"ok\""], 2.0);
    counted(statement, &["\"INSERT\"", "\"plans\"", "outcome=\"ok\""], 1.0);
    assert!(metrics.sum("db_client_connection_wait_time_seconds_count", &["\"reader\""]) >= 2.0);
    counted("db_client_connection_pending_requests", &[], 0.0);
    counted("db_client_connection_max", &["\"writer\""], 1.0);
    counted("auth_attempts_total", &["\"anonymous\"", "\"accepted\""], 6.0);
    counted("auth_attempts_total", &["\"token\"", "\"refused\""], 1.0);
    counted("rate_limit_decisions_total", &["class=\"default\"", "\"allowed\""], 6.0);
    counted("rate_limit_decisions_total", &["class=\"auth\"", "\"allowed\""], 1.0);
    counted("plans_created_total", &[], 1.0);
    counted("health_check_up", &["\"database\"", "critical=\"true\""], 1.0);
    counted("service_ready", &[], 1.0);
    counted("build_info", &[env!("CARGO_PKG_VERSION")], 1.0);
    counted("telemetry_dropped_total", &[], 0.0);
    for name in ["process_resident_memory_bytes", "process_open_fds", "tokio_workers"] {
        assert!(metrics.sum(name, &[]) > 0.0, "{name}");
    }
}

/// A statement that fails, and the operation that it is a part of.
#[tokio::test(flavor = "multi_thread")]
async fn failures_are_counted_as_such() {
    let service = Service::start([]).await;
    service.drop_plans().await;
    assert_eq!(service.get("/api/v1/plans").await.status(), 500);
    let metrics = service.metrics().await;
    let statement = "db_client_operation_duration_seconds_count";
    assert_eq!(metrics.sum(statement, &["\"SELECT\"", "outcome=\"error\""]), 1.0);
    let operation = "operation_duration_seconds_count";
    assert_eq!(metrics.sum(operation, &["\"plans.list\"", "outcome=\"error\""]), 1.0);

    let mut status = service.json("/status/data").await;
    let failed = status["recent_errors"][0].take();
    assert_eq!(failed["route"], "/api/v1/plans");
    assert_eq!((&failed["status"], &failed["code"]), (&json!(500), &json!("INTERNAL_ERROR")));
    for id in ["error_id", "request_id", "trace_id"] {
        assert!(failed[id].as_str().is_some_and(|id| id.len() >= 32), "{failed}");
    }
}

/// It waits for the database, which somebody else has locked.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_is_counted_and_is_in_flight_no_longer() {
    let service = Service::start([("APP_DATABASE__LOCK_TIMEOUT", "60s")]).await;
    let mut locked = service.database().await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut locked).await.unwrap();
    let address = service.url.strip_prefix("http://").unwrap().to_owned();
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    let plan = r#"{"name":"A plan","start_date":"2027-03-01","end_date":"2027-05-31"}"#;
    let head = "POST /api/v1/plans HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let request = format!("{head}content-length: {}\r\n\r\n{plan}", plan.len());
    client.write_all(request.as_bytes()).await.unwrap();
    // The scrape itself is one of them.
    let in_flight = async || service.metrics().await.sum("http_server_active_requests", &[]);
    until("the request is in flight", async || in_flight().await == 2.0).await;
    drop(client);
    until("it is not any more", async || in_flight().await == 1.0).await;

    let metrics = service.metrics().await;
    let left = ["http_route=\"/api/v1/plans\"", "http_response_status_code=\"499\""];
    assert_eq!(metrics.sum("http_server_request_duration_seconds_count", &left), 1.0);
    let received = metrics.sum("http_server_request_body_size_bytes_sum", &left);
    assert_eq!(received, plan.len() as f64);
    let statement = "db_client_operation_duration_seconds_count";
    assert_eq!(metrics.sum(statement, &["\"INSERT\"", "outcome=\"cancelled\""]), 1.0);
    sqlx::query("ROLLBACK").execute(&mut locked).await.unwrap();
    let lines = service.stop().await.out;
    let line = lines.iter().find(|line| line.contains("\"status\":499")).unwrap();
    assert!(line.contains("\"client_left\":true"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_only_announced_is_not_counted() {
    let service = Service::start([]).await;
    let address = service.url.strip_prefix("http://").unwrap().to_owned();
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = "POST /api/v1/plans HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                content-length: 9000000000000000000\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    let metrics = service.metrics().await;
    assert_eq!(metrics.sum("http_server_request_body_size_bytes_count", &["\"413\""]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_counted_while_they_are_open_and_when_they_time_out() {
    let service = Service::start([
        ("APP_SERVER__HEADER_TIMEOUT", "50ms"),
        ("APP_SERVER__IDLE_TIMEOUT", "1ms"),
    ])
    .await;
    let address = service.url.strip_prefix("http://").unwrap().to_owned();
    let silent = tokio::net::TcpStream::connect(address).await.unwrap();
    let public = "listener=\"public\"";
    until("the silent connection is closed", async || {
        service.metrics().await.sum("server_connections_timed_out_total", &[public, "\"head\""])
            == 1.0
    })
    .await;
    drop(silent);
    until("a used one that is idle is closed too", async || {
        service.get("/health/live").await;
        service.metrics().await.sum("server_connections_timed_out_total", &[public, "\"idle\""])
            >= 1.0
    })
    .await;
    let metrics = service.metrics().await;
    assert!(metrics.sum("server_connections_accepted_total", &[public]) >= 2.0);
    assert!(metrics.sum("server_connections", &["listener=\"management\""]) >= 1.0);
    until("none is left", async || {
        service.metrics().await.sum("server_connections", &[public]) == 0.0
    })
    .await;
}
