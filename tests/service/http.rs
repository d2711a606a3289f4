//! What every answer has, whatever it says: id, security headers, CORS, compression.

use std::io::Read;

use flate2::read::GzDecoder;
use plinth::config::Config;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, ORIGIN, VARY};
use reqwest::{Method, Response};
use serde_json::json;
use uuid::Uuid;

use crate::support::{Engine, TestApp};

const BROWSER: &str = "https://app.example.com";
const API_POLICY: &str =
    "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// The headers that the OWASP REST Security Cheat Sheet asks of an API.
pub fn assert_secure(headers: &HeaderMap) {
    let expected = [
        ("strict-transport-security", "max-age=63115200; includeSubDomains"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("permissions-policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("content-security-policy", API_POLICY),
    ];
    for (name, value) in expected {
        let given: Vec<_> = headers.get_all(name).iter().collect();
        assert_eq!(given, [value], "{name}");
    }
    assert!(headers.contains_key("cache-control"));
    for telling in ["server", "x-powered-by"] {
        assert!(!headers.contains_key(telling), "{telling}");
    }
}

async fn app(change: impl FnOnce(&mut Config)) -> TestApp {
    TestApp::start_with(Engine::Sqlite, change).await.unwrap()
}

async fn open_to_a_browser() -> TestApp {
    app(|config| config.cors.allowed_origins = vec![BROWSER.into()]).await
}

fn request_id(answer: &Response) -> String {
    answer.headers()["x-request-id"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_request_keeps_the_id_it_came_with() {
    let app = app(|_| {}).await;
    for id in ["7", "a!~\"{}", &"x".repeat(128)] {
        for path in ["/health/live", "/nope"] {
            let answer = app.get(path).header("x-request-id", id).send().await.unwrap();
            assert_eq!(request_id(&answer), id);
        }
    }
}

#[tokio::test]
async fn an_id_that_is_none_is_replaced() {
    let app = app(|_| {}).await;
    let long = "x".repeat(129);
    for id in ["", "two words", "tab\there", "\u{fc}", &long] {
        let answer = app.get("/health/live").header("x-request-id", id).send().await.unwrap();
        request_id(&answer).parse::<Uuid>().unwrap();
    }
    let answers = [app.get("/health/live").send().await, app.get("/health/live").send().await];
    let [one, other] = answers.map(|answer| request_id(&answer.unwrap()));
    assert_ne!(one, other);
}

#[tokio::test]
async fn every_answer_is_secure() {
    let app = app(|_| {}).await;
    for path in ["/health/live", "/health", "/openapi.json", "/api/v1/plans", "/nope"] {
        assert_secure(app.get(path).send().await.unwrap().headers());
    }
    let answer = app.get("/health/live").send().await.unwrap();
    assert_eq!(answer.headers()["cache-control"], "no-store");
}

#[tokio::test]
async fn the_documentation_may_run_its_own_scripts_and_no_others() {
    let app = app(|_| {}).await;
    let answer = app.get("/docs/").send().await.unwrap();
    let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("script-src 'self';"), "{policy}");
    assert!(policy.starts_with("default-src 'none';"), "{policy}");
}

#[tokio::test]
async fn the_headers_can_be_left_to_a_proxy() {
    let app = app(|config| config.security_headers.enabled = false).await;
    let answer = app.get("/health/live").send().await.unwrap();
    assert!(!answer.headers().contains_key("content-security-policy"));
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_may_read_what_it_needs() {
    let app = open_to_a_browser().await;
    let answer = app.get("/health/live").header(ORIGIN, BROWSER).send().await.unwrap();
    assert_eq!(answer.headers()["access-control-allow-origin"], BROWSER);
    let exposed = answer.headers()["access-control-expose-headers"].to_str().unwrap().to_owned();
    for name in ["etag", "link", "location", "retry-after", "x-request-id"] {
        assert!(exposed.split(',').any(|exposed| exposed.trim() == name), "{name}: {exposed}");
    }
    assert!(!answer.headers().contains_key("access-control-allow-credentials"));
}

#[tokio::test]
async fn a_page_of_another_origin_may_not() {
    let app = open_to_a_browser().await;
    for origin in ["https://evil.example", "https://app.example.com.evil.example", "null"] {
        let answer = app.get("/health/live").header(ORIGIN, origin).send().await.unwrap();
        assert!(!answer.headers().contains_key("access-control-allow-origin"), "{origin}");
        // Or a cache would hand one origin's answer to the other.
        let varies = answer.headers().get_all(VARY).iter();
        assert!(
            varies
                .flat_map(|value| value.to_str().unwrap().split(','))
                .any(|name| { name.trim().eq_ignore_ascii_case("origin") })
        );
    }
}

async fn preflight(app: &TestApp, origin: &str, method: &str) -> Response {
    app.request(Method::OPTIONS, "/api/v1/plans")
        .header(ORIGIN, origin)
        .header("access-control-request-method", method)
        .header("access-control-request-headers", "content-type,if-match")
        .send()
        .await
        .unwrap()
}

#[tokio::test]
async fn a_preflight_says_what_may_be_sent() {
    let app = open_to_a_browser().await;
    for method in ["PUT", "PATCH", "DELETE"] {
        let answer = preflight(&app, BROWSER, method).await;
        assert!(answer.status().is_success());
        assert_secure(answer.headers());
        assert_eq!(answer.headers()["access-control-allow-origin"], BROWSER);
        assert_eq!(answer.headers()["access-control-max-age"], "600");
        let methods = answer.headers()["access-control-allow-methods"].to_str().unwrap();
        assert!(methods.split(',').any(|allowed| allowed.trim() == method), "{methods}");
        let headers = answer.headers()["access-control-allow-headers"].to_str().unwrap();
        for name in ["content-type", "if-match", "if-none-match", "authorization"] {
            assert!(headers.split(',').any(|allowed| allowed.trim() == name), "{headers}");
        }
    }
    let stranger = preflight(&app, "https://evil.example", "PUT").await;
    assert!(!stranger.headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn no_origin_is_allowed_unless_it_is_named() {
    let app = app(|_| {}).await;
    let answer = app.get("/health/live").header(ORIGIN, BROWSER).send().await.unwrap();
    assert!(!answer.headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn a_long_answer_is_compressed_for_who_can_read_it() {
    let app = app(|_| {}).await;
    let plain = app.get("/openapi.json").send().await.unwrap();
    assert!(!plain.headers().contains_key(CONTENT_ENCODING));
    let plain = plain.bytes().await.unwrap();

    let packed = app.get("/openapi.json").header(ACCEPT_ENCODING, "gzip").send().await.unwrap();
    assert_eq!(packed.headers()[CONTENT_ENCODING], "gzip");
    assert!(packed.headers()[VARY].to_str().unwrap().contains("accept-encoding"));
    let packed = packed.bytes().await.unwrap();
    assert!(packed.len() < plain.len());
    let mut unpacked = Vec::new();
    GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, plain);
}

#[tokio::test]
async fn only_what_is_over_a_kilobyte_and_has_no_etag_is_compressed() {
    let app = app(|_| {}).await;
    for (length, encoding) in [(500, None), (1500, Some("gzip"))] {
        let plan = json!({"name": "x", "description": "x".repeat(length),
            "start_date": "2027-03-01", "end_date": "2027-03-01"});
        let created = app.post("/api/v1/plans").json(&plan).send().await.unwrap();
        let one = created.headers()["location"].to_str().unwrap().to_owned();
        let asked = async |path: &str| {
            let answer = app.get(path).header(ACCEPT_ENCODING, "gzip").send().await.unwrap();
            let given = answer.headers().get(CONTENT_ENCODING);
            given.map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(asked("/api/v1/plans?limit=1").await.as_deref(), encoding, "{length}");
        assert_eq!(asked(&one).await, None, "a strong ETag names the very bytes");
    }
}

#[tokio::test]
async fn refusing_plain_bytes_does_not_undo_an_answer() {
    let app = app(|_| {}).await;
    let plan = json!({"name": "x", "start_date": "2027-03-01", "end_date": "2027-03-01"});
    for refusal in ["identity;q=0", "*;q=0", "br, identity; q=0.0"] {
        let post = app.post("/api/v1/plans").header(ACCEPT_ENCODING, refusal).json(&plan);
        assert_eq!(post.send().await.unwrap().status(), 201, "{refusal}");
    }
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let app = app(|_| {}).await;
    for path in ["/api/v1/plans", "/openapi.json"] {
        let get = app.get(path).send().await.unwrap();
        let head = app.request(Method::HEAD, path).send().await.unwrap();
        assert_eq!(head.status(), get.status());
        assert_eq!(head.headers()[CONTENT_LENGTH], get.headers()[CONTENT_LENGTH]);
        assert_eq!(head.headers()["content-type"], get.headers()["content-type"]);
        assert!(head.bytes().await.unwrap().is_empty());
    }
}
