//! `GET /status`: the node, its services, its shards.

use std::sync::Arc;

use axum::{Json, extract::State};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::{
    Admin,
    services::{ServiceStatus, ShardStatus},
};

/// How the cluster is, as far as this node knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The members.
    pub nodes: Vec<NodeStatus>,
    /// The services on this node.
    pub services: Vec<ServiceStatus>,
    /// Topics on their way into services.
    pub bridges: Vec<BridgeStatus>,
    /// The shards that this node serves.
    pub shards: Vec<ShardStatus>,
}

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// `live`
    pub state: String,
    /// What it does.
    pub roles: Vec<String>,
    /// Where its gateway listens, if it has one.
    pub gateway: Option<String>,
    /// Its process.
    pub pid: u32,
    /// Since its start.
    pub uptime_s: u64,
}

/// One topic on its way into one service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BridgeStatus {
    /// The publisher.
    pub from: String,
    /// The consumer.
    pub to: String,
    /// Since it last had nothing left to apply.
    pub behind_s: f64,
}

pub(super) async fn status(State(admin): State<Arc<Admin>>) -> Json<Status> {
    let node = &admin.node;
    let (services, shards): (Vec<_>, Vec<_>) =
        join_all(admin.services.iter().map(|service| service.status(&node.name))).await.into_iter().unzip();
    let bridges = admin.bridges.iter().map(|bridge| BridgeStatus {
        from: bridge.topic.service().to_owned(),
        to: bridge.consumer.to_owned(),
        behind_s: bridge.bridge.caught_up_at().elapsed().as_secs_f64(),
    });
    let this = NodeStatus {
        name: node.name.clone(),
        // A dead node does not answer; draining comes with the cluster.
        state: "live".to_owned(),
        roles: node.roles.clone(),
        gateway: node.gateway.map(|gateway| gateway.to_string()),
        pid: std::process::id(),
        uptime_s: node.started.elapsed().as_secs(),
    };
    Json(Status { nodes: vec![this], services, bridges: bridges.collect(), shards: shards.concat() })
}
