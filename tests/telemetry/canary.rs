//! Secrets are planted wherever one may be, and looked for wherever this service writes.

use crate::collector::Collector;
use crate::process::Folder;
use crate::sentry_server::Sentry;
use crate::service::Service;
use reqwest::Method;

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_logs_sentry_spans_metrics_or_pages() {
    const IN: [&str; 12] = [
        "authorization",
        "apikey",
        "cookie",
        "proxy",
        "query",
        "escaped",
        "body",
        "member",
        "dbpass",
        "dsnkey",
        "otlp",
        "redis",
    ];
    let canary = |place: &str| format!("canary-{place}-5e1f");
    let mut collector = Collector::start().await;
    let mut sentry = Sentry::start().await;
    let folder = Folder::new();
    let dsn = sentry.dsn.replace("public", &canary("dsnkey"));
    let redis = format!("redis://:{}@127.0.0.1:1", canary("redis"));
    let service = Service::start_in(
        folder,
        [
            ("RUST_LOG", "debug"),
            ("SENTRY_DSN", dsn.as_str()),
            ("APP_SENTRY__TRACES_SAMPLE_RATE", "1.0"),
            ("APP_DATABASE__PASSWORD", &canary("dbpass")),
            ("REDIS_URL", &redis),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url),
            ("OTEL_EXPORTER_OTLP_HEADERS", &format!("api-key={}", canary("otlp"))),
        ],
    )
    .await;
    let ask = async |method: Method, path: &str, body: String| {
        let query = format!("token={}&%6bey={}", canary("query"), canary("escaped"));
        let request = service.request(method, &format!("{path}?{query}"));
        let request = request
            .header("authorization", format!("Bearer {}", canary("authorization")))
            .header("cookie", format!("session={}", canary("cookie")))
            .header("proxy-authorization", format!("Basic {}", canary("proxy")))
            .header("content-type", "application/json")
            .body(body);
        request.send().await.unwrap().status().as_u16()
    };
    let open = async |method: Method, path: &str, body: String| {
        let request = service.request(method, path).header("content-type", "application/json");
        request.body(body).send().await.unwrap().status().as_u16()
    };
    let plan = |name: String| {
        format!(r#"{{"name":"{name}","start_date":"2027-03-01","end_date":"2027-05-31"}}"#)
    };
    let unknown = format!(r#"{{"{}": 1}}"#, canary("member"));
    assert_eq!(ask(Method::GET, "/api/v1/plans", String::new()).await, 401);
    let keyed = service.request(Method::GET, "/api/v1/plans").header("x-api-key", canary("apikey"));
    assert_eq!(keyed.send().await.unwrap().status(), 401);
    assert_eq!(ask(Method::POST, "/nowhere", plan(canary("body"))).await, 404);
    assert_eq!(open(Method::POST, "/api/v1/plans", plan(canary("body"))).await, 201);
    assert_eq!(open(Method::POST, "/api/v1/plans", unknown).await, 422);
    service.drop_plans().await;
    assert_eq!(open(Method::POST, "/api/v1/plans", plan(canary("body"))).await, 500);
    sentry.item("event").await;
    sentry.item("transaction").await;
    collector.span(|span| span.status == 2).await;

    let mut written = vec![service.metrics().await.0];
    for path in ["/health", "/status/data"] {
        written.push(service.management(path).await.text().await.unwrap());
    }
    let ended = service.stop().await;
    assert!(ended.out.len() > 10, "debug lines were read: {:#?}", ended.out);
    written.extend(ended.out);
    written.extend(ended.err);
    written.extend(sentry.envelopes.borrow().clone());
    for secret in IN.map(canary) {
        let found: Vec<_> = written.iter().filter(|text| text.contains(&secret)).collect();
        assert!(found.is_empty(), "{secret} is in {found:#?}");
        assert!(!collector.holds(&secret), "{secret} is in a span");
    }
}
