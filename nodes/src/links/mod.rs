//! Links: how the nodes of a cluster ask each other.
//!
//! ractor_cluster carries every message, from our region to that of the other node; around it stands what it does not
//! have: who dials whom (`board.rs`), doors with deadlines and TLS (`door.rs`), a proof of the cluster's secret before
//! anything else (`greeting.rs`), heartbeats, credits, batches and deadlines (`link.rs`, `outbox.rs`), and an answer for
//! every request, also when the other node is gone.
//!
//! ```text
//!  request -> Link -> Outbox ~ pump -> region of the peer ══ ractor_cluster ══> our region -> Link -> Desk -> Handler
//! ```

mod assembly;
mod board;
mod calls;
mod config;
mod desk;
mod door;
mod envelope;
mod error;
mod greeting;
mod link;
mod meters;
mod outbox;
mod region;
mod sessions;
mod socket;
mod switchboard;
mod table;
mod tls;
mod wire;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::{
    net::TcpListener,
    sync::{
        mpsc::{UnboundedSender, unbounded_channel},
        oneshot, watch,
    },
    task::AbortHandle,
    time::timeout,
};
use uuid::Uuid;

pub use config::LinksConfig;
pub use envelope::BODY_BYTES_MAX;
pub use error::{LinkError, Lost, Refusal, StartError, Undelivered};
pub use greeting::LinkKeys;
pub use tls::{TlsError, TlsFiles};

use board::Board;
use door::Door;
use greeting::Instance;
use link::Link;
use sessions::Sessions;
use switchboard::{Event, Habits, Switchboard};
use table::Table;
use tls::Tls;

/// What answers the requests of other nodes.
pub trait Handler: Send + Sync + 'static {
    /// Works on a request. Dropped if it takes until its deadline: the other node does not wait longer.
    fn handle(&self, request: Request) -> BoxFuture<'static, Result<Bytes, Refusal>>;
}

/// What another node asks.
#[derive(Debug, Clone)]
pub struct Request {
    /// The name of the node that asks.
    pub peer: Arc<str>,
    /// Whom it asks for.
    pub service: u8,
    /// The question.
    pub body: Bytes,
    /// What else travels with it.
    pub meta: Meta,
}

/// What travels with a request besides its body.
#[derive(Debug, Clone)]
pub struct Meta {
    /// When the answer is of no use any more.
    pub deadline: Instant,
    /// How many nodes have passed it on.
    pub hops: u8,
    /// The epoch of the shard's owner, as the asking node knows it.
    pub epoch: u64,
    /// The id of the client's request; at most 255 bytes of it arrive.
    pub request_id: Arc<str>,
    /// The W3C trace context; at most 255 bytes of it arrive.
    pub traceparent: Arc<str>,
}

impl Meta {
    /// Nothing but a deadline.
    #[must_use]
    pub fn until(deadline: Instant) -> Self {
        Self { deadline, hops: 0, epoch: 0, request_id: Arc::default(), traceparent: Arc::default() }
    }
}

/// Where a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddress {
    /// Its configured name.
    pub name: String,
    /// `host:port`; a name is resolved anew at every attempt.
    pub address: String,
}

/// The peers of this node, by name.
pub type Peers = Arc<BTreeMap<String, PeerStatus>>;

/// How it stands with a peer.
#[derive(Clone)]
pub struct PeerStatus {
    /// Where it is, if that is ours to know.
    pub address: Option<String>,
    /// Which life of it we are linked to, if any.
    pub incarnation: Option<Uuid>,
    /// Since when.
    pub since: Option<Instant>,
    link: Option<Arc<Link>>,
}

impl PeerStatus {
    /// Whether it can be asked.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.link.is_some()
    }

    /// How long the last heartbeat took to come back, as of now.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        self.link.as_ref()?.round_trip()
    }

    /// Requests of ours that wait for answers, as of now.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.link.as_ref().map_or(0, |link| link.in_flight())
    }
}

/// What has changed is who is linked, and where; the rest moves all the time.
impl PartialEq for PeerStatus {
    fn eq(&self, other: &Self) -> bool {
        (&self.address, self.incarnation, self.since) == (&other.address, other.incarnation, other.since)
    }
}

impl fmt::Debug for PeerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (round_trip, in_flight) = (self.round_trip(), self.in_flight());
        f.debug_struct("PeerStatus")
            .field("address", &self.address)
            .field("incarnation", &self.incarnation)
            .field("since", &self.since)
            .field("round_trip", &round_trip)
            .field("in_flight", &in_flight)
            .finish()
    }
}

/// The links of this node. One set of them per process: the registries beneath are global.
#[derive(Clone)]
pub struct Links {
    me: Instance,
    address: Option<SocketAddr>,
    table: Arc<Table>,
    events: UnboundedSender<Event>,
    peers: watch::Receiver<Peers>,
    stopping: Arc<AtomicBool>,
    acceptor: Option<AbortHandle>,
}

impl Links {
    /// Begins to listen and to answer. Whom to dial, [`Links::set_peers`] tells.
    ///
    /// # Errors
    /// A port in use, files that make no TLS, or a second actor that other nodes could reach.
    pub async fn start(config: LinksConfig, handler: Arc<dyn Handler>) -> Result<Self, StartError> {
        let me = Instance { name: config.node.into(), incarnation: Uuid::new_v4() };
        let tls = config.tls.as_ref().map(Tls::load).transpose()?;
        let listener = match config.listen {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let address = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let (events, inbox) = unbounded_channel();
        let table = Arc::new(Table::default());
        let sessions = Sessions::start(&me, config.cookie, Arc::clone(&table), events.clone()).await?;
        let door = Door {
            me: me.clone(),
            keys: config.keys,
            tls,
            patience: config.handshake_timeout,
            // The heartbeats should be the first to notice.
            silence_max: config.heartbeat * (config.heartbeats_missed_max + 2),
        };
        let acceptor = listener
            .map(|listener| tokio::spawn(door.clone().accept(listener, config.connections_max, events.clone())).abort_handle());
        let (told, peers) = watch::channel(Peers::default());
        let stopping = Arc::new(AtomicBool::new(false));
        let switchboard = Switchboard {
            board: Board::new(Arc::clone(&me.name), config.dials_all, config.handshake_timeout),
            began: Instant::now(),
            door,
            opener: sessions.opener(),
            habits: Habits {
                heartbeat: config.heartbeat,
                heartbeats_missed_max: config.heartbeats_missed_max,
                in_flight_max: config.in_flight_max,
            },
            handler,
            stopping: Arc::clone(&stopping),
            table: Arc::clone(&table),
            events: events.clone(),
            peers: told,
            desks: HashMap::new(),
            attempts: HashMap::new(),
            waiting: HashMap::new(),
            lines: HashMap::new(),
        };
        tokio::spawn(switchboard.run(inbox, sessions));
        Ok(Self { me, address, table, events, peers, stopping, acceptor })
    }

    /// Who this life of the node is.
    #[must_use]
    pub fn incarnation(&self) -> Uuid {
        self.me.incarnation
    }

    /// Where other nodes reach us.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The nodes that there are; to be told again whenever that changes. This node may be among them.
    ///
    /// A link to a node that left the list stays until it ends, and is then not dialled again.
    pub fn set_peers(&self, peers: Vec<PeerAddress>) {
        let _ = self.events.send(Event::Peers(peers));
    }

    /// Asks another node.
    ///
    /// # Errors
    /// Each says what may be concluded, see [`LinkError::is_undone`].
    pub async fn request(&self, peer: &str, service: u8, body: Bytes, meta: Meta) -> Result<Bytes, LinkError> {
        match self.table.to(peer) {
            Some(link) => link.request(service, body, meta).await,
            None => Err(LinkError::Undelivered(Undelivered::NotLinked)),
        }
    }

    /// Who is linked; changes when a link comes or goes, or an address does.
    #[must_use]
    pub fn peers(&self) -> watch::Receiver<Peers> {
        self.peers.clone()
    }

    /// Waits until the links are gone, by [`Links::stop`] or because what carries them has died: the node is of no use to
    /// others then.
    pub async fn ended(&self) {
        let mut peers = self.peers.clone();
        while peers.changed().await.is_ok() {}
    }

    /// Refuses new work, waits up to `patience` until what is under way has been answered, then ends all links.
    pub async fn stop(&self, patience: Duration) {
        switchboard::refuse_work(&self.stopping);
        if let Some(acceptor) = &self.acceptor {
            acceptor.abort();
        }
        let _ = timeout(patience, self.settled()).await;
        let (done, stopped) = oneshot::channel();
        if self.events.send(Event::Stop(done)).is_ok() {
            let _ = stopped.await;
        }
    }

    async fn settled(&self) {
        /// Short beside a drain, long beside a batch.
        const LOOK_EVERY: Duration = Duration::from_millis(5);
        let linked: Vec<_> = self.peers.borrow().values().filter_map(|peer| peer.link.clone()).collect();
        while !linked.iter().all(|link| link.is_settled()) {
            for link in &linked {
                link.ask_for_confirmation();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}
