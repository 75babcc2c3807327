//! Pure. Whether what clients saw together can be explained by one operation after the other.
//!
//! A history is linearizable when its operations can be put into an order in which each one ended as the model says it
//! does, and none stands before one that had returned when it was called (Herlihy & Wing, 1990). The search is Wing and
//! Gong's with Lowe's memory of where it has been ("Testing for linearizability", 2017), as Porcupine does it. Histories
//! of different entities are checked apart: linearizability is local, so together they say as much as one check of all.

mod explain;
mod search;
#[cfg(test)]
mod tests;

use std::{fmt, hash::Hash};

pub use self::explain::Explanation;

/// A sequential machine: what the operations would do one after the other.
pub trait Model {
    /// What it remembers.
    type State: Clone + Eq + Hash + fmt::Debug;
    /// A call together with how it ended, if that is known.
    type Op: Clone + fmt::Debug;

    /// Before the first operation.
    fn initial(&self) -> Self::State;

    /// The state after `op`, if from `state` it can have ended as it did. Where its end is not known, what it would do.
    fn step(&self, state: &Self::State, op: &Self::Op) -> Option<Self::State>;

    /// Whether `op` changes no state at all: a read, or what was refused. Only for speed: false is always right.
    fn only_reads(&self, op: &Self::Op) -> bool;
}

/// One operation of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call<Op> {
    /// Who called.
    pub client: usize,
    /// What, and how it ended.
    pub op: Op,
    /// When it was called, in nanoseconds of the clock that all clients share.
    pub invoked: u64,
    /// When it returned. None: it is *open*, and may take effect at any later time or never. What is known to have
    /// changed nothing and tells nothing is no part of a history.
    pub returned: Option<u64>,
}

/// How a check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<Op, State> {
    /// There is an order; the one that was found, as indexes into the history. Open operations may be missing from it.
    Linearizable(Vec<usize>),
    /// There is none.
    Violation(Explanation<Op, State>),
    /// The search was given up after so many steps. It proves nothing, so it is no success.
    Undecided {
        /// Steps that were tried.
        steps: u64,
    },
}

impl<Op, State> Verdict<Op, State> {
    /// Whether an order was found.
    pub fn is_linearizable(&self) -> bool {
        matches!(self, Self::Linearizable(_))
    }
}

/// Steps after which a search is given up: some seconds. Real histories take a few steps an operation.
pub const STEPS_MAX: u64 = 20_000_000;

/// Looks for an order of the history of one entity, in which calls may stand in any order.
pub fn check<M: Model>(model: &M, history: &[Call<M::Op>]) -> Verdict<M::Op, M::State> {
    check_within(model, history, STEPS_MAX)
}

/// [`check`] with another limit of steps.
pub fn check_within<M: Model>(model: &M, history: &[Call<M::Op>], steps_max: u64) -> Verdict<M::Op, M::State> {
    let all: Vec<usize> = (0..history.len()).collect();
    match search::search(model, history, &all, steps_max) {
        search::Found::Order(order) => Verdict::Linearizable(order),
        search::Found::GaveUp { steps } => Verdict::Undecided { steps },
        search::Found::Nothing { .. } => Verdict::Violation(explain::explain(model, history, steps_max)),
    }
}
