//! The binary with a management listener.

use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection};

use crate::process::{Ended, Folder, Process};

/// Running, in test mode. It is killed when it is dropped.
pub struct Service {
    pub url: String,
    pub management: String,
    pub client: Client,
    pub process: Process,
    pub folder: Folder,
}

impl Service {
    pub async fn start<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self::start_in(Folder::new(), variables).await
    }

    pub async fn start_in<'a>(
        folder: Folder,
        variables: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let ours = [
            ("APP_ENV", "test"),
            ("APP_MANAGEMENT__BIND", "127.0.0.1:0"),
            ("APP_RATE_LIMIT__DEFAULT", "1000000/second"),
            ("APP_FLOOD_GUARD__PER_SECOND", "1000000"),
            ("APP_FLOOD_GUARD__BURST", "1000000"),
            ("APP_SERVER__MAX_IN_FLIGHT_PER_CLIENT", "256"),
        ];
        let variables = ours.into_iter().chain(variables);
        let (mut process, url) = folder.serve(variables).await;
        let line = process.line("operators are served at ").await;
        let (_, management) = line.split_once("operators are served at ").unwrap();
        let management = management.split_once("/status").unwrap().0.to_owned();
        Self { url, management, client: Client::new(), process, folder }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    pub async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    /// Creates a plan of this name, and returns its path.
    pub async fn plan(&self, name: &str) -> String {
        let plan = json!({"name": name, "start_date": "2027-03-01", "end_date": "2027-05-31"});
        let answer = self.request(Method::POST, "/api/v1/plans").json(&plan).send().await.unwrap();
        assert_eq!(answer.status(), 201);
        answer.headers()["location"].to_str().unwrap().to_owned()
    }

    /// Makes every request for plans fail, unless it is cached.
    pub async fn drop_plans(&self) {
        let mut connection = self.database().await;
        sqlx::query("DROP TABLE plans").execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    /// A connection to its database, past it.
    pub async fn database(&self) -> SqliteConnection {
        let url = format!("sqlite://{}/data/plinth.db", self.folder.path().display());
        SqliteConnection::connect(&url).await.unwrap()
    }

    /// From the listener for operators.
    pub async fn management(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.management)).send().await.unwrap()
    }

    pub async fn json(&self, path: &str) -> Value {
        self.management(path).await.json().await.unwrap()
    }

    pub async fn metrics(&self) -> Metrics {
        Metrics(self.management("/metrics").await.text().await.unwrap())
    }

    pub async fn stop(self) -> Ended {
        let ended = self.process.stop().await;
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        ended
    }
}

/// A scrape.
pub struct Metrics(pub String);

impl Metrics {
    /// Names and labels with their values, one for each series.
    pub fn series(&self) -> impl Iterator<Item = (&str, f64)> {
        let samples = self.0.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        samples.map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series, value.parse().unwrap())
        })
    }

    /// The sum over the series of this name whose labels hold all of these.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let of_name = |series: &str| {
            let (own, rest) = series.split_once('{').unwrap_or((series, ""));
            own == name && labels.iter().all(|label| rest.contains(label))
        };
        self.series().filter(|(series, _)| of_name(series)).map(|(_, value)| value).sum()
    }
}
