//! The probes, and the page for people.

use std::collections::BTreeMap;

use axum::extract::{FromRef, State};
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{CheckOutcome, Health, Phase, Process};
use crate::cache::{Cache, Store};
use crate::db::{Db, PoolStatus};
use crate::extract::Json;

/// What a probe answers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"phase": "serving", "failing": []}))]
struct Probe {
    phase: Phase,
    /// The critical dependencies that are down.
    failing: Vec<&'static str>,
}

/// All there is to know.
#[derive(Debug, Serialize, ToSchema)]
struct HealthReport {
    ready: bool,
    phase: Phase,
    checks: BTreeMap<&'static str, CheckOutcome>,
    #[schema(example = "sqlite")]
    database: &'static str,
    pools: BTreeMap<&'static str, PoolStatus>,
    cache: Store,
    /// Sizes of what grows with the number of callers.
    #[schema(example = json!({"flood_guard_clients": 12, "quota_entries": 12}))]
    gauges: BTreeMap<&'static str, usize>,
    process: Process,
}

/// The probes, which need nothing but [`Health`]: they answer while the rest is still starting.
pub fn routes<S>() -> OpenApiRouter<S>
where
    S: Clone + Send + Sync + 'static,
    Health: FromRef<S>,
{
    OpenApiRouter::new().routes(routes!(live)).routes(routes!(ready)).routes(routes!(startup))
}

/// The report, which needs what it reports on.
pub fn report_routes<S>() -> OpenApiRouter<S>
where
    S: Clone + Send + Sync + 'static,
    Health: FromRef<S>,
    Db: FromRef<S>,
    Cache: FromRef<S>,
{
    OpenApiRouter::new().routes(routes!(report))
}

/// Alive: 200 while the process runs. Touches nothing; a failure means restart it.
#[utoipa::path(get, path = "/health/live", tag = "health", responses((status = 200, body = Probe)))]
async fn live(State(health): State<Health>) -> Json<Probe> {
    Json(probe(&health))
}

/// Ready: whether to send requests here. 503 while starting, while draining and while a critical
/// dependency is down.
#[utoipa::path(
    get,
    path = "/health/ready",
    tag = "health",
    responses((status = 200, body = Probe), (status = 503, body = Probe))
)]
async fn ready(State(health): State<Health>) -> (StatusCode, Json<Probe>) {
    (available(health.ready()), Json(probe(&health)))
}

/// Started: 503 until the start is over, 200 from then on.
#[utoipa::path(
    get,
    path = "/health/startup",
    tag = "health",
    responses((status = 200, body = Probe), (status = 503, body = Probe))
)]
async fn startup(State(health): State<Health>) -> (StatusCode, Json<Probe>) {
    (available(health.phase() != Phase::Starting), Json(probe(&health)))
}

/// Everything at once, for people.
#[utoipa::path(get, path = "/health", tag = "health", responses((status = 200, body = HealthReport)))]
async fn report(
    State(health): State<Health>,
    State(db): State<Db>,
    State(cache): State<Cache>,
) -> Json<HealthReport> {
    Json(HealthReport {
        ready: health.ready(),
        phase: health.phase(),
        checks: health.outcomes(),
        database: db.engine(),
        pools: db.pools().collect(),
        cache: cache.store(),
        gauges: health.gauges(),
        process: Process::now(health.uptime()),
    })
}

fn probe(health: &Health) -> Probe {
    Probe { phase: health.phase(), failing: health.failing() }
}

fn available(yes: bool) -> StatusCode {
    if yes { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
