//! `[kafka]`: the event log, if it is to be Kafka.

use std::{path::PathBuf, time::Duration};

use super::{
    error::Mismatch,
    knob::{self, Section, Visitor},
    types::{Broker, Password, SaslMechanism},
};

const DAY_MS: u64 = 86_400_000;

/// `[kafka]`: the event log, if it is to be Kafka.
#[derive(Debug, Clone)]
pub struct Kafka {
    /// Where to begin to look for the cluster; empty: the embedded log.
    pub brokers: Vec<Broker>,
    /// Partitions of a topic; fixed with the topic.
    pub partitions: u16,
    /// Copies of a partition.
    pub replication_factor: u16,
    /// How long a record is kept.
    pub retention: Duration,
    /// TLS towards the brokers.
    pub tls: Tls,
    /// How we log in, if at all.
    pub sasl: Option<Sasl>,
}

impl Kafka {
    /// Whether events go through Kafka rather than the embedded log.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        !self.brokers.is_empty()
    }
}

impl Default for Kafka {
    fn default() -> Self {
        Self {
            brokers: Vec::new(),
            partitions: 32,
            replication_factor: 1,
            retention: Duration::from_millis(7 * DAY_MS),
            tls: Tls::default(),
            sasl: None,
        }
    }
}

impl Section for Kafka {
    fn visit(&mut self, visitor: &mut dyn Visitor) {
        visitor.knob("brokers", &mut knob::list(&mut self.brokers));
        visitor.knob("partitions", &mut knob::count(&mut self.partitions, 1..=4096));
        visitor.knob("replication_factor", &mut knob::count(&mut self.replication_factor, 1..=15));
        visitor.knob("retention_ms", &mut knob::millis(&mut self.retention, 3_600_000..=3_650 * DAY_MS));
        visitor.section("tls", &mut self.tls);
        visitor.section("sasl", &mut self.sasl);
        if self.sasl.as_ref().is_some_and(|sasl| sasl.mechanism == SaslMechanism::Plain) && !self.tls.enabled {
            visitor.misfit(
                "sasl.mechanism",
                Mismatch::wanted(
                    "kafka.tls.enabled with it, since it sends the password as it is; or scram-sha-256, scram-sha-512",
                ),
            );
        }
    }
}

/// `[kafka.tls]`
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Whether to encrypt.
    pub enabled: bool,
    /// Whom to trust; none: the certificates of the machine.
    pub ca_file: Option<PathBuf>,
}

impl Section for Tls {
    fn visit(&mut self, visitor: &mut dyn Visitor) {
        visitor.knob("enabled", &mut knob::flag(&mut self.enabled));
        visitor.knob("ca_file", &mut knob::optional_path(&mut self.ca_file));
    }
}

/// `[kafka.sasl]`: name and password for the brokers.
#[derive(Debug, Clone)]
pub struct Sasl {
    /// How the password is proved.
    pub mechanism: SaslMechanism,
    /// The name.
    pub username: String,
    /// The password.
    pub password: Password,
}

impl Section for Option<Sasl> {
    fn visit(&mut self, visitor: &mut dyn Visitor) {
        let (mut mechanism, mut username, mut password) = match self.take() {
            Some(sasl) => (Some(sasl.mechanism), sasl.username, Some(sasl.password)),
            None => (None, String::new(), None),
        };
        visitor.knob("mechanism", &mut knob::optional_text(&mut mechanism));
        visitor.knob("username", &mut knob::optional_words(&mut username));
        visitor.knob("password", &mut knob::secret(&mut password));
        match (mechanism, password) {
            (Some(mechanism), Some(password)) if !username.is_empty() => {
                *self = Some(Sasl { mechanism, username, password });
            }
            (None, None) if username.is_empty() => {}
            (Some(_), None) => visitor.misfit("password", Mismatch::wanted("a password for kafka.sasl.mechanism")),
            (Some(_), _) => visitor.misfit("username", Mismatch::wanted("a name for kafka.sasl.mechanism")),
            (None, _) => {
                let words: Vec<_> = SaslMechanism::ALL.iter().map(|mechanism| mechanism.as_str()).collect();
                let wanted = format!("one of {}, since a name or password is set", words.join(", "));
                visitor.misfit("mechanism", Mismatch::wanted(wanted));
            }
        }
    }
}
