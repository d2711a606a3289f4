//! What probes are told, from the first moment to the last, and what that costs.

use std::time::Duration;

use plinth::app::App;
use plinth::config::Config;
use plinth::health::Health;
use reqwest::Client;
use serde_json::{Value, json};

use crate::both_engines;
use crate::errors::problem;
use crate::support::{Engine, Served, TestApp, becomes, config};

const LONG: Duration = Duration::from_secs(3600);

fn checked_often(config: &mut Config) {
    config.health.interval = Duration::from_millis(50);
}

fn checked_once(config: &mut Config) {
    config.health.interval = LONG;
}

async fn probe(app: &TestApp, name: &str) -> (u16, Value) {
    let answer = app.get(&format!("/health{name}")).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/json");
    (answer.status().as_u16(), answer.json().await.unwrap())
}

fn phase(phase: &str) -> Value {
    json!({"phase": phase, "failing": []})
}

#[tokio::test]
async fn while_it_starts_it_is_alive_and_not_ready() {
    let config = config("sqlite://never-opened");
    let health = Health::starting(&config.health);
    let served = Served::start(App::starting(&health, &config), &config);
    let get =
        async |path: &str| Client::new().get(format!("{}{path}", served.url)).send().await.unwrap();
    for (path, status) in [("live", 200), ("ready", 503), ("startup", 503)] {
        let answer = get(&format!("/health/{path}")).await;
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(answer.json::<Value>().await.unwrap(), phase("starting"));
    }
    for path in ["/api/v1/plans", "/health", "/nope"] {
        let answer = get(path).await;
        assert_eq!(answer.headers()["retry-after"], "1");
        assert_eq!(problem(answer, 503).await["code"], "UNAVAILABLE");
    }
}

both_engines! {
    async fn once_it_serves_it_is_ready(app) {
        for path in ["/live", "/ready", "/startup"] {
            assert_eq!(probe(&app, path).await, (200, phase("serving")));
        }
    }

    // Its pools closed, the database fails whoever asks it.
    async fn probes_cost_the_database_nothing(app with checked_once) {
        app.state.db.clone().close(LONG).await;
        for _ in 0..250 {
            for path in ["/live", "/ready", "/startup", ""] {
                assert_eq!(probe(&app, path).await.0, 200);
            }
        }
        problem(app.get("/api/v1/plans").send().await.unwrap(), 503).await;
    }

    async fn a_check_that_fails_is_seen_by_the_next_probe(app with checked_often) {
        app.state.db.clone().close(LONG).await;
        let unready = becomes(503, || app.get("/health/ready")).await;
        let unready: Value = unready.json().await.unwrap();
        assert_eq!(unready, json!({"phase": "serving", "failing": ["database"]}));
        assert_eq!(probe(&app, "/live").await.0, 200);
        assert_eq!(probe(&app, "/startup").await.0, 200);
    }

    async fn the_report_has_it_all(app) {
        let (status, report) = probe(&app, "").await;
        assert_eq!(status, 200);
        assert_eq!(report["ready"], true);
        assert_eq!(report["phase"], "serving");
        assert_eq!(report["database"], app.state.db.engine());
        assert_eq!(report["cache"], "memory");
        for (name, critical) in [("database", true), ("cache", false)] {
            let check = &report["checks"][name];
            assert_eq!(check["status"], "pass");
            assert_eq!(check["critical"], critical);
            assert!(check["latency_ms"].as_f64().unwrap() >= 0.0);
            chrono::DateTime::parse_from_rfc3339(check["last_success"].as_str().unwrap()).unwrap();
        }
        let pools = report["pools"].as_object().unwrap();
        let known: Vec<_> = pools.keys().collect();
        // Without a replica, PostgreSQL's writer reads too.
        let apart = report["database"] == "sqlite";
        assert_eq!(known, if apart { vec!["reader", "writer"] } else { vec!["writer"] });
        for pool in pools.values() {
            let count = |name| pool[name].as_u64().unwrap();
            let [size, idle, max] = ["size", "idle", "max"].map(count);
            assert!(idle <= size && size <= max && max > 0, "{pool}");
        }
        let process = &report["process"];
        assert_eq!(process["version"], env!("CARGO_PKG_VERSION"));
        assert!(process["commit"].is_string() && process["uptime_seconds"].is_u64());
        let known = process["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20);
        assert_eq!(known, cfg!(target_os = "linux"), "{process}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_follows_the_database_down_and_up() {
    let Some(app) = TestApp::start_with(Engine::Postgres, checked_often).await else { return };
    let (_, before) = probe(&app, "").await;

    app.database.close().await;
    becomes(503, || app.get("/health/ready")).await;
    assert_eq!(probe(&app, "/live").await.0, 200);
    let (status, report) = probe(&app, "").await;
    assert_eq!((status, &report["ready"]), (200, &json!(false)));
    let down = &report["checks"]["database"];
    assert_eq!(down["status"], "fail");
    assert!(down["last_success"].as_str() >= before["checks"]["database"]["last_success"].as_str());

    app.database.reopen().await;
    let ready = becomes(200, || app.get("/health/ready")).await;
    assert_eq!(ready.json::<Value>().await.unwrap(), phase("serving"));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_drains_it_is_not_ready_and_still_serves() {
    let change = |config: &mut Config| config.server.pre_stop_delay = LONG;
    let app = TestApp::start_with(Engine::Sqlite, change).await.unwrap();
    app.shutdown.drain.cancel();
    let unready = becomes(503, || app.get("/health/ready")).await;
    assert_eq!(unready.json::<Value>().await.unwrap(), phase("draining"));
    // On a new connection too: balancers have yet to notice.
    let url = format!("{}/api/v1/plans", app.url);
    assert_eq!(Client::new().get(url).send().await.unwrap().status(), 200);
    assert_eq!(probe(&app, "/live").await, (200, phase("draining")));
    assert_eq!(probe(&app, "/startup").await.0, 200);
    app.shutdown.force.cancel();
    let _ = app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_not_critical() {
    let change = |config: &mut Config| {
        // A port that nobody listens on.
        config.cache.redis_url = Some(plinth::config::SecretUrl::new("redis://127.0.0.1:1"));
        checked_often(config);
    };
    let app = TestApp::start_with(Engine::Sqlite, change).await.unwrap();
    let (_, report) = probe(&app, "").await;
    assert_eq!(report["checks"]["cache"]["status"], "fail");
    assert_eq!(report["checks"]["cache"]["critical"], false);
    assert_eq!(report["cache"], "memory_while_redis_is_away");
    assert_eq!(probe(&app, "/ready").await, (200, phase("serving")));
    assert_eq!(app.get("/api/v1/plans").send().await.unwrap().status(), 200);
}
