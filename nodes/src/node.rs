//! One running node: the start list is the architecture.
//!
//! Everything starts in the order in which it is needed and stops in the reverse order: the gateway drains, Kafka gets
//! what it has not got, the bridges end, the committers answer what waits, the shards are given up, the database goes last.

pub(crate) mod address;
mod cluster;
mod events;
mod front;
mod health;
mod janitor;
mod patience;
mod services;

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures_util::future::{BoxFuture, FutureExt, join_all};
use metrics_exporter_prometheus::PrometheusHandle;
use rookery_actors::{
    comments::Comments,
    entity::Failure,
    event::Topic,
    posts::Posts,
    runtime,
    search::SearchFace,
    secret::KeyRing,
    supervisor::SupervisorRef,
    users::{
        Users,
        erased::NameHasher,
        keys::Overlap,
        password::{Hasher, HasherConfig},
        session::Lifetime,
        token::RefreshTokens,
    },
};
use rookery_gateway::server::Socket;
use tokio::task::JoinHandle;

use self::{
    cluster::Cluster,
    events::Events,
    front::{Front, Listening},
    health::NodeHealth,
    patience::Patience,
    services::RunningService,
};
use crate::{
    admin::{self, About, Admin, AdminPort, KeysChanged},
    bridge::{Bridge, RunningBridge},
    config::{Config, Role},
    connections,
    databases::Databases,
    migrate::Database,
    pins,
    postgres::DataDir,
    rebuild::Rebuilder,
    report::Reporter,
    secret,
};

/// A stop takes no longer, the private Postgres aside.
const STOP_WITHIN: Duration = Duration::from_secs(14);

/// A node in the roles that it was given.
pub struct Node {
    /// The effective configuration.
    pub config: Config,
    /// The faces of the services.
    pub faces: Faces,
    /// Where the gateway listens, if the node has that role.
    pub gateway: Option<SocketAddr>,
    /// Where the health of its services can be asked.
    pub health_ports: Vec<(Role, SocketAddr)>,
    /// What the node is made of, for status.
    pub started: Instant,
    data: DataDir,
    health: Arc<NodeHealth>,
    tree: SupervisorRef,
    databases: Databases,
    cluster: Option<cluster::Running>,
    front: Option<Listening>,
    users: RunningService,
    posts: RunningService,
    comments: RunningService,
    search: RunningService,
    bridges: Arc<Vec<NamedBridge>>,
    admin: AdminPort,
    events: Events,
    reporter: Reporter,
    settling: JoinHandle<()>,
    ports: health::Serving,
}

/// The public faces of the four services.
#[derive(Clone)]
pub struct Faces {
    /// Accounts, sessions, follows.
    pub users: Users,
    /// Posts and lists.
    pub posts: Posts,
    /// Comment threads.
    pub comments: Comments,
    /// Documents and indexes.
    pub search: SearchFace,
}

/// One topic on its way into one service.
pub struct NamedBridge {
    /// The publisher's log.
    pub topic: Topic,
    /// Who reads it.
    pub consumer: &'static str,
    /// The bridge.
    pub bridge: RunningBridge,
}

/// Why a node, or several, cannot go on.
pub(crate) const POSTGRES_GONE: &str = "the private Postgres has died and does not start again; its log says why";

impl Node {
    /// Starts everything and returns when the node serves.
    ///
    /// # Errors
    /// The first thing that could not be started; what was started before it is stopped again.
    pub async fn start(mut config: Config, metrics: PrometheusHandle) -> anyhow::Result<Self> {
        let started = Instant::now();
        let roles = &config.node.roles.clone();
        let data = DataDir::lock(&config.data_dir)?;
        if config.is_alone() {
            tell_of_new(&data);
        }
        let secrets = secret::of(&config, data.path())?;
        // The sockets first: a port in use is found before anything else is started, and nobody is refused later.
        let socket = match roles.has(Role::Gateway) {
            true => Some(named(config.gateway.listen, "gateway", Socket::bind(config.gateway.listen))?),
            false => None,
        };
        let gateway = socket.as_ref().map(Socket::local_addr).transpose()?;
        let ports = health::Ports::bind(&config)?;
        let health_ports = ports.addresses()?;

        let databases = Databases::open(&config, &data).await?;
        databases.ready().await?;
        let (tree, _) = SupervisorRef::spawn("node", Vec::new()).await?;
        let patience = Patience::begin();
        patience.take(async || pins::agree(&config, &databases).await).await?;
        let smaller = patience.take(async || connections::check(&config, &databases, 1).await).await?;
        connections::limit(&mut config, &smaller);
        let few = runtime::PoolSize { connections_max: connections::FOR_SECRETS, ..runtime::PoolSize::default() };
        let users = Arc::new(runtime::Database::new(databases.config(Database::Users), "rookery-secrets", few));
        let name = config.node.name.to_string();
        let cookie = patience.take(async || secret::settle(&secrets, &users, &name).await).await?;
        let settling = secret::follow(secrets.clone(), users, name.clone());
        // The one thing that outlives every secret; hashes that are kept need such a key.
        let names = NameHasher::new(&cookie);
        let cluster = Cluster::start(&config, &databases, &secrets, cookie).await?;
        let services = services::start(&config, &databases, data.path(), &tree, cluster.as_ref(), patience).await?;
        let reached = gateway.map(|bound| address::of_gateway(bound, cluster.as_ref().map(|cluster| &*cluster.address)));
        let cluster = cluster.map(|cluster| cluster.running(&services));

        let events = Events::start(&config.kafka, roles, &services);
        let bridges = Arc::new(bridges(&services, &events));
        let faces = faces(&config, &secrets, names, &services, data.path()).await?;

        let front = match socket {
            Some(socket) => Some((Front::new(&config, &faces, &services, &events, &secrets, patience).await?, socket)),
            None => None,
        };
        let breakers = front.as_ref().map(|(front, _)| Arc::clone(&front.breakers));
        let keys_changed: KeysChanged = match &front {
            Some((front, _)) => Box::new(front.keys_changed()),
            None => Box::new(|_| ()),
        };
        let look = services.look(roles, reached, &secrets, started);
        let reporter = Reporter::start(services.databases(), name.clone(), look.clone());
        let about = About { name, look: Arc::new(look) };
        let overlap = Overlap::of_tokens(config.tokens.access_ttl);
        let admin = Arc::new(Admin::new(about, faces.clone(), Arc::clone(&bridges), secrets, keys_changed, overlap));
        let reindex = {
            let admin = Arc::clone(&admin);
            Box::new(move || reindex(Arc::clone(&admin)))
        };
        let rebuilder = Rebuilder::new(faces.clone(), Arc::clone(&bridges), reindex);
        janitor::rebuild(rebuilder, services.search.runtime.clone());
        let administration = admin::router(admin);
        let routes = cluster.as_ref().map(|cluster| cluster.routes().clone());
        let health = Arc::new(
            NodeHealth::new(started, &config, &services, &bridges, breakers, tree.clone(), events.health()).over(routes),
        );
        let front = match front {
            Some((front, socket)) => {
                Some(front.listen(socket, &tree, administration.clone(), health.clone(), metrics.clone()).await?)
            }
            None => None,
        };
        janitors(&config, &services, &faces, &events);
        let admin = AdminPort::open(administration, data.path())?;
        let ports = ports.serve(&health, &metrics)?;

        let services::Started { users, posts, comments, search } = services;
        Ok(Self {
            config,
            faces,
            gateway,
            health_ports,
            health,
            started,
            data,
            tree,
            databases,
            cluster,
            front,
            users: Box::new(users),
            posts: Box::new(posts),
            comments: Box::new(comments),
            search: Box::new(search),
            bridges,
            admin,
            events,
            reporter,
            settling,
            ports,
        })
    }

    /// Where the node keeps its files.
    pub fn data_dir(&self) -> &DataDir {
        &self.data
    }

    /// The bridges, for status.
    pub fn bridges(&self) -> &Arc<Vec<NamedBridge>> {
        &self.bridges
    }

    /// Ends when the node cannot go on, with what to say of it: a private Postgres that died and could not be brought back,
    /// links whose actors are gone, a service that gave up because it failed again and again.
    pub async fn failed(&self) -> String {
        let Faces { users, posts, comments, search } = &self.faces;
        let service = tokio::select! {
            () = self.databases.watch() => {
                return POSTGRES_GONE.to_owned();
            }
            () = cluster::failed(self.cluster.as_ref()) => {
                return "the links to other nodes have ended; the log says why".to_owned();
            }
            () = users.runtime().failed() => "users",
            () = posts.runtime().failed() => "posts",
            () = comments.runtime().failed() => "comments",
            () = search.runtime().failed() => "search",
        };
        format!("{service} gave up on this node; the log says why")
    }

    /// Stops in order; what was acknowledged is in the database. Takes less than 15 s, and what was not done by then, the
    /// other nodes do; the private Postgres of a node that is alone may take longer for its last checkpoint.
    pub async fn stop(self) {
        // First of all, and at once: whoever looks whether we are ready looks elsewhere from now on.
        self.health.leave();
        self.reporter.drain();
        self.settling.abort();
        self.admin.close();
        let (is_alone, grace) = (self.config.is_alone(), self.config.gateway.drain);
        let services = [self.users, self.posts, self.comments, self.search];
        let in_order = async {
            if let Some(front) = self.front {
                if !is_alone {
                    front.leave();
                    tokio::time::sleep(grace).await;
                }
                front.stop().await;
            }
            self.events.flush().await;
            // The other nodes ask us for what they do not have yet: all that serves them stays until they have it.
            join_all(services.iter().map(|service| service.drain())).await;
            for bridge in self.bridges.iter() {
                bridge.bridge.stop();
            }
            self.events.stop().await;
            join_all(services.into_iter().map(|service| service.stop())).await;
            self.faces.search.closed().await;
            self.reporter.leave().await;
            if let Some(cluster) = self.cluster {
                cluster.stop().await;
            }
            self.tree.stop().await;
        };
        if tokio::time::timeout(STOP_WITHIN, in_order).await.is_err() {
            tracing::warn!("did not get everything done in {} s, and stops all the same", STOP_WITHIN.as_secs());
        }
        self.ports.stop();
        self.databases.stop().await;
        drop(self.data);
    }
}

/// Says that a folder holds nothing yet: a start in another place than usual has lost nothing.
pub(crate) fn tell_of_new(data: &DataDir) {
    if data.is_new() {
        tracing::info!("began the new data folder {}", data.path().display());
    }
}

/// The search documents anew, where nobody watches.
fn reindex(admin: Arc<Admin>) -> BoxFuture<'static, Result<(), Failure>> {
    async move { admin::reindex::unwatched(&admin).await }.boxed()
}

/// Says which address is not to be had, and where another is chosen.
fn named<T>(address: SocketAddr, section: &str, bound: io::Result<T>) -> anyhow::Result<T> {
    bound.with_context(|| {
        let variable = section.to_uppercase().replace('.', "__");
        format!(
            "cannot listen on {address}: set another `listen` in [{section}] of the configuration, or ROOKERY__{variable}__LISTEN"
        )
    })
}

fn bridges(services: &services::Started, events: &Events) -> Vec<NamedBridge> {
    let services::Started { users, posts, comments, search } = services;
    let shards = users.runtime.shards();
    let mut bridges = Vec::new();
    macro_rules! bridge {
        ($($from:ident $topic:ident => $($to:ident),+;)+) => {$($(
            // Into shards that may be ours.
            if $to.is_member() {
                bridges.push(NamedBridge {
                    topic: Topic::$topic,
                    consumer: stringify!($to),
                    bridge: Bridge::start(
                        $to.runtime.clone(),
                        events.log(stringify!($to)),
                        Arc::new($from.runtime.clone()),
                        Topic::$topic,
                        shards,
                    ),
                });
            }
        )+)+};
    }
    // Who reads whom: names and follows, counts, closed threads, documents.
    bridge! {
        users Users => users, posts, comments, search;
        posts Posts => users, comments, search;
        comments Comments => users, posts, search;
    }
    bridges
}

async fn faces(
    config: &Config,
    secrets: &KeyRing,
    names: NameHasher,
    services: &services::Started,
    data: &std::path::Path,
) -> anyhow::Result<Faces> {
    let hasher = Hasher::start(HasherConfig::default())?;
    let tokens = RefreshTokens::new(secrets);
    let idle = jiff::SignedDuration::try_from(config.tokens.refresh_ttl)?;
    let lifetime = Lifetime { idle, ..Lifetime::default() };
    let users = Users::new(services.users.runtime.clone(), hasher, tokens, names, lifetime);
    let posts = Posts::new(services.posts.runtime.clone());
    let comments = Comments::new(services.comments.runtime.clone());
    let search = match services.search.is_member() {
        true => SearchFace::open(services.search.runtime.clone(), config.node.name.as_str(), &data.join("search")).await?,
        false => SearchFace::without_replicas(services.search.runtime.clone()).await?,
    };
    Ok(Faces { users, posts, comments, search })
}

/// What is looked after once in a while, by those who own it.
fn janitors(config: &Config, services: &services::Started, faces: &Faces, events: &Events) {
    let services::Started { users, posts, comments, search } = services;
    if users.is_member() {
        let consumers = vec!["users", "posts", "comments", "search"];
        let retention = janitor::retention_of_users(consumers, events.is_kafka(), config.tokens.access_ttl);
        janitor::start(users.runtime.clone(), retention);
        janitor::sweep(faces.users.clone());
    }
    if posts.is_member() {
        janitor::start(posts.runtime.clone(), janitor::retention(vec!["users", "comments", "search"], events.is_kafka()));
        janitor::count_tags(faces.posts.clone());
    }
    if comments.is_member() {
        janitor::start(comments.runtime.clone(), janitor::retention(vec!["users", "posts", "search"], events.is_kafka()));
        janitor::sweep_threads(faces.comments.clone());
    }
    let likes = (posts.is_member().then(|| faces.posts.clone()), comments.is_member().then(|| faces.comments.clone()));
    janitor::take_back_likes(likes.0, likes.1);
    if search.is_member() {
        janitor::start(search.runtime.clone(), janitor::retention(Vec::new(), false));
    }
}
