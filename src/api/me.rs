//! Who the service takes its caller for: their principal, scopes and quotas.

use axum::Extension;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::gate::{AUTH_CLASS, authenticated, caller};
use super::routes::Routes;
use crate::auth::{Principal, PrincipalKind};
use crate::error::whole_seconds;
use crate::extract::Json;
use crate::middleware::ClientIp;
use crate::ratelimit::{Limits, WindowState};

/// The caller.
#[derive(Debug, Serialize, ToSchema)]
struct Me {
    /// As logs and the principals file name them.
    #[schema(example = "key:ci")]
    principal: String,
    kind: PrincipalKind,
    /// What they may do; `*` stands for anything.
    #[schema(example = json!(["plans:read", "plans:write"]))]
    scopes: Vec<String>,
    /// What is left of each quota; empty for callers that have none.
    quotas: Vec<Quota>,
}

/// One window of one quota.
#[derive(Debug, Serialize, ToSchema)]
struct Quota {
    /// As in `RateLimit-Policy`.
    #[schema(example = "default-minute")]
    policy: String,
    #[schema(example = 100)]
    limit: u32,
    #[schema(example = 60)]
    window_seconds: u64,
    #[schema(example = 99)]
    remaining: u32,
    /// Until `remaining` is `limit` again.
    #[schema(example = 42)]
    reset_seconds: u64,
}

/// The resource's routes, below its path.
pub fn routes() -> Routes {
    Routes::new().add(authenticated(), routes!(me))
}

/// Says who the caller is, what they may do, and how often.
#[utoipa::path(get, path = "", tag = "me", responses((status = 200, body = Me)))]
async fn me(
    principal: Principal,
    Extension(client): Extension<ClientIp>,
    State(limits): State<Limits>,
) -> Json<Me> {
    let mut quotas = Vec::new();
    for class in limits.classes() {
        // What fails is counted by address, whoever it claimed to be.
        let counted = Some(&principal).filter(|_| class != AUTH_CLASS);
        let verdict = limits.peek(class, &caller(counted, client)).await;
        quotas.extend(verdict.into_iter().flat_map(|verdict| verdict.windows).map(Quota::from));
    }
    Json(Me {
        principal: principal.id().to_owned(),
        kind: principal.kind(),
        scopes: principal.scopes().iter().map(ToString::to_string).collect(),
        quotas,
    })
}

impl From<WindowState> for Quota {
    fn from(window: WindowState) -> Self {
        Self {
            policy: window.name.to_string(),
            limit: window.policy.quota,
            window_seconds: window.policy.window.as_secs(),
            remaining: window.remaining,
            reset_seconds: whole_seconds(window.reset),
        }
    }
}
