//! One running node: the start list is the architecture.
//!
//! Everything starts in the order in which it is needed and stops in the reverse order: the gateway drains, the
//! bridges end, the committers answer what waits, the shards are given up, the database goes last.

mod events;
mod health;
mod janitor;
mod revocations;
mod secret;
mod services;

use std::{net::SocketAddr, num::NonZeroU32, sync::Arc, time::Instant};

use anyhow::Context;
use ractor::Actor;
use rookery_actors::{
    comments::Comments,
    event::Topic,
    posts::Posts,
    search::SearchFace,
    secret::ClusterSecret,
    supervisor::{ChildSpec, SupervisorRef},
    users::{
        Users,
        keys::{self, SigningKeys},
        password::{Hasher, HasherConfig},
        session::Lifetime,
        token::RefreshTokens,
    },
};
use rookery_gateway::{
    Gateway, GatewayConfig, Parts,
    actor::Arguments,
    auth::{self, RevokedSessions, Verifier},
    chain::Edge,
    issuer::Issuer,
    limits::{Allowance, Quotas},
    routes::{self, Api},
    server,
};
use secrecy::ExposeSecret;

use self::{
    events::Events,
    health::NodeHealth,
    services::{Databases, RunningService},
};
use crate::{
    admin::{self, About, Admin, AdminPort},
    bridge::{Bridge, RunningBridge},
    config::{Config, Rate, Rates},
    postgres::DataDir,
};

/// A node with all its roles.
pub struct Node {
    /// The effective configuration.
    pub config: Config,
    /// The faces of the services.
    pub faces: Faces,
    /// Where the gateway listens.
    pub gateway: SocketAddr,
    /// What the node is made of, for status.
    pub started: Instant,
    data: DataDir,
    tree: SupervisorRef,
    databases: Databases,
    users: RunningService,
    posts: RunningService,
    comments: RunningService,
    search: RunningService,
    bridges: Arc<Vec<NamedBridge>>,
    admin: AdminPort,
    events: Events,
    revocations: tokio::task::JoinHandle<()>,
    ports: Vec<tokio::task::JoinHandle<()>>,
    stop_ports: tokio::sync::watch::Sender<bool>,
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

impl Node {
    /// Starts everything and returns when the gateway answers.
    ///
    /// # Errors
    /// The first thing that could not be started; what was started before it is stopped again.
    pub async fn start(config: Config, metrics: metrics_exporter_prometheus::PrometheusHandle) -> anyhow::Result<Self> {
        let started = Instant::now();
        let data = DataDir::lock(&config.data_dir)?;
        let secret = secret::of(&config, data.path())?;
        // The socket first: a port in use is found before anything else is started, and nobody is refused later.
        let listener = Arc::new(server::bind(config.gateway.listen)?);
        let gateway = listener.local_addr()?;

        let databases = Databases::open(&config, &data).await?;
        let (tree, _) = SupervisorRef::spawn("node", Vec::new()).await?;
        let services = services::start(&config, &databases, &tree).await?;

        let events = Events::start(&config.kafka, &services);
        let bridges = Arc::new(bridges(&services, &events));
        let faces = faces(&config, &secret, &services, data.path()).await?;

        let keys = SigningKeys::load_or_create(services.users.runtime.database(), &secret).await?;
        let revoked = Arc::new(RevokedSessions::default());
        let verifier = Arc::new(Verifier::new(&config.tokens.issuer, &config.tokens.audience, 10_000, revoked));
        let revocations =
            revocations::start(&services.users.runtime, Arc::clone(&events.embedded), Arc::clone(&verifier)).await?;
        let settings = gateway_config(&config)?;
        let issuer = Arc::new(Issuer::new(signer(&keys)?, &settings));
        install(&keys, &verifier, &issuer)?;
        let breakers = Arc::new(rookery_gateway::Services::new(Default::default()));
        let edge = Edge::new(settings, Arc::clone(&verifier));
        let gateway_faces = routes::Faces {
            users: faces.users.clone(),
            posts: faces.posts.clone(),
            comments: faces.comments.clone(),
            search: faces.search.clone(),
        };
        let api = Api::new(gateway_faces, Arc::clone(&breakers), Arc::clone(&issuer), &secret);
        let health = Arc::new(NodeHealth::new(started, &services, &bridges, breakers, tree.clone(), events.probe()));
        let about = About {
            name: config.node.name.to_string(),
            roles: config.node.roles.iter().map(|role| role.to_string()).collect(),
            gateway,
            started,
        };
        let install = move |keys: &SigningKeys| {
            if let Err(error) = install(keys, &verifier, &issuer) {
                tracing::error!(%error, "the signing keys cannot be used");
            }
        };
        janitor::follow_keys(services.users.runtime.clone(), secret.clone(), install.clone());
        let administration =
            admin::router(Arc::new(Admin::new(about, faces.clone(), Arc::clone(&bridges), secret, Box::new(install))));
        let parts =
            Parts { api: routes::router(api), admin: administration.clone(), health: health.clone(), metrics: metrics.clone() };
        let router = rookery_gateway::build(&edge, parts)?;
        let arguments = Arguments { listener, router, edge, metrics: metrics.clone() };
        tree.start_child(ChildSpec::new("gateway", move |supervisor| {
            let arguments = arguments.clone();
            async move {
                let (gateway, _) = Actor::spawn_linked(None, Gateway, arguments, supervisor).await?;
                Ok(gateway.get_cell())
            }
        }))
        .await?;
        janitor::start(services.users.runtime.clone(), vec!["users", "posts", "comments", "search"], events.is_kafka());
        janitor::start(services.posts.runtime.clone(), vec!["users", "comments", "search"], events.is_kafka());
        janitor::start(services.comments.runtime.clone(), vec!["users", "posts", "search"], events.is_kafka());
        janitor::start(services.search.runtime.clone(), Vec::new(), false);
        janitor::sweep(faces.users.clone());
        let admin = AdminPort::open(administration, data.path())?;
        let (stop_ports, stopped) = tokio::sync::watch::channel(false);
        let ports = health::ports(&config, &health, &metrics, &stopped)?;

        let services::Started { users, posts, comments, search } = services;
        Ok(Self {
            config,
            faces,
            gateway,
            started,
            data,
            tree,
            databases,
            users: users.erase(),
            posts: posts.erase(),
            comments: comments.erase(),
            search: search.erase(),
            bridges,
            admin,
            events,
            revocations,
            ports,
            stop_ports,
        })
    }

    /// Where the node keeps its files.
    pub fn data_dir(&self) -> &std::path::Path {
        self.data.path()
    }

    /// The bridges, for status.
    pub fn bridges(&self) -> &Arc<Vec<NamedBridge>> {
        &self.bridges
    }

    /// Ends when the private Postgres has died and could not be brought back.
    pub async fn failed(&self) {
        self.databases.watch().await;
    }

    /// Stops in order; what was acknowledged is in the database.
    pub async fn stop(self) {
        self.admin.close();
        self.tree.stop().await;
        self.stop_ports.send_replace(true);
        self.revocations.abort();
        for bridge in self.bridges.iter() {
            bridge.bridge.stop();
        }
        self.events.stop().await;
        tokio::join!(self.search.stop(), self.comments.stop(), self.posts.stop(), self.users.stop());
        self.faces.search.closed().await;
        for port in self.ports {
            port.abort();
        }
        self.databases.stop().await;
        drop(self.data);
    }
}

fn bridges(services: &services::Started, events: &Events) -> Vec<NamedBridge> {
    let services::Started { users, posts, comments, search } = services;
    let shards = users.runtime.shards();
    let mut bridges = Vec::new();
    macro_rules! bridge {
        ($($from:ident $topic:ident => $($to:ident),+;)+) => {$($(
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
    secret: &ClusterSecret,
    services: &services::Started,
    data: &std::path::Path,
) -> anyhow::Result<Faces> {
    let hasher = Hasher::start(HasherConfig::default())?;
    let tokens = RefreshTokens::new(secret);
    let idle = jiff::SignedDuration::try_from(config.tokens.refresh_ttl)?;
    let lifetime = Lifetime { idle, ..Lifetime::default() };
    let users = Users::new(services.users.runtime.clone(), hasher, tokens, lifetime);
    let posts = Posts::new(services.posts.runtime.clone());
    let comments = Comments::new(services.comments.runtime.clone());
    let search = SearchFace::open(services.search.runtime.clone(), &data.join("search")).await?;
    Ok(Faces { users, posts, comments, search })
}

/// The key that signs now.
fn signer(keys: &SigningKeys) -> anyhow::Result<auth::SigningKey> {
    let key = keys.signing(jiff::Timestamp::now()).context("no key may sign access tokens yet")?;
    for_gateway(key)
}

/// Signs and verifies with other keys from now on.
fn install(keys: &SigningKeys, verifier: &Verifier, issuer: &Issuer) -> anyhow::Result<()> {
    verifier.set_keys(published(keys)?);
    issuer.set_key(signer(keys)?);
    Ok(())
}

/// The keys with which tokens are verified.
fn published(keys: &SigningKeys) -> anyhow::Result<Vec<auth::PublicKey>> {
    keys.published(jiff::Timestamp::now()).map(|key| Ok(for_gateway(key)?.public())).collect()
}

fn for_gateway(key: &keys::SigningKey) -> anyhow::Result<auth::SigningKey> {
    Ok(auth::SigningKey::from_pkcs8(key.kid.clone(), key.pkcs8.expose_secret())?)
}

fn gateway_config(config: &Config) -> anyhow::Result<GatewayConfig> {
    let of = &config.gateway;
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let allowance = |rate: Rate| {
        let positive = |count| NonZeroU32::new(count).context("a rate of zero allows nothing");
        anyhow::Ok(Allowance { per_minute: positive(rate.per_minute)?, burst: positive(rate.burst)? })
    };
    let Rates { auth, read, write, search } = of.rates;
    Ok(GatewayConfig {
        listen: of.listen,
        body_limit_bytes: of.body_limit_bytes,
        request_timeout_ms: millis(of.request_timeout),
        header_timeout_ms: millis(of.header_timeout),
        connections_max: of.connections_max,
        requests_max: of.concurrency_max,
        rate_limits: of.rate_limits,
        cors_origins: of.cors_origins.iter().map(ToString::to_string).collect(),
        token_issuer: config.tokens.issuer.clone(),
        token_audience: config.tokens.audience.clone(),
        quotas: Quotas { auth: allowance(auth)?, read: allowance(read)?, write: allowance(write)?, search: allowance(search)? },
        trusted_proxies: of.trusted_proxies.iter().map(|network| network.to_string().parse()).collect::<Result<_, _>>()?,
        ..GatewayConfig::default()
    })
}
