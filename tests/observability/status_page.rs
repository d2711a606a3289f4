//! The status page, in a real browser.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::browser::Browser;
use crate::service::Service;
use crate::support::until;

/// A service on this port for operators, with requests to show.
async fn service(port: u16) -> Service {
    let bind = format!("127.0.0.1:{port}");
    let service = Service::start([("APP_MANAGEMENT__BIND", bind.as_str())]).await;
    let plan = service.plan("A plan").await;
    for path in [plan.as_str(), plan.as_str(), "/api/v1/plans", "/nowhere"] {
        service.get(path).await;
    }
    service
}

async fn becomes(browser: &Browser, state: &str) {
    until(state, async || {
        browser.run("return document.documentElement.dataset.state").await == state
    })
    .await;
}

async fn text(browser: &Browser, id: &str) -> String {
    let text = browser.run(&format!("return document.getElementById('{id}').innerText")).await;
    text.as_str().unwrap_or_else(|| panic!("#{id}: {text}")).to_owned()
}

/// For people to look at, and for the documentation.
async fn keep(browser: &Browser, name: &str) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::write(folder.join(format!("status-{name}.png")), browser.screenshot().await).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_shows_what_there_is_and_says_when_there_is_nothing() {
    let running = service(0).await;
    let port = running.management.rsplit_once(':').unwrap().1.parse().unwrap();
    running.drop_plans().await;
    let failed: Value = running.get("/api/v1/plans").await.json().await.unwrap();
    let browser = Browser::open().await;
    browser.resize(1280, 900).await;
    browser.go_to(&format!("{}/status", running.management)).await;
    becomes(&browser, "live").await;

    assert_eq!(text(&browser, "state").await, "Serving");
    assert_eq!(text(&browser, "service").await, env!("CARGO_PKG_NAME"));
    let errors = text(&browser, "errors").await;
    assert!(errors.contains("/api/v1/plans") && errors.contains("INTERNAL_ERROR"), "{errors}");
    let rows = browser.run("return document.getElementById('errors').textContent").await;
    for id in ["error_id", "request_id", "trace_id"] {
        let id = failed[id].as_str().unwrap();
        // The page may shorten what it shows, but not what there is to copy.
        assert!(rows.as_str().unwrap().contains(id), "{id} in {rows}");
    }
    for (card, word) in
        [("checks", "database"), ("pools", "writer"), ("cache", "plans"), ("limits", "default")]
    {
        let card = text(&browser, card).await;
        assert!(card.contains(word), "{word} in {card}");
    }
    // The charts have something to draw once an interval has ended.
    let drawn = "return document.querySelectorAll('#chart-latency path, #chart-latency polyline, \
                 #chart-latency circle').length > 0 && \
                 document.getElementById('chart-rate').getAttribute('aria-label').length > 20";
    until("the charts are drawn", async || browser.run(drawn).await == true).await;

    let mut grounds = Vec::new();
    for scheme in ["light", "dark"] {
        browser.prefer(scheme).await;
        let ground = "return getComputedStyle(document.body).backgroundColor";
        grounds.push(browser.run(ground).await);
        keep(&browser, scheme).await;
    }
    assert_ne!(grounds[0], grounds[1], "light and dark");

    browser.resize(360, 740).await;
    let width = browser.run("return document.scrollingElement.scrollWidth").await;
    assert_eq!(width, 360, "a phone does not scroll sideways");
    keep(&browser, "phone").await;
    assert_eq!(browser.console().await, Vec::<String>::new(), "no error, no breach of the policy");

    running.stop().await;
    becomes(&browser, "gone").await;
    let said = text(&browser, "state").await;
    assert!(said.starts_with("Data source gone"), "{said}");
    let errors = text(&browser, "errors").await;
    assert!(errors.contains("INTERNAL_ERROR"), "what was known stays: {errors}");
    keep(&browser, "gone").await;

    let _again = service(port).await;
    becomes(&browser, "live").await;
    assert_eq!(text(&browser, "state").await, "Serving");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_asks_nobody_else_for_anything() {
    let running = service(0).await;
    let browser = Browser::open().await;
    browser.go_to(&format!("{}/status", running.management)).await;
    becomes(&browser, "live").await;
    let asked = browser
        .run("return performance.getEntriesByType('resource').map(entry => new URL(entry.name).origin)")
        .await;
    let asked = asked.as_array().unwrap();
    assert!(
        asked.len() >= 3 && asked.iter().all(|origin| *origin == *running.management),
        "{asked:?}"
    );
}
