//! The way to other nodes: links, and the routes over them. A node that listens for nobody is alone and has none.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use rookery_actors::secret::KeyRing;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{address, services::Started};
use crate::{
    config::Config,
    databases::Databases,
    links::{Links, LinksConfig},
    ownership::hand_offs,
    routing::Routes,
};

/// How long a stop waits for what other nodes still ask of us.
const LINKS_SETTLE_WITHIN: Duration = Duration::from_secs(2);

/// Links without anybody at their other ends yet.
pub(super) struct Cluster {
    pub(super) routes: Routes,
    /// Where other nodes reach us.
    pub(super) address: String,
    /// Shared by all services.
    pub(super) hand_offs: Arc<Semaphore>,
}

/// A node among others.
pub(super) struct Running {
    routes: Routes,
    tasks: JoinSet<()>,
}

impl Cluster {
    /// Begins to listen for other nodes; none: the configuration says that there are none.
    pub(super) async fn start(
        config: &Config,
        databases: &Databases,
        secrets: &KeyRing,
        cookie: String,
    ) -> anyhow::Result<Option<Self>> {
        let Some(links) = LinksConfig::of(config, secrets, cookie) else { return Ok(None) };
        let routes = Routes::new(config.node.name.as_str());
        let links = Links::start(links, routes.handler()).await.context("the links to other nodes do not start")?;
        let bound = links.address().context("the links listen nowhere")?;
        let address = match config.cluster.advertised(bound) {
            Some(address) => address,
            None => on_the_network_of(databases, bound).await?,
        };
        tracing::info!(node.address = %address, "other nodes reach this one at {address}");
        routes.over(links);
        Ok(Some(Self { routes, address, hand_offs: hand_offs() }))
    }

    /// Puts the services on the routes.
    pub(super) fn running(self, services: &Started) -> Running {
        Running { tasks: services.connect(&self.routes), routes: self.routes }
    }
}

async fn on_the_network_of(databases: &Databases, bound: SocketAddr) -> anyhow::Result<String> {
    let own = address::towards(&databases.configs()).await.with_context(|| {
        format!(
            "cannot tell by which address other nodes reach this one: it listens on {bound}, and its databases are on this \
             machine; set `advertise` in [cluster] of the configuration to host:port, or ROOKERY__CLUSTER__ADVERTISE"
        )
    })?;
    Ok(SocketAddr::new(own, bound.port()).to_string())
}

impl Running {
    /// Who is where, and how to reach them.
    pub(super) fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Ends the links when what is under way over them has been answered.
    pub(super) async fn stop(mut self) {
        if let Some(links) = self.routes.links() {
            links.stop(LINKS_SETTLE_WITHIN).await;
        }
        self.tasks.abort_all();
    }
}

/// Ends when the links of a running node are gone; never for a node that is alone.
pub(super) async fn failed(cluster: Option<&Running>) {
    match cluster.and_then(|cluster| cluster.routes.links()) {
        Some(links) => links.ended().await,
        None => std::future::pending().await,
    }
}
