//! An issuer of tokens: keys of its own, and a real server for their public halves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use arc_swap::ArcSwap;
use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use plinth::config::{Config, Environment};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize};
use serde_json::{Value, json};

use super::Served;

/// A key pair that tokens are signed with.
pub struct Signer {
    pub header: Header,
    /// As anyone may know it.
    pub public_pem: String,
    key: EncodingKey,
}

/// Serves a key set, and counts how often it is fetched.
pub struct Issuer {
    pub jwks: String,
    state: Arc<State>,
    _served: Served,
}

#[derive(Default)]
struct State {
    document: ArcSwap<String>,
    down: AtomicBool,
    fetches: AtomicUsize,
    /// What the last fetch said of its trace.
    traceparent: ArcSwap<String>,
}

impl Signer {
    pub fn rsa(kid: &str) -> Self {
        let pair = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        let key = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).unwrap();
        Self::new(kid, Algorithm::RS256, key, pair.public_key_pem())
    }

    pub fn ec(kid: &str) -> Self {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
        Self::new(kid, Algorithm::ES256, key, pair.public_key_pem())
    }

    fn new(kid: &str, algorithm: Algorithm, key: EncodingKey, public_pem: String) -> Self {
        let header = Header { kid: Some(kid.into()), ..Header::new(algorithm) };
        Self { header, public_pem, key }
    }

    pub fn sign(&self, claims: &Value) -> String {
        self.sign_as(&self.header, claims)
    }

    /// Under a header that says what it likes.
    pub fn sign_as(&self, header: &Header, claims: &Value) -> String {
        encode(header, claims, &self.key).unwrap()
    }

    fn jwk(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.header.alg).unwrap();
        jwk.common.key_id.clone_from(&self.header.kid);
        serde_json::to_value(jwk).unwrap()
    }
}

/// The public halves, as an issuer publishes them: among keys that are none of our business.
pub fn key_set(signers: &[&Signer]) -> String {
    let others = [json!({ "kty": "oct", "kid": "other", "k": "AA" }), json!({ "kty": "new" })];
    let keys: Vec<_> = others.into_iter().chain(signers.iter().map(|s| s.jwk())).collect();
    json!({ "keys": keys }).to_string()
}

impl Issuer {
    pub fn start(signers: &[&Signer]) -> Self {
        let state = Arc::new(State::default());
        let serving = state.clone();
        let app = Router::new()
            .route("/jwks", get(async move |headers: HeaderMap| serving.answer(&headers)));
        let mut config = Config::defaults(Environment::Test);
        config.server.port = 0;
        let served = Served::start(app, &config);
        let issuer = Self { jwks: format!("{}/jwks", served.url), state, _served: served };
        issuer.publish(signers);
        issuer
    }

    /// Replaces the key set.
    pub fn publish(&self, signers: &[&Signer]) {
        self.publish_text(key_set(signers));
    }

    pub fn publish_text(&self, text: String) {
        self.state.document.store(Arc::new(text));
    }

    pub fn set_down(&self, down: bool) {
        self.state.down.store(down, SeqCst);
    }

    /// The `traceparent` of the last fetch; empty where it had none.
    pub fn traceparent(&self) -> String {
        self.state.traceparent.load().to_string()
    }

    pub fn fetches(&self) -> usize {
        self.state.fetches.load(SeqCst)
    }
}

impl State {
    fn answer(&self, headers: &HeaderMap) -> axum::response::Response {
        let given = headers.get("traceparent").map(|value| value.to_str().unwrap().to_owned());
        self.traceparent.store(Arc::new(given.unwrap_or_default()));
        self.fetches.fetch_add(1, SeqCst);
        if self.down.load(SeqCst) {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        self.document.load().to_string().into_response()
    }
}
