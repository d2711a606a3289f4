//! What this process is, and what it uses.

use serde::Serialize;
use utoipa::ToSchema;

use crate::telemetry::{COMMIT, VERSION};

#[derive(Debug, Serialize, ToSchema)]
pub struct Process {
    pub version: &'static str,
    pub commit: &'static str,
    pub uptime_seconds: u64,
    /// Resident memory; `null` where the system has no `/proc`.
    #[schema(required)]
    pub memory_bytes: Option<u64>,
}

impl Process {
    pub(super) fn now(uptime: std::time::Duration) -> Self {
        Self {
            version: VERSION,
            commit: COMMIT,
            uptime_seconds: uptime.as_secs(),
            memory_bytes: resident_bytes(),
        }
    }
}

/// The second figure of `/proc/self/statm`, in pages.
fn resident_bytes() -> Option<u64> {
    let figures = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = figures.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
