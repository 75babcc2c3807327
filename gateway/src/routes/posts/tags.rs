use axum::extract::State;
use rookery_actors::posts::UsedTag;
use serde::Serialize;

use crate::call::Service;
use crate::context::Context;
use crate::extract::{Json, Query};
use crate::problem::Problem;
use crate::routes::SharedApi;
use crate::routes::page::PageQuery;

/// Names the list: its cursors open in no other.
const SCOPE: &str = "tags";

/// A tag in use.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Tag)]
pub(crate) struct TagView {
    #[schema(example = "rust")]
    tag: String,
    post_count: i64,
}

/// A page of tags.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct TagList {
    items: Vec<TagView>,
    /// Ask with it for the next page; none: this was the last.
    next_cursor: Option<String>,
}

/// List tags
#[utoipa::path(
    get,
    path = "/api/v1/tags",
    tag = "Posts",
    operation_id = "list_tags",
    params(PageQuery),
    responses((status = 200, description = "A page of the tags in use, the most used first.", body = TagList))
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    Query(asked): Query<PageQuery>,
) -> Result<Json<TagList>, Problem> {
    let after: Option<UsedTag> = asked.after(&api.cursors, SCOPE)?;
    let page = api.read(Service::Posts, &context, |_| api.posts.tags(after.clone(), asked.size())).await?;
    let next_cursor = page.next.map(|last| api.cursors.seal(SCOPE, &last));
    let items = page.items.into_iter().map(|UsedTag { tag, posts }| TagView { tag, post_count: posts }).collect();
    Ok(Json(TagList { items, next_cursor }))
}
