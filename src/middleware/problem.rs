//! The body of every failed answer: a problem document (RFC 9457).

use axum::Extension;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use tracing::Span;

use super::request_id::RequestId;
use crate::error::{Error, Failure};
use crate::telemetry::traces;

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

pub(super) async fn problem(
    Extension(id): Extension<RequestId>,
    request: Request,
    next: Next,
) -> Response {
    let uri = request.uri().clone();
    let mut response = next.run(request).await;
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let failure = match response.extensions().get::<Failure>() {
        Some(failure) => failure.clone(),
        // A body that a handler made on purpose, such as the readiness probe's.
        None if is_json(response.headers()) => return response,
        None => Failure::new(Error::from_status(status)),
    };
    let trace_id = traces::trace_id(&Span::current());
    let document = failure.problem(uri.path(), id.as_str(), trace_id);
    // Of strings, numbers and lists of them: it cannot fail.
    let body = serde_json::to_vec(&document).unwrap_or_default();
    let headers = response.headers_mut();
    headers.remove(CONTENT_LENGTH);
    headers.remove(CONTENT_ENCODING);
    headers.insert(CONTENT_TYPE, PROBLEM_JSON);
    *response.body_mut() = Body::from(body);
    response.extensions_mut().insert(failure);
    response
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/json"))
}
