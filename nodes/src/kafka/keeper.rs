//! Keeps the topics: one that was deleted is made again, and what it no longer has is sent again from the outboxes.
//!
//! The `relayed` table of a service says how far Kafka has each shard's log. Of a topic that was made a moment ago, or that
//! holds nothing, that can only be 0: the table is put back, and every relay follows it (see [`super::Relay`]).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use rdkafka::{
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use rookery_actors::{entity::Failure, event::Topic, runtime::Database};

use super::{
    client::{Reports, client_config, missing_topics},
    topics::{self, TopicsError, dead_letters},
};
use crate::config::Kafka;

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the topics are not kept at the moment.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// A topic is missing or not as it should be, or the cluster does not answer.
    #[error(transparent)]
    Topics(#[from] TopicsError),
    /// A database does not hear that a topic has lost its records.
    #[error(transparent)]
    Database(#[from] Failure),
}

impl From<KafkaError> for KeepError {
    fn from(error: KafkaError) -> Self {
        Self::Topics(error.into())
    }
}

/// Looks after the topics, whenever it is asked to.
pub struct Keeper {
    kafka: Kafka,
    publishers: HashMap<Topic, Database>,
    consumers: Vec<Database>,
    client: Option<Arc<BaseConsumer<Reports>>>,
    /// Topics that are new, and whose former records are not yet taken for unsent.
    emptied: HashSet<String>,
    /// Those that are there and as they should be.
    usable: HashSet<String>,
    /// Those that were not there when all others were checked.
    absent: HashSet<String>,
    is_checked: bool,
}

impl Keeper {
    /// `publishers` are the databases whose outboxes go to the topics, `consumers` those that may have dead letters.
    pub fn new(kafka: Kafka, publishers: impl IntoIterator<Item = (Topic, Database)>, consumers: Vec<Database>) -> Self {
        let publishers = publishers.into_iter().collect();
        Self {
            kafka,
            publishers,
            consumers,
            client: None,
            emptied: HashSet::new(),
            usable: HashSet::new(),
            absent: HashSet::new(),
            is_checked: false,
        }
    }

    /// Makes what is missing, and sees to it that it is filled again. The first look checks all topics.
    ///
    /// # Errors
    /// [`KeepError`]; the next look goes on where this one ended. A topic that is missing, and may not be made by us, keeps none
    /// of the others from being used: see [`Keeper::has`].
    pub async fn look(&mut self) -> Result<(), KeepError> {
        let missing = self.missing().await?;
        let (mut absent, mut fault) = (HashSet::new(), None);
        if !missing.is_empty() {
            let made = topics::make(&self.kafka, &missing).await?;
            fault = made.missing(&self.kafka);
            self.is_checked &= made.new.is_empty();
            self.emptied.extend(made.new);
            absent = made.refused.into_iter().map(|(topic, _)| topic).collect();
        }
        self.is_checked &= absent == self.absent;
        self.absent = absent;
        let mut there = topics::all();
        there.retain(|topic| !self.absent.contains(topic));
        if !self.is_checked {
            // A topic that was made anew while no node ran, and topics whose maker died before it told the database.
            let empty = self.empty().await?;
            self.emptied.extend(empty.into_iter().filter(|topic| !self.absent.contains(topic)));
        }
        for topic in self.emptied.clone() {
            self.send_again(&topic).await?;
            self.emptied.remove(&topic);
        }
        if !self.is_checked {
            let faults = topics::check(&self.kafka, &there).await?;
            self.is_checked = faults.is_empty();
            there.retain(|topic| faults.iter().all(|(faulty, _)| faulty != topic));
            self.usable = there.into_iter().collect();
            fault = fault.or_else(|| faults.into_iter().next().map(|(_, fault)| fault));
        }
        fault.map_or(Ok(()), |fault| Err(fault.into()))
    }

    /// Whether a publisher's topic is there and as it should be, as of the last look.
    pub fn has(&self, topic: Topic) -> bool {
        self.usable.contains(topic.kafka_name())
    }

    /// Whether all topics of dead letters are.
    pub fn has_dead_letters(&self) -> bool {
        Topic::ALL.into_iter().all(|topic| self.usable.contains(&dead_letters(topic)))
    }

    fn client(&mut self) -> Result<Arc<BaseConsumer<Reports>>, KafkaError> {
        if self.client.is_none() {
            let config = client_config(&self.kafka, "keeper");
            self.client = Some(Arc::new(BaseConsumer::from_config_and_context(&config, Reports::of("keeper"))?));
        }
        Ok(Arc::clone(self.client.as_ref().expect("it was just made")))
    }

    async fn missing(&mut self) -> Result<Vec<String>, KeepError> {
        let client = self.client()?;
        let asked = tokio::task::spawn_blocking(move || missing_topics(&client, &topics::all(), PATIENCE));
        Ok(asked.await.expect("asking does not panic")?)
    }

    /// The publishers' topics in which there has never been a record.
    async fn empty(&mut self) -> Result<Vec<String>, KeepError> {
        let (client, partitions) = (self.client()?, self.kafka.partitions);
        let asked = tokio::task::spawn_blocking(move || {
            let mut empty = Vec::new();
            for topic in Topic::ALL.map(Topic::kafka_name) {
                let mut has_records = false;
                for partition in 0..i32::from(partitions) {
                    match client.fetch_watermarks(topic, partition, PATIENCE) {
                        Ok((_, high)) => has_records |= high > 0,
                        // With fewer partitions than it should have; the check says so.
                        Err(_) => has_records = true,
                    }
                    if has_records {
                        break;
                    }
                }
                if !has_records {
                    empty.push(topic.to_owned());
                }
            }
            empty
        });
        Ok(asked.await.expect("asking does not panic"))
    }

    /// Takes nothing of a topic for sent any more.
    async fn send_again(&self, name: &str) -> Result<(), Failure> {
        for topic in Topic::ALL {
            if topic.kafka_name() == name
                && let Some(database) = self.publishers.get(&topic)
            {
                let shards = forget_relayed(database).await?;
                if shards > 0 {
                    tracing::warn!(
                        kafka.topic = name,
                        shards,
                        "the topic {name} has lost its records: the outboxes of {shards} shards are sent to it again"
                    );
                }
            }
            if dead_letters(topic) == name {
                for database in &self.consumers {
                    let source = format!("{}/%", topic.service());
                    let client = database.get().await?;
                    client.execute("UPDATE dead_letter SET relayed = false WHERE relayed AND source LIKE $1", &[&source]).await?;
                }
            }
        }
        Ok(())
    }
}

/// Kafka has nothing of a service's log any more; how many shards had been relayed.
pub(super) async fn forget_relayed(database: &Database) -> Result<u64, Failure> {
    let client = database.get().await?;
    Ok(client.execute("UPDATE relayed SET seq = 0 WHERE seq > 0", &[]).await?)
}
