//! A local Sentry, which keeps what it is sent.

use axum::body::Bytes;
use axum::routing::post;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::process::PATIENCE;

pub struct Sentry {
    pub dsn: String,
    /// Each as text: a header, then items of a header and a body, by line.
    pub envelopes: watch::Receiver<Vec<String>>,
}

impl Sentry {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dsn = format!("http://public@{}/1", listener.local_addr().unwrap());
        let (sender, envelopes) = watch::channel(Vec::new());
        let envelope = |body: Bytes| async move {
            let text = String::from_utf8(body.to_vec()).unwrap();
            sender.send_modify(|envelopes| envelopes.push(text));
            "{}"
        };
        let router = axum::Router::new().route("/api/1/envelope/", post(envelope));
        tokio::spawn(async { axum::serve(listener, router).await });
        Self { dsn, envelopes }
    }

    /// The items of one type, `event` or `transaction`, in all envelopes.
    pub fn items(&self, kind: &str) -> Vec<Value> {
        items(&self.envelopes.borrow(), kind)
    }

    /// Waits for the first of them.
    pub async fn item(&mut self, kind: &str) -> Value {
        let sent = self.envelopes.wait_for(|envelopes| !items(envelopes, kind).is_empty());
        let sent = timeout(PATIENCE, sent).await.expect("Sentry is sent none").unwrap();
        items(&sent, kind).remove(0)
    }
}

fn items(envelopes: &[String], kind: &str) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    let of_envelope = |envelope: &String| {
        let lines: Vec<_> = envelope.lines().skip(1).map(parse).collect();
        let items = lines.chunks_exact(2).filter(|item| item[0]["type"] == kind);
        items.map(|item| item[1].clone()).collect::<Vec<_>>()
    };
    envelopes.iter().flat_map(of_envelope).collect()
}
