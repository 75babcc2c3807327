use std::num::NonZeroUsize;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use rookery_actors::comments::{Look, Order, Place, Scope};
use rookery_actors::ids::{CommentId, PostId, UserId};
use serde::Deserialize;
use uuid::Uuid;

use super::{CommentList, no_such_comment};
use crate::call::Service;
use crate::context::Context;
use crate::extract::{MaybeUser, Path, Query};
use crate::problem::Problem;
use crate::routes::SharedApi;
use crate::routes::page::{page_size, within};
use crate::routes::render;

/// Which part of the thread.
#[derive(Debug, Deserialize, garde::Validate, utoipa::IntoParams)]
#[garde(allow_unvalidated)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ThreadQuery {
    /// The order among siblings: `new` (default), `old` or `top` (most likes, then newest).
    #[param(value_type = Option<OrderWord>, inline)]
    sort: Option<Order>,
    /// Only what stands below this comment, itself not included.
    parent: Option<Uuid>,
    /// How many levels below the parent, or from the top; all unless asked otherwise.
    #[garde(custom(within(1, 51)))]
    #[param(minimum = 1, maximum = 51)]
    depth: Option<u16>,
    /// Items on the page, 20 unless asked otherwise.
    #[garde(custom(within(1, 100)))]
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// The words of [`Order`], for the documentation.
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "the documentation reads the names")]
enum OrderWord {
    New,
    Old,
    Top,
}

/// List the comments of a post
///
/// A page of the tree, flat in tree order: replies follow what they answer.
#[utoipa::path(
    get,
    path = "/api/v1/posts/{id}/comments",
    tag = "Comments",
    operation_id = "list_comments",
    params(("id" = Uuid, Path, description = "The post."), ThreadQuery),
    responses((status = 200, description = "A page of the thread.", body = CommentList)),
    security((), ("bearer" = []))
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    Path(post): Path<Uuid>,
    MaybeUser(user): MaybeUser,
    Query(asked): Query<ThreadQuery>,
) -> Result<Response, Problem> {
    let post = PostId(post);
    let scope = Scope { post, order: asked.sort.unwrap_or_default(), parent: asked.parent.map(CommentId), depth: asked.depth };
    // A cursor of one walk opens in no other.
    let seal = format!("comments {scope:?}");
    let place = match asked.cursor.as_deref() {
        None => Place::start(scope),
        Some(cursor) => api.cursors.open(&seal, cursor)?,
    };
    // A thread knows only that its post is gone, not that it never was.
    api.post(&context, post).await?;
    let limit = NonZeroUsize::new(page_size(asked.limit)).expect("the limit is at least 1");
    // What depends on nobody's likes is kept whole, as long as the thread and the authors are what they were.
    let viewer = user.as_deref().map(|user| UserId(user.sub));
    let key = format!("{seal} {limit} {}", asked.cursor.as_deref().unwrap_or_default());
    let kept = if viewer.is_none() { api.comment_pages.get(&key) } else { None };
    let known = kept.as_ref().map(|kept| kept.stamp);
    if let Some(kept) = kept.as_ref().filter(|kept| api.comments.stamp(post) == Some(kept.stamp)) {
        return Ok(render::answer(StatusCode::OK, kept.json.clone(), None));
    }
    // Another node is asked only whether that is so.
    let look = |deadline| api.comments.look(&place, limit, viewer, known, deadline);
    let (page, liked, stamp) = match (api.read(Service::Comments, &context, look).await?, kept) {
        (Look::Page { page, liked, stamp }, _) => (page, liked, stamp),
        (Look::Same, Some(kept)) => return Ok(render::answer(StatusCode::OK, kept.json.clone(), None)),
        (Look::Same | Look::Gone, _) => return Err(no_such_comment()),
    };
    let next = page.next.map(|place| api.cursors.seal(&seal, &place));
    let json = api.comment_list(&context, viewer.map(|_| liked), &page.items, next).await?;
    if let Some(stamp) = stamp.filter(|stamp| viewer.is_none() && api.comments.same_authors(stamp)) {
        api.comment_pages.put(key, stamp, json.clone());
    }
    Ok(render::answer(StatusCode::OK, json, None))
}
