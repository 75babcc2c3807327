//! Copies that are called back (ADR 0015) as a model: one entity, one reader, and three nodes to own it, one after the other.
//!
//! Time is in the order of steps: a session is over at its reader before it is over at its owner, before the owner's lease
//! is, and before a successor that keeps quiet goes on. Each guard has a test in which it is missing.

use stateright::{Checker, HasDiscoveries, Model, Property};

const NODES: usize = 3;

type Node = usize;
/// A state of the entity, by the number of its changes.
type Version = u8;
type Session = u8;

/// What keeps the promise; a test takes away one at a time.
#[derive(Clone, Copy, Debug)]
struct Guards {
    /// A change is sent to Postgres when copies are called back.
    called_back_first: bool,
    /// For whoever does not answer, its session is waited for.
    session_awaited: bool,
    /// Who is lent a copy is written down before the entity is read.
    entry_before_read: bool,
    /// Nothing is lent that is being called back.
    not_while_recalled: bool,
    /// Nor while everything of the shard is, with its door open.
    not_while_all_is_recalled: bool,
    /// An eviction erases the loan that it is about and no later one.
    loans_numbered: bool,
    /// Nothing is lent that a unit under way contains.
    not_while_under_way: bool,
    /// A reader does not keep what it asked for before a recall.
    recall_poisons: bool,
    /// A reader counts from before it asked.
    counted_from_asking: bool,
    /// What was lent in a session is over with it.
    sessions_numbered: bool,
    /// A session is over before the lease is.
    within_lease: bool,
    /// Copies are called back before a grant.
    called_back_for_grant: bool,
    /// Who takes over waits before it changes anything.
    quiet: bool,
    /// And before it hands anything on.
    quiet_before_grant: bool,
    /// A shard is taken over from the dead alone.
    from_the_dead: bool,
}

const ALL: Guards = Guards {
    called_back_first: true,
    session_awaited: true,
    entry_before_read: true,
    not_while_recalled: true,
    not_while_all_is_recalled: true,
    loans_numbered: true,
    not_while_under_way: true,
    recall_poisons: true,
    counted_from_asking: true,
    sessions_numbered: true,
    within_lease: true,
    called_back_for_grant: true,
    quiet: true,
    quiet_before_grant: true,
    from_the_dead: true,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// In Postgres.
    committed: Version,
    owner: Node,
    nodes: [Owner; NODES],
    ask: Option<Ask>,
    copy: Option<Copied>,
    /// News on its way that the reader has evicted a copy.
    evicted: Option<Copied>,
    /// The session of each node's that the reader takes to last.
    live: [Option<Session>; NODES],
    /// The latest that anybody could have been shown.
    seen: Version,
    asks: u8,
    changes: u8,
    moves: u8,
    /// Evictions, and recalls of everything.
    clearings: u8,
}

/// A node in its part as an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Owner {
    is_alive: bool,
    has_lease: bool,
    door: Door,
    memory: Version,
    unit: Option<Unit>,
    session: Option<Session>,
    sessions: u8,
    is_lent: bool,
    loan: u8,
    recall: Recall,
    /// Everything is called back, because it is much.
    recalls_all: bool,
    is_quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Door {
    Away,
    Open,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Unit {
    Recalling,
    Sent,
    /// It made this version.
    Done(Version),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Recall {
    None,
    /// On its way to the reader.
    Out,
    /// The answer is.
    Back,
}

/// What the reader asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ask {
    of: Node,
    is_poisoned: bool,
    entry: Option<Option<(Session, u8)>>,
    value: Option<Version>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Copied {
    of: Node,
    session: Session,
    loan: u8,
    value: Version,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Ask(Node),
    /// The owner writes down who asks, if it may lend.
    Enter,
    Read,
    /// The answer arrives; or never.
    Hear(bool),
    Extend(Node),
    /// The reader has no room for it any more.
    Evict,
    /// The owner hears of it.
    HearOfEviction,
    /// Too much is lent.
    CallBackAll(Node),
    SessionEndsAtReader(Node),
    SessionEndsAtOwner(Node),
    LeaseEnds(Node),
    Change(Node),
    /// The reader gets a recall.
    GiveBack(Node),
    /// The owner hears that it did.
    Returned(Node),
    /// Nothing is lent any more: the unit goes to Postgres.
    Send(Node),
    Execute(Node),
    Fold(Node),
    Die(Node),
    TakeOver(Node),
    QuietEnds(Node),
    Close(Node),
    Grant(Node, Node),
}

struct Copies {
    guards: Guards,
    changes_max: u8,
    asks_max: u8,
    moves_max: u8,
    clearings_max: u8,
}

impl Owner {
    fn serves(&self) -> bool {
        self.is_alive && self.has_lease && self.door == Door::Open
    }
}

impl State {
    fn first() -> Self {
        let away = Owner {
            is_alive: true,
            has_lease: true,
            door: Door::Away,
            memory: 0,
            unit: None,
            session: None,
            sessions: 0,
            is_lent: false,
            loan: 0,
            recall: Recall::None,
            recalls_all: false,
            is_quiet: false,
        };
        let nodes = [Owner { door: Door::Open, ..away }, away, away];
        Self {
            committed: 0,
            owner: 0,
            nodes,
            ask: None,
            copy: None,
            evicted: None,
            live: [None; NODES],
            seen: 0,
            asks: 0,
            changes: 0,
            moves: 0,
            clearings: 0,
        }
    }

    /// What whoever asks may be shown now.
    fn shown(&self, guards: Guards) -> impl Iterator<Item = Version> {
        let lasts = |copy: &Copied| match self.live[copy.of] {
            Some(session) => session == copy.session || !guards.sessions_numbered,
            None => false,
        };
        let copy = self.copy.filter(lasts).map(|copy| copy.value);
        self.nodes.iter().filter(|node| node.serves()).map(|node| node.memory).chain(copy)
    }

    fn open(&mut self, node: Node, is_quiet: bool) {
        self.moves += 1;
        self.owner = node;
        let memory = self.committed;
        let node = &mut self.nodes[node];
        (node.door, node.memory, node.is_quiet) = (Door::Open, memory, is_quiet);
    }

    /// Asks the reader for what it has, unless it has nothing.
    fn call_back(&mut self, node: Node) {
        let node = &mut self.nodes[node];
        if node.is_lent && node.recall == Recall::None {
            node.recall = Recall::Out;
        }
    }
}

impl Model for Copies {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::first()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let guards = self.guards;
        match state.ask {
            None if state.asks < self.asks_max => {
                steps.extend((0..NODES).filter(|node| state.nodes[*node].serves()).map(Step::Ask));
            }
            None => {}
            Some(Ask { entry: Some(_), value: Some(_), .. }) => steps.extend([Step::Hear(true), Step::Hear(false)]),
            Some(ask) => {
                let serves = state.nodes[ask.of].serves();
                if serves && ask.entry.is_none() && (guards.entry_before_read || ask.value.is_some()) {
                    steps.push(Step::Enter);
                }
                if serves && ask.value.is_none() && (ask.entry.is_some() || !guards.entry_before_read) {
                    steps.push(Step::Read);
                }
                steps.push(Step::Hear(false));
            }
        }
        if state.evicted.is_some() {
            steps.push(Step::HearOfEviction);
        } else if state.copy.is_some() && state.clearings < self.clearings_max {
            steps.push(Step::Evict);
        }
        for (n, node) in state.nodes.iter().enumerate() {
            let over_at_reader = state.live[n].is_none();
            if state.live[n].is_some() {
                steps.push(Step::SessionEndsAtReader(n));
            }
            if state.copy.is_some() && node.is_alive && node.has_lease && node.session.is_some() {
                steps.push(Step::Extend(n));
            }
            if node.session.is_some() && node.is_alive && (over_at_reader || !guards.session_awaited) {
                steps.push(Step::SessionEndsAtOwner(n));
            }
            if node.has_lease && state.owner == n && (over_at_reader || !guards.within_lease) {
                steps.push(Step::LeaseEnds(n));
            }
            match node.recall {
                Recall::None => {}
                Recall::Out => steps.push(Step::GiveBack(n)),
                Recall::Back => steps.push(Step::Returned(n)),
            }
            if node.unit == Some(Unit::Sent) {
                // Also after its sender is gone.
                steps.push(Step::Execute(n));
            }
            if !node.is_alive {
                continue;
            }
            if node.serves() && node.is_lent && node.recall == Recall::None && state.clearings < self.clearings_max {
                steps.push(Step::CallBackAll(n));
            }
            let quiet = node.is_quiet && guards.quiet;
            // Whoever calls back waits for the answer, also if an eviction was faster.
            let is_lent = node.is_lent || node.recall != Recall::None;
            match node.unit {
                None if node.serves() && state.changes < self.changes_max && !quiet => steps.push(Step::Change(n)),
                Some(Unit::Recalling) if !is_lent => steps.push(Step::Send(n)),
                Some(Unit::Done(_)) => steps.push(Step::Fold(n)),
                _ => {}
            }
            if node.is_quiet && state.live.iter().enumerate().all(|(of, live)| state.nodes[of].is_alive || live.is_none()) {
                steps.push(Step::QuietEnds(n));
            }
            if node.serves() && node.unit.is_none() {
                steps.push(Step::Close(n));
            }
            let has_to_wait = is_lent && guards.called_back_for_grant || node.is_quiet && guards.quiet_before_grant;
            let may_move = state.moves < self.moves_max;
            if may_move && node.door == Door::Closed && state.owner == n && node.has_lease && node.unit.is_none() && !has_to_wait
            {
                let others = (0..NODES).filter(|to| *to != n && state.nodes[*to].is_alive && state.nodes[*to].has_lease);
                steps.extend(others.map(|to| Step::Grant(n, to)));
            }
            let owner = &state.nodes[state.owner];
            if state.owner == n {
                steps.push(Step::Die(n));
            } else if may_move && node.has_lease && (!owner.is_alive || !owner.has_lease || !guards.from_the_dead) {
                steps.push(Step::TakeOver(n));
            }
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let (guards, mut state) = (self.guards, last.clone());
        match step {
            Step::Ask(of) => {
                state.asks += 1;
                state.ask = Some(Ask { of, is_poisoned: false, entry: None, value: None });
            }
            Step::Enter => {
                let ask = state.ask.as_mut()?;
                let node = &mut state.nodes[ask.of];
                let recalled = guards.not_while_recalled && node.unit == Some(Unit::Recalling)
                    || guards.not_while_all_is_recalled && node.recalls_all;
                let under_way = guards.not_while_under_way && matches!(node.unit, Some(Unit::Sent | Unit::Done(_)));
                ask.entry = Some(None);
                if !recalled && !under_way {
                    if node.session.is_none() {
                        node.sessions += 1;
                        node.session = Some(node.sessions);
                    }
                    node.loan += 1;
                    ask.entry = Some(node.session.map(|session| (session, node.loan)));
                    node.is_lent = true;
                }
            }
            Step::Read => {
                let ask = state.ask.as_mut()?;
                ask.value = Some(state.nodes[ask.of].memory);
                // What the session was when it was entered, if it still is.
                let session = state.nodes[ask.of].session;
                ask.entry = ask.entry.map(|entry| entry.filter(|(entry, _)| session == Some(*entry)));
            }
            Step::Hear(arrives) => {
                let ask = state.ask.take()?;
                let poisoned = ask.is_poisoned && guards.recall_poisons;
                if let (true, false, Some(Some((session, loan))), Some(value)) = (arrives, poisoned, ask.entry, ask.value) {
                    let in_time = state.nodes[ask.of].session == Some(session) || !guards.counted_from_asking;
                    if in_time {
                        state.live[ask.of] = Some(session);
                        state.copy = Some(Copied { of: ask.of, session, loan, value });
                    }
                }
            }
            Step::Extend(n) => {
                let copy = state.copy?;
                let session = state.nodes[n].session;
                if copy.of == n && (session == Some(copy.session) || !guards.sessions_numbered) {
                    state.live[n] = session;
                }
            }
            Step::Evict => {
                state.clearings += 1;
                state.evicted = state.copy.take();
                if let Some(ask) = &mut state.ask {
                    ask.is_poisoned = true;
                }
            }
            Step::HearOfEviction => {
                let gone = state.evicted.take()?;
                let node = &mut state.nodes[gone.of];
                if node.session == Some(gone.session) && (node.loan == gone.loan || !guards.loans_numbered) {
                    node.is_lent = false;
                }
            }
            Step::CallBackAll(n) => {
                state.clearings += 1;
                state.nodes[n].recalls_all = true;
                state.call_back(n);
            }
            Step::SessionEndsAtReader(n) => state.live[n] = None,
            Step::SessionEndsAtOwner(n) => {
                let node = &mut state.nodes[n];
                (node.session, node.is_lent, node.recall, node.recalls_all) = (None, false, Recall::None, false);
            }
            Step::LeaseEnds(n) => {
                state.nodes[n].has_lease = false;
                if guards.within_lease {
                    state.nodes[n].session = None;
                }
            }
            Step::Change(n) => {
                state.changes += 1;
                let lent = state.nodes[n].is_lent && guards.called_back_first;
                state.nodes[n].unit = Some(if lent { Unit::Recalling } else { Unit::Sent });
                state.call_back(n);
            }
            Step::GiveBack(n) => {
                state.copy = None;
                if let Some(ask) = &mut state.ask {
                    ask.is_poisoned = true;
                }
                state.nodes[n].recall = Recall::Back;
            }
            Step::Returned(n) => {
                let node = &mut state.nodes[n];
                (node.is_lent, node.recall, node.recalls_all) = (false, Recall::None, false);
            }
            Step::Send(n) => state.nodes[n].unit = Some(Unit::Sent),
            Step::Execute(n) => {
                // The fence.
                let is_owner = state.owner == n;
                state.committed += u8::from(is_owner);
                state.nodes[n].unit = is_owner.then_some(Unit::Done(state.committed));
            }
            Step::Fold(n) => {
                let Some(Unit::Done(version)) = state.nodes[n].unit.take() else { return None };
                state.nodes[n].memory = version;
                // Its client is told.
                state.seen = state.seen.max(version);
            }
            Step::Die(n) => {
                let node = &mut state.nodes[n];
                (node.is_alive, node.door) = (false, Door::Away);
                node.unit = node.unit.filter(|unit| *unit == Unit::Sent);
                (node.recall, node.recalls_all) = (Recall::None, false);
            }
            Step::TakeOver(n) => state.open(n, true),
            Step::QuietEnds(n) => {
                state.nodes[n].is_quiet = false;
                state.nodes.iter_mut().filter(|node| !node.is_alive).for_each(|node| node.session = None);
            }
            Step::Close(n) => {
                state.nodes[n].door = Door::Closed;
                if guards.called_back_for_grant {
                    state.call_back(n);
                }
            }
            Step::Grant(n, to) => {
                state.nodes[n].door = Door::Away;
                state.open(to, false);
            }
        }
        let seen = state.shown(guards).max().unwrap_or(0);
        state.seen = state.seen.max(seen);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NOT_STALE, |model: &Self, state: &State| state.shown(model.guards).all(|shown| shown == state.seen)),
            Property::sometimes("a copy outlives its owner", |model: &Self, state: &State| {
                state.copy.is_some_and(|copy| !state.nodes[copy.of].is_alive)
                    && state.nodes[state.owner].serves()
                    && state.shown(model.guards).count() == 2
            }),
            Property::sometimes("what was copied is changed by the next owner", |_, state: &State| {
                state.nodes.iter().any(|node| node.memory > 0) && state.owner != 0 && state.nodes[0].sessions > 0
            }),
        ]
    }
}

const NOT_STALE: &str = "nobody is shown what is no longer so";

/// Changes, questions, moves, and evictions with recalls of everything.
type Bounds = (u8, u8, u8, u8);

/// Goes everywhere within the bounds.
fn check((changes_max, asks_max, moves_max, clearings_max): Bounds) {
    let checker = Copies { guards: ALL, changes_max, asks_max, moves_max, clearings_max }.checker().threads(2).spawn_bfs().join();
    println!("{} states, {} of them different", checker.state_count(), checker.unique_state_count());
    checker.assert_no_discovery(NOT_STALE);
    // Each of these takes a second owner.
    for reached in ["a copy outlives its owner", "what was copied is changed by the next owner"] {
        assert_eq!(checker.discovery(reached).is_some(), moves_max > 0, "{reached}");
    }
}

#[test]
fn no_copy_is_stale_whatever_is_late_lost_or_dead() {
    check((1, 2, 1, 0));
    check((2, 1, 1, 0));
    check((1, 1, 2, 0));
    check((1, 2, 0, 1));
    check((1, 1, 1, 1));
}

#[test]
#[ignore = "ten million states; for whoever changes the protocol: cargo test --release -p rookery --test model -- --ignored"]
fn no_copy_is_stale_with_more_of_everything() {
    check((2, 2, 2, 1));
}

/// Whether somebody is shown something stale without a guard.
fn is_stale_without(guards: Guards) -> bool {
    // Where nothing is evicted and nothing called back at once, the others show as well.
    let clearings_max = u8::from(!guards.not_while_all_is_recalled || !guards.loans_numbered);
    let model = Copies { guards, changes_max: 2, asks_max: 2, moves_max: 2, clearings_max };
    let checker = model.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let path = checker.discovery(NOT_STALE);
    if let Some(path) = &path {
        println!("{:?}", path.clone().into_actions());
    }
    path.is_some()
}

#[test]
fn a_change_that_does_not_wait_for_copies_makes_them_stale() {
    assert!(is_stale_without(Guards { called_back_first: false, ..ALL }));
}

#[test]
fn a_reader_that_is_not_waited_for_shows_what_it_has() {
    assert!(is_stale_without(Guards { session_awaited: false, ..ALL }));
}

#[test]
fn what_is_read_before_it_is_written_down_who_asks_is_not_called_back() {
    assert!(is_stale_without(Guards { entry_before_read: false, ..ALL }));
}

#[test]
fn what_is_lent_while_it_is_called_back_or_changed_stays_out() {
    assert!(is_stale_without(Guards { not_while_recalled: false, not_while_under_way: false, ..ALL }));
    assert!(is_stale_without(Guards { not_while_under_way: false, ..ALL }));
}

#[test]
fn what_is_lent_while_everything_is_called_back_leaves_the_books_with_it() {
    assert!(is_stale_without(Guards { not_while_all_is_recalled: false, ..ALL }));
}

#[test]
fn news_of_an_eviction_erases_what_was_lent_since() {
    assert!(is_stale_without(Guards { loans_numbered: false, ..ALL }));
}

#[test]
fn an_owner_that_lives_is_robbed_and_shows_what_it_had() {
    assert!(is_stale_without(Guards { from_the_dead: false, ..ALL }));
}

#[test]
fn an_answer_that_a_recall_has_passed_would_be_kept() {
    assert!(is_stale_without(Guards { recall_poisons: false, ..ALL }));
}

#[test]
fn an_answer_of_an_owner_that_slept_would_be_kept() {
    assert!(is_stale_without(Guards { counted_from_asking: false, ..ALL }));
}

#[test]
fn a_new_session_would_revive_what_was_lent_in_the_former() {
    assert!(is_stale_without(Guards { sessions_numbered: false, ..ALL }));
}

#[test]
fn a_session_beyond_the_lease_outlives_a_takeover() {
    assert!(is_stale_without(Guards { within_lease: false, ..ALL }));
}

#[test]
fn a_grant_leaves_copies_that_nobody_knows_of() {
    assert!(is_stale_without(Guards { called_back_for_grant: false, ..ALL }));
}

#[test]
fn a_successor_that_does_not_wait_makes_copies_stale() {
    assert!(is_stale_without(Guards { quiet: false, ..ALL }));
}

#[test]
fn a_successor_that_hands_on_at_once_leaves_copies_behind() {
    assert!(is_stale_without(Guards { quiet_before_grant: false, ..ALL }));
}
