//! What Sentry is told of a request's time, and with what an error comes.

use reqwest::Method;

use crate::sentry_server::Sentry;
use crate::service::Service;

const TRACE: &str = "771a43a4192642f0b136d5159a501700";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_timed_in_the_trace_of_a_trusted_caller() {
    for (trusted, continued) in [("127.0.0.0/8", true), ("", false)] {
        let mut sentry = Sentry::start().await;
        let service = Service::start([
            ("SENTRY_DSN", sentry.dsn.as_str()),
            ("APP_SENTRY__TRACES_SAMPLE_RATE", "1.0"),
            ("APP_SERVER__TRUSTED_PROXIES", trusted),
        ])
        .await;
        let request = service.request(Method::GET, "/api/v1/plans");
        let request = request.header("sentry-trace", format!("{TRACE}-7c7b5f3c1a2b3d4e-1"));
        assert_eq!(request.send().await.unwrap().status(), 200);
        let timed = sentry.item("transaction").await;
        assert_eq!(timed["transaction"], "GET /api/v1/plans");
        let trace = &timed["contexts"]["trace"];
        assert_eq!(trace["trace_id"] == TRACE, continued, "{timed:#}");
        assert_eq!(trace["op"], "http.server");
        assert_eq!(trace["status"], "ok");
        let spans = timed["spans"].as_array().unwrap();
        let names: Vec<_> = spans.iter().map(|s| s["data"]["otel.name"].clone()).collect();
        assert_eq!(names, ["SELECT plans", "plans.list"], "{timed:#}");
        // The health checks and the probes are timed for nobody.
        service.get("/health/ready").await;
        service.stop().await;
        assert_eq!(sentry.items("transaction").len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_comes_with_its_release_its_trace_and_what_was_logged_before() {
    let mut sentry = Sentry::start().await;
    let service = Service::start([("SENTRY_DSN", sentry.dsn.as_str())]).await;
    service.drop_plans().await;
    let problem: serde_json::Value = service.get("/api/v1/plans").await.json().await.unwrap();
    let event = sentry.item("event").await;
    assert_eq!(event["release"], concat!("plinth@", env!("CARGO_PKG_VERSION")));
    assert_eq!(event["environment"], "test");
    assert_eq!(event["tags"]["trace_id"], problem["trace_id"]);
    assert_eq!(event["contexts"]["trace"]["trace_id"], problem["trace_id"]);
    assert_eq!(event["exception"]["values"][0]["type"], "INTERNAL_ERROR");
    let crumbs = event["breadcrumbs"]["values"].as_array().unwrap();
    assert!(crumbs.iter().any(|crumb| crumb["message"] == "ready"), "{crumbs:#?}");
    service.stop().await;
    assert!(sentry.items("transaction").is_empty(), "nobody asked for times");
}
