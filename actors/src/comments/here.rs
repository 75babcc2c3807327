//! Threads that are served by this node.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroUsize,
    sync::Arc,
};

use tokio::time::Instant;
use uuid::Uuid;

use super::{Asked, Comment, CommentService, Look, Page, Place, Scope, Stamp, Thread, texts::Written, tree::Info};
use crate::{
    entity::Failure,
    ids::{CommentId, PostId, ShardId, UserId},
    runtime::Runtime,
};

pub(super) async fn comment(
    runtime: &Runtime<CommentService>,
    post: PostId,
    comment: CommentId,
    deadline: Instant,
) -> Result<Option<Comment>, Failure> {
    let info = view(runtime, post, deadline, |thread| thread?.tree()?.get(comment.0)).await?;
    Ok(complete_all(runtime, post, info.as_slice()).await?.pop())
}

pub(super) async fn page(
    runtime: &Runtime<CommentService>,
    place: &Place,
    limit: NonZeroUsize,
    deadline: Instant,
) -> Result<Option<Page<Place>>, Failure> {
    let Scope { post, parent, .. } = place.scope;
    let query = place.query(limit);
    let page = view(runtime, post, deadline, |thread| {
        let tree = thread?.tree()?;
        parent.is_none_or(|parent| tree.get(parent.0).is_some()).then(|| tree.page(&query))
    });
    let Some(page) = page.await? else { return Ok(None) };
    let items = complete_all(runtime, post, &page.comments).await?;
    let next = page.next.map(|cursor| Place { scope: place.scope.clone(), after: Some(cursor) });
    Ok(Some(Page { items, next }))
}

/// A page as it was asked for: with what its viewer likes, and not at all if it is known already.
pub(super) async fn look(runtime: &Runtime<CommentService>, asked: &Asked, deadline: Instant) -> Result<Look, Failure> {
    let Asked { place, limit, viewer, known } = asked;
    let revision = || Some((runtime.incarnation(), runtime.revision(place.scope.post.0)?));
    let before = revision();
    if known.is_some() && *known == before {
        return Ok(Look::Same);
    }
    let Some(page) = page(runtime, place, *limit, deadline).await? else {
        return Ok(Look::Gone);
    };
    let liked = match viewer {
        Some(viewer) => {
            // Nobody likes a comment without likes.
            let likely = page.items.iter().filter(|comment| comment.like_count > 0);
            liked(runtime, *viewer, &likely.map(|comment| (comment.post_id, comment.id)).collect::<Vec<_>>()).await?
        }
        None => Vec::new(),
    };
    // Of one state, or of none that has a number.
    let revision = before.filter(|before| revision() == Some(*before));
    Ok(Look::Page { page, liked: liked.into_iter().collect(), stamp: revision.map(|revision| Stamp { revision, authors: 0 }) })
}

pub(super) async fn liked(
    runtime: &Runtime<CommentService>,
    user: UserId,
    comments: &[(PostId, CommentId)],
) -> Result<Vec<CommentId>, Failure> {
    if comments.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = comments.iter().map(|(_, comment)| comment.0).collect();
    let rows = {
        let client = runtime.database().get().await?;
        client.query("SELECT comment FROM comment_like WHERE user_id = $1 AND comment = ANY($2)", &[&user.0, &ids]).await?
    };
    // What SQL saw committed must be in memory before we answer beside it (rule 9).
    let shards: HashSet<ShardId> = comments.iter().map(|(post, _)| runtime.shard_of(post.0)).collect();
    for shard in shards {
        runtime.settled(shard).await;
    }
    Ok(rows.iter().map(|row| CommentId(row.get(0))).collect())
}

async fn view<T>(
    runtime: &Runtime<CommentService>,
    post: PostId,
    deadline: Instant,
    view: impl Fn(Option<&Thread>) -> T,
) -> Result<T, Failure> {
    match runtime.read_loaded(post.0, &view) {
        Some(value) => value,
        None => runtime.read(post.0, deadline, view).await,
    }
}

/// Puts what is written in these comments beside their skeletons.
async fn complete_all(runtime: &Runtime<CommentService>, post: PostId, infos: &[Info]) -> Result<Vec<Comment>, Failure> {
    let texts = &runtime.service().texts;
    let known: Vec<Option<Arc<Written>>> = infos.iter().map(|info| texts.known(info)).collect();
    let missing: Vec<Uuid> = infos.iter().zip(&known).filter(|(_, known)| known.is_none()).map(|(info, _)| info.id).collect();
    let fetched = if missing.is_empty() {
        HashMap::new()
    } else {
        let fetched = texts.fetch(runtime.database(), post, &missing).await?;
        // What SQL saw committed must be in memory before we answer beside it (rule 9).
        runtime.settled(runtime.shard_of(post.0)).await;
        fetched
    };
    let complete = |(info, known): (&Info, Option<Arc<Written>>)| match known {
        Some(written) => Some(Comment::of(post, info, &written)),
        // The table may be ahead of the skeleton that was read before: then it tells what the comment is by now,
        // and one that has no row has gone meanwhile.
        None => fetched.get(&info.id).map(|(version, written)| Comment::of(post, &Info { version: *version, ..*info }, written)),
    };
    Ok(infos.iter().zip(known).filter_map(complete).collect())
}
