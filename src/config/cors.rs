//! Which browser origins may call.

use std::time::Duration;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorsConfig {
    /// Origins such as `https://app.example.com`; `*` for any, which production refuses.
    pub allowed_origins: Vec<String>,
    /// Let browsers send cookies and HTTP authentication. Not with `*`.
    pub allow_credentials: bool,
    /// How long browsers may keep a preflight's answer.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
}

impl Default for CorsConfig {
    fn default() -> Self {
        Self {
            allowed_origins: Vec::new(),
            allow_credentials: false,
            max_age: Duration::from_secs(600),
        }
    }
}
