//! Several nodes on this machine, a process each, and the parent that keeps them.
//!
//! The parent holds the data folder, the private Postgres and the secret, and does nothing else: a node that dies is
//! declared dead at once and started again, and when the parent dies, whichever way, everything ends with it.

mod admin;
mod environment;
mod keeper;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail, ensure};
use futures_util::future::{join_all, try_join_all};
use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};

pub(crate) use self::environment::name;
pub use self::keeper::{Kept, State};
use self::{
    environment::Shared,
    keeper::{BURIAL_PATIENCE, Keeper},
};
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

/// A node has so long to answer for the first time: its start waits a minute for a database, and the longest lease.
pub const STARTS_WITHIN: Duration = Duration::from_secs(300);

/// Between two looks whether a node is left.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The nodes of this machine.
pub struct Fleet {
    nodes: Arc<Nodes>,
    admin: AdminPort,
    databases: Databases,
    data: DataDir,
}

/// What every node stands on.
struct Ground {
    config: Config,
    /// The configuration file, if one was named.
    file: Option<PathBuf>,
    shared: Shared,
    databases: Vec<(Database, tokio_postgres::Config)>,
}

/// The nodes by their numbers.
struct Nodes {
    ground: Arc<Ground>,
    numbers: Mutex<BTreeMap<u16, Number>>,
}

/// Who has a number, and with it a folder and ports.
enum Number {
    /// A node that is kept.
    Kept(Keeper),
    /// One that was told to stop, until its process has ended.
    Leaving(watch::Receiver<Kept>),
}

impl Number {
    fn keeper(&self) -> Option<&Keeper> {
        match self {
            Number::Kept(keeper) => Some(keeper),
            Number::Leaving(_) => None,
        }
    }

    /// It leaves from now on; its keeper, if it has not left before.
    fn leave(&mut self) -> Option<Keeper> {
        let Number::Kept(keeper) = self else { return None };
        let leaving = Number::Leaving(keeper.watch());
        match std::mem::replace(self, leaving) {
            Number::Kept(keeper) => Some(keeper),
            Number::Leaving(_) => None,
        }
    }

    /// Stops the node, or waits for one that stops already.
    async fn stop(self) {
        match self {
            Number::Kept(keeper) => keeper.stop().await,
            // An end of the keeper without a word is an end too.
            Number::Leaving(mut kept) => drop(kept.wait_for(|kept| kept.state == State::Stopped).await),
        }
    }
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
        let pools = connections::check(&config, &databases, u32::from(nodes)).await?;
        let shared = Shared {
            data: data.path().to_owned(),
            databases: databases.private_urls(&config).await,
            secret: config.secret.is_none().then(|| data.path().join(secret::FILE)),
            pools,
        };
        let ground = Ground {
            databases: Database::ALL.iter().map(|database| (*database, databases.config(*database))).collect(),
            config,
            file,
            shared,
        };
        if ground.shared.databases.len() == Database::ALL.len() {
            // We hold the only way to them, so whoever was a node before is dead, and so are those who do not come back.
            ground.forget_all().await?;
        }
        let nodes_of = Arc::new(Nodes { ground: Arc::new(ground), numbers: Mutex::default() });
        let admin = AdminPort::open(admin::router(Arc::clone(&nodes_of)), data.path())?;
        let fleet = Self { nodes: nodes_of, admin, databases, data };
        let started = try_join_all((0..nodes).map(|_| fleet.nodes.add())).await;
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

    /// Ends when the nodes cannot go on, with the reason: the private Postgres has died and could not be brought back, or every
    /// node has ended too often.
    pub async fn failed(&self) -> String {
        tokio::select! {
            () = self.databases.watch() => crate::node::POSTGRES_GONE.to_owned(),
            () = self.nodes.all_lost() => "every node has ended too often; the log says why".to_owned(),
        }
    }

    /// Stops all nodes together, and Postgres after them.
    pub async fn stop(self) {
        self.admin.close();
        let numbers = std::mem::take(&mut *self.nodes.numbers.lock().await);
        join_all(numbers.into_values().map(Number::stop)).await;
        self.databases.stop().await;
        drop(self.data);
    }
}

impl Nodes {
    async fn all(&self) -> Vec<Kept> {
        self.numbers.lock().await.values().filter_map(Number::keeper).map(Keeper::kept).collect()
    }

    /// The numbers of those that answered when they were last heard of.
    async fn up(&self) -> Vec<u16> {
        let numbers = self.numbers.lock().await;
        let is_up = |number: &Number| number.keeper().is_some_and(|keeper| keeper.kept().state == State::Up);
        numbers.iter().filter(|(_, number)| is_up(number)).map(|(number, _)| *number).collect()
    }

    /// Ends when no node is left that lives or is started again.
    async fn all_lost(&self) {
        loop {
            let nodes = self.all().await;
            if !nodes.is_empty() && nodes.iter().all(|node| node.state == State::Lost) {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Starts one more and waits until it answers.
    async fn add(&self) -> anyhow::Result<Kept> {
        let (number, mut kept) = {
            let mut numbers = self.numbers.lock().await;
            let free = (1..=NODES_MAX).find(|number| !numbers.contains_key(number));
            let number = free.with_context(|| format!("{NODES_MAX} nodes are as many as `rookery up` starts"))?;
            let keeper = Keeper::start(Arc::clone(&self.ground), number);
            let kept = keeper.watch();
            numbers.insert(number, Number::Kept(keeper));
            (number, kept)
        };
        let name = environment::name(number);
        // One that ends before it has ever answered would only do so again.
        let settled = timeout(STARTS_WITHIN, kept.wait_for(|kept| kept.state != State::Starting)).await;
        let why = match settled.map(|settled| settled.map(|kept| kept.clone())) {
            Ok(Ok(kept)) if kept.state == State::Up => return Ok(kept),
            Ok(_) => format!("node {name} does not start; its log above says why"),
            Err(_) => format!("node {name} does not answer within {} s of its start", STARTS_WITHIN.as_secs()),
        };
        self.stop(number).await;
        bail!(why)
    }

    /// Stops a node, if it is kept still.
    async fn stop(&self, number: u16) {
        let keeper = {
            let mut numbers = self.numbers.lock().await;
            numbers.get_mut(&number).and_then(Number::leave)
        };
        if let Some(keeper) = keeper {
            self.end(number, keeper).await;
        }
    }

    /// Stops a node that leaves; its number is free when its process has ended.
    async fn end(&self, number: u16, keeper: Keeper) {
        keeper.stop().await;
        self.numbers.lock().await.remove(&number);
    }

    /// Stops a node in order and forgets it; its shards go to the others.
    async fn remove(&self, name: &str) -> anyhow::Result<()> {
        let (number, keeper) = {
            let mut numbers = self.numbers.lock().await;
            let kept = || numbers.iter().filter_map(|(number, of)| Some((*number, of.keeper()?.kept())));
            let number = kept().find(|(_, kept)| kept.name == name).map(|(number, _)| number);
            let number = number.with_context(|| format!("there is no node {name}"))?;
            let another_lives = kept().any(|(other, kept)| other != number && kept.state != State::Lost);
            ensure!(another_lives, "{name} is the only node that lives: `rookery up` is stopped by Ctrl-C or SIGTERM");
            (number, numbers.get_mut(&number).and_then(Number::leave).expect("it is kept, as was seen under this lock"))
        };
        self.end(number, keeper).await;
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
        let told = self.databases.iter().map(|(_, config)| async {
            match timeout(BURIAL_PATIENCE, report::forget(&self.database(config), name)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a database does not hear that a node is gone"),
                Err(_) => tracing::debug!("a database does not hear in time that a node is gone"),
            }
        });
        join_all(told).await;
    }

    fn database(&self, config: &tokio_postgres::Config) -> rookery_actors::runtime::Database {
        rookery_actors::runtime::Database::new(config.clone(), "rookery-parent", Default::default())
    }
}
