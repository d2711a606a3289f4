//! What operators see: logs on standard output, and errors in Sentry.

mod json;
pub mod panic;
pub mod sentry;

use std::io::IsTerminal;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Config, LogFormat};
use json::{JsonFields, JsonLine};

/// Keeps telemetry going. Dropping it writes and sends what is still waiting, for a second and for
/// two at most.
#[must_use = "dropping it ends telemetry"]
pub struct Telemetry {
    sentry: Option<::sentry::ClientInitGuard>,
    dropped_lines: ErrorCounter,
    /// Writes the last lines when it is dropped, after the rest of this.
    _logs: WorkerGuard,
}

/// Longest the exit waits for what Sentry has not taken yet.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

impl Drop for Telemetry {
    /// On a thread of its own, left behind when time is up: Sentry's own limit ends its wait for
    /// the queue, but then it joins a thread that may be in the middle of a request without one.
    fn drop(&mut self) {
        let lost = self.dropped_lines.dropped_lines();
        if lost > 0 {
            tracing::warn!(lost, "log lines were dropped: what reads them was too slow");
        }
        let Some(guard) = self.sentry.take() else { return };
        let (flushed, done) = mpsc::channel();
        thread::spawn(move || {
            drop(guard);
            flushed.send(())
        });
        // An error is that time is up.
        let _ = done.recv_timeout(FLUSH_TIMEOUT);
    }
}

/// Starts logs and Sentry, and turns panics into log lines. Call it once, before the runtime:
/// Sentry's hub is to be the one that all threads inherit.
///
/// # Errors
/// A log filter that cannot be read, or a second call.
pub fn init(config: &Config) -> anyhow::Result<Telemetry> {
    let filter: Targets = config.log.filter.parse().context("log.filter cannot be read")?;
    let guard = sentry::init(config)?;
    // On a thread of its own: a reader of the log that stalls must not stall requests with it.
    let (stdout, logs) = NonBlockingBuilder::default().lossy(true).finish(std::io::stdout());
    let dropped_lines = stdout.error_counter();
    let layer = match config.log.format {
        LogFormat::Json => fmt::layer()
            .with_writer(stdout)
            .fmt_fields(JsonFields)
            .event_format(JsonLine)
            .with_ansi(false)
            .boxed(),
        LogFormat::Pretty => fmt::layer()
            .with_writer(stdout)
            .compact()
            .with_ansi(std::io::stdout().is_terminal())
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .with(guard.is_some().then(sentry::layers))
        .try_init()?;
    panic::install_hook();
    Ok(Telemetry { sentry: guard, dropped_lines, _logs: logs })
}
