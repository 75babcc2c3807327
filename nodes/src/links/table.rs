//! The links that there are: by name for whoever asks, by number for what arrives.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;

use super::link::Link;

/// Read for every request and every batch, written when a link comes or goes.
#[derive(Default)]
pub(super) struct Table {
    links: ArcSwap<Links>,
}

#[derive(Default, Clone)]
struct Links {
    /// Those that are ready.
    by_name: HashMap<Arc<str>, Arc<Link>>,
    /// Those, and those that are about to be: the other side may be ready first.
    by_token: HashMap<u64, Arc<Link>>,
}

impl Table {
    /// The link to a node.
    pub(super) fn to(&self, peer: &str) -> Option<Arc<Link>> {
        self.links.load().by_name.get(peer).cloned()
    }

    /// The link of a number.
    pub(super) fn link(&self, token: u64) -> Option<Arc<Link>> {
        self.links.load().by_token.get(&token).cloned()
    }

    /// Takes what arrives.
    pub(super) fn announce(&self, token: u64, link: &Arc<Link>) {
        self.change(|links| {
            links.by_token.insert(token, Arc::clone(link));
        });
    }

    /// Can be asked from now on.
    pub(super) fn ready(&self, link: &Arc<Link>) {
        self.change(|links| {
            links.by_name.insert(Arc::clone(&link.peer.name), Arc::clone(link));
        });
    }

    /// Is no longer.
    pub(super) fn remove(&self, token: u64) {
        self.change(|links| {
            let Some(link) = links.by_token.remove(&token) else { return };
            let name = &link.peer.name;
            if links.by_name.get(name).is_some_and(|current| Arc::ptr_eq(current, &link)) {
                links.by_name.remove(name);
            }
        });
    }

    fn change(&self, change: impl Fn(&mut Links)) {
        self.links.rcu(|links| {
            let mut links = Links::clone(links);
            change(&mut links);
            links
        });
    }
}
