//! The listener for operators, and what is left on the public port.

use reqwest::{Method, StatusCode};
use serde_json::Value;

use plinth::health::Health;
use plinth::management;

use crate::process::Folder;
use crate::service::{Metrics, Service};
use crate::support::{Served, config};

async fn status(url: &str) -> u16 {
    reqwest::get(url).await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_the_report_move_off_the_public_port() {
    let service = Service::start([]).await;
    for path in ["/metrics", "/health", "/status", "/status/data"] {
        assert_eq!(service.management(path).await.status(), StatusCode::OK, "{path}");
        assert_eq!(service.get(path).await.status(), StatusCode::NOT_FOUND, "{path}");
    }
    for path in ["/health/live", "/health/ready", "/health/startup"] {
        assert_eq!(service.management(path).await.status(), StatusCode::OK, "{path}");
        assert_eq!(service.get(path).await.status(), StatusCode::OK, "{path}");
    }
    assert_eq!(service.management("/api/v1/plans").await.status(), StatusCode::NOT_FOUND);
    let metrics = service.management("/metrics").await;
    assert_eq!(metrics.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_it_the_public_port_has_them_and_in_production_no_status_page() {
    let folder = Folder::new();
    let production = [
        ("APP_ENV", "production"),
        ("APP_AUTH__MODE", "required"),
        ("APP_SERVER__PRE_STOP_DELAY", "0s"),
    ];
    let (process, url) = folder.serve(production).await;
    for (path, expected) in [("/metrics", 200), ("/health", 200), ("/status", 404), ("/log", 404)] {
        assert_eq!(status(&format!("{url}{path}")).await, expected, "{path}");
    }
    process.stop().await;

    let (_process, url) = folder.serve([("APP_ENV", "development")]).await;
    for (path, expected) in [("/metrics", 200), ("/status", 200), ("/log", 404)] {
        assert_eq!(status(&format!("{url}{path}")).await, expected, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_one_clear_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = taken.local_addr().unwrap().to_string();
    let ended = Folder::new().run(&[], [("APP_MANAGEMENT__BIND", bind.as_str())]).await;
    assert_eq!(ended.code, Some(1));
    let [line] = &ended.err[..] else { panic!("{ended:#?}") };
    assert!(line.contains(&bind) && line.contains("APP_MANAGEMENT__BIND"), "{line}");
}

async fn set_filter(service: &Service, filter: &'static str) -> (StatusCode, Value) {
    let url = format!("{}/log", service.management);
    let answer = service.client.request(Method::PUT, url).body(filter).send().await.unwrap();
    let status = answer.status();
    (status, answer.json().await.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_is_set_while_it_runs() {
    let service = Service::start([("RUST_LOG", "info")]).await;
    service.get("/health/live").await;
    assert_eq!(set_filter(&service, "info,plinth=debug").await.0, StatusCode::OK);
    service.get("/health/startup").await;
    assert_eq!(set_filter(&service, "warn").await.0, StatusCode::OK);
    service.get("/api/v1/plans").await;

    for bad in ["", "inof"] {
        assert_eq!(set_filter(&service, bad).await.0, StatusCode::BAD_REQUEST, "{bad:?}");
    }
    let (status, problem) = set_filter(&service, "plinth=loud").await;
    assert_eq!((status.as_u16(), &problem["code"]), (400, &"MALFORMED_REQUEST".into()));
    assert!(problem["detail"].as_str().unwrap().contains("log.filter"), "{problem}");

    let lines = service.stop().await.out;
    let logged =
        |path: &str| lines.iter().any(|line| line.contains(&format!("\"path\":\"{path}\"")));
    assert!(logged("/health/startup"), "{lines:#?}");
    assert!(!logged("/health/live") && !logged("/api/v1/plans"), "{lines:#?}");
    let told = lines.iter().filter(|line| line.contains("the log filter is being set")).count();
    assert_eq!(told, 2, "{lines:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_is_not_for_pages_nor_for_large_bodies() {
    let service = Service::start([]).await;
    let put = || service.client.request(Method::PUT, format!("{}/log", service.management));
    let page = put().header("origin", &service.management).body("off");
    assert_eq!(page.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    let large = put().body("x".repeat(5000));
    assert_eq!(large.send().await.unwrap().status(), StatusCode::PAYLOAD_TOO_LARGE);
    service.get("/api/v1/plans").await;
    let lines = service.stop().await.out;
    assert!(lines.iter().any(|line| line.contains("/api/v1/plans")), "{lines:#?}");
}

/// Whoever watches a start must not take it for an absence.
#[tokio::test(flavor = "multi_thread")]
async fn there_are_metrics_before_there_is_a_service() {
    plinth::telemetry::metrics::install().unwrap();
    let config = config("sqlite://never-opened");
    let health = Health::starting(&config.health);
    let served = Served::start(management::starting(&health, &config), &config);
    let get = async |path: &str| reqwest::get(format!("{}{path}", served.url)).await.unwrap();
    let metrics = Metrics(get("/metrics").await.text().await.unwrap());
    assert_eq!(metrics.sum("service_ready", &[]), 0.0);
    assert!(metrics.0.contains("\nservice_ready 0"), "{}", metrics.0);
    assert_eq!(get("/status").await.status(), StatusCode::OK);
    assert_eq!(get("/health").await.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn production_does_not_log_the_wire_whoever_asks() {
    let service = Service::start([
        ("APP_ENV", "production"),
        ("APP_AUTH__MODE", "required"),
        ("APP_SERVER__PRE_STOP_DELAY", "0s"),
    ])
    .await;
    for filter in ["trace", "info,hyper=trace"] {
        assert_eq!(set_filter(&service, filter).await.0, StatusCode::BAD_REQUEST, "{filter}");
    }
    assert_eq!(set_filter(&service, "info,plinth=trace").await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_lines_are_written_before_the_exit() {
    let service = Service::start([]).await;
    const REQUESTS: usize = 3000;
    for _ in 0..REQUESTS {
        service.get("/nope").await;
    }
    let lines = service.stop().await.out;
    let requests = lines.iter().filter(|line| line.contains("\"path\":\"/nope\"")).count();
    assert_eq!(requests, REQUESTS);
    assert!(lines.last().unwrap().contains("stopped"), "{:?}", lines.last());
}
