//! Who calls: API keys over both databases, tokens of a real issuer, and the principals file.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderValue};
use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use plinth::auth::manage::{self, Made};
use plinth::auth::{ApiKey, Auth, Known, Principal, PrincipalKind, Scopes};
use plinth::config::{AuthConfig, AuthMode, Config, Environment, Faults, JwtAlgorithm};
use plinth::db::{Db, Usage, track_usage};
use plinth::error::Error;
use plinth::on;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::both_databases;
use crate::support::issuer::{Issuer, Signer, key_set};
use crate::support::{Engine, TestDatabase, config, until};

const PREFIX: &str = "plinth";

/// How long what was found is remembered.
const REMEMBERED: Duration = Duration::from_secs(5);

fn scopes() -> BTreeSet<&'static str> {
    BTreeSet::from(["plans:read", "plans:write"])
}

fn required() -> AuthConfig {
    let mut auth = Config::defaults(Environment::Test).auth;
    auth.mode = AuthMode::Required;
    auth
}

async fn try_connect(auth: &AuthConfig, db: &Db) -> anyhow::Result<Auth> {
    let classes = BTreeSet::from(["default".to_owned()]);
    Auth::connect(auth, db.clone(), &Known { scopes: &scopes(), classes: &classes }).await
}

async fn connect(auth: &AuthConfig, db: &Db) -> Auth {
    try_connect(auth, db).await.unwrap()
}

async fn migrated(database: &TestDatabase) -> Db {
    let mut settings = config(&database.url).database;
    settings.acquire_timeout = Duration::from_secs(10);
    let db = Db::connect(&settings).await.unwrap();
    db.migrate().await.unwrap();
    db
}

async fn make(db: &Db, name: &str, lifetime: Option<Duration>) -> Made {
    let scopes = Scopes::asked(["plans:read"], &scopes()).unwrap();
    manage::create(db, PREFIX, name, scopes, lifetime).await.unwrap()
}

fn bearer(credential: &str) -> HeaderMap {
    let value = HeaderValue::try_from(format!("Bearer {credential}")).unwrap();
    HeaderMap::from_iter([(axum::http::header::AUTHORIZATION, value)])
}

async fn authenticate(auth: &Auth, credential: &str) -> Result<Principal, Error> {
    auth.authenticate(&bearer(credential)).await
}

/// Why it is refused with a 401.
async fn refusal(auth: &Auth, credential: &str) -> &'static str {
    match authenticate(auth, credential).await {
        Err(Error::Unauthorized { reason, presented: true }) => reason,
        other => panic!("{other:?}"),
    }
}

async fn is_refused(auth: &Auth, credential: &str) -> bool {
    matches!(authenticate(auth, credential).await, Err(Error::Unauthorized { .. }))
}

async fn kept(db: &Db, id: Uuid) -> ApiKey {
    let keys = manage::list(db).await.unwrap();
    keys.into_iter().find(|key| key.id == id).unwrap()
}

/// What came of `work`, and how many queries it took.
async fn counted<T>(work: impl Future<Output = T>) -> (T, u32) {
    let usage = Arc::new(Usage::default());
    let outcome = track_usage(usage.clone(), work).await;
    (outcome, usage.queries())
}

const UNKNOWN_KEY: &str = "the API key is unknown, expired or revoked";

both_databases! {
    async fn a_key_opens_what_it_was_made_for(database) {
        let db = migrated(&database).await;
        let auth = connect(&required(), &db).await;
        let Made { key, kept } = make(&db, "ci", None).await;
        let principal = authenticate(&auth, key.expose()).await.unwrap();
        assert_eq!((principal.id(), principal.kind()), ("key:ci", PrincipalKind::ApiKey));
        assert_eq!(principal.api_key(), Some(kept.id.to_string().as_str()));
        assert_eq!((principal.can("plans:read"), principal.can("plans:write")), (true, false));
        assert!(principal.limits().is_empty());

        let value = HeaderValue::from_str(key.expose()).unwrap();
        let headers = HeaderMap::from_iter([("x-api-key".parse().unwrap(), value)]);
        assert_eq!(auth.authenticate(&headers).await.unwrap().id(), "key:ci");
    }

    async fn a_key_is_asked_for_once_however_many_call(database) {
        let db = migrated(&database).await;
        let auth = connect(&required(), &db).await;
        let Made { key, .. } = make(&db, "ci", None).await;
        let many = || join_all((0..100).map(|_| authenticate(&auth, key.expose())));
        let (outcomes, queries) = counted(many()).await;
        assert!(outcomes.iter().all(Result::is_ok));
        assert_eq!(queries, 1);

        let forged = make(&migrated_elsewhere().await.1, "ci", None).await.key;
        let (said, queries) = counted(refusal(&auth, forged.expose())).await;
        assert_eq!((said, queries), (UNKNOWN_KEY, 1));
        let (said, queries) = counted(refusal(&auth, forged.expose())).await;
        assert_eq!((said, queries), (UNKNOWN_KEY, 0));

        let cut_off = &key.expose()[..key.expose().len() - 1];
        let (said, queries) = counted(refusal(&auth, cut_off)).await;
        assert_eq!((said, queries), (UNKNOWN_KEY, 0));
    }

    async fn a_key_taken_back_is_refused_within_ten_seconds(database) {
        let db = migrated(&database).await;
        let auth = connect(&required(), &db).await;
        let one = make(&db, "ci", None).await;
        let other = make(&db, "other", None).await;
        authenticate(&auth, one.key.expose()).await.unwrap();
        assert_eq!(manage::revoke(&db, "ci").await.unwrap()[0].id, one.kept.id);
        let start = Instant::now();
        until("it is refused", async || is_refused(&auth, one.key.expose()).await).await;
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        assert_eq!(refusal(&auth, one.key.expose()).await, UNKNOWN_KEY);

        manage::revoke(&db, &other.kept.id.to_string()).await.unwrap();
        assert_eq!(refusal(&auth, other.key.expose()).await, UNKNOWN_KEY);
        let none = manage::revoke(&db, "ci").await.unwrap_err().to_string();
        assert!(none.starts_with("there is no live key called `ci`"), "{none}");
    }

    async fn a_key_that_expires_does_so_though_it_is_remembered(database) {
        let db = migrated(&database).await;
        let auth = connect(&required(), &db).await;
        let lifetime = Duration::from_secs(2);
        let Made { key, kept } = make(&db, "ci", Some(lifetime)).await;
        let start = Instant::now();
        authenticate(&auth, key.expose()).await.unwrap();
        until("it is refused", async || is_refused(&auth, key.expose()).await).await;
        assert!(start.elapsed() < REMEMBERED && Utc::now() >= kept.expires_at.unwrap());
        // Nor does a fresh look-up take it.
        let fresh = connect(&required(), &db).await;
        assert_eq!(refusal(&fresh, key.expose()).await, UNKNOWN_KEY);
        make(&db, "ci", None).await;
    }

    async fn of_many_made_at_once_under_one_name_there_is_one(database) {
        let db = migrated(&database).await;
        let scopes = || Scopes::asked(["plans:read"], &scopes()).unwrap();
        let make = || manage::create(&db, PREFIX, "ci", scopes(), None);
        let made = join_all((0..4).map(|_| make())).await;
        assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1);
        assert_eq!(manage::list(&db).await.unwrap().len(), 1);
    }

    async fn a_rotated_key_has_the_lifetime_of_the_one_before(database) {
        let db = migrated(&database).await;
        let day = Duration::from_secs(86_400);
        make(&db, "ci", Some(day * 90)).await;
        let new = manage::rotate(&db, PREFIX, "ci", day, None).await.unwrap().kept;
        assert_eq!((new.expires_at.unwrap() - new.created_at).num_days(), 90);
        assert!(manage::rotate(&db, PREFIX, "ci", day, Some(Duration::ZERO)).await.is_err());
    }

    async fn a_rotated_key_lives_on_for_the_overlap(database) {
        let db = migrated(&database).await;
        let auth = connect(&required(), &db).await;
        let old = make(&db, "ci", None).await;
        let taken = Scopes::all();
        let taken = manage::create(&db, PREFIX, "ci", taken, None).await.err().unwrap().to_string();
        assert!(taken.starts_with("there is a live key called `ci`"), "{taken}");

        let hour = Duration::from_secs(3600);
        let new = manage::rotate(&db, PREFIX, "ci", hour, None).await.unwrap();
        assert_eq!((&new.kept.scopes, new.kept.expires_at), (&old.kept.scopes, None));
        for made in [&old, &new] {
            assert_eq!(authenticate(&auth, made.key.expose()).await.unwrap().id(), "key:ci");
        }
        let ends = kept(&db, old.kept.id).await.expires_at.unwrap();
        assert!((ends - Utc::now()).to_std().unwrap() <= hour);

        // The oldest ends when it would have; the one that follows, now.
        let newest = manage::rotate(&db, PREFIX, "ci", hour * 2, None).await.unwrap();
        assert_eq!(kept(&db, old.kept.id).await.expires_at, Some(ends));
        manage::rotate(&db, PREFIX, "ci", Duration::ZERO, None).await.unwrap();
        let fresh = connect(&required(), &db).await;
        for made in [&old, &new, &newest] {
            assert_eq!(refusal(&fresh, made.key.expose()).await, UNKNOWN_KEY);
        }
        let none = manage::rotate(&db, PREFIX, "cj", hour, None).await.err().unwrap().to_string();
        assert!(none.starts_with("there is no live key called `cj`"), "{none}");
    }

    async fn when_a_key_was_last_used_is_written_on_close_and_never_goes_back(database) {
        let db = migrated(&database).await;
        let auth = connect(&required(), &db).await;
        let Made { key, kept: made } = make(&db, "ci", None).await;
        authenticate(&auth, key.expose()).await.unwrap();
        assert_eq!(kept(&db, made.id).await.last_used_at, None);
        auth.close().await;
        let used = kept(&db, made.id).await.last_used_at.unwrap();
        assert!(made.created_at <= used && used <= Utc::now());

        let later: DateTime<Utc> = "2100-01-01T00:00:00Z".parse().unwrap();
        on!(db.writer(), |conn| sqlx::query("UPDATE api_keys SET last_used_at = $1")
            .bind(later)
            .execute(conn)
            .await
            .map(drop))
        .unwrap();
        let fresh = connect(&required(), &db).await;
        authenticate(&fresh, key.expose()).await.unwrap();
        fresh.close().await;
        assert_eq!(kept(&db, made.id).await.last_used_at, Some(later));
    }

    async fn a_database_that_is_away_is_not_the_callers_fault(database) {
        let db = migrated(&database).await;
        let auth = connect(&required(), &db).await;
        let Made { key, .. } = make(&db, "ci", None).await;
        db.close(Duration::from_secs(30)).await;
        let error = authenticate(&auth, key.expose()).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { what: "the database", .. }), "{error:?}");
    }

    async fn open_or_not_a_credential_is_checked(database) {
        let db = migrated(&database).await;
        let mut settings = required();
        let auth = connect(&settings, &db).await;
        let error = auth.authenticate(&HeaderMap::new()).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized { presented: false, .. }), "{error:?}");
        settings.mode = AuthMode::Open;
        let auth = connect(&settings, &db).await;
        let nobody = auth.authenticate(&HeaderMap::new()).await.unwrap();
        assert_eq!((nobody.id(), nobody.kind()), ("anonymous", PrincipalKind::Anonymous));
        assert!(nobody.can("plans:write"));
        assert_eq!(refusal(&auth, "plinth_garbage").await, UNKNOWN_KEY);
        assert!(refusal(&auth, "a.b.c").await.contains("takes no tokens"));
    }
}

/// Keys of another house.
async fn migrated_elsewhere() -> (TestDatabase, Db) {
    let database = TestDatabase::new(Engine::Sqlite).await.unwrap();
    let db = migrated(&database).await;
    (database, db)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_comes_back_is_asked_at_once() {
    let Some(database) = TestDatabase::new(Engine::Postgres).await else { return };
    let db = migrated(&database).await;
    let auth = connect(&required(), &db).await;
    let Made { key, .. } = make(&db, "ci", None).await;
    database.close().await;
    let error = authenticate(&auth, key.expose()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    database.reopen().await;
    until("it is taken", async || authenticate(&auth, key.expose()).await.is_ok()).await;
}

const ISSUER: &str = "https://issuer.example";

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// What a good token says, with changes; `null` leaves a claim out.
fn claims(changes: Value) -> Value {
    let exp = seconds() + 600;
    let mut claims = json!({
        "iss": ISSUER, "aud": "plinth", "sub": "alice", "exp": exp, "scope": "openid plans:read"
    });
    claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    claims
}

fn settings(jwks: &str) -> AuthConfig {
    let mut auth = required();
    auth.jwt.issuer = Some(ISSUER.into());
    auth.jwt.audience = vec!["plinth".into()];
    auth.jwt.jwks = Some(jwks.into());
    auth.jwt.leeway = Duration::ZERO;
    auth
}

/// A service that takes tokens, with a database that is not asked.
struct House {
    auth: Auth,
    _database: TestDatabase,
}

impl House {
    async fn of(settings: &AuthConfig) -> Self {
        let (database, db) = migrated_elsewhere().await;
        Self { auth: connect(settings, &db).await, _database: database }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_token_is_taken() {
    let (rsa, ec) = (Signer::rsa("1"), Signer::ec("2"));
    let issuer = Issuer::start(&[&rsa, &ec]);
    let house = House::of(&settings(&issuer.jwks)).await;
    for signer in [&rsa, &ec] {
        for good in [
            json!({}),
            json!({ "aud": ["other", "plinth"] }),
            json!({ "scope": ["plans:read"] }),
            json!({ "nbf": seconds() - 1, "exp": (seconds() + 600) as f64 + 0.5 }),
            json!({ "exp": u64::MAX }),
        ] {
            let token = signer.sign(&claims(good.clone()));
            let principal = authenticate(&house.auth, &token).await;
            let principal = principal.unwrap_or_else(|error| panic!("{good}: {error:?}"));
            assert_eq!((principal.id(), principal.kind()), ("user:alice", PrincipalKind::User));
            assert_eq!((principal.can("plans:read"), principal.can("plans:write")), (true, false));
            assert_eq!(principal.api_key(), None);
        }
    }
    assert_eq!(issuer.fetches(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_no_api_key_and_its_scopes_are_no_patterns() {
    let signer = Signer::ec("1");
    let issuer = Issuer::start(&[&signer]);
    let house = House::of(&settings(&issuer.jwks)).await;
    let token = signer.sign(&claims(json!({ "scope": "* plans:* plans:read" })));
    let principal = authenticate(&house.auth, &token).await.unwrap();
    assert_eq!(principal.scopes().iter().collect::<Vec<_>>(), ["plans:read"]);
    let value = HeaderValue::from_str(&token).unwrap();
    let headers = HeaderMap::from_iter([("x-api-key".parse().unwrap(), value)]);
    assert!(
        house.auth.authenticate(&headers).await.is_err(),
        "though it was just taken as a token"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_other_token_is_refused() {
    let (rsa, ec, foreign) = (Signer::rsa("1"), Signer::ec("2"), Signer::rsa("1"));
    let unknown = Signer::rsa("3");
    let issuer = Issuer::start(&[&rsa, &ec]);
    let house = House::of(&settings(&issuer.jwks)).await;
    let good = rsa.sign(&claims(json!({})));
    assert!(authenticate(&house.auth, &good).await.is_ok());

    let signature = "the token's signature is wrong";
    let claim = "the token lacks one of the claims exp, iss, aud and sub, or one is malformed";
    let (aud, iss) = ("the token is for another audience", "the token is of another issuer");
    let algorithm = "the token is signed with an algorithm that is not taken here";
    let unreadable = "the credential is neither an API key of this service nor a token";
    let unknown_key = "the token is signed with a key that its issuer does not have";
    let subject = "the token's sub is empty or malformed";

    let signed = |changes| rsa.sign(&claims(changes));
    let headed = |change: fn(&mut Header)| {
        let mut header = rsa.header.clone();
        change(&mut header);
        rsa.sign_as(&header, &claims(json!({})))
    };
    let parts: Vec<_> = good.split('.').collect();
    // {"alg":"none","typ":"JWT"}
    let none = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{}.", parts[1]);
    let secret = EncodingKey::from_secret(rsa.public_pem.as_bytes());
    let header = Header { kid: Some("1".into()), ..Header::new(Algorithm::HS256) };
    let confused = encode(&header, &claims(json!({})), &secret).unwrap();
    let other_claims = signed(json!({ "sub": "mallory" }));
    let other_claims = other_claims.split('.').nth(1).unwrap();
    let swapped = format!("{}.{other_claims}.{}", parts[0], parts[2]);
    // As if the RSA key were one for ES256.
    let header = Header { kid: Some("1".into()), ..ec.header.clone() };
    let wrong_kind = ec.sign_as(&header, &claims(json!({})));

    for (what, token, says) in [
        ("alg none", none, unreadable),
        ("the public key as a secret", confused, algorithm),
        ("claims of another token", swapped, signature),
        ("another's signature", foreign.sign(&claims(json!({}))), signature),
        ("no signature", format!("{}.{}.", parts[0], parts[1]), signature),
        ("a key of another kind", wrong_kind, unknown_key),
        ("alg not pinned", headed(|h| h.alg = Algorithm::RS384), algorithm),
        (
            "crit",
            headed(|h| h.crit = Some(vec!["exp".into()])),
            "the token asks for an extension that is not understood here",
        ),
        (
            "no kid",
            headed(|h| h.kid = None),
            "the token does not say which key it is signed with (kid)",
        ),
        ("unknown kid", unknown.sign(&claims(json!({}))), unknown_key),
        ("no exp", signed(json!({ "exp": null })), claim),
        ("no iss", signed(json!({ "iss": null })), claim),
        ("no aud", signed(json!({ "aud": null })), claim),
        ("no sub", signed(json!({ "sub": null })), claim),
        ("exp as text", signed(json!({ "exp": "tomorrow" })), claim),
        ("nbf as text", signed(json!({ "nbf": "today" })), claim),
        ("expired", signed(json!({ "exp": seconds() - 1 })), "the token has expired"),
        ("not yet", signed(json!({ "nbf": seconds() + 600 })), "the token is not valid yet"),
        ("other aud", signed(json!({ "aud": "other" })), aud),
        ("other auds", signed(json!({ "aud": ["other", "plinth2"] })), aud),
        ("no auds", signed(json!({ "aud": [] })), aud),
        ("other iss", signed(json!({ "iss": "https://issuer.example/" })), iss),
        ("empty sub", signed(json!({ "sub": "" })), subject),
        ("long sub", signed(json!({ "sub": "x".repeat(256) })), subject),
        ("sub with a line break", signed(json!({ "sub": "alice\nadmin" })), subject),
        ("garbage", "garbage".into(), unreadable),
        ("two parts", format!("{}.{}", parts[0], parts[1]), unreadable),
        ("five parts", format!("{good}.{good}"), unreadable),
        ("not base64", "?.?.?".into(), unreadable),
    ] {
        assert_eq!(refusal(&house.auth, &token).await, says, "{what}");
    }
    // What was refused has not made the good one bad.
    assert!(authenticate(&house.auth, &good).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn algorithms_are_pinned_by_the_configuration() {
    let (rsa, ec) = (Signer::rsa("1"), Signer::ec("2"));
    let issuer = Issuer::start(&[&rsa, &ec]);
    let mut settings = settings(&issuer.jwks);
    settings.jwt.algorithms = vec![JwtAlgorithm::ES256];
    let house = House::of(&settings).await;
    assert!(authenticate(&house.auth, &ec.sign(&claims(json!({})))).await.is_ok());
    let said = refusal(&house.auth, &rsa.sign(&claims(json!({})))).await;
    assert!(said.contains("algorithm"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_does_so_though_it_is_remembered() {
    let signer = Signer::ec("1");
    let issuer = Issuer::start(&[&signer]);
    let house = House::of(&settings(&issuer.jwks)).await;
    let exp = seconds() + 2;
    let token = signer.sign(&claims(json!({ "exp": exp })));
    let start = Instant::now();
    authenticate(&house.auth, &token).await.unwrap();
    until("it is refused", async || is_refused(&house.auth, &token).await).await;
    assert!(start.elapsed() < REMEMBERED && seconds() >= exp);
    assert_eq!(refusal(&house.auth, &token).await, "the token has expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_bogus_kids_make_one_fetch_a_cool_down() {
    let (signer, unknown) = (Signer::ec("1"), Signer::ec("2"));
    let issuer = Issuer::start(&[&signer]);
    let mut settings = settings(&issuer.jwks);
    settings.jwt.cooldown = Duration::from_millis(500);
    let house = House::of(&settings).await;
    let start = Instant::now();
    for round in 0..10 {
        let tokens: Vec<_> = (0..100)
            .map(|n| {
                let header = Header { kid: Some(format!("{round}-{n}")), ..unknown.header.clone() };
                unknown.sign_as(&header, &claims(json!({})))
            })
            .collect();
        for refused in join_all(tokens.iter().map(|token| is_refused(&house.auth, token))).await {
            assert!(refused);
        }
    }
    // One at start, one for each whole cool-down since, and one for the one under way.
    let most = 2 + start.elapsed().as_millis() / 500;
    assert!(issuer.fetches() as u128 <= most, "{} of {most}", issuer.fetches());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_is_picked_up_after_the_cool_down_and_the_old_one_goes() {
    let (old, new) = (Signer::ec("1"), Signer::ec("2"));
    let issuer = Issuer::start(&[&old]);
    let mut settings = settings(&issuer.jwks);
    settings.jwt.cooldown = Duration::from_millis(300);
    let house = House::of(&settings).await;
    issuer.publish(&[&new]);
    let token = new.sign(&claims(json!({})));
    until("it is taken", async || authenticate(&house.auth, &token).await.is_ok()).await;
    assert!(is_refused(&house.auth, &old.sign(&claims(json!({})))).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_is_away_at_start_is_found_when_it_is_back() {
    let signer = Signer::ec("1");
    let issuer = Issuer::start(&[&signer]);
    issuer.set_down(true);
    let mut settings = settings(&issuer.jwks);
    settings.jwt.cooldown = Duration::from_millis(300);
    let house = House::of(&settings).await;
    let token = signer.sign(&claims(json!({})));
    let error = authenticate(&house.auth, &token).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    issuer.set_down(false);
    until("it is taken", async || authenticate(&house.auth, &token).await.is_ok()).await;
}

/// Down; up with no key for us; up with more than anyone's keys take.
#[tokio::test(flavor = "multi_thread")]
async fn keys_stay_when_their_issuer_goes() {
    let (signer, other) = (Signer::ec("1"), Signer::ec("1"));
    let issuer = Issuer::start(&[&signer]);
    let mut settings = settings(&issuer.jwks);
    settings.jwt.refresh = Duration::from_millis(50);
    settings.jwt.cooldown = Duration::from_millis(1);
    let house = House::of(&settings).await;
    for wrong in [None, Some(key_set(&[])), Some(" ".repeat(2 << 20) + &key_set(&[&other]))] {
        issuer.set_down(wrong.is_none());
        issuer.publish_text(wrong.unwrap_or_default());
        let before = issuer.fetches();
        // The second of them begins when the first is done.
        until("it was fetched", async || issuer.fetches() > before + 2).await;
        let token = signer.sign(&claims(json!({ "jti": before })));
        assert!(authenticate(&house.auth, &token).await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn background_work_ends_with_the_last_handle() {
    let issuer = Issuer::start(&[&Signer::ec("1")]);
    let mut settings = settings(&issuer.jwks);
    settings.jwt.refresh = Duration::from_millis(10);
    settings.jwt.cooldown = Duration::from_millis(1);
    let house = House::of(&settings).await;
    until("it is fetched again", async || issuer.fetches() > 3).await;
    drop(house);
    until("it is left alone", async || {
        let before = issuer.fetches();
        tokio::time::sleep(Duration::from_millis(100)).await;
        issuer.fetches() == before
    })
    .await;
}

/// A folder for files, which goes when it is dropped.
struct Files(PathBuf);

impl Files {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("plinth-auth-{}", Uuid::now_v7().simple()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.0.join(name), text).unwrap();
        self.0.join(name)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_read_again_on_reload_and_kept_when_they_are_wrong() {
    let files = Files::new();
    let (old, new) = (Signer::ec("1"), Signer::ec("2"));
    let jwks = files.write("jwks.json", &key_set(&[&old]));
    let mut settings = settings(jwks.to_str().unwrap());
    settings.principals_file = Some(files.write(
        "principals.toml",
        "[roles]\nwriter = [\"plans:write\"]\n[keys]\nci = [\"writer\"]\n\
         [groups]\nops = [\"writer\"]\n[limits.\"key:ci\"]\ndefault = \"7/minute\"\n",
    ));
    let (_database, db) = migrated_elsewhere().await;
    let auth = connect(&settings, &db).await;
    let Made { key, .. } = make(&db, "ci", None).await;
    let ci = authenticate(&auth, key.expose()).await.unwrap();
    assert_eq!(ci.scopes().iter().collect::<Vec<_>>(), ["plans:read", "plans:write"]);
    assert_eq!(ci.limits()["default"].to_string(), "7/minute");
    let token = old.sign(&claims(json!({ "groups": ["ops"] })));
    assert!(authenticate(&auth, &token).await.unwrap().can("plans:write"));

    files.write("principals.toml", "[roles]\nwriter = [\"plans:wite\"]\n");
    files.write("jwks.json", "{}");
    auth.reload().await;
    assert!(authenticate(&auth, key.expose()).await.unwrap().can("plans:write"));
    assert!(authenticate(&auth, &token).await.is_ok());
    let faults = try_connect(&settings, &db).await.err().unwrap();
    assert_eq!(faults.downcast_ref::<Faults>().unwrap().0[0].key, "roles.writer");

    files.write("principals.toml", "");
    let error = try_connect(&settings, &db).await.err().unwrap();
    assert!(format!("{error:#}").contains("jwks.json"), "{error:#}");
    files.write("jwks.json", &key_set(&[&new]));
    auth.reload().await;
    // What was remembered is forgotten at once.
    let ci = authenticate(&auth, key.expose()).await.unwrap();
    assert!(!ci.can("plans:write") && ci.limits().is_empty());
    assert!(is_refused(&auth, &token).await);
    assert!(authenticate(&auth, &new.sign(&claims(json!({})))).await.is_ok());
}
