//! What a request costs the database: its access log line says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

tokio::task_local! {
    static USAGE: Arc<Usage>;
}

/// A request's time in the database and its number of round trips.
#[derive(Debug, Default)]
pub struct Usage {
    nanoseconds: AtomicU64,
    queries: AtomicU32,
}

impl Usage {
    pub fn time(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Relaxed))
    }

    pub fn queries(&self) -> u32 {
        self.queries.load(Relaxed)
    }
}

/// Runs `work` with its queries counted in `usage`.
pub async fn track_usage<F: Future>(usage: Arc<Usage>, work: F) -> F::Output {
    USAGE.scope(usage, work).await
}

/// Makes `work`, on its way to a task of its own, go on counting for the request that spawns it.
pub fn inherit_usage<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let usage = USAGE.try_with(Arc::clone).unwrap_or_default();
    USAGE.scope(usage, work)
}

/// Runs one query and counts it. [`on!`](crate::on) calls it.
pub async fn counted<T>(query: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let start = Instant::now();
    let outcome = query.await;
    // Outside a request there is nobody to count for.
    let _ = USAGE.try_with(|usage| {
        let spent = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        usage.nanoseconds.fetch_add(spent, Relaxed);
        usage.queries.fetch_add(1, Relaxed);
    });
    outcome
}
