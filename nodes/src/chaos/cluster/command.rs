//! How the nodes of a cluster are called and configured, and where they listen.

use std::{
    net::TcpListener,
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
};

use anyhow::bail;
use rookery_actors::fail_point;

use super::Cluster;
use crate::migrate::Database;

/// Between the gateways of two nodes, as `rookery up` has it.
pub(super) const PORT_STRIDE: u16 = 10;
/// Few, so that the broker makes its topics quickly.
pub(super) const KAFKA_PARTITIONS: u16 = 4;
/// Nodes that do not share a private Postgres share this.
const SECRET: &str = "a secret that is good for one throw-away cluster";

impl Cluster {
    /// `rookery` for the whole cluster, or for its first node.
    pub(super) fn command(&self) -> anyhow::Result<Command> {
        let mut command = match &self.disk {
            Some(disk) => disk.command(&self.options.program),
            None => Command::new(&self.options.program),
        };
        command.env("ROOKERY__GATEWAY__LISTEN", format!("127.0.0.1:{}", self.port));
        let data = if self.network.is_some() { self.folder.path().join("n1") } else { self.data() };
        command.env("ROOKERY__DATA_DIR", data);
        if self.options.nodes > 1 {
            command.env("ROOKERY__CLUSTER__LISTEN", "127.0.0.1:0");
        }
        self.configured(command, 1)
    }

    /// A command with what every node of this cluster is configured by, and with the databases as one of them reaches them.
    pub(super) fn configured(&self, mut command: Command, node: usize) -> anyhow::Result<Command> {
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"ROOKERY_")) {
            if command.get_envs().all(|(own, _)| own != name) {
                command.env_remove(name);
            }
        }
        command
            .current_dir(std::env::temp_dir())
            .env("ROOKERY__GATEWAY__RATE_LIMITS", "false")
            .env(fail_point::VARIABLE, self.fail_points.folder());
        for database in Database::ALL {
            let service = database.name().to_uppercase();
            command.env(format!("ROOKERY__SERVICES__{service}__LISTEN"), "127.0.0.1:0");
            if let Some(server) = &self.server {
                command.env(format!("ROOKERY__SERVICES__{service}__DATABASE_URL"), server.proxy(node)?.url(database.name()));
            }
        }
        if self.server.is_some() {
            command.env("ROOKERY__SECRET", SECRET);
        }
        if let Some(kafka) = &self.kafka {
            let brokers: Vec<_> =
                kafka.config(KAFKA_PARTITIONS).brokers.iter().map(|broker| broker.as_str().to_owned()).collect();
            command.env("ROOKERY__KAFKA__BROKERS", brokers.join(","));
            command.env("ROOKERY__KAFKA__PARTITIONS", KAFKA_PARTITIONS.to_string());
        }
        if let Some(bytes) = self.options.copies_bytes {
            command.env("ROOKERY__CLUSTER__COPIES_BYTES", bytes.to_string());
        }
        if let Some(clock) = &self.clock {
            clock.give_to(&mut command);
        }
        Ok(command)
    }
}

/// A port from which on the gateways of so many nodes find a place: below those that the system gives to anybody, and apart
/// from other processes that look for some at the same time.
pub(super) fn free_ports(nodes: u16) -> anyhow::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let width = PORT_STRIDE * nodes;
    let slots = 12_000 / width;
    let start = u16::try_from(std::process::id() % u32::from(slots)).expect("less than the slots");
    for _ in 0..slots {
        let slot = (start + 7 * NEXT.fetch_add(1, Ordering::Relaxed)) % slots;
        let port = 20_000 + slot * width;
        if (0..nodes).all(|node| TcpListener::bind(("127.0.0.1", port + PORT_STRIDE * node)).is_ok()) {
            return Ok(port);
        }
    }
    bail!("no ports are free between 20000 and 32000")
}
