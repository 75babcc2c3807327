//! What has to be looked at once a minute: logs to trim, edges of deleted accounts, signing keys that come of age.

use std::time::Duration;

use rookery_actors::{
    runtime::{Retention, Runtime},
    secret::ClusterSecret,
    service::Service,
    users::{UserService, Users, keys::SigningKeys},
};
use tokio::{task::JoinHandle, time::Instant};

const EVERY: Duration = Duration::from_secs(60);

/// Longer than an access token lives: a starting gateway reads from the log which sessions were closed.
const RECORDS: Duration = Duration::from_secs(3600);

/// API.md: kept 24 h.
const IDEMPOTENCY: Duration = Duration::from_secs(24 * 3600);

/// Trims a service's logs until the runtime stops.
pub(super) fn start<S: Service>(runtime: Runtime<S>, consumers: Vec<&'static str>, relayed: bool) -> JoinHandle<()> {
    let retention = Retention { consumers, relayed, records: RECORDS, idempotency: IDEMPOTENCY };
    tokio::spawn(async move {
        while !runtime.is_stopped() {
            tokio::time::sleep(EVERY).await;
            match runtime.trim(&retention).await {
                Ok(0) => {}
                Ok(rows) => tracing::debug!(service.name = S::NAME, rows, "trimmed the log"),
                Err(failure) => {
                    tracing::warn!(service.name = S::NAME, %failure, "the log could not be trimmed")
                }
            }
        }
    })
}

/// Takes the edges of deleted accounts apart, a few hundred at a time.
pub(super) fn sweep(users: Users) -> JoinHandle<()> {
    tokio::spawn(async move {
        while !users.runtime().is_stopped() {
            tokio::time::sleep(Duration::from_secs(5)).await;
            if let Err(failure) = users.sweep_departed(Instant::now() + EVERY).await {
                tracing::warn!(%failure, "the edges of deleted accounts must wait");
            }
        }
    })
}

/// Signs and verifies with the keys that are due: a rotated key is published before it signs, and longer than it did.
pub(super) fn follow_keys(
    users: Runtime<UserService>,
    secret: ClusterSecret,
    install: impl Fn(&SigningKeys) + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        while !users.is_stopped() {
            tokio::time::sleep(EVERY).await;
            match SigningKeys::load_or_create(users.database(), &secret).await {
                Ok(keys) => install(&keys),
                Err(error) => tracing::warn!(%error, "the signing keys could not be read"),
            }
        }
    })
}
