//! The configuration: read once, then never wrong.
//!
//! `cluster.toml` if there is one, over built-in defaults; environment variables over both:
//! `ROOKERY__GATEWAY__LISTEN` is `listen` in `[gateway]`. A secret can be given by the file that holds it: `secret_file`,
//! or `ROOKERY__SECRET_FILE`. Every mistake is named with file, line, value and what was probably meant.

mod cluster;
mod error;
mod gateway;
mod kafka;
mod knob;
mod place;
mod sections;
mod source;
mod types;
mod variables;
mod visitors;

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

pub use cluster::{Cluster, ClusterTls};
pub use error::{ConfigError, ConfigErrors, Mismatch, Origin};
pub use gateway::{Gateway, Rate, Rates};
pub use kafka::{Kafka, Sasl, Tls};
pub use sections::{Committer, Entities, Lease, Log, Node, Service, Services, Tokens};
pub use types::{
    Broker, ClusterSecret, CorsOrigin, DatabaseUrl, HostPort, LogFilter, LogFormat, NodeName, Password, Role, Roles,
    SaslMechanism,
};
pub use variables::{PG_BIN, TOKEN, UnknownVariable, is_known_variable, variables_help};

pub(crate) use source::variable;

use knob::{Section, Visitor};
use visitors::{Reader, Renderer};

/// The file that is read when none is named and it exists.
pub const DEFAULT_FILE: &str = "cluster.toml";

/// The variables of this process's environment that look like ours, and that nobody reads.
pub fn unknown_variables() -> Vec<UnknownVariable> {
    let environment: Vec<_> =
        env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())).collect();
    variables::unknown(environment.iter().map(|(name, value)| (&**name, &**value)), &mut Config::default())
}

/// Everything that can be set.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where this node keeps its files.
    pub data_dir: PathBuf,
    /// What all nodes of the cluster share; none: the embedded default makes one in its data folder.
    pub secret: Option<ClusterSecret>,
    /// The secret that `secret` replaces: still recognised, and used until every node has the new one.
    pub secret_previous: Option<ClusterSecret>,
    /// Who this process is.
    pub node: Node,
    /// What all nodes must agree on.
    pub cluster: Cluster,
    /// How long a silent node keeps what it owns.
    pub lease: Lease,
    /// The life of an actor.
    pub entities: Entities,
    /// How much one commit may carry.
    pub committer: Committer,
    /// The services.
    pub services: Services,
    /// The event log, if it is to be Kafka.
    pub kafka: Kafka,
    /// The HTTP edge.
    pub gateway: Gateway,
    /// What clients carry.
    pub tokens: Tokens,
    /// What is logged, and how.
    pub log: Log,
}

impl Config {
    /// Reads the configuration of this process: `file`, or [`DEFAULT_FILE`] in the working folder if it exists, then the
    /// environment.
    ///
    /// # Errors
    /// Every mistake that was found, not the first alone.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigErrors> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) if file.is_none() && error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => {
                let path = path.to_owned();
                return Err(ConfigErrors(vec![ConfigError::Unreadable { path, source }]));
            }
        };
        Self::read(text.as_deref().map(|text| (path, text)), env::vars_os())
    }

    /// Reads a configuration from the text of a file and an environment. Opens the files of secrets only.
    ///
    /// # Errors
    /// Every mistake that was found, not the first alone.
    pub fn read(
        file: Option<(&Path, &str)>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigErrors> {
        let (variables, mut errors) = source::from_env(environment);
        let mut layers = Vec::new();
        if let Some((path, text)) = file {
            match source::from_toml(path, text) {
                Ok(values) => layers.push(values),
                Err(error) => errors.push(*error),
            }
        }
        layers.push(variables);
        let mut config = Self::default();
        let mut reader = Reader::new(layers);
        config.visit(&mut reader);
        errors.extend(reader.finish());
        if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
    }

    /// The effective configuration as TOML, every knob included, secrets as `<set>`: what `rookery config check` prints.
    #[must_use]
    pub fn render(&self) -> String {
        let mut renderer = Renderer::default();
        self.clone().visit(&mut renderer);
        renderer.finish()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("./.rookery"),
            secret: None,
            secret_previous: None,
            node: Node::default(),
            cluster: Cluster::default(),
            lease: Lease::default(),
            entities: Entities::default(),
            committer: Committer::default(),
            services: Services::default(),
            kafka: Kafka::default(),
            gateway: Gateway::default(),
            tokens: Tokens::default(),
            log: Log::default(),
        }
    }
}

impl Section for Config {
    fn visit(&mut self, visitor: &mut dyn Visitor) {
        visitor.knob("data_dir", &mut knob::path(&mut self.data_dir));
        visitor.knob("secret", &mut knob::secret(&mut self.secret));
        visitor.knob("secret_previous", &mut knob::secret(&mut self.secret_previous));
        visitor.section("node", &mut self.node);
        visitor.section("cluster", &mut self.cluster);
        visitor.section("lease", &mut self.lease);
        visitor.section("entities", &mut self.entities);
        visitor.section("committer", &mut self.committer);
        visitor.section("services", &mut self.services);
        visitor.section("kafka", &mut self.kafka);
        visitor.section("gateway", &mut self.gateway);
        visitor.section("tokens", &mut self.tokens);
        visitor.section("log", &mut self.log);
    }
}

#[cfg(test)]
mod tests;
