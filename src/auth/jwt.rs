//! The issuer's tokens (JWT, RFC 7519). What checks one is pinned by the configuration, never chosen
//! by the token.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde_json::{Map, Value};

use super::jwks::{Jwks, Lookup};
use super::refused;
use super::scopes::Scopes;
use crate::config::{JwtAlgorithm, JwtConfig};
use crate::error::Error;

/// Longest `sub`, in characters.
const LONGEST_SUBJECT: usize = 255;

const UNREADABLE: &str = "the credential is neither an API key of this service nor a token";

/// Checks tokens of one issuer.
pub(super) struct Verifier {
    pub jwks: Jwks,
    validation: Validation,
    config: JwtConfig,
}

/// What a token that was checked says.
pub(super) struct Token {
    pub subject: String,
    pub scopes: Scopes,
    pub groups: BTreeSet<String>,
    /// With the leeway.
    pub expires_at: DateTime<Utc>,
}

impl Verifier {
    /// `None` when no issuer is configured.
    ///
    /// # Errors
    /// As [`Jwks::new`].
    pub(super) fn new(config: &JwtConfig) -> anyhow::Result<Option<Self>> {
        let (Some(issuer), Some(source)) = (&config.issuer, &config.jwks) else { return Ok(None) };
        let algorithms: Vec<_> = config.algorithms.iter().copied().map(algorithm).collect();
        let mut validation = Validation {
            algorithms: algorithms.clone(),
            validate_nbf: true,
            leeway: config.leeway.as_secs(),
            ..Validation::default()
        };
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[issuer]);
        validation.set_audience(&config.audience);
        let jwks = Jwks::new(source, algorithms, config.cooldown)?;
        Ok(Some(Self { jwks, validation, config: config.clone() }))
    }

    /// Checks a token whole.
    ///
    /// # Errors
    /// It is refused, or there are no keys to check it with.
    pub(super) async fn verify(&self, token: &str) -> Result<Token, Error> {
        let header = decode_header(token).map_err(|error| why(&error))?;
        if !self.validation.algorithms.contains(&header.alg) {
            return Err(refused("the token is signed with an algorithm that is not taken here"));
        }
        if header.crit.is_some() {
            return Err(refused("the token asks for an extension that is not understood here"));
        }
        let Some(kid) = &header.kid else {
            return Err(refused("the token does not say which key it is signed with (kid)"));
        };
        let key = match self.jwks.find(kid, header.alg).await {
            Lookup::Found(key) => key,
            Lookup::Unknown => {
                return Err(refused(
                    "the token is signed with a key that its issuer does not have",
                ));
            }
            Lookup::Unavailable => {
                let (what, retry_after) = ("the token issuer's key set", self.config.cooldown);
                return Err(Error::Unavailable { what, retry_after, cause: None });
            }
        };
        // It insists that all of them are of the key's family.
        let validation = Validation { algorithms: vec![header.alg], ..self.validation.clone() };
        let token = decode(token, &key, &validation).map_err(|error| why(&error))?;
        self.read(&token.claims).ok_or_else(|| refused("the token's sub is empty or malformed"))
    }

    /// `None` when it names no subject that could be one.
    fn read(&self, claims: &Map<String, Value>) -> Option<Token> {
        let subject = claims.get("sub").and_then(Value::as_str)?;
        let length = subject.chars().count();
        let blank = subject.trim().is_empty();
        if blank || length > LONGEST_SUBJECT || subject.chars().any(char::is_control) {
            return None;
        }
        // No patterns: an issuer that repeats what its users ask for would make them all of it.
        let scopes = words(claims.get(&self.config.scopes_claim))
            .flat_map(str::split_whitespace)
            .filter(|scope| !scope.contains('*'));
        let groups = words(claims.get(&self.config.groups_claim));
        Some(Token {
            subject: subject.to_owned(),
            scopes: Scopes::lenient(scopes),
            groups: groups.map(str::to_owned).collect(),
            expires_at: self.end(claims.get("exp")),
        })
    }

    /// When the token is refused from on. A time that no calendar has is after all others.
    fn end(&self, exp: Option<&Value>) -> DateTime<Utc> {
        let exp = exp.and_then(Value::as_f64).unwrap_or_default();
        let seconds = exp.round() as i64;
        let end = seconds.saturating_add_unsigned(self.validation.leeway);
        DateTime::from_timestamp(end, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }
}

/// A claim that is text or a list of it.
fn words(claim: Option<&Value>) -> impl Iterator<Item = &str> {
    let list = claim.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    claim.and_then(Value::as_str).into_iter().chain(list.iter().filter_map(Value::as_str))
}

/// For the client developer.
fn why(error: &jsonwebtoken::errors::Error) -> Error {
    tracing::debug!(%error, "a token is refused");
    refused(match error.kind() {
        ErrorKind::ExpiredSignature => "the token has expired",
        ErrorKind::ImmatureSignature => "the token is not valid yet",
        ErrorKind::InvalidIssuer => "the token is of another issuer",
        ErrorKind::InvalidAudience => "the token is for another audience",
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => {
            "the token lacks one of the claims exp, iss, aud and sub, or one is malformed"
        }
        ErrorKind::InvalidSignature => "the token's signature is wrong",
        _ => UNREADABLE,
    })
}

fn algorithm(configured: JwtAlgorithm) -> Algorithm {
    match configured {
        JwtAlgorithm::RS256 => Algorithm::RS256,
        JwtAlgorithm::RS384 => Algorithm::RS384,
        JwtAlgorithm::RS512 => Algorithm::RS512,
        JwtAlgorithm::PS256 => Algorithm::PS256,
        JwtAlgorithm::PS384 => Algorithm::PS384,
        JwtAlgorithm::PS512 => Algorithm::PS512,
        JwtAlgorithm::ES256 => Algorithm::ES256,
        JwtAlgorithm::ES384 => Algorithm::ES384,
        JwtAlgorithm::EdDsa => Algorithm::EdDSA,
    }
}
