//! The flood guard: what one client address may ask of one process, whoever it is.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FloodGuardConfig {
    /// Off only where something in front does the same.
    pub enabled: bool,
    /// Requests a second that one address may go on making.
    pub per_second: u32,
    /// Requests it may make at once after a pause.
    pub burst: u32,
}

impl Default for FloodGuardConfig {
    fn default() -> Self {
        Self { enabled: true, per_second: 50, burst: 200 }
    }
}
