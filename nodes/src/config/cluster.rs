//! `[cluster]`: what all nodes must agree on, and how this one is reached by the others.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use super::{
    error::Mismatch,
    knob::{self, Section, Visitor},
    types::HostPort,
};

/// `[cluster]`
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Shards of each service; fixed with its database.
    pub shards: u16,
    /// Partitions of the search index.
    pub search_partitions: u16,
    /// Where other nodes reach this one; none: it is alone, and opens no port for others.
    pub listen: Option<SocketAddr>,
    /// What the others are told to dial; none: the address that it listens on, or behind every interface the one from which
    /// it reaches its databases.
    pub advertise: Option<HostPort>,
    /// Time between two heartbeats of a link.
    pub heartbeat: Duration,
    /// Unanswered heartbeats in a row that end a link.
    pub heartbeats_missed_max: u32,
    /// Requests in flight to one node, and in work for one.
    pub in_flight_max: usize,
    /// Memory that copies of what other nodes serve may take here, of each service, in bytes; 0: none are kept.
    pub copies_bytes: u64,
    /// Certificates for the links; none: plain TCP.
    pub tls: Option<ClusterTls>,
}

impl Cluster {
    /// What the others are told to dial, of a node that listens at `bound`; none: every interface is nothing to dial, and
    /// nobody said which one.
    #[must_use]
    pub fn advertised(&self, bound: SocketAddr) -> Option<String> {
        let own = (!bound.ip().is_unspecified()).then(|| bound.to_string());
        self.advertise.as_ref().map(ToString::to_string).or(own)
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            shards: 256,
            search_partitions: 4,
            listen: None,
            advertise: None,
            heartbeat: Duration::from_millis(500),
            heartbeats_missed_max: 4,
            in_flight_max: 1_024,
            copies_bytes: 64 << 20,
            tls: None,
        }
    }
}

impl Section for Cluster {
    fn visit(&mut self, visitor: &mut dyn Visitor) {
        visitor.knob("shards", &mut knob::count(&mut self.shards, 1..=4096));
        visitor.knob("search_partitions", &mut knob::count(&mut self.search_partitions, 1..=64));
        visitor.knob("listen", &mut knob::optional_address(&mut self.listen));
        visitor.knob("advertise", &mut knob::optional_text(&mut self.advertise));
        visitor.knob("heartbeat_ms", &mut knob::millis(&mut self.heartbeat, 50..=10_000));
        visitor.knob("heartbeats_missed_max", &mut knob::count(&mut self.heartbeats_missed_max, 2..=100));
        visitor.knob("in_flight_max", &mut knob::count(&mut self.in_flight_max, 1..=65_536));
        visitor.knob("copies_bytes", &mut knob::bytes(&mut self.copies_bytes, 0..=1 << 40));
        visitor.section("tls", &mut self.tls);
        if self.listen.is_none() && self.advertise.is_some() {
            visitor.misfit("listen", Mismatch::wanted("an address, since cluster.advertise is set"));
        }
    }
}

/// `[cluster.tls]`: the certificate of this node, for both ends of its links.
#[derive(Debug, Clone)]
pub struct ClusterTls {
    /// The certificate and its chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The authority of all nodes' certificates; with it, a node without one is refused.
    pub ca: Option<PathBuf>,
}

impl Section for Option<ClusterTls> {
    fn visit(&mut self, visitor: &mut dyn Visitor) {
        let (mut cert, mut key, mut ca) = match self.take() {
            Some(tls) => (Some(tls.cert), Some(tls.key), tls.ca),
            None => (None, None, None),
        };
        visitor.knob("cert_file", &mut knob::optional_path(&mut cert));
        visitor.knob("key_file", &mut knob::optional_path(&mut key));
        visitor.knob("ca_file", &mut knob::optional_path(&mut ca));
        match (cert, key) {
            (Some(cert), Some(key)) => *self = Some(ClusterTls { cert, key, ca }),
            (None, None) if ca.is_none() => {}
            (Some(_), None) => visitor.misfit("key_file", Mismatch::wanted("the private key of cluster.tls.cert_file")),
            (None, _) => visitor.misfit("cert_file", Mismatch::wanted("a certificate, since a key or an authority is set")),
        }
    }
}
