use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use rookery_actors::authors::Author;
use rookery_actors::ids::PostId;
use rookery_actors::posts::Post;
use uuid::Uuid;

use super::{PostView, stamp};
use crate::call::Service;
use crate::context::Context;
use crate::extract::{IfNoneMatch, MaybeUser, Path};
use crate::markdown;
use crate::problem::Problem;
use crate::routes::render::{self, Whole};
use crate::routes::{Api, SharedApi};

/// Read a post
#[utoipa::path(
    get,
    path = "/api/v1/posts/{id}",
    tag = "Posts",
    operation_id = "get_post",
    params(
        ("id" = Uuid, Path, description = "The post."),
        ("if-none-match" = Option<String>, Header, description = "The entity tag that you have."),
    ),
    responses(
        (status = 200, description = "The post, `body_html` included.", body = PostView,
            headers(("etag" = String, description = "Version, a dot, and a hash of what else the answer depends on."))),
        (status = 304, description = "You have it already."),
    ),
    security((), ("bearer" = []))
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    Path(id): Path<Uuid>,
    MaybeUser(user): MaybeUser,
    have: IfNoneMatch,
) -> Result<Response, Problem> {
    let (post, liked) = api.post_seen(&context, PostId(id), user.as_deref()).await?;
    let author = api.author(Service::Posts, &context, post.author).await?;
    let whole = api.post_whole(&post, author.as_deref());
    let etag = match liked {
        None => whole.etag.clone(),
        Some(_) => whole.stamp.etag(liked),
    };
    Ok(render::single(&have, etag, || whole.json(liked)))
}

impl Api {
    /// A post with its rendered body.
    fn post_whole(&self, post: &Post, author: Option<&Author>) -> Arc<Whole> {
        let stamp = stamp(post, author);
        let known = self.post_wholes.get(&post.id);
        if let Some(whole) = known.as_ref().filter(|whole| whole.stamp == stamp) {
            return whole.clone();
        }
        // A like changes the answer but not the text: Markdown is rendered once per version.
        let html = match known.filter(|whole| whole.stamp.version == stamp.version) {
            Some(whole) => whole.html.clone(),
            None => html_member(post.body.as_str()),
        };
        let whole = Arc::new(Whole::new(&self.post_item(post, author), html));
        self.post_wholes.insert(post.id, whole.clone());
        whole
    }
}

/// `,"body_html":"…"`
fn html_member(body: &str) -> Bytes {
    let mut member = br#","body_html":"#.to_vec();
    serde_json::to_writer(&mut member, &markdown::render(body)).expect("text is JSON");
    member.into()
}
