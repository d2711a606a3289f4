//! `/status`: a page for people, and the part of its data that is neither in the health report nor
//! in the metrics.

use std::sync::LazyLock;

use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_SECURITY_POLICY;
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::config::{Config, Environment};
use crate::extract::Json;
use crate::telemetry::traffic::{self, INTERVAL, Recent};
use crate::telemetry::{COMMIT, VERSION};

const PAGE: &str = include_str!("status.html");

/// Its own script and style, known by their hashes, and its own data; nothing else.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; connect-src 'self'; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        hash_of("script"),
        hash_of("style")
    );
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// What the page cannot have from elsewhere.
#[derive(Debug, Serialize)]
struct Status {
    service: &'static str,
    version: &'static str,
    commit: &'static str,
    env: Environment,
    now: DateTime<Utc>,
    interval_seconds: u64,
    #[serde(flatten)]
    recent: Recent,
}

pub(super) fn routes<S: Clone + Send + Sync + 'static>(config: &Config) -> Router<S> {
    let env = config.env;
    Router::new().route("/status", get(page)).route("/status/data", get(async move || data(env)))
}

async fn page() -> impl IntoResponse {
    ([(CONTENT_SECURITY_POLICY, POLICY.clone())], Html(PAGE))
}

fn data(env: Environment) -> Json<Status> {
    Json(Status {
        service: env!("CARGO_PKG_NAME"),
        version: VERSION,
        commit: COMMIT,
        env,
        now: Utc::now(),
        interval_seconds: INTERVAL.as_secs(),
        recent: traffic::recent(),
    })
}

/// As a policy names what is between an element's tags.
fn hash_of(element: &str) -> String {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let inner = PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close));
    let digest = Sha256::digest(inner.map_or("", |(inner, _)| inner));
    format!("sha256-{}", STANDARD.encode(digest))
}
