//! What can be done to a cluster: a fault is one call.

use std::{fs, time::Duration};

use anyhow::Context;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Cluster, Node, Started, command::KAFKA_PARTITIONS, disk::Balloon, ended};
use crate::{chaos::proxy::Proxy, fleet, migrate::Database, postgres, testing::backup};

/// In which directions a wire is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ways {
    /// What one sends is lost, what it is sent arrives.
    One,
    /// Nothing arrives.
    Both,
}

impl Cluster {
    /// Sends a signal to a node, once it is seen: where a machine is busy one falls silent for a moment.
    ///
    /// # Errors
    /// When there is none for long.
    pub async fn signal(&self, name: &str, signal: Signal) -> anyhow::Result<Node> {
        let node = self.until_some(&format!("node {name}"), async |cluster| cluster.node(name).await).await?;
        kill(Pid::from_raw(node.pid), signal)?;
        Ok(node)
    }

    /// `kill -9` of a node; it is started again.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        self.end(name, Signal::SIGKILL).await
    }

    /// Stops a node in order; it is started again.
    ///
    /// # Errors
    /// When it does not stop, or does not come back.
    pub async fn restart(&mut self, name: &str) -> anyhow::Result<()> {
        self.end(name, Signal::SIGTERM).await
    }

    async fn end(&mut self, name: &str, signal: Signal) -> anyhow::Result<()> {
        let before = self.signal(name, signal).await?;
        if !self.has_parent() {
            let found = self.running.iter().find(|started| started.name == name).context("it was there a moment ago")?;
            ended(&found.process).await?;
            return self.launch().await;
        }
        self.until("the node again", async |cluster| {
            let node = cluster.node(name).await.ok().flatten();
            node.is_some_and(|node| node.pid != before.pid)
        })
        .await?;
        self.ready().await
    }

    /// Waits until everything runs that should, starting a node that is alone and has died.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn revive(&mut self) -> anyhow::Result<()> {
        // They may be about to end.
        match self.ready().await {
            Err(_) if self.running.iter().any(Started::has_ended) => self.launch().await,
            ready => ready,
        }
    }

    /// The whole node sleeps for so long, and wakes as if nothing had been.
    ///
    /// # Errors
    /// When there is no such node.
    pub async fn sleep(&self, name: &str, time: Duration) -> anyhow::Result<()> {
        let sleeping = Sleeping(self.signal(name, Signal::SIGSTOP).await?.pid);
        tokio::time::sleep(time).await;
        drop(sleeping);
        Ok(())
    }

    /// The process of Postgres in which a node carries out the batches of a service stands still between two of them, until
    /// the value is dropped.
    ///
    /// # Errors
    /// When there is none for long.
    pub async fn freeze_lane(&self, database: Database) -> anyhow::Result<Sleeping> {
        let client = self.client(database).await?;
        let idle = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'
                    AND application_name LIKE $1 AND query LIKE 'WITH t0 AS (INSERT%' AND ($2::int4 IS NULL OR pid = $2)";
        let sessions = format!("{}:%", database.name());
        self.until_some("a lane between two batches", async |_| {
            let Some(row) = client.query_opt(&format!("{idle} LIMIT 1"), &[&sessions, &None::<i32>]).await? else {
                return Ok(None);
            };
            let pid: i32 = row.get(0);
            kill(Pid::from_raw(pid), Signal::SIGSTOP)?;
            let frozen = Sleeping(pid);
            // One that stands still in the middle of a batch holds its locks, which nobody but an operator can break.
            Ok(client.query_opt(idle, &[&sessions, &Some(pid)]).await?.map(|_| frozen))
        })
        .await
    }

    /// Starts nodes or stops them, until there are so many.
    ///
    /// # Errors
    /// What `rookery scale` says.
    pub async fn scale(&mut self, nodes: u16) -> anyhow::Result<()> {
        self.rookery(&["scale", &nodes.to_string()]).await?;
        self.options.nodes = nodes;
        self.gateways.replace(self.addresses());
        self.ready().await
    }

    /// What a node sends to these others does not arrive, and what they send to it neither if it is cut both ways.
    ///
    /// # Errors
    /// When they have no network of their own.
    pub async fn cut(&self, node: usize, others: &[usize], ways: Ways) -> anyhow::Result<()> {
        let network = self.network.as_ref().context("this cluster has no network of its own")?;
        for other in others {
            network.cut(node, *other).await?;
            if ways == Ways::Both {
                network.cut(*other, node).await?;
            }
        }
        Ok(())
    }

    /// Takes back what [`Cluster::cut`] did.
    ///
    /// # Errors
    /// When it was not done.
    pub async fn mend(&self, node: usize, others: &[usize], ways: Ways) -> anyhow::Result<()> {
        let network = self.network.as_ref().context("this cluster has no network of its own")?;
        for other in others {
            network.heal(node, *other).await?;
            if ways == Ways::Both {
                network.heal(*other, node).await?;
            }
        }
        Ok(())
    }

    /// Nothing passes between a node and Postgres, and neither is told; [`Cluster::mend_postgres`] takes it back.
    ///
    /// # Errors
    /// When the node has no way to Postgres of its own.
    pub fn cut_postgres(&self, node: usize) -> anyhow::Result<()> {
        self.way(node)?.silence();
        Ok(())
    }

    /// A node reaches Postgres again: what was under way goes on.
    ///
    /// # Errors
    /// When the node has no way to Postgres of its own.
    pub fn mend_postgres(&self, node: usize) -> anyhow::Result<()> {
        self.way(node)?.heal();
        Ok(())
    }

    /// The host of a node is gone, in the middle of everything: nobody hears anything of it, and nobody says that it is dead.
    ///
    /// # Errors
    /// When the nodes have no network of their own.
    pub async fn lose(&mut self, node: usize) -> anyhow::Result<()> {
        self.cut(node, &self.others(node), Ways::Both).await?;
        self.cut_postgres(node)?;
        let name = fleet::name(node);
        self.signal(&name, Signal::SIGKILL).await?;
        let found = self.running.iter().find(|started| started.name == name).context("it was there a moment ago")?;
        ended(&found.process).await.map(drop)
    }

    /// The host is back, and starts its node.
    ///
    /// # Errors
    /// When the node does not start.
    pub async fn find(&mut self, node: usize) -> anyhow::Result<()> {
        self.mend(node, &self.others(node), Ways::Both).await?;
        self.mend_postgres(node)?;
        self.launch().await
    }

    /// All nodes but one.
    pub fn others(&self, node: usize) -> Vec<usize> {
        (1..=usize::from(self.options.nodes)).filter(|other| *other != node).collect()
    }

    fn way(&self, node: usize) -> anyhow::Result<&Proxy> {
        self.server.as_ref().context("this cluster has no Postgres that can be cut off")?.proxy(node)
    }

    /// `kill -9` of the private Postgres; the node, or its parent, starts it again.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_postgres(&self) -> anyhow::Result<()> {
        let file = fs::read_to_string(self.inside(&self.data().join("postgres/postmaster.pid")))?;
        let pid = file.lines().next().context("the server writes its number first")?.trim().parse()?;
        Ok(kill(Pid::from_raw(pid), Signal::SIGKILL)?)
    }

    /// Keeps what a database holds now, for [`Cluster::put_back`].
    ///
    /// # Errors
    /// What Postgres says.
    pub async fn back_up(&self, database: Database) -> anyhow::Result<()> {
        Ok(backup::back_up(&self.client(database).await?).await?)
    }

    /// Puts a database back to what was kept, as from a backup. No node may run.
    ///
    /// # Errors
    /// What Postgres says.
    pub async fn put_back(&self, database: Database) -> anyhow::Result<()> {
        Ok(backup::put_back(&self.client(database).await?).await?)
    }

    async fn client(&self, database: Database) -> anyhow::Result<tokio_postgres::Client> {
        let (_, config) = self.databases()?.into_iter().find(|(of, _)| *of == database).context("every service has one")?;
        Ok(postgres::connect(&config).await?)
    }

    /// Takes everything out of the topics of events, as retention does.
    ///
    /// # Errors
    /// What the broker says, or that there is none.
    pub async fn empty_topics(&self) -> anyhow::Result<()> {
        Ok(self.kafka.as_ref().context("this cluster has no Kafka")?.empty_topics(KAFKA_PARTITIONS).await?)
    }

    /// Leaves no byte free on the disk of the cluster until the value is dropped.
    ///
    /// # Errors
    /// When the cluster has no disk of its own.
    pub fn fill_disk(&self) -> anyhow::Result<Balloon> {
        Ok(self.disk.as_ref().context("this cluster has no disk of its own")?.fill()?)
    }

    /// `kill -9` of the Kafka broker.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_kafka(&mut self) -> anyhow::Result<()> {
        self.kafka.as_mut().context("this cluster has no Kafka")?.kill();
        Ok(())
    }

    /// Starts it again, on what it had.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart_kafka(&mut self) -> anyhow::Result<()> {
        let mut kafka = self.kafka.take().context("this cluster has no Kafka")?;
        let restarted = tokio::task::spawn_blocking(move || kafka.restart().map(|()| kafka)).await?;
        self.kafka = Some(restarted?);
        Ok(())
    }
}

/// A process that wakes when this is dropped, however that comes about.
#[derive(Debug)]
pub struct Sleeping(i32);

impl Drop for Sleeping {
    fn drop(&mut self) {
        // It may have died in its sleep.
        let _ = kill(Pid::from_raw(self.0), Signal::SIGCONT);
    }
}
