//! What the service does when too much is asked of it, or Redis goes away meanwhile. Each test has the
//! machine to itself, and prints what it measured: `cargo test --test load -- --nocapture`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may panic, and so may its helpers"
)]
#![expect(clippy::print_stdout, reason = "`--nocapture` shows what was measured")]

#[path = "../support/process.rs"]
#[expect(dead_code, reason = "the rest of it is for the tests of the binary")]
mod process;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "the rest of it is for the tests that run the router in process")]
mod support;

mod crowd;
mod outage;
mod overload;
mod replicas;

use tokio::sync::{Mutex, MutexGuard};

/// Held by the test that runs.
async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}
