//! The binary as its operator knows it: what it prints, how it exits, and what it does with
//! signals, ports, files and a database that goes away.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may panic, and so may its helpers"
)]
#![expect(clippy::print_stdout, reason = "`--nocapture` shows what was measured")]

#[path = "../support/process.rs"]
mod process;
#[path = "../support/sentry.rs"]
#[expect(dead_code, reason = "the rest of it is for the tests of telemetry")]
mod sentry_server;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "the rest of it is for the tests that run the router in process")]
mod support;

mod attacks;
mod bad_start;
mod commands;
mod keys;
mod logs;
mod sentry;
mod start;
mod stop;
mod wire;
