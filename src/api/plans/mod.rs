//! Plans: the sample resource. It shows each idiom once; copy the folder, or remove it.

mod handlers;
mod model;
mod store;

use metrics::describe_counter;
use utoipa_axum::routes;

use crate::api::{Routes, scope};

const READ: &str = "plans:read";
const WRITE: &str = "plans:write";

/// A business event, for a dashboard.
const CREATED: &str = "plans_created_total";

/// The resource's routes, below its path, and what each asks of its caller. Another quota class than
/// `default` is one more word: `scope(WRITE).class("strict")`.
pub fn routes() -> Routes {
    describe_counter!(CREATED, "Plans created.");
    Routes::new()
        .add(scope(READ), routes!(handlers::list))
        .add(scope(WRITE), routes!(handlers::create))
        .add(scope(READ), routes!(handlers::get))
        .add(scope(WRITE), routes!(handlers::replace, handlers::patch, handlers::delete))
}
