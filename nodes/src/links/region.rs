//! The region: the one actor of a node that other nodes reach.
//!
//! Every actor whose messages convert to bytes is advertised to every peer and costs a task there, so there is exactly
//! one, whatever the node serves. It opens batches, nothing more: the work is done elsewhere.

use std::sync::Arc;

use bytes::Bytes;
use ractor::{Actor, ActorProcessingErr, ActorRef, BytesConvertable, pg, registry::pid_registry};
use rookery_actors::episodes;
use tokio::sync::mpsc::UnboundedSender;

use super::{
    envelope::{Header, Malformed, Reader},
    link::Fault,
    switchboard::Event,
    table::Table,
};

/// Envelopes on their way, encoded. Being bytes already, it needs no derived conversion, which would copy them twice.
pub(super) struct Batch(pub(super) Vec<u8>);

impl BytesConvertable for Batch {
    fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

/// The group that a region joins; its node is the only one to have it, so a sender finds exactly one actor in it.
pub(super) fn group(node: &impl std::fmt::Display) -> String {
    format!("region/{node}")
}

/// How many actors of this process other nodes could reach.
pub(super) fn remotable() -> usize {
    pid_registry::get_all_pids().iter().filter(|actor| actor.supports_remoting()).count()
}

pub(super) struct Region;

/// What a region needs to know.
pub(super) struct Entrance {
    pub(super) table: Arc<Table>,
    pub(super) events: UnboundedSender<Event>,
}

impl Actor for Region {
    type Msg = Batch;
    type State = Entrance;
    type Arguments = (String, Entrance);

    async fn pre_start(
        &self,
        myself: ActorRef<Batch>,
        (group, entrance): Self::Arguments,
    ) -> Result<Entrance, ActorProcessingErr> {
        pg::join(group, vec![myself.get_cell()]);
        Ok(entrance)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Batch>,
        Batch(bytes): Batch,
        entrance: &mut Entrance,
    ) -> Result<(), ActorProcessingErr> {
        let size = bytes.len() as u64;
        // A batch without a readable header cannot be laid to anybody's charge.
        let Ok((header, entries)) = Reader::new(Bytes::from(bytes)) else {
            episodes::warn("batches without a header come from other nodes", "", "");
            return Ok(());
        };
        if let Err(error) = entrance.receive(header, entries, size) {
            let _ = entrance.events.send(Event::Faulty { token: header.link, fault: Fault::Malformed(error) });
        }
        Ok(())
    }
}

impl Entrance {
    fn receive(&self, header: Header, entries: Reader, size: u64) -> Result<(), Malformed> {
        match self.table.link(header.link) {
            Some(link) => link.receive(header, entries, size),
            // The last words of a link that has ended here.
            None => Ok(()),
        }
    }
}
