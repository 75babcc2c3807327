//! How the links of a node are to be.

use std::{net::SocketAddr, time::Duration};

use rookery_actors::secret::KeyRing;

use super::{LinkKeys, TlsFiles};
use crate::config::{Config, Role};

/// What takes longer has no network worth the name, or is an attack.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// A thousand nodes, and some who only try.
const CONNECTIONS_MAX: usize = 1_024;

/// How the links of a node are to be.
#[derive(Debug, Clone)]
pub struct LinksConfig {
    /// The node's configured name.
    pub node: String,
    /// Where other nodes reach it; none: it only dials.
    pub listen: Option<SocketAddr>,
    /// By what the nodes know each other.
    pub keys: LinkKeys,
    /// What the sessions of ractor_cluster show each other, once the links have proven more: the same on all nodes.
    pub cookie: String,
    /// Certificates; none: plain TCP.
    pub tls: Option<TlsFiles>,
    /// Whether to dial every peer, since they do not know of us; otherwise the lower name dials.
    pub dials_all: bool,
    /// Between two heartbeats of a link.
    pub heartbeat: Duration,
    /// So many unanswered heartbeats in a row end a link.
    pub heartbeats_missed_max: u32,
    /// Requests in flight to one peer, and in work for one, at most.
    pub in_flight_max: usize,
    /// From a connection to its greeting, and again to a link that is ready; what takes longer is dropped.
    pub handshake_timeout: Duration,
    /// Connections that others may have to us, the unproven ones among them.
    pub connections_max: usize,
}

impl LinksConfig {
    /// Those of a configured node; none if it is alone.
    ///
    /// A node without a service is in no member table, so nobody dials it: it dials everybody.
    #[must_use]
    pub fn of(config: &Config, secrets: &KeyRing, cookie: String) -> Option<Self> {
        let cluster = &config.cluster;
        let listen = cluster.listen?;
        let files = |tls: &crate::config::ClusterTls| TlsFiles {
            certificate: tls.cert.clone(),
            key: tls.key.clone(),
            authority: tls.ca.clone(),
        };
        Some(Self {
            node: config.node.name.to_string(),
            listen: Some(listen),
            keys: LinkKeys::new(secrets),
            cookie,
            tls: cluster.tls.as_ref().map(files),
            dials_all: config.node.roles.iter().all(|role| role == Role::Gateway),
            heartbeat: cluster.heartbeat,
            heartbeats_missed_max: cluster.heartbeats_missed_max,
            in_flight_max: cluster.in_flight_max,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            connections_max: CONNECTIONS_MAX,
        })
    }
}

#[cfg(test)]
mod tests {
    use rookery_actors::secret::ClusterSecret;

    use super::*;

    fn of(toml: &str) -> Option<LinksConfig> {
        let config = Config::read(Some((std::path::Path::new("cluster.toml"), toml)), []).unwrap();
        LinksConfig::of(&config, &ClusterSecret::from_bytes(&[7; 32]).unwrap().into(), "cookie".to_owned())
    }

    #[test]
    fn a_node_that_does_not_listen_is_alone() {
        assert!(of("").is_none());
    }

    #[test]
    fn a_pure_gateway_dials_everybody() {
        let listening = "[cluster]\nlisten = \"127.0.0.1:7400\"\n";
        assert!(!of(listening).unwrap().dials_all);
        assert!(of(&format!("{listening}[node]\nroles = [\"gateway\"]")).unwrap().dials_all);
    }
}
