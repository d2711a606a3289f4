//! The targets that filters tell apart.

/// The access log's lines. Sentry takes a failed request from `sentry::report`, which knows more, and
/// lines with client addresses make no breadcrumbs.
pub const ACCESS: &str = concat!(env!("CARGO_CRATE_NAME"), "::access");

/// The span that gives log lines their request's ids.
pub const REQUEST: &str = concat!(env!("CARGO_CRATE_NAME"), "::request");

/// Spans that traces are made of. Logs do not carry them.
pub const TRACE: &str = concat!(env!("CARGO_CRATE_NAME"), "::trace");

/// Of these, a request's own. It is there even when nothing is sent: it has the trace id.
pub const SERVER: &str = concat!(env!("CARGO_CRATE_NAME"), "::trace::server");

/// Of these, that of a call to another service, which is told of it even when nothing is sent.
pub const CALL: &str = concat!(env!("CARGO_CRATE_NAME"), "::trace::call");
