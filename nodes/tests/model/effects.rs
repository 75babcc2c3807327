//! What a step makes of a state.

use crate::{
    protocol::{Heard, Ownership, Step},
    state::*,
};

impl Ownership {
    /// Forgets what makes no difference any more, so that states that have the same future are the same.
    pub(crate) fn forget(&self, state: &mut State) {
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

    pub(crate) fn take(&self, state: &mut State, step: Step) {
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
            Step::Commit(node, shards) => {
                commit(state, node, &shards);
                if !self.guards.numbered_as_decided
                    && let Some(batch) = &mut state.nodes[node].batch
                {
                    batch.sent = Sent::Waiting;
                }
            }
            Step::Number(node) => {
                let NodeState { shards, batch: Some(batch) } = &mut state.nodes[node] else { return };
                batch.sent = Sent::Out;
                for record in &mut batch.records {
                    record.seq = shards[record.shard].head + 1;
                }
            }
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
