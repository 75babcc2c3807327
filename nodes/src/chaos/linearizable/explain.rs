//! Pure. Why a history has no order: the shortest beginning that has none, without what does not matter to it.

use std::fmt;

use super::{
    Call, Model,
    search::{Found, search},
};

/// The operation at which every order ends, and what it meets.
///
/// All that returned before it can be ordered, and no such order leaves a state in which this one ends as it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation<Op, State> {
    /// Its index in the history.
    pub index: usize,
    /// The operation.
    pub culprit: Call<Op>,
    /// The states, some of them if they are many, that it can have met.
    pub met: Vec<State>,
    /// What was under way at the same time, open operations included: none of it helps.
    pub beside: Vec<Call<Op>>,
    /// What led there, in the order that explains most; the last of it only.
    pub before: Vec<Call<Op>>,
}

/// Operations before the culprit that are shown.
const BEFORE_MAX: usize = 8;

/// Explains a history that has no order.
pub(super) fn explain<M: Model>(model: &M, history: &[Call<M::Op>], steps_max: u64) -> Explanation<M::Op, M::State> {
    let (moment, index) = first_unexplained(model, history, steps_max);
    let beginning = cut(history, moment);
    let mut chosen: Vec<usize> = (0..history.len()).filter(|op| history[*op].invoked <= moment).collect();
    shrink(model, &beginning, &mut chosen, index, steps_max);
    let (best, met) = match search(model, &beginning, &chosen, steps_max) {
        Found::Nothing { best, stuck_in } => (best, stuck_in),
        // Cannot be: no smaller choice is taken that has an order.
        Found::Order(_) | Found::GaveUp { .. } => (Vec::new(), Vec::new()),
    };
    let culprit = history[index].clone();
    let beside = chosen.iter().filter(|op| **op != index && !best.contains(op));
    let beside = beside.map(|op| history[*op].clone()).filter(|other| overlap(other, &culprit)).collect();
    let before = best.iter().skip(best.len().saturating_sub(BEFORE_MAX)).map(|op| history[*op].clone()).collect();
    Explanation { index, culprit, met, beside, before }
}

/// The first return by which the history has no order any more. What has an order has one for each of its beginnings.
fn first_unexplained<M: Model>(model: &M, history: &[Call<M::Op>], steps_max: u64) -> (u64, usize) {
    let mut returns: Vec<(u64, usize)> =
        history.iter().enumerate().filter_map(|(op, call)| call.returned.map(|returned| (returned, op))).collect();
    returns.sort_unstable();
    let fails = |moment: u64| {
        let chosen: Vec<usize> = (0..history.len()).filter(|op| history[*op].invoked <= moment).collect();
        matches!(search(model, &cut(history, moment), &chosen, steps_max), Found::Nothing { .. })
    };
    let first = returns.partition_point(|(moment, _)| !fails(*moment));
    returns[first.min(returns.len() - 1)]
}

/// The history as it was known at a moment: what had not returned was open.
fn cut<Op: Clone>(history: &[Call<Op>], moment: u64) -> Vec<Call<Op>> {
    let known = |call: &Call<Op>| Call { returned: call.returned.filter(|returned| *returned <= moment), ..call.clone() };
    history.iter().map(known).collect()
}

/// Leaves out the reads that can be missed: the history must stay without an order.
fn shrink<M: Model>(model: &M, history: &[Call<M::Op>], chosen: &mut Vec<usize>, culprit: usize, steps_max: u64) {
    let mut reads: Vec<usize> =
        chosen.iter().copied().filter(|op| *op != culprit && model.only_reads(&history[*op].op)).collect();
    // By far most of them do not matter: whole runs are tried first.
    let mut run = reads.len();
    while run > 0 {
        let mut kept = Vec::new();
        for some in reads.chunks(run) {
            let fewer: Vec<usize> = chosen.iter().copied().filter(|op| !some.contains(op)).collect();
            if matches!(search(model, history, &fewer, steps_max), Found::Nothing { .. }) {
                *chosen = fewer;
            } else {
                kept.extend_from_slice(some);
            }
        }
        reads = kept;
        run /= 2;
    }
}

fn overlap<Op>(a: &Call<Op>, b: &Call<Op>) -> bool {
    let before = |a: &Call<Op>, b: &Call<Op>| a.returned.is_some_and(|returned| returned < b.invoked);
    !before(a, b) && !before(b, a)
}

impl<Op: fmt::Debug, State: fmt::Debug> fmt::Display for Explanation<Op, State> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "this cannot have happened:")?;
        line(f, &self.culprit)?;
        if !self.before.is_empty() {
            writeln!(f, "after, in the only orders that explain the rest:")?;
            self.before.iter().try_for_each(|call| line(f, call))?;
        }
        match self.met.as_slice() {
            [] => {}
            [state] => writeln!(f, "which leave\n  {state:?}")?,
            states => {
                writeln!(f, "which leave one of")?;
                states.iter().try_for_each(|state| writeln!(f, "  {state:?}"))?;
            }
        }
        if !self.beside.is_empty() {
            writeln!(f, "and nothing of what was under way beside it makes it possible:")?;
            self.beside.iter().try_for_each(|call| line(f, call))?;
        }
        Ok(())
    }
}

/// `  12.345..12.349 ms  client 3  Read {…}`
fn line<Op: fmt::Debug>(f: &mut fmt::Formatter<'_>, call: &Call<Op>) -> fmt::Result {
    let millis = |nanos: u64| format!("{}.{:03}", nanos / 1_000_000, nanos / 1_000 % 1_000);
    let returned = call.returned.map_or_else(|| "?".to_owned(), millis);
    writeln!(f, "  {}..{} ms  client {}  {:?}", millis(call.invoked), returned, call.client, call.op)
}
