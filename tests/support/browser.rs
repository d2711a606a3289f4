//! A real browser, driven by its own driver (W3C WebDriver).

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Client, Method};
use serde_json::{Value, json};

/// One window. Browser and driver end when it is dropped.
pub struct Browser {
    driver: Child,
    client: Client,
    session: String,
}

impl Browser {
    /// Opens Chromium, without a screen.
    pub async fn open() -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .spawn()
            .expect("chromedriver cannot be started: install Chromium's driver");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            let line = line.unwrap();
            let (_, port) = line.split_once("successfully on port ")?;
            Some(port.trim_end_matches('.').to_owned())
        });
        let client = Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
        let root = format!("http://127.0.0.1:{}/session", port.unwrap());
        let options = json!({
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        });
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let answer = client.post(&root).json(&wanted).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        let id = answer["value"]["sessionId"].as_str().unwrap_or_else(|| panic!("{answer}"));
        Self { driver, client, session: format!("{root}/{id}") }
    }

    pub async fn go_to(&self, url: &str) {
        self.command("url", json!({"url": url})).await;
    }

    /// The size of what the page sees, as of a device of that width.
    pub async fn resize(&self, width: u32, height: u32) {
        let metrics = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500
        });
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// `light` or `dark`, as its user prefers.
    pub async fn prefer(&self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.devtools("Emulation.setEmulatedMedia", json!({"features": features})).await;
    }

    /// What a script returns.
    pub async fn run(&self, script: &str) -> Value {
        self.command("execute/sync", json!({"script": script, "args": []})).await
    }

    /// The window as PNG.
    pub async fn screenshot(&self) -> Vec<u8> {
        let shot = self.ask(Method::GET, "screenshot", None).await;
        STANDARD.decode(shot.as_str().unwrap()).unwrap()
    }

    /// What the console was told since it was asked last.
    pub async fn console(&self) -> Vec<String> {
        let told = self.command("se/log", json!({"type": "browser"})).await;
        let lines = told.as_array().unwrap().iter();
        lines.map(|line| line["message"].as_str().unwrap().to_owned()).collect()
    }

    async fn devtools(&self, name: &str, parameters: Value) {
        self.command("goog/cdp/execute", json!({"cmd": name, "params": parameters})).await;
    }

    async fn command(&self, name: &str, body: Value) -> Value {
        self.ask(Method::POST, name, Some(body)).await
    }

    async fn ask(&self, method: Method, name: &str, body: Option<Value>) -> Value {
        let request = self.client.request(method, format!("{}/{name}", self.session));
        let request = match &body {
            Some(body) => request.json(body),
            None => request,
        };
        let mut answer: Value = request.send().await.unwrap().json().await.unwrap();
        assert!(answer["value"]["error"].is_null(), "{name}: {answer}");
        answer["value"].take()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver takes its browser with it only when it is asked to.
        let session = self.session.clone();
        let ask = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(Client::new().delete(session).send())
        };
        let _ = std::thread::spawn(ask).join();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
