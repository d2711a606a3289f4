//! What operators see: logs on standard output, traces by OTLP, metrics for Prometheus, errors in
//! Sentry. None of it is ever waited for: what nobody takes is dropped and counted.

mod json;
pub mod log;
pub mod metrics;
mod outbound;
mod output;
pub mod panic;
mod release;
mod scrub;
pub mod sentry;
pub mod targets;
mod timed;
pub mod traces;
pub mod traffic;

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use outbound::send;
pub use release::{COMMIT, VERSION};
pub use scrub::is_secret_name;
pub use timed::timed;

use crate::config::Config;
use output::LastLines;

/// Keeps telemetry going. Dropping it writes and sends what is still waiting, for a second and for
/// two at most.
#[must_use = "dropping it ends telemetry"]
pub struct Telemetry {
    sentry: Option<::sentry::ClientInitGuard>,
    traces: Option<SdkTracerProvider>,
    /// Writes the last lines when it is dropped, after the rest of this.
    _logs: LastLines,
}

/// Longest the exit waits for what Sentry and the receiver of traces have not taken yet.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

impl Drop for Telemetry {
    /// Both at once, on threads of their own that are left behind when time is up: their own limits
    /// end the wait for their queues, but not for a request that is under way.
    fn drop(&mut self) {
        let (flushing, flushed) = mpsc::channel::<()>();
        let (sentry, traces) = (self.sentry.take(), self.traces.take());
        let also = flushing.clone();
        thread::spawn(move || {
            drop(sentry);
            drop(also);
        });
        thread::spawn(move || {
            // It fails when there is nobody to take them, which is counted.
            let _ = traces.map(|traces| traces.shutdown_with_timeout(FLUSH_TIMEOUT));
            drop(flushing);
        });
        // Nothing is ever sent: it ends when both are done, or when time is up.
        if flushed.recv_timeout(FLUSH_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("traces or events are left behind: nobody took them in time");
        }
        let lost = log::dropped();
        if lost > 0 {
            tracing::warn!(lost, "log lines were dropped: what reads them was too slow");
        }
    }
}

/// Starts logs, metrics, traces and Sentry, and turns panics into log lines. Call it once, before the
/// runtime: Sentry's hub is to be the one that all threads inherit.
///
/// # Errors
/// A setting that cannot be used, or a second call.
pub fn init(config: &Config) -> anyhow::Result<Telemetry> {
    metrics::install()?;
    let (logged, logs) = log::layer(&config.log)?;
    let (traced, traces) = traces::layer(config)?;
    let sentry = sentry::init(config)?;
    tracing_subscriber::registry()
        .with(logged)
        .with(traced)
        .with(sentry.is_some().then(|| sentry::layers(config)))
        .try_init()?;
    panic::install_hook();
    Ok(Telemetry { sentry, traces: Some(traces), _logs: logs })
}
