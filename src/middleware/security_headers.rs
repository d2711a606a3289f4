//! The response headers that the OWASP REST Security Cheat Sheet asks of an API.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use crate::config::SecurityHeadersConfig;

const FIXED: [(HeaderName, HeaderValue); 6] = [
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (
        HeaderName::from_static("permissions-policy"),
        HeaderValue::from_static("camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    ),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        HeaderValue::from_static("same-origin"),
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    ),
];

/// For answers that are data: nothing may be loaded or framed on their account.
const API_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
);

/// For the documentation page: its own scripts and styles, and the styles it writes inline.
const DOCS_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' \
     data:; font-src 'self'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; \
     form-action 'none'",
);

/// For answers that do not say themselves how they may be cached.
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

pub(super) async fn security_headers(
    State(config): State<Arc<SecurityHeadersConfig>>,
    request: Request,
    next: Next,
) -> Response {
    let policy = if request.uri().path().starts_with("/docs") { DOCS_POLICY } else { API_POLICY };
    let mut response = next.run(request).await;
    if !config.enabled {
        return response;
    }
    let headers = response.headers_mut();
    headers.extend(FIXED);
    // A page that knows better says so itself.
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(policy);
    let hsts = format!("max-age={}; includeSubDomains", config.hsts_max_age.as_secs());
    if let Ok(hsts) = HeaderValue::try_from(hsts) {
        headers.insert(STRICT_TRANSPORT_SECURITY, hsts);
    }
    headers.entry(CACHE_CONTROL).or_insert(NO_STORE);
    response
}
