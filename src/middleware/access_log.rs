//! One log line a request, written when its answer has been sent or given up.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header::USER_AGENT};
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tracing::{Instrument, Level, Span};
use url::form_urlencoded;

use super::client_ip::ClientIp;
use super::request_id::RequestId;
use crate::auth::Principal;
use crate::db::{Usage, track_usage};
use crate::error::Failure;
use crate::telemetry::sentry::{self, ACCESS};

/// What the log says of a client that left before it had its answer (nginx's word for it).
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// As much of a user agent as is of use.
const MAX_USER_AGENT: usize = 256;

pub(super) async fn access_log(
    Extension(id): Extension<RequestId>,
    request: Request,
    next: Next,
) -> Response {
    let trace_id = trace_id(request.headers());
    // At the highest level, so that every line inside carries the ids, whatever the filter.
    let span = tracing::error_span!("request", request_id = id.as_str(), trace_id);
    let mut line = Line::begin(&request, span.clone());
    let work = track_usage(line.usage.clone(), next.run(request));
    let response = work.instrument(span).await;
    line.answered(&response);
    if let Some(failure) = line.failure.as_ref().filter(|failure| failure.error.is_fault()) {
        let (method, route, client) = (line.method.as_str(), line.route(), line.client.address());
        sentry::report(failure, sentry::Request { id: id.as_str(), method, route, client });
    }
    response.map(|body| Body::new(Logged { body, line }))
}

/// A line in the making; dropping it writes it.
struct Line {
    span: Span,
    start: Instant,
    method: Method,
    route: Option<MatchedPath>,
    uri: Uri,
    client: ClientIp,
    principal: Option<Principal>,
    user_agent: Option<String>,
    usage: Arc<Usage>,
    status: Option<StatusCode>,
    failure: Option<Failure>,
    bytes: u64,
}

impl Line {
    fn begin(request: &Request, span: Span) -> Self {
        Self {
            span,
            start: Instant::now(),
            method: request.method().clone(),
            route: request.extensions().get().cloned(),
            uri: request.uri().clone(),
            client: ClientIp::of(request),
            user_agent: request.headers().get(USER_AGENT).map(|value| {
                String::from_utf8_lossy(value.as_bytes()).chars().take(MAX_USER_AGENT).collect()
            }),
            principal: None,
            usage: Arc::default(),
            status: None,
            failure: None,
            bytes: 0,
        }
    }

    fn answered(&mut self, response: &Response) {
        self.status = Some(response.status());
        self.failure = response.extensions().get().cloned();
        self.principal = response.extensions().get().cloned();
    }

    fn route(&self) -> &str {
        self.route.as_ref().map_or("", MatchedPath::as_str)
    }

    /// Probes come every few seconds from every side; one that went well is not news.
    fn level(&self) -> Level {
        match self.status {
            _ if self.failure.as_ref().is_some_and(|failure| failure.error.is_fault()) => {
                Level::ERROR
            }
            Some(status) if status.is_success() && self.route().starts_with("/health") => {
                Level::DEBUG
            }
            _ => Level::INFO,
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        /// An event's level must be known where it is compiled.
        macro_rules! write {
            ($level:expr) => {
                tracing::event!(
                    target: ACCESS,
                    parent: &self.span,
                    $level,
                    method = self.method.as_str(),
                    route = self.route(),
                    path = self.uri.path(),
                    query = self.uri.query().map(redacted),
                    status = self.status.map_or(CLIENT_CLOSED_REQUEST, |status| status.as_u16()),
                    duration_ms = milliseconds(self.start.elapsed()),
                    bytes = self.bytes,
                    client_ip = %self.client.address(),
                    principal = self.principal.as_ref().map(Principal::id),
                    user_agent = self.user_agent,
                    db_ms = milliseconds(self.usage.time()),
                    db_queries = self.usage.queries(),
                    error_id = self.failure.as_ref().map(|failure| failure.id.to_string()),
                    error_code = self.failure.as_ref().map(|failure| failure.error.code().into_owned()),
                    cause = self.failure.as_ref().and_then(|failure| failure.error.causes()),
                    "request"
                )
            };
        }
        match self.level() {
            Level::ERROR => write!(Level::ERROR),
            Level::DEBUG => write!(Level::DEBUG),
            _ => write!(Level::INFO),
        }
    }
}

/// The answer's body, counting what of it is sent.
struct Logged {
    body: Body,
    line: Line,
}

impl HttpBody for Logged {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.line.bytes += data.len() as u64;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The trace id of the caller's `traceparent` (W3C Trace Context), or a new one.
fn trace_id(headers: &HeaderMap) -> String {
    let given =
        headers.get("traceparent").and_then(|value| value.to_str().ok()).and_then(|value| {
            let id = value.split('-').nth(1)?;
            let hex = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            (id.len() == 32 && hex && id.bytes().any(|byte| byte != b'0')).then(|| id.to_owned())
        });
    given.unwrap_or_else(|| format!("{:032x}", fastrand::u128(1..)))
}

/// A query with the values of secret-looking names taken out.
fn redacted(query: &str) -> String {
    const SECRET: [&str; 10] =
        ["auth", "code", "credential", "jwt", "key", "pass", "secret", "session", "sig", "token"];
    let secret = |name: &str| {
        // Decoded, or `%6bey` would pass for something else than `key`.
        let name = form_urlencoded::parse(name.as_bytes()).map(|(name, _)| name.to_lowercase());
        name.into_iter().any(|name| SECRET.iter().any(|word| name.contains(word)))
    };
    let parts = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if secret(name) => format!("{name}=[redacted]"),
        _ => pair.to_owned(),
    });
    parts.collect::<Vec<_>>().join("&")
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_looking_query_values_are_not_logged() {
        assert_eq!(
            redacted("a=1&Api_Key=k&access_token=t&b&%6bey=k"),
            "a=1&Api_Key=[redacted]&access_token=[redacted]&b&%6bey=[redacted]"
        );
    }

    #[test]
    fn only_a_well_formed_trace_id_is_taken_over() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", value.parse().unwrap());
            trace_id(&headers)
        };
        let id = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(of(&format!("00-{id}-b7ad6b7169203331-01")), id);
        for bad in ["", "00-short-1-01", "00-00000000000000000000000000000000-1-01"] {
            assert_eq!(of(bad).len(), 32);
        }
    }
}
