use axum::extract::State;
use serde::{Deserialize, Serialize};

use crate::call::Service;
use crate::context::Context;
use crate::extract::{Json, Query};
use crate::problem::Problem;
use crate::routes::SharedApi;
use crate::routes::page::page_size;

/// How many tags.
#[derive(Debug, Deserialize, garde::Validate, utoipa::IntoParams)]
#[garde(allow_unvalidated)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct TagsQuery {
    /// The most used ones, 20 unless asked otherwise.
    #[garde(range(min = 1, max = 100))]
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
}

/// A tag in use.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Tag)]
pub(crate) struct TagView {
    #[schema(example = "rust")]
    tag: String,
    post_count: i64,
}

/// The most used tags.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct TagList {
    items: Vec<TagView>,
    /// Always none: the list is the head of all tags.
    next_cursor: Option<String>,
}

/// List the most used tags
#[utoipa::path(
    get,
    path = "/api/v1/tags",
    tag = "Posts",
    operation_id = "list_tags",
    params(TagsQuery),
    responses((status = 200, description = "Most used first.", body = TagList))
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    Query(asked): Query<TagsQuery>,
) -> Result<Json<TagList>, Problem> {
    let limit = page_size(asked.limit);
    let tags = api.read(Service::Posts, &context, |_| api.posts.tags(limit)).await?;
    let items = tags.into_iter().map(|(tag, post_count)| TagView { tag, post_count }).collect();
    Ok(Json(TagList { items, next_cursor: None }))
}
