//! Pure. Which readers may have copies of the entities of a shard.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

/// Entries of a shard: beyond them nothing is lent until all of it was called back.
const ENTRIES_MAX: usize = 4_096;

/// What is lent of a shard, to readers `R`: by the word of their owner, so never less than they have.
#[derive(Debug)]
pub(crate) struct Lent<R> {
    holders: HashMap<Uuid, Vec<R>>,
    entries: usize,
    /// Entities whose copies are being called back, and by how many.
    recalling: HashMap<Uuid, u32>,
    /// Entities whose state in memory may be older than what is committed.
    unsure: HashSet<Uuid>,
}

impl<R> Default for Lent<R> {
    fn default() -> Self {
        Self { holders: HashMap::new(), entries: 0, recalling: HashMap::new(), unsure: HashSet::new() }
    }
}

impl<R: Clone + PartialEq> Lent<R> {
    /// Notes that a reader is about to get a copy. False: it must not.
    pub(crate) fn lend(&mut self, id: Uuid, reader: &R) -> bool {
        if self.is_full() || self.recalling.contains_key(&id) || self.unsure.contains(&id) {
            return false;
        }
        let holders = self.holders.entry(id).or_default();
        if !holders.contains(reader) {
            holders.push(reader.clone());
            self.entries += 1;
        }
        true
    }

    pub(crate) fn is_full(&self) -> bool {
        self.entries >= ENTRIES_MAX
    }

    pub(crate) fn entries(&self) -> usize {
        self.entries
    }

    /// Whether somebody may have a copy of one of these.
    pub(crate) fn is_any_lent(&self, ids: &[Uuid]) -> bool {
        !self.holders.is_empty() && ids.iter().any(|id| self.holders.contains_key(id))
    }

    /// Lends nothing more of these until [`Lent::end_recall`]; who may have copies, and of which of them.
    pub(crate) fn begin_recall(&mut self, ids: &[Uuid]) -> Vec<(R, Vec<Uuid>)> {
        let mut by_reader: Vec<(R, Vec<Uuid>)> = Vec::new();
        for id in ids {
            *self.recalling.entry(*id).or_default() += 1;
            for reader in self.holders.get(id).into_iter().flatten() {
                match by_reader.iter_mut().find(|(known, _)| known == reader) {
                    Some((_, theirs)) => theirs.push(*id),
                    None => by_reader.push((reader.clone(), vec![*id])),
                }
            }
        }
        by_reader
    }

    /// Whoever called these back is through with it, or has given up.
    pub(crate) fn end_recall(&mut self, ids: &[Uuid]) {
        for id in ids {
            if let Some(count) = self.recalling.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    self.recalling.remove(id);
                }
            }
        }
    }

    /// A reader has no copies of these any more.
    pub(crate) fn returned(&mut self, reader: &R, ids: &[Uuid]) {
        for id in ids {
            let Some(holders) = self.holders.get_mut(id) else { continue };
            let before = holders.len();
            holders.retain(|holder| holder != reader);
            self.entries -= before - holders.len();
            if holders.is_empty() {
                self.holders.remove(id);
            }
        }
    }

    /// Who may have copies of anything.
    pub(crate) fn readers(&self) -> Vec<R> {
        let mut readers: Vec<R> = Vec::new();
        for reader in self.holders.values().flatten() {
            if !readers.contains(reader) {
                readers.push(reader.clone());
            }
        }
        readers
    }

    /// Forgets the readers who have none any more, or are over.
    pub(crate) fn forget(&mut self, is_gone: impl Fn(&R) -> bool) {
        self.holders.retain(|_, holders| {
            holders.retain(|holder| !is_gone(holder));
            !holders.is_empty()
        });
        self.entries = self.holders.values().map(Vec::len).sum();
    }

    /// These were committed, and memory does not know.
    pub(crate) fn doubt(&mut self, ids: &[Uuid]) {
        self.unsure.extend(ids);
    }

    /// This was loaded.
    pub(crate) fn trust(&mut self, id: Uuid) {
        self.unsure.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    #[test]
    fn what_is_called_back_is_lent_to_nobody_meanwhile() {
        let mut lent = Lent::default();
        assert!(lent.lend(id(1), &'a') && lent.lend(id(1), &'b') && lent.lend(id(2), &'b'));
        assert_eq!(lent.begin_recall(&[id(1), id(2)]), [('a', vec![id(1)]), ('b', vec![id(1), id(2)])]);
        assert!(!lent.lend(id(1), &'c'));
        lent.returned(&'a', &[id(1)]);
        assert!(lent.is_any_lent(&[id(1)]), "the other one has not answered");
        lent.returned(&'b', &[id(1), id(2)]);
        assert!(!lent.is_any_lent(&[id(1), id(2)]) && !lent.lend(id(1), &'c'));
        lent.end_recall(&[id(1), id(2)]);
        assert!(lent.lend(id(1), &'c'));
    }

    #[test]
    fn a_recall_that_is_given_up_leaves_what_was_not_returned() {
        let mut lent = Lent::default();
        lent.lend(id(1), &'a');
        lent.begin_recall(&[id(1)]);
        lent.end_recall(&[id(1)]);
        assert!(lent.is_any_lent(&[id(1)]), "the next one calls it back again");
    }

    #[test]
    fn nothing_is_lent_of_what_memory_is_not_sure_of() {
        let mut lent = Lent::default();
        lent.doubt(&[id(1)]);
        assert!(!lent.lend(id(1), &'a'));
        lent.trust(id(1));
        assert!(lent.lend(id(1), &'a'));
    }

    #[test]
    fn entries_are_bounded() {
        let mut lent = Lent::default();
        for n in 0..ENTRIES_MAX {
            assert!(lent.lend(id(n as u128), &'a'));
        }
        assert!(!lent.lend(id(1 << 60), &'a') && lent.is_full());
        assert_eq!(lent.readers(), ['a']);
        lent.forget(|reader| *reader == 'a');
        assert!(lent.lend(id(1 << 60), &'b'));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Lend(u8, u8),
        Begin(u8),
        Return(u8, u8),
        End,
        Gone(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4u8, 0..3u8).prop_map(|(id, reader)| Step::Lend(id, reader)),
            (0..4u8).prop_map(Step::Begin),
            (0..4u8, 0..3u8).prop_map(|(id, reader)| Step::Return(id, reader)),
            Just(Step::End),
            (0..3u8).prop_map(Step::Gone),
        ]
    }

    proptest! {
        /// What the table says against a plain set of pairs.
        #[test]
        fn it_knows_of_every_copy(steps in proptest::collection::vec(step(), 0..60)) {
            let mut lent = Lent::default();
            let mut copies: HashSet<(u8, u8)> = HashSet::new();
            let mut recalls: Vec<u8> = Vec::new();
            let of = |n: u8| id(u128::from(n));
            for step in steps {
                match step {
                    Step::Lend(n, reader) => {
                        let may = lent.lend(of(n), &reader);
                        prop_assert_eq!(may, !recalls.contains(&n));
                        if may {
                            copies.insert((n, reader));
                        }
                    }
                    Step::Begin(n) => {
                        let told = lent.begin_recall(&[of(n)]).len();
                        prop_assert_eq!(told, copies.iter().filter(|(of, _)| *of == n).count());
                        recalls.push(n);
                    }
                    Step::Return(n, reader) => {
                        lent.returned(&reader, &[of(n)]);
                        copies.remove(&(n, reader));
                    }
                    Step::End => {
                        if let Some(n) = recalls.pop() {
                            lent.end_recall(&[of(n)]);
                        }
                    }
                    Step::Gone(reader) => {
                        lent.forget(|holder| *holder == reader);
                        copies.retain(|(_, holder)| *holder != reader);
                    }
                }
                prop_assert_eq!(lent.entries(), copies.len());
                for n in 0..4 {
                    prop_assert_eq!(lent.is_any_lent(&[of(n)]), copies.iter().any(|(of, _)| *of == n));
                }
            }
        }
    }
}
