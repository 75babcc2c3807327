//! Who serves which shard of one service, by whatever was heard last.

use std::sync::{
    Arc, OnceLock, RwLock,
    atomic::{AtomicBool, Ordering},
};

use rookery_actors::{
    ids::{Epoch, ShardId},
    runtime::NodeName,
};

use crate::{
    links::PeerAddress,
    ownership::{Contact, View},
};

#[derive(Default)]
pub(super) struct Table {
    /// The directory of the service, to be asked again.
    pub(super) contact: OnceLock<Contact>,
    known: RwLock<Known>,
    unserved: AtomicBool,
}

#[derive(Default)]
struct Known {
    owners: Vec<Owner>,
    /// Everybody else who may serve shards.
    members: Vec<NodeName>,
    addresses: Vec<PeerAddress>,
}

#[derive(Clone, Default, PartialEq)]
struct Owner {
    epoch: Epoch,
    node: Option<NodeName>,
}

impl Table {
    /// Takes what the directory says; whether anything is new.
    pub(super) fn learn(&self, view: &View, me: &NodeName) -> bool {
        let mut known = self.known.write().expect("no panic under this lock");
        let mut names: Vec<NodeName> = Vec::new();
        let mut addresses = Vec::new();
        for member in &view.members {
            names.push(member.node.as_str().into());
            if let Some(address) = &member.address {
                addresses.push(PeerAddress { name: member.node.clone(), address: address.clone() });
            }
        }
        let mut news = false;
        let shards = view.shards.len().max(known.owners.len());
        known.owners.resize(shards, Owner::default());
        for row in &view.shards {
            // What we heard since the directory was asked is newer.
            let owner = &mut known.owners[row.id.index()];
            if row.epoch < owner.epoch {
                continue;
            }
            let node = view.owner(row.id).and_then(|member| names.iter().find(|name| ***name == *member.node)).cloned();
            let now = Owner { epoch: row.epoch, node };
            if *owner != now {
                *owner = now;
                news = true;
            }
        }
        news |= self.unserved.swap(view.unserved, Ordering::Relaxed) != view.unserved;
        names.retain(|name| name != me);
        names.dedup();
        news |= known.members != names;
        (known.members, known.addresses) = (names, addresses);
        news
    }

    /// Takes what a node says it serves; whether that is new.
    pub(super) fn heard(&self, node: &NodeName, shards: &[(ShardId, Epoch)]) -> bool {
        let mut known = self.known.write().expect("no panic under this lock");
        let mut news = false;
        for (shard, epoch) in shards {
            let Some(owner) = known.owners.get_mut(shard.index()) else { continue };
            if *epoch > owner.epoch {
                *owner = Owner { epoch: *epoch, node: Some(Arc::clone(node)) };
                news = true;
            }
        }
        if news {
            self.unserved.store(false, Ordering::Relaxed);
        }
        news
    }

    pub(super) fn owner(&self, shard: ShardId) -> Option<NodeName> {
        self.known.read().expect("no panic under this lock").owners.get(shard.index())?.node.clone()
    }

    /// Whether nobody has served the service for so long that nobody is waited for.
    pub(super) fn is_unserved(&self) -> bool {
        self.unserved.load(Ordering::Relaxed)
    }

    pub(super) fn members(&self) -> Vec<NodeName> {
        self.known.read().expect("no panic under this lock").members.clone()
    }

    pub(super) fn addresses(&self) -> Vec<PeerAddress> {
        self.known.read().expect("no panic under this lock").addresses.clone()
    }
}
