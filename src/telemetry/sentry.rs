//! Sentry: one event for each 5xx, panic and error in the background, none for a 4xx; and, by a
//! sample rate, how long requests took. Secrets are taken out of events; times hold only what is ours
//! to say.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use reqwest::redirect;
use sentry::integrations::tracing::{BreadcrumbLayer, ErrorLayer, SpanLayer};
use sentry::protocol::{Context, Event, Exception, SpanStatus, TraceContext, User};
use sentry::transports::ReqwestHttpTransportOptions;
use sentry::{
    ClientInitGuard, ClientOptions, Hub, Level, Transaction, TransactionContext, Transport,
    TransportFactory, TransportOptions,
};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{Targets, dynamic_filter_fn};
use tracing_subscriber::registry::LookupSpan;

use super::scrub::Scrub;
use super::targets::{ACCESS, TRACE};
use super::{COMMIT, VERSION};
use crate::config::Config;
use crate::error::Failure;

/// Longest one event may take to send.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// The part of the requests that is timed, as bits. It is drawn here and not by Sentry's client, to
/// which a request that is not to be sent is as much work as one that is.
static TIMED_PART: AtomicU32 = AtomicU32::new(0);

/// What an event says of the request that failed.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub id: &'a str,
    pub trace_id: Option<&'a str>,
    pub method: &'a str,
    /// The route's template, not the path, which may name a person.
    pub route: &'a str,
    /// The client, as the logs and the limits know it.
    pub client: IpAddr,
}

pub(super) fn init(config: &Config) -> anyhow::Result<Option<ClientInitGuard>> {
    let Some(dsn) = &config.sentry.dsn else { return Ok(None) };
    let mut options = ClientOptions::new();
    // The parser's error would repeat the DSN.
    options.dsn =
        Some(dsn.expose().parse().map_err(|_| anyhow::anyhow!("SENTRY_DSN is not a Sentry DSN"))?);
    options.transport = Some(Arc::new(BoundedTransport));
    let environment = config.sentry.environment.clone();
    let environment = environment.unwrap_or_else(|| config.env.as_str().to_owned());
    let release = match COMMIT {
        "unknown" => format!("{}@{VERSION}", env!("CARGO_PKG_NAME")),
        commit => format!("{}@{VERSION}+{commit}", env!("CARGO_PKG_NAME")),
    };
    TIMED_PART.store(config.sentry.traces_sample_rate.to_bits(), Relaxed);
    let scrub = Scrub::new(config.secrets());
    Ok(Some(sentry::init(
        options
            .release(release)
            .environment(environment)
            .sample_rate(config.sentry.sample_rate)
            // Of those that were drawn.
            .traces_sample_rate(1.0)
            .before_send(move |event| scrubbed(&scrub, &event))
            .send_default_pii(false),
    )))
}

/// Sentry's own HTTP transport, which by itself would wait for ever on a server that takes an event
/// and never answers, and send no other.
struct BoundedTransport;

impl TransportFactory for BoundedTransport {
    fn create_transport_with_options(&self, options: TransportOptions) -> Arc<dyn Transport> {
        let client = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .timeout(SEND_TIMEOUT)
            .build()
            .unwrap_or_default();
        Arc::new(ReqwestHttpTransportOptions::from(options).with_client(client).build())
    }
}

/// By way of JSON, because that has no corner that could be forgotten.
fn scrubbed(scrub: &Scrub, event: &Event<'static>) -> Option<Event<'static>> {
    let mut event = serde_json::to_value(event).ok()?;
    scrub.json(&mut event);
    serde_json::from_value(event).ok()
}

pub(super) fn layers<S>(config: &Config) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let but_requests =
        |level| Targets::new().with_default(level).with_target(ACCESS, LevelFilter::OFF);
    ErrorLayer::new()
        .with_filter(but_requests(LevelFilter::ERROR))
        .and_then(BreadcrumbLayer::new().with_filter(but_requests(LevelFilter::INFO)))
        .and_then((config.sentry.traces_sample_rate > 0.0).then(|| {
            // A request's own is [`Timing`], which knows the caller's trace.
            let ours = |metadata: &Metadata<'_>| metadata.target() == TRACE && metadata.is_span();
            SpanLayer::new().with_filter(
                dynamic_filter_fn(move |metadata, _| ours(metadata) && is_timed())
                    .with_max_level_hint(LevelFilter::INFO)
                    .with_callsite_filter(move |metadata| {
                        if ours(metadata) { Interest::sometimes() } else { Interest::never() }
                    }),
            )
        }))
}

/// Whether the request under way is one of those that are timed.
fn is_timed() -> bool {
    Hub::with_active(|hub| hub.configure_scope(|scope| scope.get_span())).is_some()
}

/// Sends a failed request.
pub fn report(failure: &Failure, request: Request<'_>) {
    if sentry::Hub::current().client().is_none() {
        return;
    }
    let code = failure.error.code().into_owned();
    let cause = failure.error.causes().unwrap_or_else(|| failure.error.detail());
    sentry::capture_event(Event {
        level: Level::Error,
        transaction: Some(format!("{} {}", request.method, request.route)),
        user: Some(User { ip_address: Some(request.client.into()), ..User::default() }),
        contexts: trace_of(request).into_iter().collect(),
        exception: vec![Exception { ty: code, value: Some(cause), ..Exception::default() }].into(),
        tags: [
            ("request_id", request.id.to_owned()),
            ("error_id", failure.id.to_string()),
            ("trace_id", request.trace_id.unwrap_or_default().to_owned()),
            ("route", request.route.to_owned()),
            ("method", request.method.to_owned()),
            ("status", failure.error.status().as_u16().to_string()),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.to_owned(), value))
        .collect(),
        ..Event::default()
    });
}

/// The trace, for an event that no [`Timing`] gives one.
fn trace_of(request: Request<'_>) -> Option<(String, Context)> {
    let trace_id = request.trace_id?.parse().ok().filter(|_| !is_timed())?;
    Some(("trace".into(), TraceContext { trace_id, ..TraceContext::default() }.into()))
}

/// How long a request takes, when Sentry is told that.
#[derive(Debug)]
pub struct Timing(Option<Transaction>);

impl Timing {
    /// Of a request that is not timed.
    pub fn none() -> Self {
        Self(None)
    }

    /// Begins, in the hub of the request. It is a part of the trace that `sentry-trace` in `trusted`
    /// names, or else of that with `trace_id`.
    pub fn begin(name: &str, trusted: Option<&HeaderMap>, trace_id: Option<&str>) -> Self {
        const OPERATION: &str = "http.server";
        let part = f32::from_bits(TIMED_PART.load(Relaxed));
        if part == 0.0 {
            return Self(None);
        }
        let sent = trusted.and_then(|headers| headers.get("sentry-trace")?.to_str().ok());
        let sent = sent.filter(|sent| is_decided(sent));
        // Whether a trace is kept is for whoever began it to say.
        if sent.is_none() && fastrand::f32() >= part {
            return Self(None);
        }
        let ours = trace_id.and_then(|id| id.parse().ok()).unwrap_or_default();
        let context = match sent {
            Some(sent) => {
                TransactionContext::continue_from_headers(name, OPERATION, [("sentry-trace", sent)])
            }
            None => TransactionContext::new_with_trace_id(name, OPERATION, ours),
        };
        let transaction = sentry::start_transaction(context);
        Hub::current().configure_scope(|scope| scope.set_span(Some(transaction.clone().into())));
        Self(Some(transaction))
    }

    /// Ends; without a status, the client left.
    pub fn end(&mut self, status: Option<StatusCode>) {
        let Some(transaction) = self.0.take() else { return };
        if let Some(status) = status {
            transaction.set_data("http.response.status_code", status.as_u16().into());
        }
        transaction.set_status(span_status(status));
        transaction.finish();
    }
}

/// Whether it is a `sentry-trace` (trace, span, decision) with a decision in it.
fn is_decided(header: &str) -> bool {
    let hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let mut parts = header.split('-');
    let [trace, span, decision] = [parts.next(), parts.next(), parts.next()];
    let ids = trace.is_some_and(|id| hex(id, 32)) && span.is_some_and(|id| hex(id, 16));
    ids && matches!(decision, Some("0" | "1")) && parts.next().is_none()
}

/// As Sentry maps HTTP to its own.
fn span_status(status: Option<StatusCode>) -> SpanStatus {
    match status.map_or(499, |status| status.as_u16()) {
        499 => SpanStatus::Cancelled,
        401 => SpanStatus::Unauthenticated,
        403 => SpanStatus::PermissionDenied,
        404 => SpanStatus::NotFound,
        409 => SpanStatus::AlreadyExists,
        429 => SpanStatus::ResourceExhausted,
        503 => SpanStatus::Unavailable,
        504 => SpanStatus::DeadlineExceeded,
        400..500 => SpanStatus::InvalidArgument,
        500.. => SpanStatus::InternalError,
        _ => SpanStatus::Ok,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_header_that_decides_takes_the_place_of_the_draw() {
        let (trace, span) = ("771a43a4192642f0b136d5159a501700", "7c7b5f3c1a2b3d4e");
        for decision in ["0", "1"] {
            assert!(is_decided(&format!("{trace}-{span}-{decision}")));
        }
        for bad in ["", "garbage", &format!("{trace}-{span}"), &format!("{trace}-{span}-2")] {
            assert!(!is_decided(bad), "{bad}");
        }
    }
}
