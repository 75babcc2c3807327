//! Compose files as types: the part of the compose specification that we use, by hand. Whatever else stands there does not
//! parse, a key written twice included.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, de::IgnoredAny};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Compose {
    pub(crate) name: String,
    pub(crate) services: BTreeMap<String, Service>,
    pub(crate) networks: BTreeMap<String, Network>,
    pub(crate) volumes: BTreeMap<String, Empty>,
    #[serde(default)]
    pub(crate) secrets: BTreeMap<String, Secret>,
    // Fragments: they count where they are merged.
    #[serde(rename = "x-rookery")]
    _rookery: Option<IgnoredAny>,
    #[serde(rename = "x-node")]
    _node: Option<IgnoredAny>,
    #[serde(rename = "x-node-environment")]
    _node_environment: Option<IgnoredAny>,
    #[serde(rename = "x-service-needs")]
    _needs: Option<IgnoredAny>,
    #[serde(rename = "x-postgres")]
    _postgres: Option<IgnoredAny>,
    #[serde(rename = "x-postgres-environment")]
    _environment: Option<IgnoredAny>,
    #[serde(rename = "x-postgres-healthcheck")]
    _healthcheck: Option<IgnoredAny>,
    #[serde(rename = "x-logging")]
    _logging: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Service {
    pub(crate) image: String,
    pub(crate) build: Option<Build>,
    #[serde(default)]
    pub(crate) entrypoint: Vec<String>,
    #[serde(default)]
    pub(crate) command: Vec<String>,
    #[serde(default)]
    pub(crate) profiles: Vec<String>,
    #[serde(rename = "logging")]
    _logging: Logging,
    #[serde(default)]
    pub(crate) depends_on: BTreeMap<String, Dependency>,
    #[serde(rename = "deploy")]
    _deploy: Deploy,
    #[serde(default)]
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) healthcheck: Option<Healthcheck>,
    pub(crate) hostname: Option<String>,
    pub(crate) networks: BTreeSet<String>,
    #[serde(default)]
    pub(crate) ports: Vec<Port>,
    pub(crate) restart: Restart,
    #[serde(default)]
    pub(crate) secrets: BTreeSet<String>,
    pub(crate) security_opt: Vec<String>,
    #[serde(default)]
    pub(crate) volumes: Vec<Mount>,
    #[serde(default)]
    pub(crate) read_only: bool,
    #[serde(default)]
    pub(crate) init: bool,
    #[serde(default, rename = "tmpfs")]
    _tmpfs: Vec<String>,
    #[serde(default, rename = "cap_drop")]
    _cap_drop: Vec<String>,
    #[serde(default, rename = "stop_grace_period")]
    _stop_grace_period: Option<Period>,
    #[serde(default, rename = "ulimits")]
    _ulimits: BTreeMap<String, Ulimit>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Build {
    pub(crate) context: String,
    pub(crate) dockerfile: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dependency {
    pub(crate) condition: Condition,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Condition {
    ServiceHealthy,
    ServiceCompletedSuccessfully,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Restart {
    No,
    UnlessStopped,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Healthcheck {
    #[serde(default)]
    pub(crate) test: Vec<String>,
    #[serde(default)]
    pub(crate) disable: bool,
    pub(crate) interval: Option<Period>,
    pub(crate) timeout: Option<Period>,
    #[serde(rename = "retries")]
    _retries: Option<u32>,
    #[serde(rename = "start_period")]
    _start_period: Option<Period>,
    #[serde(rename = "start_interval")]
    _start_interval: Option<Period>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Deploy {
    #[serde(rename = "resources")]
    _resources: Resources,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resources {
    #[serde(rename = "limits")]
    _limits: Limits,
}

/// What every container must have: one without a limit takes the others' memory. Not of CPUs: an engine refuses to start a
/// container that may use more of them than the machine has, and without a limit they are shared fairly.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    #[serde(rename = "memory")]
    _memory: Memory,
}

/// What every container must have: without it the engine keeps every line for ever.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Logging {
    #[serde(rename = "driver")]
    _driver: LogDriver,
    #[serde(rename = "options")]
    _options: LogRotation,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LogDriver {
    JsonFile,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct LogRotation {
    #[serde(rename = "max-size")]
    _max_size: String,
    #[serde(rename = "max-file")]
    _max_file: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ulimit {
    #[serde(rename = "soft")]
    _soft: u32,
    #[serde(rename = "hard")]
    _hard: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Network {
    #[serde(default)]
    pub(crate) internal: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Empty {}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Secret {
    pub(crate) file: String,
}

/// `10s` or `1m`, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Period(u32);

impl TryFrom<String> for Period {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (number, factor) = match text.strip_suffix('m') {
            Some(minutes) => (minutes, 60),
            None => (text.strip_suffix('s').unwrap_or_default(), 1),
        };
        let number: u32 = number.parse().map_err(|_| format!("{text} is no time"))?;
        Ok(Self(number * factor))
    }
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Memory;

impl TryFrom<String> for Memory {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = text.strip_suffix(['M', 'G']).unwrap_or_default();
        number.parse::<u32>().map(|_| Self).map_err(|_| format!("{text} is no size"))
    }
}

/// `127.0.0.1:8080:8080`, or `127.0.0.1::3003` for any port that is free.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Port {
    pub(crate) address: String,
    pub(crate) host: Option<u16>,
    pub(crate) container: u16,
}

impl TryFrom<String> for Port {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text} is not address:port:port");
        let [address, host, container] = text.split(':').collect::<Vec<_>>()[..] else {
            return Err(wrong());
        };
        let host = match host {
            "" => None,
            host => Some(host.parse().map_err(|_| wrong())?),
        };
        Ok(Self { address: address.to_owned(), host, container: container.parse().map_err(|_| wrong())? })
    }
}

/// `volume:/path`, or `./file:/path:ro` of the checkout.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Mount {
    pub(crate) from: MountedFrom,
    pub(crate) path: String,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum MountedFrom {
    Volume(String),
    Checkout(String),
}

impl Mount {
    pub(crate) fn volume(&self) -> Option<&str> {
        match &self.from {
            MountedFrom::Volume(name) => Some(name),
            MountedFrom::Checkout(_) => None,
        }
    }
}

impl TryFrom<String> for Mount {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (from, path) = match text.split(':').collect::<Vec<_>>()[..] {
            [volume, path] if !volume.contains('/') => (MountedFrom::Volume(volume.to_owned()), path),
            [file, path, "ro"] if file.starts_with("./") => (MountedFrom::Checkout(file.to_owned()), path),
            _ => return Err(format!("{text} is neither volume:/path nor ./file:/path:ro")),
        };
        if path.starts_with('/') { Ok(Self { from, path: path.to_owned() }) } else { Err(format!("{path} is no absolute path")) }
    }
}
