//! A Postgres of ours, and what stands between it and the nodes.

use std::path::Path;

use anyhow::Context;

use crate::{
    chaos::proxy::Proxy,
    migrate::Database,
    postgres::{DataDir, EmbeddedPostgres},
};

/// The server and a way to it for every node that has one of its own.
pub(super) struct Server {
    postgres: EmbeddedPostgres,
    proxies: Vec<Proxy>,
    _data: DataDir,
}

impl Server {
    /// Starts it with so many ways. They are Unix sockets, which no network namespace keeps from each other.
    pub(super) async fn start(folder: &Path, ways: u16) -> anyhow::Result<Self> {
        let data = DataDir::lock(folder.join("server"))?;
        let names = Database::ALL.map(Database::name);
        let postgres = EmbeddedPostgres::start(&data, &names).await?;
        let proxies = (0..ways).map(|_| Proxy::start(&postgres.config("postgres"))).collect();
        Ok(Self { postgres, proxies, _data: data })
    }

    /// The way of a node, by its number; the first is 1.
    pub(super) fn proxy(&self, node: usize) -> anyhow::Result<&Proxy> {
        node.checked_sub(1).and_then(|index| self.proxies.get(index)).context("this node has no way to Postgres of its own")
    }

    /// Past all proxies.
    pub(super) fn config(&self, database: Database) -> tokio_postgres::Config {
        self.postgres.config(database.name())
    }

    pub(super) async fn stop(self) {
        self.postgres.stop().await;
    }
}
