//! Traces, as a receiver gets them.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::collector::Collector;
use crate::process::PATIENCE;
use crate::sentry_server::Sentry;
use crate::service::Service;
use crate::support::issuer::{Issuer, Signer};
use crate::support::until;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "b7ad6b7169203331";

/// A caller's context, sampled.
fn context() -> String {
    format!("00-{TRACE}-{CLIENT_SPAN}-01")
}

fn token(signer: &Signer) -> String {
    let expires = chrono::Utc::now().timestamp() + 600;
    signer.sign(&json!({
        "iss": "https://issuer.test", "aud": "plinth", "sub": "alice", "scope": "plans:read",
        "exp": expires
    }))
}

/// The token's key is new to the service, so it asks the issuer; the plan is not cached, so it asks
/// the database.
#[tokio::test(flavor = "multi_thread")]
async fn one_trace_goes_from_the_client_through_server_outbound_call_cache_and_sql() {
    let mut collector = Collector::start().await;
    let (old, new) = (Signer::ec("old"), Signer::ec("new"));
    let issuer = Issuer::start(&[&old]);
    let service = Service::start([
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b"),
        ("OTEL_SERVICE_NAME", "shop"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=lab,team=core"),
        ("APP_SERVER__TRUSTED_PROXIES", "127.0.0.0/8"),
        ("APP_AUTH__JWT__ISSUER", "https://issuer.test"),
        ("APP_AUTH__JWT__AUDIENCE", "plinth"),
        ("APP_AUTH__JWT__JWKS", &issuer.jwks),
        ("APP_AUTH__JWT__COOLDOWN", "1ms"),
    ])
    .await;
    let plan = service.plan("a-plan-that-no-span-names").await;
    issuer.publish(&[&old, &new]);

    let answer = service
        .request(Method::GET, &plan)
        .bearer_auth(token(&new))
        .header("traceparent", context())
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);

    let server = collector.span(|span| span.name == "GET /api/v1/plans/{id}").await;
    let in_trace = |name: &'static str, collector: &Collector| {
        let mut spans = collector.spans();
        spans.retain(|span| span.trace_id == TRACE && span.name == name);
        assert_eq!(spans.len(), 1, "{name}: {:#?}", collector.spans());
        spans.remove(0)
    };
    for name in ["GET", "cache get plans", "SELECT plans"] {
        collector.span(|span| span.trace_id == TRACE && span.name == name).await;
    }
    let outbound = in_trace("GET", &collector);
    let cache = in_trace("cache get plans", &collector);
    let sql = in_trace("SELECT plans", &collector);

    assert_eq!((server.trace_id.as_str(), server.parent.as_str()), (TRACE, CLIENT_SPAN));
    for (span, parent, kind) in [(&server, CLIENT_SPAN, 2), (&outbound, &server.id, 3)] {
        assert_eq!((span.parent.as_str(), span.kind), (parent, kind), "{span:#?}");
    }
    assert_eq!((cache.parent.as_str(), sql.parent.as_str()), (&*server.id, &*cache.id));
    assert_eq!(issuer.traceparent(), format!("00-{TRACE}-{}-01", outbound.id), "it is passed on");

    for (span, name, value) in [
        (&server, "http.request.method", "GET"),
        (&server, "http.route", "/api/v1/plans/{id}"),
        (&server, "http.response.status_code", "200"),
        (&outbound, "http.response.status_code", "200"),
        (&outbound, "server.address", "127.0.0.1"),
        (&cache, "cache.outcome", "miss"),
        (&sql, "db.system.name", "sqlite"),
        (&sql, "db.operation.name", "SELECT"),
        (&sql, "db.response.returned_rows", "1"),
    ] {
        assert_eq!(span.attribute(name), value, "{name} of {span:#?}");
    }
    for (name, value) in [
        ("service.name", "shop"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("deployment.environment.name", "lab"),
        ("team", "core"),
    ] {
        assert_eq!(server.resource(name), value, "{name}");
    }
    assert_eq!(collector.headers()["x-tenant"], "a b");
    let id = plan.rsplit_once('/').unwrap().1;
    for value in [id, "a-plan-that-no-span-names"] {
        assert!(!collector.holds(value), "{value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_called_is_told_of_the_trace_even_when_no_trace_is_sent() {
    let sentry = Sentry::start().await;
    for rate in ["0.0", "1.0"] {
        let (old, new) = (Signer::ec("old"), Signer::ec("new"));
        let issuer = Issuer::start(&[&old]);
        let service = Service::start([
            ("SENTRY_DSN", sentry.dsn.as_str()),
            ("APP_SENTRY__TRACES_SAMPLE_RATE", rate),
            ("APP_TRACES__ACCEPT_CONTEXT", "all"),
            ("APP_AUTH__JWT__ISSUER", "https://issuer.test"),
            ("APP_AUTH__JWT__AUDIENCE", "plinth"),
            ("APP_AUTH__JWT__JWKS", &issuer.jwks),
            ("APP_AUTH__JWT__COOLDOWN", "1ms"),
        ])
        .await;
        issuer.publish(&[&old, &new]);
        let request = service.request(Method::GET, "/api/v1/plans").bearer_auth(token(&new));
        let answer = request.header("traceparent", context()).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(issuer.traceparent().contains(TRACE), "{rate}: {}", issuer.traceparent());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_is_in_every_log_line_and_in_the_problem_document() {
    let service = Service::start([("APP_SERVER__TRUSTED_PROXIES", "127.0.0.0/8")]).await;
    let request = service.request(Method::GET, "/api/v1/plans/x").header("traceparent", context());
    let problem: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(problem["trace_id"], TRACE);

    let denied = service.request(Method::GET, "/api/v1/plans").header("traceparent", context());
    let denied = denied.bearer_auth("nonsense").send().await.unwrap();
    assert_eq!(denied.status(), 401);
    let lines = service.stop().await.out;
    let of = |target: &str| {
        let lines = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let lines: Vec<_> = lines.filter(|line| line["target"] == target).collect();
        assert!(!lines.is_empty(), "{target}");
        assert!(lines.iter().all(|line| line["trace_id"] == TRACE), "{lines:#?}");
    };
    of("plinth::access");
    of("plinth::audit");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_is_taken_from_trusted_peers_unless_it_is_taken_from_all() {
    for (accept, taken) in [("trusted", false), ("all", true)] {
        let service = Service::start([("APP_TRACES__ACCEPT_CONTEXT", accept)]).await;
        let request = service.request(Method::GET, "/nope").header("traceparent", context());
        let problem: Value = request.send().await.unwrap().json().await.unwrap();
        let trace = problem["trace_id"].as_str().unwrap();
        assert_eq!((trace == TRACE, trace.len()), (taken, 32), "{accept}: {trace}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_every_few_seconds_and_the_health_checks_make_no_traces() {
    let mut collector = Collector::start().await;
    let service = Service::start([
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        ("APP_HEALTH__INTERVAL", "5ms"),
    ])
    .await;
    for path in ["/health/live", "/metrics", "/health", "/status"] {
        assert_eq!(service.management(path).await.status(), 200, "{path}");
    }
    service.get("/health/ready").await;
    service.get("/api/v1/plans").await;
    collector.span(|span| span.name == "GET /api/v1/plans").await;
    service.stop().await;
    let mut names: Vec<_> = collector.spans().into_iter().map(|span| span.name).collect();
    names.sort();
    assert_eq!(names, ["GET /api/v1/plans", "SELECT plans", "plans.list"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sampler_keeps_its_part_and_the_callers_decision_goes_first() {
    let mut collector = Collector::start().await;
    let service = Service::start([
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0"),
        ("APP_TRACES__ACCEPT_CONTEXT", "all"),
    ])
    .await;
    for _ in 0..20 {
        service.get("/api/v1/plans").await;
    }
    let sampled = service.request(Method::GET, "/api/v1/plans").header("traceparent", context());
    sampled.send().await.unwrap();
    collector.span(|span| span.trace_id == TRACE).await;
    service.stop().await;
    assert!(collector.spans().iter().all(|span| span.trace_id == TRACE));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_spans_are_sent_before_the_exit() {
    let collector = Collector::start().await;
    let endpoint = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str())];
    let service = Service::start(endpoint).await;
    for _ in 0..50 {
        service.get("/api/v1/plans").await;
    }
    // Nothing is waited for.
    service.stop().await;
    let served = collector.spans().iter().filter(|span| span.kind == 2).count();
    assert_eq!(served, 50);
}

/// Whoever can make the receiver redirect is not to have its key.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_redirects_is_not_followed() {
    let elsewhere = Collector::start().await;
    let redirect = axum::response::Redirect::temporary(&format!("{}/v1/traces", elsewhere.url));
    let router = axum::Router::new().fallback(async move || redirect.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, router).await });
    let service = Service::start([("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())]).await;
    service.get("/api/v1/plans").await;
    let ended = service.stop().await;
    assert!(elsewhere.spans().is_empty(), "{:#?}", elsewhere.spans());
    assert!(ended.out.iter().any(|line| line.contains("traces are not taken")), "{ended:#?}");
}

/// One that takes connections and never answers, and one that is not there.
#[tokio::test(flavor = "multi_thread")]
async fn spans_that_nobody_takes_are_dropped_and_counted_and_nobody_waits() {
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mute = format!("http://{}", mute.local_addr().unwrap());
    for endpoint in [mute.as_str(), "http://127.0.0.1:1"] {
        let service = Service::start([
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "300"),
        ])
        .await;
        let begun = Instant::now();
        for _ in 0..50 {
            assert_eq!(service.get("/api/v1/plans").await.status(), 200);
        }
        assert!(begun.elapsed() < PATIENCE);
        until("spans are counted as dropped", async || {
            service.metrics().await.sum("telemetry_dropped_total", &["spans"]) >= 150.0
        })
        .await;
        service.get("/api/v1/plans").await;
        let begun = Instant::now();
        let ended = service.stop().await;
        println!("exit from {endpoint}: {:.2} s", begun.elapsed().as_secs_f64());
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        let told = ended.out.iter().filter(|line| line.contains("traces are not taken")).count();
        assert_eq!(told, 1, "{:#?}", ended.out);
    }
}
