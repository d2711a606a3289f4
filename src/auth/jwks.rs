//! The issuer's public keys (JWKS, RFC 7517): fetched at start, every `refresh`, and for a token
//! that names a key we do not have.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use arc_swap::ArcSwapOption;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use reqwest::redirect;
use serde::Deserialize;
use serde_json::Value;
use tokio::task::AbortHandle;
use tracing::Instrument;

use super::ticks;
use crate::telemetry;

/// Longest that a fetch may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Most that an issuer's answer may hold; theirs are of a few KiB.
const LARGEST: usize = 1024 * 1024;

/// Keys by `kid`, each under every algorithm that it fits and that is taken here.
type KeySet = HashMap<(String, Algorithm), DecodingKey>;

/// What came of looking for a key.
pub(super) enum Lookup {
    Found(DecodingKey),
    Unknown,
    /// No keys were ever fetched, so nothing can be said of any token.
    Unavailable,
}

/// The keys, and where they come from. Cheap to clone.
#[derive(Clone)]
pub(super) struct Jwks(Arc<Inner>);

struct Inner {
    source: Source,
    algorithms: Vec<Algorithm>,
    cooldown: Duration,
    keys: ArcSwapOption<KeySet>,
    failing: AtomicBool,
    last: Mutex<Option<Fetch>>,
}

enum Source {
    Url(reqwest::Client, String),
    File(PathBuf),
}

/// The last fetch, under way or done.
struct Fetch {
    begun: Instant,
    task: AbortHandle,
    end: Shared<BoxFuture<'static, ()>>,
}

impl Jwks {
    /// Of an `http` or `https` URL, or else of a file.
    ///
    /// # Errors
    /// No HTTP client can be made.
    pub(super) fn new(
        source: &str,
        algorithms: Vec<Algorithm>,
        cooldown: Duration,
    ) -> anyhow::Result<Self> {
        let source = if source.contains("://") {
            // Whoever can make the issuer redirect must not choose whose keys we trust.
            let client = reqwest::Client::builder().redirect(redirect::Policy::none());
            Source::Url(client.timeout(TIMEOUT).build()?, source.to_owned())
        } else {
            Source::File(source.into())
        };
        Ok(Self(Arc::new(Inner {
            source,
            algorithms,
            cooldown,
            keys: ArcSwapOption::empty(),
            failing: AtomicBool::new(false),
            last: Mutex::new(None),
        })))
    }

    pub(super) fn is_file(&self) -> bool {
        matches!(self.0.source, Source::File(_))
    }

    /// The key of this id for this algorithm. One that we do not have is asked for: by a single
    /// fetch, whoever waits for it, and once a cool-down, however many ask.
    pub(super) async fn find(&self, kid: &str, algorithm: Algorithm) -> Lookup {
        let name = (kid.to_owned(), algorithm);
        match self.look(&name) {
            found @ Lookup::Found(_) => found,
            Lookup::Unknown | Lookup::Unavailable => {
                self.refresh().await;
                self.look(&name)
            }
        }
    }

    /// Fetches, or waits for a fetch that is under way; within the cool-down of one it does nothing.
    pub(super) async fn refresh(&self) {
        let fetch = self.fetch();
        fetch.await;
    }

    /// Fetches every `period`, without end.
    pub(super) async fn keep_fresh(self, period: Duration) -> Infallible {
        let mut ticks = ticks(period);
        loop {
            ticks.tick().await;
            self.refresh().await;
        }
    }

    /// Takes the keys anew, at once.
    ///
    /// # Errors
    /// Why they are not to be had; those from before stay.
    pub(super) async fn load(&self) -> anyhow::Result<()> {
        let keys = self.0.source.keys(&self.0.algorithms).await?;
        self.0.keys.store(Some(Arc::new(keys)));
        Ok(())
    }

    fn look(&self, name: &(String, Algorithm)) -> Lookup {
        match &*self.0.keys.load() {
            None => Lookup::Unavailable,
            Some(keys) => keys.get(name).cloned().map_or(Lookup::Unknown, Lookup::Found),
        }
    }

    /// The fetch to wait for. The cool-down begins before it, and it is a task of its own: that its
    /// first client leaves is no reason to ask again.
    fn fetch(&self) -> Shared<BoxFuture<'static, ()>> {
        let mut last = self.0.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fetch) = &*last
            // Not by whether `end` is known: that takes somebody who waited for it.
            && (!fetch.task.is_finished() || fetch.begun.elapsed() < self.0.cooldown)
        {
            return fetch.end.clone();
        }
        let jwks = self.clone();
        let task = tokio::spawn(async move { jwks.load_and_tell().await }.in_current_span());
        let handle = task.abort_handle();
        let end = task.map(drop).boxed().shared();
        *last = Some(Fetch { begun: Instant::now(), task: handle, end: end.clone() });
        end
    }

    /// One line for each change, not for each try.
    async fn load_and_tell(&self) {
        let outcome = self.load().await;
        let failed_before = self.0.failing.swap(outcome.is_err(), Ordering::Relaxed);
        match outcome {
            Err(error) if failed_before => {
                tracing::debug!(error = format!("{error:#}"), "the issuer's keys are still away");
            }
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "the issuer's keys cannot be fetched; those from before, if any, stay"
            ),
            Ok(()) if failed_before => tracing::info!("the issuer's keys are fetched again"),
            Ok(()) => tracing::debug!("the issuer's keys are fetched"),
        }
    }
}

impl Source {
    async fn keys(&self, algorithms: &[Algorithm]) -> anyhow::Result<KeySet> {
        let (body, place) = match self {
            Self::Url(client, url) => (fetch(client, url).await, url.clone()),
            Self::File(path) => {
                (std::fs::read(path).map_err(Into::into), path.display().to_string())
            }
        };
        let keys = body.and_then(|body| key_set(&body, algorithms));
        keys.with_context(|| format!("no keys from {place}"))
    }
}

async fn fetch(client: &reqwest::Client, url: &str) -> anyhow::Result<Vec<u8>> {
    let mut response = telemetry::send(client, client.get(url).build()?).await?;
    ensure!(response.status() == 200, "the answer is {}", response.status());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        ensure!(body.len() <= LARGEST, "the answer is larger than 1 MiB");
    }
    Ok(body)
}

/// The keys that can be used here; others are none of our business.
fn key_set(body: &[u8], algorithms: &[Algorithm]) -> anyhow::Result<KeySet> {
    #[derive(Deserialize)]
    struct Document {
        keys: Vec<Value>,
    }
    let document: Document = serde_json::from_slice(body).context("it is not a JWKS")?;
    let mut keys = KeySet::new();
    for jwk in document.keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok()) {
        let (Some(kid), Ok(key)) = (&jwk.common.key_id, DecodingKey::from_jwk(&jwk)) else {
            continue;
        };
        let fitting = algorithms.iter().filter(|algorithm| fits(&jwk, **algorithm));
        keys.extend(fitting.map(|algorithm| ((kid.clone(), *algorithm), key.clone())));
    }
    if keys.is_empty() {
        bail!("none of its keys has a kid and fits an algorithm of auth.jwt.algorithms");
    }
    Ok(keys)
}

/// Whether a key may check signatures of this algorithm: by its kind, and by what it says of itself.
fn fits(jwk: &Jwk, algorithm: Algorithm) -> bool {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    let kind = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => {
            matches!(algorithm, RS256 | RS384 | RS512 | PS256 | PS384 | PS512)
        }
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => algorithm == ES256,
            EllipticCurve::P384 => algorithm == ES384,
            _ => false,
        },
        AlgorithmParameters::OctetKeyPair(key) => {
            key.curve == EllipticCurve::Ed25519 && algorithm == EdDSA
        }
        _ => false,
    };
    let common = &jwk.common;
    let verifies = |operations: &Vec<KeyOperations>| operations.contains(&KeyOperations::Verify);
    kind && common.key_algorithm.is_none_or(|own| own == algorithm.into())
        && common.public_key_use.as_ref().is_none_or(|own| *own == PublicKeyUse::Signature)
        && common.key_operations.as_ref().is_none_or(verifies)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ALL: [Algorithm; 4] =
        [Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::EdDSA];

    fn fitting(key: Value) -> Vec<Algorithm> {
        let body = json!({ "keys": [key] }).to_string();
        let mut keys: Vec<_> =
            key_set(body.as_bytes(), &ALL).unwrap_or_default().into_keys().collect();
        keys.sort_by_key(|(_, algorithm)| ALL.iter().position(|known| known == algorithm));
        keys.into_iter().map(|(_, algorithm)| algorithm).collect()
    }

    #[test]
    fn a_key_is_for_the_algorithms_it_fits_alone() {
        let rsa = |more: Value| {
            let mut key = json!({ "kty": "RSA", "kid": "1", "n": "AQAB", "e": "AQAB" });
            key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            key
        };
        let ec =
            |curve: &str| json!({ "kty": "EC", "kid": "1", "crv": curve, "x": "AA", "y": "AA" });
        for (key, fits) in [
            (rsa(json!({})), &[Algorithm::RS256, Algorithm::PS256][..]),
            (rsa(json!({ "alg": "RS256" })), &[Algorithm::RS256]),
            (rsa(json!({ "alg": "RS256", "use": "sig", "x5c": ["AA"] })), &[Algorithm::RS256]),
            (rsa(json!({ "key_ops": ["verify"] })), &[Algorithm::RS256, Algorithm::PS256]),
            (rsa(json!({ "key_ops": ["encrypt"] })), &[]),
            (rsa(json!({ "use": "enc" })), &[]),
            (rsa(json!({ "alg": "RSA-OAEP" })), &[]),
            (rsa(json!({ "alg": "HS256" })), &[]),
            (rsa(json!({ "kid": null })), &[]),
            (ec("P-256"), &[Algorithm::ES256]),
            (ec("P-384"), &[]),
            (ec("secp256k1"), &[]),
            (json!({ "kty": "OKP", "kid": "1", "crv": "Ed25519", "x": "AA" }), &[Algorithm::EdDSA]),
            (json!({ "kty": "oct", "kid": "1", "k": "AQAB" }), &[]),
            (json!("a key"), &[]),
        ] {
            let said = key.to_string();
            assert_eq!(fitting(key), fits, "{said}");
        }
    }

    #[test]
    fn what_holds_no_key_for_us_is_refused() {
        for body in ["", "[]", "{}", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","k":"AA"}]}"#] {
            assert!(key_set(body.as_bytes(), &ALL).is_err(), "{body}");
        }
    }
}
