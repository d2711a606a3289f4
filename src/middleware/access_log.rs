//! One log line a request.

use std::time::Duration;

use tracing::Level;
use url::form_urlencoded;

use super::observe::{End, RequestRecord};
use crate::auth::Principal;
use crate::telemetry::is_secret_name;
use crate::telemetry::targets::ACCESS;
use crate::telemetry::traffic::milliseconds;

/// As much of each as is of use. What is longer is an attack, on the log among other things.
const MAX_METHOD: usize = 32;
const MAX_PART: usize = 2048;

/// Writes it.
pub(super) fn write(record: &RequestRecord, duration: Duration) {
    /// An event's level must be known where it is compiled.
    macro_rules! write {
        ($level:expr) => {
            tracing::event!(
                target: ACCESS,
                parent: &record.span,
                $level,
                method = clipped(record.method.as_str(), MAX_METHOD),
                route = record.route(),
                path = clipped(record.uri.path(), MAX_PART),
                query = record.uri.query().map(|query| redacted(clipped(query, MAX_PART))),
                status = record.status(),
                duration_ms = milliseconds(duration),
                bytes = record.sent,
                client_ip = %record.client.address(),
                principal = record.principal.as_ref().map(Principal::id),
                user_agent = record.user_agent,
                db_ms = milliseconds(record.usage.time()),
                db_queries = record.usage.queries(),
                error_id = record.failure.as_ref().map(|failure| failure.id.to_string()),
                error_code = record.failure.as_ref().map(|failure| failure.error.code().into_owned()),
                cause = cause(record),
                client_left = (record.end == End::Left).then_some(true),
                "request"
            )
        };
    }
    match level(record) {
        Level::ERROR => write!(Level::ERROR),
        Level::DEBUG => write!(Level::DEBUG),
        _ => write!(Level::INFO),
    }
}

fn cause(record: &RequestRecord) -> Option<String> {
    match &record.end {
        End::Failed(why) => Some(why.clone()),
        End::Whole | End::Left => record.failure.as_ref()?.error.causes(),
    }
}

/// What comes every few seconds from every side is not news when it went well.
fn level(record: &RequestRecord) -> Level {
    let fault = record.failure.as_ref().is_some_and(|failure| failure.error.is_fault());
    if fault || matches!(record.end, End::Failed(_)) {
        Level::ERROR
    } else if record.is_routine() && (200..300).contains(&record.status()) {
        Level::DEBUG
    } else {
        Level::INFO
    }
}

fn clipped(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// A query with the values of secret-looking names taken out.
fn redacted(query: &str) -> String {
    let secret = |name: &str| {
        // Decoded, or `%6bey` would pass for something else than `key`.
        form_urlencoded::parse(name.as_bytes()).any(|(name, _)| is_secret_name(&name))
    };
    let parts = query.split(['&', ';']).map(|pair| match pair.split_once('=') {
        Some((name, _)) if secret(name) => format!("{name}=[redacted]"),
        _ => pair.to_owned(),
    });
    parts.collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_looking_query_values_are_not_logged() {
        assert_eq!(
            redacted("a=1&Api_Key=k;access_token=t&b&%6bey=k"),
            "a=1&Api_Key=[redacted]&access_token=[redacted]&b&%6bey=[redacted]"
        );
    }
}
