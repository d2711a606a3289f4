//! Health: whether to send this process requests, and what its dependencies are up to.
//!
//! Checks run in the background on an interval; a probe reads the last result and touches
//! nothing, so a thousand probes a second cost the database none. Only critical dependencies turn
//! readiness off: Redis is not one, since the service goes on without it.

mod process;
mod routes;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

pub use process::Process;
pub use routes::{report_routes, routes};

use crate::config::HealthConfig;

/// What this process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Phase {
    Starting,
    Serving,
    Draining,
}

/// How a check last went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    Pass,
    Fail,
}

/// A dependency's last result.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CheckOutcome {
    pub status: CheckStatus,
    /// Whether its failure makes this process not ready.
    pub critical: bool,
    /// How long the last run took.
    pub latency_ms: f64,
    #[schema(required)]
    pub last_success: Option<DateTime<Utc>>,
}

/// The registry of checks and the phase of the process. Cheap to clone.
#[derive(Clone)]
pub struct Health(Arc<Inner>);

struct Inner {
    config: HealthConfig,
    started: Instant,
    phase: AtomicU8,
    outcomes: Mutex<BTreeMap<&'static str, CheckOutcome>>,
    gauges: Mutex<BTreeMap<&'static str, Gauge>>,
}

type Gauge = Box<dyn Fn() -> usize + Send>;

impl Health {
    /// A process that is starting, with nothing to check yet.
    pub fn starting(config: &HealthConfig) -> Self {
        Self(Arc::new(Inner {
            config: config.clone(),
            started: Instant::now(),
            phase: AtomicU8::new(Phase::Starting as u8),
            outcomes: Mutex::default(),
            gauges: Mutex::default(),
        }))
    }

    /// Runs `check` now, and from then on in the background. A failure, or a return to health, is
    /// logged when it happens, not at each run.
    pub async fn watch<C, F, E>(&self, name: &'static str, critical: bool, check: C)
    where
        C: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send,
        E: std::fmt::Display + Send,
    {
        self.run(name, critical, check()).await;
        let registry = Arc::downgrade(&self.0);
        let interval = self.0.config.interval;
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                let Some(inner) = registry.upgrade() else { return };
                Self(inner).run(name, critical, check()).await;
            }
        });
    }

    /// Shows a number in the report, as it is when the report is asked for.
    pub fn gauge(&self, name: &'static str, read: impl Fn() -> usize + Send + 'static) {
        lock(&self.0.gauges).insert(name, Box::new(read));
    }

    /// Every gauge, read now.
    pub fn gauges(&self) -> BTreeMap<&'static str, usize> {
        lock(&self.0.gauges).iter().map(|(name, read)| (*name, read())).collect()
    }

    /// Everything stands: ready, if the critical checks pass. Draining may have begun before.
    pub fn serving(&self) {
        let (starting, serving) = (Phase::Starting as u8, Phase::Serving as u8);
        let _ = self.0.phase.compare_exchange(starting, serving, SeqCst, SeqCst);
    }

    /// Going down: not ready from now on.
    pub fn draining(&self) {
        self.0.phase.store(Phase::Draining as u8, SeqCst);
    }

    pub fn phase(&self) -> Phase {
        match self.0.phase.load(SeqCst) {
            phase if phase == Phase::Starting as u8 => Phase::Starting,
            phase if phase == Phase::Serving as u8 => Phase::Serving,
            _ => Phase::Draining,
        }
    }

    /// Whether to send requests here.
    pub fn ready(&self) -> bool {
        self.phase() == Phase::Serving && self.failing().is_empty()
    }

    /// The critical dependencies that are down.
    pub fn failing(&self) -> Vec<&'static str> {
        let down = |outcome: &CheckOutcome| outcome.critical && outcome.status == CheckStatus::Fail;
        lock(&self.0.outcomes)
            .iter()
            .filter(|(_, outcome)| down(outcome))
            .map(|(name, _)| *name)
            .collect()
    }

    pub fn outcomes(&self) -> BTreeMap<&'static str, CheckOutcome> {
        lock(&self.0.outcomes).clone()
    }

    pub fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    async fn run<E: std::fmt::Display>(
        &self,
        name: &'static str,
        critical: bool,
        check: impl Future<Output = Result<(), E>>,
    ) {
        let start = Instant::now();
        let failure = match tokio::time::timeout(self.0.config.timeout, check).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {:?}", self.0.config.timeout)),
        };
        let status = if failure.is_none() { CheckStatus::Pass } else { CheckStatus::Fail };
        let mut outcomes = lock(&self.0.outcomes);
        let before = outcomes.get(name);
        match (&failure, before.map(|outcome| outcome.status)) {
            (Some(error), None | Some(CheckStatus::Pass)) => {
                tracing::warn!(check = name, critical, error, "a dependency is down");
            }
            (None, Some(CheckStatus::Fail)) => tracing::info!(check = name, "a dependency is back"),
            _ => {}
        }
        let last_success = match status {
            CheckStatus::Pass => Some(Utc::now()),
            CheckStatus::Fail => before.and_then(|outcome| outcome.last_success),
        };
        let latency_ms = start.elapsed().as_secs_f64() * 1000.0;
        outcomes.insert(name, CheckOutcome { status, critical, latency_ms, last_success });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
