//! What a follower and those who ask about its index tell each other.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::copying::Offer;
use crate::{event::Source, ids::Seq};

/// All of them, of one replica.
#[derive(Clone, Default)]
pub(crate) struct Signals {
    pub(crate) visible: Visible,
    pub(crate) rebuilds: Rebuilds,
    pub(crate) obstacle: Obstacle,
    pub(crate) offer: Offer,
    pub(crate) indexed: Indexed,
}

/// How far each source can be found in an index.
#[derive(Clone)]
pub(crate) struct Visible(Arc<watch::Sender<Option<HashMap<Source, Seq>>>>);

impl Default for Visible {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Visible {
    pub(crate) fn publish(&self, positions: HashMap<Source, Seq>) {
        self.0.send_replace(Some(positions));
    }

    /// How far that is, if the index has caught up since it was opened.
    pub(crate) fn positions(&self) -> Option<HashMap<Source, Seq>> {
        self.0.borrow().clone()
    }

    /// Whether the index has caught up since it was opened.
    pub(crate) fn is_known(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Ends when the index has caught up.
    pub(crate) async fn known(&self) {
        // The sender lives as long as we do.
        let _ = self.0.subscribe().wait_for(Option::is_some).await;
    }

    /// Ends when the index contains the source up to `seq`.
    pub(crate) async fn reaches(&self, source: Source, seq: Seq) {
        let mut positions = self.0.subscribe();
        // The sender lives as long as we do.
        let reached = |positions: &HashMap<Source, Seq>| positions.get(&source).copied().unwrap_or(0) >= seq;
        let _ = positions.wait_for(|positions| positions.as_ref().is_some_and(reached)).await;
    }
}

/// How often an index was asked to be built anew, and how often it has been.
#[derive(Clone, Default)]
pub(crate) struct Rebuilds(Arc<Counts>);

#[derive(Default)]
struct Counts {
    wanted: watch::Sender<u64>,
    done: watch::Sender<u64>,
}

impl Rebuilds {
    /// Asks for one and waits for its end; the old index serves meanwhile.
    pub(crate) async fn one(&self) {
        let mut number = 0;
        self.0.wanted.send_modify(|wanted| {
            *wanted += 1;
            number = *wanted;
        });
        // The sender lives as long as we do.
        let _ = self.0.done.subscribe().wait_for(|done| *done >= number).await;
    }

    pub(crate) fn wanted(&self) -> Option<u64> {
        let wanted = *self.0.wanted.borrow();
        (wanted > *self.0.done.borrow()).then_some(wanted)
    }

    pub(crate) fn done(&self, number: u64) {
        self.0.done.send_modify(|done| *done = number.max(*done));
    }

    pub(crate) async fn asked(&self) {
        let done = *self.0.done.borrow();
        let _ = self.0.wanted.subscribe().wait_for(|wanted| *wanted > done).await;
    }
}

/// What keeps an index from following, if anything does.
#[derive(Clone, Default)]
pub(crate) struct Obstacle(Arc<watch::Sender<Option<String>>>);

impl Obstacle {
    pub(crate) fn is(&self, reason: Option<String>) {
        self.0.send_if_modified(|now| {
            let changed = *now != reason;
            *now = reason;
            changed
        });
    }

    /// Ends when there has been one for so long, with the reason.
    pub(crate) async fn lasts(&self, patience: Duration) -> String {
        let mut obstacle = self.0.subscribe();
        loop {
            // The sender lives as long as we do.
            let _ = obstacle.wait_for(Option::is_some).await;
            if tokio::time::timeout(patience, obstacle.wait_for(Option::is_none)).await.is_err()
                && let Some(reason) = &*obstacle.borrow()
            {
                return reason.clone();
            }
        }
    }
}

/// How many documents were indexed here, and not copied from another replica.
#[derive(Clone, Default)]
pub(crate) struct Indexed(Arc<AtomicU64>);

impl Indexed {
    pub(crate) fn add(&self, documents: usize) {
        self.0.fetch_add(documents as u64, Ordering::Relaxed);
        metrics::counter!("rookery_search_indexed_total").increment(documents as u64);
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::{event::Topic, ids::ShardId};

    #[test]
    fn of_a_log_that_never_concerned_an_index_nothing_is_missing() {
        let (visible, source) = (Visible::default(), Source { topic: Topic::Posts, shard: ShardId(7) });
        assert!(visible.reaches(source, 0).now_or_never().is_none(), "nobody knows yet what it has");
        visible.publish(HashMap::new());
        assert!(visible.reaches(source, 0).now_or_never().is_some());
        assert!(visible.reaches(source, 1).now_or_never().is_none());
    }
}
