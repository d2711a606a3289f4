//! The cache: where it is kept, for how long, and what it may cost.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::SecretUrl;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// `redis://` or `rediss://`; unset keeps the cache in process. Also `REDIS_URL`.
    pub redis_url: Option<SecretUrl>,
    /// Put before every key in Redis, so that services can share one.
    pub key_prefix: String,
    /// Age at which an entry is refreshed in the background while it is still served (±10 %).
    #[serde(with = "humantime_serde")]
    pub soft_ttl: Duration,
    /// Age at which an entry is gone. Until then it is served when its reload fails.
    #[serde(with = "humantime_serde")]
    pub hard_ttl: Duration,
    /// Most time a whole cache operation may add to a request.
    #[serde(with = "humantime_serde")]
    pub budget: Duration,
    /// Memory for entries kept in process.
    #[serde(serialize_with = "super::size::exact")]
    pub max_memory: bytesize::ByteSize,
    /// Failures in a row after which Redis is left alone.
    pub breaker_failures: u32,
    /// How often Redis is tried again while it is left alone.
    #[serde(with = "humantime_serde")]
    pub breaker_retry: Duration,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            redis_url: None,
            key_prefix: "plinth".into(),
            soft_ttl: Duration::from_secs(30),
            hard_ttl: Duration::from_secs(300),
            budget: Duration::from_millis(75),
            max_memory: bytesize::ByteSize::mib(32),
            breaker_failures: 5,
            breaker_retry: Duration::from_secs(2),
        }
    }
}
