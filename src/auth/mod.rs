//! Who calls: API keys of ours, tokens of an issuer, and what each may do.
//!
//! [`Auth::authenticate`] turns a request's headers into a [`Principal`]. What it found is remembered
//! for 5 s, so a request costs a hash and a look-up in memory, and a key that is taken back is
//! refused everywhere within 10 s.

mod credential;
mod jwks;
mod jwt;
mod key;
mod last_used;
pub mod manage;
mod principal;
mod principals;
mod scopes;
mod spelling;
mod store;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::http::HeaderMap;
use chrono::{DateTime, Utc};
use metrics::counter;
use moka::future::Cache;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::task::AbortOnDropHandle;

pub use principal::{Principal, PrincipalKind};
pub use principals::check;
pub use scopes::Scopes;
pub use store::{ApiKey, KeyState};

use credential::Credential;
use jwt::Verifier;
use key::Key;
use last_used::LastUsed;
use principals::Principals;

use crate::config::{AuthConfig, AuthMode, Faults};
use crate::db::Db;
use crate::error::Error;

/// How long what a credential stands for is taken as it was found.
const REMEMBERED: Duration = Duration::from_secs(5);

/// How many credentials are remembered.
const MOST_REMEMBERED: u64 = 10_000;

const MISSING: &str = "this needs an API key or a token: send Authorization: Bearer";
const UNKNOWN_KEY: &str = "the API key is unknown, expired or revoked";
const NO_TOKENS: &str = "the credential is not an API key of this service, which takes no tokens";
const EXPIRED_TOKEN: &str = "the token has expired";

/// Checks who calls. Cheap to clone; its background work ends with the last clone.
#[derive(Clone)]
pub struct Auth(Arc<Inner>);

struct Inner {
    mode: AuthMode,
    key_prefix: String,
    resolver: Resolver,
    anonymous: Principal,
    remembered: Cache<[u8; 32], Identity>,
    _background: Vec<Background>,
}

type Background = AbortOnDropHandle<Infallible>;

/// What decides on a credential that is not remembered.
struct Resolver {
    db: Db,
    file: Option<File>,
    principals: ArcSwap<Principals>,
    tokens: Option<Verifier>,
    last_used: Arc<LastUsed>,
}

/// The principals file, with what it is checked against.
struct File {
    path: PathBuf,
    scopes: BTreeSet<&'static str>,
    classes: BTreeSet<String>,
}

/// What the routes know, to check the principals file and the scopes of keys against.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Every scope that a route asks for.
    pub scopes: &'a BTreeSet<&'static str>,
    /// Every quota class.
    pub classes: &'a BTreeSet<String>,
}

/// What a credential stands for.
#[derive(Clone)]
enum Identity {
    Known {
        principal: Principal,
        expires_at: Option<DateTime<Utc>>,
    },
    /// An API key that opens nothing.
    Refused,
}

impl Auth {
    /// Reads the principals file and fetches the issuer's keys, then keeps the keys fresh and
    /// writes when API keys were last used, until it is dropped. An issuer that does not answer is
    /// a warning: it may come up later.
    ///
    /// # Errors
    /// Every fault in the principals file, as [`Faults`]; or a file of keys that is of no use.
    pub async fn connect(config: &AuthConfig, db: Db, known: &Known<'_>) -> anyhow::Result<Self> {
        let file = config.principals_file.as_ref().map(|path| File {
            path: path.clone(),
            scopes: known.scopes.clone(),
            classes: known.classes.clone(),
        });
        let principals = file.as_ref().map(File::read).transpose()?.unwrap_or_default();
        let tokens = Verifier::new(&config.jwt)?;
        let last_used = Arc::new(LastUsed::default());
        let mut background = vec![in_background(last_used.clone().keep_written(db.clone()))];
        if let Some(Verifier { jwks, .. }) = &tokens {
            if jwks.is_file() {
                jwks.load().await?;
            } else {
                jwks.refresh().await;
            }
            background.push(in_background(jwks.clone().keep_fresh(config.jwt.refresh)));
        }
        let principals = ArcSwap::from_pointee(principals);
        Ok(Self(Arc::new(Inner {
            mode: config.mode,
            key_prefix: config.key_prefix.clone(),
            resolver: Resolver { db, file, principals, tokens, last_used },
            anonymous: Principal::anonymous(),
            remembered: Cache::builder()
                .max_capacity(MOST_REMEMBERED)
                .time_to_live(REMEMBERED)
                .build(),
            _background: background,
        })))
    }

    /// Whether callers need a credential.
    pub fn mode(&self) -> AuthMode {
        self.0.mode
    }

    /// Who calls. In open mode that may be nobody in particular, with every scope; but a credential
    /// that is presented is checked in any mode.
    ///
    /// # Errors
    /// [`Error::Unauthorized`]; or [`Error::Unavailable`] when the database or the issuer's keys,
    /// without which nothing can be said, are away.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<Principal, Error> {
        let credential = Credential::read(headers, &self.0.key_prefix);
        let method = match &credential {
            Ok(Some(Credential::ApiKey(_))) => "api_key",
            Ok(Some(Credential::Token(_))) => "token",
            Ok(None) => "anonymous",
            Err(_) => "malformed",
        };
        let judged = self.judge(credential).await;
        let outcome = match &judged {
            Ok(_) => "accepted",
            Err(Error::Unauthorized { .. }) => "refused",
            Err(Error::Unavailable { .. }) => "unavailable",
            Err(_) => "error",
        };
        counter!("auth_attempts_total", "method" => method, "outcome" => outcome).increment(1);
        judged
    }

    async fn judge(
        &self,
        credential: Result<Option<Credential<'_>>, &'static str>,
    ) -> Result<Principal, Error> {
        let Inner { mode, key_prefix, resolver, anonymous, remembered, .. } = &*self.0;
        let Some(credential) = credential.map_err(refused)? else {
            return match mode {
                AuthMode::Open => Ok(anonymous.clone()),
                AuthMode::Required => {
                    Err(Error::Unauthorized { reason: MISSING, presented: false })
                }
            };
        };
        // With its kind: a token is not to be taken for a key, nor the other way round.
        let kind = [u8::from(matches!(credential, Credential::Token(_)))];
        let id = Sha256::new().chain_update(kind).chain_update(credential.text()).finalize().into();
        let identity = remembered.try_get_with(id, resolver.identify(credential, key_prefix)).await;
        identity.map_err(|error| Error::clone(&error))?.still(credential)
    }

    /// Reads the principals file and a file of keys again, and forgets who was known. A file that
    /// is wrong changes nothing. The log tells what came of it.
    pub async fn reload(&self) {
        let resolver = &self.0.resolver;
        if let Some(file) = &resolver.file {
            let path = file.path.display();
            match file.read() {
                Ok(principals) => {
                    resolver.principals.store(Arc::new(principals));
                    tracing::info!(file = %path, "principals reloaded");
                }
                Err(faults) => tracing::error!(
                    file = %path, %faults, "principals not reloaded, the old ones stay"
                ),
            }
        }
        if let Some(Verifier { jwks, .. }) = resolver.tokens.as_ref().filter(|t| t.jwks.is_file()) {
            match jwks.load().await {
                Ok(()) => tracing::info!("the issuer's keys are reloaded"),
                Err(error) => tracing::error!(
                    error = format!("{error:#}"),
                    "the issuer's keys are not reloaded, the old ones stay"
                ),
            }
        }
        self.0.remembered.invalidate_all();
    }

    /// Writes when keys were last used, as far as it is not written yet.
    pub async fn close(&self) {
        self.0.resolver.last_used.flush(&self.0.resolver.db).await;
    }
}

impl Resolver {
    /// An unknown API key is an answer, to be remembered. A refused token is not: what follows may
    /// be good (its issuer's new key was fetched), and a clock alone makes some so.
    async fn identify(&self, credential: Credential<'_>, prefix: &str) -> Result<Identity, Error> {
        match (credential, &self.tokens) {
            (Credential::ApiKey(text), _) => match Key::parse(text, prefix) {
                Some(key) => self.api_key(&key).await,
                None => Err(refused(UNKNOWN_KEY)),
            },
            (Credential::Token(text), Some(tokens)) => self.token(tokens, text).await,
            (Credential::Token(_), None) => Err(refused(NO_TOKENS)),
        }
    }

    async fn api_key(&self, key: &Key) -> Result<Identity, Error> {
        let Some(kept) = store::find(&self.db, &key.hash()).await? else {
            tracing::debug!(hint = key.hint(), "an API key is refused: unknown");
            return Ok(Identity::Refused);
        };
        let now = Utc::now();
        let state = kept.state(now);
        if state != KeyState::Live {
            tracing::debug!(id = %kept.id, ?state, "an API key is refused");
            return Ok(Identity::Refused);
        }
        self.last_used.note(kept.id, crate::db::now());
        let principals = self.principals.load();
        let id = format!("key:{}", kept.name);
        let mut scopes = kept.scopes;
        scopes.extend(&principals.of_key(&kept.name));
        let limits = principals.limits_of(&id);
        let principal = Principal::api_key_of(id, kept.id.to_string(), scopes, limits);
        Ok(Identity::Known { principal, expires_at: kept.expires_at })
    }

    async fn token(&self, tokens: &Verifier, text: &str) -> Result<Identity, Error> {
        let token = tokens.verify(text).await?;
        let principals = self.principals.load();
        let id = format!("user:{}", token.subject);
        let mut scopes = token.scopes;
        scopes.extend(&principals.of_user(&token.subject, &token.groups));
        let limits = principals.limits_of(&id);
        let principal = Principal::user(id, scopes, limits);
        Ok(Identity::Known { principal, expires_at: Some(token.expires_at) })
    }
}

impl File {
    fn read(&self) -> Result<Principals, Faults> {
        let known = Known { scopes: &self.scopes, classes: &self.classes };
        principals::read(&self.path, &known)
    }
}

impl Identity {
    /// Who it is, if the credential has not expired since it was checked.
    fn still(self, credential: Credential<'_>) -> Result<Principal, Error> {
        match (self, credential) {
            (Self::Known { principal, expires_at }, _)
                if expires_at.is_none_or(|end| Utc::now() < end) =>
            {
                Ok(principal)
            }
            (_, Credential::ApiKey(_)) => Err(refused(UNKNOWN_KEY)),
            (_, Credential::Token(_)) => Err(refused(EXPIRED_TOKEN)),
        }
    }
}

/// A credential was presented, and will not do.
fn refused(reason: &'static str) -> Error {
    Error::Unauthorized { reason, presented: true }
}

/// The first of them after one period.
fn ticks(period: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn in_background(work: impl Future<Output = Infallible> + Send + 'static) -> Background {
    AbortOnDropHandle::new(tokio::spawn(work))
}
