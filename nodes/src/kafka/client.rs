//! What every Kafka client of ours is made of: where, how encrypted, who we are, and what it tells us.

use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use rdkafka::{
    ClientConfig, ClientContext, Statistics,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult},
};

use rookery_actors::{episodes, event::Topic};

use crate::config::Kafka;

/// Between two looks at which topics there are. librdkafka would look every five minutes, and events wait so long for a topic, or
/// a right to one, that an administrator has just given.
const TOPICS_EVERY_MS: &str = "5000";
/// Between two reports of a client's own statistics.
const STATISTICS_MS: &str = "10000";

/// The settings that all clients share. `name` is the client's id on the broker.
pub(crate) fn client_config(kafka: &Kafka, name: &str) -> ClientConfig {
    let brokers: Vec<&str> = kafka.brokers.iter().map(|broker| broker.as_str()).collect();
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers.join(","))
        .set("client.id", format!("rookery-{name}"))
        .set("statistics.interval.ms", STATISTICS_MS)
        .set("topic.metadata.refresh.interval.ms", TOPICS_EVERY_MS)
        .set("socket.keepalive.enable", "true")
        // A broker that restarts is back in seconds, and freshness waits for us.
        .set("reconnect.backoff.max.ms", "1000");
    let protocol = match (kafka.tls.enabled, &kafka.sasl) {
        (false, None) => "plaintext",
        (false, Some(_)) => "sasl_plaintext",
        (true, None) => "ssl",
        (true, Some(_)) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    if kafka.tls.enabled {
        // The OpenSSL inside knows no folder of this machine: `probe` looks where distributions keep their roots.
        let roots = kafka.tls.ca_file.as_ref().map_or_else(|| "probe".into(), |file| file.to_string_lossy());
        config.set("ssl.ca.location", roots);
    }
    if let Some(sasl) = &kafka.sasl {
        config
            .set("sasl.mechanism", sasl.mechanism.as_str().to_uppercase())
            .set("sasl.username", &sasl.username)
            .set("sasl.password", sasl.password.expose());
    }
    config
}

/// Turns what a client reports into metrics and log lines.
#[derive(Clone, Debug)]
pub(crate) struct Reports {
    client: String,
}

impl Reports {
    pub(crate) fn of(client: &str) -> Self {
        Self { client: client.to_owned() }
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // A broker that is away is reported by every connection, again and again; who acts on it says so once.
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                episodes::error("a Kafka client fails", &self.client, format_args!("{facility}: {message}"));
            }
            _ => tracing::debug!(kafka.client = self.client, facility, "{message}"),
        }
    }

    fn stats(&self, statistics: Statistics) {
        let client = || self.client.clone();
        gauge!("rookery_kafka_queued_records", "client" => client()).set(statistics.msg_cnt as f64);
        gauge!("rookery_kafka_queued_bytes", "client" => client()).set(statistics.msg_size as f64);
        counter!("rookery_kafka_sent_bytes_total", "client" => client()).absolute(statistics.tx_bytes.unsigned_abs());
        counter!("rookery_kafka_received_bytes_total", "client" => client()).absolute(statistics.rx_bytes.unsigned_abs());
        for broker in statistics.brokers.values().filter(|broker| broker.nodeid >= 0) {
            let Some(rtt) = &broker.rtt else { continue };
            let labels = [("client", client()), ("broker", broker.nodeid.to_string())];
            gauge!("rookery_kafka_round_trip_p99_seconds", &labels).set(rtt.p99 as f64 / 1e6);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(kafka.client = self.client, %error, "{reason}");
    }
}

impl ConsumerContext for Reports {}

/// Which of these topics the cluster does not have. Blocks its thread for up to `patience` for each.
pub(crate) fn missing_topics(client: &BaseConsumer<Reports>, names: &[String], patience: Duration) -> KafkaResult<Vec<String>> {
    // Its events would queue up for ever otherwise.
    client.poll(Duration::ZERO);
    let mut missing = Vec::new();
    for name in names {
        let metadata = client.fetch_metadata(Some(name), patience)?;
        let is_there = metadata.topics().iter().any(|topic| topic.name() == name && !topic.partitions().is_empty());
        if !is_there {
            missing.push(name.clone());
        }
    }
    Ok(missing)
}

/// Asks the cluster whether it is there, and the topics with it.
pub struct Probe {
    client: BaseConsumer<Reports>,
}

impl Probe {
    /// A probe with a connection of its own, made when it is first used.
    ///
    /// # Errors
    /// When the configuration makes no client.
    pub fn new(kafka: &Kafka) -> KafkaResult<Self> {
        let client = BaseConsumer::from_config_and_context(&client_config(kafka, "probe"), Reports::of("probe"))?;
        Ok(Self { client })
    }

    /// How long the cluster takes to answer. Blocks its thread for up to `patience`.
    ///
    /// # Errors
    /// When it does not.
    pub fn latency(&self, patience: Duration) -> KafkaResult<Duration> {
        // Its events would queue up for ever otherwise.
        self.client.poll(Duration::ZERO);
        let asked = Instant::now();
        self.client.fetch_metadata(Some(Topic::Posts.kafka_name()), patience)?;
        Ok(asked.elapsed())
    }

    /// The topics of events that the cluster does not have. Blocks its thread for up to `patience` for each.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn missing(&self, patience: Duration) -> KafkaResult<Vec<String>> {
        missing_topics(&self.client, &Topic::ALL.map(|topic| topic.kafka_name().to_owned()), patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Kafka;

    fn section(toml: &str) -> Kafka {
        crate::config::Config::read(Some((std::path::Path::new("cluster.toml"), toml)), []).unwrap().kafka
    }

    #[test]
    fn a_managed_cluster_gets_tls_and_scram() {
        let kafka = section(
            "[kafka]\nbrokers = [\"a:9093\", \"b:9093\"]\n[kafka.tls]\nenabled = true\n\
             [kafka.sasl]\nmechanism = \"scram-sha-512\"\nusername = \"rookery\"\npassword = \"x\"\n",
        );
        let config = client_config(&kafka, "test");
        let wanted = [
            ("bootstrap.servers", "a:9093,b:9093"),
            ("security.protocol", "sasl_ssl"),
            ("ssl.ca.location", "probe"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "rookery"),
        ];
        for (key, value) in wanted {
            assert_eq!(config.get(key), Some(value), "{key}");
        }
        // librdkafka itself must agree with the names and values.
        BaseConsumer::<Reports>::from_config_and_context(&config, Reports::of("test")).unwrap();
    }

    #[test]
    fn a_broker_next_door_is_spoken_to_in_the_clear() {
        let config = client_config(&section("[kafka]\nbrokers = [\"127.0.0.1:9092\"]\n"), "test");
        assert_eq!(config.get("security.protocol"), Some("plaintext"));
        assert_eq!(config.get("sasl.mechanism"), None);
    }
}
