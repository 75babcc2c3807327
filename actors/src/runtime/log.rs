//! The logs of the shards that are served here, for whoever follows them from this node or another.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Runtime,
    route::{Place, strange_answer},
    tail,
    wire::{Answer, LogAsk, LogRefusal, Question},
};
use crate::{
    entity::Failure,
    event::{Fetched, LogError, Record, Source, Topic},
    ids::{Seq, ShardId},
    service::Service,
};

/// A question that waits for news takes this much longer than its wait at most.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// When nobody serves the shards that are asked for: before one looks again.
const OWNER_AFTER: Duration = Duration::from_millis(50);

impl<S: Service> Runtime<S> {
    /// The records after these positions, wherever their shards are served, waiting up to `wait` for the first of them.
    ///
    /// Asks all owners at once and takes the first news: a reader in a hurry asks for the shards of one owner at a time
    /// ([`Runtime::by_owner`]), or the others are asked again each time.
    ///
    /// # Errors
    /// [`LogError`]; the positions stay good.
    pub async fn fetch_log(
        &self,
        topic: Topic,
        positions: &[(ShardId, Seq)],
        bytes_max: usize,
        wait: Duration,
    ) -> Result<Vec<Fetched>, LogError> {
        let groups = self.groups(positions.iter().copied(), |(shard, _)| *shard);
        if groups.is_empty() {
            sleep(wait.min(OWNER_AFTER)).await;
            return Ok(Vec::new());
        }
        let mut asked: FuturesUnordered<_> = groups
            .into_iter()
            .map(|(place, positions)| self.fetch_at(topic, place, LogAsk { positions, bytes_max, wait }))
            .collect();
        while let Some(fetched) = asked.next().await {
            let fetched = fetched?;
            if !fetched.is_empty() {
                return Ok(fetched);
            }
        }
        Ok(Vec::new())
    }

    /// These shards by who serves them now; those that nobody serves are left out.
    pub fn by_owner(&self, shards: impl IntoIterator<Item = ShardId>) -> Vec<Vec<ShardId>> {
        self.groups(shards, |shard| *shard).into_values().collect()
    }

    fn groups<T>(&self, things: impl IntoIterator<Item = T>, shard: impl Fn(&T) -> ShardId) -> HashMap<Place, Vec<T>> {
        let mut groups: HashMap<Place, Vec<T>> = HashMap::new();
        for thing in things {
            if let Some(place) = self.place(shard(&thing)) {
                groups.entry(place).or_default().push(thing);
            }
        }
        groups
    }

    async fn fetch_at(&self, topic: Topic, place: Place, ask: LogAsk) -> Result<Vec<Fetched>, LogError> {
        let unavailable = |reason: String| LogError::Unavailable { topic, reason };
        let answer = match place {
            Place::Here => self.read_log(&ask.positions, ask.bytes_max, ask.wait).await,
            Place::There(node) => match self.send(node, &Question::Log(&ask), Instant::now() + ask.wait + ANSWER_WITHIN).await {
                Ok(Answer::Log(answer)) => answer,
                Ok(_) => return Err(unavailable(strange_answer().to_string())),
                Err(error) => return Err(unavailable(error.to_string())),
            },
        };
        answer.map_err(|refusal| match refusal {
            LogRefusal::Unavailable(failure) => unavailable(failure.to_string()),
            LogRefusal::OutOfRange { shard, position, floor, head } => {
                LogError::OutOfRange { source_shard: Source { topic, shard }, position, floor, head }
            }
        })
    }

    /// Reads a shard's log after `position`; the tail in memory, what is older from SQL.
    ///
    /// # Errors
    /// When the database does not answer, or the shard is not served here.
    pub async fn log_after(&self, shard: ShardId, position: Seq, bytes_max: usize) -> Result<Vec<Arc<Record>>, Failure> {
        tail::read(&self.inner, shard, position, bytes_max).await
    }

    /// The records after these positions, as far as their shards are served here; waits for the first of them.
    pub(crate) async fn read_log(
        &self,
        positions: &[(ShardId, Seq)],
        bytes_max: usize,
        wait: Duration,
    ) -> Result<Vec<Fetched>, LogRefusal> {
        let deadline = Instant::now() + wait;
        let mut batches = self.batches();
        loop {
            batches.mark_unchanged();
            let fetched = self.news(positions, bytes_max).await?;
            // A long poll ends with the lease, and with the shards that it waits for (rule 10).
            let served = positions.iter().any(|(shard, _)| self.head(*shard).is_some());
            if !fetched.is_empty() || !served || !self.lease().is_valid() {
                return Ok(fetched);
            }
            if !matches!(timeout_at(deadline, batches.changed()).await, Ok(Ok(()))) {
                return Ok(Vec::new());
            }
        }
    }

    async fn news(&self, positions: &[(ShardId, Seq)], bytes_max: usize) -> Result<Vec<Fetched>, LogRefusal> {
        let mut behind = Vec::new();
        for &(shard, position) in positions {
            match self.head(shard) {
                // Somebody read what this log no longer has: it was restored from an older copy, say.
                Some(head) if head < position => return Err(LogRefusal::OutOfRange { shard, position, floor: 0, head }),
                Some(head) if head > position => behind.push((shard, position)),
                _ => {}
            }
        }
        let share = (bytes_max / behind.len().max(1)).max(1);
        let reads = behind.into_iter().map(|(shard, position)| async move {
            let records = match self.log_after(shard, position, share).await {
                Ok(records) => records,
                // It moved meanwhile, and is read where it is now.
                Err(Failure::Moved(_)) => Vec::new(),
                Err(failure) => return Err(LogRefusal::Unavailable(failure)),
            };
            // Trimming leaves holes; whoever stands before one would miss what was there (rule 5).
            let gap = records.iter().zip(position + 1..).find(|(record, expected)| record.seq != *expected);
            if let Some((record, _)) = gap {
                let head = self.head(shard).unwrap_or(record.seq);
                return Err(LogRefusal::OutOfRange { shard, position, floor: record.seq, head });
            }
            Ok(Fetched { shard, records })
        });
        let mut fetched = Vec::new();
        for read in join_all(reads).await {
            let read: Fetched = read?;
            if !read.records.is_empty() {
                fetched.push(read);
            }
        }
        Ok(fetched)
    }
}
