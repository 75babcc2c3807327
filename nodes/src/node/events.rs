//! The event log of this node: the outboxes themselves, or Kafka with a relay per service.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use rookery_actors::{
    episodes::{self, with_causes},
    event::{EventLog, Topic},
};
use tokio::{sync::Mutex, task::JoinHandle};

use super::services::Started;
use crate::{
    config::{Kafka, Role, Roles},
    event_log::{EmbeddedLog, LogSource},
    kafka::{DeadLetters, Hints, KafkaLog, Keeper, Relay, client::Probe, dead_letters::RunningDeadLetters, relay::RunningRelay},
};

/// What is logged while the topics cannot be looked after.
const NOT_KEPT: &str = "Kafka does not answer, or its topics are not as they should be";
/// Between two looks whether the topics are there.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a stop waits for Kafka to confirm.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// The log as its readers see it, and what feeds it.
pub(super) struct Events {
    /// Straight from this node's outboxes, whatever the others read.
    pub(super) embedded: Arc<dyn EventLog>,
    kafka: Option<Kafka>,
    /// Why the topics are not all as they should be.
    fault: Fault,
    logs: HashMap<&'static str, Arc<dyn EventLog>>,
    publishing: Option<JoinHandle<()>>,
    publishers: Arc<Mutex<Publishers>>,
}

/// Why the topics are not all as they should be, as of the last look.
type Fault = Arc<std::sync::Mutex<Option<String>>>;

/// How Kafka is, for health.
pub(super) struct KafkaHealth {
    pub(super) probe: Arc<Probe>,
    fault: Fault,
}

impl KafkaHealth {
    /// Why the topics are not all as they should be.
    pub(super) fn fault(&self) -> Option<String> {
        self.fault.lock().expect("no panic under this lock").clone()
    }
}

#[derive(Default)]
struct Publishers {
    relays: Vec<RunningRelay>,
    dead_letters: Vec<RunningDeadLetters>,
}

impl Events {
    /// Starts what publishes to Kafka, if Kafka is configured. Without it nothing waits: it may come later (everything
    /// works but freshness).
    pub(super) fn start(kafka: &Kafka, roles: &Roles, services: &Started) -> Self {
        let users: Arc<dyn LogSource> = Arc::new(services.users.runtime.clone());
        let posts: Arc<dyn LogSource> = Arc::new(services.posts.runtime.clone());
        let comments: Arc<dyn LogSource> = Arc::new(services.comments.runtime.clone());
        let embedded: Arc<dyn EventLog> =
            Arc::new(EmbeddedLog::new(Arc::clone(&users), Arc::clone(&posts), Arc::clone(&comments)));
        let mut events = Self {
            embedded,
            kafka: None,
            fault: Fault::default(),
            logs: HashMap::new(),
            publishing: None,
            publishers: Arc::default(),
        };
        if !kafka.is_enabled() {
            return events;
        }
        let search: Arc<dyn LogSource> = Arc::new(services.search.runtime.clone());
        let databases = [
            (Role::Users, users, services.users.runtime.database().clone(), Some(Topic::Users)),
            (Role::Posts, posts, services.posts.runtime.database().clone(), Some(Topic::Posts)),
            (Role::Comments, comments, services.comments.runtime.database().clone(), Some(Topic::Comments)),
            (Role::Search, search, services.search.runtime.database().clone(), None),
        ];
        let publishers: Vec<_> =
            databases.iter().filter_map(|(.., database, topic)| Some(((*topic)?, database.clone()))).collect();
        let consumers = databases.iter().map(|(_, _, database, _)| database.clone()).collect();
        let mut keeper = Keeper::new(kafka.clone(), publishers.clone(), consumers);
        // What is not owned here is published elsewhere.
        let mut databases: Vec<_> = databases.into_iter().filter(|(role, ..)| roles.has(*role)).collect();
        for consumer in databases.iter().map(|(role, ..)| role.as_str()) {
            // A log each: readers that share one would keep rewinding each other.
            let hints = Hints::new(publishers.clone(), consumer);
            let log = KafkaLog::new(kafka.clone(), consumer).with_hints(hints).with_outbox(Arc::clone(&events.embedded));
            events.logs.insert(consumer, Arc::new(log));
        }
        let (settings, publishers, fault) = (kafka.clone(), Arc::clone(&events.publishers), Arc::clone(&events.fault));
        events.kafka = Some(kafka.clone());
        events.publishing = Some(tokio::spawn(async move {
            let mut letters: Vec<_> =
                databases.iter().map(|(role, source, database, _)| (*role, Arc::clone(source), database.clone())).collect();
            databases.retain(|(.., topic)| topic.is_some());
            loop {
                let told = keeper.look().await.map_err(|error| with_causes(&error).to_string()).err();
                match &told {
                    None => episodes::over(NOT_KEPT, ""),
                    Some(told) => episodes::error(NOT_KEPT, "", told),
                }
                *fault.lock().expect("no panic under this lock") = told;
                let mut running = publishers.lock().await;
                // Each as soon as its topic is there, whatever the others lack.
                let is_there = |topic: &Option<Topic>| topic.is_some_and(|topic| keeper.has(topic));
                for (_, source, database, topic) in databases.extract_if(.., |(.., topic)| is_there(topic)) {
                    let topic = topic.expect("it is there");
                    running.relays.push(Relay::start(settings.clone(), topic, source, database));
                }
                if keeper.has_dead_letters() {
                    for (role, source, database) in letters.drain(..) {
                        match DeadLetters::start(settings.clone(), role.as_str(), source, database) {
                            Ok(letters) => running.dead_letters.push(letters),
                            Err(error) => tracing::error!(service.name = %role, %error, "dead letters stay in the database"),
                        }
                    }
                }
                drop(running);
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }));
        events
    }

    /// The log for a consumer.
    pub(super) fn log(&self, consumer: &str) -> Arc<dyn EventLog> {
        Arc::clone(self.logs.get(consumer).unwrap_or(&self.embedded))
    }

    /// Whether trimming must wait for Kafka.
    pub(super) fn is_kafka(&self) -> bool {
        self.kafka.is_some()
    }

    /// How to look whether Kafka answers.
    pub(super) fn health(&self) -> Option<KafkaHealth> {
        let kafka = self.kafka.as_ref()?;
        let probe = Probe::new(kafka).inspect_err(|error| tracing::warn!(%error, "Kafka's health cannot be looked at")).ok()?;
        Some(KafkaHealth { probe: Arc::new(probe), fault: Arc::clone(&self.fault) })
    }

    /// Waits a moment until Kafka has what this node has committed so far, before its shards go to others.
    pub(super) async fn flush(&self) {
        let publishers = self.publishers.lock().await;
        join_all(publishers.relays.iter().map(async |relay| {
            if let Err(reason) = relay.flush(FLUSH_WITHIN).await {
                tracing::warn!(%reason, "the next owner sends to Kafka what may be there already");
            }
        }))
        .await;
    }

    /// Stops publishing; what is committed and not yet relayed is sent by whoever comes next.
    pub(super) async fn stop(self) {
        if let Some(publishing) = self.publishing {
            publishing.abort();
        }
        let publishers = std::mem::take(&mut *self.publishers.lock().await);
        for relay in publishers.relays {
            relay.stop().await;
        }
        drop(publishers.dead_letters);
    }
}
