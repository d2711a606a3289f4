//! Calls to other services: a span, a time in metrics, and the trace passed on.

use std::time::Instant;

use metrics::histogram;
use reqwest::{Client, Request, Response};
use tracing::Instrument;
use tracing::field::Empty;

use super::targets::CALL;
use super::traces::pass_on;
use crate::child_span;

/// Sends a request, in a span of the current one's trace, which the called service is told.
///
/// # Errors
/// As [`Client::execute`].
pub async fn send(client: &Client, mut request: Request) -> reqwest::Result<Response> {
    let (method, url) = (request.method().clone(), request.url());
    let host = url.host_str().unwrap_or_default().to_owned();
    let span = child_span!(
        target: CALL,
        "outbound",
        otel.name = method.as_str(),
        otel.kind = "client",
        http.request.method = method.as_str(),
        server.address = host,
        server.port = url.port_or_known_default(),
        http.response.status_code = Empty,
        error.type = Empty,
        otel.status_code = Empty,
    );
    span.in_scope(|| pass_on(request.headers_mut()));
    let start = Instant::now();
    let answer = client.execute(request).instrument(span.clone()).await;
    let outcome = match &answer {
        Ok(answer) => {
            span.record("http.response.status_code", answer.status().as_u16());
            answer.status().as_str().to_owned()
        }
        Err(_) => "error".to_owned(),
    };
    if !answer.as_ref().is_ok_and(|answer| answer.status().as_u16() < 400) {
        span.record("error.type", outcome.as_str());
        span.record("otel.status_code", "ERROR");
    }
    histogram!(
        "http_client_request_duration_seconds",
        "http_request_method" => method.to_string(),
        "server_address" => host,
        "outcome" => outcome
    )
    .record(start.elapsed());
    answer
}
