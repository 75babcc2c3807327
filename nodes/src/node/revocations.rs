//! Sessions that were closed, made known to the gateway of this node in a moment.

use std::{sync::Arc, time::Duration};

use rookery_actors::{
    event::{EventLog, Record, Topic},
    ids::{Seq, ShardId},
    runtime::Runtime,
    users::UserService,
};
use rookery_gateway::auth::Verifier;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// An access token outlives its session by this at most, in seconds: its life, and the leeway of clocks.
const TOKEN_LIFE_S: i64 = 900 + 120;

/// Learns what was closed within the life of a token, then follows the users' log.
pub(super) async fn start(
    users: &Runtime<UserService>,
    log: Arc<dyn EventLog>,
    verifier: Arc<Verifier>,
) -> anyhow::Result<JoinHandle<()>> {
    // The heads first: what is closed in between comes twice, and not never.
    let mut positions: Vec<(ShardId, Seq)> =
        (0..users.shards()).map(ShardId).map(|shard| (shard, users.head(shard).unwrap_or(0))).collect();
    let client = users.database().get().await?;
    let since = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(TOKEN_LIFE_S);
    let rows = client.query("SELECT payload FROM outbox WHERE at > $1 AND type = 'session.closed'", &[&since]).await?;
    for row in rows {
        revoke(&verifier, row.get(0));
    }
    drop(client);
    Ok(tokio::spawn(async move {
        loop {
            match log.fetch(Topic::Users, &positions, 1 << 20, Duration::from_secs(1)).await {
                Ok(fetched) => {
                    for fetched in fetched {
                        for record in &fetched.records {
                            take(&verifier, record);
                            positions[fetched.shard.index()].1 = record.seq;
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "closed sessions cannot be followed");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }))
}

fn take(verifier: &Verifier, record: &Record) {
    if &*record.kind == "session.closed" {
        revoke(verifier, record.payload.as_deref());
    }
}

#[derive(serde::Deserialize)]
struct Closed {
    id: Uuid,
}

fn revoke(verifier: &Verifier, payload: Option<&str>) {
    match payload.map(serde_json::from_str::<Closed>) {
        Some(Ok(Closed { id })) => verifier.revoked().revoke(id, jiff::Timestamp::now().as_second() + TOKEN_LIFE_S),
        _ => tracing::error!("a closed session's record does not parse"),
    }
}
