//! The log, as whoever collects it reads it: one flat JSON object a line.

use std::collections::BTreeSet;
use std::fmt;

use reqwest::{Client, StatusCode};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value, json};
use sqlx::{Connection, PgConnection, SqliteConnection};
use tokio::io::AsyncWriteExt;

use crate::process::{Ended, Folder};
use crate::support::{Engine, TestDatabase};
use crate::wire::{self, PLAN};

const CANARY: &str = "canary-7d1f";
const JSON: (&str, &str) = ("APP_ENV", "test");
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// A JSON object whose keys are all different.
struct Line(Map<String, Value>);

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Line;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Line, A::Error> {
                let mut fields = Map::new();
                while let Some((name, value)) = access.next_entry::<String, Value>()? {
                    if fields.insert(name.clone(), value).is_some() {
                        return Err(serde::de::Error::custom(format!("{name} comes twice")));
                    }
                }
                Ok(Line(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// Every line, each held to the form.
fn parsed(ended: &Ended) -> Vec<Map<String, Value>> {
    assert!(ended.err.is_empty(), "{ended:#?}");
    let parse = |line: &String| {
        let Line(fields) = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        for name in ["timestamp", "level", "target", "message"] {
            assert!(fields.get(name).is_some_and(Value::is_string), "no {name}: {line}");
        }
        let nested = fields.values().any(|value| value.is_object() || value.is_array());
        assert!(!nested, "nested: {line}");
        chrono::DateTime::parse_from_rfc3339(fields["timestamp"].as_str().unwrap()).unwrap();
        fields
    };
    ended.out.iter().map(parse).collect()
}

fn of_request<'a>(lines: &'a [Map<String, Value>], id: &str) -> Vec<&'a Map<String, Value>> {
    let requests = lines.iter().filter(|line| line["message"] == "request");
    requests.filter(|line| line["request_id"] == id).collect()
}

fn only<'a>(lines: &'a [Map<String, Value>], id: &str) -> &'a Map<String, Value> {
    let of_request = of_request(lines, id);
    assert_eq!(of_request.len(), 1, "{id}: {of_request:#?}");
    of_request[0]
}

#[tokio::test]
async fn a_request_is_one_line_that_says_what_it_was_and_what_it_cost() {
    let folder = Folder::new();
    let trusting = ("APP_SERVER__TRUSTED_PROXIES", "127.0.0.0/8");
    let (process, url) = folder.serve([JSON, trusting]).await;
    let client = Client::new();
    let answer = client
        .post(format!("{url}/api/v1/plans"))
        .header("content-type", "application/json")
        .header("x-request-id", "create")
        .header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"))
        .body(PLAN)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    let plan: Value = answer.json().await.unwrap();
    let path = format!("/api/v1/plans/{}", plan["id"].as_str().unwrap());

    let mut lengths = Vec::new();
    for (id, path, encoding) in [
        ("first", path.as_str(), "identity"),
        ("again", &path, "identity"),
        ("missing", "/nowhere?page=2", "identity"),
        ("plain", "/openapi.json", "identity"),
        ("gzip", "/openapi.json", "gzip"),
    ] {
        let request = client.get(format!("{url}{path}")).header("x-request-id", id);
        let request = request.header("user-agent", "tests/1").header("accept-encoding", encoding);
        let answer = request.send().await.unwrap();
        lengths.push((id, answer.bytes().await.unwrap().len()));
    }
    for probe in ["live", "ready", "startup"] {
        let answer = reqwest::get(format!("{url}/health/{probe}")).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }

    let lines = parsed(&process.stop().await);
    for (id, length) in &lengths {
        assert_eq!(only(&lines, id)["bytes"], *length, "{id}");
    }
    assert!(lengths[4].1 < lengths[3].1, "gzip makes it smaller: {lengths:?}");

    let first = only(&lines, "first");
    assert_eq!(first["level"], "INFO");
    assert_eq!(first["method"], "GET");
    assert_eq!(first["route"], "/api/v1/plans/{id}");
    assert_eq!(first["path"], path);
    assert_eq!(first["status"], 200);
    assert_eq!(first["client_ip"], "127.0.0.1");
    assert_eq!(first["user_agent"], "tests/1");
    assert_eq!(first["trace_id"].as_str().unwrap().len(), 32);
    assert!(first["duration_ms"].as_f64().unwrap() > 0.0);
    assert!(first["db_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(first["db_queries"], 1);
    assert_eq!(only(&lines, "again")["db_queries"], 0, "it is cached");
    assert_eq!(only(&lines, "create")["trace_id"], TRACE);

    let missing = only(&lines, "missing");
    assert_eq!((&missing["status"], &missing["query"]), (&json!(404), &json!("page=2")));
    assert_eq!(missing["level"], "INFO");
    let requests: BTreeSet<_> =
        lines.iter().filter_map(|line| line.get("path")?.as_str()).collect();
    assert!(!requests.iter().any(|path| path.starts_with("/health")), "{requests:?}");
}

#[tokio::test]
async fn a_client_that_hangs_up_is_a_499() {
    let folder = Folder::new();
    let (mut process, url) = folder.serve([JSON, ("APP_DATABASE__LOCK_TIMEOUT", "10m")]).await;
    let mut database = database(&folder).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut database).await.unwrap();
    let mut post = wire::begin_post(&url, "x-request-id: hung-up\r\n").await;
    // Whole, so that its handler goes on to wait for the lock.
    post.write_all(PLAN.as_bytes()).await.unwrap();
    drop(post);
    process.line("hung-up").await;
    sqlx::query("ROLLBACK").execute(&mut database).await.unwrap();
    database.close().await.unwrap();

    let lines = parsed(&process.stop().await);
    let line = only(&lines, "hung-up");
    assert_eq!((&line["status"], &line["level"]), (&json!(499), &json!("INFO")));
    assert_eq!(line["bytes"], 0);
}

async fn database(folder: &Folder) -> SqliteConnection {
    let url = format!("sqlite://{}", folder.path().join("data/plinth.db").display());
    SqliteConnection::connect(&url).await.unwrap()
}

/// Fails once, and finds the cause in the log, once, under the client's `error_id`.
async fn failed(url: &str, id: &str, status: StatusCode) -> String {
    let request = Client::new().get(format!("{url}/api/v1/plans")).header("x-request-id", id);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), status);
    let problem: Value = answer.json().await.unwrap();
    problem["error_id"].as_str().unwrap().to_owned()
}

fn caused(ended: &Ended, id: &str, error_id: &str, cause: &str) {
    let lines = parsed(ended);
    let with_id = ended.out.iter().filter(|line| line.contains(error_id)).count();
    assert_eq!(with_id, 1, "{ended:#?}");
    let line = only(&lines, id);
    assert_eq!((&line["error_id"], &line["level"]), (&json!(error_id), &json!("ERROR")));
    assert!(line["cause"].as_str().unwrap().contains(cause), "{line:#?}");
}

#[tokio::test]
async fn the_cause_of_a_500_is_logged_once_under_the_clients_error_id() {
    let folder = Folder::new();
    let (process, url) = folder.serve([JSON]).await;
    drop_plans(&folder).await;
    let error_id = failed(&url, "broken", StatusCode::INTERNAL_SERVER_ERROR).await;
    let ended = process.stop().await;
    caused(&ended, "broken", &error_id, "no such table: plans");
    assert_eq!(ended.text().matches("no such table").count(), 1, "{ended:#?}");
}

/// Breaks the database under a running service.
pub async fn drop_plans(folder: &Folder) {
    let mut connection = database(folder).await;
    sqlx::query("DROP TABLE plans").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn a_database_that_is_gone_is_a_503_each_time() {
    let Some(database) = TestDatabase::new(Engine::Postgres).await else { return };
    let folder = Folder::new();
    let variables = [
        JSON,
        ("DATABASE_URL", database.url.as_str()),
        ("APP_DATABASE__ACQUIRE_TIMEOUT", "1s"),
        ("APP_HEALTH__INTERVAL", "50ms"),
    ];
    let (mut process, url) = folder.serve(variables).await;
    let admin = std::env::var("TEST_DATABASE_URL").unwrap();
    let mut admin = PgConnection::connect(&admin).await.unwrap();
    let name = database.url.rsplit_once('/').unwrap().1;
    let drop = format!("DROP DATABASE {name} WITH (FORCE)");
    sqlx::query(sqlx::AssertSqlSafe(drop)).execute(&mut admin).await.unwrap();
    let mut failures = Vec::new();
    for id in ["gone-1", "gone-2", "gone-3"] {
        failures.push((id, failed(&url, id, StatusCode::SERVICE_UNAVAILABLE).await));
    }
    process.line("a dependency is down").await;
    let ready = reqwest::get(format!("{url}/health/ready")).await.unwrap();
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    let live = reqwest::get(format!("{url}/health/live")).await.unwrap();
    assert_eq!(live.status(), StatusCode::OK);

    let create = format!("CREATE DATABASE {name}");
    sqlx::query(sqlx::AssertSqlSafe(create)).execute(&mut admin).await.unwrap();
    process.line("a dependency is back").await;
    let ready = reqwest::get(format!("{url}/health/ready")).await.unwrap();
    assert_eq!(ready.status(), StatusCode::OK);
    let ended = process.stop().await;
    for (id, error_id) in failures {
        caused(&ended, id, &error_id, "");
    }
}

#[tokio::test]
async fn no_secret_reaches_the_log_even_at_debug() {
    let folder = Folder::new();
    let (process, url) = folder.serve([JSON, ("RUST_LOG", "debug")]).await;
    let client = Client::new();
    let made = folder.run(&["key", "create", "--name", "ci", "--scopes", "*"], []).await;
    let key = made.out[0].as_str();
    let plan = PLAN.replace("A plan", CANARY);
    let query = format!(
        "token={CANARY}&api_key={CANARY}&password={CANARY}&X-Amz-Signature={CANARY}&%74oken={CANARY}"
    );
    let mut seen = Vec::new();
    for (id, body) in [("kept", plan.as_str()), ("malformed", &plan[1..]), ("wrong", CANARY)] {
        let request = client.post(format!("{url}/api/v1/plans?{query}"));
        let request = request
            .header("x-request-id", id)
            .header("content-type", "application/json")
            .bearer_auth(key)
            .header("proxy-authorization", format!("Basic {CANARY}"))
            .header("cookie", format!("session={CANARY}"));
        seen.push((id, request.body(body.to_owned()).send().await.unwrap().status()));
    }
    assert_eq!(seen[0].1, StatusCode::CREATED);
    assert!(seen[1..].iter().all(|(_, status)| status.is_client_error()), "{seen:?}");
    let listed = client.get(format!("{url}/api/v1/plans?limit=1")).send().await.unwrap();
    assert!(listed.text().await.unwrap().contains(CANARY));
    for name in ["authorization", "x-api-key"] {
        let refused =
            client.get(format!("{url}/api/v1/me")).header(name, format!("Bearer {CANARY}"));
        assert_eq!(refused.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    }
    drop_plans(&folder).await;
    let broken = client.post(format!("{url}/api/v1/plans")).header("x-request-id", "broken");
    let broken = broken.header("content-type", "application/json").body(plan.clone());
    assert_eq!(broken.send().await.unwrap().status(), StatusCode::INTERNAL_SERVER_ERROR);

    let ended = process.stop().await;
    let lines = parsed(&ended);
    let leaks: Vec<_> =
        ended.out.iter().filter(|l| l.contains(CANARY) || l.contains(key)).collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
    assert!(lines.iter().any(|line| line["level"] == "DEBUG"), "debug was on");
    for (id, status) in seen {
        let line = only(&lines, id);
        assert_eq!(line["status"], status.as_u16());
        assert_eq!(line["query"].as_str().unwrap().matches("[redacted]").count(), 5, "{line:#?}");
    }
    assert!(only(&lines, "broken")["cause"].as_str().unwrap().contains("no such table"));
}

/// Beside the access log's line, one of the audit log's; and the access log names the principal.
#[tokio::test]
async fn who_is_turned_away_is_in_the_audit_log() {
    let folder = Folder::new();
    let (process, url) = folder.serve([JSON, ("APP_AUTH__MODE", "required")]).await;
    let create = ["key", "create", "--name", "ci", "--scopes", "plans:read"];
    let key = folder.run(&create, []).await.out[0].clone();
    let ask = |id: &'static str| {
        Client::new().post(format!("{url}/api/v1/plans")).header("x-request-id", id)
    };
    assert_eq!(ask("unknown").send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let forbidden = ask("forbidden").bearer_auth(&key).body(PLAN);
    assert_eq!(forbidden.send().await.unwrap().status(), StatusCode::FORBIDDEN);

    let ended = process.stop().await;
    let lines = parsed(&ended);
    let of = |id: &str, target: &str| {
        let of_both = |line: &&Map<String, Value>| {
            line.get("request_id").is_some_and(|given| given == id) && line["target"] == target
        };
        let found: Vec<_> = lines.iter().filter(of_both).collect();
        assert_eq!(found.len(), 1, "{id} {target}: {lines:#?}");
        found[0].clone()
    };
    let unknown = of("unknown", "plinth::audit");
    assert_eq!(
        (&unknown["message"], &unknown["client_ip"]),
        (&json!("denied"), &json!("127.0.0.1"))
    );
    assert_eq!((&unknown["method"], &unknown["route"]), (&json!("POST"), &json!("/api/v1/plans")));
    assert!(unknown["why"].as_str().unwrap().starts_with("this needs an API key"), "{unknown:#?}");
    let forbidden = of("forbidden", "plinth::audit");
    assert_eq!(forbidden["principal"], "key:ci");
    assert_eq!(forbidden["why"], "this needs the scope plans:write");
    assert_eq!(of("forbidden", "plinth::access")["principal"], "key:ci");
}

/// The one warning of a service that lets anyone in.
#[tokio::test]
async fn an_open_service_says_so_at_its_start() {
    let folder = Folder::new();
    for (mode, said) in [("open", 1), ("required", 0)] {
        let (process, _) = folder.serve([JSON, ("APP_AUTH__MODE", mode)]).await;
        let ended = process.stop().await;
        let lines = parsed(&ended);
        let warned = lines.iter().filter(|line| line["level"] == "WARN");
        let warned =
            warned.filter(|line| line["message"].as_str().unwrap().contains("anyone may call"));
        assert_eq!(warned.count(), said, "{mode}: {lines:#?}");
    }
}

#[tokio::test]
async fn what_a_client_writes_stays_inside_its_line() {
    let folder = Folder::new();
    let (process, url) = folder.serve([JSON]).await;
    let ids = ["quote\"},{\"level\":\"ERROR\",\"x\":\"", "back\\\\slash\\", "{\"nested\":{}}"];
    for id in ids {
        for (target, agent) in [
            ("/%0a%0d%22%7d%7b%00", &b"\"},{\"level\":\"FATAL\\"[..]),
            ("/a\"b{}?x=%0a%22y", b"\xff\xfe\xc3\x28 invalid UTF-8"),
            ("/%1b%5b31m?%1b[31m", b"\xc2\x9b31m red, \xe2\x80\xa8 next line, \ttab"),
        ] {
            let mut request = format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
            request.push_str(&format!("x-request-id: {id}\r\nuser-agent: "));
            let mut request = request.into_bytes();
            request.extend_from_slice(agent);
            request.extend_from_slice(b"\r\n\r\n");
            let answer = wire::exchange(&url, &request).await;
            assert!(answer.starts_with("HTTP/1.1 404 "), "{target}: {answer}");
        }
    }
    // Not a visible ASCII id: another is made.
    let answer = wire::exchange(
        &url,
        b"GET /x HTTP/1.1\r\nhost: x\r\nx-request-id: a b\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.contains("\r\nx-request-id: ") && !answer.contains("a b"), "{answer}");

    let lines = parsed(&process.stop().await);
    for id in ids {
        assert_eq!(of_request(&lines, id).len(), 3, "{id}");
    }
    assert_eq!(lines.iter().filter(|line| line["message"] == "request").count(), 10);
}
