//! What is seen of each request once its answer has been sent or given up: a log line, metrics, the
//! end of its span and, where it failed, its failure in Sentry.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::USER_AGENT;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::Response;
use chrono::Utc;
use http_body::{Body as HttpBody, Frame, SizeHint};
use metrics::gauge;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::access_log;
use super::client_ip::{ClientIp, FromProxy};
use super::request_id::RequestId;
use super::request_metrics;
use crate::auth::Principal;
use crate::config::AcceptContext;
use crate::db::{Usage, track_usage};
use crate::error::{Failure, chain};
use crate::telemetry::sentry::{self, Timing};
use crate::telemetry::targets::{REQUEST, SERVER};
use crate::telemetry::traces;
use crate::telemetry::traffic::{self, RequestSummary};

/// The status of a request whose client left before it had its answer (nginx's word for it).
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// As much of a user agent as is of use.
const MAX_USER_AGENT: usize = 256;

/// The route of paths that are none: they are the clients' to choose, and would be any number.
const UNMATCHED: &str = "unmatched";

/// What operators and their machines ask for every few seconds: no spans, and no news when it goes
/// well.
const ROUTINE: [&str; 4] = ["/health", "/metrics", "/status", "/log"];

pub(super) async fn observe(
    State(accept): State<AcceptContext>,
    Extension(id): Extension<RequestId>,
    request: Request,
    next: Next,
) -> Response {
    let mut record = RequestRecord::begin(&request, id, accept);
    let received = record.received.clone();
    let request = request.map(|body| match body.is_end_stream() {
        true => body,
        false => Body::new(ReceivedBody { body, received }),
    });
    let work = track_usage(record.usage.clone(), next.run(request));
    let response = work.instrument(record.span.clone()).await;
    record.answered(&response);
    response.map(|body| Body::new(ObservedBody { body, record }))
}

/// What is seen of one request; dropping it writes it.
pub(super) struct RequestRecord {
    pub id: RequestId,
    pub trace_id: Option<String>,
    /// Gives log lines the ids, and is the root of what this process adds to the trace.
    pub span: Span,
    timing: Timing,
    start: Instant,
    pub method: Method,
    route: Option<MatchedPath>,
    pub uri: Uri,
    pub client: ClientIp,
    pub principal: Option<Principal>,
    pub user_agent: Option<String>,
    pub usage: Arc<Usage>,
    status: Option<StatusCode>,
    pub failure: Option<Failure>,
    /// Bytes of the request's body that were read.
    received: Arc<AtomicU64>,
    /// Bytes of the answer's body that were sent.
    pub sent: u64,
    pub end: End,
}

/// How an answer's body ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    Whole,
    /// The client left first.
    Left,
    /// What makes the body failed.
    Failed(String),
}

impl RequestRecord {
    fn begin(request: &Request, id: RequestId, accept: AcceptContext) -> Self {
        gauge!("http_server_active_requests").increment(1);
        let from_proxy = request.extensions().get::<FromProxy>().is_some();
        let trusted = (from_proxy || accept == AcceptContext::All).then_some(request.headers());
        let route: Option<MatchedPath> = request.extensions().get().cloned();
        let name = span_name(request.method(), route.as_ref());
        let routine = route.as_ref().is_some_and(|route| is_routine(route.as_str()));
        let (span, timing, trace_id) = if routine {
            (routine_span(&id), Timing::none(), None)
        } else {
            let span = server_span(&id, &name, request, route.as_ref());
            if let Some(headers) = trusted {
                traces::continue_from(&span, headers);
            }
            let trace_id = traces::trace_id(&span);
            span.record("trace_id", trace_id.as_deref());
            let timing = Timing::begin(&name, trusted, trace_id.as_deref());
            (span, timing, trace_id)
        };
        Self {
            id,
            trace_id,
            span,
            timing,
            start: Instant::now(),
            method: request.method().clone(),
            route,
            uri: request.uri().clone(),
            client: ClientIp::of(request),
            user_agent: user_agent(request.headers()),
            principal: None,
            usage: Arc::default(),
            status: None,
            failure: None,
            received: Arc::default(),
            sent: 0,
            end: End::Left,
        }
    }

    fn answered(&mut self, response: &Response) {
        self.status = Some(response.status());
        self.failure = response.extensions().get().cloned();
        self.principal = response.extensions().get().cloned();
        if let Some(failure) = self.failure.as_ref().filter(|failure| failure.error.is_fault()) {
            sentry::report(
                failure,
                sentry::Request {
                    id: self.id.as_str(),
                    trace_id: self.trace_id.as_deref(),
                    method: self.method.as_str(),
                    route: self.route(),
                    client: self.client.address(),
                },
            );
        }
    }

    /// The template, not the path; nothing where no route matched.
    pub fn route(&self) -> &str {
        self.route.as_ref().map_or("", MatchedPath::as_str)
    }

    pub fn is_routine(&self) -> bool {
        is_routine(self.route())
    }

    pub fn status(&self) -> u16 {
        self.status.map_or(CLIENT_CLOSED_REQUEST, |status| status.as_u16())
    }

    pub fn duration(&self) -> Duration {
        self.start.elapsed()
    }

    fn count(&self, duration: Duration) {
        let route = self.route.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
        request_metrics::of(route, known_method(&self.method), self.status(), |metrics| {
            metrics.duration.record(duration);
            let received = self.received.load(Relaxed);
            if received > 0 {
                metrics.received().record(received as f64);
            }
            metrics.sent.record(self.sent as f64);
        });
        gauge!("http_server_active_requests").decrement(1);
    }

    fn end_span(&self) {
        let status = self.status();
        self.span.record("http.response.status_code", status);
        if let Some(failure) = &self.failure {
            self.span.record("error.id", failure.id.to_string());
        }
        let failure = self.failure.as_ref().filter(|_| status >= 500);
        let error = match (&self.end, failure) {
            (End::Failed(_), _) => Some("BODY_FAILED".into()),
            (_, Some(failure)) => Some(failure.error.code()),
            (_, None) => None,
        };
        if let Some(error) = error {
            self.span.record("otel.status_code", "ERROR");
            self.span.record("error.type", &*error);
        }
        // The span ends when it was last left: now, not when the answer's head was ready.
        let _now = self.span.enter();
    }

    fn summary(&self, duration: Duration) -> RequestSummary {
        let failure = self.failure.as_ref();
        RequestSummary {
            at: Utc::now(),
            method: known_method(&self.method).to_owned(),
            route: self.route.as_ref().map_or(UNMATCHED, MatchedPath::as_str).to_owned(),
            status: self.status(),
            code: failure.map(|failure| failure.error.code().into_owned()),
            duration_ms: traffic::milliseconds(duration),
            error_id: failure.map(|failure| failure.id.to_string()),
            request_id: self.id.as_str().to_owned(),
            trace_id: self.trace_id.clone(),
        }
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let duration = self.duration();
        self.count(duration);
        if !self.is_routine() {
            traffic::record(duration, self.status(), || self.summary(duration));
        }
        self.end_span();
        self.timing.end(self.status);
        access_log::write(self, duration);
    }
}

fn is_routine(route: &str) -> bool {
    let below = |rest: &str| rest.is_empty() || rest.starts_with('/');
    ROUTINE.iter().any(|routine| route.strip_prefix(routine).is_some_and(below))
}

fn span_name(method: &Method, route: Option<&MatchedPath>) -> String {
    match route {
        Some(route) => format!("{} {}", known_method(method), route.as_str()),
        None => known_method(method).to_owned(),
    }
}

/// Of a request that makes no trace. At the highest level, as the other, so that every line inside
/// carries the ids, whatever the filter.
fn routine_span(id: &RequestId) -> Span {
    tracing::error_span!(target: REQUEST, "request", request_id = id.as_str())
}

/// As OpenTelemetry's semantic conventions for HTTP servers have it. Log lines carry the ids alone.
fn server_span(id: &RequestId, name: &str, request: &Request, route: Option<&MatchedPath>) -> Span {
    tracing::error_span!(
        target: SERVER,
        "request",
        request_id = id.as_str(),
        trace_id = Empty,
        otel.name = name,
        otel.kind = "server",
        http.request.method = known_method(request.method()),
        http.route = route.map(MatchedPath::as_str),
        http.response.status_code = Empty,
        error.type = Empty,
        // With a dot: log lines have it as a field of their own.
        error.id = Empty,
        otel.status_code = Empty,
    )
}

/// Methods are the clients' to make up, and a metric has a series for each.
fn known_method(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] =
        ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"];
    KNOWN.into_iter().find(|known| method.as_str() == *known).unwrap_or("_OTHER")
}

fn user_agent(headers: &HeaderMap) -> Option<String> {
    let text = String::from_utf8_lossy(headers.get(USER_AGENT)?.as_bytes());
    Some(text.chars().take(MAX_USER_AGENT).collect())
}

/// A request's body, counting what of it is read.
struct ReceivedBody {
    body: Body,
    received: Arc<AtomicU64>,
}

impl HttpBody for ReceivedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        self.received.fetch_add(data_in(&frame), Relaxed);
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body, counting what of it is sent.
struct ObservedBody {
    body: Body,
    record: RequestRecord,
}

impl HttpBody for ObservedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        self.record.sent += data_in(&frame);
        match &frame {
            Poll::Ready(None) => self.record.end = End::Whole,
            Poll::Ready(Some(Err(error))) => self.record.end = End::Failed(chain(error)),
            _ => {}
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

impl Drop for ObservedBody {
    fn drop(&mut self) {
        // A body that says that it is over is not asked for more.
        if self.record.end == End::Left && self.body.is_end_stream() {
            self.record.end = End::Whole;
        }
    }
}

fn data_in(frame: &Poll<Option<Result<Frame<Bytes>, axum::Error>>>) -> u64 {
    match frame {
        Poll::Ready(Some(Ok(frame))) => frame.data_ref().map_or(0, |data| data.len() as u64),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_that_only_begins_like_a_routine_one_is_none() {
        for route in ["/health", "/health/live", "/metrics", "/status/data", "/log"] {
            assert!(is_routine(route), "{route}");
        }
        for route in ["", "/login", "/logs", "/statuses", "/api/v1/health", "/healthcare"] {
            assert!(!is_routine(route), "{route}");
        }
    }
}
