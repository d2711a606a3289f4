//! `/metrics`: what was counted, and what is looked at only when somebody asks.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use metrics::gauge;

use crate::db::Db;
use crate::error::{Error, Result};
use crate::health::{CheckStatus, Health};
use crate::telemetry;

/// Prometheus' text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn scrape(State(db): State<Db>, State(health): State<Health>) -> Result<Response> {
    look_at_pools(&db);
    look_at_health(&health);
    render()
}

/// The same while the rest is being opened.
pub(super) async fn scrape_early(State(health): State<Health>) -> Result<Response> {
    look_at_health(&health);
    render()
}

fn render() -> Result<Response> {
    let text = telemetry::metrics::render().ok_or(Error::NotFound("route"))?;
    Ok(([(CONTENT_TYPE, TEXT)], text).into_response())
}

fn look_at_pools(db: &Db) {
    for (name, pool) in db.pools() {
        let name = ("db_client_connection_pool_name", name);
        let used = f64::from(pool.size) - pool.idle as f64;
        for (state, count) in [("idle", pool.idle as f64), ("used", used.max(0.0))] {
            let labels = [name, ("db_client_connection_state", state)];
            gauge!("db_client_connections", &labels).set(count);
        }
        gauge!("db_client_connection_max", &[name]).set(pool.max);
    }
}

fn look_at_health(health: &Health) {
    gauge!("service_ready").set(one_if(health.ready()));
    for (check, outcome) in health.outcomes() {
        let critical = if outcome.critical { "true" } else { "false" };
        gauge!("health_check_up", "check" => check, "critical" => critical)
            .set(one_if(outcome.status == CheckStatus::Pass));
    }
    for (name, value) in health.gauges() {
        gauge!(name).set(value as f64);
    }
}

fn one_if(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}
