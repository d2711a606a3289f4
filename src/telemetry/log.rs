//! Logs on standard output, written by a thread of their own.

use std::io::{BufWriter, IsTerminal};
use std::sync::OnceLock;

use anyhow::Context;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use super::json::{JsonFields, JsonLine};
use super::traces::TRACE;
use crate::config::{LogConfig, LogFormat};

static CONTROL: OnceLock<Control> = OnceLock::new();

struct Control {
    filter: reload::Handle<Targets, Registry>,
    dropped: ErrorCounter,
}

/// The layer that writes, and what writes the last lines when it is dropped.
///
/// Lines wait in a queue of 128,000 for the thread that writes them: a reader that stalls must not
/// stall requests with it. Past that they are dropped and counted.
pub(super) fn layer(config: &LogConfig) -> anyhow::Result<(impl Layer<Registry>, WorkerGuard)> {
    let (filter, handle) = reload::Layer::new(parse(&config.filter)?);
    // The thread writes all that waits, then flushes: many lines are one call to the system.
    let out = BufWriter::with_capacity(BUFFER, std::io::stdout());
    let (out, guard) = NonBlockingBuilder::default().lossy(true).finish(out);
    let _ = CONTROL.set(Control { filter: handle, dropped: out.error_counter() });
    Ok((shape(config.format, out).with_filter(filter), guard))
}

const BUFFER: usize = 64 * 1024;

fn shape<S>(
    format: LogFormat,
    out: tracing_appender::non_blocking::NonBlocking,
) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    match format {
        LogFormat::Json => fmt::layer()
            .with_writer(out)
            .fmt_fields(JsonFields)
            .event_format(JsonLine)
            .with_ansi(false)
            .boxed(),
        LogFormat::Pretty => fmt::layer()
            .with_writer(out)
            .compact()
            .with_ansi(std::io::stdout().is_terminal())
            .boxed(),
    }
}

/// Spans that traces are made of are no fields of log lines.
fn parse(filter: &str) -> anyhow::Result<Targets> {
    let targets: Targets = filter.parse().context("log.filter cannot be read")?;
    Ok(targets.with_target(TRACE, LevelFilter::OFF))
}

/// What is logged from now on, until the process ends: levels by target, as `RUST_LOG` has them.
///
/// # Errors
/// It cannot be read, or there is no log.
pub fn set_filter(filter: &str) -> anyhow::Result<()> {
    let targets = parse(filter)?;
    let control = CONTROL.get().context("nothing is logged")?;
    // Before: the new one may not let it through.
    tracing::warn!(filter, "the log filter is being set");
    control.filter.reload(targets)?;
    Ok(())
}

/// Lines dropped so far.
pub fn dropped() -> u64 {
    CONTROL.get().map_or(0, |control| control.dropped.dropped_lines() as u64)
}
