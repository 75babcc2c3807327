//! What there is: the tables in Postgres, what every node thinks of them, and statements on their way.

/// Members; each is one incarnation.
pub(crate) const NODES: usize = 3;
/// Shards of the service.
pub(crate) const SHARDS: usize = 2;

pub(crate) type Node = usize;
pub(crate) type Shard = usize;
pub(crate) type Epoch = u8;
pub(crate) type Seq = u8;
/// A client's command, numbered in the order in which they come; each is a bit in a [`Writes`].
pub(crate) type Write = u8;
pub(crate) type Writes = u8;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct State {
    pub(crate) database: Database,
    pub(crate) nodes: [NodeState; NODES],
    /// Statements whose session is gone, and that Postgres may execute all the same, at any time or never.
    pub(crate) ghosts: Vec<Statement>,
    /// Connections that died, answers that were lost, shards that were dropped.
    pub(crate) faults: usize,
    /// Commands that clients have sent so far.
    pub(crate) sent: Write,
    /// Those whose clients were told that it is done.
    pub(crate) acknowledged: Writes,
    /// Those that are with nobody: they were refused before anything happened, and may be sent again.
    pub(crate) refused: Vec<(Shard, Write)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Database {
    pub(crate) dead: [bool; NODES],
    pub(crate) rows: [Row; SHARDS],
    pub(crate) logs: [Vec<Entry>; SHARDS],
}

/// A row of `shard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Row {
    pub(crate) epoch: Epoch,
    pub(crate) owner: Option<Node>,
}

/// A row of `outbox`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) seq: Seq,
    pub(crate) epoch: Epoch,
    /// None: an epoch record.
    pub(crate) write: Option<Write>,
    /// The batch that brought it.
    pub(crate) batch: u8,
    /// The epoch in the directory as it was committed: what the checker knows and the protocol does not.
    pub(crate) truth: Epoch,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeState {
    pub(crate) shards: [Tenure; SHARDS],
    pub(crate) batch: Option<Batch>,
}

/// A shard as a node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Tenure {
    pub(crate) door: Door,
    /// The outcome of a batch is open.
    pub(crate) suspended: bool,
    pub(crate) epoch: Epoch,
    /// The epoch at which memory began.
    pub(crate) since: Epoch,
    /// The latest epoch that was ever served here.
    pub(crate) latest: Epoch,
    pub(crate) head: Seq,
    pub(crate) memory: Writes,
    /// What it read of the row some time ago; only where a guard is missing that makes old news harmless.
    pub(crate) seen: Seen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Seen {
    Nothing,
    Orphan,
    Mine(Epoch),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Door {
    /// Not held here.
    Away,
    Open,
    /// Nothing more is admitted: it is about to be granted to this node.
    Closing(Node),
    /// A grant was sent.
    Granting(Node, Sent),
}

/// What the sender of a statement knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Sent {
    /// Not yet, for there is no connection; only where a guard is missing that makes that harmless.
    Waiting,
    /// On its way, or its answer is.
    Out,
    /// Executed; the answer, whether it took effect, is on its way.
    Done(bool),
    /// It failed on the fence.
    Fenced,
    /// The connection died: whether it took effect is open.
    Doubt,
}

/// What a committer has in flight.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Batch {
    pub(crate) records: Vec<Record>,
    pub(crate) sent: Sent,
}

/// One record of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Record {
    pub(crate) shard: Shard,
    pub(crate) seq: Seq,
    pub(crate) epoch: Epoch,
    pub(crate) write: Write,
    /// How often the command was sent before: with it, what tells one batch from another.
    pub(crate) batch: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Statement {
    Batch(Vec<Record>),
    Grant { shard: Shard, from: Node, epoch: Epoch, to: Node },
}

impl State {
    /// The first member serves everything; nothing has been written.
    pub(crate) fn first() -> Self {
        let away = Tenure::away(0);
        let open = Tenure { door: Door::Open, epoch: 1, since: 1, latest: 1, head: 1, ..away };
        let node = |shards| NodeState { shards, batch: None };
        Self {
            database: Database {
                dead: [false; NODES],
                rows: [Row { epoch: 1, owner: Some(0) }; SHARDS],
                logs: [(); SHARDS].map(|()| vec![Entry { seq: 1, epoch: 1, write: None, batch: 0, truth: 1 }]),
            },
            nodes: [node([open; SHARDS]), node([away; SHARDS]), node([away; SHARDS])],
            ghosts: Vec::new(),
            faults: 0,
            sent: 0,
            acknowledged: 0,
            refused: Vec::new(),
        }
    }

    pub(crate) fn tenure(&mut self, node: Node, shard: Shard) -> &mut Tenure {
        &mut self.nodes[node].shards[shard]
    }
}

impl Database {
    pub(crate) fn head(&self, shard: Shard) -> Seq {
        self.logs[shard].last().map_or(0, |entry| entry.seq)
    }

    /// The writes that are in a shard's log.
    pub(crate) fn written(&self, shard: Shard) -> Writes {
        self.logs[shard].iter().filter_map(|entry| entry.write).fold(0, |all, write| all | bit(write))
    }

    pub(crate) fn is_orphan(&self, shard: Shard) -> bool {
        self.rows[shard].owner.is_none_or(|owner| self.dead[owner])
    }

    pub(crate) fn contains(&self, record: &Record) -> bool {
        let Record { shard, seq, write, batch, .. } = *record;
        self.logs[shard].iter().any(|entry| (entry.seq, entry.write, entry.batch) == (seq, Some(write), batch))
    }
}

impl Tenure {
    /// A shard that is not served here, and was never since this epoch.
    pub(crate) const fn away(latest: Epoch) -> Self {
        Self { door: Door::Away, suspended: false, epoch: 0, since: 0, latest, head: 0, memory: 0, seen: Seen::Nothing }
    }

    pub(crate) fn is_held(&self) -> bool {
        self.door != Door::Away
    }
}

pub(crate) fn bit(write: Write) -> Writes {
    1 << write
}

impl NodeState {
    /// Whether something of a shard is on its way, or in doubt.
    pub(crate) fn is_busy(&self, shard: Shard) -> bool {
        self.batch.as_ref().is_some_and(|batch| batch.records.iter().any(|record| record.shard == shard))
    }
}
