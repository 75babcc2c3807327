//! What can happen in a state.

use crate::{
    protocol::{HEARD, Ownership, Step},
    state::*,
};

impl Ownership {
    pub(crate) fn members(&self, state: &State, node: Node, steps: &mut Vec<Step>) {
        let deaths = state.database.dead.iter().filter(|dead| **dead).count();
        if !state.database.dead[node] && deaths < self.bounds.deaths {
            steps.push(Step::DeclareDead(node));
        }
    }

    pub(crate) fn batches(&self, state: &State, node: Node, steps: &mut Vec<Step>) {
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
            Some(Sent::Waiting) => steps.push(Step::Number(node)),
            Some(Sent::Out) => steps.extend([Step::Execute(node), Step::Lose(node)]),
            // That its answer is lost is the same as that it is executed after the connection has died.
            Some(Sent::Done(_)) => steps.push(Step::Hear(node)),
            Some(Sent::Fenced | Sent::Doubt) => steps.extend(HEARD.map(|heard| Step::Resolve(node, heard))),
        }
    }

    pub(crate) fn tenures(&self, state: &State, node: Node, shard: Shard, steps: &mut Vec<Step>) {
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

    pub(crate) fn has_lease(&self, state: &State, node: Node) -> bool {
        !state.database.dead[node] || !self.guards.death_after_lease
    }

    pub(crate) fn may_change(&self, database: &Database) -> bool {
        let changes: Epoch = database.rows.iter().map(|row| row.epoch - 1).sum();
        changes < self.bounds.changes
    }

    /// Whether what is asked of a shard is answered here, as far as the shard goes.
    pub(crate) fn answers(&self, tenure: &Tenure) -> bool {
        let open = match tenure.door {
            Door::Open => true,
            Door::Away => false,
            Door::Closing(_) | Door::Granting(..) => !self.guards.closed_before_grant,
        };
        open && !tenure.suspended
    }
}
