//! A panic in a handler is a 500 for its request, and the process goes on.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::Error;
use crate::telemetry::panic;

pub(super) async fn catch(request: Request, next: Next) -> Response {
    match panic::catch(next.run(request)).await {
        Ok(response) => response,
        Err(panicked) => Error::internal(panicked).into_response(),
    }
}
