//! Pure. Which readers may have copies of the entities of a shard.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

/// What is lent of a shard, to readers `R`: by the word of their owner, so never less than they have.
#[derive(Debug)]
pub(crate) struct Lent<R> {
    holders: HashMap<Uuid, Vec<Holder<R>>>,
    entries: usize,
    /// Beyond so many entries nothing is lent until all of it was called back.
    entries_max: usize,
    loans: u64,
    /// Entities whose copies are being called back, and by how many.
    recalling: HashMap<Uuid, u32>,
    /// Recalls of everything that are under way.
    recalls_of_all: u32,
    /// Entities whose state in memory may be older than what is committed.
    unsure: HashSet<Uuid>,
}

/// Who may have a copy, and the number of its latest loan.
#[derive(Debug)]
struct Holder<R> {
    reader: R,
    loan: u64,
}

impl<R: Clone + PartialEq> Lent<R> {
    pub(crate) fn new(entries_max: usize) -> Self {
        Self {
            holders: HashMap::new(),
            entries: 0,
            entries_max,
            loans: 0,
            recalling: HashMap::new(),
            recalls_of_all: 0,
            unsure: HashSet::new(),
        }
    }

    /// Notes that a reader is about to get a copy; the number of the loan. None: it must not keep it.
    ///
    /// Nothing is lent while it is called back: the answer to a recall erases what was lent before the question, and would
    /// erase what was lent after it.
    pub(crate) fn lend(&mut self, id: Uuid, reader: &R) -> Option<u64> {
        if self.is_full() || self.is_recalled() || self.recalling.contains_key(&id) || self.unsure.contains(&id) {
            return None;
        }
        self.loans += 1;
        let loan = self.loans;
        let holders = self.holders.entry(id).or_default();
        match holders.iter_mut().find(|holder| holder.reader == *reader) {
            Some(holder) => holder.loan = loan,
            None => {
                holders.push(Holder { reader: reader.clone(), loan });
                self.entries += 1;
            }
        }
        Some(loan)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.entries >= self.entries_max
    }

    /// Whether everything is being called back.
    pub(crate) fn is_recalled(&self) -> bool {
        self.recalls_of_all > 0
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
            for Holder { reader, .. } in self.holders.get(id).into_iter().flatten() {
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

    /// Lends nothing at all until [`Lent::end_recall_of_all`]; who may have copies of anything.
    pub(crate) fn begin_recall_of_all(&mut self) -> Vec<R> {
        self.recalls_of_all += 1;
        self.readers()
    }

    /// Whoever called everything back is through with it, or has given up.
    pub(crate) fn end_recall_of_all(&mut self) {
        self.recalls_of_all -= 1;
    }

    /// A reader has no copies of these any more: it was asked for them.
    pub(crate) fn returned(&mut self, reader: &R, ids: &[Uuid]) {
        for id in ids {
            self.erase(id, |holder| holder.reader == *reader);
        }
    }

    /// A reader has evicted what it got by this loan, and keeps nothing by an earlier one. By a later one it may.
    pub(crate) fn evicted(&mut self, reader: &R, id: Uuid, loan: u64) {
        self.erase(&id, |holder| holder.reader == *reader && holder.loan == loan);
    }

    fn erase(&mut self, id: &Uuid, is_gone: impl Fn(&Holder<R>) -> bool) {
        let Some(holders) = self.holders.get_mut(id) else { return };
        let before = holders.len();
        holders.retain(|holder| !is_gone(holder));
        self.entries -= before - holders.len();
        if holders.is_empty() {
            self.holders.remove(id);
        }
    }

    /// Who may have copies of anything.
    pub(crate) fn readers(&self) -> Vec<R> {
        let mut readers: Vec<R> = Vec::new();
        for Holder { reader, .. } in self.holders.values().flatten() {
            if !readers.contains(reader) {
                readers.push(reader.clone());
            }
        }
        readers
    }

    /// Forgets the readers who have none any more, or are over.
    pub(crate) fn forget(&mut self, is_gone: impl Fn(&R) -> bool) {
        self.holders.retain(|_, holders| {
            holders.retain(|holder| !is_gone(&holder.reader));
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
        let mut lent = Lent::new(4);
        assert_eq!([(1, 'a'), (1, 'b'), (2, 'b')].map(|(n, reader)| lent.lend(id(n), &reader)), [Some(1), Some(2), Some(3)]);
        assert_eq!(lent.begin_recall(&[id(1), id(2)]), [('a', vec![id(1)]), ('b', vec![id(1), id(2)])]);
        assert_eq!(lent.lend(id(1), &'c'), None);
        lent.returned(&'a', &[id(1)]);
        assert!(lent.is_any_lent(&[id(1)]), "the other one has not answered");
        lent.returned(&'b', &[id(1), id(2)]);
        assert!(!lent.is_any_lent(&[id(1), id(2)]) && lent.lend(id(1), &'c').is_none());
        lent.end_recall(&[id(1), id(2)]);
        assert!(lent.lend(id(1), &'c').is_some());
    }

    #[test]
    fn a_recall_that_is_given_up_leaves_what_was_not_returned() {
        let mut lent = Lent::new(4);
        lent.lend(id(1), &'a');
        lent.begin_recall(&[id(1)]);
        lent.end_recall(&[id(1)]);
        assert!(lent.is_any_lent(&[id(1)]), "the next one calls it back again");
    }

    #[test]
    fn nothing_is_lent_of_what_memory_is_not_sure_of() {
        let mut lent = Lent::new(4);
        lent.doubt(&[id(1)]);
        assert!(lent.lend(id(1), &'a').is_none());
        lent.trust(id(1));
        assert!(lent.lend(id(1), &'a').is_some());
    }

    #[test]
    fn entries_are_bounded() {
        let mut lent = Lent::new(4);
        for n in 0..4 {
            assert!(lent.lend(id(n), &'a').is_some());
        }
        assert!(lent.lend(id(5), &'a').is_none() && lent.is_full());
        assert_eq!(lent.readers(), ['a']);
        lent.forget(|reader| *reader == 'a');
        assert!(lent.lend(id(5), &'b').is_some());
    }

    /// What was broken: the first answer made room, and what was lent after the question went with the second one.
    #[test]
    fn while_everything_is_called_back_nothing_is_lent() {
        let mut lent = Lent::new(4);
        assert!(lent.lend(id(1), &'a').is_some() && lent.lend(id(2), &'b').is_some());
        assert_eq!(lent.begin_recall_of_all().len(), 2);
        lent.forget(|reader| *reader == 'a');
        assert!(lent.lend(id(2), &'b').is_none() && lent.lend(id(3), &'c').is_none());
        lent.forget(|reader| *reader == 'b');
        lent.end_recall_of_all();
        assert!(lent.lend(id(2), &'b').is_some() && lent.is_any_lent(&[id(2)]));
    }

    #[test]
    fn an_eviction_erases_its_own_loan_and_no_later_one() {
        let mut lent = Lent::new(4);
        let first = lent.lend(id(1), &'a').unwrap();
        let second = lent.lend(id(1), &'a').unwrap();
        lent.evicted(&'a', id(1), first);
        assert!(lent.is_any_lent(&[id(1)]), "it was lent again before the news came");
        lent.evicted(&'b', id(1), second);
        lent.evicted(&'a', id(1), second);
        assert!(!lent.is_any_lent(&[id(1)]) && lent.entries() == 0);
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
            let mut lent = Lent::new(100);
            let mut copies: HashSet<(u8, u8)> = HashSet::new();
            let mut recalls: Vec<u8> = Vec::new();
            let of = |n: u8| id(u128::from(n));
            for step in steps {
                match step {
                    Step::Lend(n, reader) => {
                        let may = lent.lend(of(n), &reader).is_some();
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
