//! One log line a request.

use std::time::Duration;

use tracing::Level;
use url::form_urlencoded;

use super::observe::Sight;
use crate::auth::Principal;
use crate::telemetry::is_secret_name;
use crate::telemetry::sentry::ACCESS;
use crate::telemetry::traffic::milliseconds;

/// Writes it.
pub(super) fn write(sight: &Sight, duration: Duration) {
    /// An event's level must be known where it is compiled.
    macro_rules! write {
        ($level:expr) => {
            tracing::event!(
                target: ACCESS,
                parent: &sight.logged,
                $level,
                method = sight.method.as_str(),
                route = sight.route(),
                path = sight.uri.path(),
                query = sight.uri.query().map(redacted),
                status = sight.status(),
                duration_ms = milliseconds(duration),
                bytes = sight.sent,
                client_ip = %sight.client.address(),
                principal = sight.principal.as_ref().map(Principal::id),
                user_agent = sight.user_agent,
                db_ms = milliseconds(sight.usage.time()),
                db_queries = sight.usage.queries(),
                error_id = sight.failure.as_ref().map(|failure| failure.id.to_string()),
                error_code = sight.failure.as_ref().map(|failure| failure.error.code().into_owned()),
                cause = sight.failure.as_ref().and_then(|failure| failure.error.causes()),
                "request"
            )
        };
    }
    match level(sight) {
        Level::ERROR => write!(Level::ERROR),
        Level::DEBUG => write!(Level::DEBUG),
        _ => write!(Level::INFO),
    }
}

/// What comes every few seconds from every side is not news when it went well.
fn level(sight: &Sight) -> Level {
    if sight.failure.as_ref().is_some_and(|failure| failure.error.is_fault()) {
        Level::ERROR
    } else if sight.is_routine() && (200..300).contains(&sight.status()) {
        Level::DEBUG
    } else {
        Level::INFO
    }
}

/// A query with the values of secret-looking names taken out.
fn redacted(query: &str) -> String {
    let secret = |name: &str| {
        // Decoded, or `%6bey` would pass for something else than `key`.
        form_urlencoded::parse(name.as_bytes()).any(|(name, _)| is_secret_name(&name))
    };
    let parts = query.split('&').map(|pair| match pair.split_once('=') {
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
            redacted("a=1&Api_Key=k&access_token=t&b&%6bey=k"),
            "a=1&Api_Key=[redacted]&access_token=[redacted]&b&%6bey=[redacted]"
        );
    }
}
