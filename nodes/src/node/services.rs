//! The four services: a database each, migrated; a runtime each, with its membership.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use anyhow::Context;
use rookery_actors::{
    comments::service::CommentService,
    ids::Incarnation,
    posts::PostService,
    runtime::{PoolSize, Runtime, Settings},
    search::SearchService,
    service::Service,
    supervisor::{ChildSpec, SupervisorRef},
    users::UserService,
};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::{
    config::{self, Config, Role},
    migrate::{self, Database},
    ownership::{LeaseSettings, Membership, Ownership},
    postgres::{self, DataDir, EmbeddedPostgres},
};

/// Where the databases are: configured ones, and the private Postgres for the rest.
pub(super) struct Databases {
    embedded: Mutex<Option<EmbeddedPostgres>>,
    configs: Vec<(Database, tokio_postgres::Config)>,
}

const ROLES: [(Database, Role); 4] = [
    (Database::Users, Role::Users),
    (Database::Posts, Role::Posts),
    (Database::Comments, Role::Comments),
    (Database::Search, Role::Search),
];

/// How long a stop waits until the other nodes have what was served here; they take the rest when we have left.
const DRAIN_MAX: Duration = Duration::from_secs(10);

impl Databases {
    pub(super) async fn open(config: &Config, data: &DataDir) -> anyhow::Result<Self> {
        let url = |role| config.services.of(role).and_then(|service| service.database_url.as_ref());
        let private = ROLES.iter().any(|(_, role)| url(*role).is_none());
        let names: Vec<&str> =
            ROLES.iter().filter(|(_, role)| url(*role).is_none()).map(|(database, _)| database.name()).collect();
        let embedded = if private { Some(EmbeddedPostgres::start(data, &names).await?) } else { None };
        let mut configs = Vec::new();
        for (database, role) in ROLES {
            let config = match (url(role), &embedded) {
                (Some(url), _) => url.postgres(),
                (None, Some(embedded)) => embedded.config(database.name()),
                (None, None) => unreachable!("a database without a URL has the private Postgres"),
            };
            configs.push((database, config));
        }
        let databases = Self { embedded: Mutex::new(embedded), configs };
        databases.migrate().await?;
        Ok(databases)
    }

    fn config(&self, wanted: Database) -> tokio_postgres::Config {
        let found = self.configs.iter().find(|(database, _)| *database == wanted);
        found.expect("every service has a database").1.clone()
    }

    async fn migrate(&self) -> anyhow::Result<()> {
        let all = self.configs.iter().map(|(database, config)| async move {
            let mut client = postgres::connect(config).await.with_context(|| format!("cannot reach the {database} database"))?;
            migrate::run(&mut client, *database).await?;
            anyhow::Ok(())
        });
        futures_util::future::try_join_all(all).await?;
        Ok(())
    }

    /// Brings the private Postgres back when it dies; ends when it cannot.
    pub(super) async fn watch(&self) {
        let mut embedded = self.embedded.lock().await;
        let Some(postgres) = embedded.as_mut() else {
            return std::future::pending().await;
        };
        loop {
            let status = postgres.exited().await;
            tracing::error!(%status, "the private Postgres died, starting it again");
            if let Err(error) = postgres.restart().await {
                tracing::error!(error = format!("{:#}", anyhow::Error::from(error)), "the private Postgres does not start again");
                return;
            }
        }
    }

    pub(super) async fn stop(self) {
        if let Some(postgres) = self.embedded.into_inner() {
            postgres.stop().await;
        }
    }
}

/// A service at work.
pub(super) struct Running<S: Service> {
    pub(super) runtime: Runtime<S>,
    ownership: Ownership,
}

/// A service that only has to be stopped.
pub(super) struct RunningService {
    stop: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl RunningService {
    pub(super) async fn stop(self) {
        self.stop.await;
    }
}

impl<S: Service> Running<S> {
    pub(super) fn erase(self) -> RunningService {
        let stop = Box::pin(async move {
            self.ownership.drain(DRAIN_MAX).await;
            // The lease lasts until the last commit has been answered.
            self.runtime.stop().await;
            self.ownership.leave().await;
        });
        RunningService { stop }
    }
}

/// All four.
pub(super) struct Started {
    pub(super) users: Running<UserService>,
    pub(super) posts: Running<PostService>,
    pub(super) comments: Running<CommentService>,
    pub(super) search: Running<SearchService>,
}

pub(super) async fn start(config: &Config, databases: &Databases, tree: &SupervisorRef) -> anyhow::Result<Started> {
    let shards = config.cluster.shards;
    let (users, posts, comments, search) = tokio::try_join!(
        one(UserService::default(), &config.services.users, config, shards, databases.config(Database::Users), tree),
        one(PostService::default(), &config.services.posts, config, shards, databases.config(Database::Posts), tree),
        one(CommentService::default(), &config.services.comments, config, shards, databases.config(Database::Comments), tree),
        one(
            SearchService,
            &config.services.search,
            config,
            config.cluster.search_partitions,
            databases.config(Database::Search),
            tree
        ),
    )?;
    Ok(Started { users, posts, comments, search })
}

async fn one<S: Service>(
    service: S,
    of: &config::Service,
    config: &Config,
    shards: u16,
    database: tokio_postgres::Config,
    tree: &SupervisorRef,
) -> anyhow::Result<Running<S>> {
    let settings = Settings {
        shards,
        cache_bytes: usize::try_from(of.cache_bytes)?,
        passivate_after: config.entities.passivate_after,
        batch_units_max: config.committer.commands_max,
        batch_bytes_max: config.committer.bytes_max,
        pool: PoolSize { connections_max: of.pool_max, wait_max: Duration::from_secs(2) },
        ..Settings::default()
    };
    let runtime = Runtime::new(service, database, Incarnation(Uuid::new_v4()), settings);
    // A level of its own in the tree: its shards end with it.
    let supervisor = SupervisorRef::spawn_linked(S::NAME, Vec::<ChildSpec>::new(), tree.cell()).await?.0;
    runtime.start(supervisor.cell());
    let lease = LeaseSettings { ttl: config.lease.ttl, renew_every: config.lease.renew };
    let reader = runtime.clone();
    let membership = Membership {
        // We hold the lock of the data folder, so whoever was this node before is dead.
        alone: true,
        changed: Arc::new(move || reader.service().shards_changed()),
        ..Membership::new(config.node.name.as_str(), lease)
    };
    let ownership = Ownership::start(runtime.clone(), membership)
        .await
        .with_context(|| format!("the {} service cannot begin to serve", S::NAME))?;
    Ok(Running { runtime, ownership })
}
