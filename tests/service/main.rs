//! The service as its clients know it: the real router over the real stack.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may panic, and so may its helpers"
)]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "the rest of it is for the tests of telemetry")]
mod support;

mod auth;
mod cache;
mod database;
mod errors;
mod gate;
mod health;
mod http;
mod openapi;
mod plans;
mod ratelimit;
