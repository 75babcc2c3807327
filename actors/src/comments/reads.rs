//! How comments are read, wherever their threads are served: whoever serves one is asked once.

use std::{collections::HashSet, num::NonZeroUsize};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Answer, Comment, Comments, Page, Place, Query, here};
use crate::{
    entity::Failure,
    ids::{CommentId, Incarnation, PostId, UserId},
    runtime::strange_answer,
};

/// Which page, for whom, and what is known of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Asked {
    pub(super) place: Place,
    pub(super) limit: NonZeroUsize,
    pub(super) viewer: Option<UserId>,
    pub(super) known: Option<Revision>,
}

/// A state of a thread: who has numbered it, and its number. No two states ever share one.
type Revision = (Incarnation, u64);

/// What a page of a thread was made of besides its place: it is the same as long as this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    pub(super) revision: Revision,
    /// What was known of authors where it was asked for.
    pub(super) authors: u64,
}

/// A look at a page.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Look {
    /// The post is gone, or the comment below which the page was to be.
    Gone,
    /// It is what is known already.
    Same,
    /// The page.
    Page {
        /// The comments.
        page: Page<Place>,
        /// Those of them that the viewer likes.
        liked: HashSet<CommentId>,
        /// What it was made of, if that was one state.
        stamp: Option<Stamp>,
    },
}

impl Comments {
    /// What a page of a thread depends on besides its place. None: the thread is not in memory here.
    pub fn stamp(&self, post: PostId) -> Option<Stamp> {
        let authors = self.runtime.service().authors.generation();
        let revision = (self.runtime.incarnation(), self.runtime.revision(post.0)?);
        Some(Stamp { revision, authors })
    }

    /// Whether nothing was learnt of any author since: for whoever has put names beside a page.
    pub fn same_authors(&self, stamp: &Stamp) -> bool {
        stamp.authors == self.runtime.service().authors.generation()
    }

    /// A comment or its tombstone.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn get(&self, post: PostId, comment: CommentId, deadline: Instant) -> Result<Option<Comment>, Failure> {
        match here::comment(&self.runtime, post, comment, deadline).await {
            Err(Failure::Moved(_)) => Ok(self.get_many(vec![(post, comment)], deadline).await?.pop()),
            comment => comment,
        }
    }

    /// Comments or their tombstones, in any order; those that are gone are left out. Each node is asked once.
    ///
    /// # Errors
    /// When one of them cannot be read now.
    pub async fn get_many(&self, comments: Vec<(PostId, CommentId)>, deadline: Instant) -> Result<Vec<Comment>, Failure> {
        let answers = self.runtime.query_each(comments, |(post, _)| post.0, Query::Comments, deadline).await?;
        let mut found = Vec::new();
        for answer in answers {
            let Answer::Comments(comments) = answer else { return Err(strange_answer()) };
            found.extend(comments);
        }
        Ok(found)
    }

    /// A page of a thread, in tree order: from memory, and what is written in the comments from there too unless it
    /// was not read for long. None: the post is gone, or the comment below which the page was to be.
    ///
    /// Whether the post was ever there is for the caller to ask, as with [`Comments::add`]: the thread of any id is empty.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn page(&self, place: &Place, limit: NonZeroUsize, deadline: Instant) -> Result<Option<Page<Place>>, Failure> {
        match self.look(place, limit, None, None, deadline).await? {
            Look::Page { page, .. } => Ok(Some(page)),
            Look::Gone | Look::Same => Ok(None),
        }
    }

    /// The same as somebody sees it, unless it is what is known already. Whoever serves the thread is asked once.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn look(
        &self,
        place: &Place,
        limit: NonZeroUsize,
        viewer: Option<UserId>,
        known: Option<Stamp>,
        deadline: Instant,
    ) -> Result<Look, Failure> {
        let authors = self.runtime.service().authors.generation();
        let known = known.filter(|known| known.authors == authors).map(|known| known.revision);
        let asked = Asked { place: place.clone(), limit, viewer, known };
        let mut look = match here::look(&self.runtime, &asked, deadline).await {
            Err(Failure::Moved(_)) => {
                let shard = self.runtime.shard_of(place.scope.post.0);
                match self.runtime.query(shard, &Query::Page(asked), deadline).await? {
                    Answer::Page(look) => look,
                    _ => return Err(strange_answer()),
                }
            }
            look => look?,
        };
        if let Look::Page { stamp: Some(stamp), .. } = &mut look {
            stamp.authors = authors;
        }
        Ok(look)
    }

    /// Which of these comments a user likes.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn liked(&self, user: UserId, comments: &[Comment], deadline: Instant) -> Result<HashSet<CommentId>, Failure> {
        // Nobody likes a comment without likes.
        let likely = comments.iter().filter(|comment| comment.like_count > 0);
        let likely: Vec<_> = likely.map(|comment| (comment.post_id, comment.id)).collect();
        let query = |comments| Query::Liked(user, comments);
        let mut liked = HashSet::new();
        for answer in self.runtime.query_each(likely, |(post, _)| post.0, query, deadline).await? {
            let Answer::Liked(found) = answer else { return Err(strange_answer()) };
            liked.extend(found);
        }
        Ok(liked)
    }
}
