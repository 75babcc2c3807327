//! Where shards are served, and the way there: what the directories say, what nodes tell each other meanwhile, over links.
//!
//! The directory is asked twice a second; a node that begins to serve shards says so at once. Both are hints, for whoever
//! is asked looks for itself, and of two the one with the higher epoch is newer.

mod mail;
mod table;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, join_all};
use rookery_actors::{
    caller,
    episodes::{self, Severity},
    ids::{Epoch, ShardId},
    runtime::{NodeName, Router, Runtime, SendError},
    service::Service,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use self::{
    mail::{GRANTED, Granted, RELAYED, Relayed, SERVING, Serving, decode, encode},
    table::Table,
};
use crate::{
    links::{Handler, LinkError, Links, Meta, PeerAddress, PeerStatus, Refusal, Request, Undelivered},
    ownership::{Announce, Contact, View},
};

/// The services by their number on the wire.
pub(crate) const SERVICES: [&str; 4] = ["users", "posts", "comments", "search"];
/// How long a node may take to begin to serve what it was granted; after it the poll finds it.
const TAKE_UP_WITHIN: Duration = Duration::from_secs(2);
/// How long a notice may be on its way.
const NOTICE_WITHIN: Duration = Duration::from_secs(1);
/// After a link died the directory is asked at once and again after these: its owner may be declared dead a moment later by
/// its parent, or hand over what it cannot be asked for any more, or its lease runs out.
const LOOK_AGAIN_MS: [u64; 10] = [30, 60, 120, 250, 250, 250, 250, 250, 250, 250];
/// A question that takes longer is told of, with the request that it is asked for.
const SLOW: Duration = Duration::from_secs(1);
/// Ways around a broken link that are tried.
const RELAYS_MAX: usize = 2;

/// The number of a service on the wire.
fn number(service: &str) -> u8 {
    let position = SERVICES.iter().position(|name| *name == service).expect("there are four services");
    u8::try_from(position).expect("they are few")
}

/// The routes of this node. Cheap to clone.
#[derive(Clone)]
pub struct Routes {
    shared: Arc<Shared>,
}

struct Shared {
    me: NodeName,
    links: OnceLock<Links>,
    tables: [Table; 4],
    served: [OnceLock<Arc<dyn Served>>; 4],
    changes: watch::Sender<u64>,
}

/// A service of this node, as other nodes ask it.
trait Served: Send + Sync {
    fn serve(&self, question: Bytes) -> BoxFuture<'static, Bytes>;
}

impl<S: Service> Served for Runtime<S> {
    fn serve(&self, question: Bytes) -> BoxFuture<'static, Bytes> {
        let runtime = self.clone();
        async move { Runtime::serve(&runtime, &question).await }.boxed()
    }
}

impl Routes {
    /// The routes of a node that knows nobody yet.
    pub fn new(me: &str) -> Self {
        let shared = Shared {
            me: me.into(),
            links: OnceLock::new(),
            tables: Default::default(),
            served: Default::default(),
            changes: watch::Sender::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// What answers the other nodes.
    pub fn handler(&self) -> Arc<dyn Handler> {
        Arc::new(self.clone())
    }

    /// Goes over these links from now on.
    pub fn over(&self, links: Links) {
        assert!(self.shared.links.set(links).is_ok(), "the routes go over one set of links");
    }

    /// The links, once there are any.
    pub fn links(&self) -> Option<&Links> {
        self.shared.links.get()
    }

    /// Puts a service on the routes: it is asked by others, and finds others.
    pub fn serve<S: Service>(&self, runtime: &Runtime<S>) {
        let place = &self.shared.served[usize::from(number(S::NAME))];
        assert!(place.set(Arc::new(runtime.clone())).is_ok(), "a service is put on the routes once");
        runtime.connect(Arc::new(self.clone()));
    }

    /// Follows what the directory of a service says, and tells the others what is served here; until the task is aborted.
    pub fn follow(&self, service: &'static str, contact: Contact, tasks: &mut JoinSet<()>) {
        let table = &self.shared.tables[usize::from(number(service))];
        assert!(table.contact.set(contact.clone()).is_ok(), "a directory is followed once");
        tasks.spawn(self.clone().learn(service, contact.view()));
        tasks.spawn(self.clone().tell(service, contact.served()));
    }

    /// Makes everybody look who can be reached, when links come and go; until the task is aborted.
    pub fn watch_links(&self, tasks: &mut JoinSet<()>) {
        tasks.spawn(self.clone().links_changed());
    }

    async fn learn(self, service: &'static str, mut view: watch::Receiver<Arc<View>>) {
        let table = &self.shared.tables[usize::from(number(service))];
        loop {
            let seen = Arc::clone(&view.borrow_and_update());
            if table.learn(&seen, &self.shared.me) {
                self.changed();
            }
            self.set_peers();
            if view.changed().await.is_err() {
                return;
            }
        }
    }

    async fn tell(self, service: &'static str, mut served: watch::Receiver<Vec<Epoch>>) {
        let mut told: Vec<Epoch> = Vec::new();
        while served.changed().await.is_ok() {
            let now = served.borrow_and_update().clone();
            told.resize(now.len(), 0);
            let shards: Vec<(ShardId, Epoch)> = (0..)
                .map(ShardId)
                .zip(now.iter().copied())
                .filter(|(shard, epoch)| *epoch != 0 && *epoch != told[shard.index()])
                .collect();
            told = now;
            if !shards.is_empty() {
                // Who waits here for a shard that has come here is not told by anybody else.
                self.changed();
                self.broadcast(SERVING, encode(&Serving { service: number(service), shards })).await;
            }
        }
    }

    async fn links_changed(self) {
        let Some(links) = self.links() else { return };
        let mut peers = links.peers();
        let mut linked = 0;
        let mut pauses = [].iter();
        let mut look_at: Option<Instant> = None;
        loop {
            tokio::select! {
                changed = peers.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = peers.borrow_and_update().values().filter(|peer| peer.is_linked()).count();
                    self.changed();
                    if now < linked {
                        pauses = LOOK_AGAIN_MS.iter();
                        look_at = Some(Instant::now());
                    }
                    linked = now;
                }
                () = sleep_until(look_at.unwrap_or_else(Instant::now)), if look_at.is_some() => {
                    self.shared.tables.iter().filter_map(|table| table.contact.get()).for_each(Contact::poke);
                    look_at = pauses.next().map(|pause_ms| Instant::now() + Duration::from_millis(*pause_ms));
                }
            }
        }
    }

    fn changed(&self) {
        self.shared.changes.send_modify(|count| *count += 1);
    }

    /// Tells the links whom to reach: whoever is a member anywhere.
    fn set_peers(&self) {
        let Some(links) = self.links() else { return };
        let mut peers: Vec<PeerAddress> = self.shared.tables.iter().flat_map(Table::addresses).collect();
        peers.sort_by(|a, b| (&a.name, &a.address).cmp(&(&b.name, &b.address)));
        peers.dedup_by(|a, b| a.name == b.name);
        links.set_peers(peers);
    }

    async fn broadcast(&self, kind: u8, body: Bytes) {
        let Some(links) = self.links() else { return };
        let peers: Vec<String> =
            links.peers().borrow().iter().filter(|(_, peer)| peer.is_linked()).map(|(name, _)| name.clone()).collect();
        let until = std::time::Instant::now() + NOTICE_WITHIN;
        // Whoever does not hear of it asks the directory.
        join_all(peers.iter().map(|peer| links.request(peer, kind, body.clone(), Meta::until(until)))).await;
    }

    async fn request(&self, node: &str, service: u8, question: Bytes, deadline: Instant) -> Result<Bytes, LinkError> {
        self.request_with(node, service, question, meta(deadline)).await
    }

    async fn request_with(&self, node: &str, service: u8, question: Bytes, meta: Meta) -> Result<Bytes, LinkError> {
        match self.links() {
            Some(links) => links.request(node, service, question, meta).await,
            None => Err(LinkError::Undelivered(Undelivered::NotLinked)),
        }
    }

    /// Around a broken link, through another member that still reaches the node (rule 10).
    async fn relay(&self, node: &NodeName, service: u8, question: &Bytes, deadline: Instant) -> Result<Bytes, SendError> {
        let unreachable = || SendError::Undelivered(format!("there is no link to {node}, nor a way around"));
        let Some(links) = self.links() else { return Err(unreachable()) };
        let others: Vec<String> = {
            let peers = links.peers();
            let peers = peers.borrow();
            peers.iter().filter(|(name, peer)| peer.is_linked() && ***name != **node).map(|(name, _)| name.clone()).collect()
        };
        let letter = encode(&Relayed { to: Arc::clone(node), service, question: question.to_vec() });
        for other in others.iter().take(RELAYS_MAX) {
            match self.request(other, RELAYED, letter.clone(), deadline).await {
                Ok(answer) => match decode::<Result<Vec<u8>, SendError>>(&answer) {
                    Some(Err(SendError::Undelivered(_))) => {}
                    Some(answer) => return answer.map(Bytes::from),
                    None => return Err(SendError::Lost("the node between does not speak clearly".to_owned())),
                },
                Err(error) if error.is_undone() => {}
                Err(error) => return Err(SendError::Lost(error.to_string())),
            }
        }
        Err(unreachable())
    }

    async fn pass_on(&self, letter: Relayed, meta: Meta) -> Result<Vec<u8>, SendError> {
        match self.request_with(&letter.to, letter.service, letter.question.into(), meta).await {
            Ok(answer) => Ok(answer.to_vec()),
            Err(error) => Err(undelivered_or_lost(&error)),
        }
    }

    async fn answer(self, request: Request) -> Result<Bytes, Refusal> {
        let strange = || Refusal::Declined(Bytes::from_static(b"the message cannot be read"));
        match request.service {
            SERVING => {
                let Serving { service, shards } = decode(&request.body).ok_or_else(strange)?;
                let table = self.shared.tables.get(usize::from(service)).ok_or_else(strange)?;
                if table.heard(&request.peer, &shards) {
                    self.changed();
                    // Where one takes over, there is a share for us too: it has told the directory who died.
                    table.contact.get().into_iter().for_each(Contact::poke);
                }
                Ok(Bytes::new())
            }
            GRANTED => {
                let Granted { service, shards } = decode(&request.body).ok_or_else(strange)?;
                let table = self.shared.tables.get(usize::from(service)).ok_or_else(strange)?;
                let contact = table.contact.get().ok_or(Refusal::UnknownService)?;
                Ok(encode(&contact.take_up(&shards, TAKE_UP_WITHIN).await))
            }
            RELAYED => {
                let letter = decode(&request.body).ok_or_else(strange)?;
                Ok(encode(&self.pass_on(letter, request.meta).await))
            }
            service => {
                let served =
                    self.shared.served.get(usize::from(service)).and_then(OnceLock::get).ok_or(Refusal::UnknownService)?;
                let asked = Instant::now();
                let answer = served.serve(request.body).await;
                // Without a client it is a long poll for news.
                if asked.elapsed() > SLOW && !request.meta.request_id.is_empty() {
                    let (service, duration_ms) = (SERVICES[usize::from(service)], asked.elapsed().as_millis());
                    let peer = &request.peer;
                    let reason = format_args!("of node {peer}, in {duration_ms} ms").to_string();
                    // The first of an episode names its request, the others are counted with it.
                    if episodes::begins(Severity::Warn, "questions of other nodes are slow", service, &reason) {
                        tracing::warn!(
                            node.id = %peer,
                            request.id = %request.meta.request_id,
                            traceparent = %request.meta.traceparent,
                            duration_ms = u64::try_from(duration_ms).unwrap_or(u64::MAX),
                            "a question of node {peer} about {service} was slow: {duration_ms} ms"
                        );
                    }
                }
                Ok(answer)
            }
        }
    }
}

/// What travels with a question: for whom it is asked, if that is a client.
fn meta(deadline: Instant) -> Meta {
    let meta = Meta::until(deadline.into_std());
    let Some(caller) = caller::current() else { return meta };
    let request_id = String::from_utf8_lossy(&caller.request_id).into();
    Meta { request_id, traceparent: caller.trace.to_string().into(), ..meta }
}

fn undelivered_or_lost(error: &LinkError) -> SendError {
    match error {
        LinkError::Overloaded | LinkError::Refused(Refusal::Overloaded) => SendError::Overloaded,
        error if error.is_undone() => SendError::Undelivered(error.to_string()),
        error => SendError::Lost(error.to_string()),
    }
}

impl Handler for Routes {
    fn handle(&self, request: Request) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        self.clone().answer(request).boxed()
    }
}

impl Router for Routes {
    fn me(&self) -> NodeName {
        Arc::clone(&self.shared.me)
    }

    fn owner(&self, service: &'static str, shard: ShardId) -> Option<NodeName> {
        // Ours as far as the directory knows, but not open: about to be, or just handed over.
        self.shared.tables[usize::from(number(service))].owner(shard).filter(|node| *node != self.shared.me)
    }

    fn peers(&self, service: &'static str) -> Vec<NodeName> {
        self.shared.tables[usize::from(number(service))].members()
    }

    fn is_unserved(&self, service: &'static str) -> bool {
        self.shared.tables[usize::from(number(service))].is_unserved()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    fn send(
        &self,
        node: NodeName,
        service: &'static str,
        question: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Bytes, SendError>> {
        async move {
            let service = number(service);
            match self.request(&node, service, question.clone(), deadline).await {
                Ok(answer) => Ok(answer),
                Err(LinkError::Undelivered(Undelivered::NotLinked)) => self.relay(&node, service, &question, deadline).await,
                Err(error) => Err(undelivered_or_lost(&error)),
            }
        }
        .boxed()
    }
}

impl Announce for Routes {
    fn granted<'a>(&'a self, service: &'static str, shards: &'a [(ShardId, Epoch)], to: &'a str) -> BoxFuture<'a, bool> {
        async move {
            let body = encode(&Granted { service: number(service), shards: shards.to_vec() });
            let told = self.request(to, GRANTED, body, Instant::now() + TAKE_UP_WITHIN + NOTICE_WITHIN);
            let answer = timeout(TAKE_UP_WITHIN + NOTICE_WITHIN, told).await;
            answer.is_ok_and(|answer| answer.is_ok_and(|answer| decode(&answer).unwrap_or(false)))
        }
        .boxed()
    }

    fn reaches(&self, node: &str) -> bool {
        self.links().is_none_or(|links| links.peers().borrow().get(node).is_some_and(PeerStatus::is_linked))
    }
}

#[cfg(test)]
mod tests {
    use rookery_actors::caller::{Caller, TraceParent, on_behalf_of};

    use super::*;

    #[tokio::test]
    async fn a_question_names_the_request_it_is_asked_for() {
        let trace = TraceParent { trace_id: 1, span_id: 2, sampled: false };
        let caller = Caller { request_id: Bytes::from_static(b"r1"), trace };
        let meta = on_behalf_of(caller, async { meta(Instant::now()) }).await;
        assert_eq!((&*meta.request_id, &*meta.traceparent), ("r1", trace.to_string().as_str()));
    }
}
