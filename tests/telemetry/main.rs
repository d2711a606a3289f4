//! What operators see of the real binary: traces, metrics, the pages, and what must be in none.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may panic, and so may its helpers"
)]
#![expect(clippy::print_stdout, reason = "`--nocapture` shows what was measured")]

#[path = "../support/collector.rs"]
mod collector;
#[path = "../support/process.rs"]
#[expect(dead_code, reason = "the rest of it is for the tests of the binary")]
mod process;
#[path = "../support/sentry.rs"]
mod sentry_server;
#[path = "../support/service.rs"]
mod service;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "the rest of it is for the tests that run the router in process")]
mod support;

mod canary;
mod dashboards;
mod management;
mod metrics;
mod sentry;
mod traces;
