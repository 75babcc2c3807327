//! Finding posts, users and comments.

mod find;
mod items;
mod suggest;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::SharedApi;

pub(super) fn routes() -> OpenApiRouter<SharedApi> {
    OpenApiRouter::new().routes(routes!(find::handle)).routes(routes!(suggest::handle))
}
