//! What a reader of a topic knows: who asks for what, what was read for them, and what to read next.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use rookery_actors::{
    episodes,
    event::{Fetched, LogError, Record, Source, Topic},
    ids::{Seq, ShardId},
};

use crate::kafka::sequence::{Again, Ahead, Marks, Offered, Sequence};

/// Records read and not yet fetched, per partition, in bytes: beyond it the partition rests.
const KEPT_BYTES_MAX: usize = 512 << 10;
/// A shard whose records nobody has come for since makes room for those that somebody waits for.
const LEFT_AFTER: Duration = Duration::from_secs(2);
/// At the end of a partition, before a record that Kafka is known to have counts as missing there: it may be on its way.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// A partition from which nothing comes for so long, not even its end, although it has what we lack, is begun anew: the client
/// lets a partition rest for good when its place could not be found, for instance while the topic was being made.
const STALLED_AFTER: Duration = Duration::from_secs(5);
/// A shard that nobody has asked for since is not read any more; longer than any wait of a fetch.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(120);

/// The partitions of a topic that somebody reads.
pub(super) struct State {
    topic: Topic,
    count: u16,
    gap_patience: Duration,
    /// What the topic does not have is asked of the outboxes, not of the topic's beginning.
    has_outbox: bool,
    partitions: BTreeMap<u16, Partition>,
    /// Where to begin for shards that were read elsewhere, or before.
    hints: HashMap<ShardId, i64>,
}

#[derive(Default)]
struct Partition {
    lines: BTreeMap<ShardId, Line>,
    /// Outlive the lines: who comes back need not read from the beginning.
    marks: HashMap<ShardId, Marks>,
    /// The offset that is read next; none while it is not assigned.
    next: Option<i64>,
    /// Where reading must begin anew.
    restart: Option<Start>,
    /// This pass began at the first record that Kafka still has.
    complete: bool,
    /// When the end of the partition was last reached.
    ended: Option<Instant>,
    /// Nothing was read since.
    at_end: bool,
    /// When anything was last heard of it.
    heard: Option<Instant>,
    paused: bool,
}

struct Line {
    sequence: Sequence,
    asked: Instant,
    alarmed: bool,
    /// Where the first record lies that came too early, and was dropped, in this pass.
    early: Option<i64>,
    /// How far Kafka is known to have the shard's log, and since when we are behind that.
    relayed: Option<(Seq, Instant)>,
}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Start {
    /// At the first record that Kafka still has.
    Beginning,
    /// At this offset.
    At(i64),
}

/// What the thread that reads must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Read the partition from there.
    Read { partition: u16, start: Start },
    /// Stop fetching for a while.
    Pause { partition: u16 },
    /// Go on fetching.
    Resume { partition: u16 },
    /// Nobody reads it any more.
    Leave { partition: u16 },
}

impl State {
    pub(super) fn new(topic: Topic, count: u16, gap_patience: Duration) -> Self {
        Self { topic, count, gap_patience, has_outbox: false, partitions: BTreeMap::new(), hints: HashMap::new() }
    }

    /// What the topic does not have is asked of somebody else: [`LogError::OutOfRange`] comes without a look from the topic's
    /// very beginning.
    pub(super) fn with_outbox(self) -> Self {
        Self { has_outbox: true, ..self }
    }

    /// What follows the positions, as far as it was read.
    ///
    /// # Errors
    /// [`LogError::OutOfRange`], if a shard's next record is gone and nobody else has news.
    pub(super) fn look(
        &mut self,
        positions: &[(ShardId, Seq)],
        bytes_max: usize,
        now: Instant,
    ) -> Result<Vec<Fetched>, LogError> {
        for (shard, position) in positions {
            let hint = self.hints.remove(shard);
            self.partitions.entry(shard.0 % self.count).or_default().seek(*shard, *position, hint, now);
        }
        let lines = || positions.iter().filter_map(|(shard, _)| Some((*shard, self.line(*shard)?)));
        let ready = lines().filter(|(_, line)| line.sequence.has_news()).count();
        let share = (bytes_max / ready.max(1)).max(1);
        let fetched: Vec<Fetched> = lines()
            .filter(|(_, line)| line.sequence.has_news())
            .map(|(shard, line)| Fetched { shard, records: line.sequence.peek(share) })
            .collect();
        if !fetched.is_empty() {
            return Ok(fetched);
        }
        positions.iter().try_for_each(|(shard, position)| self.check(*shard, *position, now))?;
        Ok(fetched)
    }

    /// Where what follows their places begins, about, for shards that nobody has asked for yet.
    pub(super) fn hint(&mut self, offsets: Vec<(ShardId, i64)>) {
        self.hints.extend(offsets);
    }

    /// Where what follows these positions begins, about: such hints for another reader.
    pub(super) fn offsets(&self, positions: &[(ShardId, Seq)]) -> HashMap<ShardId, i64> {
        let offset = |(shard, position): &(ShardId, Seq)| {
            let partition = self.partitions.get(&(shard.0 % self.count))?;
            let line = partition.lines.get(shard).filter(|_| partition.restart.is_none())?;
            let waits = line.sequence.has_news() || line.sequence.ahead().is_some();
            let offset = if waits { partition.marks.get(shard)?.start(*position) } else { partition.next };
            Some((*shard, offset?))
        };
        positions.iter().filter_map(offset).collect()
    }

    /// How far Kafka is known to have the logs of shards.
    pub(super) fn relayed(&mut self, relayed: &[(ShardId, Seq)], now: Instant) {
        for (shard, seq) in relayed {
            let partition = self.partitions.get_mut(&(shard.0 % self.count));
            let Some(line) = partition.and_then(|partition| partition.lines.get_mut(shard)) else { continue };
            let behind_since = match line.relayed {
                Some((before, since)) if line.sequence.last() < before => since,
                _ => now,
            };
            line.relayed = Some((*seq, behind_since));
        }
    }

    /// The topic was away, and may be another by now: no offset means anything any more.
    pub(super) fn remade(&mut self) {
        self.hints.clear();
        for partition in self.partitions.values_mut() {
            partition.marks.clear();
            partition.restart = Some(Start::Beginning);
        }
    }

    /// A message was read: whether it is news to somebody.
    pub(super) fn offer(&mut self, partition: u16, offset: i64, read: Option<(ShardId, Record)>, now: Instant) -> bool {
        let Some(partition) = self.partitions.get_mut(&partition) else {
            return false;
        };
        partition.next = Some(offset + 1);
        (partition.at_end, partition.heard) = (false, Some(now));
        let Some((shard, record)) = read else {
            return false;
        };
        let Some(line) = partition.lines.get_mut(&shard) else {
            return false;
        };
        let seq = record.seq;
        match line.sequence.offer(record, now) {
            Offered::Taken => {
                (line.alarmed, line.early) = (false, None);
                partition.marks.entry(shard).or_default().note(seq, offset);
                true
            }
            Offered::Early => {
                line.early.get_or_insert(offset);
                false
            }
            Offered::Known => false,
        }
    }

    /// The end of a partition was reached.
    pub(super) fn ended(&mut self, partition: u16, now: Instant) {
        if let Some(partition) = self.partitions.get_mut(&partition) {
            (partition.ended, partition.at_end, partition.heard) = (Some(now), true, Some(now));
        }
    }

    /// What has to be done now; what was said is taken as done.
    pub(super) fn orders(&mut self, now: Instant) -> Vec<Order> {
        let mut orders = Vec::new();
        self.partitions.retain(|number, state| {
            let partition = *number;
            state.lines.retain(|_, line| now.duration_since(line.asked) < FORGOTTEN_AFTER);
            if state.lines.is_empty() {
                orders.push(Order::Leave { partition });
                return false;
            }
            if let Some(start) = state.restart.take() {
                state.begin(start, now);
                orders.push(Order::Read { partition, start });
                return true;
            }
            let kept = state.kept();
            if !state.paused && kept > KEPT_BYTES_MAX {
                state.paused = true;
                orders.push(Order::Pause { partition });
            } else if state.paused && kept > KEPT_BYTES_MAX / 2 {
                state.make_room(now);
            } else if state.paused {
                state.paused = false;
                orders.push(Order::Resume { partition });
            }
            true
        });
        orders
    }

    /// An order could not be carried out, or the client was replaced: read on from where we are.
    pub(super) fn failed(&mut self, partition: u16) {
        if let Some(partition) = self.partitions.get_mut(&partition) {
            partition.read_on();
        }
    }

    /// As [`Self::failed`], for all of them.
    pub(super) fn failed_all(&mut self) {
        let all: Vec<u16> = self.partitions.keys().copied().collect();
        all.into_iter().for_each(|partition| self.failed(partition));
    }

    fn line(&self, shard: ShardId) -> Option<&Line> {
        self.partitions.get(&(shard.0 % self.count))?.lines.get(&shard)
    }

    /// Whether a shard's next record is missing, although we have read to the end: later ones were seen, or Kafka is known to
    /// have had it.
    fn check(&mut self, shard: ShardId, position: Seq, now: Instant) -> Result<(), LogError> {
        let Some(partition) = self.partitions.get_mut(&(shard.0 % self.count)) else {
            return Ok(());
        };
        let Some(line) = partition.lines.get(&shard) else {
            return Ok(());
        };
        let (last, ahead, relayed) = (line.sequence.last(), line.sequence.ahead(), line.relayed);
        let (floor, head) = match (ahead, relayed) {
            (Some(Ahead { since, floor, head }), _) => {
                let read_on = partition.ended.is_some_and(|ended| ended >= since);
                // Records before the place where this pass began may be what is missing: no need to wait for them here.
                let patience = if partition.complete { self.gap_patience } else { END_PATIENCE.min(self.gap_patience) };
                if !read_on || now.duration_since(since) < patience {
                    return Ok(());
                }
                (floor, head)
            }
            (None, Some((relayed, since))) if last < relayed => {
                let behind_for = now.duration_since(since);
                if partition.is_stalled(now) && behind_for >= STALLED_AFTER {
                    partition.read_on();
                    partition.heard = Some(now);
                    if !self.has_outbox {
                        return Ok(());
                    }
                } else if !partition.at_end || behind_for < END_PATIENCE.min(self.gap_patience) {
                    return Ok(());
                }
                (relayed + 1, relayed)
            }
            _ => return Ok(()),
        };
        let source_shard = Source { topic: self.topic, shard };
        let Some(line) = partition.lines.get_mut(&shard) else {
            return Ok(());
        };
        if !line.alarmed {
            line.alarmed = true;
            metrics::counter!("rookery_log_gaps_total", "topic" => self.topic.kafka_name()).increment(1);
            episodes::warn(
                "records are missing in Kafka",
                self.topic.kafka_name(),
                format_args!("{source_shard} after {position}, up to {floor}"),
            );
        }
        if partition.complete || self.has_outbox {
            return Err(LogError::OutOfRange { source_shard, position, floor, head });
        }
        // A hint may have led past them: once more from the very beginning, before anybody despairs.
        partition.marks.remove(&shard);
        partition.restart = Some(Start::Beginning);
        if let Some((_, since)) = &mut line.relayed {
            *since = now;
        }
        Ok(())
    }
}

impl Partition {
    fn seek(&mut self, shard: ShardId, position: Seq, hint: Option<i64>, now: Instant) {
        let mark = self.marks.get(&shard).and_then(|marks| marks.start(position));
        let again = match self.lines.get_mut(&shard) {
            Some(line) => {
                line.asked = now;
                (line.sequence.seek(position), line.early)
            }
            None => {
                let sequence = Sequence::after(position);
                self.lines.insert(shard, Line { sequence, asked: now, alarmed: false, early: None, relayed: None });
                (Again::FromPosition, None)
            }
        };
        let start = match again {
            (Again::Nothing, _) => return,
            (Again::FromAhead, Some(early)) => Start::At(early),
            _ => mark.or(hint).map_or(Start::Beginning, Start::At),
        };
        // Never forward: the neighbours in the partition need what lies between.
        let reading = self.restart.or(self.next.map(Start::At));
        let already_there = self.restart.is_none() && self.complete && self.next == Some(0);
        if !already_there && reading.is_none_or(|reading| start < reading) {
            self.restart = Some(start);
        }
    }

    fn begin(&mut self, start: Start, now: Instant) {
        self.next = Some(match start {
            Start::Beginning => 0,
            Start::At(offset) => offset,
        });
        self.complete = start == Start::Beginning;
        (self.ended, self.at_end, self.heard) = (None, false, Some(now));
        self.paused = false;
        for line in self.lines.values_mut() {
            line.sequence.forget_ahead();
            line.early = None;
        }
    }

    /// Begins anew where we are.
    fn read_on(&mut self) {
        let next = match self.next {
            None | Some(0) => Start::Beginning,
            Some(next) => Start::At(next),
        };
        self.restart = Some(self.restart.map_or(next, |restart| restart.min(next)));
    }

    /// Whether nothing comes although something should.
    fn is_stalled(&self, now: Instant) -> bool {
        !self.at_end && !self.paused && self.heard.is_some_and(|heard| now.duration_since(heard) >= STALLED_AFTER)
    }

    fn kept(&self) -> usize {
        self.lines.values().map(|line| line.sequence.bytes()).sum()
    }

    /// Lets go of shards that went elsewhere, if others wait.
    fn make_room(&mut self, now: Instant) {
        if self.lines.values().all(|line| line.sequence.has_news()) {
            return;
        }
        self.lines.retain(|_, line| !line.sequence.has_news() || now.duration_since(line.asked) < LEFT_AFTER);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);
    const A: ShardId = ShardId(0);
    const B: ShardId = ShardId(2);

    fn state() -> State {
        State::new(Topic::Posts, 2, PATIENCE)
    }

    fn record(seq: Seq, bytes: usize) -> Record {
        let payload = Some("x".repeat(bytes).into());
        Record { seq, epoch: 1, key: Uuid::nil(), kind: "x".into(), payload, traceparent: None, at: Timestamp::UNIX_EPOCH }
    }

    fn fetch(state: &mut State, positions: &[(ShardId, Seq)], now: Instant) -> Vec<(ShardId, Vec<Seq>)> {
        let seqs = |records: &[Arc<Record>]| records.iter().map(|record| record.seq).collect();
        let fetched = state.look(positions, usize::MAX, now).unwrap();
        fetched.iter().map(|fetched| (fetched.shard, seqs(&fetched.records))).collect()
    }

    const FROM_THE_START: Order = Order::Read { partition: 0, start: Start::Beginning };

    #[test]
    fn a_new_reader_begins_at_the_beginning_and_a_second_shard_does_not_disturb_it() {
        let (mut state, now) = (state(), Instant::now());
        fetch(&mut state, &[(A, 0), (B, 0)], now);
        assert_eq!(state.orders(now), [FROM_THE_START]);
        fetch(&mut state, &[(A, 0), (B, 0)], now);
        assert_eq!(state.orders(now), []);
    }

    #[test]
    fn a_rewind_begins_at_a_hint_and_spares_the_neighbour_repetitions() {
        let (mut state, now) = (state(), Instant::now());
        fetch(&mut state, &[(A, 0), (B, 0)], now);
        state.orders(now);
        for seq in 1..=600 {
            state.offer(0, 2 * seq, Some((A, record(seq, 1))), now);
            state.offer(0, 2 * seq + 1, Some((B, record(seq, 1))), now);
        }
        fetch(&mut state, &[(A, 600), (B, 600)], now);
        fetch(&mut state, &[(A, 300), (B, 600)], now);
        // 257 was the last place that was remembered before 300.
        assert_eq!(state.orders(now), [Order::Read { partition: 0, start: Start::At(515) }]);
        for seq in 257..=302 {
            state.offer(0, 2 * seq + 1, Some((B, record(seq, 1))), now);
            state.offer(0, 2 * seq, Some((A, record(seq, 1))), now);
        }
        assert_eq!(fetch(&mut state, &[(A, 300), (B, 600)], now), [(A, vec![301, 302])]);
    }

    #[test]
    fn a_full_partition_rests_until_half_of_it_was_fetched() {
        let (mut state, now) = (state(), Instant::now());
        fetch(&mut state, &[(A, 0)], now);
        state.orders(now);
        for seq in 1..=9 {
            state.offer(0, seq, Some((A, record(seq, 64 << 10))), now);
        }
        assert_eq!(state.orders(now), [Order::Pause { partition: 0 }]);
        fetch(&mut state, &[(A, 3)], now);
        assert_eq!(state.orders(now), []);
        fetch(&mut state, &[(A, 8)], now);
        assert_eq!(state.orders(now), [Order::Resume { partition: 0 }]);
    }

    #[test]
    fn a_shard_that_went_elsewhere_does_not_hold_up_its_neighbour() {
        let (mut state, now) = (state(), Instant::now());
        fetch(&mut state, &[(A, 0), (B, 0)], now);
        state.orders(now);
        for seq in 1..=9 {
            state.offer(0, seq, Some((A, record(seq, 64 << 10))), now);
        }
        assert_eq!(state.orders(now), [Order::Pause { partition: 0 }]);
        let later = now + LEFT_AFTER;
        fetch(&mut state, &[(B, 0)], later);
        state.orders(later);
        assert_eq!(state.orders(later), [Order::Resume { partition: 0 }]);
    }

    #[test]
    fn a_hole_that_lasts_after_a_whole_pass_is_out_of_range() {
        let (mut state, now) = (state(), Instant::now());
        fetch(&mut state, &[(A, 4)], now);
        state.orders(now);
        state.offer(0, 100, Some((A, record(50, 1))), now);
        state.ended(0, now);
        assert_eq!(fetch(&mut state, &[(A, 4)], now + PATIENCE / 2), []);
        let error = state.look(&[(A, 4)], 1, now + PATIENCE).unwrap_err();
        assert!(matches!(error, LogError::OutOfRange { position: 4, floor: 50, head: 50, .. }), "{error}");
    }

    #[test]
    fn a_hole_after_a_hint_is_looked_for_from_the_beginning_first() {
        let (mut state, now) = (state(), Instant::now());
        fetch(&mut state, &[(A, 0)], now);
        state.orders(now);
        state.offer(0, 7, Some((A, record(1, 1))), now);
        fetch(&mut state, &[(A, 1)], now);
        state.failed(0);
        assert_eq!(state.orders(now), [Order::Read { partition: 0, start: Start::At(8) }]);
        state.offer(0, 9, Some((A, record(3, 1))), now);
        state.ended(0, now);
        fetch(&mut state, &[(A, 1)], now + PATIENCE);
        assert_eq!(state.orders(now), [FROM_THE_START]);
    }

    #[test]
    fn a_new_reader_begins_where_another_was() {
        let (mut state, now) = (state(), Instant::now());
        fetch(&mut state, &[(A, 0), (B, 0)], now);
        state.orders(now);
        for seq in 1..=600 {
            state.offer(0, seq, Some((A, record(seq, 1))), now);
        }
        state.offer(0, 601, Some((B, record(1, 1))), now);
        // A has something to come for, B has nothing: all that follows it comes later.
        let positions = [(A, 300), (B, 1)];
        fetch(&mut state, &positions, now);
        let hints = state.offsets(&positions);
        assert_eq!(hints, [(A, 258), (B, 602)].into());

        let mut other = self::state();
        other.hint(hints.into_iter().collect());
        fetch(&mut other, &positions, now);
        assert_eq!(other.orders(now), [Order::Read { partition: 0, start: Start::At(258) }]);
    }

    #[test]
    fn a_hint_that_leads_past_a_record_is_followed_by_a_look_from_the_beginning() {
        let (mut state, now) = (state(), Instant::now());
        state.hint(vec![(A, 40)]);
        fetch(&mut state, &[(A, 1)], now);
        assert_eq!(state.orders(now), [Order::Read { partition: 0, start: Start::At(40) }]);
        state.offer(0, 41, Some((A, record(9, 1))), now);
        state.ended(0, now);
        fetch(&mut state, &[(A, 1)], now + PATIENCE);
        assert_eq!(state.orders(now), [FROM_THE_START]);
    }

    #[test]
    fn an_end_before_what_is_known_to_be_relayed_is_a_reason_to_look_again() {
        let (mut state, now) = (state(), Instant::now());
        // The topic was made anew: what follows 5 now lies before the hint, and nothing comes after it.
        state.hint(vec![(A, 40)]);
        fetch(&mut state, &[(A, 5)], now);
        assert_eq!(state.orders(now), [Order::Read { partition: 0, start: Start::At(40) }]);
        state.ended(0, now);
        state.relayed(&[(A, 25)], now);
        fetch(&mut state, &[(A, 5)], now + END_PATIENCE / 2);
        assert_eq!(state.orders(now), [], "it may be on its way");
        fetch(&mut state, &[(A, 5)], now + END_PATIENCE);
        assert_eq!(state.orders(now), [FROM_THE_START]);
        for seq in 1..=25 {
            state.offer(0, seq, Some((A, record(seq, 1))), now);
        }
        assert_eq!(fetch(&mut state, &[(A, 5)], now), [(A, (6..=25).collect())]);
        state.ended(0, now);
        fetch(&mut state, &[(A, 25)], now + PATIENCE);
        assert_eq!(state.orders(now), [], "it has all that Kafka is known to have");
    }

    /// What was broken: a client that could not find the beginning of a topic that was being made never tried again.
    #[test]
    fn a_partition_from_which_nothing_comes_although_it_has_something_is_begun_anew() {
        let (mut state, now) = (state(), Instant::now());
        fetch(&mut state, &[(A, 5)], now);
        state.orders(now);
        state.relayed(&[(A, 25)], now);
        fetch(&mut state, &[(A, 5)], now + STALLED_AFTER / 2);
        assert_eq!(state.orders(now), []);
        let later = now + STALLED_AFTER;
        fetch(&mut state, &[(A, 5)], later);
        assert_eq!(state.orders(later), [FROM_THE_START]);
        fetch(&mut state, &[(A, 5)], later);
        assert_eq!(state.orders(later), [], "not at every look");
        let mut state = state.with_outbox();
        let missing = state.look(&[(A, 5)], 1, later + STALLED_AFTER).unwrap_err();
        assert!(matches!(missing, LogError::OutOfRange { position: 5, .. }), "meanwhile the outbox is read: {missing}");
        assert_eq!(state.orders(later + STALLED_AFTER), [FROM_THE_START]);
    }

    #[test]
    fn what_the_topic_does_not_have_is_asked_of_the_outbox_at_once() {
        let (state, now) = (state(), Instant::now());
        let mut state = state.with_outbox();
        state.hint(vec![(A, 40)]);
        fetch(&mut state, &[(A, 5)], now);
        state.orders(now);
        state.ended(0, now);
        state.relayed(&[(A, 25)], now);
        let missing = state.look(&[(A, 5)], 1, now + END_PATIENCE).unwrap_err();
        assert!(matches!(missing, LogError::OutOfRange { position: 5, floor: 26, head: 25, .. }), "{missing}");
        // The outbox gave them; Kafka goes on.
        assert_eq!(fetch(&mut state, &[(A, 25)], now + END_PATIENCE), []);
        state.offer(0, 41, Some((A, record(26, 1))), now);
        assert_eq!(fetch(&mut state, &[(A, 25)], now), [(A, vec![26])]);
    }

    /// What was broken: the records that came while the hole was filled from elsewhere were dropped, and the next one found
    /// a hole again; on a live system there was no end to it.
    #[test]
    fn what_came_too_early_is_read_again_once_the_reader_is_past_the_hole() {
        let (state, now) = (state(), Instant::now());
        let mut state = state.with_outbox();
        fetch(&mut state, &[(A, 4), (B, 0)], now);
        state.orders(now);
        // Retention took 5 to 49.
        for seq in 50..=53 {
            state.offer(0, 50 + seq, Some((A, record(seq, 1))), now);
        }
        state.ended(0, now);
        let later = now + PATIENCE;
        assert!(matches!(state.look(&[(A, 4)], 1, later), Err(LogError::OutOfRange { floor: 50, head: 53, .. })));
        assert_eq!(fetch(&mut state, &[(A, 20)], now), [], "half of it came from the outbox");
        assert!(matches!(state.look(&[(A, 20)], 1, later), Err(LogError::OutOfRange { position: 20, .. })), "at once");
        // All of it did; others came meanwhile.
        state.offer(0, 104, Some((A, record(54, 1))), later);
        assert_eq!(fetch(&mut state, &[(A, 51)], later), []);
        assert_eq!(state.orders(later), [Order::Read { partition: 0, start: Start::At(100) }]);
        for seq in 50..=54 {
            state.offer(0, 50 + seq, Some((A, record(seq, 1))), later);
        }
        assert_eq!(fetch(&mut state, &[(A, 51)], later), [(A, vec![52, 53, 54])]);
    }

    #[test]
    fn a_reader_that_has_all_that_came_too_early_reads_on_where_the_topic_is() {
        let (mut state, now) = (state(), Instant::now());
        fetch(&mut state, &[(A, 4)], now);
        state.orders(now);
        state.offer(0, 100, Some((A, record(50, 1))), now);
        assert_eq!(fetch(&mut state, &[(A, 50)], now), []);
        assert_eq!(state.orders(now), []);
        state.offer(0, 101, Some((A, record(51, 1))), now);
        assert_eq!(fetch(&mut state, &[(A, 50)], now), [(A, vec![51])]);
    }

    #[test]
    fn a_topic_that_was_away_is_read_from_its_beginning_whatever_was_known_of_it() {
        let (mut state, now) = (state(), Instant::now());
        fetch(&mut state, &[(A, 0)], now);
        state.orders(now);
        for seq in 1..=600 {
            state.offer(0, seq, Some((A, record(seq, 1))), now);
        }
        fetch(&mut state, &[(A, 600)], now);
        state.remade();
        assert_eq!(state.orders(now), [FROM_THE_START]);
        state.failed(0);
        fetch(&mut state, &[(A, 300)], now);
        assert_eq!(state.orders(now), [FROM_THE_START], "a mark of the former topic leads nowhere");
    }

    #[test]
    fn a_partition_that_nobody_asks_for_is_left() {
        let (mut state, now) = (state(), Instant::now());
        fetch(&mut state, &[(A, 0)], now);
        state.orders(now);
        assert_eq!(state.orders(now + FORGOTTEN_AFTER), [Order::Leave { partition: 0 }]);
    }
}
