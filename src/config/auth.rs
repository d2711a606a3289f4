//! Who may call: API keys, tokens of an issuer, and what each may do.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Environment;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthConfig {
    /// `open` lets callers in without a credential, with every scope; `required` does not.
    pub mode: AuthMode,
    /// What API keys begin with, so that scanners for leaked secrets know them.
    pub key_prefix: String,
    /// TOML that maps API keys, subjects and groups to roles, and roles to scopes. Read again on
    /// SIGHUP.
    pub principals_file: Option<PathBuf>,
    pub jwt: JwtConfig,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    Open,
    Required,
}

/// JSON Web Tokens (RFC 7519) of one issuer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtConfig {
    /// The `iss` of the tokens; unset takes none.
    pub issuer: Option<String>,
    /// The `aud` that a token must have, any one of these.
    pub audience: Vec<String>,
    /// The issuer's keys (JWKS, RFC 7517): an `https` URL, or a file, read again on SIGHUP.
    pub jwks: Option<String>,
    /// The algorithms that tokens may be signed with, whatever they say themselves.
    pub algorithms: Vec<JwtAlgorithm>,
    /// The claim with the scopes: text parted by blanks, or a list.
    pub scopes_claim: String,
    /// The claim with the groups, a list, that the principals file gives roles to.
    pub groups_claim: String,
    /// By how much the issuer's clock and ours may differ.
    #[serde(with = "humantime_serde")]
    pub leeway: Duration,
    /// How often the keys are fetched again.
    #[serde(with = "humantime_serde")]
    pub refresh: Duration,
    /// Shortest pause between two fetches for tokens that name a key we do not have.
    #[serde(with = "humantime_serde")]
    pub cooldown: Duration,
}

/// Signatures by a key pair alone: with a shared secret, whoever can check a token can make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JwtAlgorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl AuthConfig {
    pub(super) fn defaults(env: Environment) -> Self {
        Self {
            mode: match env {
                Environment::Development | Environment::Test => AuthMode::Open,
                Environment::Production => AuthMode::Required,
            },
            key_prefix: "plinth".into(),
            principals_file: None,
            jwt: JwtConfig::default(),
        }
    }
}

impl Default for JwtConfig {
    fn default() -> Self {
        Self {
            issuer: None,
            audience: Vec::new(),
            jwks: None,
            algorithms: vec![JwtAlgorithm::RS256, JwtAlgorithm::ES256],
            scopes_claim: "scope".into(),
            groups_claim: "groups".into(),
            leeway: Duration::from_secs(30),
            refresh: Duration::from_secs(600),
            cooldown: Duration::from_secs(30),
        }
    }
}
