//! What is written in comments: the node's cache of it, beside the skeletons of the threads.
//!
//! Its key is a comment *and a version of it*. What was written as of a version never changes, so an entry is never
//! stale: the skeleton says which version counts, and the cache either has that one or does not.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use moka::sync::Cache;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{entity::Text, rules::CommentBody, tree::Info};
use crate::{
    entity::Failure,
    ids::{PostId, UserId},
    runtime::Database,
};

/// A comment beside its skeleton, as of one version of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// None: a tombstone.
    pub(crate) words: Option<(UserId, CommentBody)>,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
}

impl From<&Text> for Written {
    fn from(text: &Text) -> Self {
        let Text { author, body, created_at, updated_at } = text.clone();
        Self { words: Some((author, body)), created_at, updated_at }
    }
}

/// What was deleted stays no longer than this on a node that has not heard of it.
const KEPT_FOR: Duration = Duration::from_secs(3600);

/// The node's cache of what is written in comments, bounded by bytes.
pub struct Texts {
    cache: Cache<(Uuid, u32), Arc<Written>>,
}

impl Default for Texts {
    fn default() -> Self {
        Self::new(64 << 20)
    }
}

impl Texts {
    /// A cache of at most about `bytes_max`.
    pub fn new(bytes_max: u64) -> Self {
        let weigh = |_: &(Uuid, u32), written: &Arc<Written>| {
            let body = written.words.as_ref().map_or(0, |(_, body)| body.as_str().len());
            u32::try_from(body + 250).unwrap_or(u32::MAX)
        };
        Self { cache: Cache::builder().max_capacity(bytes_max).weigher(weigh).time_to_live(KEPT_FOR).build() }
    }

    pub(crate) fn put(&self, id: Uuid, version: u32, written: Written) {
        self.cache.insert((id, version), Arc::new(written));
    }

    /// Forgets what was written in comments that are gone, as of these versions.
    pub(crate) fn forget(&self, texts: &[(Uuid, u32)]) {
        texts.iter().for_each(|text| self.cache.invalidate(text));
    }

    /// What is written in a comment as the skeleton knows it, if the node has it at hand.
    pub(crate) fn known(&self, info: &Info) -> Option<Arc<Written>> {
        self.cache.get(&(info.id, info.version))
    }

    /// Asks the table for these comments of a post: version and words as committed now. Those that are gone are left out.
    pub(crate) async fn fetch(
        &self,
        database: &Database,
        post: PostId,
        ids: &[Uuid],
    ) -> Result<HashMap<Uuid, (u32, Arc<Written>)>, Failure> {
        let rows = {
            let client = database.get().await?;
            client
                .query(
                    "SELECT id, version, author, body, created_at, updated_at FROM comment WHERE post = $1 AND id = ANY($2)",
                    &[&post.0, &ids],
                )
                .await?
        };
        rows.iter()
            .map(|row| {
                let (id, version): (Uuid, i64) = (row.get(0), row.get(1));
                let version = u32::try_from(version)
                    .map_err(|_| Failure::Refused(format!("comment {id} has an impossible version: {version}")))?;
                let written = Arc::new(written(row, 2));
                self.cache.insert((id, version), Arc::clone(&written));
                Ok((id, (version, written)))
            })
            .collect()
    }
}

/// Author, body and both times, from this column on.
pub(crate) fn written(row: &Row, first: usize) -> Written {
    let author: Option<Uuid> = row.get(first);
    let body: Option<&str> = row.get(first + 1);
    Written {
        words: author.zip(body).map(|(author, body)| (UserId(author), CommentBody::stored(body))),
        created_at: row.get(first + 2),
        updated_at: row.get(first + 3),
    }
}
