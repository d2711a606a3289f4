//! The management listener: what operators read and set, apart from what clients call.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManagementConfig {
    /// Where `/metrics`, the report at `/health`, `/status` and `/log` are served, such as
    /// `127.0.0.1:9090`. Unset leaves the first two on the public port. It asks for no credential:
    /// whoever reaches it may read it and set the log level.
    pub bind: Option<SocketAddr>,
}
