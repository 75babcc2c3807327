//! Who follows whom: lists that are never held whole.

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    Asked, Command, Profile, Rejection, UserService, Users, done,
    names::Username,
    service::{SweptRow, unfollow},
};
use crate::{
    entity::{AskError, Failure},
    ids::UserId,
    posts::Page,
    records::FollowRecord,
    runtime::{Context, Unit, now},
};

/// Edges in one statement of a sweep at most.
const SWEEP_MAX: i64 = 200;
/// Followers who are told at a time that the one they follow is gone.
const TOLD_AT_ONCE: usize = 32;

/// The other end of an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// Who follows, or is followed.
    pub user: UserId,
    /// Since when.
    pub at: Timestamp,
}

/// The side from which the edges of a user are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edges {
    /// Those who follow them.
    Followers,
    /// Those whom they follow.
    Following,
}

/// An account that was deleted, whose edges are being taken away.
#[derive(Clone, Copy)]
struct Departed {
    user: UserId,
    /// Its followers up to here have been told.
    told: Uuid,
}

impl Users {
    /// Begins or ends to follow somebody; doing so twice changes nothing.
    ///
    /// # Errors
    /// [`Rejection::NotFound`] if nobody has that name, [`Rejection::CannotFollowSelf`].
    pub async fn follow(&self, follower: UserId, followee: &Username, on: bool, context: Context) -> Asked<()> {
        let followee = self.named(followee, context.deadline).await?.id;
        self.ask(follower, Command::Follow { followee, on, at: now() }, context).await.map(done)
    }

    /// A page of those who follow a user, the newest accounts first.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn followers(
        &self,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
        deadline: Instant,
    ) -> Result<Page<Profile, UserId>, Failure> {
        self.page(Edges::Followers, user, after, limit, deadline).await
    }

    /// A page of those whom a user follows, the newest accounts first.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn following(
        &self,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
        deadline: Instant,
    ) -> Result<Page<Profile, UserId>, Failure> {
        self.page(Edges::Following, user, after, limit, deadline).await
    }

    /// Every edge there is, page by page: for whoever rebuilds a projection.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn export_follows(&self, after: Option<(UserId, UserId)>, limit: usize) -> Result<Vec<FollowRecord>, Failure> {
        let (follower, followee) = after.map_or((Uuid::nil(), Uuid::nil()), |(follower, followee)| (follower.0, followee.0));
        let count = i64::try_from(limit).expect("a page is short");
        let client = self.runtime.database().get().await?;
        let rows = client
            .query(
                "SELECT follower, followee, at FROM follow WHERE (follower, followee) > ($1, $2)
                 ORDER BY follower, followee LIMIT $3",
                &[&follower, &followee, &count],
            )
            .await?;
        let record = |row: &tokio_postgres::Row| FollowRecord {
            follower: UserId(row.get(0)),
            followee: UserId(row.get(1)),
            at: row.get(2),
        };
        Ok(rows.iter().map(record).collect())
    }

    /// Takes away the edges of accounts that were deleted, in bounded steps: one may have had millions. So each gets a step in
    /// turn, until all are done with or the time is over. To be called now and then on every node; the number of accounts
    /// that are done with.
    ///
    /// # Errors
    /// The last step that could not be committed; the others went on, and the next call begins with what is left.
    pub async fn sweep_departed(&self, deadline: Instant) -> Result<usize, Failure> {
        let Ok(_alone) = self.sweeping.try_lock() else {
            return Ok(0);
        };
        let (mut swept, mut failed) = (0, None);
        let mut left = self.departed().await?;
        while !left.is_empty() {
            let mut further = Vec::with_capacity(left.len());
            for departed in left {
                if Instant::now() >= deadline {
                    return failed.map_or(Ok(swept), Err);
                }
                match self.sweep(departed, deadline).await {
                    Ok(None) => swept += 1,
                    Ok(Some(departed)) => further.push(departed),
                    Err(failure) => failed = Some(failure),
                }
            }
            left = further;
        }
        failed.map_or(Ok(swept), Err)
    }

    /// Whose edges are to be taken away here.
    async fn departed(&self) -> Result<Vec<Departed>, Failure> {
        let client = self.runtime.database().get().await?;
        let rows = client.query("SELECT user_id FROM departed ORDER BY user_id", &[]).await?;
        let departed = rows.iter().map(|row| Departed { user: UserId(row.get(0)), told: Uuid::nil() });
        Ok(departed.filter(|departed| self.runtime.head(self.runtime.shard_of(departed.user.0)).is_some()).collect())
    }

    /// One step; none: nothing is left.
    async fn sweep(&self, departed: Departed, deadline: Instant) -> Result<Option<Departed>, Failure> {
        let user = departed.user;
        if self.sweep_following(user).await? {
            return Ok(Some(departed));
        }
        if let Some(told) = self.sweep_followers(departed, deadline).await? {
            return Ok(Some(Departed { user, told }));
        }
        let mut unit = Unit::<UserService>::default();
        unit.writes.swept.push(SweptRow { user_id: user.0 });
        self.runtime.commit(self.runtime.shard_of(user.0), unit).await?;
        Ok(None)
    }

    /// Whom the departed followed: rows of their own shard. The followees hear of it by the log. Whether there were any.
    async fn sweep_following(&self, user: UserId) -> Result<bool, Failure> {
        let rows = {
            let client = self.runtime.database().get().await?;
            client.query("SELECT followee FROM follow WHERE follower = $1 LIMIT $2", &[&user.0, &SWEEP_MAX]).await?
        };
        if rows.is_empty() {
            return Ok(false);
        }
        let (mut unit, at) = (Unit::default(), now());
        for row in rows {
            unfollow(&mut unit, user, UserId(row.get(0)), at);
        }
        self.runtime.commit(self.runtime.shard_of(user.0), unit).await?;
        Ok(true)
    }

    /// Those who followed the departed end to do so themselves: it is their row and their count. The last who was told;
    /// none: all were.
    async fn sweep_followers(&self, departed: Departed, deadline: Instant) -> Result<Option<Uuid>, Failure> {
        let Departed { user, told } = departed;
        let rows = {
            let client = self.runtime.database().get().await?;
            let sql = "SELECT follower FROM follower WHERE followee = $1 AND follower > $2 ORDER BY follower LIMIT $3";
            client.query(sql, &[&user.0, &told, &SWEEP_MAX]).await?
        };
        let followers: Vec<UserId> = rows.iter().map(|row| UserId(row.get(0))).collect();
        let told = followers.last().map(|last| last.0);
        let asks = stream::iter(followers).map(|follower| {
            let context = Context { deadline, traceparent: None, idempotency: None };
            self.ask(follower, Command::Follow { followee: user, on: false, at: now() }, context)
        });
        let answers: Vec<_> = asks.buffer_unordered(TOLD_AT_ONCE).collect().await;
        for answer in answers {
            match answer {
                // A follower who is gone as well has a sweep of their own.
                Ok(_) | Err(AskError::Rejected(Rejection::NotFound)) => {}
                Err(AskError::Rejected(rejection)) => {
                    return Err(Failure::Unavailable(rejection.to_string()));
                }
                Err(AskError::Failed(failure)) => return Err(failure),
            }
        }
        Ok(told)
    }

    async fn page(
        &self,
        edges: Edges,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
        deadline: Instant,
    ) -> Result<Page<Profile, UserId>, Failure> {
        // One more than asked for tells whether there is a next page.
        let mut ids: Vec<UserId> = self.edges(edges, user, after, limit + 1).await?.into_iter().map(|edge| edge.user).collect();
        let next = (ids.len() > limit).then(|| ids[limit - 1]);
        ids.truncate(limit);
        // Whoever is gone is left out; their edges go a little later.
        Ok(Page { items: self.get_many(ids, deadline).await?, next })
    }

    pub(super) async fn edges(
        &self,
        edges: Edges,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Edge>, Failure> {
        let after = after.map_or(Uuid::max(), |after| after.0);
        let count = i64::try_from(limit).expect("a page is short");
        let sql = match edges {
            Edges::Followers => {
                "SELECT follower, at FROM follower WHERE followee = $1 AND follower < $2 ORDER BY follower DESC LIMIT $3"
            }
            Edges::Following => {
                "SELECT followee, at FROM follow WHERE follower = $1 AND followee < $2 ORDER BY followee DESC LIMIT $3"
            }
        };
        let rows = {
            let client = self.runtime.database().get().await?;
            client.query(sql, &[&user.0, &after, &count]).await?
        };
        // What SQL saw committed must be in memory before we answer beside it (rule 9).
        self.runtime.settled(self.runtime.shard_of(user.0)).await;
        Ok(rows.iter().map(|row| Edge { user: UserId(row.get(0)), at: row.get(1) }).collect())
    }
}
