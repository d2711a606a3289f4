//! `/log`: what is logged, set while the process runs.

use axum::extract::State;
use axum::http::header::ORIGIN;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;

use crate::config::Environment;
use crate::error::{Error, Result};
use crate::telemetry;

/// Sets the filter that is the body, such as `info,plinth=debug`, until the process ends.
pub(super) async fn set(
    State(env): State<Environment>,
    headers: HeaderMap,
    filter: String,
) -> Result<impl IntoResponse> {
    // Browsers always send it with a PUT: no page is to get here, whatever name it goes by.
    if headers.contains_key(ORIGIN) {
        return Err(Error::Status(StatusCode::FORBIDDEN));
    }
    let filter = filter.trim();
    let refuse = |why: String| Error::malformed("/", "INVALID_VALUE", why);
    if env == Environment::Production && crate::config::logs_the_wire(filter) {
        return Err(refuse("in production `trace` is for targets of this service alone".into()));
    }
    telemetry::log::set_filter(filter).map_err(|error| refuse(format!("{error:#}")))?;
    Ok(format!("{filter}\n"))
}
