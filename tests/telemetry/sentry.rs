//! What Sentry is told of a request's time, and with what an error comes.

use reqwest::Method;

use crate::sentry_server::Sentry;
use crate::service::Service;
use crate::support::until;

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
        let ask = async || {
            let request = service.request(Method::GET, "/api/v1/plans");
            let request = request.header("sentry-trace", format!("{TRACE}-7c7b5f3c1a2b3d4e-1"));
            assert_eq!(request.send().await.unwrap().status(), 200);
        };
        ask().await;
        let timed = sentry.item("transaction").await;
        assert_eq!(timed["transaction"], "GET /api/v1/plans");
        let trace = &timed["contexts"]["trace"];
        assert_eq!(trace["trace_id"] == TRACE, continued, "{timed:#}");
        assert_eq!(trace["op"], "http.server");
        assert_eq!(trace["status"], "ok");

        // SQLite's thread may hold a span for a moment longer than its request takes, and what ends
        // later is not in the transaction: most have all of theirs.
        let has_all = |timed: &serde_json::Value| {
            let spans = timed["spans"].as_array().unwrap().iter();
            let mut names: Vec<_> = spans.map(|s| s["data"]["otel.name"].as_str()).collect();
            names.sort();
            names == [Some("SELECT plans"), Some("plans.list")]
        };
        let mut asked = 1;
        until("a transaction has its spans", async || {
            ask().await;
            asked += 1;
            sentry.items("transaction").iter().any(has_all)
        })
        .await;
        // The health checks and the probes are timed for nobody.
        service.get("/health/ready").await;
        service.stop().await;
        let timed = sentry.items("transaction").len();
        assert!(timed <= asked, "{timed} of {asked}");
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
