//! The search on histories small enough to see why; random ones are in `history`.

use std::sync::Arc;

use super::*;
use crate::chaos::models::{End, Post, PostModel, PostOp, Seen, Thread, ThreadModel, ThreadOp};

fn comment(n: usize) -> Arc<str> {
    format!("c{n}").into()
}

fn list(comments: &[usize]) -> ThreadOp {
    ThreadOp::List(Some(comments.iter().map(|n| comment(*n)).collect()))
}

fn add(n: usize) -> ThreadOp {
    ThreadOp::Add { comment: comment(n), end: End::Done(()) }
}

fn delete(n: usize) -> ThreadOp {
    ThreadOp::Delete { comment: comment(n), end: End::Done(()) }
}

/// One after the other; with false it returns never.
fn in_turn<Op>(ops: impl IntoIterator<Item = (Op, bool)>) -> Vec<Call<Op>> {
    let call = |(n, (op, returns)): (usize, (Op, bool))| {
        let invoked = 10 * n as u64;
        Call { client: n, op, invoked, returned: returns.then_some(invoked + 5) }
    };
    ops.into_iter().enumerate().map(call).collect()
}

/// All at once.
fn together<Op>(ops: impl IntoIterator<Item = Op>) -> Vec<Call<Op>> {
    ops.into_iter().enumerate().map(|(client, op)| Call { client, op, invoked: 0, returned: Some(9) }).collect()
}

fn thread(ops: Vec<ThreadOp>) -> Verdict<ThreadOp, Thread> {
    check(&ThreadModel, &in_turn(ops.into_iter().map(|op| (op, true))))
}

#[test]
fn a_thread_holds_what_was_added_and_not_deleted() {
    assert!(thread(vec![list(&[]), add(1), add(2), list(&[1, 2]), delete(1), list(&[2])]).is_linearizable());
}

#[test]
fn a_deleted_comment_does_not_return() {
    assert!(!thread(vec![add(1), delete(1), list(&[]), list(&[1])]).is_linearizable());
}

#[test]
fn an_acknowledged_comment_is_not_lost() {
    assert!(!thread(vec![add(1), add(2), list(&[2])]).is_linearizable());
}

#[test]
fn a_comment_is_there_once() {
    assert!(!thread(vec![add(1), list(&[1, 1])]).is_linearizable());
}

#[test]
fn an_open_operation_takes_effect_late_or_never_and_is_not_undone() {
    let open = ThreadOp::Add { comment: comment(1), end: End::Open };
    let seen = |lists: [&[usize]; 2]| {
        let lists = lists.map(|comments| (list(comments), true));
        check(&ThreadModel, &in_turn(std::iter::once((open.clone(), false)).chain(lists))).is_linearizable()
    };
    assert!(seen([&[], &[1]]) && seen([&[], &[]]) && seen([&[1], &[1]]));
    assert!(!seen([&[1], &[]]));
}

#[test]
fn two_readers_may_not_disagree_on_the_order_of_two_writes() {
    let mut calls = together([add(1), add(2)]);
    let lists = |lists: [&[usize]; 2]| together(lists.map(list));
    calls.extend(lists([&[1], &[1, 2]]));
    assert!(check(&ThreadModel, &calls).is_linearizable());
    calls.extend(lists([&[2], &[1, 2]]));
    assert!(!check(&ThreadModel, &calls).is_linearizable());
}

#[test]
fn the_order_that_is_found_is_one() {
    let mut calls = together([add(3), delete(1), add(2), add(1), list(&[1, 2])]);
    calls.push(Call { client: 9, op: list(&[2, 3]), invoked: 20, returned: Some(21) });
    let Verdict::Linearizable(order) = check(&ThreadModel, &calls) else { panic!("1, 2, the list, 3, and 1 goes") };
    let ends = order.iter().try_fold(ThreadModel.initial(), |state, op| ThreadModel.step(&state, &calls[*op].op));
    assert_eq!(ends.expect("each can follow the one before").comments.len(), 2);
    assert_eq!((order.len(), order.last()), (6, Some(&5)));
}

#[test]
fn a_search_that_takes_too_long_is_no_success() {
    let calls = together((0..20).map(add));
    assert!(matches!(check_within(&ThreadModel, &calls, 5), Verdict::Undecided { .. }));
}

#[test]
fn a_violation_is_explained_by_what_matters() {
    let seen = |version, text: &str| PostOp::Read(Some(Seen { version, text: text.into(), likes: 0 }));
    let publish = PostOp::Publish { text: "old".into(), end: End::Done(()) };
    let edit = PostOp::Edit { if_version: Some(1), text: "new".into(), end: End::Open };
    let mut ops = vec![(publish, true), (edit, false)];
    ops.extend((0..50).map(|_| (seen(1, "old"), true)));
    ops.extend((0..50).map(|_| (seen(2, "new"), true)));
    ops.push((seen(1, "old"), true));
    ops.extend((0..50).map(|_| (seen(2, "new"), true)));
    let Verdict::Violation(why) = check(&PostModel, &in_turn(ops)) else { panic!("an edit is not taken back") };
    assert_eq!(why.index, 102);
    // The publication, the open edit, and one of those who have seen it.
    assert_eq!(why.before.len(), 3, "{why}");
    assert_eq!(why.met, [Post::Live { version: 2, text: "new".into() }]);
    assert!(why.to_string().starts_with("this cannot have happened:\n  0.001..0.001 ms  client 102  Read"), "{why}");
}
