//! The owner's books and what readers keep, together: messages between them are as late as they like, and pass each other.

use std::sync::Arc;

use proptest::prelude::*;
use uuid::Uuid;

use super::{
    kept::{Asked, Kept},
    lent::Lent,
};

const READERS: usize = 2;
const ENTITIES: u128 = 3;
/// Few, so that the books are full now and then.
const ENTRIES_MAX: usize = 4;

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

/// A question on its way, its answer, or both.
struct Ask {
    reader: usize,
    id: Uuid,
    asked: Asked,
    /// None: the owner has not heard it. Then the loan, if there is one.
    heard: Option<Option<u64>>,
}

/// A recall, of one entity or of all, and how far each reader has come with it.
struct Recall {
    of: Option<Uuid>,
    readers: Vec<(usize, At)>,
}

#[derive(Clone, Copy, PartialEq)]
enum At {
    Asked,
    GivenBack,
    Answered,
}

struct World {
    lent: Lent<usize>,
    kept: [Kept<(), ()>; READERS],
    asks: Vec<Ask>,
    evictions: Vec<(usize, Uuid, u64)>,
    recalls: Vec<Recall>,
}

#[derive(Clone, Debug)]
enum Step {
    Ask(usize, u128),
    Lend(usize),
    Arrive(usize),
    Evict(usize),
    HearOfEviction(usize),
    RecallOf(u128),
    RecallOfAll,
    GiveBack(usize),
    Answered(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..READERS, 0..ENTITIES).prop_map(|(reader, n)| Step::Ask(reader, n)),
        4 => (0..4usize).prop_map(Step::Lend),
        4 => (0..4usize).prop_map(Step::Arrive),
        2 => (0..READERS).prop_map(Step::Evict),
        2 => (0..4usize).prop_map(Step::HearOfEviction),
        1 => (0..ENTITIES).prop_map(Step::RecallOf),
        1 => Just(Step::RecallOfAll),
        4 => (0..4usize).prop_map(Step::GiveBack),
        4 => (0..4usize).prop_map(Step::Answered),
    ]
}

impl World {
    fn new() -> Self {
        Self {
            lent: Lent::new(ENTRIES_MAX),
            kept: Default::default(),
            asks: Vec::new(),
            evictions: Vec::new(),
            recalls: Vec::new(),
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Ask(reader, n) => {
                let asked = self.kept[reader].asked();
                self.asks.push(Ask { reader, id: id(n), asked, heard: None });
            }
            Step::Lend(n) => {
                let Some(ask) = self.asks.iter_mut().filter(|ask| ask.heard.is_none()).nth(n) else { return };
                ask.heard = Some(self.lent.lend(ask.id, &ask.reader));
            }
            Step::Arrive(n) => {
                let answered: Vec<usize> = (0..self.asks.len()).filter(|n| self.asks[*n].heard.is_some()).collect();
                let Some(n) = answered.get(n) else { return };
                let Ask { reader, id, asked, heard } = self.asks.remove(*n);
                if let Some(loan) = heard.flatten() {
                    self.kept[reader].keep(id, Arc::new(()), ((), loan), 1, asked);
                }
            }
            Step::Evict(reader) => {
                // The first look finds everything used.
                let kept = &mut self.kept[reader];
                let (first, second) = (kept.tidy(|()| false, true), kept.tidy(|()| false, true));
                let evicted = first.evicted.into_iter().chain(second.evicted);
                self.evictions.extend(evicted.map(|((), id, loan)| (reader, id, loan)));
            }
            Step::HearOfEviction(n) => {
                if n < self.evictions.len() {
                    let (reader, id, loan) = self.evictions.remove(n);
                    self.lent.evicted(&reader, id, loan);
                }
            }
            Step::RecallOf(n) => {
                let readers = self.lent.begin_recall(&[id(n)]);
                self.recall(Some(id(n)), readers.into_iter().map(|(reader, _)| reader).collect());
            }
            Step::RecallOfAll => {
                let readers = self.lent.begin_recall_of_all();
                self.recall(None, readers);
            }
            Step::GiveBack(n) => {
                let Some((of, reader)) = self.advance(n, At::Asked, At::GivenBack) else { return };
                let _bytes = match of {
                    Some(id) => self.kept[reader].recall(id),
                    None => self.kept[reader].recall_all(),
                };
            }
            Step::Answered(n) => {
                let Some((of, reader)) = self.advance(n, At::GivenBack, At::Answered) else { return };
                match of {
                    Some(id) => self.lent.returned(&reader, &[id]),
                    None => self.lent.forget(|holder| *holder == reader),
                }
                self.end_recalls();
            }
        }
    }

    fn recall(&mut self, of: Option<Uuid>, readers: Vec<usize>) {
        self.recalls.push(Recall { of, readers: readers.into_iter().map(|reader| (reader, At::Asked)).collect() });
        self.end_recalls();
    }

    /// Moves the n-th reader on that is there; what of, and which.
    fn advance(&mut self, n: usize, from: At, to: At) -> Option<(Option<Uuid>, usize)> {
        let all = self.recalls.iter_mut().flat_map(|recall| recall.readers.iter_mut().map(|reader| (recall.of, reader)));
        let (of, (reader, at)) = all.filter(|(_, (_, at))| *at == from).nth(n)?;
        *at = to;
        Some((of, *reader))
    }

    fn end_recalls(&mut self) {
        let is_over = |recall: &mut Recall| recall.readers.iter().all(|(_, at)| *at == At::Answered);
        for over in self.recalls.extract_if(.., is_over) {
            match over.of {
                Some(id) => self.lent.end_recall(&[id]),
                None => self.lent.end_recall_of_all(),
            }
        }
    }

    /// Whether the owner would ask this reader for its copy.
    fn is_booked(&mut self, reader: usize, id: Uuid) -> bool {
        let holders = self.lent.begin_recall(&[id]);
        self.lent.end_recall(&[id]);
        holders.iter().any(|(holder, _)| *holder == reader)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// What was broken: an answer to a recall of everything erased what was lent after the question.
    #[test]
    fn every_copy_is_in_the_books(steps in proptest::collection::vec(step(), 0..60)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
            for reader in 0..READERS {
                for n in 0..ENTITIES {
                    if world.kept[reader].get(id(n)).is_some() {
                        prop_assert!(world.is_booked(reader, id(n)), "reader {} keeps {} unbeknown to the owner", reader, n);
                    }
                }
            }
        }
    }
}
