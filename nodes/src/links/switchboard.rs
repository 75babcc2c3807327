//! The switchboard: the one task that begins and ends links. The [`Board`] decides, this does.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rookery_actors::episodes::{self, with_causes};
use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender},
        oneshot, watch,
    },
    task::AbortHandle,
    time::{sleep_until, timeout},
};

use super::{
    Handler, PeerAddress, PeerStatus, Peers,
    board::{Action, Board},
    desk::Desk,
    door::{Connection, Door, DoorError},
    envelope::Layout,
    greeting::{self, Met, Rejection},
    link::{Fault, Link},
    sessions::{Opener, Session, Sessions, label},
    table::Table,
    wire::{Cut, Wire},
};

/// What is logged of a node that cannot be dialled.
const UNREACHABLE: &str = "the node cannot be reached";

/// What the switchboard hears.
pub(super) enum Event {
    /// Who is in the cluster.
    Peers(Vec<PeerAddress>),
    /// An attempt of ours ended.
    Dialled { peer: Arc<str>, attempt: u64, result: Result<Connection, DoorError> },
    /// Somebody wants a link.
    Knock(Connection),
    /// ractor_cluster has made a session of a stream.
    Opened { token: u64, session: Session },
    /// The session knows the other region.
    Ready { token: u64 },
    /// The session is over.
    Ended { token: u64 },
    /// A link is of no use any more.
    Faulty { token: u64, fault: Fault },
    /// Stop, and say when that is done.
    Stop(oneshot::Sender<()>),
}

/// How links behave.
pub(super) struct Habits {
    pub(super) heartbeat: Duration,
    pub(super) heartbeats_missed_max: u32,
    pub(super) in_flight_max: usize,
}

/// The task and all that it knows.
pub(super) struct Switchboard {
    pub(super) board: Board,
    /// Zero of the board's clock.
    pub(super) began: Instant,
    pub(super) door: Door,
    pub(super) opener: Opener,
    pub(super) habits: Habits,
    pub(super) handler: Arc<dyn Handler>,
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) table: Arc<Table>,
    pub(super) events: UnboundedSender<Event>,
    pub(super) peers: watch::Sender<Peers>,
    pub(super) desks: HashMap<Arc<str>, Arc<Desk>>,
    pub(super) attempts: HashMap<u64, AbortHandle>,
    /// Greeted and waiting for the board's word.
    pub(super) waiting: HashMap<u64, Connection>,
    pub(super) lines: HashMap<u64, Line>,
}

/// A session, from the moment its stream is handed over.
pub(super) struct Line {
    link: Arc<Link>,
    cut: Cut,
    session: Option<Session>,
    /// Since when it can be asked.
    since: Option<Instant>,
}

impl Switchboard {
    /// Works until it is told to stop, or the actors beneath are gone.
    pub(super) async fn run(mut self, mut inbox: UnboundedReceiver<Event>, mut sessions: Sessions) {
        let mut stopped = None;
        loop {
            let due = self.board.due().map(|due| self.began + due);
            let event = tokio::select! {
                event = inbox.recv() => event.expect("the switchboard holds a sender itself"),
                () = sleep_until(due.unwrap_or_else(far_away).into()), if due.is_some() => {
                    let actions = self.board.tick(self.now(), rand::random());
                    self.act(actions);
                    continue;
                }
                () = sessions.ended() => {
                    tracing::error!("the actors of the links have ended, no other node can be reached");
                    break;
                }
            };
            match event {
                Event::Stop(done) => {
                    let actions = self.board.stop(self.now());
                    self.act(actions);
                    stopped = Some(done);
                }
                event => self.hear(event),
            }
            self.publish();
            if stopped.is_some() && self.board.is_empty() {
                break;
            }
        }
        for line in self.lines.values() {
            line.link.end();
            line.cut.now();
        }
        sessions.stop().await;
        if let Some(done) = stopped {
            let _ = done.send(());
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn hear(&mut self, event: Event) {
        let now = self.now();
        let actions = match event {
            Event::Peers(list) => self.board.set_peers(list.into_iter().map(|peer| (peer.name.into(), peer.address.into())), now),
            Event::Dialled { peer, attempt, result } => self.dialled(peer, attempt, result),
            Event::Knock(connection) => {
                let met = connection.met.clone();
                self.waiting.insert(met.token, connection);
                self.board.knocked(&met.peer, met.token, now)
            }
            Event::Opened { token, session } => {
                if let Some(line) = self.lines.get_mut(&token) {
                    line.session = Some(session);
                }
                vec![]
            }
            Event::Ready { token } => return self.ready(token),
            Event::Ended { token } => self.ended(token),
            Event::Faulty { token, fault } => {
                if let Some(line) = self.lines.get(&token) {
                    let fault = with_causes(&fault);
                    let peer = &line.link.peer;
                    episodes::warn("the link is given up", &peer.name, fault);
                }
                self.board.give_up(token, now)
            }
            Event::Stop(_) => unreachable!("it is heard elsewhere"),
        };
        self.act(actions);
    }

    fn dialled(&mut self, peer: Arc<str>, attempt: u64, result: Result<Connection, DoorError>) -> Vec<Action> {
        self.attempts.remove(&attempt);
        let reached = match result {
            Ok(connection) => {
                let met = connection.met.clone();
                self.waiting.insert(met.token, connection);
                Some((met.token, met.peer.incarnation))
            }
            Err(error) => {
                let (error, failures) = (with_causes(&error), self.board.failures(&peer) + 1);
                metrics::counter!("rookery_link_failures_total", "peer" => peer.to_string()).increment(1);
                tracing::debug!(node.id = %peer, error, failures, "cannot reach node {peer}: {error}");
                episodes::warn(UNREACHABLE, &peer, error);
                None
            }
        };
        self.board.dialled(&peer, attempt, reached, self.now(), rand::random())
    }

    fn ready(&mut self, token: u64) {
        let Some(line) = self.lines.get_mut(&token).filter(|_| self.board.ready(token)) else { return };
        let link = Arc::clone(&line.link);
        let region = line.session.as_ref().and_then(|session| session.region(&link.peer));
        let events = self.events.clone();
        let Some(region) = region else {
            let _ = events.send(Event::Faulty { token, fault: Fault::NoRegion });
            return;
        };
        line.since = Some(Instant::now());
        link.meters.ready();
        self.table.ready(&link);
        let (node, incarnation) = (&link.peer.name, link.peer.incarnation);
        tracing::info!(node.id = %node, node.incarnation = %incarnation, "linked to node {node}");
        episodes::over(UNREACHABLE, node);
        let (every, missed_max) = (self.habits.heartbeat, self.habits.heartbeats_missed_max);
        tokio::spawn(async move {
            if let Err(fault) = link.pump(region, every, missed_max).await {
                // Whoever waits is told now, not when the session has ended.
                link.end();
                let _ = events.send(Event::Faulty { token, fault });
            }
        });
    }

    fn ended(&mut self, token: u64) -> Vec<Action> {
        self.close(token);
        self.lines.remove(&token);
        self.board.ended(token, self.now(), rand::random())
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Dial { peer, address, attempt } => self.dial(peer, address, attempt),
                Action::Abandon { attempt } => {
                    if let Some(attempt) = self.attempts.remove(&attempt) {
                        attempt.abort();
                    }
                }
                Action::Open { token } => {
                    let wire = self.wire(token);
                    self.opener.open(wire, true);
                }
                Action::Admit { token } => self.admit(token),
                Action::Refuse { token, rejection } => {
                    let Some(mut connection) = self.waiting.remove(&token) else { continue };
                    refused(&connection, rejection);
                    let patience = self.door.patience;
                    // Nobody is owed an explanation that they do not read.
                    tokio::spawn(
                        async move { timeout(patience, greeting::refuse(&mut connection.socket.stream(), rejection)).await },
                    );
                }
                Action::Discard { token } => {
                    self.waiting.remove(&token);
                }
                Action::Part { token } => {
                    self.close(token);
                    if let Some(session) = self.lines.get(&token).and_then(|line| line.session.as_ref()) {
                        session.actor.stop(Some("the link was given up".to_owned()));
                    }
                }
            }
        }
    }

    fn dial(&mut self, peer: Arc<str>, address: Arc<str>, attempt: u64) {
        let (door, events) = (self.door.clone(), self.events.clone());
        let task = tokio::spawn(async move {
            let result = door.dial(&peer, &address).await;
            let _ = events.send(Event::Dialled { peer, attempt, result });
        });
        self.attempts.insert(attempt, task.abort_handle());
    }

    fn admit(&mut self, token: u64) {
        let mut connection = self.waiting.remove(&token).expect("who is admitted has knocked");
        let (opener, events, patience) = (self.opener.clone(), self.events.clone(), self.door.patience);
        // Before the other side hears of it: it may be ready first.
        let (label, cut) = self.line(&connection);
        tokio::spawn(async move {
            let welcomed = timeout(patience, greeting::welcome(&mut connection.socket.stream())).await;
            if matches!(welcomed, Ok(Ok(()))) {
                opener.open(Wire::new(connection.socket, label, cut, connection.permit), false);
            } else {
                let _ = events.send(Event::Ended { token });
            }
        });
    }

    fn wire(&mut self, token: u64) -> Wire {
        let connection = self.waiting.remove(&token).expect("what is opened was dialled");
        let (label, cut) = self.line(&connection);
        Wire::new(connection.socket, label, cut, connection.permit)
    }

    /// Makes a link of a connection; its label, and what ends it.
    fn line(&mut self, connection: &Connection) -> (String, Cut) {
        let Met { peer, token, version } = connection.met.clone();
        let label = label(&peer, token);
        let cut = Cut::default();
        let desk = self.desk(&peer.name);
        let link = Arc::new(Link::new(peer, token, Layout::of(version), desk, self.habits.in_flight_max));
        self.table.announce(token, &link);
        self.lines.insert(token, Line { link, cut: cut.clone(), session: None, since: None });
        (label, cut)
    }

    fn desk(&mut self, peer: &Arc<str>) -> Arc<Desk> {
        let make =
            || Desk::new(Arc::clone(peer), Arc::clone(&self.handler), self.habits.in_flight_max, Arc::clone(&self.stopping));
        Arc::clone(self.desks.entry(Arc::clone(peer)).or_insert_with(|| Arc::new(make())))
    }

    /// Ends a link, whatever becomes of its session.
    fn close(&mut self, token: u64) {
        self.table.remove(token);
        let Some(line) = self.lines.get_mut(&token) else { return };
        line.link.end();
        line.cut.now();
        if line.since.take().is_some() {
            let node = &line.link.peer.name;
            // Why it had to end was told, if there was a fault.
            tracing::info!(node.id = %node, "the link to node {node} has ended");
        }
    }

    /// Tells who is linked, if that has changed.
    fn publish(&self) {
        let linked: HashMap<&str, &Line> =
            self.lines.values().filter(|line| line.since.is_some()).map(|line| (&*line.link.peer.name, line)).collect();
        let status = |(name, address): (&Arc<str>, Option<&Arc<str>>)| {
            let line = linked.get(&**name);
            let status = PeerStatus {
                address: address.map(|address| address.to_string()),
                incarnation: line.map(|line| line.link.peer.incarnation),
                since: line.and_then(|line| line.since),
                link: line.map(|line| Arc::clone(&line.link)),
            };
            (name.to_string(), status)
        };
        let peers: BTreeMap<String, PeerStatus> = self.board.peers().map(status).collect();
        self.peers.send_if_modified(|current| {
            let changed = **current != peers;
            if changed {
                *current = Arc::new(peers);
            }
            changed
        });
    }
}

/// Two nodes of one name are a mistake; the rest settles itself.
fn refused(connection: &Connection, rejection: Rejection) {
    let peer = &connection.met.peer;
    let address = connection.socket.peer().map(|address| address.to_string()).unwrap_or_default();
    if rejection == Rejection::Namesake {
        episodes::warn("another node has our own name", &address, format_args!("its incarnation is {}", peer.incarnation));
    } else {
        tracing::debug!(node.id = %peer.name, client.address = address, %rejection, "refused a link to node {}", peer.name);
    }
}

/// For a timer that is not to fire.
fn far_away() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// Whether new work is refused from now on.
pub(super) fn refuse_work(stopping: &AtomicBool) {
    stopping.store(true, Ordering::Relaxed);
}
