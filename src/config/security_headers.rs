//! The security headers that depend on where the service stands.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// As humantime counts them, so that the default prints as `2years`.
const TWO_YEARS: Duration = Duration::from_secs(63_115_200);

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecurityHeadersConfig {
    /// Off only where a proxy in front sets them all.
    pub enabled: bool,
    /// `Strict-Transport-Security: max-age`; browsers heed it over HTTPS alone.
    #[serde(with = "humantime_serde")]
    pub hsts_max_age: Duration,
}

impl Default for SecurityHeadersConfig {
    fn default() -> Self {
        Self { enabled: true, hsts_max_age: TWO_YEARS }
    }
}
