//! What rules and dashboards ask Prometheus for is there to be had.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use promql_parser::parser::{self, Expr, VectorSelector};
use serde_json::Value;

use crate::service::{Metrics, Service};
use crate::support::issuer::{Issuer, Signer};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/observability")
}

fn files(folder: &str, extension: &str) -> Vec<String> {
    let files = fs::read_dir(self::folder().join(folder)).unwrap().map(|file| file.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|own| own == extension));
    let texts: Vec<_> = files.map(|path| fs::read_to_string(path).unwrap()).collect();
    assert!(!texts.is_empty(), "{folder}");
    texts
}

/// Every value under this key, at any depth.
fn values_of(key: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(text) if name == key => found.push(text.clone()),
                    member => values_of(key, member, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| values_of(key, item, found)),
        _ => {}
    }
}

fn selectors(expression: &Expr, found: &mut Vec<VectorSelector>) {
    match expression {
        Expr::VectorSelector(selector) => found.push(selector.clone()),
        Expr::MatrixSelector(matrix) => found.push(matrix.vs.clone()),
        Expr::Aggregate(of) => selectors(&of.expr, found),
        Expr::Unary(of) => selectors(&of.expr, found),
        Expr::Paren(of) => selectors(&of.expr, found),
        Expr::Subquery(of) => selectors(&of.expr, found),
        Expr::Binary(of) => {
            selectors(&of.lhs, found);
            selectors(&of.rhs, found);
        }
        Expr::Call(of) => of.args.args.iter().for_each(|argument| selectors(argument, found)),
        _ => {}
    }
}

/// The names that rules record, and what rules and dashboards ask for.
fn asked() -> (BTreeSet<String>, Vec<String>) {
    let (mut recorded, mut expressions) = (Vec::new(), Vec::new());
    for text in files("rules", "yml") {
        let rules: Value = serde_yaml_ng::from_str(&text).unwrap();
        values_of("record", &rules, &mut recorded);
        values_of("expr", &rules, &mut expressions);
    }
    for text in files("grafana/dashboards", "json") {
        let dashboard: Value = serde_json::from_str(&text).unwrap();
        values_of("expr", &dashboard, &mut expressions);
    }
    (recorded.into_iter().collect(), expressions)
}

/// The labels of each name in a scrape.
fn labels(metrics: &Metrics) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (series, _) in metrics.series() {
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let names = labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0));
        all.entry(name.to_owned()).or_default().extend(names.map(str::to_owned));
    }
    all
}

/// Everything happens at least once: a miss, a failure, a call to an issuer, Redis away.
#[tokio::test(flavor = "multi_thread")]
async fn every_metric_and_label_of_a_rule_or_a_dashboard_is_in_a_real_scrape() {
    let issuer = Issuer::start(&[&Signer::ec("key")]);
    let service = Service::start([
        ("REDIS_URL", "redis://127.0.0.1:1"),
        ("APP_AUTH__JWT__ISSUER", "https://issuer.test"),
        ("APP_AUTH__JWT__AUDIENCE", "plinth"),
        ("APP_AUTH__JWT__JWKS", &issuer.jwks),
    ])
    .await;
    let plan = service.plan("A plan").await;
    service.get(&plan).await;
    service.get("/api/v1/plans").await;
    service.management("/metrics").await;
    let metrics = service.metrics().await;

    let there = labels(&metrics);
    let (recorded, expressions) = asked();
    let (mut names, mut missing) = (BTreeSet::new(), BTreeSet::new());
    for text in expressions {
        // Grafana's own variables.
        let text = text.replace("$__rate_interval", "5m").replace("$__range", "1h");
        let expression = parser::parse(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let mut found = Vec::new();
        selectors(&expression, &mut found);
        for selector in found {
            let name = selector.name.unwrap_or_default();
            // Made by Prometheus, or by another rule.
            if ["up", "ALERTS"].contains(&name.as_str()) || recorded.contains(&name) {
                continue;
            }
            match there.get(&name) {
                None => drop(missing.insert(name.clone())),
                Some(labels) => {
                    let asked = selector.matchers.matchers.iter().map(|matcher| &matcher.name);
                    let ours = asked.filter(|label| !["job", "instance"].contains(&label.as_str()));
                    let absent = ours.filter(|label| !labels.contains(*label));
                    missing.extend(absent.map(|label| format!("{name}{{{label}}}")));
                }
            }
            names.insert(name);
        }
    }
    assert!(names.len() > 20, "{names:?}");
    let hint = "is the name right, and does this test make the service count it?";
    assert!(missing.is_empty(), "not in a scrape: {missing:?}; {hint}\n{}", metrics.0);
    println!("{} metrics are asked for", names.len());
}
