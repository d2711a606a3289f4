//! Configuration: one file per section, and the three things done with them: load, validate,
//! explain.
//!
//! Later wins: the defaults below, `plinth.toml`, `.env`, the environment. Our own keys are
//! `APP_SECTION__KEY`; the names the ecosystem already uses (`DATABASE_URL`, `PORT`, …) work too,
//! and any of them may be given as a file by appending `_FILE`.

mod auth;
mod cache;
mod cors;
mod database;
mod explain;
mod fault;
mod flood_guard;
mod health;
mod keys;
mod layers;
mod load;
mod log;
mod management;
mod policy;
mod production;
mod rate_limit;
mod secret;
mod security_headers;
mod sentry;
mod server;
mod size;
mod traces;
mod validate;

pub use auth::{AuthConfig, AuthMode, JwtAlgorithm, JwtConfig};
pub use cache::CacheConfig;
pub use cors::CorsConfig;
pub use database::DatabaseConfig;
pub use explain::{Explained, Overridden, table};
pub use fault::{Fault, Faults};
pub use flood_guard::FloodGuardConfig;
pub use health::HealthConfig;
pub use load::{Loaded, Sources, load};
pub use log::{LogConfig, LogFormat, log_targets};
pub use management::ManagementConfig;
pub use policy::{Policies, Policy};
pub use production::{Finding, Grade, logs_the_wire, production_findings};
pub use rate_limit::{ClassConfig, KeyBy, OnStoreFailure, RateLimitConfig};
pub use secret::{Secret, SecretUrl};
pub use security_headers::SecurityHeadersConfig;
pub use sentry::SentryConfig;
pub use server::{ForwardedHeader, ServerConfig};
pub use traces::{AcceptContext, TraceSampler, TracesConfig};

use serde::{Deserialize, Serialize};

/// Where the service runs. It chooses defaults, and production refuses what is unsafe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    #[default]
    Development,
    Test,
    Production,
}

impl Environment {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Test => "test",
            Self::Production => "production",
        }
    }
}

/// Everything that can be set, with its defaults in the sections' own files.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `APP_ENV`: development, test or production.
    pub env: Environment,
    pub server: ServerConfig,
    pub database: DatabaseConfig,
    pub cache: CacheConfig,
    pub auth: AuthConfig,
    pub rate_limit: RateLimitConfig,
    pub flood_guard: FloodGuardConfig,
    pub management: ManagementConfig,
    pub log: LogConfig,
    pub traces: TracesConfig,
    pub sentry: SentryConfig,
    pub cors: CorsConfig,
    pub security_headers: SecurityHeadersConfig,
    pub health: HealthConfig,
}

impl Config {
    /// The text of every secret that is set, to be kept out of what leaves this process.
    pub fn secrets(&self) -> impl Iterator<Item = String> {
        production::secrets(self).into_iter().map(|(_, secret)| secret)
    }

    /// The defaults for an environment. This is the only place that defines them.
    pub fn defaults(env: Environment) -> Self {
        Self {
            env,
            server: ServerConfig::defaults(env),
            database: DatabaseConfig::default(),
            cache: CacheConfig::default(),
            auth: AuthConfig::defaults(env),
            rate_limit: RateLimitConfig::default(),
            flood_guard: FloodGuardConfig::default(),
            management: ManagementConfig::default(),
            log: LogConfig::defaults(env),
            traces: TracesConfig::default(),
            sentry: SentryConfig::default(),
            cors: CorsConfig::default(),
            security_headers: SecurityHeadersConfig::default(),
            health: HealthConfig::default(),
        }
    }
}
