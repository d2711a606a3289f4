//! Starts what tests need: the real application on a real socket, with a database of its own.
//!
//! `make test` brings PostgreSQL and Redis. Without them the tests that need one say so, once, on
//! standard error, and count for nothing; under `make test` that is a failure.

pub mod issuer;
pub mod redis;

use std::convert::Infallible;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Once;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use axum::response::Response;

use plinth::app::{self, Running};
use plinth::config::{Config, Environment, SecretUrl};
use plinth::server::{Drained, Listener, Server, Shutdown};
use plinth::state::AppState;
use reqwest::{Method, RequestBuilder};
use sqlx::{Connection, PgConnection};
use tokio::task::JoinHandle;
use tower::Service;
use url::Url;
use uuid::Uuid;

/// Which database a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

/// A database that goes when it is dropped.
pub struct TestDatabase {
    pub url: String,
    remains: Remains,
}

enum Remains {
    Folder(PathBuf),
    Database { admin: String, name: String },
}

/// The application, running. It stops when it is dropped; [`TestApp::stop`] drains it first.
pub struct TestApp {
    pub url: String,
    pub state: AppState,
    pub config: Config,
    pub client: reqwest::Client,
    pub shutdown: Shutdown,
    pub database: TestDatabase,
    running: Running,
}

/// Any service behind the real server. It stops when it is dropped.
pub struct Served {
    pub url: String,
    serving: JoinHandle<Drained>,
}

/// Writes each test once and runs it on both engines, on an application of its own; `with` names a
/// function that changes its configuration.
///
/// ```ignore
/// both_engines! {
///     async fn a_plan_is_found_again(app) { … }
///     async fn a_full_pool_is_a_503(app with one_connection) { … }
/// }
/// ```
#[macro_export]
macro_rules! both_engines {
    ($(async fn $name:ident($app:ident $(with $change:path)?) $body:block)+) => {
        both_engines!(@ sqlite Sqlite $(async fn $name($app $(with $change)?) $body)+);
        both_engines!(@ postgres Postgres $(async fn $name($app $(with $change)?) $body)+);
    };
    (@ $module:ident $engine:ident
        $(async fn $name:ident($app:ident $(with $change:path)?) $body:block)+) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    let engine = $crate::support::Engine::$engine;
                    let change = both_engines!(@ change $($change)?);
                    let Some($app) = $crate::support::TestApp::start_with(engine, change).await
                    else { return };
                    $body
                }
            )+
        }
    };
    (@ change) => { |_: &mut plinth::config::Config| {} };
    (@ change $change:path) => { $change };
}

/// Writes each test once and runs it on both engines, on an empty database of its own.
#[macro_export]
macro_rules! both_databases {
    ($(async fn $name:ident($database:ident) $body:block)+) => {
        both_databases!(@ sqlite Sqlite $(async fn $name($database) $body)+);
        both_databases!(@ postgres Postgres $(async fn $name($database) $body)+);
    };
    (@ $module:ident $engine:ident $(async fn $name:ident($database:ident) $body:block)+) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    let engine = $crate::support::Engine::$engine;
                    let Some($database) = $crate::support::TestDatabase::new(engine).await
                    else { return };
                    $body
                }
            )+
        }
    };
}

impl TestDatabase {
    /// An empty database; `None` without a server to make it on.
    pub async fn new(engine: Engine) -> Option<Self> {
        let name = format!("plinth_test_{}", Uuid::now_v7().simple());
        match engine {
            Engine::Sqlite => {
                let folder = std::env::temp_dir().join(&name);
                let url = format!("sqlite://{}/plinth.db", folder.display());
                Some(Self { url, remains: Remains::Folder(folder) })
            }
            Engine::Postgres => {
                let admin = server("TEST_DATABASE_URL", "PostgreSQL")?;
                postgres(&admin, &format!("CREATE DATABASE {name}")).await;
                let mut url = Url::parse(&admin).unwrap();
                url.set_path(&name);
                Some(Self { url: url.into(), remains: Remains::Database { admin, name } })
            }
        }
    }
}

impl TestDatabase {
    /// Closes a PostgreSQL database, as for maintenance: sessions end, and no new ones begin.
    pub async fn close(&self) {
        let Remains::Database { admin, name } = &self.remains else { panic!("only PostgreSQL") };
        postgres(admin, &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await;
        let sessions = format!("FROM pg_stat_activity WHERE datname = '{name}'");
        postgres(admin, &format!("SELECT pg_terminate_backend(pid) {sessions}")).await;
    }

    pub async fn reopen(&self) {
        let Remains::Database { admin, name } = &self.remains else { panic!("only PostgreSQL") };
        postgres(admin, &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await;
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        match &self.remains {
            Remains::Folder(folder) => drop(std::fs::remove_dir_all(folder)),
            Remains::Database { admin, name } => {
                let (admin, drop) = (admin.clone(), format!("DROP DATABASE {name} WITH (FORCE)"));
                // A runtime of its own: the test's may be the one that is dropping this.
                let thread = std::thread::spawn(move || {
                    tokio::runtime::Runtime::new().unwrap().block_on(postgres(&admin, &drop));
                });
                let _ = thread.join();
            }
        }
    }
}

impl TestApp {
    /// The application with the configuration of tests; `None` without a server for its engine.
    pub async fn start(engine: Engine) -> Option<Self> {
        Self::start_with(engine, |_| {}).await
    }

    /// The same with changes to the configuration.
    pub async fn start_with(engine: Engine, change: impl FnOnce(&mut Config)) -> Option<Self> {
        let database = TestDatabase::new(engine).await?;
        let mut config = config(&database.url);
        change(&mut config);

        let shutdown = Shutdown::new();
        let running = app::start(&config, &shutdown).await.unwrap().unwrap();
        let (url, state) = (running.url.clone(), running.state.clone());
        let client = reqwest::Client::new();
        Some(Self { url, state, config, client, shutdown, database, running })
    }

    /// A request to `path` of the running application.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.request(Method::POST, path)
    }

    pub fn put(&self, path: &str) -> RequestBuilder {
        self.request(Method::PUT, path)
    }

    pub fn patch(&self, path: &str) -> RequestBuilder {
        self.request(Method::PATCH, path)
    }

    pub fn delete(&self, path: &str) -> RequestBuilder {
        self.request(Method::DELETE, path)
    }

    /// Drains, as SIGTERM would.
    pub async fn stop(mut self) -> Drained {
        self.shutdown.drain.cancel();
        self.running.drained().await.unwrap()
    }
}

impl Served {
    pub fn start<S>(app: S, config: &Config) -> Self
    where
        S: Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>,
        S: Clone + Send + 'static,
    {
        let server = Server::bind(Listener::Public, &config.server).unwrap();
        let url = format!("{}://{}", server.scheme(), server.address());
        Self { url, serving: tokio::spawn(server.serve(app, Shutdown::new(), || {})) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Asks again until the answer is this status; far longer than it takes.
pub async fn becomes(status: u16, ask: impl Fn() -> RequestBuilder) -> reqwest::Response {
    let end = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let answer = ask().send().await.unwrap();
        if answer.status().as_u16() == status {
            return answer;
        }
        assert!(tokio::time::Instant::now() < end, "{} is still {}", answer.url(), answer.status());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What tests run with: production's bounds, any free port. What one caller may ask is far more than
/// any test does that is not about that.
pub fn config(database_url: &str) -> Config {
    let mut config = Config::defaults(Environment::Test);
    config.rate_limit.default = "1000000/second".parse().unwrap();
    config.flood_guard.per_second = 1_000_000;
    config.flood_guard.burst = 1_000_000;
    config.server.max_in_flight_per_client = config.server.max_in_flight;
    config.server.port = 0;
    config.database.url = SecretUrl::new(database_url);
    config.database.max_connections = 4;
    config
}

/// The URL of a server that a test needs, or a word on standard error about what is left out.
pub fn server(variable: &str, name: &str) -> Option<String> {
    if let Ok(url) = std::env::var(variable) {
        return Some(url);
    }
    assert!(
        std::env::var_os("TEST_REQUIRE_SERVICES").is_none(),
        "{variable} is not set, and nothing may be left out"
    );
    static SAID: Once = Once::new();
    // Not `eprintln!`, which a passing test swallows.
    SAID.call_once(|| {
        let _ = writeln!(
            std::io::stderr(),
            "left out: the tests that need {name} or another server; `make test` brings them"
        );
    });
    None
}

/// Waits for what must come true, a minute at most.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn postgres(admin: &str, statement: &str) {
    let mut connection = PgConnection::connect(admin).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}
