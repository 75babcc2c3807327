//! Who serves which shard of one service, by whatever was heard last.

use std::sync::{
    Arc, OnceLock, RwLock,
    atomic::{AtomicBool, Ordering},
};

use rookery_actors::{
    ids::{Epoch, ShardId},
    runtime::NodeName,
};

use tokio::time::Instant;

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
    /// When a node said so itself; none: the directory did.
    heard: Option<Instant>,
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
            // What we heard since the directory was asked is newer. What was said before that it would know: if it does not, it
            // was put back to an older state.
            let owner = &mut known.owners[row.id.index()];
            let is_newer = owner.heard.is_some_and(|heard| heard >= view.asked);
            if row.epoch < owner.epoch && is_newer {
                continue;
            }
            let node = view.owner(row.id).and_then(|member| names.iter().find(|name| ***name == *member.node)).cloned();
            news |= (owner.epoch, &owner.node) != (row.epoch, &node);
            *owner = Owner { epoch: row.epoch, node, heard: None };
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
                *owner = Owner { epoch: *epoch, node: Some(Arc::clone(node)), heard: Some(Instant::now()) };
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rookery_actors::{
        ids::Incarnation,
        runtime::{MemberRow, MemberState, ShardRow},
    };
    use uuid::Uuid;

    use super::*;

    const SHARD: ShardId = ShardId(0);

    /// What the directory said when it was asked at a moment: who owns the shard, under which epoch.
    fn view(asked: Instant, owner: u128, epoch: Epoch) -> View {
        let member = |n: u128| MemberRow {
            incarnation: Incarnation(Uuid::from_u128(n)),
            node: format!("n{n}"),
            address: None,
            renewed: 1,
            state: MemberState::Live,
            lease: None,
        };
        let shard = ShardRow { id: SHARD, epoch, owner: Some(Incarnation(Uuid::from_u128(owner))), target: None };
        View { members: vec![member(1), member(2)], shards: vec![shard], placement: Arc::default(), asked, unserved: false }
    }

    fn owner(table: &Table) -> String {
        table.owner(SHARD).expect("somebody owns it").to_string()
    }

    #[test]
    fn what_a_node_said_after_the_directory_was_asked_is_newer() {
        let (table, me) = (Table::default(), NodeName::from("me"));
        let asked = Instant::now();
        table.learn(&view(asked, 1, 6), &me);
        assert!(table.heard(&"n2".into(), &[(SHARD, 7)]));
        assert!(!table.learn(&view(asked, 1, 6), &me));
        assert_eq!(owner(&table), "n2");
    }

    /// What was broken: the epochs of before were taken for newer as long as the process lived, and it asked nodes that had
    /// nothing to do with the shard any more.
    #[test]
    fn a_directory_that_was_put_back_to_an_older_state_is_believed() {
        let (table, me) = (Table::default(), NodeName::from("me"));
        table.learn(&view(Instant::now(), 1, 40), &me);
        assert!(table.heard(&"n2".into(), &[(SHARD, 41)]));
        let later = Instant::now() + Duration::from_millis(5);
        assert!(table.learn(&view(later, 1, 12), &me), "it is news");
        assert_eq!(owner(&table), "n1");
        assert!(table.heard(&"n2".into(), &[(SHARD, 13)]), "and goes on from there");
        assert_eq!(owner(&table), "n2");
    }
}
