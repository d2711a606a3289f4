//! Plans: the sample resource. It shows each idiom once; copy the folder, or remove it.

mod handlers;
mod model;
mod store;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::state::AppState;

/// The resource's routes, below its path.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(handlers::list, handlers::create)).routes(routes!(
        handlers::get,
        handlers::replace,
        handlers::patch,
        handlers::delete
    ))
}
