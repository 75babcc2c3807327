//! How far Kafka has the log, on its way into the database.

use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use rookery_actors::{
    entity::Failure,
    event::Topic,
    ids::{Seq, ShardId},
    runtime::Database,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};

/// Between two notes of how far Kafka has the log; a restart sends at most this much again.
pub(super) const NOTE_EVERY: Duration = Duration::from_millis(100);
/// Between two looks whether the table was put back while nothing was sent.
const FOLLOW_EVERY: Duration = Duration::from_secs(2);
/// A statement that takes longer is tried again.
const NOTE_WITHIN: Duration = Duration::from_secs(5);

/// How far Kafka has the logs of shards.
pub(super) async fn places(database: &Database, shards: &[ShardId]) -> Result<HashMap<ShardId, Seq>, Failure> {
    let ids: Vec<i16> = shards.iter().map(|shard| shard.as_i16()).collect();
    let client = database.get().await?;
    let rows = client.query("SELECT shard, seq FROM relayed WHERE shard = ANY($1)", &[&ids]).await?;
    Ok(rows.iter().map(|row| (ShardId(row.get::<_, i16>(0).cast_unsigned()), row.get(1))).collect())
}

/// What the database does not know yet, and what we know that it knew.
#[derive(Default)]
pub(super) struct Progress {
    state: Mutex<State>,
    put_back: Notify,
}

#[derive(Default)]
struct State {
    /// How often everything was forgotten.
    generation: u64,
    unnoted: HashMap<ShardId, Seq>,
    /// What the table said, or was made to say, for the shards that are relayed here.
    noted: HashMap<ShardId, Seq>,
}

impl Progress {
    /// Kafka has a shard's log up to here.
    pub(super) fn reached(&self, shard: ShardId, seq: Seq) {
        let mut state = self.state();
        let reached = state.unnoted.entry(shard).or_insert(seq);
        *reached = (*reached).max(seq);
    }

    /// These shards are relayed from where the table says, and only those that stay, beside them.
    pub(super) fn follow(&self, stays: impl Fn(ShardId) -> bool, new: &[(ShardId, Seq)]) {
        let mut state = self.state();
        state.noted.retain(|shard, _| stays(*shard));
        state.noted.extend(new.iter().copied());
    }

    /// Forgets everything: what was reached is not there any more.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        *state = State { generation: state.generation + 1, ..State::default() };
    }

    /// Ends when the table says less than it was known to say.
    pub(super) async fn put_back(&self) {
        self.put_back.notified().await;
    }

    /// What is to be noted, with what the table should say before, and as of which generation.
    fn take(&self) -> (u64, Vec<Step>) {
        let mut state = self.state();
        let generation = state.generation;
        let unnoted = mem::take(&mut state.unnoted);
        let step = |(shard, seq)| Step { shard, known: state.noted.get(&shard).copied().unwrap_or(0), seq };
        let mut steps: Vec<Step> = unnoted.into_iter().map(step).collect();
        steps.sort_unstable_by_key(|step| step.shard);
        (generation, steps)
    }

    /// What could not be noted is tried again, unless it was forgotten meanwhile.
    fn give_back(&self, generation: u64, steps: &[Step]) {
        let mut state = self.state();
        if state.generation == generation {
            for step in steps {
                let reached = state.unnoted.entry(step.shard).or_insert(step.seq);
                *reached = (*reached).max(step.seq);
            }
        }
    }

    /// What the table says now.
    fn learn(&self, places: impl IntoIterator<Item = (ShardId, Seq)>) {
        let mut state = self.state();
        let mut less = false;
        for (shard, place) in places {
            if let Some(noted) = state.noted.get_mut(&shard) {
                less |= place < *noted;
                *noted = (*noted).max(place);
            }
        }
        drop(state);
        if less {
            self.put_back.notify_one();
        }
    }

    fn followed(&self) -> Vec<ShardId> {
        self.state().noted.keys().copied().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }
}

/// One shard's place, and the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    shard: ShardId,
    known: Seq,
    seq: Seq,
}

/// Notes what is reached, and looks whether the table was put back, until it is dropped.
pub(super) async fn note_progress(topic: Topic, database: Database, progress: &Progress) {
    let mut followed = Instant::now();
    loop {
        sleep(NOTE_EVERY).await;
        let (generation, steps) = progress.take();
        if !steps.is_empty() {
            match timeout(NOTE_WITHIN, note(&database, &steps)).await {
                Ok(Ok(places)) => progress.learn(places),
                _ => {
                    tracing::debug!(kafka.topic = topic.kafka_name(), "cannot note yet how far Kafka has the log");
                    progress.give_back(generation, &steps);
                }
            }
        } else if followed.elapsed() >= FOLLOW_EVERY {
            followed = Instant::now();
            let shards = progress.followed();
            if let Ok(Ok(places)) = timeout(NOTE_WITHIN, places(&database, &shards)).await {
                progress.learn(places);
            }
        }
    }
}

/// Moves places forward, and returns where they are. Never back, for a former owner may still confirm; and not if the table
/// says less than before: then the topic has lost what was confirmed.
async fn note(database: &Database, steps: &[Step]) -> Result<Vec<(ShardId, Seq)>, Failure> {
    let shards: Vec<i16> = steps.iter().map(|step| step.shard.as_i16()).collect();
    let known: Vec<Seq> = steps.iter().map(|step| step.known).collect();
    let seqs: Vec<Seq> = steps.iter().map(|step| step.seq).collect();
    let client = database.get().await?;
    let rows = client
        .query(
            "WITH step AS (SELECT * FROM UNNEST($1::int2[], $2::int8[], $3::int8[]) AS s(shard, known, seq) ORDER BY shard),
                  raised AS (UPDATE relayed r SET seq = s.seq FROM step s
                             WHERE r.shard = s.shard AND r.seq >= s.known AND r.seq < s.seq RETURNING r.shard, r.seq),
                  begun AS (INSERT INTO relayed (shard, seq)
                            SELECT shard, seq FROM step s WHERE NOT EXISTS (SELECT FROM relayed r WHERE r.shard = s.shard)
                            ON CONFLICT (shard) DO NOTHING RETURNING shard, seq)
             SELECT s.shard, COALESCE(raised.seq, begun.seq, r.seq, 0)
             FROM step s LEFT JOIN raised USING (shard) LEFT JOIN begun USING (shard) LEFT JOIN relayed r USING (shard)",
            &[&shards, &known, &seqs],
        )
        .await?;
    Ok(rows.iter().map(|row| (ShardId(row.get::<_, i16>(0).cast_unsigned()), row.get(1))).collect())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const A: ShardId = ShardId(1);
    const B: ShardId = ShardId(2);

    #[test]
    fn a_table_that_was_put_back_is_noticed_and_one_that_another_has_raised_is_not() {
        let progress = Progress::default();
        progress.follow(|_| true, &[(A, 5), (B, 7)]);
        progress.learn([(A, 9), (B, 7)]);
        assert!(progress.put_back().now_or_never().is_none());
        progress.learn([(A, 0), (B, 7)]);
        assert!(progress.put_back().now_or_never().is_some());
    }

    #[test]
    fn what_was_forgotten_is_not_noted_after_all_because_a_statement_failed() {
        let progress = Progress::default();
        progress.reached(A, 8);
        let (generation, steps) = progress.take();
        progress.give_back(generation, &steps);
        assert_eq!(progress.take(), (generation, steps.clone()));
        progress.forget();
        progress.give_back(generation, &steps);
        assert_eq!(progress.take().1, []);
    }

    #[test]
    fn what_is_noted_says_what_the_table_should_have_said_and_a_shard_that_left_is_nobodys_concern() {
        let progress = Progress::default();
        progress.follow(|_| true, &[(A, 5)]);
        progress.reached(A, 8);
        progress.reached(A, 6);
        assert_eq!(progress.take(), (0, vec![Step { shard: A, known: 5, seq: 8 }]));
        progress.learn([(A, 8)]);
        progress.follow(|shard| shard != A, &[(B, 1)]);
        progress.learn([(A, 0)]);
        assert!(progress.put_back().now_or_never().is_none());
        assert_eq!(progress.followed(), [B]);
    }
}
