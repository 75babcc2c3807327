//! The four services: a runtime each, and a membership in those whose role the node has.
//!
//! A service without a membership owns no shard, and answers what SQL alone can answer.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures_util::future::{BoxFuture, FutureExt};
use rookery_actors::{
    comments::service::CommentService,
    ids::Incarnation,
    posts::PostService,
    runtime::{PoolSize, Runtime, Settings},
    search::SearchService,
    secret::KeyRing,
    service::Service,
    supervisor::{ChildSpec, SupervisorRef},
    users::UserService,
};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{cluster::Cluster, patience::Patience};
use crate::{
    config::{self, Config, Role, Roles},
    databases::Databases,
    migrate::Database,
    ownership::{Contact, Former, LastLife, LeaseSettings, Membership, Observer, Ownership},
    report::{Report, ServiceReport},
    routing::Routes,
};

/// How long a stop waits until the other nodes have what was served here; they take the rest when we have left.
const DRAIN_MAX: Duration = Duration::from_secs(6);

/// A service at work.
pub(super) struct Running<S: Service> {
    pub(super) runtime: Runtime<S>,
    part: Part,
}

/// What a node has to do with the shards of a service.
enum Part {
    /// It may own some.
    Member(Ownership),
    /// It only has to find them.
    Onlooker(Observer),
    /// There are no other nodes to find them on.
    None,
}

/// A service that only has to be stopped.
pub(super) type RunningService = Box<dyn Leaving>;

/// How a service ends.
pub(super) trait Leaving: Send {
    /// Gives its shards to the other nodes, and serves those that it still has.
    fn drain(&self) -> BoxFuture<'_, ()>;
    /// Answers what waits for a commit, gives up what is left, and signs off.
    fn stop(self: Box<Self>) -> BoxFuture<'static, ()>;
}

impl<S: Service> Leaving for Running<S> {
    fn drain(&self) -> BoxFuture<'_, ()> {
        async move {
            self.runtime.return_copies().await;
            if let Part::Member(ownership) = &self.part
                && !ownership.drain(DRAIN_MAX).await
            {
                // Nothing is lost by it: whoever leaves in order is not waited for.
                tracing::info!(service.name = S::NAME, "not all shards were handed over in time; the others take the rest");
            }
        }
        .boxed()
    }

    fn stop(self: Box<Self>) -> BoxFuture<'static, ()> {
        async move {
            // The lease lasts until the last commit has been answered.
            self.runtime.stop().await;
            if let Part::Member(ownership) = self.part {
                ownership.leave().await;
            }
        }
        .boxed()
    }
}

impl<S: Service> Running<S> {
    /// Whether this node may own shards of the service.
    pub(super) fn is_member(&self) -> bool {
        matches!(self.part, Part::Member(_))
    }

    /// Puts the service on the routes between nodes.
    fn connect(&self, routes: &Routes, tasks: &mut JoinSet<()>) {
        if let Some(contact) = self.contact() {
            routes.follow(S::NAME, contact, tasks);
        }
    }

    /// Where the shards are, if there are other nodes.
    pub(super) fn contact(&self) -> Option<Contact> {
        match &self.part {
            Part::Member(ownership) => Some(ownership.contact()),
            Part::Onlooker(observer) => Some(observer.contact()),
            Part::None => None,
        }
    }
}

/// All four.
pub(super) struct Started {
    pub(super) users: Running<UserService>,
    pub(super) posts: Running<PostService>,
    pub(super) comments: Running<CommentService>,
    pub(super) search: Running<SearchService>,
}

impl Started {
    /// The databases of all of them.
    pub(super) fn databases(&self) -> Vec<rookery_actors::runtime::Database> {
        let Self { users, posts, comments, search } = self;
        vec![
            users.runtime.database().clone(),
            posts.runtime.database().clone(),
            comments.runtime.database().clone(),
            search.runtime.database().clone(),
        ]
    }

    /// What the node says of itself, whenever it is asked.
    pub(super) fn look(
        &self,
        roles: &Roles,
        gateway: Option<String>,
        secrets: &KeyRing,
        started: Instant,
    ) -> impl Fn() -> Report + Clone + Send + Sync + 'static {
        let roles: Vec<String> = roles.iter().map(|role| role.to_string()).collect();
        let secrets = secrets.ids();
        let (users, posts) = (self.users.runtime.clone(), self.posts.runtime.clone());
        let (comments, search) = (self.comments.runtime.clone(), self.search.runtime.clone());
        move || {
            let services = [
                (UserService::NAME, ServiceReport::of(&users)),
                (PostService::NAME, ServiceReport::of(&posts)),
                (CommentService::NAME, ServiceReport::of(&comments)),
                (SearchService::NAME, ServiceReport::of(&search)),
            ];
            let ours = services.into_iter().filter(|(name, _)| roles.iter().any(|role| role == name));
            Report {
                roles: roles.clone(),
                gateway: gateway.clone(),
                pid: std::process::id(),
                uptime_s: started.elapsed().as_secs(),
                services: ours.map(|(name, report)| (name.to_owned(), report)).collect(),
                secrets: secrets.clone(),
            }
        }
    }

    /// Puts all of them on the routes; they are found, and find others, as long as the tasks run.
    pub(super) fn connect(&self, routes: &Routes) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        self.users.connect(routes, &mut tasks);
        self.posts.connect(routes, &mut tasks);
        self.comments.connect(routes, &mut tasks);
        self.search.connect(routes, &mut tasks);
        routes.watch_links(&mut tasks);
        tasks
    }
}

/// Starts the services; with `cluster`, they are asked from other nodes and find them.
pub(super) async fn start(
    config: &Config,
    databases: &Databases,
    data: &Path,
    tree: &SupervisorRef,
    cluster: Option<&Cluster>,
    patience: Patience,
) -> anyhow::Result<Started> {
    let (services, roles) = (&config.services, &config.node.roles);
    let place = |of, role, database| Place {
        of,
        member: roles.has(role),
        database: databases.config(database),
        data,
        tree,
        cluster,
        patience,
    };
    let (users, posts, comments, search) = tokio::try_join!(
        one(UserService::default(), place(&services.users, Role::Users, Database::Users), config),
        one(PostService::default(), place(&services.posts, Role::Posts, Database::Posts), config),
        one(CommentService::default(), place(&services.comments, Role::Comments, Database::Comments), config),
        one(SearchService::default(), place(&services.search, Role::Search, Database::Search), config),
    )?;
    Ok(Started { users, posts, comments, search })
}

/// Where one service runs, and as what.
struct Place<'a> {
    of: &'a config::Service,
    /// Whether it joins, and may own shards.
    member: bool,
    database: tokio_postgres::Config,
    data: &'a Path,
    tree: &'a SupervisorRef,
    cluster: Option<&'a Cluster>,
    patience: Patience,
}

/// Statements that load entities at the same time; more of them only wait for each other.
const LOADS: usize = 4;

/// How many loading statements are under way, and for how many entities each, so that no more than so many load at a time.
fn loads(entities_max: usize) -> (usize, usize) {
    let statements = entities_max.clamp(1, LOADS);
    (statements, (entities_max / statements).max(1))
}

async fn one<S: Service>(service: S, place: Place<'_>, config: &Config) -> anyhow::Result<Running<S>> {
    let Place { of, member, database, data, tree, cluster, patience } = place;
    let settings = Settings {
        shards: if S::NAME == SearchService::NAME { config.cluster.search_partitions } else { config.cluster.shards },
        cache_bytes: usize::try_from(of.cache_bytes)?,
        copies_bytes: usize::try_from(config.cluster.copies_bytes)?,
        passivate_after: config.entities.passivate_after,
        batch_units_max: config.committer.commands_max,
        batch_bytes_max: config.committer.bytes_max,
        loads_max: loads(of.loads_max).0,
        load_batch_max: loads(of.loads_max).1,
        pool: PoolSize { connections_max: of.pool_max, wait_max: Duration::from_secs(2) },
        ..Settings::default()
    };
    let runtime = Runtime::new(service, database, Incarnation(Uuid::new_v4()), settings);
    // A level of its own in the tree: its shards end with it.
    let supervisor = SupervisorRef::spawn_linked(S::NAME, Vec::<ChildSpec>::new(), tree.cell()).await?.0;
    runtime.start(supervisor.cell());
    let lease = LeaseSettings { ttl: config.lease.ttl, renew_every: config.lease.renew };
    // Before anything is served: whoever finds us can ask at once.
    if let Some(cluster) = cluster {
        cluster.routes.serve(&runtime);
    }
    let part = match cluster {
        _ if member => {
            let former = match of.database_url {
                // The private Postgres is reached by whoever holds the lock of the data folder.
                None => Former::Dead,
                Some(_) => Former::OnFolder(LastLife::of(data, S::NAME)),
            };
            Part::Member(patience.take(async || join(&runtime, config, lease, former.clone(), cluster).await).await?)
        }
        Some(_) => Part::Onlooker(Observer::start(runtime.database().clone(), S::NAME, lease)),
        None => Part::None,
    };
    Ok(Running { runtime, part })
}

async fn join<S: Service>(
    runtime: &Runtime<S>,
    config: &Config,
    lease: LeaseSettings,
    former: Former,
    cluster: Option<&Cluster>,
) -> anyhow::Result<Ownership> {
    let reader = runtime.clone();
    let lonely = Membership::new(config.node.name.as_str(), lease);
    let membership = Membership {
        address: cluster.map(|cluster| cluster.address.clone()),
        announce: cluster.map_or(lonely.announce, |cluster| Arc::new(cluster.routes.clone())),
        hand_offs: cluster.map_or(lonely.hand_offs, |cluster| Arc::clone(&cluster.hand_offs)),
        former,
        changed: Arc::new(move || reader.service().shards_changed()),
        ..lonely
    };
    Ownership::start(runtime.clone(), membership).await.with_context(|| format!("the {} service cannot begin to serve", S::NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was broken: it was four statements for 256 each, whatever the configuration said.
    #[test]
    fn no_more_entities_load_at_a_time_than_the_configuration_says() {
        for (entities_max, statements, each) in
            [(1, 1, 1), (3, 3, 1), (7, 4, 1), (64, 4, 16), (1_024, 4, 256), (10_000, 4, 2_500)]
        {
            assert_eq!(loads(entities_max), (statements, each), "{entities_max}");
            assert!(statements * each <= entities_max);
        }
    }
}
