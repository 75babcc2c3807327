//! An open outcome is resolved, never guessed (rule 3): take over from oneself, then look whether the batch is in.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::timeout;
use uuid::Uuid;

use super::{
    ConnectError, Connection, Inner,
    commit_batch::CommitError,
    commit_queue::Queued,
    committer::{Placed, fold},
    connection::STATEMENT_WITHIN,
    directory::{Granted, SessionTag, ShardRow},
    transfer::take_over,
};
use crate::{episodes, ids::ShardId, service::Service};

/// Resolves a batch that was sent through `session`; the groups of units that are proved absent and may be tried again.
///
/// Until it returns the shards concerned answer nothing and load nothing.
///
/// `lost` is what callers hear whose shard has another owner by now and whose batch is not found: the new owner
/// may have trimmed it away.
pub(crate) async fn resolve<S: Service>(
    inner: &Arc<Inner<S>>,
    session: SessionTag,
    batch: Uuid,
    placed: Vec<Placed<S>>,
    lost: CommitError,
) -> Vec<Vec<Queued<S>>> {
    // A shard that was closed since, and perhaps opened by a later incarnation of ours, is not in doubt: it has read
    // its truth from SQL.
    let held: Vec<ShardId> = placed
        .iter()
        .map(|placed| (placed.queued.shard, placed.queued.epoch))
        .collect::<HashSet<_>>()
        .into_iter()
        .filter_map(|(shard, epoch)| inner.shards[shard.index()].suspend(epoch).then_some(shard))
        .collect();
    let (granted, is_in) = loop {
        // One that is given up may still be carried out: then the next one finds a newer epoch that is ours, or none to take.
        match timeout(STATEMENT_WITHIN, attempt(inner, session, batch, &placed, &held)).await {
            Ok(Ok(answer)) => break answer,
            Ok(Err(error)) => wait_for_the_database(inner, &error.describe()).await,
            Err(_) => wait_for_the_database(inner, "no answer").await,
        }
    };
    let ours: HashMap<ShardId, Granted> = granted.into_iter().map(|granted| (granted.shard, granted)).collect();
    for shard in held.iter().filter(|shard| !ours.contains_key(shard)) {
        episodes::warn("shards were lost to other owners", S::NAME, format_args!("shard {shard}"));
        let gone = inner.shards[shard.index()].close_suspended();
        inner.memory.forget(gone);
    }

    let mut retry = Vec::new();
    let mut committed = Vec::new();
    for placed in placed {
        // The batch is one transaction: what is in for one shard is in for all.
        if is_in {
            committed.push(placed);
        } else if ours.contains_key(&placed.queued.shard) {
            retry.push(placed.queued);
        } else {
            placed.queued.finish(Err(lost.clone()));
        }
    }
    // A batch that is proved absent has not worked (rule 10).
    if is_in {
        fold(inner, committed);
    }
    for granted in ours.values() {
        inner.shards[granted.shard.index()].resume(granted.epoch, granted.seq);
    }
    inner.batches.send_modify(|count| *count += 1);
    vec![retry]
}

/// The database is away. The lease ends meanwhile, so waiting here keeps nobody from taking over.
pub(crate) async fn wait_for_the_database<S: Service>(inner: &Inner<S>, error: &str) {
    inner.commits.failed();
    episodes::warn("an open commit cannot be resolved yet", S::NAME, error);
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn attempt<S: Service>(
    inner: &Inner<S>,
    session: SessionTag,
    batch: Uuid,
    placed: &[Placed<S>],
    held: &[ShardId],
) -> Result<(Vec<Granted>, bool), ConnectError> {
    // Who we were when the batch was sent: by now we may be somebody else, to whom its shards never belonged.
    let me = session.incarnation;
    let client = successor(inner, session).await?;
    // Ours may have a newer epoch than the batch: an earlier attempt took over and lost the answer. From nobody else can
    // it be, for a shard in doubt is not handed to anybody who could hand it back.
    let ids: Vec<i16> = held.iter().map(|shard| shard.as_i16()).collect();
    let rows = client.query("SELECT id, epoch FROM shard WHERE id = ANY($1) AND owner = $2 ORDER BY id", &[&ids, &me.0]).await?;
    let seen: Vec<ShardRow> = rows
        .into_iter()
        .map(|row| ShardRow { id: ShardId(row.get::<_, i16>(0) as u16), epoch: row.get(1), owner: Some(me), target: None })
        .collect();
    let granted = take_over(&client, &seen, Some(me), me).await?;

    // A record of a shard that is ours, if any is: nobody else can have trimmed it.
    let ours = |placed: &&Placed<S>| granted.iter().any(|granted| granted.shard == placed.queued.shard);
    let first = placed.iter().find(ours).or(placed.first()).expect("a batch has a unit");
    let record = first.records.first().expect("every unit has a record");
    let row = client
        .query_opt(
            "SELECT 1 FROM outbox WHERE shard = $1 AND seq = $2 AND batch = $3",
            &[&first.queued.shard.as_i16(), &record.seq, &batch],
        )
        .await?;
    Ok((granted, row.is_some()))
}

/// A session through which a statement is resolved that was sent through another one; that one has ended.
pub(crate) async fn successor<S: Service>(inner: &Inner<S>, session: SessionTag) -> Result<Connection, ConnectError> {
    // Not named after the incarnation, so that it survives what comes next.
    let client = inner.database.session(&format!("{}-resolve:{}", S::NAME, session.incarnation)).await?;
    client.batch_execute("SET lock_timeout = '1s'; SET statement_timeout = '5s'").await?;
    end_session::<S>(&client, session).await?;
    Ok(client)
}

/// The statement in doubt may still be running on the server, holding its locks, or be about to: end its session
/// first (rule 4), and no other, for the other lane's is at work.
async fn end_session<S: Service>(client: &Connection, session: SessionTag) -> Result<(), tokio_postgres::Error> {
    client
        .execute(
            "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = $1 AND pid = $2",
            &[&format!("{}:{}", S::NAME, session.incarnation), &session.pid],
        )
        .await?;
    Ok(())
}
