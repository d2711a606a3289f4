//! What operators read and set: metrics, the health report, the status page, the log level. It is
//! served on a listener of its own, for it asks for no credential; without one, what a scraper needs
//! stays on the public port, and outside production so does the status page.

mod log;
mod metrics;
mod status;

use axum::Router;
use axum::routing::{get, put};

use crate::config::{Config, CorsConfig, Environment, ServerConfig};
use crate::health::{self, Health};
use crate::middleware;
use crate::state::AppState;

/// Connections there can be at once: a scraper or two, and people.
const MAX_CONNECTIONS: usize = 64;

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
        .route("/log", put(log::set))
        .with_state(state)
        .merge(status::routes(config));
    wrap(routes, config)
}

/// What that listener serves before there is more.
pub fn starting(health: &Health, config: &Config) -> Router {
    let probes = Router::from(health::routes()).with_state(health.clone());
    wrap(probes.merge(status::routes(config)), config)
}

/// The listener's settings: no TLS, and no wait at the end.
pub fn listener(config: &Config) -> Option<ServerConfig> {
    let bind = config.management.bind?;
    Some(ServerConfig {
        bind: bind.ip(),
        port: bind.port(),
        max_connections: MAX_CONNECTIONS,
        tls_cert: None,
        tls_key: None,
        ..config.server.clone()
    })
}

/// As the public port, but no other origin may read it from a browser.
fn wrap(routes: Router, config: &Config) -> Router {
    middleware::wrap(routes, &Config { cors: CorsConfig::default(), ..config.clone() })
}
