//! The application: its start, and every room wired into one router. `main` and tests both start it
//! here.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::future::RouteFuture;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;
use tower::Service;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use crate::api::{self, Routes};
use crate::auth::{Auth, Known};
use crate::config::Config;
use crate::error::Error;
use crate::health::{self, Health};
use crate::management;
use crate::middleware::{self, FloodGuard};
use crate::server::{Drained, Listener, Server, Shutdown};
use crate::state::AppState;
use crate::telemetry;

/// The service, up and serving.
pub struct Running {
    /// Where it listens.
    pub url: String,
    /// Where operators are served, when that is apart.
    pub management_url: Option<String>,
    pub state: AppState,
    serving: JoinHandle<Drained>,
    _background: Vec<AbortOnDropHandle<()>>,
}

/// Starts the service: the listener first, so that probes have an answer while the rest is opened.
/// `None` when it was asked to stop before it stood.
///
/// # Errors
/// One line: what could not be bound or opened, and why.
pub async fn start(config: &Config, shutdown: &Shutdown) -> anyhow::Result<Option<Running>> {
    let health = Health::starting(&config.health);
    let management = Management::start(&health, config)?;
    let server = Server::bind(Listener::Public, &config.server)?;
    let url = format!("{}://{}", server.scheme(), server.address());
    let app = App::starting(&health, config);
    let draining = health.clone();
    let serve = server.serve(app.clone(), shutdown.clone(), move || draining.draining());
    let serving = tokio::spawn(serve);

    let routes = api::routes();
    let classes = quota_classes(&routes, config)?;
    let known = Known { scopes: routes.scopes(), classes: &classes };
    let state = tokio::select! {
        state = AppState::connect(config, health.clone(), &known) => state?,
        () = shutdown.drain.cancelled() => return Ok(None),
    };
    app.open(router(state.clone(), config));
    let mut background = vec![
        reload_on_hangup(state.auth.clone()),
        AbortOnDropHandle::new(tokio::spawn(telemetry::metrics::keep_up())),
    ];
    let mut management_url = None;
    if let Some(Management { url, app, serving }) = management {
        app.open(management::router(state.clone(), config));
        management_url = Some(url);
        background.push(serving);
    }
    health.serving();
    Ok(Some(Running { url, management_url, state, serving, _background: background }))
}

impl Running {
    /// Waits until it was asked to stop and has drained.
    ///
    /// # Errors
    /// The server ended by itself, which is a bug.
    pub async fn drained(&mut self) -> anyhow::Result<Drained> {
        (&mut self.serving).await.context("the server ended by itself")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// The service: it answers probes from the first moment, and everything once it is opened.
#[derive(Clone)]
pub struct App {
    starting: Router,
    whole: Arc<OnceLock<Router>>,
}

impl App {
    /// Probes only; anything else is 503.
    pub fn starting(health: &Health, config: &Config) -> Self {
        let probes = Router::from(health::routes()).with_state(health.clone());
        let starting = probes.fallback(async || Error::starting());
        Self::new(middleware::wrap(starting, config))
    }

    fn new(starting: Router) -> Self {
        Self { starting, whole: Arc::default() }
    }

    /// Opens the whole of it.
    fn open(&self, whole: Router) {
        self.whole.get_or_init(|| whole);
    }
}

impl Service<Request> for App {
    type Response = Response;
    type Error = Infallible;
    type Future = RouteFuture<Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        self.whole.get().unwrap_or(&self.starting).clone().call(request)
    }
}

/// The listener for operators. It serves until the process has done everything else.
struct Management {
    url: String,
    app: App,
    serving: AbortOnDropHandle<()>,
}

impl Management {
    fn start(health: &Health, config: &Config) -> anyhow::Result<Option<Self>> {
        let Some(listener) = management::listener(config) else { return Ok(None) };
        let server = Server::bind(Listener::Management, &listener)?;
        let url = format!("http://{}", server.address());
        let app = App::new(management::starting(health, config));
        let serve = server.serve(app.clone(), Shutdown::new(), || {});
        let serving = AbortOnDropHandle::new(tokio::spawn(async {
            let _ = serve.await;
        }));
        Ok(Some(Self { url, app, serving }))
    }
}

/// Every route behind every layer. Needs a Tokio runtime.
pub fn router(state: AppState, config: &Config) -> Router {
    let flood_guard = FloodGuard::new(&config.flood_guard);
    if let Some(guard) = flood_guard.clone() {
        state.health.gauge("flood_guard_clients", move || guard.tracked());
    }
    let routes = Router::from(api::routes().into_router()).merge(management::public_routes(config));
    let routes = api::keep(routes.with_state(state.clone()), &state)
        .merge(docs(document(config.server.public_url.as_deref())))
        .fallback(async || Error::NotFound("route"));
    let limited = middleware::limit(routes, config, flood_guard.as_ref());
    let probes = Router::from(health::routes()).with_state(state);
    middleware::wrap(limited.merge(probes), config)
}

/// The document, and the page that shows it. The page is not to ask a validator elsewhere.
fn docs(document: OpenApi) -> SwaggerUi {
    let page = utoipa_swagger_ui::Config::default().validator_url("none");
    SwaggerUi::new("/docs").config(page).url("/openapi.json", document)
}

/// The API document, the same wherever it is made: without `server.public_url`.
pub fn openapi() -> OpenApi {
    document(None)
}

/// Every scope that a route asks for.
pub fn scopes() -> BTreeSet<&'static str> {
    api::routes().scopes().clone()
}

fn document(public_url: Option<&str>) -> OpenApi {
    let mut document = OpenApiRouter::<AppState>::with_openapi(api::document())
        .merge(api::routes().into_router())
        .merge(health::routes())
        .into_openapi();
    api::finish(&mut document, public_url);
    document
}

/// The names of the configured quota classes, among them every one that a route is counted in.
fn quota_classes(routes: &Routes, config: &Config) -> anyhow::Result<BTreeSet<String>> {
    let configured = config.rate_limit.classes();
    for class in routes.classes() {
        ensure!(
            configured.contains(*class),
            "a route is counted in the quota class `{class}`, which is not configured: add \
             `[rate_limit.classes.{class}]` with a `limit`"
        );
    }
    Ok(configured)
}

/// Reads the files of principals and of keys anew on each SIGHUP, until the handle is dropped.
fn reload_on_hangup(auth: Auth) -> AbortOnDropHandle<()> {
    let hangup = signal(SignalKind::hangup());
    AbortOnDropHandle::new(tokio::spawn(async move {
        match hangup {
            Ok(mut hangup) => {
                while hangup.recv().await.is_some() {
                    auth.reload().await;
                }
            }
            Err(error) => tracing::error!(%error, "SIGHUP cannot be listened to"),
        }
    }))
}

#[cfg(test)]
mod tests {
    use utoipa_axum::routes;

    use super::*;
    use crate::config::Environment;

    #[utoipa::path(get, path = "/")]
    async fn nothing() {}

    #[test]
    fn a_route_of_a_class_that_is_not_configured_keeps_the_service_from_starting() {
        let mut config = Config::defaults(Environment::Test);
        let routes = Routes::new().add(api::public().class("reports"), routes!(nothing));
        let error = quota_classes(&routes, &config).unwrap_err().to_string();
        assert!(error.contains("`[rate_limit.classes.reports]`"), "{error}");

        config.rate_limit.classes.insert("reports".into(), Default::default());
        assert!(quota_classes(&routes, &config).unwrap().contains("reports"));
    }
}
