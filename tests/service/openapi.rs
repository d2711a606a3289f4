//! The API document: true, whole, and fit for who generates a client from it.

use std::collections::BTreeSet;

use reqwest::header::{CONTENT_TYPE, LOCATION};
use serde_json::{Map, Value};

use crate::support::{Engine, TestApp};

const CHECKED_IN: &str = include_str!("../../openapi.json");

fn document() -> Value {
    serde_json::to_value(plinth::app::openapi()).unwrap()
}

/// Every operation, by method and path.
fn operations(document: &Value) -> Vec<(String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    let mut all = Vec::new();
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().unwrap() {
            all.push((format!("{} {path}", method.to_uppercase()), operation));
        }
    }
    assert!(!all.is_empty());
    all
}

fn responses(operation: &Value) -> &Map<String, Value> {
    operation["responses"].as_object().unwrap()
}

fn is_error(status: &str) -> bool {
    status.starts_with(['4', '5'])
}

/// Every value under a key of this name, however deep.
fn all_under<'v>(value: &'v Value, name: &str) -> Vec<&'v Value> {
    let below = |values: Vec<&'v Value>| values.into_iter().flat_map(|v| all_under(v, name));
    match value {
        Value::Object(members) => {
            members.get(name).into_iter().chain(below(members.values().collect())).collect()
        }
        Value::Array(items) => below(items.iter().collect()).collect(),
        _ => Vec::new(),
    }
}

fn resolve<'d>(document: &'d Value, reference: &str) -> &'d Value {
    let found = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
    found.unwrap_or_else(|| panic!("{reference} leads nowhere"))
}

/// Whether a schema, or what it refers to, holds an example.
fn has_example(document: &Value, schema: &Value) -> bool {
    ["example", "examples"].iter().any(|name| !all_under(schema, name).is_empty())
        || all_under(schema, "$ref")
            .into_iter()
            .any(|reference| has_example(document, resolve(document, reference.as_str().unwrap())))
}

#[test]
fn the_one_checked_in_is_true() {
    let checked_in: Value = serde_json::from_str(CHECKED_IN).unwrap();
    assert!(checked_in == document(), "openapi.json is out of date: run `make openapi`");
}

#[tokio::test]
async fn the_one_served_is_the_same() {
    let app = TestApp::start(Engine::Sqlite).await.unwrap();
    let answer = app.get("/openapi.json").send().await.unwrap();
    assert_eq!(answer.headers()[CONTENT_TYPE], "application/json");
    assert!(answer.json::<Value>().await.unwrap() == document());
}

#[tokio::test]
async fn it_names_where_the_service_is() {
    let public = |config: &mut plinth::config::Config| {
        config.server.public_url = Some("https://x.example".into());
    };
    let app = TestApp::start_with(Engine::Sqlite, public).await.unwrap();
    let document: Value = app.get("/openapi.json").send().await.unwrap().json().await.unwrap();
    assert_eq!(document["servers"][0]["url"], "https://x.example");
}

#[test]
fn it_is_of_version_3_1() {
    let document = document();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    for member in ["title", "version", "description"] {
        assert_ne!(document["info"][member].as_str().unwrap(), "");
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let document = document();
    let references = all_under(&document, "$ref");
    assert!(!references.is_empty());
    for reference in references {
        resolve(&document, reference.as_str().unwrap());
    }
}

#[test]
fn operations_and_schemas_have_names_that_generated_clients_can_use() {
    let document = document();
    let operations = operations(&document);
    let ids: BTreeSet<_> = operations
        .iter()
        .map(|(_, operation)| operation["operationId"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), operations.len(), "an operationId is used twice: {ids:?}");
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{name}");
    }
}

#[test]
fn every_operation_has_examples() {
    let document = document();
    for (name, operation) in operations(&document) {
        let successes = responses(operation).iter().filter(|(status, _)| !is_error(status));
        let bodies = successes.map(|(_, response)| response).chain([&operation["requestBody"]]);
        for body in bodies.flat_map(|body| body["content"].as_object().into_iter().flatten()) {
            assert!(has_example(&document, body.1), "{name}: {} has no example", body.0);
        }
    }
}

#[test]
fn every_operation_says_how_it_may_fail() {
    let document = document();
    for (name, operation) in operations(&document) {
        let mut expected = vec!["500", "503", "504"];
        if !operation["requestBody"].is_null() {
            expected.extend(["400", "408", "413", "415", "422"]);
        }
        if name.contains('{') {
            expected.extend(["400", "404"]);
        }
        for status in expected {
            assert!(responses(operation).contains_key(status), "{name} does not document {status}");
        }
    }
}

#[test]
fn every_failure_is_a_problem_document() {
    let document = document();
    for (name, operation) in operations(&document) {
        for (status, response) in responses(operation).iter().filter(|(status, _)| is_error(status))
        {
            // A probe's 503 is its report.
            if name.starts_with("GET /health/")
                && !response["content"]["application/json"].is_null()
            {
                continue;
            }
            let schema = &response["content"]["application/problem+json"]["schema"];
            assert_eq!(schema["$ref"], "#/components/schemas/Problem", "{name} {status}");
            let retry_after = response["headers"].get("Retry-After").is_some();
            assert_eq!(retry_after, matches!(&**status, "429" | "503"), "{name} {status}");
        }
    }
}

#[test]
fn every_answer_is_described_and_names_its_request() {
    let document = document();
    for (name, operation) in operations(&document) {
        for (status, response) in responses(operation) {
            assert!(response["headers"]["X-Request-Id"].is_object(), "{name} {status}");
            let description = response["description"].as_str().unwrap_or_default();
            assert_ne!(description, "", "{name} {status}: OpenAPI requires a description");
        }
    }
}

/// What a page loads: every `src` and `href`.
fn loaded(page: &str) -> Vec<&str> {
    let values =
        |name: &'static str| page.split(name).skip(1).filter_map(|at| at.split('"').next());
    values("src=\"").chain(values("href=\"")).collect()
}

#[tokio::test]
async fn the_documentation_is_served_from_here_alone() {
    let app = TestApp::start(Engine::Sqlite).await.unwrap();
    let page = app.get("/docs/").send().await.unwrap();
    assert_eq!(page.status(), 200);
    let page = page.text().await.unwrap();
    let assets = loaded(&page);
    assert!(assets.iter().any(|asset| asset.ends_with(".js")), "{page}");
    assert!(assets.iter().any(|asset| asset.ends_with(".css")), "{page}");
    for asset in assets {
        assert!(!asset.contains("//"), "{asset} is from elsewhere");
        let answer = app.get(&format!("/docs/{asset}")).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{asset}");
    }
    assert!(!page.contains("<script>"), "the policy lets no inline script run");
    let start = app.get("/docs/swagger-initializer.js").send().await.unwrap().text().await.unwrap();
    assert!(start.contains("/openapi.json"), "{start}");
    assert!(!start.contains("://"), "{start}");
}

#[tokio::test]
async fn the_documentation_is_found_without_its_slash() {
    let app = TestApp::start(Engine::Sqlite).await.unwrap();
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    let answer = client.build().unwrap().get(format!("{}/docs", app.url)).send().await.unwrap();
    assert!(answer.status().is_redirection());
    assert_eq!(answer.headers()[LOCATION], "/docs/");
}
