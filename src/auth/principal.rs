//! Who calls, as handlers and layers see it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde::Serialize;
use utoipa::ToSchema;

use super::scopes::Scopes;
use crate::config::Policies;
use crate::error::Error;

/// Who calls, and what they may do. A handler takes it as an argument. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Principal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: String,
    kind: PrincipalKind,
    api_key: Option<String>,
    scopes: Scopes,
    limits: BTreeMap<String, Policies>,
}

/// How a caller is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PrincipalKind {
    /// Not at all: `auth.mode` is open, and there was no credential.
    Anonymous,
    /// By an API key of ours.
    ApiKey,
    /// By a token of the issuer.
    User,
}

impl Principal {
    /// Nobody in particular, who may do everything.
    pub(super) fn anonymous() -> Self {
        Self(Arc::new(Inner {
            id: "anonymous".into(),
            kind: PrincipalKind::Anonymous,
            api_key: None,
            scopes: Scopes::all(),
            limits: BTreeMap::new(),
        }))
    }

    pub(super) fn api_key_of(
        id: String,
        key: String,
        scopes: Scopes,
        limits: BTreeMap<String, Policies>,
    ) -> Self {
        let (kind, api_key) = (PrincipalKind::ApiKey, Some(key));
        Self(Arc::new(Inner { id, kind, api_key, scopes, limits }))
    }

    pub(super) fn user(id: String, scopes: Scopes, limits: BTreeMap<String, Policies>) -> Self {
        let (kind, api_key) = (PrincipalKind::User, None);
        Self(Arc::new(Inner { id, kind, api_key, scopes, limits }))
    }

    /// `key:ci`, `user:alice` or `anonymous`: the same through every credential of one name.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    pub fn kind(&self) -> PrincipalKind {
        self.0.kind
    }

    /// The id of the API key they called with.
    pub fn api_key(&self) -> Option<&str> {
        self.0.api_key.as_deref()
    }

    pub fn scopes(&self) -> &Scopes {
        &self.0.scopes
    }

    /// Whether they may do what asks for this scope.
    pub fn can(&self, scope: &str) -> bool {
        self.0.scopes.allows(scope)
    }

    /// Quotas of their own, by class; every other class is as configured.
    pub fn limits(&self) -> &BTreeMap<String, Policies> {
        &self.0.limits
    }
}

impl<S: Sync> FromRequestParts<S> for Principal {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let principal = parts.extensions.get().cloned();
        principal.ok_or_else(|| {
            Error::internal("a handler asks who calls, and its route is not behind auth")
        })
    }
}
