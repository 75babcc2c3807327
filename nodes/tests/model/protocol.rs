//! What may happen next: every step is one statement in Postgres, one thing that a node does, or one thing that breaks.

use stateright::{Model, Property};

use crate::state::*;

/// What keeps the promises; a test takes away one at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guards {
    /// A takeover appends an epoch record (rule 2).
    pub(crate) epoch_record: bool,
    /// A takeover goes by the owner and the epoch that were seen (rule 2).
    pub(crate) takeover_compares: bool,
    /// So does a grant.
    pub(crate) grant_compares: bool,
    /// Who is in doubt takes over from itself before it looks for its batch (rule 3).
    pub(crate) takeover_before_looking: bool,
    /// The same for a grant, before it serves again.
    pub(crate) takeover_before_reopening: bool,
    /// And then goes by its own epoch.
    pub(crate) same_epoch: bool,
    /// Nobody is declared dead while its lease may last.
    pub(crate) death_after_lease: bool,
    /// A read checks the lease (rule 8).
    pub(crate) lease_checked: bool,
    /// The door is closed before the grant is sent (rule 8).
    pub(crate) closed_before_grant: bool,
    /// Only what was never served under its epoch is opened without a takeover.
    pub(crate) untouched_only: bool,
    /// Whose a shard is and where its log ends are read in one snapshot.
    pub(crate) one_snapshot: bool,
    /// What was decided under one tenure is not numbered under a later one (rule 15a).
    pub(crate) numbered_as_decided: bool,
}

pub(crate) const ALL: Guards = Guards {
    epoch_record: true,
    takeover_compares: true,
    grant_compares: true,
    takeover_before_looking: true,
    takeover_before_reopening: true,
    same_epoch: true,
    death_after_lease: true,
    lease_checked: true,
    closed_before_grant: true,
    untouched_only: true,
    one_snapshot: true,
    numbered_as_decided: true,
};

/// How far it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) shards: usize,
    /// Commands of clients.
    pub(crate) writes: Write,
    /// Changes of hands, of all shards together.
    pub(crate) changes: Epoch,
    pub(crate) deaths: usize,
    /// Connections that die, answers that are lost, shards that are dropped.
    pub(crate) faults: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Ownership {
    pub(crate) guards: Guards,
    pub(crate) bounds: Bounds,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Somebody has not seen it renew for longer than its lease, which has ended by then. That it ends before is no step
    /// of its own: without one a node may only do less.
    DeclareDead(Node),
    /// Takes an orphan; or the answer is lost.
    TakeOver(Node, Shard, Heard),
    /// Opens what somebody granted, or a takeover brought whose answer was lost.
    Adopt(Node, Shard),
    /// Without a guard: reads the row, to act on it later.
    See(Node, Shard),
    /// Without `one_snapshot`: opens a shard at the end of its log, under the epoch that it saw before.
    AdoptUnder(Node, Shard, Epoch),
    /// Takes over from itself what is its own and not served.
    TakeBack(Node, Shard, Heard),
    /// Stops serving a shard without losing it, and begins anew.
    Restart(Node, Shard),
    /// Sends a batch with a command for each of these shards.
    Commit(Node, Vec<Shard>),
    /// Without `numbered_as_decided`: a batch that was decided some time ago is numbered, and sent.
    Number(Node),
    /// Postgres executes what a node has in flight.
    Execute(Node),
    /// The answer arrives.
    Hear(Node),
    /// The connection dies.
    Lose(Node),
    /// Resolves an open batch; or the answer to that is lost.
    Resolve(Node, Heard),
    /// Closes the door, to hand the shard to another member, and sends the grant unless something is in flight.
    Close(Node, Shard, Node),
    /// Nothing is in flight any more.
    Grant(Node, Shard),
    ExecuteGrant(Node, Shard),
    HearGrant(Node, Shard),
    LoseGrant(Node, Shard),
    ResolveGrant(Node, Shard, Heard),
    /// A statement of a session that is gone is executed after all.
    Haunt(usize),
}

/// Whether the answer to a statement arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Yes,
    No,
}

impl Step {
    fn is_fault(&self) -> bool {
        match self {
            Self::Restart(..) | Self::Lose(_) | Self::LoseGrant(..) => true,
            Self::TakeOver(.., heard) | Self::TakeBack(.., heard) | Self::Resolve(_, heard) | Self::ResolveGrant(.., heard) => {
                *heard == Heard::No
            }
            _ => false,
        }
    }
}

pub(crate) const HEARD: [Heard; 2] = [Heard::Yes, Heard::No];

impl Model for Ownership {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::first()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        for node in 0..NODES {
            self.members(state, node, steps);
            self.batches(state, node, steps);
            for shard in 0..self.bounds.shards {
                self.tenures(state, node, shard, steps);
            }
        }
        steps.extend((0..state.ghosts.len()).map(Step::Haunt));
        if state.faults == self.bounds.faults {
            steps.retain(|step| !step.is_fault());
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        state.faults += usize::from(step.is_fault());
        self.take(&mut state, step);
        self.forget(&mut state);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("at most one epoch commits, and epochs only grow", |_, state: &State| {
                let logs = &state.database.logs;
                logs.iter()
                    .all(|log| log.iter().all(|entry| entry.epoch == entry.truth) && log.is_sorted_by_key(|entry| entry.epoch))
            }),
            Property::always("the log is free of gaps", |_, state: &State| {
                state.database.logs.iter().all(|log| (1..).zip(log).all(|(seq, entry)| entry.seq == seq))
            }),
            Property::always("acknowledged is committed", |_, state: &State| {
                let written = (0..SHARDS).fold(0, |all, shard| all | state.database.written(shard));
                state.acknowledged & !written == 0
            }),
            Property::always("nothing is committed twice", |_, state: &State| {
                let logs = &state.database.logs;
                logs.iter().all(|log| {
                    let writes = log.iter().filter_map(|entry| entry.write);
                    writes.clone().count() == writes.fold(0, |all, write| all | bit(write)).count_ones() as usize
                })
            }),
            Property::always("nothing is committed that its client was refused", |_, state: &State| {
                state.refused.iter().all(|(shard, write)| state.database.written(*shard) & bit(*write) == 0)
            }),
            Property::always("no read is stale", |model: &Self, state: &State| {
                let acknowledged = |shard| state.acknowledged & state.database.written(shard);
                state.nodes.iter().enumerate().all(|(number, node)| {
                    let lease = model.has_lease(state, number) || !model.guards.lease_checked;
                    let stale =
                        |(shard, tenure): (Shard, &Tenure)| model.answers(tenure) && acknowledged(shard) & !tenure.memory != 0;
                    !lease || !node.shards.iter().enumerate().any(stale)
                })
            }),
            Property::always("an owner with nothing in flight knows all that is committed", |model: &Self, state: &State| {
                state.nodes.iter().enumerate().all(|(number, node)| {
                    node.shards.iter().enumerate().all(|(shard, tenure)| {
                        let row = state.database.rows[shard];
                        let current = row.owner == Some(number) && row.epoch == tenure.epoch && model.answers(tenure);
                        !current
                            || node.is_busy(shard)
                            || (tenure.memory, tenure.head) == (state.database.written(shard), state.database.head(shard))
                    })
                })
            }),
            Property::sometimes("a shard is handed over and written there", |_, state: &State| {
                state.database.logs.iter().any(|log| log.last().is_some_and(|last| last.epoch > 1 && last.write.is_some()))
            }),
            Property::sometimes("a write is acknowledged after a fault", |_, state: &State| {
                state.acknowledged != 0 && state.faults != 0
            }),
        ]
    }
}
