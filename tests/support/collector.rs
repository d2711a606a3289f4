//! A receiver of traces: OTLP over HTTP, protobuf, kept as it came.

use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::process::PATIENCE;

/// What was received.
pub struct Collector {
    pub url: String,
    received: watch::Receiver<Vec<Received>>,
}

#[derive(Clone)]
struct Received {
    headers: HeaderMap,
    body: Bytes,
    request: ExportTraceServiceRequest,
}

/// A span, with ids in hexadecimal.
#[derive(Debug, Clone)]
pub struct Span {
    pub trace_id: String,
    pub id: String,
    /// Empty at a root.
    pub parent: String,
    pub name: String,
    /// OTLP's number: 2 is a server's, 3 a client's.
    pub kind: i32,
    /// 2 is an error.
    pub status: i32,
    attributes: Vec<KeyValue>,
    resource: Vec<KeyValue>,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, received) = watch::channel(Vec::new());
        let take = |headers: HeaderMap, body: Bytes| async move {
            let request = ExportTraceServiceRequest::decode(body.clone()).unwrap();
            sender.send_modify(|all| all.push(Received { headers, body, request }));
        };
        let router = axum::Router::new().route("/v1/traces", post(take));
        tokio::spawn(async { axum::serve(listener, router).await });
        Self { url, received }
    }

    /// Every span so far.
    pub fn spans(&self) -> Vec<Span> {
        spans(&self.received.borrow())
    }

    /// Waits for a span.
    pub async fn span(&mut self, is_it: impl Fn(&Span) -> bool) -> Span {
        let find = |all: &[Received]| spans(all).into_iter().find(&is_it);
        let found = timeout(PATIENCE, self.received.wait_for(|all| find(all).is_some()));
        let found = found.await.map(|all| all.map(|all| find(&all)));
        match found {
            Ok(Ok(Some(span))) => span,
            _ => panic!("no such span among {:#?}", self.spans()),
        }
    }

    /// The headers of the first delivery.
    pub fn headers(&self) -> HeaderMap {
        self.received.borrow()[0].headers.clone()
    }

    /// Whether these bytes are anywhere in what was received.
    pub fn holds(&self, text: &str) -> bool {
        let within = |body: &Bytes| body.windows(text.len()).any(|part| part == text.as_bytes());
        self.received.borrow().iter().any(|received| within(&received.body))
    }
}

impl Span {
    /// An attribute as text; empty where there is none.
    pub fn attribute(&self, name: &str) -> String {
        text_of(&self.attributes, name)
    }

    /// The same of the process that made the span.
    pub fn resource(&self, name: &str) -> String {
        text_of(&self.resource, name)
    }
}

fn spans(received: &[Received]) -> Vec<Span> {
    let resources = received.iter().flat_map(|received| &received.request.resource_spans);
    let of_resource = |of: &opentelemetry_proto::tonic::trace::v1::ResourceSpans| {
        let resource = of.resource.clone().unwrap_or_default().attributes;
        let spans = of.scope_spans.iter().flat_map(|scope| scope.spans.clone());
        spans
            .map(|span| Span {
                trace_id: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                name: span.name,
                kind: span.kind,
                status: span.status.map_or(0, |status| status.code),
                attributes: span.attributes,
                resource: resource.clone(),
            })
            .collect::<Vec<_>>()
    };
    resources.flat_map(of_resource).collect()
}

fn text_of(attributes: &[KeyValue], name: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|found| found.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(yes)) => yes.to_string(),
        _ => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
