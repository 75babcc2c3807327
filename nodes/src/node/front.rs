//! The gateway of a node that has the role: keys, edge and routes, and the supervised actor that serves them.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use anyhow::Context;
use metrics_exporter_prometheus::PrometheusHandle;
use ractor::Actor;
use rookery_actors::{
    secret::KeyRing,
    supervisor::{ChildSpec, SupervisorRef},
    users::keys::{self, SigningKeys},
};
use rookery_gateway::{
    Gateway, GatewayConfig, Parts, Service, Services,
    actor::Arguments,
    auth::{self, RevokedSessions, Verifier},
    chain::Edge,
    health::Health,
    issuer::Issuer,
    limits::{Allowance, Quotas},
    routes::{self, Api},
    server::Socket,
};
use secrecy::ExposeSecret;
use tokio::task::JoinHandle;

use super::{Faces, events::Events, janitor, patience::Patience, services::Started};
use crate::{
    config::{Config, Rate, Rates},
    user_news,
};

/// Time for the requests in flight when it stops: less than a supervisor gives its child.
const FINISH_WITHIN: Duration = Duration::from_secs(4);

/// The child of the node's tree that serves HTTP.
const CHILD: &str = "gateway";

/// All that a gateway is made of, before it listens.
pub(super) struct Front {
    /// In front of the services; for health.
    pub(super) breakers: Arc<Services>,
    edge: Arc<Edge>,
    api: Api,
    verifier: Arc<Verifier>,
    issuer: Arc<Issuer>,
    user_news: JoinHandle<()>,
}

impl Front {
    pub(super) async fn new(
        config: &Config,
        faces: &Faces,
        services: &Started,
        events: &Events,
        secrets: &KeyRing,
        patience: Patience,
    ) -> anyhow::Result<Self> {
        let users = &services.users.runtime;
        let keys = patience.take(async || SigningKeys::load_or_create(users.database(), secrets).await).await?;
        let revoked = Arc::new(RevokedSessions::of_tokens(config.tokens.access_ttl));
        let verifier = Arc::new(Verifier::new(&config.tokens.issuer, &config.tokens.audience, 10_000, Arc::clone(&revoked)));
        let (posts, comments) = (services.posts.runtime.clone(), services.comments.runtime.clone());
        let listeners = user_news::Listeners { revoked, posts, comments };
        let follow = async || user_news::follow(users, Arc::clone(&events.embedded), listeners.clone()).await;
        let user_news = patience.take(follow).await?;
        let settings = settings(config)?;
        let issuer = Arc::new(Issuer::new(signer(&keys)?, &settings));
        install(&keys, &verifier, &issuer)?;
        let breakers = Arc::new(Services::new(Default::default()).unserved_if(unserved(services)));
        let edge = Edge::new(settings, Arc::clone(&verifier));
        let faces = routes::Faces {
            users: faces.users.clone(),
            posts: faces.posts.clone(),
            comments: faces.comments.clone(),
            search: faces.search.clone(),
        };
        let api = Api::new(faces, Arc::clone(&breakers), Arc::clone(&issuer), secrets);
        let front = Self { breakers, edge, api, verifier, issuer, user_news };
        janitor::follow_keys(users.clone(), secrets.clone(), front.keys_changed());
        Ok(front)
    }

    /// Starts the actor on a bound socket.
    pub(super) async fn listen(
        self,
        socket: Socket,
        tree: &SupervisorRef,
        administration: axum::Router,
        health: Arc<dyn Health>,
        metrics: PrometheusHandle,
    ) -> anyhow::Result<Listening> {
        let parts = Parts { api: routes::router(self.api), admin: administration, health, metrics: metrics.clone() };
        let router = rookery_gateway::build(&self.edge, parts)?;
        let arguments = Arguments { socket: socket.clone(), router, edge: Arc::clone(&self.edge), metrics };
        let child = ChildSpec::new(CHILD, move |supervisor| {
            let arguments = arguments.clone();
            async move {
                let (gateway, _) = Actor::spawn_linked(None, Gateway, arguments, supervisor).await?;
                Ok(gateway.get_cell())
            }
        });
        tree.start_child(child).await?;
        Ok(Listening { tree: tree.clone(), socket, edge: self.edge, user_news: self.user_news })
    }

    /// What signs and verifies with other keys from now on.
    pub(super) fn keys_changed(&self) -> impl Fn(&SigningKeys) + Send + Sync + 'static {
        let (verifier, issuer) = (Arc::clone(&self.verifier), Arc::clone(&self.issuer));
        move |keys| {
            if let Err(error) = install(keys, &verifier, &issuer) {
                tracing::error!(%error, "the signing keys cannot be used");
            }
        }
    }
}

/// A gateway at work.
pub(super) struct Listening {
    tree: SupervisorRef,
    socket: Socket,
    edge: Arc<Edge>,
    user_news: JoinHandle<()>,
}

impl Listening {
    /// Goes on serving, and asks clients to come back over other connections.
    pub(super) fn leave(&self) {
        self.edge.leave();
    }

    /// Refuses new connections and finishes the requests in flight.
    pub(super) async fn stop(self) {
        self.socket.close();
        if let Err(error) = self.tree.stop_child(CHILD).await {
            tracing::debug!(%error, "the gateway had stopped already");
        }
        self.user_news.abort();
    }
}

/// Says whether nobody serves a service.
fn unserved(services: &Started) -> impl Fn(Service) -> bool + Send + Sync + 'static {
    let (users, posts) = (services.users.runtime.clone(), services.posts.runtime.clone());
    let (comments, search) = (services.comments.runtime.clone(), services.search.runtime.clone());
    move |service| match service {
        Service::Users => users.is_unserved(),
        Service::Posts => posts.is_unserved(),
        Service::Comments => comments.is_unserved(),
        Service::Search => search.is_unserved(),
    }
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

fn settings(config: &Config) -> anyhow::Result<GatewayConfig> {
    let of = &config.gateway;
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
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
        drain_timeout_ms: millis(FINISH_WITHIN),
        connections_max: of.connections_max,
        requests_max: of.concurrency_max,
        rate_limits: of.rate_limits,
        cors_origins: of.cors_origins.iter().map(ToString::to_string).collect(),
        token_issuer: config.tokens.issuer.clone(),
        token_audience: config.tokens.audience.clone(),
        token_life_s: u32::try_from(config.tokens.access_ttl.as_secs()).context("access tokens live for a day at most")?,
        quotas: Quotas { auth: allowance(auth)?, read: allowance(read)?, write: allowance(write)?, search: allowance(search)? },
        trusted_proxies: of.trusted_proxies.clone(),
        ..GatewayConfig::default()
    })
}
