//! `POST /reindex`: the documents anew from the services' exports, then the indexes anew from the documents.

use std::{collections::HashSet, sync::Arc, time::Duration};

use axum::{extract::State, response::Response};
use backon::{ExponentialBuilder, Retryable};
use rookery_actors::{
    entity::Failure,
    ids::{CommentId, PostId, UserId},
    records::CommentRecord,
    search::{
        comment_document,
        index::{Document, Kind},
        post_document, user_document,
    },
    service::Poison,
};
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::Instant};
use uuid::Uuid;

use super::{Admin, ndjson};
use crate::node::Faces;

/// Records of an export, or documents, at a time.
const PAGE: usize = 500;
const PATIENCE: Duration = Duration::from_secs(30);
/// How long an index may be kept from being built: longer than a takeover or a restart of Postgres.
const OBSTACLE_PATIENCE: Duration = Duration::from_secs(15);

/// How far a rebuild has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "lowercase")]
pub enum Progress {
    /// Documents were made from an export.
    Exported {
        /// `users`, `posts`, `comments`.
        service: String,
        /// Since the beginning.
        documents: u64,
    },
    /// Documents were compared with what exists.
    Checked {
        /// Since the beginning.
        documents: u64,
        /// Of them, those of things that are gone.
        removed: u64,
    },
    /// The indexes are being built; the old ones serve until they are.
    Indexing,
    /// Done.
    Done {
        /// That can be found.
        documents: u64,
        /// Of things that were gone.
        removed: u64,
    },
    /// It ended early; what was done stays, and doing it again is harmless.
    Failed {
        /// Why.
        reason: String,
    },
}

pub(super) async fn reindex(State(admin): State<Arc<Admin>>) -> Response {
    let (progress, response) = ndjson::respond();
    tokio::spawn(async move {
        if let Err(failure) = rebuild_in_turn(&admin, &progress).await {
            let _ = progress.send(Progress::Failed { reason: failure.to_string() }).await;
        }
    });
    response
}

/// The same where nobody watches.
///
/// # Errors
/// When it ended early; what was done stays, and doing it again is harmless.
pub async fn unwatched(admin: &Admin) -> Result<(), Failure> {
    rebuild_in_turn(admin, &to_nobody()).await
}

/// Where progress is told to nobody. A receiver that lived and did not listen would hold up the second thing that is told, for
/// ever.
fn to_nobody() -> mpsc::Sender<Progress> {
    mpsc::channel(1).0
}

async fn rebuild_in_turn(admin: &Admin, progress: &mpsc::Sender<Progress>) -> Result<(), Failure> {
    // Two at once would only do everything twice.
    let _turn = admin.reindexing.lock().await;
    rebuild(&admin.faces, progress).await
}

/// Goes on when nobody watches any more: half a rebuild is worth less than a whole one.
async fn rebuild(faces: &Faces, progress: &mpsc::Sender<Progress>) -> Result<(), Failure> {
    let Faces { users, posts, comments, .. } = faces;
    export(faces, progress, "users", |after| users.export(after, PAGE, deadline()), |record| record.id, user_document).await?;
    export(faces, progress, "posts", |after| posts.export(after, PAGE, deadline()), |record| record.id, post_document).await?;
    let place = |record: &CommentRecord| (record.post_id, record.id);
    export(faces, progress, "comments", |after| comments.export(after, PAGE), place, comment_document).await?;
    let removed = remove_gone(faces, progress).await?;
    let _ = progress.send(Progress::Indexing).await;
    faces.search.rebuild(OBSTACLE_PATIENCE).await?;
    let _ = progress.send(Progress::Done { documents: faces.search.document_count(deadline()).await, removed }).await;
    Ok(())
}

fn patience() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(2))
        .with_max_times(15)
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// Makes documents of a whole export: `page` fetches what follows a place, `place` says where a record stands.
async fn export<R, P, F>(
    faces: &Faces,
    progress: &mpsc::Sender<Progress>,
    service: &str,
    page: impl Fn(Option<P>) -> F,
    place: impl Fn(&R) -> P,
    document: impl Fn(R) -> Result<Document, Poison>,
) -> Result<(), Failure>
where
    P: Copy,
    F: Future<Output = Result<Vec<R>, Failure>>,
{
    let (mut after, mut count) = (None, 0);
    loop {
        let records = (|| page(after)).retry(patience()).await?;
        let Some(last) = records.last() else {
            return Ok(());
        };
        after = Some(place(last));
        count += records.len() as u64;
        put(faces, records.into_iter().map(&document)).await?;
        let _ = progress.send(Progress::Exported { service: service.to_owned(), documents: count }).await;
    }
}

async fn put(faces: &Faces, documents: impl Iterator<Item = Result<Document, Poison>>) -> Result<(), Failure> {
    // One that cannot be made costs itself, not the rebuild.
    let whole =
        documents.filter_map(|document| document.inspect_err(|error| tracing::error!(%error, "a record makes no document")).ok());
    let documents: Vec<Document> = whole.collect();
    (|| faces.search.put(documents.clone())).retry(patience()).await
}

/// Marks documents of what does not exist as deleted; how many.
async fn remove_gone(faces: &Faces, progress: &mpsc::Sender<Progress>) -> Result<u64, Failure> {
    let (mut checked, mut removed) = (0, 0);
    for kind in Kind::ALL {
        let mut after: Option<Uuid> = None;
        loop {
            let documents = (|| faces.search.documents(kind, after, PAGE)).retry(patience()).await?;
            let Some(last) = documents.last() else { break };
            after = Some(last.id);
            checked += documents.len() as u64;
            let live: Vec<Document> = documents.into_iter().filter(|document| !document.deleted).collect();
            // Asked after the documents were read: a document follows its thing, so what has none by now is gone.
            let existing = (|| existing(faces, kind, &live)).retry(patience()).await?;
            let gone: Vec<_> = live.into_iter().filter(|document| !existing.contains(&document.id)).map(tombstone).collect();
            removed += gone.len() as u64;
            if !gone.is_empty() {
                put(faces, gone.into_iter().map(Ok)).await?;
            }
            let _ = progress.send(Progress::Checked { documents: checked, removed }).await;
        }
    }
    Ok(removed)
}

/// Which of these documents' things there are.
async fn existing(faces: &Faces, kind: Kind, documents: &[Document]) -> Result<HashSet<Uuid>, Failure> {
    let ids = documents.iter().map(|document| document.id);
    Ok(match kind {
        Kind::User => {
            let users: Vec<UserId> = ids.map(UserId).collect();
            faces.users.which_exist(&users).await?.into_iter().map(|id| id.0).collect()
        }
        Kind::Post => {
            let posts: Vec<PostId> = ids.map(PostId).collect();
            faces.posts.which_exist(&posts).await?.into_iter().map(|id| id.0).collect()
        }
        Kind::Comment => {
            let post = |document: &Document| PostId(document.post_id.unwrap_or_default());
            let comments: Vec<_> = documents.iter().map(|document| (post(document), CommentId(document.id))).collect();
            faces.comments.which_exist(&comments).await?.into_iter().map(|id| id.0).collect()
        }
    })
}

/// A document that says that its thing is gone, newer than the one before.
fn tombstone(document: Document) -> Document {
    Document {
        version: document.version + 1,
        author: None,
        tags: Vec::new(),
        title: None,
        body: String::new(),
        deleted: true,
        ..document
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was broken: documents that a node made anew by itself never got beyond the second thing to tell.
    #[tokio::test]
    async fn progress_that_nobody_watches_holds_up_nothing() {
        let progress = to_nobody();
        for _ in 0..3 {
            let told = tokio::time::timeout(Duration::from_secs(5), progress.send(Progress::Indexing));
            assert!(told.await.expect("it is not waited for").is_err(), "nobody hears it");
        }
    }
}
