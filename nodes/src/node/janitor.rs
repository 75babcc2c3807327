//! Lets the services forget what nobody needs any more, once a minute.

use std::time::Duration;

use rookery_actors::{
    runtime::{Retention, Runtime},
    service::Service,
    users::Users,
};
use tokio::{task::JoinHandle, time::Instant};

const EVERY: Duration = Duration::from_secs(60);

/// Longer than an access token lives: a starting gateway reads from the log which sessions were closed.
const RECORDS: Duration = Duration::from_secs(3600);

/// API.md: kept 24 h.
const IDEMPOTENCY: Duration = Duration::from_secs(24 * 3600);

/// Trims a service's logs until the runtime stops.
pub(super) fn start<S: Service>(
    runtime: Runtime<S>,
    consumers: Vec<&'static str>,
    relayed: bool,
) -> JoinHandle<()> {
    let retention = Retention {
        consumers,
        relayed,
        records: RECORDS,
        idempotency: IDEMPOTENCY,
    };
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
