//! `/log`: what is logged, set while the process runs.

use axum::extract::State;
use axum::response::IntoResponse;

use crate::config::Environment;
use crate::error::{Error, Result};
use crate::telemetry;

/// Sets the filter that is the body, such as `info,plinth=debug`, until the process ends.
pub(super) async fn set(
    State(env): State<Environment>,
    filter: String,
) -> Result<impl IntoResponse> {
    let filter = filter.trim();
    let refuse = |why: String| Error::malformed("/", "INVALID_VALUE", why);
    if env == Environment::Production && crate::config::logs_the_wire(filter) {
        return Err(refuse("in production `trace` is for targets of this service alone".into()));
    }
    telemetry::log::set_filter(filter).map_err(|error| refuse(format!("{error:#}")))?;
    Ok(format!("{filter}\n"))
}
