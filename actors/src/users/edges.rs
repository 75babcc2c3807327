//! Who follows whom: lists that are never held whole.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
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
/// Between two looks for what the log brings.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Looks in a row that find nothing but accounts that wait for the log; the next call goes on.
const LOOKS_MAX: u32 = 100;

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

/// How far a step has brought an account.
enum Step {
    /// Something is left to do.
    Further(Departed),
    /// Everybody was told, and the log has not yet come round with what they made of it.
    Waiting(Departed),
    /// Nothing is left.
    Done,
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
        let (mut swept, mut failed, mut idle) = (0, None, 0);
        let mut left = self.departed().await?;
        while !left.is_empty() && idle < LOOKS_MAX {
            let mut further = Vec::with_capacity(left.len());
            idle += 1;
            for departed in left {
                if Instant::now() >= deadline {
                    return failed.map_or(Ok(swept), Err);
                }
                match self.sweep(departed, deadline).await {
                    Ok(Step::Done) => swept += 1,
                    Ok(Step::Further(departed)) => {
                        idle = 0;
                        further.push(departed);
                    }
                    Ok(Step::Waiting(departed)) => further.push(departed),
                    Err(failure) => failed = Some(failure),
                }
            }
            if idle > 0 && !further.is_empty() {
                sleep(LOOK_EVERY).await;
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

    /// One step.
    async fn sweep(&self, departed: Departed, deadline: Instant) -> Result<Step, Failure> {
        let user = departed.user;
        if self.sweep_following(user).await? {
            return Ok(Step::Further(departed));
        }
        if let Some(told) = self.sweep_followers(departed, deadline).await? {
            return Ok(Step::Further(Departed { user, told }));
        }
        // In turn with the log: a follower that it brings is seen here, or finds the account done with and brings it back.
        let sweep = self.runtime.sweep(self.runtime.shard_of(user.0)).await?;
        let followed: bool = {
            let client = self.runtime.database().get().await?;
            client.query_one("SELECT EXISTS (SELECT FROM follower WHERE followee = $1)", &[&user.0]).await?.get(0)
        };
        if followed {
            return Ok(Step::Waiting(Departed { user, told: Uuid::nil() }));
        }
        let mut unit = Unit::<UserService>::default();
        unit.writes.swept.push(SweptRow { user_id: user.0 });
        self.runtime.commit_sweep(sweep, unit).await?;
        Ok(Step::Done)
    }

    /// Whom the departed followed: rows of their own shard. The followees hear of it by the log. Whether there were any.
    async fn sweep_following(&self, user: UserId) -> Result<bool, Failure> {
        // A row that is told of twice would be counted twice: none is read while an earlier step is under way.
        let sweep = self.runtime.sweep(self.runtime.shard_of(user.0)).await?;
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
        self.runtime.commit_sweep(sweep, unit).await?;
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
