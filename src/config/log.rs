//! Logs: how much, and in which shape.

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::{LevelFilter, Targets};

use super::Environment;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// Levels by target, such as `info,plinth=debug`. Also `RUST_LOG`.
    pub filter: String,
    /// `json`, one flat object a line, or `pretty` for people. Pretty only in development.
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Json,
    Pretty,
}

/// What a filter lets through: a level, or levels by target, parted by commas.
///
/// # Errors
/// What is wrong with it: among other things that a word alone is no level, which would silence all
/// but a target of that name.
pub fn log_targets(filter: &str) -> Result<Targets, String> {
    let parts: Vec<_> = filter.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Err("it is empty: to log nothing, write `off`".into());
    }
    let is_target = |part: &&&str| !part.contains('=') && part.parse::<LevelFilter>().is_err();
    if let Some(word) = parts.iter().find(is_target) {
        return Err(format!("`{word}` is not a level, and has none: write `{word}=debug`"));
    }
    parts.join(",").parse().map_err(|error| format!("{error}"))
}

impl LogConfig {
    pub(super) fn defaults(env: Environment) -> Self {
        Self {
            filter: "info".into(),
            format: match env {
                Environment::Development => LogFormat::Pretty,
                Environment::Test | Environment::Production => LogFormat::Json,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_would_silence_by_mistake_is_refused() {
        for good in ["info", "off", "INFO, sqlx=debug", "info,plinth=trace,", "2"] {
            assert!(log_targets(good).is_ok(), "{good}");
        }
        assert_eq!(log_targets("info, a=debug").unwrap(), "info,a=debug".parse().unwrap());
        for bad in ["", " ", ",,", "inof", "info,plinth", "plinth=loud"] {
            assert!(log_targets(bad).is_err(), "{bad}");
        }
    }
}
