//! What operators read and set: metrics, the health report, the status page, the log level. It is
//! served on a listener of its own, for it asks for no credential; without one, what a scraper needs
//! stays on the public port, and outside production so does the status page.

mod log;
mod metrics;
mod status;

use std::time::Duration;

use axum::Router;
use axum::routing::{get, put};
use tower::ServiceBuilder;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::RequestBodyDeadlineLayer;

use crate::config::{Config, CorsConfig, Environment, ServerConfig};
use crate::error::Error;
use crate::health::{self, Health};
use crate::middleware;
use crate::state::AppState;

/// Connections there can be at once: a scraper or two, and people.
const MAX_CONNECTIONS: usize = 64;

/// Longest a connection may stay open with no request: a few that nobody uses must not keep a scraper
/// out.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest a log filter may take to arrive, and most it may hold.
const LOG_DEADLINE: Duration = Duration::from_secs(2);
const LOG_LIMIT: usize = 4096;

/// What is served where there is no listener for it.
pub fn public_routes(config: &Config) -> Router<AppState> {
    if config.management.bind.is_some() {
        return Router::new();
    }
    let report = Router::from(health::report_routes()).route("/metrics", get(metrics::scrape));
    match config.env {
        Environment::Production => report,
        Environment::Development | Environment::Test => report.merge(status::routes(config)),
    }
}

/// Everything, for the listener of its own.
pub fn router(state: AppState, config: &Config) -> Router {
    let routes = Router::from(health::routes::<AppState>().merge(health::report_routes()))
        .route("/metrics", get(metrics::scrape))
        .merge(log_route())
        .with_state(state)
        .merge(status::routes(config));
    wrap(routes, config)
}

/// What that listener serves before there is more.
pub fn starting(health: &Health, config: &Config) -> Router {
    let known = Router::from(health::routes())
        .route("/metrics", get(metrics::scrape_early))
        .with_state(health.clone())
        .merge(status::routes(config));
    wrap(known.fallback(async || Error::starting()), config)
}

/// A body of its own size, in its own time: whoever sends slowly is not to keep the listener busy.
fn log_route() -> Router<AppState> {
    Router::new().route("/log", put(log::set)).layer(
        ServiceBuilder::new()
            .layer(RequestBodyDeadlineLayer::new(LOG_DEADLINE))
            .layer(RequestBodyLimitLayer::new(LOG_LIMIT)),
    )
}

/// The listener's settings: no TLS. It is not drained, it ends with the process.
pub fn listener(config: &Config) -> Option<ServerConfig> {
    let bind = config.management.bind?;
    Some(ServerConfig {
        bind: bind.ip(),
        port: bind.port(),
        max_connections: MAX_CONNECTIONS,
        header_timeout: PATIENCE,
        idle_timeout: PATIENCE,
        tls_cert: None,
        tls_key: None,
        ..config.server.clone()
    })
}

/// As the public port, but no other origin may read it from a browser.
fn wrap(routes: Router, config: &Config) -> Router {
    middleware::wrap(routes, &Config { cors: CorsConfig::default(), ..config.clone() })
}
