//! Pure. The search for an order: depth first, over a list of calls and returns from which what is ordered is taken out.

use std::collections::HashSet;

use super::{Call, Model};

/// How a search ended.
pub(super) enum Found<State> {
    /// An order, as indexes into the history.
    Order(Vec<usize>),
    /// There is none.
    Nothing {
        /// An order of all but one of those that returned, if there is one.
        best: Vec<usize>,
        /// The states that such orders leave, in which that one cannot follow.
        stuck_in: Vec<State>,
    },
    /// Too many steps.
    GaveUp { steps: u64 },
}

/// States in which a search stuck that are worth telling.
const STUCK_MAX: usize = 8;

/// Searches an order of the operations `chosen` from `history`. An operation counts as open if it has not returned.
pub(super) fn search<M: Model>(model: &M, history: &[Call<M::Op>], chosen: &[usize], steps_max: u64) -> Found<M::State> {
    let mut search = Search {
        model,
        history,
        list: List::of(history, chosen),
        done: Done::of(history, chosen),
        seen: HashSet::new(),
        stack: Vec::new(),
        best: Vec::new(),
        stuck_in: Vec::new(),
        steps: 0,
    };
    search.run(steps_max)
}

struct Search<'a, M: Model> {
    model: &'a M,
    history: &'a [Call<M::Op>],
    list: List,
    done: Done,
    /// Which operations were ordered with which state as the outcome: from there no order was found, or is being sought.
    seen: HashSet<(Progress, M::State)>,
    stack: Vec<Ordered<M::State>>,
    best: Vec<usize>,
    stuck_in: Vec<M::State>,
    steps: u64,
}

/// An operation that has its place in the order.
struct Ordered<State> {
    /// Its place in the list.
    call: usize,
    /// The state before it.
    before: State,
    /// Whether another one could have stood here instead.
    forced: bool,
}

/// Where to look for the next operation.
#[derive(Clone, Copy)]
enum Look {
    /// Among those that returned, from this place of the list on; then among all open ones.
    Closed(usize),
    /// Among the open ones. They come last: most never happened, or long before anyone can tell.
    Open(usize),
}

impl<M: Model> Search<'_, M> {
    fn run(&mut self, steps_max: u64) -> Found<M::State> {
        let mut state = self.model.initial();
        self.settle(&state);
        let mut look = Look::Closed(self.list.first());
        while self.done.missing > 0 {
            if self.steps > steps_max {
                return Found::GaveUp { steps: self.steps };
            }
            if let Some((call, next)) = self.choose(&state, look) {
                self.list.take_out(call);
                self.stack.push(Ordered { call, before: std::mem::replace(&mut state, next), forced: false });
                self.settle(&state);
                look = Look::Closed(self.list.first());
                continue;
            }
            // Whoever returns first had to be ordered by now: one of those that were was wrong.
            self.note_stuck(&state);
            match self.back() {
                Some((before, next)) => (state, look) = (before, next),
                None => {
                    let (best, stuck_in) = (std::mem::take(&mut self.best), std::mem::take(&mut self.stuck_in));
                    return Found::Nothing { best, stuck_in };
                }
            }
        }
        Found::Order(self.order())
    }

    /// Orders the reads that can stand here. An order that has one later could as well have it here: so this is no choice,
    /// and reads cost next to nothing.
    fn settle(&mut self, state: &M::State) {
        let mut at = self.list.first();
        while self.done.missing > 0
            && let Event { op, kind: Kind::Call { open }, .. } = self.list.events[at]
        {
            let call = &self.history[op].op;
            self.steps += 1;
            if !open && self.model.only_reads(call) && self.model.step(state, call).is_some() {
                let before = self.list.before(at);
                self.done.mark(op);
                self.list.take_out(at);
                self.stack.push(Ordered { call: at, before: state.clone(), forced: true });
                at = before;
            }
            at = self.list.next(at);
        }
    }

    /// The next operation that can stand here and leads to something new.
    fn choose(&mut self, state: &M::State, look: Look) -> Option<(usize, M::State)> {
        match look {
            Look::Closed(at) => {
                let closed = self.among(state, at, false);
                closed.or_else(|| self.among(state, self.list.first(), true))
            }
            Look::Open(at) => self.among(state, at, true),
        }
    }

    fn among(&mut self, state: &M::State, mut at: usize, wanted_open: bool) -> Option<(usize, M::State)> {
        // As long as an operation is missing, its return stands in the list.
        while let Event { op, kind: Kind::Call { open }, .. } = self.list.events[at] {
            if open == wanted_open {
                self.steps += 1;
                // An open one that changes nothing might as well never happen, and stays free to do so later.
                let next = self.model.step(state, &self.history[op].op).filter(|next| !open || next != state);
                if let Some(next) = next {
                    self.done.mark(op);
                    if self.seen.insert((self.done.progress(), next.clone())) {
                        return Some((at, next));
                    }
                    self.done.unmark(op);
                }
            }
            at = self.list.next(at);
        }
        None
    }

    /// Takes the last choice back; the state before it, and where to look for another one.
    fn back(&mut self) -> Option<(M::State, Look)> {
        loop {
            let Ordered { call, before, forced } = self.stack.pop()?;
            let Event { op, kind, .. } = self.list.events[call];
            self.done.unmark(op);
            self.list.put_back(call);
            if !forced {
                let next = self.list.next(call);
                return Some((before, if kind == (Kind::Call { open: true }) { Look::Open(next) } else { Look::Closed(next) }));
            }
        }
    }

    /// Remembers where everything but one operation is ordered: that one cannot be.
    fn note_stuck(&mut self, state: &M::State) {
        if self.done.missing == 1 && self.stuck_in.len() < STUCK_MAX && !self.stuck_in.contains(state) {
            self.stuck_in.push(state.clone());
            self.best = self.order();
        }
    }

    fn order(&self) -> Vec<usize> {
        self.stack.iter().map(|ordered| self.list.events[ordered.call].op).collect()
    }
}

#[derive(Clone, Copy)]
struct Event {
    /// Index into the history.
    op: usize,
    kind: Kind,
    /// Of a call, where its return stands.
    other: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Call { open: bool },
    Return,
}

/// Calls and returns in the order of time, linked in both directions, so that a pair is taken out and put back at once.
struct List {
    events: Vec<Event>,
    links: Vec<(usize, usize)>,
}

/// No place.
const NONE: usize = usize::MAX;

impl List {
    fn of<Op>(history: &[Call<Op>], chosen: &[usize]) -> Self {
        let mut moments: Vec<(u64, Kind, usize)> = Vec::with_capacity(2 * chosen.len() + 1);
        for op in chosen.iter().copied() {
            let call = &history[op];
            moments.push((call.invoked, Kind::Call { open: call.returned.is_none() }, op));
            moments.extend(call.returned.map(|returned| (returned, Kind::Return, op)));
        }
        // At the same moment the call stands before the return: then the two overlap, and may be ordered either way.
        moments.sort_by_key(|(at, kind, op)| (*at, *kind == Kind::Return, *op));
        let mut calls = vec![NONE; history.len()];
        // The first is an anchor, so that there is always one before.
        let mut events = vec![Event { op: NONE, kind: Kind::Return, other: NONE }];
        for (_, kind, op) in moments {
            let at = events.len();
            events.push(Event { op, kind, other: NONE });
            match kind {
                Kind::Call { .. } => calls[op] = at,
                Kind::Return => events[calls[op]].other = at,
            }
        }
        let count = events.len();
        let links = (0..count).map(|at| (at.wrapping_sub(1), if at + 1 < count { at + 1 } else { NONE })).collect();
        Self { events, links }
    }

    fn first(&self) -> usize {
        self.next(0)
    }

    fn next(&self, at: usize) -> usize {
        self.links[at].1
    }

    fn before(&self, at: usize) -> usize {
        self.links[at].0
    }

    fn take_out(&mut self, call: usize) {
        self.unlink(call);
        if self.events[call].other != NONE {
            self.unlink(self.events[call].other);
        }
    }

    fn put_back(&mut self, call: usize) {
        if self.events[call].other != NONE {
            self.relink(self.events[call].other);
        }
        self.relink(call);
    }

    fn unlink(&mut self, at: usize) {
        let (before, after) = self.links[at];
        self.links[before].1 = after;
        if after != NONE {
            self.links[after].0 = before;
        }
    }

    fn relink(&mut self, at: usize) {
        let (before, after) = self.links[at];
        self.links[before].1 = at;
        if after != NONE {
            self.links[after].0 = at;
        }
    }
}

/// Which operations are ordered.
struct Done {
    /// Place of each operation: those that returned first, by their calls; then the open ones.
    places: Vec<usize>,
    words: Vec<u64>,
    /// All words before it are full.
    full: usize,
    /// Operations that returned and are not ordered yet.
    missing: usize,
    closed: usize,
}

/// What is ordered, without the beginning that everybody shares: few bytes, however long the history is.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Progress {
    full: u32,
    words: Box<[u64]>,
}

impl Done {
    fn of<Op>(history: &[Call<Op>], chosen: &[usize]) -> Self {
        let mut sorted = chosen.to_vec();
        sorted.sort_by_key(|op| (history[*op].returned.is_none(), history[*op].invoked));
        let mut places = vec![NONE; history.len()];
        for (place, op) in sorted.iter().enumerate() {
            places[*op] = place;
        }
        let closed = sorted.iter().filter(|op| history[**op].returned.is_some()).count();
        Self { places, words: vec![0; sorted.len().div_ceil(64)], full: 0, missing: closed, closed }
    }

    fn mark(&mut self, op: usize) {
        let place = self.places[op];
        self.words[place / 64] |= 1 << (place % 64);
        self.missing -= usize::from(place < self.closed);
        while self.words.get(self.full) == Some(&u64::MAX) {
            self.full += 1;
        }
    }

    fn unmark(&mut self, op: usize) {
        let place = self.places[op];
        self.words[place / 64] &= !(1 << (place % 64));
        self.missing += usize::from(place < self.closed);
        self.full = self.full.min(place / 64);
    }

    fn progress(&self) -> Progress {
        // Behind the first gap little is ordered among those that returned; among the open ones, here and there one.
        let rest = &self.words[self.full..];
        let end = rest.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        let mut words = Vec::with_capacity(8);
        let mut empty = 0;
        for word in &rest[..end] {
            if *word == 0 {
                empty += 1;
            } else {
                // A word of zero is followed by how many there are: a run of gaps costs two.
                if empty > 0 {
                    words.extend([0, std::mem::take(&mut empty)]);
                }
                words.push(*word);
            }
        }
        Progress { full: u32::try_from(self.full).expect("a history is in memory"), words: words.into() }
    }
}
