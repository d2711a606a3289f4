//! How a resource registers its routes: each behind a [`Gate`]. There is no way to register one
//! without.

use std::collections::BTreeSet;

use axum::Extension;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use utoipa::openapi::path::{Operation, Paths};
use utoipa::openapi::security::SecurityRequirement;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};

use super::gate::{AUTH_CLASS, Gate, Keeper, Needs};
use super::openapi::{API_KEY, BEARER, may_answer, operations};
use crate::state::AppState;

/// Routes, and what they ask of their callers.
pub struct Routes {
    router: OpenApiRouter<AppState>,
    scopes: BTreeSet<&'static str>,
    classes: BTreeSet<&'static str>,
}

impl Default for Routes {
    fn default() -> Self {
        Self { router: OpenApiRouter::new(), scopes: BTreeSet::new(), classes: [AUTH_CLASS].into() }
    }
}

impl Routes {
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers handlers of one path behind a gate. A path may have more than one.
    #[must_use]
    pub fn add(mut self, gate: Gate, routes: UtoipaMethodRouter<AppState>) -> Self {
        let (schemas, mut paths, handlers) = routes;
        document(&mut paths, gate);
        let pass = move |keeper: Extension<Keeper>, request: Request, next: Next| {
            gate.pass(keeper, request, next)
        };
        self.router = self.router.routes((schemas, paths, handlers.route_layer(from_fn(pass))));
        self.classes.insert(gate.class);
        if let Needs::Scope(scope) = gate.needs {
            self.scopes.insert(scope);
        }
        self
    }

    /// Puts a resource's routes below a path.
    #[must_use]
    pub fn nest(mut self, path: &str, resource: Self) -> Self {
        self.router = self.router.nest(path, resource.router);
        self.scopes.extend(resource.scopes);
        self.classes.extend(resource.classes);
        self
    }

    /// Every scope that a route asks for.
    pub fn scopes(&self) -> &BTreeSet<&'static str> {
        &self.scopes
    }

    /// Every quota class that a route is counted in.
    pub fn classes(&self) -> &BTreeSet<&'static str> {
        &self.classes
    }

    pub fn into_router(self) -> OpenApiRouter<AppState> {
        self.router
    }
}

/// Says in the API document what the gate asks and answers.
fn document(paths: &mut Paths, gate: Gate) {
    for operation in paths.paths.values_mut().flat_map(operations) {
        may_answer(
            operation,
            "429",
            "The caller's quota is used up; `Retry-After` says until when",
        );
        let scopes = match gate.needs {
            Needs::Nothing => continue,
            Needs::Credential => Vec::new(),
            Needs::Scope(scope) => vec![scope],
        };
        secure(operation, &scopes);
    }
}

fn secure(operation: &mut Operation, scopes: &[&str]) {
    let by = |scheme| SecurityRequirement::new(scheme, scopes.iter().copied());
    operation.security = Some(vec![by(API_KEY), by(BEARER)]);
    may_answer(operation, "401", "There is no credential, or not a good one");
    if let [scope] = scopes {
        may_answer(operation, "403", &format!("The caller has not the scope `{scope}`"));
    }
}
