//! Metrics: what is counted, and the text that Prometheus reads.
//!
//! `metrics::counter!`, `gauge!` and `histogram!` count from anywhere. Names and labels follow
//! OpenTelemetry's semantic conventions where there are any. A label's values must be few and ours:
//! a route's template, never its path.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;
use tokio::runtime::Handle;

use super::{COMMIT, VERSION};

/// Telemetry that was dropped because nobody took it in time.
pub(super) const DROPPED: &str = "telemetry_dropped_total";

/// How often what was counted is summed up. Until then each value of a histogram takes memory.
const UPKEEP: Duration = Duration::from_secs(5);

/// From a cached read to `server.request_timeout`.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// From a single query by its key to `database.statement_timeout`.
const FINE_SECONDS: [f64; 13] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0];

const BYTES: [f64; 9] =
    [0.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 10_485_760.0];

/// Counters of seconds, which the recorder can only count in whole ones: they are kept as gauges, and
/// told for what they are.
const FRACTIONS: [&str; 2] = ["process_cpu_seconds_total", "tokio_worker_busy_seconds_total"];

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

enum Kind {
    Counter,
    Gauge,
    Histogram(&'static [f64]),
}
use Kind::{Counter, Gauge, Histogram};

/// Every metric of ours but those of `metrics_process`.
const METRICS: &[(&str, Kind, &str)] = &[
    (
        "http_server_request_duration_seconds",
        Histogram(&SECONDS),
        "Time from a request's head to the last byte of its answer.",
    ),
    (
        "http_server_request_body_size_bytes",
        Histogram(&BYTES),
        "Size of request bodies of known length.",
    ),
    (
        "http_server_response_body_size_bytes",
        Histogram(&BYTES),
        "Size of response bodies, as far as they were sent.",
    ),
    ("http_server_active_requests", Gauge, "Requests being worked on or answered."),
    (
        "http_client_request_duration_seconds",
        Histogram(&SECONDS),
        "Time of calls to other services, to the head of the answer.",
    ),
    ("db_client_connections", Gauge, "Connections open, by pool and state."),
    ("db_client_connection_max", Gauge, "Connections that a pool can have."),
    ("db_client_connection_pending_requests", Gauge, "Requests that wait for a connection."),
    (
        "db_client_connection_wait_time_seconds",
        Histogram(&FINE_SECONDS),
        "Time until a connection was had.",
    ),
    (
        "db_client_connection_timeouts_total",
        Counter,
        "Requests that waited for a connection in vain.",
    ),
    ("db_client_operation_duration_seconds", Histogram(&FINE_SECONDS), "Time of SQL statements."),
    ("cache_requests_total", Counter, "Cache look-ups, by what was found."),
    ("cache_loads_total", Counter, "Loads of what the cache did not have, or had too long."),
    (
        "cache_fallbacks_total",
        Counter,
        "Cache look-ups that Redis did not answer, though it is configured.",
    ),
    ("rate_limit_decisions_total", Counter, "Requests held against a quota, by class."),
    ("flood_guard_refused_total", Counter, "Requests that the flood guard refused."),
    ("load_shed_refused_total", Counter, "Requests refused because too many were being worked on."),
    ("quota_entries", Gauge, "Windows of quotas in memory."),
    ("flood_guard_clients", Gauge, "Clients in the flood guard's table."),
    ("circuit_breaker_state", Gauge, "1 for the state that a breaker is in, 0 for the others."),
    ("auth_attempts_total", Counter, "Requests that were asked who calls, by kind of credential."),
    ("server_connections", Gauge, "Client connections open."),
    ("server_connections_accepted_total", Counter, "Client connections accepted."),
    (
        "server_connections_refused_total",
        Counter,
        "Client connections that could not be accepted, or whose TLS handshake failed.",
    ),
    (
        "server_connections_timed_out_total",
        Counter,
        "Client connections closed because nothing happened on them for too long.",
    ),
    ("health_check_up", Gauge, "1 while a dependency passes its health check."),
    ("service_ready", Gauge, "1 while this process is to be sent requests."),
    ("operation_duration_seconds", Histogram(&SECONDS), "Time of what `timed` was put around."),
    ("tokio_workers", Gauge, "Worker threads of the runtime."),
    ("tokio_alive_tasks", Gauge, "Tasks that have not ended."),
    ("tokio_global_queue_depth", Gauge, "Tasks that wait for any worker."),
    ("tokio_worker_busy_seconds_total", Gauge, "Time that workers were busy, all together."),
    ("build_info", Gauge, "1, labelled with what was built."),
    (DROPPED, Counter, "Log lines and spans that were dropped because nobody took them."),
];

/// Begins to count. Until then the macros do nothing; a second call does nothing.
///
/// # Errors
/// Something else counts already.
pub fn install() -> anyhow::Result<()> {
    if RECORDER.get().is_some() {
        return Ok(());
    }
    // For histograms that are not listed. Without buckets they would be summaries, of one process.
    let mut builder = PrometheusBuilder::new().set_buckets(&SECONDS)?;
    for (name, kind, _) in METRICS {
        if let Histogram(buckets) = kind {
            builder = builder.set_buckets_for_metric(Matcher::Full((*name).into()), buckets)?;
        }
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)?;
    let _ = RECORDER.set(handle);
    describe();
    Ok(())
}

fn describe() {
    for &(name, ref kind, help) in METRICS {
        match kind {
            Counter => describe_counter!(name, help),
            Gauge => describe_gauge!(name, help),
            Histogram(_) => describe_histogram!(name, help),
        }
    }
    Collector::default().describe();
    gauge!("build_info", "version" => VERSION, "commit" => COMMIT).set(1);
    // An alert sees a counter rise, not appear: these begin at 0.
    for signal in ["logs", "spans"] {
        counter!(DROPPED, "signal" => signal).increment(0);
    }
    counter!("flood_guard_refused_total").increment(0);
    counter!("load_shed_refused_total").increment(0);
}

/// Sums up what was counted, for ever.
pub async fn keep_up() {
    loop {
        tokio::time::sleep(UPKEEP).await;
        if let Some(recorder) = RECORDER.get() {
            recorder.run_upkeep();
        }
    }
}

/// Everything counted, in Prometheus' text format 0.0.4; `None` before [`install`]. Needs a Tokio
/// runtime.
pub fn render() -> Option<String> {
    let recorder = RECORDER.get()?;
    Collector::default().collect();
    let runtime = Handle::current().metrics();
    gauge!("tokio_workers").set(runtime.num_workers() as f64);
    gauge!("tokio_alive_tasks").set(runtime.num_alive_tasks() as f64);
    gauge!("tokio_global_queue_depth").set(runtime.global_queue_depth() as f64);
    let busy: Duration =
        (0..runtime.num_workers()).map(|worker| runtime.worker_total_busy_duration(worker)).sum();
    gauge!("tokio_worker_busy_seconds_total").set(busy);
    counter!(DROPPED, "signal" => "logs").absolute(super::log::dropped());
    let text = recorder.render();
    Some(FRACTIONS.iter().fold(text, |text, name| {
        let type_of = |kind: &str| format!("# TYPE {name} {kind}\n");
        text.replacen(&type_of("gauge"), &type_of("counter"), 1)
    }))
}
