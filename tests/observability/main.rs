//! What needs programs that only operators have: a browser for the status page, promtool for what
//! Prometheus is to read. `make test-observability`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may panic, and so may its helpers"
)]

#[path = "../support/browser.rs"]
mod browser;
#[path = "../support/process.rs"]
#[expect(dead_code, reason = "the rest of it is for the tests of the binary")]
mod process;
#[path = "../support/service.rs"]
#[expect(dead_code, reason = "the rest of it is for the tests of telemetry")]
mod service;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "the rest of it is for the tests that run the router in process")]
mod support;

mod promtool;
mod status_page;
