//! Pure. The copies that a reader keeps of the entities of a shard.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use uuid::Uuid;

/// Copies `V`, each under the session `L` with whoever lent it.
#[derive(Debug)]
pub(crate) struct Kept<L, V> {
    copies: HashMap<Uuid, Copied<L, V>>,
    /// How often something was called back or evicted, of whatever entity.
    recalls: u64,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Copied<L, V> {
    pub(crate) value: Arc<V>,
    pub(crate) lender: L,
    /// The number of the latest loan by which it came; 0: its owner has none.
    loan: u64,
    /// What it takes, in bytes, roughly.
    pub(crate) bytes: usize,
    /// Since somebody looked who had no room.
    used: AtomicBool,
}

/// Taken before a copy is asked for: what was called back since is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked(u64);

/// What [`Kept::tidy`] took out.
#[derive(Debug)]
pub(crate) struct Tidied<L> {
    pub(crate) bytes: usize,
    /// What might still be shown: who lent it, and by which loan.
    pub(crate) evicted: Vec<(L, Uuid, u64)>,
}

impl<L, V> Default for Kept<L, V> {
    fn default() -> Self {
        Self { copies: HashMap::new(), recalls: 0 }
    }
}

impl<L: Clone + PartialEq, V> Kept<L, V> {
    /// To be noted before a copy is asked for.
    pub(crate) fn asked(&self) -> Asked {
        Asked(self.recalls)
    }

    /// Keeps a copy, unless a recall came between question and answer, in whichever order they were sent; by how many
    /// bytes it has grown and shrunk.
    pub(crate) fn keep(
        &mut self,
        id: Uuid,
        value: Arc<V>,
        (lender, loan): (L, u64),
        bytes: usize,
        asked: Asked,
    ) -> (usize, usize) {
        if asked != self.asked() {
            return (0, 0);
        }
        // Of two that were asked for together the earlier one may arrive last; the owner knows the later one.
        let former = self.copies.get(&id).filter(|former| former.lender == lender).map_or(0, |former| former.loan);
        let copy = Copied { value, lender, loan: loan.max(former), bytes, used: AtomicBool::new(true) };
        let former = self.copies.insert(id, copy);
        (bytes, former.map_or(0, |former| former.bytes))
    }

    pub(crate) fn get(&self, id: Uuid) -> Option<&Copied<L, V>> {
        self.copies.get(&id)
    }

    /// Gives up one of them, and whatever is on its way; the bytes.
    pub(crate) fn recall(&mut self, id: Uuid) -> usize {
        self.recalls += 1;
        self.copies.remove(&id).map_or(0, |copy| copy.bytes)
    }

    /// Gives up all of them, and whatever is on its way; the bytes.
    pub(crate) fn recall_all(&mut self) -> usize {
        self.recalls += 1;
        self.copies.drain().map(|(_, copy)| copy.bytes).sum()
    }

    /// Makes room: takes out what nobody may show any more, and if `tight` what was not used since it was last so.
    ///
    /// What is on its way is not kept, once anything was evicted: it may be lent by a loan that its owner erases.
    pub(crate) fn tidy(&mut self, is_over: impl Fn(&L) -> bool, tight: bool) -> Tidied<L> {
        let mut tidied = Tidied { bytes: 0, evicted: Vec::new() };
        self.copies.retain(|id, copy| {
            let is_over = is_over(&copy.lender);
            let stays = !is_over && (!tight || copy.used.swap(false, Ordering::Relaxed));
            if !stays {
                tidied.bytes += copy.bytes;
                // An owner that numbers no loans keeps its entry until the session is over.
                if !is_over && copy.loan != 0 {
                    tidied.evicted.push((copy.lender.clone(), *id, copy.loan));
                }
            }
            stays
        });
        if !tidied.evicted.is_empty() {
            self.recalls += 1;
        }
        tidied
    }

    pub(crate) fn len(&self) -> usize {
        self.copies.len()
    }
}

impl<L, V> Copied<L, V> {
    /// Notes that it was of use.
    pub(crate) fn is_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn keep(kept: &mut Kept<char, &'static str>, id: Uuid, value: &'static str, asked: Asked) -> (usize, usize) {
        kept.keep(id, Arc::new(value), ('o', 7), value.len(), asked)
    }

    fn shown(kept: &Kept<char, &'static str>, id: Uuid) -> Option<&'static str> {
        kept.get(id).map(|copy| *copy.value)
    }

    #[test]
    fn what_was_called_back_before_it_came_is_not_kept() {
        let mut kept = Kept::default();
        let asked = kept.asked();
        kept.recall(ID);
        assert_eq!(keep(&mut kept, ID, "old", asked), (0, 0));
        assert_eq!(shown(&kept, ID), None);
        let asked = kept.asked();
        assert_eq!(keep(&mut kept, ID, "new", asked), (3, 0));
        assert_eq!(keep(&mut kept, ID, "newer", asked), (5, 3));
        assert_eq!(kept.recall(ID), 5);
        assert_eq!(shown(&kept, ID), None);
    }

    #[test]
    fn a_shard_that_was_called_back_takes_with_it_what_is_on_its_way() {
        let mut kept = Kept::default();
        let asked = kept.asked();
        keep(&mut kept, ID, "one", asked);
        assert_eq!(kept.recall_all(), 3);
        keep(&mut kept, OTHER, "two", asked);
        assert_eq!(kept.len(), 0);
    }

    #[test]
    fn when_it_is_tight_the_unused_go_and_what_nobody_may_show_goes_always() {
        let mut kept = Kept::default();
        let asked = kept.asked();
        keep(&mut kept, ID, "one", asked);
        keep(&mut kept, OTHER, "two", asked);
        let tidy = |kept: &mut Kept<_, _>, is_over: bool, tight| {
            let Tidied { bytes, evicted } = kept.tidy(|_| is_over, tight);
            (bytes, evicted)
        };
        assert_eq!(tidy(&mut kept, false, true), (0, vec![]), "they came since the last time");
        kept.get(ID).unwrap().is_used();
        assert_eq!(tidy(&mut kept, false, false), (0, vec![]));
        assert_eq!(tidy(&mut kept, false, true), (3, vec![('o', OTHER, 7)]));
        assert_eq!((shown(&kept, ID), shown(&kept, OTHER)), (Some("one"), None));
        assert_eq!(tidy(&mut kept, true, false), (3, vec![]), "nobody counts on what nobody may show");
        assert_eq!(kept.len(), 0);
    }
}
