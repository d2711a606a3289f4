//! What limits and authentication cost: the processor's time for one request through a gate, beside
//! the same route without one. `make bench`.
//!
//! Rounds with and without take turns, on one thread, and the median round of each is compared, so
//! that what else the machine does weighs on both alike.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark is a program for people"
)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, StatusCode};
use axum::routing::get;
use plinth::api::{Routes, keep, scope};
use plinth::auth::{Known, Scopes, manage};
use plinth::config::{AuthMode, Config, Environment, SecretUrl};
use plinth::health::Health;
use plinth::middleware::{ClientIp, FloodGuard};
use plinth::state::AppState;
use rustix::time::{ClockId, clock_gettime};
use tower::Service;
use utoipa_axum::routes;

const ROUNDS: usize = 201;
const REQUESTS: u32 = 1_000;

#[utoipa::path(get, path = "/gated")]
async fn gated() -> StatusCode {
    StatusCode::NO_CONTENT
}

async fn bare() -> StatusCode {
    StatusCode::NO_CONTENT
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let folder = std::env::temp_dir().join(format!("plinth-bench-{}", std::process::id()));
    let mut config = Config::defaults(Environment::Test);
    config.auth.mode = AuthMode::Required;
    config.rate_limit.default = "1000000000/minute, 1000000000/hour".parse().unwrap();
    config.flood_guard.per_second = 1_000_000_000;
    config.flood_guard.burst = 1_000_000_000;
    config.database.url = SecretUrl::new(format!("sqlite://{}/plinth.db", folder.display()));

    let api = Routes::new().add(scope("bench:run"), routes!(gated));
    let known = Known { scopes: api.scopes(), classes: &config.rate_limit.classes() };
    let state = AppState::connect(&config, Health::starting(&config.health), &known).await.unwrap();
    let scopes = Scopes::asked(["bench:run"], api.scopes()).unwrap();
    let key = manage::create(&state.db, "plinth", "bench", scopes, None).await.unwrap();
    let key = key.key.expose();

    let without = Router::new().route("/bare", get(bare));
    let routes = Router::from(api.into_router()).with_state(state.clone());
    let gate = keep(routes.clone(), &state);
    let guard = FloodGuard::new(&config.flood_guard).unwrap();
    let both = keep(routes, &state).layer(guard.layer());

    let mut times: [Vec<f64>; 3] = Default::default();
    for _ in 0..ROUNDS {
        times[0].push(round(&without, "/bare", key).await);
        times[1].push(round(&gate, "/gated", key).await);
        times[2].push(round(&both, "/gated", key).await);
    }
    let [bare, gated, guarded] = times.map(median);
    println!("one request, CPU time, median of {ROUNDS} rounds of {REQUESTS}:");
    println!("  the route alone                        {bare:6.2} µs");
    println!("  with key, scope and two quotas         {gated:6.2} µs, {:+.2} µs", gated - bare);
    println!(
        "  with the flood guard in front of them  {guarded:6.2} µs, {:+.2} µs",
        guarded - bare
    );
    state.close(Duration::from_secs(2)).await;
    std::fs::remove_dir_all(folder).unwrap();
}

/// The processor's time for one request, in microseconds.
async fn round(router: &Router, path: &str, key: &str) -> f64 {
    let mut service = router.clone();
    let requests: Vec<_> = (0..REQUESTS).map(|_| request(path, key)).collect();
    let start = cpu_time();
    for request in requests {
        let answer = service.call(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    }
    (cpu_time() - start).as_secs_f64() * 1e6 / f64::from(REQUESTS)
}

fn request(path: &str, key: &str) -> Request<Body> {
    let peer = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
    let mut request = Request::get(path).header("x-api-key", key).body(Body::empty()).unwrap();
    request.extensions_mut().insert(ConnectInfo(peer));
    request.extensions_mut().insert(ClientIp::from(peer.ip()));
    request
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
