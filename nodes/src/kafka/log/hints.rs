//! Where in Kafka a consumer's places are, kept beside them: so that a restart, or whoever is given a shard, need not read a
//! topic from its beginning. One that is wrong, for instance because a topic was made anew, costs time and nothing else: a
//! reader that comes to the end of a partition before what Kafka is known to have looks elsewhere for the rest.

use std::{
    collections::{HashMap, HashSet},
    sync::Mutex,
    time::Duration,
};

use rookery_actors::{
    entity::Failure,
    event::Topic,
    ids::{Seq, ShardId},
    runtime::Database,
};
use tokio::time::Instant;

/// Between two notes. Longer than between two of a bridge's places: a hint is kept back for one round, so that the place to
/// which it belongs is noted by then.
const NOTE_EVERY: Duration = Duration::from_secs(5);

/// Between two looks how far Kafka has the log, for readers that wait for news.
const RELAYED_EVERY: Duration = Duration::from_secs(3);

/// The hints of one consumer, in the publishers' databases.
pub struct Hints {
    databases: HashMap<Topic, Database>,
    consumer: String,
    every: Duration,
    rounds: Mutex<HashMap<Topic, Round>>,
}

struct Round {
    began: Instant,
    /// Offsets as of then.
    offsets: HashMap<ShardId, i64>,
    /// The shards whose hints were asked for.
    known: HashSet<ShardId>,
    /// When it was last asked how far Kafka has the log.
    relayed: Option<Instant>,
}

impl Round {
    fn new(now: Instant) -> Self {
        Self { began: now, offsets: HashMap::new(), known: HashSet::new(), relayed: None }
    }
}

impl Hints {
    /// Those of `consumer`, a service's name.
    pub fn new(databases: impl IntoIterator<Item = (Topic, Database)>, consumer: &str) -> Self {
        let databases = databases.into_iter().collect();
        Self { databases, consumer: consumer.to_owned(), every: NOTE_EVERY, rounds: Mutex::default() }
    }

    /// The same, noted more or less often.
    #[must_use]
    pub fn every(mut self, every: Duration) -> Self {
        self.every = every;
        self
    }

    /// What is known of those among these shards that were not asked for before.
    pub(super) async fn unknown(&self, topic: Topic, positions: &[(ShardId, Seq)]) -> Vec<(ShardId, i64)> {
        let unknown: Vec<i16> = {
            let mut rounds = self.rounds.lock().expect("no panic under this lock");
            let round = rounds.entry(topic).or_insert_with(|| Round::new(Instant::now()));
            positions.iter().filter(|(shard, _)| !round.known.contains(shard)).map(|(shard, _)| shard.as_i16()).collect()
        };
        if unknown.is_empty() {
            return Vec::new();
        }
        let hints = self.load(topic, &unknown).await.unwrap_or_else(|failure| {
            tracing::debug!(kafka.topic = topic.kafka_name(), %failure, "without hints a topic is read from its beginning");
            Vec::new()
        });
        // Only now: a reader that is ended while it asks has heard nothing, and the next one asks again.
        if let Some(round) = self.rounds.lock().expect("no panic under this lock").get_mut(&topic) {
            round.known.extend(unknown.iter().map(|shard| ShardId(shard.cast_unsigned())));
        }
        hints
    }

    async fn load(&self, topic: Topic, shards: &[i16]) -> Result<Vec<(ShardId, i64)>, Failure> {
        let Some(database) = self.databases.get(&topic) else { return Ok(Vec::new()) };
        let client = database.get().await?;
        let select = "SELECT shard, hint FROM consumer WHERE name = $1 AND shard = ANY($2) AND hint IS NOT NULL";
        let rows = client.query(select, &[&self.consumer, &shards]).await?;
        Ok(rows.iter().map(|row| (ShardId(row.get::<_, i16>(0).unsigned_abs()), row.get(1))).collect())
    }

    /// How far Kafka is known to have the logs of these shards, if it is time to ask that.
    pub(super) async fn relayed(&self, topic: Topic, positions: &[(ShardId, Seq)]) -> Option<Vec<(ShardId, Seq)>> {
        let database = self.databases.get(&topic)?;
        {
            let mut rounds = self.rounds.lock().expect("no panic under this lock");
            let now = Instant::now();
            let round = rounds.entry(topic).or_insert_with(|| Round::new(now));
            if round.relayed.is_some_and(|asked| now - asked < RELAYED_EVERY) {
                return None;
            }
            round.relayed = Some(now);
        }
        let shards: Vec<i16> = positions.iter().map(|(shard, _)| shard.as_i16()).collect();
        let ask = async {
            let client = database.get().await?;
            let select = "SELECT shard, seq FROM relayed WHERE shard = ANY($1)";
            Ok::<_, Failure>(client.query(select, &[&shards]).await?)
        };
        let rows = ask.await.inspect_err(|failure| {
            tracing::debug!(kafka.topic = topic.kafka_name(), %failure, "cannot ask how far Kafka has the log");
        });
        Some(rows.ok()?.iter().map(|row| (ShardId(row.get::<_, i16>(0).unsigned_abs()), row.get(1))).collect())
    }

    /// Notes the hints of the round before, once a round has passed. `offsets` are those of now.
    pub(super) fn note(&self, topic: Topic, offsets: impl FnOnce() -> HashMap<ShardId, i64>) {
        let Some(database) = self.databases.get(&topic) else { return };
        let due = {
            let mut rounds = self.rounds.lock().expect("no panic under this lock");
            let Some(round) = rounds.get_mut(&topic).filter(|round| round.began.elapsed() >= self.every) else { return };
            round.began = Instant::now();
            std::mem::replace(&mut round.offsets, offsets())
        };
        if due.is_empty() {
            return;
        }
        let (database, consumer) = (database.clone(), self.consumer.clone());
        // Beside the reading: it waits for nothing that is only a hint.
        tokio::spawn(async move {
            if let Err(failure) = store(&database, &consumer, due).await {
                tracing::debug!(kafka.topic = topic.kafka_name(), %failure, "hints could not be noted");
            }
        });
    }
}

async fn store(database: &Database, consumer: &str, offsets: HashMap<ShardId, i64>) -> Result<(), Failure> {
    let mut offsets: Vec<(i16, i64)> = offsets.into_iter().map(|(shard, offset)| (shard.as_i16(), offset)).collect();
    offsets.sort_unstable();
    let (shards, offsets): (Vec<i16>, Vec<i64>) = offsets.into_iter().unzip();
    let client = database.get().await?;
    client
        .execute(
            "UPDATE consumer c SET hint = r.hint FROM UNNEST($2::int2[], $3::int8[]) AS r(shard, hint)
             WHERE c.name = $1 AND c.shard = r.shard AND c.hint IS DISTINCT FROM r.hint",
            &[&consumer, &shards, &offsets],
        )
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rookery_actors::runtime::PoolSize;

    use super::*;

    /// What was broken: whoever read the shard next began the topic at its beginning.
    #[tokio::test]
    async fn hints_that_nobody_has_waited_for_are_asked_for_again() {
        // It takes connections, and says nothing.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("postgresql://x@{}/x", silent.local_addr().unwrap());
        let database = Database::new(url.parse().unwrap(), "a test", PoolSize::default());
        let hints = Hints::new([(Topic::Posts, database)], "search");
        let asked = tokio::time::timeout(Duration::from_millis(100), hints.unknown(Topic::Posts, &[(ShardId(3), 0)])).await;
        assert!(asked.is_err(), "there is no answer");
        assert!(hints.rounds.lock().unwrap()[&Topic::Posts].known.is_empty());
    }
}
