//! ractor_cluster beneath the links: its server, which makes a session of every stream, and the region.

use std::{net::Ipv4Addr, sync::Arc};

use ractor::{Actor, ActorCell, ActorId, ActorRef, concurrency::JoinHandle, pg};
use ractor_cluster::{
    IncomingEncryptionMode, NodeEventSubscription, NodeServer, NodeServerMessage, NodeSessionMessage,
    node::{NodeConnectionMode, NodeServerSessionInformation},
};
use tokio::sync::mpsc::UnboundedSender;

use super::{
    StartError,
    envelope::BATCH_BYTES_MAX,
    greeting::Instance,
    region::{self, Batch, Entrance, Region},
    switchboard::Event,
    table::Table,
    tls,
    wire::Wire,
};

/// What a frame has besides its batch, generously, in bytes.
const FRAME_EXTRA: u64 = 64 << 10;

/// The actors that all links of a process share.
pub(super) struct Sessions {
    server: ActorRef<NodeServerMessage>,
    region: ActorRef<Batch>,
    ends: [JoinHandle<()>; 2],
}

/// A session, as ractor_cluster tells of it.
pub(super) struct Session {
    pub(super) actor: ActorRef<NodeSessionMessage>,
    node_id: u64,
}

impl Sessions {
    /// Starts them. There is one `NodeServer` in a process: it numbers sessions from 0, and registries are global.
    pub(super) async fn start(
        me: &Instance,
        cookie: String,
        table: Arc<Table>,
        events: UnboundedSender<Event>,
    ) -> Result<Self, StartError> {
        let entrance = Entrance { table, events: events.clone() };
        let (region, region_ends) = Actor::spawn(None, Region, (region::group(me), entrance)).await?;
        let count = region::remotable();
        if count != 1 {
            region.stop(None);
            return Err(StartError::Remotable { count });
        }
        // It insists on a listener of its own: on this machine, where no handshake succeeds. And two nodes with equal
        // host and port it takes for one; the incarnation is a host that nobody else has.
        let server = NodeServer::new(
            0,
            cookie,
            me.to_string(),
            me.incarnation.to_string(),
            Some(IncomingEncryptionMode::Tls(tls::closed_door())),
            Some(NodeConnectionMode::Isolated),
        )
        .with_listen_addr(Ipv4Addr::LOCALHOST.into())
        .with_max_inbound_frame_size(BATCH_BYTES_MAX as u64 + FRAME_EXTRA);
        let (server, server_ends) = Actor::spawn(None, server, ()).await?;
        let subscription = Box::new(Subscription(events));
        // A server that has just started takes messages.
        let _ = server.cast(NodeServerMessage::SubscribeToEvents { id: "links".to_owned(), subscription });
        Ok(Self { server, region, ends: [server_ends, region_ends] })
    }

    /// Whoever makes sessions of streams.
    pub(super) fn opener(&self) -> Opener {
        Opener(self.server.clone())
    }

    /// Waits until one of the actors has ended, which they do only when told.
    pub(super) async fn ended(&mut self) {
        let [server, region] = &mut self.ends;
        tokio::select! {
            _ = server => {}
            _ = region => {}
        }
    }

    /// Ends them.
    pub(super) async fn stop(&self) {
        // An error here means that it has stopped already.
        let _ = self.server.stop_and_wait(None, None).await;
        let _ = self.region.stop_and_wait(None, None).await;
    }
}

/// Makes sessions of streams.
#[derive(Clone)]
pub(super) struct Opener(ActorRef<NodeServerMessage>);

impl Opener {
    /// Hands a stream over. What becomes of it, the events tell.
    pub(super) fn open(&self, wire: Wire, dialled: bool) {
        let stream = Box::new(wire);
        // If the server is gone, so are all links.
        let _ = self.0.cast(NodeServerMessage::ConnectionOpenedExternal { stream, is_server: !dialled });
    }
}

impl Session {
    /// The region at the other end of this session. References from before a reconnect are dead for good.
    pub(super) fn region(&self, peer: &Instance) -> Option<ActorRef<Batch>> {
        let ours = |actor: &ActorCell| matches!(actor.get_id(), ActorId::Remote { node_id, .. } if node_id == self.node_id);
        let mut found = pg::get_members(&region::group(peer)).into_iter().filter(ours);
        let region = found.next()?;
        found.next().is_none().then(|| region.into())
    }
}

/// The label of a link's stream, by which its session is recognised.
pub(super) fn label(peer: &Instance, token: u64) -> String {
    format!("{peer}/{token:016x}")
}

fn token(label: &str) -> Option<u64> {
    let (_, token) = label.rsplit_once('/')?;
    u64::from_str_radix(token, 16).ok()
}

struct Subscription(UnboundedSender<Event>);

impl Subscription {
    fn tell(&self, session: &NodeServerSessionInformation, event: impl FnOnce(u64) -> Event) {
        // Sessions without a label of ours came through no door of ours.
        if let Some(token) = token(&session.peer_addr) {
            let _ = self.0.send(event(token));
        }
    }
}

impl NodeEventSubscription for Subscription {
    fn node_session_opened(&self, session: NodeServerSessionInformation) {
        let actor = session.actor.clone();
        let node_id = session.node_id;
        self.tell(&session, |token| Event::Opened { token, session: Session { actor, node_id } });
    }

    fn node_session_authenticated(&self, _: NodeServerSessionInformation) {}

    fn node_session_ready(&self, session: NodeServerSessionInformation) {
        self.tell(&session, |token| Event::Ready { token });
    }

    fn node_session_disconnected(&self, session: NodeServerSessionInformation) {
        self.tell(&session, |token| Event::Ended { token });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_tells_its_link() {
        let peer = Instance { name: "n2".into(), incarnation: uuid::Uuid::new_v4() };
        assert_eq!(token(&label(&peer, 0xFEED)), Some(0xFEED));
        assert_eq!(token("127.0.0.1:7400"), None);
    }
}
