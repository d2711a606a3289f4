//! Logs: in which shape, and how much, which can be changed while the process runs.

use std::fmt::{self, Debug};
use std::io::IsTerminal;
use std::sync::OnceLock;

use anyhow::{Context, anyhow};
use tracing::Subscriber;
use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry, reload};

use super::json::{JsonFields, JsonLine, is_for_traces};
use super::output::{LastLines, Output};
use super::targets::{REQUEST, SERVER, TRACE};
use crate::config::{LogConfig, LogFormat, log_targets};

static CONTROL: OnceLock<Control> = OnceLock::new();

struct Control {
    filter: reload::Handle<Targets, Registry>,
    output: Output,
}

/// The layer that writes, and what writes the last lines when it is dropped.
pub(super) fn layer(config: &LogConfig) -> anyhow::Result<(impl Layer<Registry>, LastLines)> {
    let (filter, handle) = reload::Layer::new(parse(&config.filter)?);
    let (output, last_lines) = Output::start().context("no thread for the log")?;
    let _ = CONTROL.set(Control { filter: handle, output: output.clone() });
    Ok((shape(config.format, output).with_filter(filter), last_lines))
}

fn shape<S>(format: LogFormat, output: Output) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    match format {
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .with_writer(output)
            .fmt_fields(JsonFields)
            .event_format(JsonLine)
            .with_ansi(false)
            .boxed(),
        LogFormat::Pretty => tracing_subscriber::fmt::layer()
            .with_writer(output)
            .fmt_fields(format::debug_fn(pretty_field))
            .compact()
            .with_ansi(std::io::stdout().is_terminal())
            .boxed(),
    }
}

/// A field for people, who have no use for those of traces.
fn pretty_field(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> fmt::Result {
    match field.name() {
        "message" => write!(writer, "{value:?}"),
        name if is_for_traces(name) => Ok(()),
        name => write!(writer, " {name}={value:?}"),
    }
}

/// The ids are on every line, whatever is asked for; spans that traces are made of are on none.
fn parse(filter: &str) -> anyhow::Result<Targets> {
    let targets =
        log_targets(filter).map_err(|error| anyhow!("log.filter cannot be read: {error}"))?;
    Ok(targets
        .with_target(REQUEST, LevelFilter::ERROR)
        .with_target(TRACE, LevelFilter::OFF)
        .with_target(SERVER, LevelFilter::ERROR))
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
    CONTROL.get().map_or(0, |control| control.output.dropped())
}
