//! Every knob of `cluster.toml` is turned, and what it promises is seen on real nodes.
//!
//! The knobs are those that `rookery config check` shows, so a new one without a witness fails here by its name. A witness looks
//! at two nodes of the [`Lab`]: one has the knob as shipped, the other has turned it.

#[path = "../links/certificates.rs"]
mod certificates;
mod edge;
#[path = "../event_log/mod.rs"]
mod event_log;
mod kafka;
mod lab;
mod links;
mod place;
#[expect(dead_code, reason = "the stories of nodes use more of it")]
#[path = "../nodes/process.rs"]
mod process;
mod services;
mod tokens;

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    panic::AssertUnwindSafe,
};

use futures_util::future::{FutureExt, LocalBoxFuture};
use rookery::{config::Config, migrate::Database};

use self::{
    edge::Class,
    lab::{
        Lab,
        Who::{self, Gateway, Guarded, Member, Plain, Relay, Small, Strict, Up},
    },
};

/// What shows that a knob works.
struct Witness {
    knob: &'static str,
    /// Has it as shipped.
    shipped: Who,
    /// Has turned it.
    turned: Who,
    look: fn(&Lab) -> LocalBoxFuture<'_, ()>,
}

macro_rules! witnesses {
    ($($knob:literal: $shipped:ident, $turned:ident => $look:path $(, $of:expr)?;)+) => {
        &[$(Witness {
            knob: $knob,
            shipped: $shipped,
            turned: $turned,
            look: |lab| Box::pin($look(lab $(, $of)?)),
        }),+]
    };
}

/// In this order: the last ones take nodes away from the others.
const WITNESSES: &[Witness] = witnesses! {
    "data_dir": Up, Plain => place::data_dir;
    "secret": Up, Plain => place::secret;
    "secret_previous": Plain, Small => place::secret_previous;
    "node.name": Plain, Member => place::name;
    "node.roles": Plain, Gateway => place::roles;
    "log.filter": Plain, Member => place::log_filter;
    "log.format": Plain, Strict => place::log_format;

    "cluster.shards": Plain, Member => services::shards;
    "cluster.search_partitions": Plain, Member => services::search_partitions;
    "services.users.listen": Plain, Member => services::listen, Database::Users;
    "services.comments.listen": Plain, Member => services::listen, Database::Comments;
    "services.posts.listen": Plain, Member => services::listen, Database::Posts;
    "services.search.listen": Plain, Member => services::listen, Database::Search;
    "services.users.database_url": Up, Plain => services::database_url, Database::Users;
    "services.comments.database_url": Up, Plain => services::database_url, Database::Comments;
    "services.posts.database_url": Up, Plain => services::database_url, Database::Posts;
    "services.search.database_url": Up, Plain => services::database_url, Database::Search;
    "services.users.loads_max": Plain, Member => services::loads_max, Database::Users;
    "services.comments.loads_max": Plain, Member => services::loads_max, Database::Comments;
    "services.posts.loads_max": Plain, Member => services::loads_max, Database::Posts;
    "services.search.loads_max": Plain, Member => services::loads_max, Database::Search;
    "services.users.pool_max": Plain, Small => services::pool_max, Database::Users;
    "services.comments.pool_max": Plain, Small => services::pool_max, Database::Comments;
    "services.posts.pool_max": Plain, Small => services::pool_max, Database::Posts;
    "services.search.pool_max": Plain, Small => services::pool_max, Database::Search;
    "committer.commands_max": Plain, Member => services::commands_max;
    "committer.bytes_max": Plain, Member => services::bytes_max;
    "services.users.cache_bytes": Plain, Member => services::cache_bytes, Database::Users;
    "services.comments.cache_bytes": Plain, Member => services::cache_bytes, Database::Comments;
    "services.posts.cache_bytes": Plain, Member => services::cache_bytes, Database::Posts;
    "services.search.cache_bytes": Plain, Member => services::search_cache_bytes;
    "entities.passivate_after_s": Plain, Small => services::passivate_after;

    "tokens.access_ttl_s": Plain, Member => tokens::access_ttl;
    "tokens.refresh_ttl_days": Plain, Member => tokens::refresh_ttl;
    "tokens.issuer": Plain, Member => tokens::issuer;
    "tokens.audience": Plain, Member => tokens::audience;

    "gateway.listen": Gateway, Strict => edge::listen;
    "gateway.rate_limits": Up, Plain => edge::rate_limits;
    "gateway.body_limit_bytes": Gateway, Strict => edge::body_limit;
    "gateway.request_timeout_ms": Gateway, Strict => edge::request_timeout;
    "gateway.header_timeout_ms": Gateway, Strict => edge::header_timeout;
    "gateway.connections_max": Gateway, Strict => edge::connections_max;
    "gateway.concurrency_max": Gateway, Strict => edge::concurrency_max;
    "gateway.cors_origins": Gateway, Strict => edge::cors_origins;
    "gateway.trusted_proxies": Up, Strict => edge::trusted_proxies;
    "gateway.rates.auth.burst": Up, Strict => edge::burst, Class::Auth;
    "gateway.rates.auth.per_minute": Up, Strict => edge::per_minute, Class::Auth;
    "gateway.rates.read.burst": Up, Strict => edge::burst, Class::Read;
    "gateway.rates.read.per_minute": Up, Strict => edge::per_minute, Class::Read;
    "gateway.rates.write.burst": Up, Strict => edge::burst, Class::Write;
    "gateway.rates.write.per_minute": Up, Strict => edge::per_minute, Class::Write;
    "gateway.rates.search.burst": Up, Strict => edge::burst, Class::Search;
    "gateway.rates.search.per_minute": Up, Strict => edge::per_minute, Class::Search;

    "cluster.listen": Up, Plain => links::listen;
    "cluster.advertise": Plain, Small => links::advertise;
    "cluster.tls.cert_file": Plain, Member => links::cert_file;
    "cluster.tls.key_file": Plain, Member => links::key_file;
    "cluster.tls.ca_file": Small, Member => links::ca_file;
    "cluster.heartbeat_ms": Gateway, Strict => links::heartbeat;
    "cluster.in_flight_max": Gateway, Strict => links::in_flight_max;
    "cluster.copies_bytes": Gateway, Strict => links::copies_bytes;

    "kafka.brokers": Plain, Relay => kafka::brokers;
    "kafka.partitions": Plain, Relay => kafka::partitions;
    "kafka.replication_factor": Relay, Guarded => kafka::replication_factor;
    "kafka.retention_ms": Plain, Relay => kafka::retention;
    "kafka.tls.enabled": Plain, Guarded => kafka::tls;
    "kafka.tls.ca_file": Plain, Guarded => kafka::ca_file;
    "kafka.sasl.mechanism": Plain, Guarded => kafka::mechanism;
    "kafka.sasl.username": Plain, Guarded => kafka::username;
    "kafka.sasl.password": Plain, Guarded => kafka::password;

    "cluster.heartbeats_missed_max": Gateway, Strict => links::heartbeats_missed_max;
    "lease.renew_ms": Plain, Member => links::renew;
    "lease.ttl_ms": Plain, Member => links::ttl;
    "gateway.drain_ms": Plain, Small => edge::drain;
};

/// Knobs by their paths, with their values as `rookery config check` shows them.
fn shown(config: &Config) -> BTreeMap<String, String> {
    fn flatten(prefix: &str, table: &toml::Table, into: &mut BTreeMap<String, String>) {
        for (name, value) in table {
            let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            match value {
                toml::Value::Table(section) => flatten(&path, section, into),
                value => drop(into.insert(path, value.to_string())),
            }
        }
    }
    let mut knobs = BTreeMap::new();
    flatten("", &config.render().parse().expect("it is TOML"), &mut knobs);
    knobs
}

#[test]
fn every_knob_has_one_witness() {
    let knobs: BTreeSet<String> = shown(&Config::default()).into_keys().collect();
    let seen: BTreeSet<String> = WITNESSES.iter().map(|witness| witness.knob.to_owned()).collect();
    let without: Vec<_> = knobs.difference(&seen).collect();
    assert!(without.is_empty(), "nobody sees what these knobs do: {without:?}");
    let gone: Vec<_> = seen.difference(&knobs).collect();
    assert!(gone.is_empty(), "there are no such knobs: {gone:?}");
    assert_eq!(WITNESSES.len(), knobs.len(), "one witness each");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_knob_does_what_the_file_says() {
    let lab = Lab::start().await;
    let defaults = shown(&Config::default());
    let mut failed = Vec::new();
    for Witness { knob, shipped, turned, look } in WITNESSES {
        // Without a broker there is nobody to relay to, as was said.
        let (Some(one), Some(other)) = (lab.find(*shipped), lab.find(*turned)) else { continue };
        let (one, other) = (&shown(&one.config)[*knob], &shown(&other.config)[*knob]);
        // A node of a test listens where there is room, and not where a node usually does.
        let is_shipped = one == &defaults[*knob] || (knob.ends_with(".listen") && one.contains(":0"));
        assert!(is_shipped, "{knob} is {one} on {shipped:?}, and not as shipped");
        assert_ne!(one, other, "{turned:?} has {knob} turned");
        if let Err(panic) = AssertUnwindSafe(look(&lab)).catch_unwind().await {
            failed.push(format!("{knob} ({one} on {shipped:?}, {other} on {turned:?}): {}", said(&*panic)));
        }
    }
    assert!(failed.is_empty(), "knobs that do not do what the file says:\n{}", failed.join("\n"));
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default()
}
