//! Pure. One shard's way to Kafka: what was sent, and what of it is safe.

use std::collections::VecDeque;

use rookery_actors::ids::Seq;

/// Records on their way, in the order of the log.
#[derive(Debug)]
pub(super) struct Line {
    confirmed: Seq,
    in_flight: VecDeque<(Seq, usize)>,
    bytes: usize,
}

impl Line {
    /// Everything up to `confirmed` is in Kafka.
    pub(super) fn after(confirmed: Seq) -> Self {
        Self { confirmed, in_flight: VecDeque::new(), bytes: 0 }
    }

    /// Up to here everything is in Kafka.
    pub(super) fn confirmed(&self) -> Seq {
        self.confirmed
    }

    /// Up to here everything was sent.
    pub(super) fn sent(&self) -> Seq {
        self.in_flight.back().map_or(self.confirmed, |(seq, _)| *seq)
    }

    /// Notes a record as sent. Trimming leaves holes in a log, so the next one need not be `sent() + 1`.
    pub(super) fn send(&mut self, seq: Seq, bytes: usize) {
        debug_assert!(seq > self.sent(), "a line is sent in order");
        self.in_flight.push_back((seq, bytes));
        self.bytes += bytes;
    }

    /// Notes a delivery: the bytes that are no longer in flight. One that is not the oldest in flight proves nothing about
    /// those before it, and does not count.
    pub(super) fn confirm(&mut self, seq: Seq) -> Option<usize> {
        self.in_flight.pop_front_if(|(oldest, _)| *oldest == seq).map(|(_, bytes)| {
            self.confirmed = seq;
            self.bytes -= bytes;
            bytes
        })
    }

    /// Nothing is in flight any more: what is not confirmed will be sent again.
    pub(super) fn rewind(&mut self) {
        self.in_flight.clear();
        self.bytes = 0;
    }

    /// How many records are in flight, and their bytes.
    pub(super) fn in_flight(&self) -> (usize, usize) {
        (self.in_flight.len(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(seqs: impl IntoIterator<Item = Seq>) -> Line {
        let mut line = Line::after(0);
        for seq in seqs {
            line.send(seq, 10);
        }
        line
    }

    #[test]
    fn after_an_error_everything_from_the_first_unconfirmed_is_sent_again() {
        let mut line = sent(1..=5);
        line.confirm(1);
        // 2 and 3 were lost, 4 and 5 got through: a resend of the lost ones alone would give 1, 4, 5, 2, 3.
        assert_eq!((line.confirm(4), line.confirm(5)), (None, None));
        line.rewind();
        assert_eq!((line.confirmed(), line.sent(), line.in_flight()), (1, 1, (0, 0)));
    }

    #[test]
    fn a_trimmed_log_is_sent_with_its_holes() {
        let mut line = sent([1, 7, 8]);
        assert_eq!([line.confirm(1), line.confirm(7), line.confirm(8)], [Some(10); 3]);
        assert_eq!(line.confirmed(), 8);
    }
}
