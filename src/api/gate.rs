//! What stands before a route: who calls, how often, and whether they may.

use axum::extract::{MatchedPath, Request};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};

use crate::auth::{Auth, Principal, PrincipalKind};
use crate::error::{Error, Result};
use crate::middleware::ClientIp;
use crate::ratelimit::{Caller, Limits, Verdict};
use crate::state::AppState;

/// The quota class of routes that name no other.
const DEFAULT_CLASS: &str = "default";

/// The quota class of credentials that fail, whatever they were to open.
pub(super) const AUTH_CLASS: &str = "auth";

/// The target of the audit log: who was turned away, and from what.
const AUDIT: &str = concat!(env!("CARGO_CRATE_NAME"), "::audit");

/// What a route asks of its caller.
#[derive(Debug, Clone, Copy)]
pub struct Gate {
    pub(super) needs: Needs,
    pub(super) class: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    Nothing,
    Credential,
    Scope(&'static str),
}

/// Lets in who has this scope, such as `plans:read`.
pub fn scope(scope: &'static str) -> Gate {
    Gate { needs: Needs::Scope(scope), class: DEFAULT_CLASS }
}

/// Lets in whoever can say who they are.
pub fn authenticated() -> Gate {
    Gate { needs: Needs::Credential, class: DEFAULT_CLASS }
}

/// Lets in anyone, unasked: for a login, or a webhook that proves itself otherwise.
pub fn public() -> Gate {
    Gate { needs: Needs::Nothing, class: DEFAULT_CLASS }
}

impl Gate {
    /// Counts the route's requests in this quota class, one that the configuration has.
    #[must_use]
    pub fn class(self, class: &'static str) -> Self {
        Self { class, ..self }
    }
}

/// What gates judge by.
#[derive(Clone)]
pub(super) struct Keeper {
    auth: Auth,
    limits: Limits,
}

/// Gives the gates of a router what they judge by; they were put up before that was opened.
/// Without it they let nobody through.
pub fn keep(router: Router, state: &AppState) -> Router {
    router.layer(Extension(Keeper { auth: state.auth.clone(), limits: state.limits.clone() }))
}

/// Whose quota a request counts against.
pub(super) fn caller(principal: Option<&Principal>, client: ClientIp) -> Caller<'_> {
    let known = principal.filter(|principal| principal.kind() != PrincipalKind::Anonymous);
    Caller {
        principal: known.map(Principal::id),
        api_key: known.and_then(Principal::api_key),
        ip: client.address(),
        overrides: known.map(Principal::limits),
    }
}

impl Gate {
    /// First who, then how often, then whether: who may not in has used up a request all the same.
    pub(super) async fn pass(
        self,
        Extension(keeper): Extension<Keeper>,
        request: Request,
        next: Next,
    ) -> Response {
        let client = ClientIp::of(&request);
        let (mut parts, body) = request.into_parts();
        let principal = match self.identify(&keeper, &parts, client).await {
            Ok(principal) => principal,
            Err(error) => return error.into_response(),
        };
        let caller = caller(principal.as_ref(), client);
        let verdict = keeper.limits.take(self.class, &caller).await;
        let mut response = match self.admit(principal.as_ref(), verdict.as_ref(), &parts, client) {
            Ok(()) => {
                if let Some(known) = &principal {
                    parts.extensions.insert(known.clone());
                }
                next.run(Request::from_parts(parts, body)).await
            }
            Err(error) => error.into_response(),
        };
        if let Some(verdict) = &verdict {
            verdict.write_headers(response.headers_mut());
        }
        // For the access log.
        if let Some(known) = principal {
            response.extensions_mut().insert(known);
        }
        response
    }

    async fn identify(
        self,
        keeper: &Keeper,
        request: &Parts,
        client: ClientIp,
    ) -> Result<Option<Principal>> {
        if self.needs == Needs::Nothing {
            return Ok(None);
        }
        let error = match keeper.auth.authenticate(&request.headers).await {
            Ok(principal) => return Ok(Some(principal)),
            Err(error) => error,
        };
        let Error::Unauthorized { reason, presented } = error else { return Err(error) };
        audit(request, client, None, reason);
        // Only what fails is counted, so nobody is locked out by what others try from their address.
        let verdict = if presented {
            keeper.limits.take(AUTH_CLASS, &caller(None, client)).await
        } else {
            None
        };
        match verdict.filter(|verdict| !verdict.allowed) {
            Some(verdict) => Err(verdict.refusal()),
            None => Err(Error::Unauthorized { reason, presented }),
        }
    }

    fn admit(
        self,
        principal: Option<&Principal>,
        verdict: Option<&Verdict>,
        request: &Parts,
        client: ClientIp,
    ) -> Result<()> {
        if let Some(verdict) = verdict.filter(|verdict| !verdict.allowed) {
            return Err(verdict.refusal());
        }
        match self.needs {
            Needs::Scope(scope) if !principal.is_some_and(|known| known.can(scope)) => {
                let error = Error::Forbidden { scope };
                audit(request, client, principal, &error.detail());
                Err(error)
            }
            Needs::Scope(_) | Needs::Credential | Needs::Nothing => Ok(()),
        }
    }
}

/// One line for each caller turned away. The request's id is in its span.
fn audit(request: &Parts, client: ClientIp, principal: Option<&Principal>, why: &str) {
    let route = request.extensions.get::<MatchedPath>().map(MatchedPath::as_str);
    tracing::info!(
        target: AUDIT,
        method = request.method.as_str(),
        route,
        client_ip = %client.address(),
        principal = principal.map(Principal::id),
        why,
        "denied"
    );
}
