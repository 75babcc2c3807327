//! Pure. How long a reader may show its copies, as their owner knows it.

use std::{collections::BTreeSet, time::Duration};

use crate::runtime::BootTime;

/// The end of a session, which moves on while its reader asks for it, and never again once it has passed.
#[derive(Debug)]
pub(crate) struct Term {
    /// The reader shows nothing from here on.
    until: BootTime,
    /// Recalls that the reader has not answered, the oldest first.
    recalls: BTreeSet<Recall>,
    recalled: u64,
    /// The end moves on no more.
    retired: bool,
}

/// A recall on its way: when it was sent, and its number.
pub(crate) type Recall = (BootTime, u64);

impl Term {
    /// Begins one, under the owner's lease until `lease`; none if that has ended.
    pub(crate) fn begin(now: BootTime, length: Duration, lease: BootTime) -> Option<Self> {
        let until = now.plus(length).min(lease);
        (now < until).then(|| Self { until, recalls: BTreeSet::new(), recalled: 0, retired: false })
    }

    /// Whether the reader may still show something.
    pub(crate) fn is_live(&self, now: BootTime) -> bool {
        now < self.until
    }

    /// How long it may at most.
    pub(crate) fn left(&self, now: BootTime) -> Duration {
        self.until.since(now)
    }

    /// Moves the end to as far from now as the owner's lease and unanswered recalls allow; what may be told the reader, who
    /// counts it from before it asked. None: it is over, or about to be.
    pub(crate) fn extend(&mut self, now: BootTime, length: Duration, lease: BootTime) -> Option<Duration> {
        if !self.may_grow(now) {
            return None;
        }
        let mut until = now.plus(length).min(lease);
        // Who waits for the reader to answer does not wait for longer than this.
        if let Some((sent, _)) = self.recalls.first() {
            until = until.min(sent.plus(length));
        }
        self.until = self.until.max(until);
        Some(until.since(now)).filter(|left| !left.is_zero())
    }

    /// Whether its end may move on.
    pub(crate) fn may_grow(&self, now: BootTime) -> bool {
        self.is_live(now) && !self.retired
    }

    /// Leaves the end where it is: what was lent in it nobody here can call back any more.
    pub(crate) fn retire(&mut self) {
        self.retired = true;
    }

    /// Its reader shows nothing any more.
    pub(crate) fn end(&mut self, now: BootTime) {
        self.until = self.until.min(now);
    }

    /// A recall is sent.
    pub(crate) fn recall(&mut self, now: BootTime) -> Recall {
        self.recalled += 1;
        let recall = (now, self.recalled);
        self.recalls.insert(recall);
        recall
    }

    /// It was answered, or is given up.
    pub(crate) fn answered(&mut self, recall: Recall) {
        self.recalls.remove(&recall);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_millis(400);

    fn at(ms: u64) -> BootTime {
        BootTime::after_boot(Duration::from_millis(ms))
    }

    #[test]
    fn a_session_ends_with_the_lease_of_the_owner() {
        let mut term = Term::begin(at(1_000), LENGTH, at(1_100)).unwrap();
        assert!(term.is_live(at(1_099)) && !term.is_live(at(1_100)));
        assert_eq!(term.extend(at(1_050), LENGTH, at(1_100)), Some(Duration::from_millis(50)));
        assert!(!term.is_live(at(1_100)), "asking does not renew the lease");
        assert!(Term::begin(at(1_100), LENGTH, at(1_100)).is_none());
    }

    #[test]
    fn a_session_that_is_over_stays_so() {
        let mut term = Term::begin(at(0), LENGTH, at(9_000)).unwrap();
        assert_eq!(term.extend(at(400), LENGTH, at(9_000)), None);
        assert!(!term.is_live(at(400)));
    }

    #[test]
    fn while_a_recall_is_unanswered_the_end_stays_within_its_time() {
        let mut term = Term::begin(at(0), LENGTH, at(9_000)).unwrap();
        let first = term.recall(at(100));
        let second = term.recall(at(200));
        assert_eq!(term.extend(at(300), LENGTH, at(9_000)), Some(Duration::from_millis(200)));
        assert!(!term.is_live(at(500)), "who has sent the first waits until then and no longer");
        term.answered(first);
        assert_eq!(term.extend(at(300), LENGTH, at(9_000)), Some(Duration::from_millis(300)));
        assert!(!term.is_live(at(600)));
        term.answered(second);
        term.extend(at(300), LENGTH, at(9_000));
        assert!(term.is_live(at(699)));
    }

    #[test]
    fn a_session_that_is_retired_is_shown_until_its_end_and_no_longer() {
        let mut term = Term::begin(at(0), LENGTH, at(9_000)).unwrap();
        term.retire();
        assert_eq!(term.extend(at(100), LENGTH, at(9_000)), None);
        assert!(!term.may_grow(at(100)) && term.is_live(at(399)) && !term.is_live(at(400)));
    }

    #[test]
    fn an_end_that_was_told_is_never_taken_back() {
        let mut term = Term::begin(at(0), LENGTH, at(9_000)).unwrap();
        term.extend(at(200), LENGTH, at(9_000));
        // A lease that is revoked, say.
        assert_eq!(term.extend(at(250), LENGTH, at(0)), None);
        assert!(term.is_live(at(599)), "the reader was told so");
    }
}
