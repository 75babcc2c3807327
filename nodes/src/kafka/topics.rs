//! The topics: made once, checked at every start.

use std::time::Duration;

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    config::FromClientConfigAndContext,
    error::{KafkaError, RDKafkaErrorCode},
};
use rookery_actors::event::Topic;
use tokio::time::{Instant, sleep};

use super::client::{Reports, client_config};
use crate::config::Kafka;

/// Longest wait for an answer of the cluster.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks for a topic that was just made.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The longest that records are added to one segment; a smaller one for a shorter retention.
const SEGMENT_MAX: Duration = Duration::from_secs(24 * 3600);

/// Why the topics cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TopicsError {
    /// The cluster did not answer, or said no.
    #[error("the Kafka cluster does not answer")]
    Kafka(#[from] KafkaError),
    /// Topics are not there, as far as this user sees, and were not made.
    #[error(
        "the topics {topics} are missing and could not be made ({code}): make them beforehand with {partitions} partitions and \
         cleanup.policy=delete, or allow this user to create them; it needs the rights to describe, read and write them"
    )]
    Missing {
        /// Which.
        topics: String,
        /// As many as they are to have.
        partitions: u16,
        /// What the broker says.
        code: RDKafkaErrorCode,
    },
    /// A shard's events would change their partition, and with it lose their order.
    #[error(
        "the topic {topic} has {found} partitions, the configuration says {configured}: the number is fixed with the topic, set it back"
    )]
    Partitions {
        /// Which.
        topic: String,
        /// What the cluster says.
        found: usize,
        /// What the configuration says.
        configured: u16,
    },
    /// Compaction keeps the last record of a key only, and that makes gaps.
    #[error("the topic {topic} is compacted (cleanup.policy={policy}), which tears gaps into the log: set cleanup.policy=delete")]
    Compacted {
        /// Which.
        topic: String,
        /// What the cluster says.
        policy: String,
    },
}

/// The dead-letter topic beside a topic.
pub fn dead_letters(topic: Topic) -> String {
    format!("{}.dlt", topic.kafka_name())
}

/// How long a segment takes records: Kafka deletes whole segments, by their last record, so the first one stays for as long
/// beyond the retention.
fn segment(kafka: &Kafka) -> Duration {
    (kafka.retention / 7).clamp(Duration::from_millis(1), SEGMENT_MAX)
}

/// All topics, those of the dead letters too.
pub(crate) fn all() -> Vec<String> {
    Topic::ALL.into_iter().flat_map(|topic| [topic.kafka_name().to_owned(), dead_letters(topic)]).collect()
}

/// What became of topics that were to be made.
#[derive(Debug, Default)]
pub struct Made {
    /// Those that are new, and so are empty.
    pub new: Vec<String>,
    /// Those that could not be made, and why.
    pub refused: Vec<(String, RDKafkaErrorCode)>,
}

impl Made {
    /// What to do about those that could not be made, if there are any.
    pub fn missing(&self, kafka: &Kafka) -> Option<TopicsError> {
        let (_, code) = self.refused.first()?;
        let topics: Vec<&str> = self.refused.iter().map(|(topic, _)| topic.as_str()).collect();
        Some(TopicsError::Missing { topics: topics.join(", "), partitions: kafka.partitions, code: *code })
    }
}

/// Makes these topics, as far as they are missing and it may. [`check`] looks at those that are there.
///
/// # Errors
/// When the cluster does not answer.
pub async fn make(kafka: &Kafka, names: &[String]) -> Result<Made, TopicsError> {
    let admin = AdminClient::from_config_and_context(&client_config(kafka, "topics"), Reports::of("topics"))?;
    create(&admin, kafka, names).await
}

/// The faults of these topics: each that is not as it should be, with how.
///
/// # Errors
/// When the cluster does not answer.
pub async fn check(kafka: &Kafka, names: &[String]) -> Result<Vec<(String, TopicsError)>, TopicsError> {
    let admin = AdminClient::from_config_and_context(&client_config(kafka, "topics"), Reports::of("topics"))?;
    let (admin, mut faults) = check_partitions(admin, kafka, names.to_vec()).await?;
    faults.extend(check_policies(&admin, kafka, names).await?);
    Ok(faults)
}

/// Makes the topics that are missing and checks all of them.
///
/// # Errors
/// [`TopicsError`]; what was made stays.
pub async fn ensure(kafka: &Kafka) -> Result<Vec<String>, TopicsError> {
    let made = make(kafka, &all()).await?;
    if let Some(missing) = made.missing(kafka) {
        return Err(missing);
    }
    match check(kafka, &all()).await?.into_iter().next() {
        Some((_, fault)) => Err(fault),
        None => Ok(made.new),
    }
}

async fn create(admin: &AdminClient<Reports>, kafka: &Kafka, names: &[String]) -> Result<Made, TopicsError> {
    let retention_ms = kafka.retention.as_millis().to_string();
    let segment_ms = segment(kafka).as_millis().to_string();
    let topics: Vec<NewTopic<'_>> = names
        .iter()
        .map(|name| {
            NewTopic::new(name, i32::from(kafka.partitions), TopicReplication::Fixed(i32::from(kafka.replication_factor)))
                .set("cleanup.policy", "delete")
                .set("retention.ms", &retention_ms)
                .set("segment.ms", &segment_ms)
        })
        .collect();
    let mut made = Made::default();
    for created in admin.create_topics(&topics, &options()).await? {
        match created {
            Ok(topic) => {
                tracing::info!(kafka.topic = topic, "made the topic {topic}");
                made.new.push(topic);
            }
            // The usual case; nodes that start together race for it as well.
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err(refused) => made.refused.push(refused),
        }
    }
    Ok(made)
}

/// Waits until every broker that we ask knows the topics, then counts their partitions.
async fn check_partitions(
    admin: AdminClient<Reports>,
    kafka: &Kafka,
    names: Vec<String>,
) -> Result<(AdminClient<Reports>, Vec<(String, TopicsError)>), TopicsError> {
    let deadline = Instant::now() + PATIENCE;
    let (mut admin, mut faults) = (admin, Vec::new());
    for topic in names {
        let found = loop {
            let name = topic.clone();
            let asked = tokio::task::spawn_blocking(move || {
                let metadata = admin.inner().fetch_metadata(Some(&name), PATIENCE);
                let found = metadata.map(|all| all.topics().first().map_or(0, |topic| topic.partitions().len()));
                (admin, found)
            });
            let (client, found) = asked.await.expect("asking does not panic");
            admin = client;
            match found {
                Ok(0) if Instant::now() < deadline => sleep(LOOK_EVERY).await,
                Ok(found) => break found,
                Err(error) => return Err(error.into()),
            }
        };
        if found != usize::from(kafka.partitions) {
            faults.push((topic.clone(), TopicsError::Partitions { topic, found, configured: kafka.partitions }));
        }
    }
    Ok((admin, faults))
}

async fn check_policies(
    admin: &AdminClient<Reports>,
    kafka: &Kafka,
    names: &[String],
) -> Result<Vec<(String, TopicsError)>, TopicsError> {
    let mut faults = Vec::new();
    let resources: Vec<ResourceSpecifier<'_>> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
    let answers = admin.describe_configs(&resources, &options()).await?;
    for (topic, answer) in names.iter().zip(answers) {
        // Who may not read configurations on a managed cluster may still run: the check is a courtesy.
        let Ok(config) = answer else { continue };
        let Some(policy) = config.get("cleanup.policy").and_then(|entry| entry.value.clone()) else {
            continue;
        };
        if policy != "delete" {
            faults.push((topic.clone(), TopicsError::Compacted { topic: topic.clone(), policy }));
            continue;
        }
        // A topic that was made before, or by somebody else: its settings are theirs to change.
        let set = |name: &str| config.get(name).and_then(|entry| entry.value.as_ref()?.parse::<i64>().ok());
        let longest = |wanted: Duration| i64::try_from(wanted.as_millis()).unwrap_or(i64::MAX);
        for (name, wanted) in [("retention.ms", longest(kafka.retention)), ("segment.ms", longest(segment(kafka)))] {
            if let Some(found) = set(name).filter(|found| *found < 0 || *found > wanted) {
                tracing::warn!(
                    kafka.topic = topic,
                    found,
                    wanted,
                    "personal data stays longer in the topic {topic} than the configuration says: set its {name} to {wanted}"
                );
            }
        }
    }
    Ok(faults)
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE))
}
