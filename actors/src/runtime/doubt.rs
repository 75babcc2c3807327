//! An open outcome is resolved, never guessed (rule 3): take over from oneself, then look whether the batch is in.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio_postgres::Client;
use uuid::Uuid;

use super::{
    Inner,
    commit_batch::CommitError,
    committer::{Placed, Queued, fold},
    describe,
    directory::{Granted, ShardRow, take_over},
};
use crate::{ids::ShardId, service::Service};

/// Resolves a batch; the groups of units that are proved absent and may be tried again.
///
/// Until it returns the shards concerned answer nothing and load nothing.
///
/// `lost` is what callers hear whose shard has another owner by now and whose batch is not found: the new owner
/// may have trimmed it away.
pub(crate) async fn resolve<S: Service>(
    inner: &Arc<Inner<S>>,
    batch: Uuid,
    placed: Vec<Placed<S>>,
    lost: CommitError,
) -> Vec<Vec<Queued<S>>> {
    let shards: HashSet<ShardId> = placed.iter().map(|placed| placed.queued.shard).collect();
    for shard in &shards {
        inner.shards[shard.index()].suspend();
    }
    let (granted, is_in) = loop {
        match attempt(inner, batch, &placed).await {
            Ok(answer) => break answer,
            Err(error) => {
                tracing::warn!(service.name = S::NAME, error = describe(&error), "cannot resolve an open commit yet");
                // The database is away. The lease ends meanwhile, so waiting here keeps nobody from taking over.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    };
    let ours: HashMap<ShardId, Granted> = granted.into_iter().map(|granted| (granted.shard, granted)).collect();
    for shard in shards.iter().filter(|shard| !ours.contains_key(shard)) {
        tracing::warn!(service.name = S::NAME, shard.id = %shard, "lost a shard to another owner");
        let gone = inner.shards[shard.index()].close();
        inner.memory.forget(gone);
    }

    let mut retry = Vec::new();
    let mut committed = Vec::new();
    for mut placed in placed {
        match ours.get(&placed.queued.shard) {
            // The batch is one transaction: what is in for one shard is in for all.
            _ if is_in => committed.push(placed),
            Some(granted) => {
                placed.queued.epoch = granted.epoch;
                retry.push(placed.queued);
            }
            None => placed.queued.finish(inner, Err(lost.clone())),
        }
    }
    fold(inner, committed);
    for granted in ours.values() {
        inner.shards[granted.shard.index()].resume(granted.epoch, granted.seq);
    }
    inner.batches.send_modify(|count| *count += 1);
    vec![retry]
}

async fn attempt<S: Service>(
    inner: &Inner<S>,
    batch: Uuid,
    placed: &[Placed<S>],
) -> Result<(Vec<Granted>, bool), tokio_postgres::Error> {
    // A session that is not named after the incarnation, so that it survives what comes next.
    let client = inner.database.session(&format!("{}-resolve:{}", S::NAME, inner.incarnation())).await?;
    client.batch_execute("SET lock_timeout = '1s'; SET statement_timeout = '5s'").await?;
    end_committers(&client, S::NAME, inner).await?;
    // Ours may have a newer epoch than the batch: an earlier attempt took over and lost the answer.
    let ids: Vec<i16> = placed.iter().map(|placed| placed.queued.shard.as_i16()).collect();
    let rows = client
        .query("SELECT id, epoch FROM shard WHERE id = ANY($1) AND owner = $2 ORDER BY id", &[&ids, &inner.incarnation().0])
        .await?;
    let seen: Vec<ShardRow> = rows
        .into_iter()
        .map(|row| ShardRow {
            id: ShardId(row.get::<_, i16>(0) as u16),
            epoch: row.get(1),
            owner: Some(inner.incarnation()),
            target: None,
        })
        .collect();
    let granted = take_over(&client, &seen, Some(inner.incarnation()), inner.incarnation()).await?;

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

/// The statement in doubt may still be running on the server, holding its locks: end its session first (rule 4).
async fn end_committers<S: Service>(client: &Client, service: &str, inner: &Inner<S>) -> Result<(), tokio_postgres::Error> {
    client
        .execute(
            "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = $1 AND state <> 'idle' AND query LIKE 'WITH t0 AS%INSERT INTO outbox%'",
            &[&format!("{service}:{}", inner.incarnation())],
        )
        .await?;
    Ok(())
}
