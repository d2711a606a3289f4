//! Logs: how much, and in which shape.

use serde::{Deserialize, Serialize};

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
