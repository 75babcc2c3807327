//! Several nodes on this machine, a process each, and the parent that keeps them.
//!
//! The parent holds the data folder, the private Postgres and the secret, and does nothing else: a node that dies is
//! declared dead at once and started again, and when the parent dies, whichever way, everything ends with it.

mod admin;
mod environment;
mod keeper;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use anyhow::{Context, bail, ensure};
use tokio::sync::Mutex;

pub(crate) use self::environment::name;
pub use self::keeper::{Kept, State};
use self::{environment::Shared, keeper::Keeper};
use crate::{
    admin::AdminPort,
    config::Config,
    connections,
    databases::Databases,
    migrate::Database,
    ownership::{self, Former, LastLife},
    pins,
    postgres::DataDir,
    report, secret,
};

/// As many as their ports are apart.
pub const NODES_MAX: u16 = 9;

/// The nodes of this machine.
pub struct Fleet {
    nodes: Arc<Nodes>,
    admin: AdminPort,
    databases: Databases,
    data: DataDir,
}

/// What every node stands on.
struct Ground {
    /// Our own program.
    program: PathBuf,
    config: Config,
    /// The configuration file, if one was named.
    file: Option<PathBuf>,
    shared: Shared,
    databases: Vec<(Database, tokio_postgres::Config)>,
}

/// The nodes by their numbers.
struct Nodes {
    ground: Arc<Ground>,
    kept: Mutex<BTreeMap<u16, Keeper>>,
}

impl Fleet {
    /// Starts so many nodes and returns when all of them answer.
    ///
    /// # Errors
    /// What could not be started; everything else is stopped again.
    pub async fn start(config: Config, file: Option<PathBuf>, nodes: u16) -> anyhow::Result<Self> {
        let data = DataDir::lock(&config.data_dir)?;
        crate::node::tell_of_new(&data);
        secret::of(&config, data.path())?;
        let databases = Databases::open(&config, &data).await?;
        databases.ready().await?;
        // Before the nodes, to whom none of the databases is private.
        pins::agree(&config, &databases).await?;
        connections::check(&config, &databases, u32::from(nodes)).await?;
        let shared = Shared {
            data: data.path().to_owned(),
            databases: databases.private_urls(&config).await,
            secret: config.secret.is_none().then(|| data.path().join(secret::FILE)),
        };
        let ground = Ground {
            program: std::env::current_exe().context("cannot find our own program")?,
            databases: Database::ALL.iter().map(|database| (*database, databases.config(*database))).collect(),
            config,
            file,
            shared,
        };
        if ground.shared.databases.len() == Database::ALL.len() {
            // We hold the only way to them, so whoever was a node before is dead, and so are those who do not come back.
            ground.forget_all().await?;
        }
        let nodes_of = Arc::new(Nodes { ground: Arc::new(ground), kept: Mutex::default() });
        let admin = AdminPort::open(admin::router(Arc::clone(&nodes_of)), data.path())?;
        let fleet = Self { nodes: nodes_of, admin, databases, data };
        let started = futures_util::future::try_join_all((0..nodes).map(|_| fleet.nodes.add())).await;
        match started {
            Ok(_) => Ok(fleet),
            Err(error) => {
                fleet.stop().await;
                Err(error)
            }
        }
    }

    /// The nodes, in the order of their numbers.
    pub async fn nodes(&self) -> Vec<Kept> {
        self.nodes.all().await
    }

    /// Where the nodes' files are.
    pub fn data_dir(&self) -> &DataDir {
        &self.data
    }

    /// Ends when the private Postgres has died and could not be brought back.
    pub async fn failed(&self) {
        self.databases.watch().await;
    }

    /// Stops all nodes together, and Postgres after them.
    pub async fn stop(self) {
        self.admin.close();
        let kept = std::mem::take(&mut *self.nodes.kept.lock().await);
        futures_util::future::join_all(kept.into_values().map(Keeper::stop)).await;
        self.databases.stop().await;
        drop(self.data);
    }
}

impl Nodes {
    async fn all(&self) -> Vec<Kept> {
        self.kept.lock().await.values().map(Keeper::kept).collect()
    }

    /// Starts one more and waits until it answers.
    async fn add(&self) -> anyhow::Result<Kept> {
        let (number, mut kept) = {
            let mut keepers = self.kept.lock().await;
            let free = (1..=NODES_MAX).find(|number| !keepers.contains_key(number));
            let number = free.with_context(|| format!("{NODES_MAX} nodes are as many as `rookery up` starts"))?;
            let keeper = Keeper::start(Arc::clone(&self.ground), number);
            let kept = keeper.watch();
            keepers.insert(number, keeper);
            (number, kept)
        };
        // One that ends before it has ever answered would only do so again.
        let settled = kept.wait_for(|kept| kept.state != State::Starting).await;
        match settled.map(|kept| kept.clone()) {
            Ok(kept) if kept.state == State::Up => Ok(kept),
            _ => {
                if let Some(keeper) = self.kept.lock().await.remove(&number) {
                    keeper.stop().await;
                }
                bail!("node {} does not start; its log above says why", environment::name(number))
            }
        }
    }

    /// Stops a node in order and forgets it; its shards go to the others.
    async fn remove(&self, name: &str) -> anyhow::Result<()> {
        let keeper = {
            let mut keepers = self.kept.lock().await;
            ensure!(keepers.len() > 1, "{name} is the only node: `rookery up` is stopped by Ctrl-C or SIGTERM");
            let number = keepers.keys().copied().find(|number| environment::name(*number) == name);
            let number = number.with_context(|| format!("there is no node {name}"))?;
            keepers.remove(&number).expect("it was there under this lock")
        };
        keeper.stop().await;
        // Whoever stopped in order is forgotten already.
        self.ground.forget(name).await;
        Ok(())
    }
}

impl Ground {
    async fn forget_all(&self) -> anyhow::Result<()> {
        for (of, config) in &self.databases {
            let database = self.database(config);
            for said in report::all(&database).await? {
                ownership::bury(config, of.name(), &said.name, &Former::Dead).await?;
                report::forget(&database, &said.name).await?;
            }
        }
        Ok(())
    }

    /// What is known of the members of a node that was reaped. In a database that others reach too, somebody else may have its name.
    fn former(&self, of: Database, number: u16) -> Former {
        match self.shared.databases.iter().any(|(private, _)| *private == of) {
            true => Former::Dead,
            false => Former::OnFolder(LastLife::of(&environment::folder(&self.shared.data, number), of.name())),
        }
    }

    async fn forget(&self, name: &str) {
        for (_, config) in &self.databases {
            if let Err(error) = report::forget(&self.database(config), name).await {
                tracing::debug!(%error, "a database does not hear that a node is gone");
            }
        }
    }

    fn database(&self, config: &tokio_postgres::Config) -> rookery_actors::runtime::Database {
        rookery_actors::runtime::Database::new(config.clone(), "rookery-parent", Default::default())
    }
}
