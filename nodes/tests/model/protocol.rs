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

const HEARD: [Heard; 2] = [Heard::Yes, Heard::No];

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

/// What can happen.
impl Ownership {
    fn members(&self, state: &State, node: Node, steps: &mut Vec<Step>) {
        let deaths = state.database.dead.iter().filter(|dead| **dead).count();
        if !state.database.dead[node] && deaths < self.bounds.deaths {
            steps.push(Step::DeclareDead(node));
        }
    }

    fn batches(&self, state: &State, node: Node, steps: &mut Vec<Step>) {
        match state.nodes[node].batch.as_ref().map(|batch| batch.sent) {
            None => {
                let again = |shard: Shard| state.refused.iter().any(|(of, _)| *of == shard);
                let answers = |shard: &Shard| self.answers(&state.nodes[node].shards[*shard]);
                let open: Vec<Shard> = (0..self.bounds.shards).filter(answers).collect();
                let mut choices: Vec<Vec<Shard>> = open.iter().map(|shard| vec![*shard]).collect();
                if open.len() > 1 {
                    choices.push(open);
                }
                // A command that was refused is sent again, by its client or by a router; otherwise a new one comes.
                let new = |choice: &[Shard]| choice.iter().filter(|shard| !again(**shard)).count();
                choices.retain(|choice| usize::from(state.sent) + new(choice) <= usize::from(self.bounds.writes));
                steps.extend(choices.into_iter().map(|choice| Step::Commit(node, choice)));
            }
            Some(Sent::Out) => steps.extend([Step::Execute(node), Step::Lose(node)]),
            // That its answer is lost is the same as that it is executed after the connection has died.
            Some(Sent::Done(_)) => steps.push(Step::Hear(node)),
            Some(Sent::Fenced | Sent::Doubt) => steps.extend(HEARD.map(|heard| Step::Resolve(node, heard))),
        }
    }

    fn tenures(&self, state: &State, node: Node, shard: Shard, steps: &mut Vec<Step>) {
        let (row, tenure) = (state.database.rows[shard], state.nodes[node].shards[shard]);
        let lease = self.has_lease(state, node);
        let may_raise = self.may_change(&state.database);
        // What it has lost without noticing it stops serving when it looks, which is when it takes what it should have.
        let lost = tenure.door == Door::Open && !tenure.suspended && row != (Row { epoch: tenure.epoch, owner: Some(node) });
        if (lost || !tenure.is_held()) && lease {
            let orphan = state.database.is_orphan(shard) || tenure.seen == Seen::Orphan;
            if orphan && row.owner != Some(node) && may_raise {
                steps.extend(HEARD.map(|heard| Step::TakeOver(node, shard, heard)));
            }
            if row.owner == Some(node) && row.epoch > tenure.latest {
                steps.push(Step::Adopt(node, shard));
            } else if row.owner == Some(node) && may_raise {
                steps.extend(HEARD.map(|heard| Step::TakeBack(node, shard, heard)));
            }
            let sees = match tenure.seen {
                Seen::Nothing if row.owner == Some(node) => !self.guards.one_snapshot && row.epoch > tenure.latest,
                Seen::Nothing => !self.guards.takeover_compares && state.database.is_orphan(shard),
                _ => false,
            };
            if sees {
                steps.push(Step::See(node, shard));
            }
        }
        if let Seen::Mine(epoch) = tenure.seen {
            steps.push(Step::AdoptUnder(node, shard, epoch));
        }
        match tenure.door {
            Door::Away => {}
            Door::Open => {
                if row.owner == Some(node) && may_raise {
                    steps.push(Step::Restart(node, shard));
                }
                if !tenure.suspended {
                    let others = (0..NODES).filter(|to| *to != node && !state.database.dead[*to]);
                    steps.extend(others.map(|to| Step::Close(node, shard, to)));
                }
            }
            Door::Closing(_) if state.nodes[node].is_busy(shard) => {}
            Door::Closing(_) => steps.push(Step::Grant(node, shard)),
            Door::Granting(_, Sent::Out) => steps.extend([Step::ExecuteGrant(node, shard), Step::LoseGrant(node, shard)]),
            Door::Granting(_, Sent::Done(_)) => steps.push(Step::HearGrant(node, shard)),
            Door::Granting(..) => steps.extend(HEARD.map(|heard| Step::ResolveGrant(node, shard, heard))),
        }
    }

    fn has_lease(&self, state: &State, node: Node) -> bool {
        !state.database.dead[node] || !self.guards.death_after_lease
    }

    fn may_change(&self, database: &Database) -> bool {
        let changes: Epoch = database.rows.iter().map(|row| row.epoch - 1).sum();
        changes < self.bounds.changes
    }

    /// Whether what is asked of a shard is answered here, as far as the shard goes.
    fn answers(&self, tenure: &Tenure) -> bool {
        let open = match tenure.door {
            Door::Open => true,
            Door::Away => false,
            Door::Closing(_) | Door::Granting(..) => !self.guards.closed_before_grant,
        };
        open && !tenure.suspended
    }
}

/// What happens then.
impl Ownership {
    /// Forgets what makes no difference any more, so that states that have the same future are the same.
    fn forget(&self, state: &mut State) {
        let State { database, nodes, ghosts, refused, .. } = state;
        ghosts.retain(|ghost| match ghost {
            Statement::Batch(records) => records.iter().all(|record| record.seq > database.head(record.shard)),
            Statement::Grant { shard, from, epoch, to } => {
                let stands = database.rows[*shard] == Row { epoch: *epoch, owner: Some(*from) };
                !database.dead[*to] && (stands || !self.guards.grant_compares)
            }
        });
        ghosts.sort_unstable();
        ghosts.dedup();
        refused.sort_unstable();
        for (number, node) in nodes.iter_mut().enumerate() {
            for shard in 0..SHARDS {
                let busy = node.is_busy(shard);
                let tenure = &mut node.shards[shard];
                if tenure.is_held() && !busy {
                    tenure.since = tenure.epoch;
                }
                if !tenure.is_held() && (tenure.latest < database.rows[shard].epoch || database.dead[number]) {
                    tenure.latest = 0;
                }
            }
        }
    }

    fn take(&self, state: &mut State, step: Step) {
        match step {
            Step::DeclareDead(node) => state.database.dead[node] = true,
            Step::TakeOver(node, shard, heard) | Step::TakeBack(node, shard, heard) => {
                self.change_hands(&mut state.database, shard, node);
                if heard == Heard::Yes {
                    self.open(state, node, shard);
                }
            }
            Step::Adopt(node, shard) => self.open(state, node, shard),
            Step::Restart(node, shard) => {
                // Only a takeover fences what it may have in flight.
                if self.guards.untouched_only {
                    self.change_hands(&mut state.database, shard, node);
                }
                self.open(state, node, shard);
            }
            Step::See(node, shard) => {
                let Row { epoch, owner } = state.database.rows[shard];
                state.tenure(node, shard).seen = if owner == Some(node) { Seen::Mine(epoch) } else { Seen::Orphan };
            }
            Step::AdoptUnder(node, shard, epoch) => {
                self.open(state, node, shard);
                let tenure = state.tenure(node, shard);
                (tenure.epoch, tenure.since, tenure.latest) = (epoch, epoch, epoch);
            }
            Step::Commit(node, shards) => commit(state, node, &shards),
            Step::Execute(node) => {
                let Some(batch) = &mut state.nodes[node].batch else { return };
                batch.sent = Sent::Done(execute(&mut state.database, &batch.records));
            }
            Step::Hear(node) => hear(state, node),
            Step::Lose(node) => {
                let Some(batch) = &mut state.nodes[node].batch else { return };
                let ghost = (batch.sent == Sent::Out).then(|| Statement::Batch(batch.records.clone()));
                batch.sent = Sent::Doubt;
                suspend(state, node);
                state.ghosts.extend(ghost);
            }
            Step::Resolve(node, heard) => self.resolve(state, node, heard),
            Step::Close(node, shard, to) => {
                let busy = state.nodes[node].is_busy(shard);
                state.tenure(node, shard).door = if busy { Door::Closing(to) } else { Door::Granting(to, Sent::Out) };
            }
            Step::Grant(node, shard) => {
                if let Door::Closing(to) = state.nodes[node].shards[shard].door {
                    state.tenure(node, shard).door = Door::Granting(to, Sent::Out);
                }
            }
            Step::ExecuteGrant(node, shard) => {
                let Tenure { door: Door::Granting(to, _), epoch, .. } = state.nodes[node].shards[shard] else { return };
                let done = self.grant(&mut state.database, shard, node, epoch, to);
                state.tenure(node, shard).door = Door::Granting(to, Sent::Done(done));
            }
            Step::HearGrant(node, shard) => match state.nodes[node].shards[shard].door {
                Door::Granting(_, Sent::Done(true)) => close(state, node, shard),
                _ => state.tenure(node, shard).door = Door::Open,
            },
            Step::LoseGrant(node, shard) => {
                let Tenure { door: Door::Granting(to, sent), epoch, .. } = state.nodes[node].shards[shard] else { return };
                let ghost = (sent == Sent::Out).then_some(Statement::Grant { shard, from: node, epoch, to });
                state.tenure(node, shard).door = Door::Granting(to, Sent::Doubt);
                state.ghosts.extend(ghost);
            }
            Step::ResolveGrant(node, shard, heard) => self.resolve_grant(state, node, shard, heard),
            Step::Haunt(ghost) => match state.ghosts.remove(ghost) {
                Statement::Batch(records) => drop(execute(&mut state.database, &records)),
                Statement::Grant { shard, from, epoch, to } => drop(self.grant(&mut state.database, shard, from, epoch, to)),
            },
        }
    }

    /// The statement of takeover and grant: the row, and the epoch record.
    fn change_hands(&self, database: &mut Database, shard: Shard, to: Node) {
        let row = &mut database.rows[shard];
        *row = Row { epoch: row.epoch + 1, owner: Some(to) };
        let epoch = row.epoch;
        if self.guards.epoch_record {
            let seq = database.head(shard) + 1;
            database.logs[shard].push(Entry { seq, epoch, write: None, batch: 0, truth: epoch });
        }
    }

    fn grant(&self, database: &mut Database, shard: Shard, from: Node, epoch: Epoch, to: Node) -> bool {
        let row = database.rows[shard];
        let stands = row == Row { epoch, owner: Some(from) } || !self.guards.grant_compares;
        let granted = stands && !database.dead[to] && self.may_change(database);
        if granted {
            self.change_hands(database, shard, to);
        }
        granted
    }

    /// Serves a shard from now on, as it is in the database.
    fn open(&self, state: &mut State, node: Node, shard: Shard) {
        let epoch = state.database.rows[shard].epoch;
        let (head, memory) = (state.database.head(shard), state.database.written(shard));
        *state.tenure(node, shard) = Tenure { door: Door::Open, epoch, since: epoch, head, memory, ..Tenure::away(epoch) };
    }

    fn resolve(&self, state: &mut State, node: Node, heard: Heard) {
        let Some(batch) = state.nodes[node].batch.clone() else { return };
        let held: Vec<Shard> = (0..SHARDS).filter(|shard| state.nodes[node].shards[*shard].suspended).collect();
        let mine = |shard: &Shard| state.database.rows[*shard].owner == Some(node);
        let ours: Vec<Shard> = held.iter().copied().filter(mine).collect();
        if self.guards.takeover_before_looking {
            for shard in &ours {
                self.change_hands(&mut state.database, *shard, node);
            }
        }
        if heard == Heard::No {
            return;
        }
        let is_in = batch.records.iter().any(|record| state.database.contains(record));
        let fenced = batch.sent == Sent::Fenced;
        let mut retry = Vec::new();
        for record in batch.records {
            if is_in {
                state.acknowledged |= bit(record.write);
                let tenure = state.tenure(node, record.shard);
                if tenure.is_held() && record.epoch >= tenure.since {
                    tenure.memory |= bit(record.write);
                    tenure.head = tenure.head.max(record.seq);
                }
            } else if ours.contains(&record.shard) {
                retry.push(record);
            } else if fenced {
                state.refused.push((record.shard, record.write));
            }
        }
        for shard in held {
            if ours.contains(&shard) {
                let (epoch, head) = (state.database.rows[shard].epoch, state.database.head(shard));
                let tenure = state.tenure(node, shard);
                (tenure.epoch, tenure.latest, tenure.head, tenure.suspended) = (epoch, epoch, head, false);
            } else {
                close(state, node, shard);
            }
        }
        for record in &mut retry {
            let tenure = state.nodes[node].shards[record.shard];
            (record.epoch, record.seq, record.batch) = (tenure.epoch, tenure.head + 1, record.batch + 1);
        }
        state.nodes[node].batch = (!retry.is_empty()).then_some(Batch { records: retry, sent: Sent::Out });
    }

    fn resolve_grant(&self, state: &mut State, node: Node, shard: Shard, heard: Heard) {
        let Tenure { epoch, .. } = state.nodes[node].shards[shard];
        let row = state.database.rows[shard];
        // Under a later epoch it may be ours again: whoever had it meanwhile may have written, and granted it back.
        let stands = row.owner == Some(node) && (row.epoch == epoch || !self.guards.same_epoch);
        if stands && self.guards.takeover_before_reopening {
            self.change_hands(&mut state.database, shard, node);
        }
        if heard == Heard::No {
            return;
        }
        if stands {
            let (epoch, head) = (state.database.rows[shard].epoch, state.database.head(shard));
            let tenure = state.tenure(node, shard);
            (tenure.door, tenure.epoch, tenure.latest, tenure.head) = (Door::Open, epoch, epoch, head);
        } else {
            close(state, node, shard);
        }
    }
}

fn close(state: &mut State, node: Node, shard: Shard) {
    let latest = state.nodes[node].shards[shard].latest;
    *state.tenure(node, shard) = Tenure::away(latest);
}

fn commit(state: &mut State, node: Node, shards: &[Shard]) {
    let mut records = Vec::new();
    for shard in shards {
        let write = match state.refused.iter().position(|(of, _)| of == shard) {
            Some(again) => state.refused.remove(again).1,
            None => {
                state.sent += 1;
                state.sent - 1
            }
        };
        let tenure = state.nodes[node].shards[*shard];
        records.push(Record { shard: *shard, seq: tenure.head + 1, epoch: tenure.epoch, write, batch: 0 });
    }
    state.nodes[node].batch = Some(Batch { records, sent: Sent::Out });
}

/// One transaction: all rows, or none.
fn execute(database: &mut Database, records: &[Record]) -> bool {
    let taken = |record: &Record| database.logs[record.shard].iter().any(|entry| entry.seq == record.seq);
    if records.iter().any(taken) {
        return false;
    }
    for Record { shard, seq, epoch, write, batch } in records.iter().copied() {
        let truth = database.rows[shard].epoch;
        database.logs[shard].push(Entry { seq, epoch, write: Some(write), batch, truth });
        database.logs[shard].sort_unstable();
    }
    true
}

fn hear(state: &mut State, node: Node) {
    let Some(batch) = state.nodes[node].batch.take() else { return };
    if batch.sent == Sent::Done(false) {
        state.nodes[node].batch = Some(Batch { sent: Sent::Fenced, ..batch });
        suspend(state, node);
        return;
    }
    for record in batch.records {
        let tenure = state.tenure(node, record.shard);
        // A tenure that began later has read it from the database.
        if tenure.is_held() && record.epoch >= tenure.since {
            tenure.memory |= bit(record.write);
            tenure.head = record.seq;
        }
        state.acknowledged |= bit(record.write);
    }
}

/// The shards of a batch answer nothing until it is resolved.
fn suspend(state: &mut State, node: Node) {
    let Some(batch) = state.nodes[node].batch.clone() else { return };
    for record in batch.records {
        let tenure = state.tenure(node, record.shard);
        tenure.suspended |= tenure.is_held() && record.epoch >= tenure.since;
    }
}
