//! `docker-compose.yml` as types: the part of the compose specification that we use, by hand. Whatever else stands there
//! does not parse, a key written twice included.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, de::IgnoredAny};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Compose {
    #[serde(rename = "name")]
    _name: String,
    pub(crate) services: BTreeMap<String, Service>,
    pub(crate) networks: BTreeMap<String, Network>,
    pub(crate) volumes: BTreeMap<String, Empty>,
    pub(crate) secrets: BTreeMap<String, Secret>,
    // Fragments: they count where they are merged.
    #[serde(rename = "x-rookery")]
    _rookery: IgnoredAny,
    #[serde(rename = "x-node")]
    _node: IgnoredAny,
    #[serde(rename = "x-node-environment")]
    _node_environment: IgnoredAny,
    #[serde(rename = "x-service-needs")]
    _needs: IgnoredAny,
    #[serde(rename = "x-postgres")]
    _postgres: IgnoredAny,
    #[serde(rename = "x-postgres-environment")]
    _environment: IgnoredAny,
    #[serde(rename = "x-postgres-healthcheck")]
    _healthcheck: IgnoredAny,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Service {
    pub(crate) image: String,
    pub(crate) build: Option<Build>,
    #[serde(default)]
    pub(crate) command: Vec<String>,
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

/// What every container must have: one without a limit takes the others' memory.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    #[serde(rename = "cpus")]
    _cpus: Cpus,
    #[serde(rename = "memory")]
    _memory: Memory,
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
struct Cpus;

impl TryFrom<String> for Cpus {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.parse::<f64>() {
            Ok(cpus) if cpus > 0.0 => Ok(Self),
            _ => Err(format!("{text} is no number of CPUs")),
        }
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

/// `127.0.0.1:8080:8080`
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Port {
    pub(crate) address: String,
    pub(crate) host: u16,
    pub(crate) container: u16,
}

impl TryFrom<String> for Port {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text} is not address:port:port");
        let [address, host, container] = text.split(':').collect::<Vec<_>>()[..] else {
            return Err(wrong());
        };
        Ok(Self {
            address: address.to_owned(),
            host: host.parse().map_err(|_| wrong())?,
            container: container.parse().map_err(|_| wrong())?,
        })
    }
}

/// `volume:/path`
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Mount {
    pub(crate) volume: String,
    pub(crate) path: String,
}

impl TryFrom<String> for Mount {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once(':') {
            Some((volume, path)) if path.starts_with('/') && !path.contains(':') => {
                Ok(Self { volume: volume.to_owned(), path: path.to_owned() })
            }
            _ => Err(format!("{text} is not volume:/path")),
        }
    }
}
