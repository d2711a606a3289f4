//! Ten times the load that saturates a slow route: what can be done is still done, the rest is told
//! so at once, and it is over when the load is.

use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use plinth::config::{Config, Environment};
use plinth::middleware;

use crate::alone;
use crate::support::{Served, until};

/// What the route takes, and how many of it are worked on at once: 80 a second at most.
const WORK: Duration = Duration::from_millis(100);
const PLACES: usize = 8;

/// How long each load is kept up.
const SPAN: Duration = Duration::from_secs(3);

/// One answer: whether it was the work's, and after how long.
type Answer = (bool, Duration);

#[tokio::test(flavor = "multi_thread")]
async fn overload_is_refused_at_once_and_costs_no_goodput() {
    let _alone = alone().await;
    let mut config = Config::defaults(Environment::Test);
    config.server.port = 0;
    config.server.max_in_flight = PLACES;
    config.server.max_in_flight_per_client = 10_000;
    let slow = Router::new().route("/", get(async || tokio::time::sleep(WORK).await));
    let app = middleware::wrap(middleware::limit(slow, &config, None), &config);
    let served = Served::start(app, &config);

    let peak = goodput(&saturate(&served.url).await);
    let answers = overwhelm(&served.url, peak * 10.0).await;
    let over = Instant::now();
    let under = goodput(&answers);
    let mut refusals: Vec<_> = answers.iter().filter(|(done, _)| !done).map(|a| a.1).collect();
    refusals.sort_unstable();
    assert!(refusals.len() > answers.len() / 2, "it was no overload: {}", refusals.len());
    let (median, p99) = (refusals[refusals.len() / 2], refusals[refusals.len() * 99 / 100]);

    until("a request is served again", async || ask(&reqwest::Client::new(), &served.url).await.0)
        .await;
    let recovery = over.elapsed();
    println!(
        "goodput {peak:.0}/s at its peak, {under:.0}/s at ten times the load ({:.2}); {} refusals, \
         median {median:?}, p99 {p99:?}; served again {recovery:?} after",
        under / peak,
        refusals.len()
    );
    assert!(under >= 0.8 * peak, "goodput fell from {peak:.0}/s to {under:.0}/s");
    assert!(median < Duration::from_millis(50), "refusals took {median:?}");
    assert!(recovery < Duration::from_secs(5), "it took {recovery:?} to recover");
}

fn goodput(answers: &[Answer]) -> f64 {
    answers.iter().filter(|(done, _)| *done).count() as f64 / SPAN.as_secs_f64()
}

/// As many clients as there are places, each asking again as soon as it is answered.
async fn saturate(url: &str) -> Vec<Answer> {
    let end = Instant::now() + SPAN;
    let clients = (0..PLACES).map(|_| {
        let url = url.to_owned();
        tokio::spawn(async move {
            let client = reqwest::Client::new();
            let mut answers = Vec::new();
            while Instant::now() < end {
                answers.push(ask(&client, &url).await);
            }
            answers
        })
    });
    all(clients).await.into_iter().flatten().collect()
}

/// So many requests a second, whether or not those before are answered.
async fn overwhelm(url: &str, per_second: f64) -> Vec<Answer> {
    let client = reqwest::Client::new();
    let count = (per_second * SPAN.as_secs_f64()) as usize;
    let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / per_second));
    let mut requests = Vec::with_capacity(count);
    for _ in 0..count {
        pace.tick().await;
        let (client, url) = (client.clone(), url.to_owned());
        requests.push(tokio::spawn(async move { ask(&client, &url).await }));
    }
    all(requests).await
}

async fn ask(client: &reqwest::Client, url: &str) -> Answer {
    let start = Instant::now();
    let answer = client.get(url).send().await.unwrap();
    let status = answer.status().as_u16();
    assert!(matches!(status, 200 | 503), "{status}");
    if status == 503 {
        assert_eq!(answer.headers()["retry-after"], "1");
        let problem: serde_json::Value = answer.json().await.unwrap();
        assert_eq!(problem["code"], "OVERLOADED");
    }
    (status == 200, start.elapsed())
}

async fn all<T>(tasks: impl IntoIterator<Item = tokio::task::JoinHandle<T>>) -> Vec<T> {
    let mut outcomes = Vec::new();
    for task in tasks.into_iter().collect::<Vec<_>>() {
        outcomes.push(task.await.unwrap());
    }
    outcomes
}
