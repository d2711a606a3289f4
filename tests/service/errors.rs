//! Every way to fail, on every route there is: the answer is one problem document.
//!
//! The routes come from the API document, so a new one is walked without a word here. Of a route
//! below an id this asks that its parent can be posted to, which is how its rows come to be.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use bytes::Bytes;
use bytesize::ByteSize;
use chrono::DateTime;
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use plinth::config::Config;
use plinth::db::Db;
use plinth::error::Result;
use plinth::middleware;
use plinth::on;
use reqwest::header::{ALLOW, CONTENT_TYPE, HeaderMap, IF_MATCH, ORIGIN, RETRY_AFTER};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::both_engines;
use crate::http::assert_secure;
use crate::support::{Engine, Served, TestApp, becomes, config};

const BROWSER: &str = "https://app.example.com";

/// Words that would tell a client of a 5xx what lies behind it.
const CAUSES: [&str; 12] = [
    "sqlx",
    "sqlite",
    "postgres",
    "redis",
    "connection",
    "pool",
    "select",
    "table",
    "panicked",
    "/src/",
    ".rs",
    "hunter2",
];

const MEMBERS: [&str; 10] = [
    "type",
    "title",
    "status",
    "detail",
    "instance",
    "error_id",
    "code",
    "message",
    "request_id",
    "timestamp",
];

/// Reads an answer that must be a problem document with this status, and holds it to all that
/// every one of them promises.
pub async fn problem(answer: Response, status: u16) -> Value {
    let (given, path) = (answer.status(), answer.url().path().to_owned());
    let headers = answer.headers().clone();
    let text = answer.text().await.unwrap();
    assert_eq!(given.as_u16(), status, "{path}: {text}");
    assert_eq!(headers[CONTENT_TYPE], "application/problem+json", "{path}: {text}");
    assert_secure(&headers);

    let document: Map<String, Value> = serde_json::from_str(&text).unwrap();
    let members: BTreeSet<&str> = document.keys().map(String::as_str).collect();
    let expected = MEMBERS.into_iter().chain(document.contains_key("errors").then_some("errors"));
    assert_eq!(members, expected.collect(), "{text}");
    assert_eq!(document["status"], status);
    assert_eq!(document["title"], given.canonical_reason().unwrap());
    assert_eq!(document["instance"], path);
    assert_eq!(document["message"], document["detail"]);
    assert_eq!(document["request_id"], headers["x-request-id"].to_str().unwrap());
    document["error_id"].as_str().unwrap().parse::<Uuid>().unwrap();
    DateTime::parse_from_rfc3339(document["timestamp"].as_str().unwrap()).unwrap();

    match document["code"].as_str().unwrap() {
        "MALFORMED_REQUEST" | "VALIDATION_FAILED" => assert_names_faults(&document),
        code => assert!(!code.is_empty() && !document.contains_key("errors"), "{text}"),
    }
    if given.is_server_error() {
        assert_says_nothing_of_its_cause(document.clone());
    }
    document.into()
}

/// The pointer and the code of each fault.
pub fn faults(problem: &Value) -> Vec<(&str, &str)> {
    fn text(value: &Value) -> &str {
        value.as_str().unwrap()
    }
    let errors = problem["errors"].as_array().unwrap();
    errors.iter().map(|fault| (text(&fault["pointer"]), text(&fault["code"]))).collect()
}

fn assert_names_faults(document: &Map<String, Value>) {
    let errors = document["errors"].as_array().unwrap();
    assert!(!errors.is_empty());
    for fault in errors {
        let members: Vec<&str> = fault.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(members, ["code", "detail", "pointer"]);
        assert!(fault["pointer"].is_string() && fault["code"] != "" && fault["detail"] != "");
    }
}

fn assert_says_nothing_of_its_cause(mut document: Map<String, Value>) {
    // The client's own words.
    document.remove("instance");
    document.remove("request_id");
    let said = Value::from(document).to_string().to_lowercase();
    for word in CAUSES {
        assert!(!said.contains(word), "tells of {word}: {said}");
    }
}

/// One operation of the API document, and how to ask for it.
struct Operation {
    method: Method,
    path: String,
    spec: Value,
}

/// An operation, and a path to ask it at.
type Place<'a> = (&'a Operation, String);

/// Every operation of a running application, asked for from a page of an allowed origin.
struct Walk<'a> {
    app: &'a TestApp,
    document: Value,
    operations: Vec<Operation>,
}

impl Operation {
    fn parameters(&self, place: &str) -> impl Iterator<Item = &str> {
        let all = self.spec["parameters"].as_array().into_iter().flatten();
        all.filter(move |parameter| parameter["in"] == place)
            .map(|parameter| parameter["name"].as_str().unwrap())
    }

    /// The media type of its body, and the body's schema.
    fn body(&self) -> Option<(&str, &Value)> {
        let content = self.spec["requestBody"]["content"].as_object()?;
        content.iter().next().map(|(kind, media)| (kind.as_str(), &media["schema"]))
    }

    fn has_id(&self) -> bool {
        self.parameters("path").next().is_some()
    }

    fn requires_if_match(&self) -> bool {
        let mut all = self.spec["parameters"].as_array().into_iter().flatten();
        all.any(|parameter| parameter["name"] == "If-Match" && parameter["required"] == true)
    }

    /// Probes are behind none of the limits.
    fn is_probe(&self) -> bool {
        self.path.starts_with("/health/")
    }

    /// Probes, the report, and who the caller is need nothing but the process.
    fn needs_the_database(&self) -> bool {
        !self.path.starts_with("/health") && self.path != "/api/v1/me"
    }

    /// Its path with every parameter replaced.
    fn path_with(&self, id: &str) -> String {
        self.parameters("path")
            .fold(self.path.clone(), |path, name| path.replace(&format!("{{{name}}}"), id))
    }
}

impl<'a> Walk<'a> {
    async fn of(app: &'a TestApp) -> Self {
        let document: Value = app.get("/openapi.json").send().await.unwrap().json().await.unwrap();
        let paths = document["paths"].as_object().unwrap();
        let operations = paths.iter().flat_map(|(path, methods)| {
            methods.as_object().unwrap().iter().map(move |(method, spec)| Operation {
                method: method.to_uppercase().parse().unwrap(),
                path: path.clone(),
                spec: spec.clone(),
            })
        });
        let operations = operations.collect();
        Self { app, document, operations }
    }

    /// Those that `fits`; that there are none would be a test of nothing.
    fn those(&self, fits: impl Fn(&Operation) -> bool) -> Vec<&Operation> {
        let found: Vec<_> = self.operations.iter().filter(|operation| fits(operation)).collect();
        assert!(!found.is_empty());
        found
    }

    fn with_body(&self) -> Vec<&Operation> {
        self.those(|operation| operation.body().is_some())
    }

    /// The request that would succeed at `path`, less its body.
    fn ask(&self, operation: &Operation, path: &str) -> RequestBuilder {
        let request = self.app.request(operation.method.clone(), path);
        request.header(ORIGIN, BROWSER).header(IF_MATCH, "*")
    }

    fn ask_with(&self, operation: &Operation, path: &str, body: impl ToString) -> RequestBuilder {
        let (kind, _) = operation.body().unwrap();
        self.ask(operation, path).header(CONTENT_TYPE, kind).body(body.to_string())
    }

    fn ask_rightly(&self, operation: &Operation, path: &str) -> RequestBuilder {
        match operation.body() {
            Some((_, schema)) => self.ask_with(operation, path, self.example(schema)),
            None => self.ask(operation, path),
        }
    }

    /// A path of the operation's at which there is something: below an id, what is posted to its
    /// parent.
    async fn existing(&self, operation: &Operation) -> String {
        let Some((parent, _)) = operation.path.split_once("/{") else {
            return operation.path.clone();
        };
        let create = self.those(|other| other.path == parent && other.method == Method::POST)[0];
        let created = self.ask_rightly(create, parent).send().await.unwrap();
        assert_eq!(created.status(), 201, "{parent}");
        created.headers()["location"].to_str().unwrap().to_owned()
    }

    /// Those that `fits`, each with a path at which there is something.
    async fn places(&self, fits: impl Fn(&Operation) -> bool) -> Vec<Place<'_>> {
        let those = stream::iter(self.those(fits));
        those.then(async |operation| (operation, self.existing(operation).await)).collect().await
    }

    fn resolve<'s>(&'s self, schema: &'s Value) -> &'s Value {
        match schema["$ref"].as_str() {
            Some(reference) => self.document.pointer(&reference[1..]).unwrap(),
            None => schema,
        }
    }

    /// What the document gives as an example of a schema.
    fn example(&self, schema: &Value) -> Value {
        let schema = self.resolve(schema);
        if let Some(properties) = schema["properties"].as_object() {
            let example = |(name, schema): (&String, _)| (name.clone(), self.example(schema));
            return properties.iter().map(example).collect();
        }
        let known = [&schema["example"], &schema["examples"][0], &schema["enum"][0]];
        if let Some(example) = known.into_iter().find(|example| !example.is_null()) {
            return example.clone();
        }
        match schema["type"].as_str() {
            Some("boolean") => true.into(),
            Some("integer" | "number") => 1.into(),
            _ => panic!("give the member an example, `#[schema(example = ...)]`: {schema}"),
        }
    }

    /// The example of an operation's body, and the names of its members.
    fn members(&self, operation: &Operation) -> (Map<String, Value>, Vec<String>) {
        let Value::Object(example) = self.example(operation.body().unwrap().1) else { panic!() };
        let names = example.keys().cloned().collect();
        (example, names)
    }

    /// Sends what must fail so, and returns the problem.
    async fn fails(&self, request: RequestBuilder, status: u16) -> Value {
        let answer = request.send().await.unwrap();
        assert_readable_by_a_browser(answer.headers());
        problem(answer, status).await
    }
}

fn assert_readable_by_a_browser(headers: &HeaderMap) {
    assert_eq!(headers["access-control-allow-origin"], BROWSER);
    let exposed = headers["access-control-expose-headers"].to_str().unwrap();
    assert!(exposed.contains("x-request-id"), "{exposed}");
}

fn open_to_a_browser(config: &mut Config) {
    config.cors.allowed_origins = vec![BROWSER.into()];
    config.server.body_limit = ByteSize::kib(4);
}

fn impatient_with_bodies(config: &mut Config) {
    open_to_a_browser(config);
    config.server.body_idle_timeout = Duration::from_millis(300);
}

fn of_one_connection(config: &mut Config) {
    open_to_a_browser(config);
    config.database.max_connections = 1;
    config.database.acquire_timeout = Duration::from_secs(1);
}

/// A body whose length nobody says beforehand, in pieces; it never ends unless `ends`.
fn impatient_with_slow_bodies(config: &mut Config) {
    open_to_a_browser(config);
    config.server.body_timeout = Duration::from_millis(300);
}

/// Never silent for long, and never at its end.
fn dripping() -> reqwest::Body {
    let drops = stream::repeat(()).then(async |()| {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok::<_, Infallible>(Frame::data(Bytes::from_static(b" ")))
    });
    reqwest::Body::wrap(StreamBody::new(Box::pin(drops)))
}

fn chunked(text: String, ends: bool) -> reqwest::Body {
    let pieces = text.into_bytes().chunks(1000).map(Bytes::copy_from_slice).collect::<Vec<_>>();
    let pieces =
        stream::iter(pieces.into_iter().map(|piece| Ok::<_, Infallible>(Frame::data(piece))));
    if ends {
        reqwest::Body::wrap(StreamBody::new(pieces))
    } else {
        reqwest::Body::wrap(StreamBody::new(pieces.chain(stream::pending())))
    }
}

both_engines! {
    async fn what_the_document_shows_as_an_example_works(app with open_to_a_browser) {
        let walk = Walk::of(&app).await;
        for operation in &walk.operations {
            let path = walk.existing(operation).await;
            let answer = walk.ask_rightly(operation, &path).send().await.unwrap();
            assert!(answer.status().is_success(), "{} {path}", operation.method);
            assert_readable_by_a_browser(answer.headers());
            assert_secure(answer.headers());
        }
    }

    async fn an_id_that_does_not_fit(app with open_to_a_browser) {
        let walk = Walk::of(&app).await;
        for operation in walk.those(Operation::has_id) {
            for id in ["not-an-id", "%00", "%ff"] {
                let request = walk.ask_rightly(operation, &operation.path_with(id));
                let problem = walk.fails(request, 400).await;
                let name = operation.parameters("path").next().unwrap();
                assert_eq!(faults(&problem), [(&*format!("path/{name}"), "INVALID_VALUE")]);
            }
        }
    }

    async fn an_id_of_nothing(app with open_to_a_browser) {
        let walk = Walk::of(&app).await;
        for operation in walk.those(Operation::has_id) {
            let path = operation.path_with(&Uuid::now_v7().to_string());
            let problem = walk.fails(walk.ask_rightly(operation, &path), 404).await;
            assert_eq!(problem["code"], "NOT_FOUND");
        }
    }

    async fn a_query_that_does_not_fit(app with open_to_a_browser) {
        let walk = Walk::of(&app).await;
        for operation in walk.those(|operation| operation.parameters("query").next().is_some()) {
            let path = walk.existing(operation).await;
            for name in operation.parameters("query") {
                let nul = walk.ask_rightly(operation, &format!("{path}?{name}=%00"));
                let pointer = format!("query/{name}");
                assert_eq!(faults(&walk.fails(nul, 400).await)[0].0, pointer);
                let twice = walk.ask_rightly(operation, &format!("{path}?{name}=1&{name}=1"));
                assert_eq!(faults(&walk.fails(twice, 400).await)[0].0, pointer);
            }
            let unknown = walk.fails(walk.ask(operation, &format!("{path}?fo%2Fo=1")), 400).await;
            assert_eq!(faults(&unknown), [("query/fo~1o", "UNKNOWN_FIELD")]);
        }
    }

    async fn a_header_that_must_be_there(app with open_to_a_browser) {
        let walk = Walk::of(&app).await;
        for operation in walk.those(Operation::requires_if_match) {
            let path = walk.existing(operation).await;
            let mut request = walk.ask_rightly(operation, &path).build().unwrap();
            request.headers_mut().remove(IF_MATCH);
            let request = RequestBuilder::from_parts(Client::new(), request);
            assert_eq!(walk.fails(request, 428).await["code"], "PRECONDITION_REQUIRED");
        }
    }

    async fn a_body_that_is_not_json(app with open_to_a_browser) {
        let walk = Walk::of(&app).await;
        for operation in walk.with_body() {
            let path = walk.existing(operation).await;
            for text in ["", "{", "nonsense", "{}}", "{'a': 1}", "\u{feff}{}"] {
                let problem = walk.fails(walk.ask_with(operation, &path, text), 400).await;
                assert_eq!(faults(&problem), [("", "INVALID_JSON")], "{text}");
            }
            let not_text = walk.ask_with(operation, &path, "").body(b"{\"\xff\": 1}".to_vec());
            assert_eq!(faults(&walk.fails(not_text, 400).await), [("", "INVALID_JSON")]);
        }
    }

    async fn a_body_that_is_no_object(app with open_to_a_browser) {
        let walk = Walk::of(&app).await;
        for operation in walk.with_body() {
            let path = walk.existing(operation).await;
            for text in ["null", "[]", "3", "\"text\""] {
                let problem = walk.fails(walk.ask_with(operation, &path, text), 422).await;
                assert_eq!(faults(&problem)[0].0, "", "{text}");
            }
        }
    }

    async fn a_member_of_the_wrong_type(app with open_to_a_browser) {
        let walk = Walk::of(&app).await;
        for operation in walk.with_body() {
            let path = walk.existing(operation).await;
            let (example, names) = walk.members(operation);
            for name in names {
                let mut body = example.clone();
                let wrong = if body[&name].is_string() { json!(3) } else { json!("three") };
                body.insert(name.clone(), wrong);
                let request = walk.ask_with(operation, &path, Value::from(body));
                let problem = walk.fails(request, 422).await;
                assert_eq!(faults(&problem), [(&*format!("/{name}"), "INVALID_TYPE")]);
            }
        }
    }

    async fn a_member_that_is_missing(app with open_to_a_browser) {
        let walk = Walk::of(&app).await;
        let required = |operation: &Operation| {
            let schema = walk.resolve(operation.body()?.1);
            schema["required"].as_array().cloned()
        };
        for operation in walk.those(|operation| required(operation).is_some()) {
            let path = walk.existing(operation).await;
            for name in required(operation).unwrap() {
                let name = name.as_str().unwrap();
                let (mut body, _) = walk.members(operation);
                body.remove(name);
                let request = walk.ask_with(operation, &path, Value::from(body));
                let problem = walk.fails(request, 422).await;
                assert_eq!(faults(&problem), [(&*format!("/{name}"), "MISSING_FIELD")]);
            }
        }
    }

    async fn a_member_that_is_unknown(app with open_to_a_browser) {
        let walk = Walk::of(&app).await;
        for operation in walk.with_body() {
            let path = walk.existing(operation).await;
            let (mut body, _) = walk.members(operation);
            body.insert("sur/prise".into(), json!(1));
            let request = walk.ask_with(operation, &path, Value::from(body));
            let problem = walk.fails(request, 422).await;
            assert_eq!(faults(&problem), [("/sur~1prise", "UNKNOWN_FIELD")]);
        }
    }

    async fn a_member_that_is_there_twice(app with open_to_a_browser) {
        let walk = Walk::of(&app).await;
        // Of a patch's members the last counts, as RFC 8259 lets it.
        for operation in walk.those(|it| it.body().is_some() && it.method != Method::PATCH) {
            let path = walk.existing(operation).await;
            let (body, names) = walk.members(operation);
            let text = Value::from(body.clone()).to_string();
            let again = format!("{{\"{0}\": {1}, {2}", names[0], body[&names[0]], &text[1..]);
            let problem = walk.fails(walk.ask_with(operation, &path, again), 422).await;
            assert_eq!(faults(&problem), [(&*format!("/{}", names[0]), "DUPLICATE_FIELD")]);
        }
    }

    async fn a_media_type_that_is_wrong_or_missing(app with open_to_a_browser) {
        let walk = Walk::of(&app).await;
        for operation in walk.with_body() {
            let path = walk.existing(operation).await;
            let body = walk.example(operation.body().unwrap().1).to_string();
            let request = walk.ask(operation, &path).body(body);
            let wrong = request.try_clone().unwrap().header(CONTENT_TYPE, "text/plain");
            for request in [request, wrong] {
                let problem = walk.fails(request, 415).await;
                assert_eq!(problem["code"], "UNSUPPORTED_MEDIA_TYPE");
            }
        }
    }

    async fn a_body_that_is_too_large(app with open_to_a_browser) {
        let walk = Walk::of(&app).await;
        let limit = usize::try_from(app.config.server.body_limit.as_u64()).unwrap();
        let body = json!({"name": "x".repeat(limit)}).to_string();
        for operation in walk.those(|it| !it.is_probe()) {
            let path = walk.existing(operation).await;
            let announced = walk.ask(operation, &path).body(body.clone());
            assert_eq!(walk.fails(announced, 413).await["code"], "BODY_TOO_LARGE");
        }
        for operation in walk.with_body() {
            let path = walk.existing(operation).await;
            let unannounced = walk.ask_with(operation, &path, "").body(chunked(body.clone(), true));
            assert_eq!(walk.fails(unannounced, 413).await["code"], "BODY_TOO_LARGE");
        }
    }

    async fn a_body_that_stalls(app with impatient_with_bodies) {
        let walk = Walk::of(&app).await;
        for operation in walk.with_body() {
            let path = walk.existing(operation).await;
            let stalled = walk.ask_with(operation, &path, "").body(chunked("{".into(), false));
            assert_eq!(walk.fails(stalled, 408).await["code"], "BODY_TIMEOUT");
        }
    }

    async fn a_body_that_drips(app with impatient_with_slow_bodies) {
        let walk = Walk::of(&app).await;
        for operation in walk.with_body() {
            let path = walk.existing(operation).await;
            let slow = walk.ask_with(operation, &path, "").body(dripping());
            assert_eq!(walk.fails(slow, 408).await["code"], "BODY_TIMEOUT");
        }
    }

    async fn a_method_that_the_route_does_not_answer(app with open_to_a_browser) {
        let walk = Walk::of(&app).await;
        let all = ["GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"];
        for Operation { path, .. } in &walk.operations {
            let same = walk.those(|other| other.path == *path);
            let mut answered: BTreeSet<_> = same.iter().map(|it| it.method.as_str()).collect();
            if answered.contains("GET") {
                answered.insert("HEAD");
            }
            let url = same[0].path_with("not-an-id");
            for method in all.into_iter().filter(|method| !answered.contains(method)) {
                let request = walk.app.request(method.parse().unwrap(), &url);
                let answer = request.header(ORIGIN, BROWSER).send().await.unwrap();
                let allowed = answer.headers()[ALLOW].to_str().unwrap().to_owned();
                assert_eq!(allowed.split(',').map(str::trim).collect::<BTreeSet<_>>(), answered);
                assert_eq!(problem(answer, 405).await["code"], "METHOD_NOT_ALLOWED");
            }
        }
    }

    async fn a_route_that_there_is_not(app with open_to_a_browser) {
        let walk = Walk::of(&app).await;
        let inside = walk.operations.iter().map(|operation| operation.path_with("x") + "/no/such");
        for path in inside.chain(["/", "/nope", "/api", "/api/v1/", "/%00"].map(Into::into)) {
            for method in [Method::GET, Method::POST] {
                let request = walk.app.request(method, &path).header(ORIGIN, BROWSER);
                assert_eq!(walk.fails(request, 404).await["code"], "NOT_FOUND");
            }
        }
    }

    async fn a_pool_with_nothing_free(app with of_one_connection) {
        let walk = Walk::of(&app).await;
        // SQLite's readers are beside its one writer.
        let sqlite = app.state.db.engine() == "sqlite";
        let waits = |it: &Operation| !sqlite || it.method != Method::GET;
        let concerned = walk.places(|it| it.needs_the_database() && waits(it)).await;
        let held = app.state.db.begin().await.unwrap();
        join_all(concerned.iter().map(|place| unavailable(&walk, place))).await;
        drop(held);
        for place in &concerned {
            becomes_well(&walk, place).await;
        }
    }

    async fn a_query_that_goes_wrong(app) {
        let router = Router::new()
            .route("/bad-query", get(bad_query))
            .route("/no-row", get(no_row))
            .route("/one-twice", get(one_twice))
            .route("/no-connection", get(no_connection));
        let served = failing(router, app.state.db.clone());
        assert_eq!(fails(&served, "/bad-query", 500).await["code"], "INTERNAL_ERROR");
        assert_eq!(fails(&served, "/no-row", 404).await["code"], "NOT_FOUND");
        assert_eq!(fails(&served, "/one-twice", 409).await["code"], "CONFLICT");
        assert_eq!(fails(&served, "/no-connection", 503).await["code"], "UNAVAILABLE");
    }
}

async fn unavailable(walk: &Walk<'_>, (operation, path): &Place<'_>) {
    let answer = walk.ask_rightly(operation, path).send().await.unwrap();
    assert_readable_by_a_browser(answer.headers());
    assert_eq!(answer.headers()[RETRY_AFTER], "1");
    assert_eq!(problem(answer, 503).await["code"], "UNAVAILABLE");
}

/// Succeeds again by itself.
async fn becomes_well(walk: &Walk<'_>, (operation, path): &Place<'_>) {
    let success = operation.spec["responses"].as_object().unwrap().keys().next().unwrap();
    becomes(success.parse().unwrap(), || walk.ask_rightly(operation, path)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_down_and_comes_back() {
    let change = |config: &mut Config| {
        open_to_a_browser(config);
        config.health.interval = Duration::from_millis(50);
    };
    let Some(app) = TestApp::start_with(Engine::Postgres, change).await else { return };
    let walk = Walk::of(&app).await;
    let concerned = walk.places(Operation::needs_the_database).await;

    app.database.close().await;
    for place in &concerned {
        unavailable(&walk, place).await;
    }
    becomes(503, || app.get("/health/ready")).await;

    app.database.reopen().await;
    becomes(200, || app.get("/health/ready")).await;
    for place in &concerned {
        becomes_well(&walk, place).await;
    }
}

/// Handlers that fail as none of the service's own should, behind the layers they all have.
fn failing<S: Clone + Send + Sync + 'static>(router: Router<S>, state: S) -> Served {
    failing_within(Duration::from_secs(60), router, state)
}

fn failing_within<S>(request_timeout: Duration, router: Router<S>, state: S) -> Served
where
    S: Clone + Send + Sync + 'static,
{
    let mut config = config("sqlite://never-opened");
    config.server.request_timeout = request_timeout;
    open_to_a_browser(&mut config);
    let limited = middleware::limit(router.with_state(state), &config, None);
    Served::start(middleware::wrap(limited, &config), &config)
}

async fn fails(served: &Served, path: &str, status: u16) -> Value {
    let request = Client::new().get(format!("{}{path}", served.url)).header(ORIGIN, BROWSER);
    let answer = request.send().await.unwrap();
    assert_readable_by_a_browser(answer.headers());
    problem(answer, status).await
}

#[tokio::test]
async fn a_handler_that_panics() {
    async fn panics() {
        panic!("hunter2");
    }
    async fn panics_later() {
        tokio::task::yield_now().await;
        std::panic::panic_any(7);
    }
    let router = Router::new().route("/now", get(panics)).route("/later", get(panics_later));
    let served = failing(router, ());
    for path in ["/now", "/later", "/now"] {
        assert_eq!(fails(&served, path, 500).await["code"], "INTERNAL_ERROR");
    }
}

#[tokio::test]
async fn a_handler_that_takes_too_long() {
    let router = Router::new().route("/", get(std::future::pending::<()>));
    let served = failing_within(Duration::from_millis(100), router, ());
    assert_eq!(fails(&served, "/", 504).await["code"], "TIMEOUT");
}

#[tokio::test]
async fn a_handler_that_answers_a_bare_status() {
    let router = Router::new()
        .route("/teapot", get(async || reqwest::StatusCode::IM_A_TEAPOT))
        .route("/text", get(async || (reqwest::StatusCode::BAD_GATEWAY, "hunter2 said no")));
    let served = failing(router, ());
    assert_eq!(fails(&served, "/teapot", 418).await["code"], "I_M_A_TEAPOT");
    assert_eq!(fails(&served, "/text", 502).await["code"], "BAD_GATEWAY");
}

/// What a database says when a query goes wrong.
async fn bad_query(State(db): State<Db>) -> Result<()> {
    let query = on!(db.writer(), |conn| sqlx::query("SELECT hunter2 FROM hunter2")
        .execute(conn)
        .await
        .map(drop));
    Ok(query?)
}

async fn no_row(State(db): State<Db>) -> Result<()> {
    let none = on!(db.writer(), |conn| sqlx::query("SELECT id FROM plans")
        .fetch_one(conn)
        .await
        .map(drop));
    Ok(none?)
}

async fn one_twice(State(db): State<Db>) -> Result<()> {
    for statement in ["CREATE TABLE hunter2 (id BIGINT PRIMARY KEY)", INSERT, INSERT] {
        on!(db.writer(), |conn| sqlx::query(statement).execute(conn).await.map(drop))?;
    }
    Ok(())
}

const INSERT: &str = "INSERT INTO hunter2 VALUES (1)";

async fn no_connection() -> Result<()> {
    Err(sqlx::Error::Io(std::io::Error::other("hunter2")).into())
}
