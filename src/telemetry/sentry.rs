//! Sentry: one event for each 5xx, panic and error in the background; none for a 4xx.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use sentry::integrations::tracing::{BreadcrumbLayer, ErrorLayer};
use sentry::protocol::{Event, Exception, User};
use sentry::transports::ReqwestHttpTransportOptions;
use sentry::{
    ClientInitGuard, ClientOptions, Level, Transport, TransportFactory, TransportOptions,
};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use crate::config::Config;
use crate::error::Failure;

/// The target of access log lines: Sentry takes a failed request from [`report`], which knows
/// more, and lines with client addresses make no breadcrumbs.
pub const ACCESS: &str = concat!(env!("CARGO_CRATE_NAME"), "::access");

/// Longest one event may take to send.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// What an event says of the request that failed.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub id: &'a str,
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
    let release = concat!(env!("CARGO_PKG_NAME"), "@", env!("CARGO_PKG_VERSION"));
    Ok(Some(sentry::init(
        options
            .release(release)
            .environment(environment)
            .sample_rate(config.sentry.sample_rate)
            .send_default_pii(false),
    )))
}

/// Sentry's own HTTP transport, which by itself would wait for ever on a server that takes an event
/// and never answers, and send no other.
struct BoundedTransport;

impl TransportFactory for BoundedTransport {
    fn create_transport_with_options(&self, options: TransportOptions) -> Arc<dyn Transport> {
        let client = reqwest::Client::builder().timeout(SEND_TIMEOUT).build().unwrap_or_default();
        Arc::new(ReqwestHttpTransportOptions::from(options).with_client(client).build())
    }
}

pub(super) fn layers<S>() -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let but_requests =
        |level| Targets::new().with_default(level).with_target(ACCESS, LevelFilter::OFF);
    ErrorLayer::new()
        .with_filter(but_requests(LevelFilter::ERROR))
        .and_then(BreadcrumbLayer::new().with_filter(but_requests(LevelFilter::INFO)))
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
        exception: vec![Exception { ty: code, value: Some(cause), ..Exception::default() }].into(),
        tags: [
            ("request_id", request.id.to_owned()),
            ("error_id", failure.id.to_string()),
            ("route", request.route.to_owned()),
            ("method", request.method.to_owned()),
            ("status", failure.error.status().as_u16().to_string()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect(),
        ..Event::default()
    });
}
