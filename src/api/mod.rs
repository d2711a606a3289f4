//! The table of contents: one folder a resource, one line each in [`routes`].

mod gate;
mod me;
mod openapi;
mod page;
pub mod plans;
mod routes;
mod rules;

pub use gate::{Gate, authenticated, keep, public, scope};
pub use openapi::{document, finish};
pub use routes::Routes;

/// Every resource's routes, under the version that they promise to keep.
pub fn routes() -> Routes {
    Routes::new().nest("/api/v1/plans", plans::routes()).nest("/api/v1/me", me::routes())
}
