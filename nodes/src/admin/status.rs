//! `GET /status`: the nodes, the services, the shards; the same from every node.
//!
//! Who owns what, the databases say. How a node is, it says itself ([`Report`]); whoever has fallen silent is suspect as
//! long as it is a member, and then dead.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{Json, extract::State};
use futures_util::future::join_all;
use rookery_actors::ids::{Epoch, Incarnation, Seq, ShardId};
use rookery_gateway::health::Probe;
use serde::{Deserialize, Serialize};

use super::{
    Admin,
    directory::{self, Directory},
    services::Administered,
};
use crate::{
    bridge::RunningBridge,
    report::{self, Report, STALE_AFTER, Said, ServiceReport},
};

/// How long a log may take to tell what waits in it.
const PATIENCE: Duration = Duration::from_secs(1);

/// How the cluster is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The nodes, those that are gone for less than a day included.
    pub nodes: Vec<NodeStatus>,
    /// The services.
    pub services: Vec<ServiceStatus>,
    /// Topics on their way into services, as far as the node that answers carries them.
    pub bridges: Vec<BridgeStatus>,
    /// All shards; of a service whose database does not answer, those that the node serves that answers.
    pub shards: Vec<ShardStatus>,
    /// Shards on their way from one node to another.
    pub moves: Vec<Move>,
}

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// `live`, `draining`, `suspect` (it has fallen silent and is not yet dead) or `dead`.
    pub state: String,
    /// What it last said of itself.
    #[serde(flatten)]
    pub report: Report,
    /// Who it is in each service's database.
    pub incarnations: BTreeMap<String, Incarnation>,
}

/// How one service is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// `users`, `posts`, `comments`, `search`.
    pub service: String,
    /// Shards that it has.
    pub shards: u16,
    /// Shards that a living node owns.
    pub shards_owned: usize,
    /// Shards on their way to another node.
    pub shards_moving: usize,
    /// Shards that nobody owns who lives.
    pub shards_unowned: usize,
    /// Records in its log.
    pub head: Seq,
    /// Records that its slowest consumer has not applied yet; none: nobody reads it, or the database does not answer.
    pub lag: Option<Seq>,
    /// Entities in memory, on all nodes.
    pub entities: usize,
    /// What they take, in bytes.
    pub bytes: usize,
    /// How long the database takes to answer; none: it does not.
    pub database_ms: Option<f64>,
    /// Records in the dead letters; none: the database does not answer.
    pub dead_letters: Option<u64>,
}

/// One shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Whose.
    pub service: String,
    /// Its number.
    pub shard: ShardId,
    /// The name of the node; none: nobody who lives.
    pub owner: Option<String>,
    /// Changes of hands so far.
    pub epoch: Epoch,
    /// Records that its slowest consumer has not applied yet.
    pub lag: Option<Seq>,
}

/// A shard on its way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Move {
    /// Whose.
    pub service: String,
    /// Its number.
    pub shard: ShardId,
    /// Who has it; none: nobody who lives.
    pub from: Option<String>,
    /// Who is to have it.
    pub to: String,
}

/// One topic on its way into one service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BridgeStatus {
    /// The publisher.
    pub from: String,
    /// The consumer.
    pub to: String,
    /// Age of the oldest event that is not applied; 0: there is none.
    pub behind_s: f64,
    /// Why it cannot go on, where its place lies outside of the log.
    pub outside: Vec<String>,
}

impl Status {
    /// Whether every shard of every service is served.
    pub fn is_served(&self) -> bool {
        self.services.iter().all(|service| self.unserved(service) == 0)
    }

    /// Shards of a service that nobody serves: no living node owns them, or one that has fallen silent or has no lease.
    pub fn unserved(&self, service: &ServiceStatus) -> usize {
        let serves = |node: &&NodeStatus| {
            // A member that begins has said nothing yet.
            let report = node.report.services.get(&service.service);
            !matches!(node.state.as_str(), "suspect" | "dead") && report.is_none_or(|report| report.serving)
        };
        if service.database_ms.is_none() {
            // Who owns what is not known, and no lease is renewed: those that still hold are about to end.
            let has_role = |node: &&NodeStatus| node.report.services.contains_key(&service.service);
            let is_served = self.nodes.iter().filter(has_role).any(|node| serves(&node));
            return if is_served { 0 } else { usize::from(service.shards) };
        }
        let idle: Vec<&str> = self.nodes.iter().filter(|node| !serves(node)).map(|node| &*node.name).collect();
        let owned = self.shards.iter().filter(|shard| shard.service == service.service);
        let by_the_idle = owned.filter(|shard| shard.owner.as_deref().is_some_and(|owner| idle.contains(&owner)));
        usize::from(service.shards).saturating_sub(service.shards_owned) + by_the_idle.count()
    }
}

pub(super) async fn status(axum::extract::State(admin): State<Arc<Admin>>) -> Json<Status> {
    let asked = admin.services.iter().map(|service| async {
        let answer = directory::ask(service.database()).await;
        (&**service, answer.inspect_err(|error| tracing::debug!(%error, "a database does not answer")).ok())
    });
    let told = join_all(asked).await;
    let nodes = nodes(&told, admin.node.said());
    let services = told.iter().map(|(service, told)| summary(*service, told.as_ref(), &nodes)).collect();
    let shards = told.iter().flat_map(|(service, told)| shards(*service, told.as_ref(), &admin.node.name)).collect();
    let moves = told.iter().flat_map(|(service, told)| moves(service.name(), told.as_ref())).collect();
    let bridges = admin.bridges.iter().map(async |bridge| BridgeStatus {
        from: bridge.topic.service().to_owned(),
        to: bridge.consumer.to_owned(),
        behind_s: behind_s(&bridge.bridge).await,
        outside: bridge.bridge.outside().into_iter().map(|outside| outside.reason).collect(),
    });
    let bridges = join_all(bridges).await;
    Json(Status { nodes, services, bridges, shards, moves })
}

async fn behind_s(bridge: &RunningBridge) -> f64 {
    match tokio::time::timeout(PATIENCE, bridge.oldest_unapplied()).await {
        Ok(Ok(waiting)) => waiting.map_or(0.0, |waiting| waiting.age().as_secs_f64()),
        // The log cannot be asked: since the reader last thought that it had everything.
        _ => bridge.caught_up_at().elapsed().as_secs_f64(),
    }
}

/// `here`: the node that answers, which lives whatever the databases say, or whether they say anything.
fn nodes(told: &[(&dyn Administered, Option<Directory>)], here: Said) -> Vec<NodeStatus> {
    let mut freshest: BTreeMap<&str, &Said> = BTreeMap::new();
    for said in told.iter().filter_map(|(_, told)| told.as_ref()).flat_map(|told| &told.nodes) {
        let best = freshest.entry(&said.name).or_insert(said);
        if said.age < best.age {
            *best = said;
        }
    }
    freshest.insert(&here.name, &here);
    let mut incarnations: BTreeMap<&str, BTreeMap<String, Incarnation>> = BTreeMap::new();
    let mut draining: Vec<&str> = Vec::new();
    for (service, told) in told {
        for member in told.iter().flat_map(|told| &told.members) {
            incarnations.entry(&member.node).or_default().insert(service.name().to_owned(), member.incarnation);
            if member.draining {
                draining.push(&member.node);
            }
        }
    }
    let names: std::collections::BTreeSet<&str> = freshest.keys().chain(incarnations.keys()).copied().collect();
    let node = |name: &str| {
        let said = freshest.get(name).copied();
        let incarnations = incarnations.get(name).cloned().unwrap_or_default();
        NodeStatus {
            name: name.to_owned(),
            state: state(said, !incarnations.is_empty(), draining.contains(&name)).to_owned(),
            report: said.map(|said| said.report.clone()).unwrap_or_default(),
            incarnations,
        }
    };
    names.into_iter().map(node).collect()
}

fn state(said: Option<&Said>, is_member: bool, drains: bool) -> &'static str {
    let stale = said.is_none_or(|said| said.age > STALE_AFTER || said.state == report::State::Dead);
    match said {
        _ if stale && !is_member => "dead",
        // A member that has not said anything yet begins.
        Some(_) if stale => "suspect",
        Some(said) if drains || said.state == report::State::Draining => "draining",
        None if drains => "draining",
        _ => "live",
    }
}

fn summary(service: &dyn Administered, told: Option<&Directory>, nodes: &[NodeStatus]) -> ServiceStatus {
    let shards = told.map_or(&[][..], |told| &told.shards);
    let here = service.owned();
    let reports = nodes.iter().filter(|node| node.state != "dead").filter_map(|node| node.report.services.get(service.name()));
    let total = |of: fn(&ServiceReport) -> usize| reports.clone().map(of).sum();
    ServiceStatus {
        service: service.name().to_owned(),
        shards: service.shards(),
        shards_owned: told.map_or(here.len(), |_| shards.iter().filter(|shard| shard.owner.is_some()).count()),
        shards_moving: shards.iter().filter(|shard| shard.target.is_some()).count(),
        shards_unowned: shards.iter().filter(|shard| shard.owner.is_none()).count(),
        head: told.map_or(here.iter().map(|(.., head)| head).sum(), |_| shards.iter().map(|shard| shard.head).sum()),
        lag: lags(shards).map(|(_, lag)| lag).sum(),
        entities: total(|report| report.entities),
        bytes: total(|report| report.bytes),
        database_ms: told.map(|told| Probe::milliseconds(told.latency)),
        dead_letters: told.map(|told| told.dead_letters),
    }
}

/// How far the slowest consumer of each shard is behind. Nobody reads the search service's log.
fn lags(shards: &[directory::Shard]) -> impl Iterator<Item = (&directory::Shard, Option<Seq>)> {
    let is_read = shards.iter().any(|shard| shard.place.is_some());
    shards.iter().map(move |shard| (shard, is_read.then(|| (shard.head - shard.place.unwrap_or(0)).max(0))))
}

fn shards(service: &dyn Administered, told: Option<&Directory>, here: &str) -> Vec<ShardStatus> {
    let status = |shard, owner, epoch, lag| ShardStatus { service: service.name().to_owned(), shard, owner, epoch, lag };
    match told {
        Some(told) => lags(&told.shards).map(|(shard, lag)| status(shard.id, shard.owner.clone(), shard.epoch, lag)).collect(),
        None => {
            let owned = service.owned().into_iter();
            owned.map(|(shard, epoch, _)| status(shard, Some(here.to_owned()), epoch, None)).collect()
        }
    }
}

fn moves(service: &str, told: Option<&Directory>) -> Vec<Move> {
    let shards = told.map_or(&[][..], |told| &told.shards);
    let moving = |shard: &directory::Shard| {
        let (service, shard, from, to) = (service.to_owned(), shard.id, shard.owner.clone(), shard.target.clone()?);
        Some(Move { service, shard, from, to })
    };
    shards.iter().filter_map(moving).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn said(state: report::State, age_s: u64) -> Said {
        Said { name: "n1".to_owned(), state, age: Duration::from_secs(age_s), report: Report::default() }
    }

    #[test]
    fn a_node_is_what_it_last_said() {
        assert_eq!(state(Some(&said(report::State::Live, 1)), true, false), "live");
        assert_eq!(state(Some(&said(report::State::Live, 1)), false, false), "live", "a gateway is no member");
        assert_eq!(state(Some(&said(report::State::Draining, 1)), true, false), "draining");
        assert_eq!(state(Some(&said(report::State::Live, 1)), true, true), "draining", "or what its members say");
    }

    #[test]
    fn a_silent_node_is_suspect_while_it_is_a_member_and_then_dead() {
        assert_eq!(state(Some(&said(report::State::Live, 10)), true, false), "suspect");
        assert_eq!(state(Some(&said(report::State::Live, 10)), false, false), "dead");
    }

    #[test]
    fn a_node_whose_process_was_seen_to_end_is_dead_at_once() {
        assert_eq!(state(Some(&said(report::State::Dead, 0)), false, false), "dead");
    }

    /// Two shards of posts with these owners.
    fn cluster(nodes: Vec<NodeStatus>, owners: [Option<&str>; 2], database_ms: Option<f64>) -> Status {
        let shard = |n: u16, owner: Option<&str>| ShardStatus {
            service: "posts".to_owned(),
            shard: ShardId(n),
            owner: owner.map(str::to_owned),
            epoch: 1,
            lag: None,
        };
        let service = ServiceStatus {
            service: "posts".to_owned(),
            shards: 2,
            shards_owned: owners.iter().flatten().count(),
            shards_moving: 0,
            shards_unowned: 0,
            head: 0,
            lag: None,
            entities: 0,
            bytes: 0,
            database_ms,
            dead_letters: None,
        };
        let shards = vec![shard(0, owners[0]), shard(1, owners[1])];
        Status { nodes, services: vec![service], bridges: Vec::new(), shards, moves: Vec::new() }
    }

    fn node(name: &str, state: &str, serving: bool) -> NodeStatus {
        let services = [("posts".to_owned(), ServiceReport { serving, ..Default::default() })].into();
        let report = Report { services, ..Report::default() };
        NodeStatus { name: name.to_owned(), state: state.to_owned(), report, incarnations: BTreeMap::new() }
    }

    #[test]
    fn a_shard_is_served_by_a_living_owner_with_a_lease_and_by_nobody_else() {
        let unserved = |nodes, owners| {
            let status = cluster(nodes, owners, Some(1.0));
            status.unserved(&status.services[0])
        };
        assert_eq!(unserved(vec![node("n1", "live", true)], [Some("n1"), Some("n1")]), 0);
        assert_eq!(unserved(vec![node("n1", "draining", true)], [Some("n1"), Some("n1")]), 0);
        assert_eq!(unserved(vec![node("n1", "live", true)], [Some("n1"), None]), 1);
        // Nobody is left who could declare it dead.
        assert_eq!(unserved(vec![node("n1", "suspect", true)], [Some("n1"), Some("n1")]), 2);
        assert_eq!(unserved(vec![node("n1", "live", true), node("n2", "live", false)], [Some("n1"), Some("n2")]), 1);
    }

    #[test]
    fn a_service_whose_database_is_down_is_served_as_long_as_a_lease_holds() {
        let served = |serving| cluster(vec![node("n1", "live", serving)], [Some("n1"), None], None).is_served();
        assert!(served(true) && !served(false));
    }

    #[test]
    fn a_member_that_has_said_nothing_yet_begins() {
        assert_eq!(state(None, true, false), "live");
    }
}
