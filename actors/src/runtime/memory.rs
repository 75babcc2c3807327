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

use super::{BootTime, Inner, activation, cell::Cell, copies, vital};
use crate::service::Service;

/// A cell with its places in the maps of its shard, in bytes, besides the entity's state.
pub(crate) const CELL_BYTES: usize = 1 << 10;
/// An idle actor's channels, in bytes: with its cell about 11 KB (PITFALLS).
pub(crate) const ACTOR_BYTES: usize = 10 << 10;

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
        if self.excess() > 0.0 {
            self.full.notify_one();
        }
    }

    /// Takes off entities that are gone: how many, and their bytes.
    pub(crate) fn forget(&self, (entities, bytes): (usize, usize)) {
        self.entities.fetch_sub(entities, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// How much of everything must go, once there is too much: down to nine tenths of the cap.
    fn excess(&self) -> f64 {
        let (bytes, kept) = (self.bytes.load(Ordering::Relaxed), self.bytes_max - self.bytes_max / 10);
        if bytes > self.bytes_max { (bytes - kept) as f64 / bytes as f64 } else { 0.0 }
    }
}

/// Seconds on the boot-time clock: coarse, and cheap to keep per entity.
pub(crate) fn coarse_now() -> u32 {
    BootTime::now().as_secs() as u32
}

/// Between two passes: what was told to go needs a moment to go.
const PAUSE: Duration = Duration::from_millis(5);
/// Entities looked at before others get a turn.
const LOOKS: usize = 1_000;

/// Passivates what is idle, and what is least used while there is too much.
pub(crate) fn start<S: Service>(inner: &Arc<Inner<S>>) {
    let weak = Arc::downgrade(inner);
    vital::spawn(inner, "the sweep of idle entities", async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while let Some(inner) = weak.upgrade() {
            sweep(&inner).await;
            copies::tidy(&inner);
            tokio::time::sleep(PAUSE).await;
            tokio::select! {
                _ = tick.tick() => {}
                () = inner.memory.full.notified() => {}
            }
        }
    });
}

/// One pass over the shards: what is idle goes, and when there is too much, of every shard as large a part of what is
/// longest unused as is too much of everything, a tenth to spare, so that passes stay rare.
async fn sweep<S: Service>(inner: &Inner<S>) {
    let idle_s = u32::try_from(inner.settings.passivate_after.as_secs()).unwrap_or(u32::MAX);
    let now = coarse_now();
    let (part, mut looks) = (inner.memory.excess(), 0);
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
        looks += ages.len();
        let weight: usize = ages.iter().map(|(.., weight)| weight).sum();
        let mut excess = (weight as f64 * part).ceil() as usize;
        for (age, id, weight) in ages {
            if age < idle_s && excess == 0 {
                break;
            }
            activation::passivate(inner, shard, id);
            excess = excess.saturating_sub(weight);
        }
        if looks >= LOOKS {
            looks = 0;
            tokio::task::yield_now().await;
        }
    }
}
