//! Which member or shard is which makes no difference: of states that differ in that alone one is looked at.

use stateright::Representative;

use crate::state::*;

impl Representative for State {
    fn representative(&self) -> Self {
        let mut shards: [Shard; SHARDS] = std::array::from_fn(|shard| shard);
        shards.sort_by_key(|shard| (self.database.rows[*shard].epoch, &self.database.logs[*shard]));
        let state = if shards.is_sorted() { self.clone() } else { self.with_shards(&shards) };
        let mut nodes: [Node; NODES] = std::array::from_fn(|node| node);
        nodes.sort_by_cached_key(|node| state.key(*node));
        if nodes.is_sorted() { state } else { state.with_nodes(&nodes) }
    }
}

impl State {
    /// What a node is but for the names of the others. Nodes with the same key may differ in whom they mean; then a state
    /// has more than one representative, and is looked at more than once.
    fn key(&self, node: Node) -> (bool, [bool; SHARDS], NodeState) {
        let mut local = self.nodes[node].clone();
        for tenure in &mut local.shards {
            tenure.door = tenure.door.to(|_| 0);
        }
        (self.database.dead[node], self.database.rows.map(|row| row.owner == Some(node)), local)
    }

    /// The same with the shards in this order.
    fn with_shards(&self, order: &[Shard; SHARDS]) -> Self {
        let new = |old: Shard| order.iter().position(|shard| *shard == old).expect("an order names every shard");
        let mut state = self.clone();
        state.database.rows = order.map(|shard| self.database.rows[shard]);
        state.database.logs = order.map(|shard| self.database.logs[shard].clone());
        for (node, before) in state.nodes.iter_mut().zip(&self.nodes) {
            node.shards = order.map(|shard| before.shards[shard]);
            if let Some(batch) = &mut node.batch {
                renumber(&mut batch.records, new);
            }
        }
        for ghost in &mut state.ghosts {
            match ghost {
                Statement::Batch(records) => renumber(records, new),
                Statement::Grant { shard, .. } => *shard = new(*shard),
            }
        }
        state.ghosts.sort_unstable();
        for (shard, _) in &mut state.refused {
            *shard = new(*shard);
        }
        state.refused.sort_unstable();
        state
    }

    /// The same with the nodes in this order.
    fn with_nodes(&self, order: &[Node; NODES]) -> Self {
        let new = |old: Node| order.iter().position(|node| *node == old).expect("an order names every node");
        let mut state = self.clone();
        state.database.dead = order.map(|node| self.database.dead[node]);
        state.nodes = order.map(|node| self.nodes[node].clone());
        for row in &mut state.database.rows {
            row.owner = row.owner.map(new);
        }
        for node in &mut state.nodes {
            for tenure in &mut node.shards {
                tenure.door = tenure.door.to(new);
            }
        }
        for ghost in &mut state.ghosts {
            if let Statement::Grant { from, to, .. } = ghost {
                (*from, *to) = (new(*from), new(*to));
            }
        }
        state.ghosts.sort_unstable();
        state
    }
}

impl Door {
    fn to(self, new: impl Fn(Node) -> Node) -> Self {
        match self {
            Self::Closing(to) => Self::Closing(new(to)),
            Self::Granting(to, sent) => Self::Granting(new(to), sent),
            door => door,
        }
    }
}

fn renumber(records: &mut [Record], new: impl Fn(Shard) -> Shard) {
    for record in records.iter_mut() {
        record.shard = new(record.shard);
    }
    records.sort_unstable();
}
