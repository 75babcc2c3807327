//! One shard's records as they come out of a topic – twice, late, ahead – put in order for a reader.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use rookery_actors::{event::Record, ids::Seq};

/// Records between two remembered offsets: what a rewind reads again at most, and drops.
const MARK_EVERY: Seq = 256;
/// Remembered offsets of a shard.
const MARKS_MAX: usize = 64;

/// What a reader will get next: consecutive records after its position, each once.
#[derive(Debug)]
pub(crate) struct Sequence {
    position: Seq,
    kept: VecDeque<Arc<Record>>,
    bytes: usize,
    ahead: Option<Ahead>,
}

/// The next record is missing, though later ones were seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ahead {
    /// Since when.
    pub(crate) since: Instant,
    /// The lowest of the later ones.
    pub(crate) floor: Seq,
    /// The highest.
    pub(crate) head: Seq,
}

/// What a reader needs a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// Nothing: what follows is here, or comes.
    Nothing,
    /// Everything after its position: it went back.
    FromPosition,
    /// What came too early, for a hole that was filled from elsewhere: it was dropped, and nobody sends it again.
    FromAhead,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offered {
    /// It was the next one.
    Taken,
    /// We have it, or the reader does.
    Known,
    /// It is too early: the relay sends it again after those that are missing.
    Early,
}

impl Sequence {
    /// For a reader that has everything up to `position`.
    pub(crate) fn after(position: Seq) -> Self {
        Self { position, kept: VecDeque::new(), bytes: 0, ahead: None }
    }

    /// Memory of the records that wait for the reader, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether something waits for the reader.
    pub(crate) fn has_news(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Takes a record out of the topic.
    pub(crate) fn offer(&mut self, record: Record, now: Instant) -> Offered {
        let next = self.next();
        if record.seq < next {
            return Offered::Known;
        }
        if record.seq > next {
            let ahead = self.ahead.get_or_insert(Ahead { since: now, floor: record.seq, head: record.seq });
            ahead.floor = ahead.floor.min(record.seq);
            ahead.head = ahead.head.max(record.seq);
            return Offered::Early;
        }
        self.ahead = None;
        self.bytes += record.weight();
        self.kept.push_back(Arc::new(record));
        Offered::Taken
    }

    /// Moves to where the reader is now; what has to be read from the topic again for it.
    pub(crate) fn seek(&mut self, position: Seq) -> Again {
        if position < self.position {
            *self = Self::after(position);
            return Again::FromPosition;
        }
        // The reader has the missing records from elsewhere, as far as it has come.
        let past = self.ahead.filter(|ahead| position >= self.next() && position + 1 >= ahead.floor);
        if past.is_some() {
            self.ahead = None;
        }
        while self.kept.front().is_some_and(|first| first.seq <= position) {
            self.bytes -= self.kept.pop_front().map_or(0, |first| first.weight());
        }
        self.position = position;
        match past {
            Some(ahead) if ahead.head > position => Again::FromAhead,
            _ => Again::Nothing,
        }
    }

    /// What the reader gets, up to about `bytes_max`; it stays here until the reader has moved on.
    pub(crate) fn peek(&self, bytes_max: usize) -> Vec<Arc<Record>> {
        let mut bytes = 0;
        let fits = |record: &&Arc<Record>| {
            bytes += record.weight();
            bytes <= bytes_max || bytes == record.weight()
        };
        self.kept.iter().take_while(fits).cloned().collect()
    }

    /// The hole before the next record, if one was seen.
    pub(crate) fn ahead(&self) -> Option<Ahead> {
        self.ahead
    }

    /// The last record that is here, or that the reader has.
    pub(crate) fn last(&self) -> Seq {
        self.next() - 1
    }

    /// The topic is being read from an earlier place: whatever is missing may be there.
    pub(crate) fn forget_ahead(&mut self) {
        self.ahead = None;
    }

    fn next(&self) -> Seq {
        self.kept.back().map_or(self.position, |last| last.seq) + 1
    }
}

/// Where in the partition some of a shard's records were: hints, for they only say where to begin to read.
#[derive(Debug, Default)]
pub(crate) struct Marks(BTreeMap<Seq, i64>);

impl Marks {
    /// Notes where the next record of the sequence was found.
    pub(crate) fn note(&mut self, seq: Seq, offset: i64) {
        if self.0.last_key_value().is_some_and(|(last, _)| seq < last + MARK_EVERY) {
            return;
        }
        self.0.insert(seq, offset);
        if self.0.len() > MARKS_MAX {
            // Old places are asked for rarely: keep every other one of them.
            let mut keep = false;
            self.0.retain(|_, _| {
                keep = !keep;
                keep
            });
        }
    }

    /// The offset from which everything after `position` is still to come; none: read from the beginning.
    pub(crate) fn start(&self, position: Seq) -> Option<i64> {
        self.0.range(..=position).next_back().map(|(_, offset)| offset + 1)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn record(seq: Seq) -> Record {
        let at = Timestamp::UNIX_EPOCH;
        Record { seq, epoch: 1, key: Uuid::nil(), kind: "x".into(), payload: None, traceparent: None, at }
    }

    fn seqs(sequence: &Sequence) -> Vec<Seq> {
        sequence.peek(usize::MAX).iter().map(|record| record.seq).collect()
    }

    fn fed(position: Seq, topic: &[Seq]) -> Sequence {
        let mut sequence = Sequence::after(position);
        for seq in topic {
            sequence.offer(record(*seq), Instant::now());
        }
        sequence
    }

    #[test]
    fn what_comes_again_is_dropped() {
        assert_eq!(seqs(&fed(0, &[1, 2, 2, 1, 2, 3, 3])), [1, 2, 3]);
    }

    #[test]
    fn what_is_early_waits_for_its_second_coming() {
        let mut sequence = fed(0, &[1, 4, 5]);
        assert_eq!(seqs(&sequence), [1]);
        assert!(matches!(sequence.ahead(), Some(Ahead { floor: 4, head: 5, .. })));
        for seq in [2, 3, 4, 5] {
            sequence.offer(record(seq), Instant::now());
        }
        assert_eq!((seqs(&sequence), sequence.ahead()), (vec![1, 2, 3, 4, 5], None));
    }

    #[test]
    fn a_hole_stays_known_while_the_reader_comes_up_to_it() {
        let mut sequence = fed(0, &[1, 2, 4]);
        sequence.seek(2);
        assert!(sequence.ahead().is_some());
        assert_eq!(sequence.seek(3), Again::FromAhead);
        assert_eq!(sequence.ahead(), None);
    }

    #[test]
    fn a_hole_stays_known_until_the_reader_is_through_all_of_it() {
        let mut sequence = fed(0, &[1, 8, 9]);
        assert_eq!(sequence.seek(5), Again::Nothing);
        assert!(matches!(sequence.ahead(), Some(Ahead { floor: 8, head: 9, .. })));
        assert_eq!(sequence.seek(9), Again::Nothing, "it has all that came too early");
        assert_eq!(sequence.ahead(), None);
    }

    #[test]
    fn nothing_is_lost_by_looking_and_all_by_moving_on() {
        let mut sequence = fed(0, &[1, 2, 3]);
        assert_eq!(seqs(&sequence), seqs(&sequence));
        assert_eq!(sequence.seek(2), Again::Nothing);
        assert_eq!(seqs(&sequence), [3]);
        assert_eq!(sequence.seek(3), Again::Nothing);
        assert_eq!((seqs(&sequence), sequence.bytes()), (vec![], 0));
    }

    #[test]
    fn a_reader_that_goes_back_has_to_read_again() {
        let mut sequence = fed(0, &[1, 2, 3]);
        sequence.seek(3);
        assert_eq!(sequence.seek(1), Again::FromPosition);
        for seq in [1, 2, 3] {
            sequence.offer(record(seq), Instant::now());
        }
        assert_eq!(seqs(&sequence), [2, 3]);
    }

    proptest! {
        /// A relay sends in order, and after an error again from the first that was not confirmed; a producer that
        /// slept adds any stretch of it once more. Whatever the mixture, the reader gets 1, 2, 3, …
        #[test]
        fn every_record_is_delivered_once_and_in_order(runs in prop::collection::vec((0i64..20, 1i64..30), 1..20)) {
            let (mut topic, mut confirmed) = (Vec::new(), 0);
            for (back, count) in runs {
                let first = (confirmed - back).max(0) + 1;
                topic.extend(first..first + count);
                confirmed = confirmed.max(first + count - 1);
            }
            let sequence = fed(0, &topic);
            prop_assert_eq!(seqs(&sequence), (1..=confirmed).collect::<Vec<_>>());
        }

        #[test]
        fn a_mark_never_leads_past_what_is_asked_for(count in 1i64..20_000, position in 0i64..20_000) {
            let mut marks = Marks::default();
            for seq in 1..=count {
                marks.note(seq, seq * 3);
            }
            prop_assert!(marks.start(position).is_none_or(|offset| offset <= position * 3 + 1));
        }
    }
}
