//! Sentry: off until it has a DSN.

use serde::{Deserialize, Serialize};

use super::Secret;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SentryConfig {
    /// Where events go; unset sends none. Also `SENTRY_DSN`.
    pub dsn: Option<Secret>,
    /// The environment events are filed under; unset takes `APP_ENV`.
    pub environment: Option<String>,
    /// The part of the errors that is sent, 0.0 to 1.0.
    pub sample_rate: f32,
    /// The part of the requests whose timing is sent, 0.0 to 1.0.
    pub traces_sample_rate: f32,
}

impl Default for SentryConfig {
    fn default() -> Self {
        Self { dsn: None, environment: None, sample_rate: 1.0, traces_sample_rate: 0.0 }
    }
}
