//! The table of contents: one folder a resource, one line each in [`routes`].

mod openapi;
mod page;
pub mod plans;
mod rules;

use utoipa_axum::router::OpenApiRouter;

pub use openapi::{document, finish};

use crate::state::AppState;

/// Every resource's routes, under the version that they promise to keep.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().nest("/api/v1/plans", plans::routes())
}
