//! Plinth: an axum service, complete and in production shape on the first run, made to be forked.
//!
//! Begin with `main.rs`, the start-up on one page, then [`app`], where the house is opened and every
//! room wired into one router. Imports run one way, in the order below, and never back up.

pub mod cli;

pub mod app;

pub mod server;

pub mod api;

pub mod management;

pub mod state;

pub mod middleware;

pub mod health;

pub mod auth;

pub mod ratelimit;

pub mod cache;

pub mod redis;

pub mod db;

pub mod telemetry;

pub mod extract;

pub mod error;

pub mod config;
