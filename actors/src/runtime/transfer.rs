//! How a shard changes hands: takeover, grant and adoption, each a statement of its own (rules 2 and 3).

use tokio_postgres::{
    ToStatement,
    error::{Severity, SqlState},
};
use uuid::Uuid;

use super::{Connection, Directory, DirectoryError, Granted, NOT_ON_THE_DISK_YET, ShardRow};
use crate::{
    event::EPOCH,
    ids::{Epoch, Incarnation, ShardId},
};

/// The key of an epoch record that nobody has given.
const NOBODY: &str = "'00000000-0000-0000-0000-000000000000'::uuid";

/// Raises the epochs of `$1` that were seen as `$2` from owner `$4` to owner `$3`, and appends the epoch records, in
/// (shard, seq) order as batches do (rule 11). What the condition is false for is left out.
///
/// The key of the epoch record is whoever gave the shard away in order, or nobody.
fn change_of_hands(giver: &str, condition: &str) -> String {
    format!(
        "WITH want AS (SELECT * FROM UNNEST($1::int2[], $2::int8[]) AS w(id, epoch)),
         taken AS (
             UPDATE shard s SET epoch = s.epoch + 1, owner = $3, target = NULL
             FROM want w WHERE s.id = w.id AND s.epoch = w.epoch AND s.owner IS NOT DISTINCT FROM $4 {condition}
             RETURNING s.id, s.epoch)
         INSERT INTO outbox (shard, seq, epoch, batch, key, type, at)
         SELECT t.id, COALESCE((SELECT seq FROM outbox o WHERE o.shard = t.id ORDER BY seq DESC LIMIT 1), 0) + 1,
                t.epoch, $5, {giver}, $6, now()
         FROM taken t ORDER BY t.id
         RETURNING shard, seq, epoch"
    )
}

/// From another than oneself only what belongs to nobody or to the dead: asked by the statement itself, for whoever decided
/// to take over has looked some time ago, and dead is final.
const FROM_THE_DEAD: &str = "AND ($3 = $4 OR NOT EXISTS (SELECT FROM member o WHERE o.incarnation = $4 AND o.state <> 'dead'))";

/// Releases and grants in one statement, to a member that is alive and wants shards.
pub(crate) fn grant_text() -> String {
    change_of_hands("$4", "AND EXISTS (SELECT FROM member m WHERE m.incarnation = $3 AND m.state = 'live')")
}

pub(crate) fn mark_text() -> String {
    format!("UPDATE shard SET target = $3 FROM {NOT_ON_THE_DISK_YET} WHERE id = ANY($1) AND owner = $2")
}

pub(crate) fn untouched_text() -> String {
    format!(
        "SELECT s.id, l.seq, s.epoch, l.key <> {NOBODY} FROM shard s CROSS JOIN LATERAL (
             SELECT seq, epoch, type, key FROM outbox o WHERE o.shard = s.id ORDER BY seq DESC LIMIT 1) l
         WHERE s.id = ANY($1) AND s.owner = $2 AND l.epoch = s.epoch AND l.type = $3 ORDER BY s.id"
    )
}

impl Directory {
    /// Takes shards that belong to `owner` (none: to nobody) and have the epochs that were seen (rule 2), from oneself or from
    /// the dead.
    ///
    /// What somebody else was faster with is left out of the answer, and all of it if the owner is alive.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn take_over(
        &self,
        seen: &[ShardRow],
        owner: Option<Incarnation>,
        me: Incarnation,
    ) -> Result<Vec<Granted>, DirectoryError> {
        take_over(&self.client, seen, owner, me).await.map_err(Into::into)
    }

    /// Which of these shards are ours with nothing written under their epochs yet: granted by somebody else's hand-off, or
    /// by a takeover whose answer was lost.
    ///
    /// One snapshot: whoever takes such a shard from us later appends right where we would. The caller must never have
    /// served it under this epoch, or a batch of its own may still be on the way.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn untouched(&self, shards: &[ShardId], me: Incarnation) -> Result<Vec<Granted>, DirectoryError> {
        let rows = self.client.query(&self.statements.untouched, &[&numbers(shards), &me.0, &EPOCH]).await?;
        Ok(rows.iter().map(|row| Granted { called_back: row.get(3), ..granted(row) }).collect())
    }

    /// Says whom our shards are about to be handed to, so that everybody sees it coming; `None`: to nobody after all.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn mark(&self, shards: &[ShardId], me: Incarnation, to: Option<Incarnation>) -> Result<(), DirectoryError> {
        self.client.execute(&self.statements.mark, &[&numbers(shards), &me.0, &to.map(|to| to.0)]).await?;
        Ok(())
    }
}

/// The takeover statement, retried while an old owner still commits in between (a duplicate key).
pub(crate) async fn take_over(
    client: &Connection,
    seen: &[ShardRow],
    owner: Option<Incarnation>,
    me: Incarnation,
) -> Result<Vec<Granted>, tokio_postgres::Error> {
    change(client, change_of_hands(NOBODY, FROM_THE_DEAD).as_str(), seen, owner, me).await
}

/// Hands shards to another member; what is left out is not granted.
pub(crate) async fn grant(
    directory: &Directory,
    seen: &[ShardRow],
    me: Incarnation,
    to: Incarnation,
) -> Result<Vec<Granted>, tokio_postgres::Error> {
    change(&directory.client, &directory.statements.grant, seen, Some(me), to).await
}

async fn change(
    client: &Connection,
    statement: &(impl ToStatement + ?Sized),
    seen: &[ShardRow],
    from: Option<Incarnation>,
    to: Incarnation,
) -> Result<Vec<Granted>, tokio_postgres::Error> {
    let ids: Vec<i16> = seen.iter().map(|row| row.id.as_i16()).collect();
    let epochs: Vec<Epoch> = seen.iter().map(|row| row.epoch).collect();
    loop {
        let batch = Uuid::new_v4();
        let changed = client.query(statement, &[&ids, &epochs, &to.0, &from.map(|from| from.0), &batch, &EPOCH]).await;
        match changed {
            Ok(rows) => return Ok(rows.iter().map(granted).collect()),
            Err(error) if is_retryable(&error) => tokio::task::yield_now().await,
            Err(error) => return Err(error),
        }
    }
}

fn numbers(shards: &[ShardId]) -> Vec<i16> {
    shards.iter().map(|shard| shard.as_i16()).collect()
}

fn granted(row: &tokio_postgres::Row) -> Granted {
    Granted { shard: ShardId(row.get::<_, i16>(0) as u16), seq: row.get(1), epoch: row.get(2), called_back: false }
}

fn is_retryable(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        [SqlState::UNIQUE_VIOLATION, SqlState::T_R_DEADLOCK_DETECTED, SqlState::T_R_SERIALIZATION_FAILURE].contains(code)
    })
}

/// Whether a statement that failed may have been committed all the same: the connection died, or the server did.
pub(crate) fn outcome_is_open(error: &tokio_postgres::Error) -> bool {
    match error.as_db_error() {
        Some(db) => matches!(db.parsed_severity(), Some(Severity::Fatal | Severity::Panic)),
        // A value that could not be written into a message was never sent; anything else came from the network.
        None => {
            let text = error.to_string();
            !["error serializing parameter", "error encoding message"].iter().any(|start| text.starts_with(start))
        }
    }
}
