//! The sections of `cluster.toml` that are a few keys each.
//!
//! Here and in the sections' own files, the reason for a default stands beside it in `cluster.toml`.

use std::{net::SocketAddr, time::Duration};

use super::{
    error::Mismatch,
    knob::{self, Section, Visitor},
    types::{DatabaseUrl, LogFilter, LogFormat, NodeName, Role, Roles},
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const DAY_MS: u64 = 86_400_000;

/// `[node]`: who this process is.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name in the cluster.
    pub name: NodeName,
    /// What it does there.
    pub roles: Roles,
}

impl Default for Node {
    fn default() -> Self {
        Self { name: "n1".parse().expect("the default name is a name"), roles: Roles::all() }
    }
}

impl Section for Node {
    fn visit(&mut self, visitor: &mut dyn Visitor) {
        visitor.knob("name", &mut knob::text(&mut self.name));
        let mut roles: Vec<_> = self.roles.iter().collect();
        visitor.knob("roles", &mut knob::list(&mut roles));
        match Roles::new(roles) {
            Ok(roles) => self.roles = roles,
            Err(mismatch) => visitor.misfit("roles", mismatch),
        }
    }
}

/// `[lease]`: how long a node that falls silent keeps what it owns.
#[derive(Debug, Clone)]
pub struct Lease {
    /// Time from a renewal to the end of the right to own.
    pub ttl: Duration,
    /// Time between renewals; at least two fit into the ttl.
    pub renew: Duration,
}

impl Default for Lease {
    fn default() -> Self {
        Self { ttl: Duration::from_millis(2_500), renew: Duration::from_millis(500) }
    }
}

impl Section for Lease {
    fn visit(&mut self, visitor: &mut dyn Visitor) {
        visitor.knob("ttl_ms", &mut knob::millis(&mut self.ttl, 500..=60_000));
        visitor.knob("renew_ms", &mut knob::millis(&mut self.renew, 50..=20_000));
        if self.renew * 3 > self.ttl {
            visitor.misfit(
                "renew_ms",
                Mismatch {
                    wanted: "at most a third of lease.ttl_ms, so that one lost renewal costs nothing".into(),
                    nearest: Some((self.ttl / 3).as_millis().to_string()),
                },
            );
        }
    }
}

/// `[entities]`: the life of an actor.
#[derive(Debug, Clone)]
pub struct Entities {
    /// Idle time after which an entity leaves memory.
    pub passivate_after: Duration,
}

impl Default for Entities {
    fn default() -> Self {
        Self { passivate_after: Duration::from_secs(300) }
    }
}

impl Section for Entities {
    fn visit(&mut self, visitor: &mut dyn Visitor) {
        visitor.knob("passivate_after_s", &mut knob::seconds(&mut self.passivate_after, 1..=86_400));
    }
}

/// `[committer]`: how much one commit may carry.
#[derive(Debug, Clone)]
pub struct Committer {
    /// Commands of a batch.
    pub commands_max: usize,
    /// Bytes of rows and events of a batch.
    pub bytes_max: usize,
}

impl Default for Committer {
    fn default() -> Self {
        Self { commands_max: 512, bytes_max: 4 << 20 }
    }
}

impl Section for Committer {
    fn visit(&mut self, visitor: &mut dyn Visitor) {
        visitor.knob("commands_max", &mut knob::count(&mut self.commands_max, 1..=10_000));
        visitor.knob("bytes_max", &mut knob::bytes(&mut self.bytes_max, MIB..=256 * MIB));
    }
}

/// `[services]`: one section for each service.
#[derive(Debug, Clone)]
pub struct Services {
    /// Users.
    pub users: Service,
    /// Posts.
    pub posts: Service,
    /// Comments.
    pub comments: Service,
    /// Search.
    pub search: Service,
}

impl Services {
    /// The section of a role; the gateway is no service.
    #[must_use]
    pub fn of(&self, role: Role) -> Option<&Service> {
        match role {
            Role::Gateway => None,
            Role::Users => Some(&self.users),
            Role::Posts => Some(&self.posts),
            Role::Comments => Some(&self.comments),
            Role::Search => Some(&self.search),
        }
    }

    /// Where the services' health routes are.
    pub fn listening(&self) -> Vec<(Role, SocketAddr)> {
        Role::ALL.iter().filter_map(|role| Some((*role, self.of(*role)?.listen))).collect()
    }
}

impl Default for Services {
    fn default() -> Self {
        Self { users: Service::on(3001), comments: Service::on(3002), posts: Service::on(3003), search: Service::on(3004) }
    }
}

impl Section for Services {
    fn visit(&mut self, visitor: &mut dyn Visitor) {
        visitor.section("users", &mut self.users);
        visitor.section("comments", &mut self.comments);
        visitor.section("posts", &mut self.posts);
        visitor.section("search", &mut self.search);
    }
}

/// `[services.NAME]`: one service on this node.
#[derive(Debug, Clone)]
pub struct Service {
    /// Where its health routes are.
    pub listen: SocketAddr,
    /// Its database; none: the embedded Postgres.
    pub database_url: Option<DatabaseUrl>,
    /// Connections to its database.
    pub pool_max: u32,
    /// Memory of its entities, in bytes.
    pub cache_bytes: u64,
    /// Entities that may load at the same time.
    pub loads_max: usize,
}

impl Service {
    fn on(port: u16) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], port)),
            database_url: None,
            pool_max: 16,
            cache_bytes: 256 * MIB,
            loads_max: 1_024,
        }
    }
}

impl Section for Service {
    fn visit(&mut self, visitor: &mut dyn Visitor) {
        visitor.knob("listen", &mut knob::address(&mut self.listen));
        visitor.knob("database_url", &mut knob::secret(&mut self.database_url));
        visitor.knob("pool_max", &mut knob::count(&mut self.pool_max, 2..=1_000));
        visitor.knob("cache_bytes", &mut knob::bytes(&mut self.cache_bytes, MIB..=1024 * GIB));
        visitor.knob("loads_max", &mut knob::count(&mut self.loads_max, 1..=10_000));
    }
}

/// `[tokens]`: what clients carry.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// Life of an access token.
    pub access_ttl: Duration,
    /// Life of a refresh token.
    pub refresh_ttl: Duration,
    /// `iss` of the tokens.
    pub issuer: String,
    /// `aud` of the tokens.
    pub audience: String,
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            access_ttl: Duration::from_secs(900),
            refresh_ttl: Duration::from_millis(30 * DAY_MS),
            issuer: "rookery".to_owned(),
            audience: "rookery".to_owned(),
        }
    }
}

impl Section for Tokens {
    fn visit(&mut self, visitor: &mut dyn Visitor) {
        visitor.knob("access_ttl_s", &mut knob::seconds(&mut self.access_ttl, 30..=86_400));
        visitor.knob("refresh_ttl_days", &mut knob::days(&mut self.refresh_ttl, 1..=365));
        visitor.knob("issuer", &mut knob::words(&mut self.issuer));
        visitor.knob("audience", &mut knob::words(&mut self.audience));
    }
}

/// `[log]`
#[derive(Debug, Clone)]
pub struct Log {
    /// Which events are kept, unless `RUST_LOG` says otherwise.
    pub filter: LogFilter,
    /// How they look.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".parse().expect("the default filter is a filter"), format: LogFormat::Auto }
    }
}

impl Section for Log {
    fn visit(&mut self, visitor: &mut dyn Visitor) {
        visitor.knob("filter", &mut knob::text(&mut self.filter));
        visitor.knob("format", &mut knob::text(&mut self.format));
    }
}
