//! The layers that requests pass, outermost first, and why they stand in this order.
//!
//! [`wrap`] is around everything; [`limit`] inside it, around everything but the probes, which must
//! answer whatever else is asked of the service.

mod access_log;
mod client_ip;
mod compression;
mod cors;
mod flood_guard;
mod load_shed;
mod observe;
mod panic;
mod problem;
mod request_id;
mod request_metrics;
mod security_headers;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state, map_request};
use sentry::integrations::tower::NewSentryLayer;
use tower::ServiceBuilder;
use tower::util::option_layer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::{RequestBodyDeadlineLayer, RequestBodyTimeoutLayer, TimeoutLayer};

pub use client_ip::ClientIp;
pub use flood_guard::FloodGuard;
pub use request_id::RequestId;

use crate::config::Config;
use client_ip::Proxies;
use load_shed::LoadShed;

/// Puts what every answer needs around the router's routes and fallbacks.
pub fn wrap(router: Router, config: &Config) -> Router {
    let security = Arc::new(config.security_headers.clone());
    let proxies = Arc::new(Proxies::new(&config.server));

    router.layer(
        ServiceBuilder::new()
            // A hub a request, so that breadcrumbs do not mix. Outermost: what reports failures
            // must run inside it.
            .layer(option_layer(
                config.sentry.dsn.is_some().then(NewSentryLayer::<Request>::new_from_top),
            ))
            // Before all that asks who the client is: the log, Sentry, the limits.
            .layer(from_fn_with_state(proxies, client_ip::client_ip))
            // Before what is seen of it, which has the id; the id is on every answer, whoever made it.
            .layer(from_fn(request_id::request_id))
            // Around all that can answer, so that timeouts and panics are logged and counted too.
            .layer(from_fn_with_state(config.traces.accept_context, observe::observe))
            // Inside that, which reads the failure; around all that can fail without a body.
            .layer(from_fn(problem::problem))
            // Around CORS, whose preflight answers deserve them too.
            .layer(from_fn_with_state(security, security_headers::security_headers))
            // Outside the limits and the panics, so that a browser may read a refusal.
            .layer(cors::layer(&config.cors))
            // Inside all that a 500 needs; outside the layers and handlers that work on the request.
            .layer(from_fn(panic::catch)),
    )
}

/// Bounds what may be asked, and what one request may take. Goes inside [`wrap`].
pub fn limit(router: Router, config: &Config, flood_guard: Option<&FloodGuard>) -> Router {
    let server = &config.server;
    let body_limit = usize::try_from(server.body_limit.as_u64()).unwrap_or(usize::MAX);
    let load_shed = Arc::new(LoadShed::new(server));

    router.layer(
        ServiceBuilder::new()
            // Before a place is given away: a flood is not to take them.
            .layer(option_layer(flood_guard.map(FloodGuard::layer)))
            // Outside the timeout, whose clock is the handler's, not the queue's.
            .layer(from_fn_with_state(load_shed, load_shed::load_shed))
            // Outside the timeout, which is for the handler's work. What comes before it keeps it
            // from refusing what the handler has done.
            .layer(map_request(compression::tolerate))
            .layer(compression::layer())
            .layer(TimeoutLayer::with_status_code(
                StatusCode::GATEWAY_TIMEOUT,
                server.request_timeout,
            ))
            // Innermost: they wrap the body for whoever reads it. The limit answers at once when
            // Content-Length says too much; axum's own default limit would be a second one.
            .layer(RequestBodyDeadlineLayer::new(server.body_timeout))
            .layer(RequestBodyTimeoutLayer::new(server.body_idle_timeout))
            .layer(RequestBodyLimitLayer::new(body_limit))
            .layer(DefaultBodyLimit::disable()),
    )
}
