//! The application: its start, and every room wired into one router. `main` and tests both start it
//! here.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::future::RouteFuture;
use tokio::task::JoinHandle;
use tower::Service;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use crate::api;
use crate::config::Config;
use crate::error::Error;
use crate::health::{self, Health};
use crate::middleware;
use crate::server::{Drained, Server, Shutdown};
use crate::state::AppState;

/// The service, up and serving.
pub struct Running {
    /// Where it listens.
    pub url: String,
    pub state: AppState,
    serving: JoinHandle<Drained>,
}

/// Starts the service: the listener first, so that probes have an answer while the rest is opened.
/// `None` when it was asked to stop before it stood.
///
/// # Errors
/// One line: what could not be bound or opened, and why.
pub async fn start(config: &Config, shutdown: &Shutdown) -> anyhow::Result<Option<Running>> {
    let server = Server::bind(&config.server)?;
    let url = format!("{}://{}", server.scheme(), server.address());
    let health = Health::starting(&config.health);
    let app = App::starting(&health, config);
    let draining = health.clone();
    let serve = server.serve(app.clone(), shutdown.clone(), move || draining.draining());
    let serving = tokio::spawn(serve);

    let state = tokio::select! {
        state = AppState::connect(config, health.clone()) => state?,
        () = shutdown.drain.cancelled() => return Ok(None),
    };
    app.open(state.clone(), config);
    health.serving();
    Ok(Some(Running { url, state, serving }))
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
        let (probes, _) = health::routes().with_state::<()>(health.clone()).split_for_parts();
        let starting = probes.fallback(async || Error::Unavailable {
            what: "the service",
            retry_after: Duration::from_secs(1),
            cause: None,
        });
        Self { starting: middleware::wrap(starting, config), whole: Arc::default() }
    }

    /// Opens the whole of it.
    pub fn open(&self, state: AppState, config: &Config) {
        self.whole.get_or_init(|| router(state, config));
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

/// Every route behind every layer.
pub fn router(state: AppState, config: &Config) -> Router {
    let (routes, mut document) = routes().split_for_parts();
    api::finish(&mut document, config.server.public_url.as_deref());
    let router = routes
        .with_state(state)
        .merge(docs(document))
        .fallback(async || Error::NotFound("route"))
        .method_not_allowed_fallback(async || Error::MethodNotAllowed);
    middleware::wrap(router, config)
}

/// The document, and the page that shows it. The page is not to ask a validator elsewhere.
fn docs(document: OpenApi) -> SwaggerUi {
    let page = utoipa_swagger_ui::Config::default().validator_url("none");
    SwaggerUi::new("/docs").config(page).url("/openapi.json", document)
}

/// The API document, the same wherever it is made: without `server.public_url`.
pub fn openapi() -> OpenApi {
    let mut document = routes().into_openapi();
    api::finish(&mut document, None);
    document
}

/// Every scope that a route asks for.
pub fn scopes() -> std::collections::BTreeSet<&'static str> {
    ["plans:read", "plans:write"].into()
}

fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(api::document())
        .merge(api::routes())
        .merge(health::routes())
        .merge(health::report_routes())
}
