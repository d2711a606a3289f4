//! Work worth a name: its time in metrics, its span in traces.

use std::time::Instant;

use metrics::histogram;
use tracing::field::Empty;
use tracing::{Instrument, Span, info_span};

use super::targets::TRACE;

/// Runs `work`, and says how long it took and how it ended: as a span named `operation`, and in
/// `operation_duration_seconds{operation, outcome}`, where the outcome is `ok`, `error` or, for work
/// that was dropped before its end, `cancelled`.
///
/// ```
/// # use plinth::error::Result;
/// # async fn read() -> Result<u32> { Ok(3) }
/// # async fn handler() -> Result<u32> {
/// plinth::telemetry::timed("plans.import", async {
///     let plans = read().await?;
///     Ok(plans)
/// })
/// .await
/// # }
/// ```
pub async fn timed<T, E>(
    operation: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let span =
        info_span!(target: TRACE, "operation", otel.name = operation, otel.status_code = Empty);
    let mut timing = Timing { operation, start: Instant::now(), outcome: "cancelled", span };
    let result = work.instrument(timing.span.clone()).await;
    timing.outcome = if result.is_ok() { "ok" } else { "error" };
    result
}

/// Dropping it writes it.
struct Timing {
    operation: &'static str,
    start: Instant,
    outcome: &'static str,
    span: Span,
}

impl Drop for Timing {
    fn drop(&mut self) {
        if self.outcome == "error" {
            self.span.record("otel.status_code", "ERROR");
        }
        histogram!(
            "operation_duration_seconds",
            "operation" => self.operation,
            "outcome" => self.outcome
        )
        .record(self.start.elapsed());
    }
}
