//! The flood guard: how fast one client address may ask one process, whoever it is and whatever
//! for. It costs less than anything behind it, and stands in front of it all; quotas, which are the
//! contract with a caller, come later.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use axum::response::IntoResponse;
use governor::clock::QuantaInstant;
use governor::middleware::NoOpMiddleware;
use metrics::counter;
use tower_governor::governor::{GovernorConfig, GovernorConfigBuilder};
use tower_governor::key_extractor::KeyExtractor;
use tower_governor::{GovernorError, GovernorLayer};

use super::client_ip::ClientIp;
use crate::config::FloodGuardConfig;
use crate::error::Error;

/// How often clients that have not asked for a while are forgotten.
const SWEEP: Duration = Duration::from_secs(10);

/// The name that a refusal gives for the limit.
const POLICY: &str = "flood-guard";

type Config = GovernorConfig<ByClient, NoOpMiddleware<QuantaInstant>>;

/// One process's table of clients. Cheap to clone.
#[derive(Clone)]
pub struct FloodGuard(Arc<Config>);

impl FloodGuard {
    /// `None` when it is off. Begins to sweep, which needs a Tokio runtime, and ends when it is
    /// dropped.
    pub fn new(config: &FloodGuardConfig) -> Option<Self> {
        if !config.enabled {
            return None;
        }
        let limits = GovernorConfigBuilder::default()
            .period(Duration::from_secs(1) / config.per_second)
            .burst_size(config.burst)
            .key_extractor(ByClient(RandomState::new()))
            .finish()?;
        let guard = Self(Arc::new(limits));
        guard.sweep_often();
        Some(guard)
    }

    /// Clients in the table just now.
    pub fn tracked(&self) -> usize {
        self.0.limiter().len()
    }

    /// Goes inside the layer that sets [`ClientIp`].
    pub fn layer(&self) -> GovernorLayer<ByClient, NoOpMiddleware<QuantaInstant>, Body> {
        GovernorLayer::new(self.0.clone()).error_handler(|error| match error {
            GovernorError::TooManyRequests { wait_time, .. } => {
                counter!("flood_guard_refused_total").increment(1);
                let policies = vec![POLICY.into()];
                // It comes rounded down.
                let retry_after = Duration::from_secs(wait_time + 1);
                Error::TooManyRequests { policies, retry_after }.into_response()
            }
            other => Error::internal(other).into_response(),
        })
    }

    fn sweep_often(&self) {
        let table = Arc::downgrade(self.0.limiter());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                let Some(table) = table.upgrade() else { return };
                table.retain_recent();
                table.shrink_to_fit();
            }
        });
    }
}

/// Finds the client of a request. The key is a hash of the address: a million clients take half of what their addresses would. It
/// is keyed at random, so that nobody can look for an address that shares another's.
#[derive(Debug, Clone)]
pub struct ByClient(RandomState);

impl KeyExtractor for ByClient {
    type Key = u64;

    fn extract<T>(&self, request: &Request<T>) -> Result<u64, GovernorError> {
        let client: Option<&ClientIp> = request.extensions().get();
        Ok(self.0.hash_one(client))
    }
}
