//! What loaded entities may take: bounded by bytes, the longest unused go first.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::MissedTickBehavior};

use uuid::Uuid;

use super::{BootTime, Inner, activation, cell::Cell};
use crate::service::Service;

/// An idle actor's channels and its cell, in bytes (PITFALLS: about 11 KB), besides its state.
pub(crate) const ACTOR_BYTES: usize = 11 << 10;

pub(crate) struct Memory {
    bytes_max: usize,
    bytes: AtomicUsize,
    entities: AtomicUsize,
    full: Notify,
}

impl Memory {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: AtomicUsize::new(0), entities: AtomicUsize::new(0), full: Notify::new() }
    }

    pub(crate) fn usage(&self) -> (usize, usize) {
        (self.entities.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.entities.fetch_add(1, Ordering::Relaxed);
        self.resize(0, bytes);
    }

    pub(crate) fn resize(&self, before: usize, after: usize) {
        self.bytes.fetch_add(after, Ordering::Relaxed);
        self.bytes.fetch_sub(before, Ordering::Relaxed);
        if self.is_over() {
            self.full.notify_one();
        }
    }

    /// Takes off entities that are gone: how many, and their bytes.
    pub(crate) fn forget(&self, (entities, bytes): (usize, usize)) {
        self.entities.fetch_sub(entities, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > self.bytes_max
    }

    /// What must go, once there is too much: down to nine tenths of the cap.
    fn excess(&self) -> usize {
        let kept = self.bytes_max - self.bytes_max / 10;
        if self.is_over() { self.bytes.load(Ordering::Relaxed).saturating_sub(kept) } else { 0 }
    }
}

/// Seconds on the boot-time clock: coarse, and cheap to keep per entity.
pub(crate) fn coarse_now() -> u32 {
    BootTime::now().as_secs() as u32
}

/// Passivates what is idle, and what is least used while there is too much.
pub(crate) fn start<S: Service>(inner: &Arc<Inner<S>>) {
    let inner = Arc::downgrade(inner);
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while let Some(inner) = inner.upgrade() {
            sweep(&inner).await;
            tokio::select! {
                _ = tick.tick() => {}
                () = inner.memory.full.notified() => {}
            }
        }
    });
}

/// One pass over the shards: what is idle goes, and when there is too much, the older half of what it sees until
/// enough is on its way out for a tenth to spare, so that passes stay rare.
async fn sweep<S: Service>(inner: &Inner<S>) {
    let idle_s = u32::try_from(inner.settings.passivate_after.as_secs()).unwrap_or(u32::MAX);
    let now = coarse_now();
    let mut excess = inner.memory.excess();
    for shard in &inner.shards {
        if shard.tenure().is_none() {
            continue;
        }
        let mut ages: Vec<(u32, Uuid, usize)> = {
            let entities = shard.entities.read().expect("no panic under this lock");
            let age = |cell: &Arc<Cell<S>>| now.saturating_sub(cell.used_s.load(Ordering::Relaxed));
            entities.live.values().map(|cell| (age(cell), cell.id, cell.weight())).collect()
        };
        ages.sort_unstable_by(|a, b| b.cmp(a));
        let half = ages.len().div_ceil(2);
        for (n, (age, id, weight)) in ages.into_iter().enumerate() {
            let squeezed = n < half && excess > 0;
            if age < idle_s && !squeezed {
                break;
            }
            activation::passivate(shard, id);
            excess = excess.saturating_sub(weight);
        }
        tokio::task::yield_now().await;
    }
}
