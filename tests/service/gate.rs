//! The gate before each route, as callers meet it: who may in, how often, and what they are told.

use std::path::PathBuf;

use plinth::auth::{Scopes, manage as auth};
use plinth::config::{AuthMode, Config};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::both_engines;
use crate::support::{Engine, TestApp};

const PLANS: &str = "/api/v1/plans";
const ME: &str = "/api/v1/me";

fn required(config: &mut Config) {
    config.auth.mode = AuthMode::Required;
}

async fn sqlite(change: impl FnOnce(&mut Config)) -> TestApp {
    TestApp::start_with(Engine::Sqlite, change).await.unwrap()
}

/// A new key with these scopes.
async fn key(app: &TestApp, name: &str, scopes: &[&str]) -> String {
    let scopes = Scopes::asked(scopes.iter().copied(), &plinth::app::scopes()).unwrap();
    let made = auth::create(&app.state.db, "plinth", name, scopes, None).await.unwrap();
    made.key.expose().to_owned()
}

fn a_plan() -> Value {
    json!({"name": "a", "start_date": "2027-03-01", "end_date": "2027-05-31"})
}

async fn problem(answer: Response) -> Value {
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    answer.json().await.unwrap()
}

async fn status(request: RequestBuilder) -> u16 {
    request.send().await.unwrap().status().as_u16()
}

fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    answer.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

both_engines! {
    async fn a_key_opens_what_its_scopes_say(app with required) {
        let reader = key(&app, "reader", &["plans:read"]).await;
        let writer = key(&app, "writer", &["plans:write"]).await;
        assert_eq!(status(app.get(PLANS).bearer_auth(&reader)).await, 200);
        assert_eq!(status(app.get(PLANS).header("x-api-key", &reader)).await, 200);
        assert_eq!(status(app.post(PLANS).bearer_auth(&writer).json(&a_plan())).await, 201);

        let refused = app.post(PLANS).bearer_auth(&reader).json(&a_plan()).send().await.unwrap();
        assert_eq!(refused.status(), 403);
        assert_eq!(
            header(&refused, "www-authenticate"),
            "Bearer realm=\"plinth\", error=\"insufficient_scope\", scope=\"plans:write\""
        );
        let problem = problem(refused).await;
        assert_eq!(problem["code"], "FORBIDDEN");
        assert_eq!(problem["detail"], "this needs the scope plans:write");
    }

    async fn a_revoked_key_opens_nothing(app with required) {
        let key = key(&app, "ci", &["*"]).await;
        assert_eq!(status(app.get(PLANS).bearer_auth(&key)).await, 200);
        auth::revoke(&app.state.db, "ci").await.unwrap();
        let refused = crate::support::becomes(401, || app.get(PLANS).bearer_auth(&key)).await;
        assert_eq!(problem(refused).await["detail"], "the API key is unknown, expired or revoked");
    }
}

#[tokio::test]
async fn without_a_good_credential_it_is_a_401_with_a_challenge() {
    let app = sqlite(required).await;
    let none = app.get(PLANS).send().await.unwrap();
    assert_eq!(none.status(), 401);
    assert_eq!(header(&none, "www-authenticate"), "Bearer realm=\"plinth\"");
    assert_eq!(problem(none).await["code"], "UNAUTHORIZED");
    for request in [
        app.get(PLANS).bearer_auth("plinth_nonsense"),
        app.get(PLANS).bearer_auth("a.b.c"),
        app.get(PLANS).header("x-api-key", "x"),
        app.get(PLANS).basic_auth("user", Some("password")),
        app.get(PLANS).header("x-api-key", "x").bearer_auth("y"),
    ] {
        let bad = request.send().await.unwrap();
        assert_eq!(bad.status(), 401);
        assert_eq!(
            header(&bad, "www-authenticate"),
            "Bearer realm=\"plinth\", error=\"invalid_token\""
        );
    }
}

/// Of every route there is: the document comes from the same registration as the router.
#[tokio::test]
async fn every_route_but_the_health_and_the_documentation_asks_who_calls() {
    let app = sqlite(required).await;
    let document: Value = app.get("/openapi.json").send().await.unwrap().json().await.unwrap();
    let mut guarded = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let path = path.replace("{id}", "0199f3c2-7b1e-7cc0-b7a5-3f1d2f3c4d5e");
            let answer = status(app.request(method.clone(), &path)).await;
            let documented = operation["responses"].get("401").is_some();
            if path.starts_with("/health") {
                assert_eq!((answer, documented), (200, false), "{method} {path}");
                continue;
            }
            guarded += 1;
            assert_eq!((answer, documented), (401, true), "{method} {path}");
            let schemes = operation["security"].as_array().unwrap();
            assert_eq!(schemes.len(), 2, "{method} {path}");
        }
    }
    assert!(guarded > 0);
    let create = &document["paths"][PLANS]["post"]["security"];
    assert_eq!(*create, json!([{"api_key": ["plans:write"]}, {"bearer": ["plans:write"]}]));
}

#[tokio::test]
async fn an_open_service_lets_in_whoever_presents_nothing_but_no_bad_credential() {
    let app = sqlite(|_| {}).await;
    let me: Value = app.get(ME).send().await.unwrap().json().await.unwrap();
    assert_eq!((&me["principal"], &me["kind"]), (&json!("anonymous"), &json!("anonymous")));
    assert_eq!(me["scopes"], json!(["*"]));
    assert_eq!(status(app.get(ME).bearer_auth("plinth_nonsense")).await, 401);
    let key = key(&app, "ci", &["plans:read"]).await;
    assert_eq!(status(app.post(PLANS).bearer_auth(&key).json(&a_plan())).await, 403);
}

#[tokio::test]
async fn me_shows_the_principal_its_scopes_and_its_quotas() {
    let app = sqlite(|config| {
        required(config);
        config.rate_limit.default = "10/minute, 100/hour".parse().unwrap();
    })
    .await;
    let key = key(&app, "ci", &["plans:read", "plans:write"]).await;
    assert_eq!(status(app.get(PLANS).bearer_auth(&key)).await, 200);
    let me: Value = app.get(ME).bearer_auth(&key).send().await.unwrap().json().await.unwrap();
    assert_eq!((&me["principal"], &me["kind"]), (&json!("key:ci"), &json!("api_key")));
    assert_eq!(me["scopes"], json!(["plans:read", "plans:write"]));
    let quotas = me["quotas"].as_array().unwrap();
    let quota = |policy: &str| quotas.iter().find(|quota| quota["policy"] == policy).unwrap();
    assert_eq!(quota("default-minute")["remaining"], 8);
    assert_eq!(quota("default-hour")["remaining"], 98);
    assert_eq!(quota("strict-minute")["remaining"], 3, "to look is not to use");
}

#[tokio::test]
async fn a_quota_is_announced_counted_and_then_refused_by_name() {
    let app = sqlite(|config| {
        config.rate_limit.default = "3/minute, 5/hour".parse().unwrap();
    })
    .await;
    for left in ["2", "1", "0"] {
        let answer = app.get(PLANS).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(
            header(&answer, "ratelimit-policy"),
            "\"default-minute\";q=3;w=60, \"default-hour\";q=5;w=3600"
        );
        assert!(
            header(&answer, "ratelimit").starts_with(&format!("\"default-minute\";r={left};t="))
        );
        assert_eq!(header(&answer, "x-ratelimit-limit"), "3");
        assert_eq!(header(&answer, "x-ratelimit-remaining"), left);
        let reset: i64 = header(&answer, "x-ratelimit-reset").parse().unwrap();
        assert!((0..=61).contains(&(reset - chrono::Utc::now().timestamp())));
    }
    for _ in 0..3 {
        let refused = app.get(PLANS).send().await.unwrap();
        assert_eq!(refused.status(), 429);
        let retry_after: u64 = header(&refused, "retry-after").parse().unwrap();
        assert!((1..=60).contains(&retry_after), "{retry_after}");
        assert!(
            header(&refused, "ratelimit").contains("\"default-hour\";r=2;t="),
            "it used one up"
        );
        let problem = problem(refused).await;
        assert_eq!(problem["code"], "TOO_MANY_REQUESTS");
        assert_eq!(problem["violated-policies"], json!(["default-minute"]));
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            detail.starts_with("the limit default-minute is used up; try again in "),
            "{detail}"
        );
    }
}

#[tokio::test]
async fn principals_have_quotas_of_their_own_whichever_key_they_use() {
    let app = sqlite(|config| {
        required(config);
        config.rate_limit.default = "2/minute".parse().unwrap();
    })
    .await;
    let (one, other) = (key(&app, "one", &["*"]).await, key(&app, "other", &["*"]).await);
    let day = std::time::Duration::from_secs(86_400);
    let rotated = auth::rotate(&app.state.db, "plinth", "one", day, None).await.unwrap();
    assert_eq!(status(app.get(PLANS).bearer_auth(&one)).await, 200);
    assert_eq!(status(app.get(PLANS).bearer_auth(rotated.key.expose())).await, 200);
    assert_eq!(status(app.get(PLANS).bearer_auth(&one)).await, 429);
    assert_eq!(status(app.get(PLANS).bearer_auth(&other)).await, 200);
}

#[tokio::test]
async fn a_refusal_for_want_of_a_scope_has_used_a_request_up() {
    let app = sqlite(|config| {
        required(config);
        config.rate_limit.default = "1/minute".parse().unwrap();
    })
    .await;
    let reader = key(&app, "reader", &["plans:read"]).await;
    assert_eq!(status(app.post(PLANS).bearer_auth(&reader).json(&a_plan())).await, 403);
    assert_eq!(status(app.get(PLANS).bearer_auth(&reader)).await, 429);
}

#[tokio::test]
async fn whom_the_configuration_exempts_has_no_quota() {
    let app = sqlite(|config| {
        required(config);
        config.rate_limit.default = "1/minute".parse().unwrap();
        config.rate_limit.exempt = vec!["key:ops".into()];
    })
    .await;
    let (ops, ci) = (key(&app, "ops", &["*"]).await, key(&app, "ci", &["*"]).await);
    for _ in 0..3 {
        let answer = app.get(PLANS).bearer_auth(&ops).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(!answer.headers().contains_key("ratelimit"));
    }
    assert_eq!(status(app.get(PLANS).bearer_auth(&ci)).await, 200);
    assert_eq!(status(app.get(PLANS).bearer_auth(&ci)).await, 429);
}

#[tokio::test]
async fn the_principals_file_gives_scopes_and_quotas() {
    let file = std::env::temp_dir().join(format!("plinth-{}.toml", uuid::Uuid::now_v7()));
    let text = "[roles]\nwriter = [\"plans:write\"]\n[keys]\nci = [\"writer\"]\n\
                [limits.\"key:ci\"]\ndefault = \"4/minute\"\n";
    std::fs::write(&file, text).unwrap();
    let path: PathBuf = file.clone();
    let app = sqlite(|config| {
        required(config);
        config.auth.principals_file = Some(path);
    })
    .await;
    std::fs::remove_file(file).unwrap();
    let key = key(&app, "ci", &["plans:read"]).await;
    let created = app.post(PLANS).bearer_auth(&key).json(&a_plan()).send().await.unwrap();
    assert_eq!(created.status(), 201);
    assert_eq!(header(&created, "ratelimit-policy"), "\"default-minute\";q=4;w=60");
    let me: Value = app.get(ME).bearer_auth(&key).send().await.unwrap().json().await.unwrap();
    assert_eq!(me["scopes"], json!(["plans:read", "plans:write"]));
}

#[tokio::test]
async fn credentials_that_fail_are_counted_and_hold_up_no_good_one() {
    let app = sqlite(required).await;
    let good = key(&app, "ci", &["*"]).await;
    for _ in 0..5 {
        assert_eq!(status(app.get(PLANS).bearer_auth("plinth_nonsense")).await, 401);
    }
    let refused = app.get(PLANS).bearer_auth("plinth_nonsense").send().await.unwrap();
    assert_eq!(refused.status(), 429);
    assert_eq!(problem(refused).await["violated-policies"], json!(["auth-minute"]));
    assert_eq!(status(app.get(PLANS).bearer_auth(&good)).await, 200);
    assert_eq!(status(app.get(PLANS)).await, 401, "to present nothing is not an attempt");
}

#[tokio::test]
async fn the_flood_guard_stands_before_everything_but_the_probes() {
    let app = sqlite(|config| {
        config.flood_guard.per_second = 1;
        config.flood_guard.burst = 20;
    })
    .await;
    let mut refused = Vec::new();
    for index in 0..40 {
        let path = [PLANS, "/nope", "/health", "/openapi.json"][index % 4];
        let answer = app.get(path).send().await.unwrap();
        if answer.status() == 429 {
            refused.push(answer);
        }
        assert_eq!(status(app.get("/health/live")).await, 200);
        assert_eq!(status(app.get("/health/ready")).await, 200);
    }
    assert!(refused.len() >= 5, "{}", refused.len());
    for answer in refused {
        assert!(header(&answer, "retry-after").parse::<u64>().unwrap() >= 1);
        assert!(answer.headers().contains_key("x-request-id"));
        assert_eq!(problem(answer).await["violated-policies"], json!(["flood-guard"]));
    }
}

/// Bodies sent slowly hold their client's places, and nobody else's.
#[tokio::test]
async fn one_client_has_not_all_the_places() {
    let app = sqlite(|config| {
        config.server.max_in_flight_per_client = 2;
        config.server.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let request = |client: &'static str| app.post(PLANS).header("x-forwarded-for", client);
    let stalled = || {
        let body = reqwest::Body::wrap(http_body_util::StreamBody::new(Box::pin(
            futures_util::stream::pending::<Result<http_body::Frame<bytes::Bytes>, std::io::Error>>(
            ),
        )));
        let post = request("198.51.100.1").header("content-type", "application/json").body(body);
        tokio::spawn(post.send())
    };
    let held = [stalled(), stalled()];
    let same = || app.get(PLANS).header("x-forwarded-for", "198.51.100.1");
    let refused = crate::support::becomes(503, same).await;
    assert_eq!(header(&refused, "retry-after"), "1");
    assert_eq!(problem(refused).await["code"], "OVERLOADED");
    assert_eq!(status(app.get(PLANS).header("x-forwarded-for", "198.51.100.2")).await, 200);
    assert_eq!(
        status(app.get("/health/ready").header("x-forwarded-for", "198.51.100.1")).await,
        200
    );

    held.into_iter().for_each(|request| request.abort());
    crate::support::becomes(200, same).await;
}

#[tokio::test]
async fn a_browser_can_read_a_refusal() {
    let page = "https://app.example.com";
    let app = sqlite(|config| {
        required(config);
        config.cors.allowed_origins = vec![page.into()];
        config.rate_limit.auth = "1/minute".parse().unwrap();
    })
    .await;
    for expected in [401, 429] {
        let request = app.get(PLANS).bearer_auth("plinth_nonsense").header("origin", page);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), expected);
        assert_eq!(header(&answer, "access-control-allow-origin"), page);
        let exposed = header(&answer, "access-control-expose-headers");
        for name in ["retry-after", "www-authenticate", "ratelimit", "x-ratelimit-remaining"] {
            assert!(exposed.split(',').any(|part| part == name), "{name} in {exposed}");
        }
    }
}

/// The client's address is the network's, the proxy's word is taken, and a stranger's is not.
#[tokio::test]
async fn quotas_count_by_who_the_client_is() {
    let app = sqlite(|config| {
        config.rate_limit.default = "1/minute".parse().unwrap();
        config.server.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let from = |client: &str| status(app.get(PLANS).header("x-forwarded-for", client));
    assert_eq!(from("198.51.100.1").await, 200);
    assert_eq!(from("203.0.113.9, 198.51.100.1").await, 429, "only the last hop is known");
    assert_eq!(from("2001:db8:1:2::1").await, 200);
    assert_eq!(from("2001:db8:1:2:ffff::2").await, 429);
    assert_eq!(from("2001:db8:1:3::1").await, 200);
}
