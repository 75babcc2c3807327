//! The ownership protocol as a model (`stateright`): leases, takeovers, hand-offs and commits whose outcome is unknown,
//! in every order in which they can happen, for three members and two shards.
//!
//! The model is the protocol without its machinery: a statement is one step, a connection may die at any, and what was
//! sent through it may be executed at any time later. A node that takes no step is stopped, or dead. Each guard has a test
//! in which it is missing, and in which the checker must find how that breaks a promise.
//!
//! Not in it: locks and sessions (what ends a session only makes a takeover quicker here), rebirths (another incarnation
//! is another member), and the clocks' drift (that a lease has ended before its member is found dead is taken for granted,
//! and what happens otherwise is one of the tests).

mod choices;
mod copies;
mod effects;
mod protocol;
mod state;
mod symmetry;

use stateright::{Checker, HasDiscoveries, Model};

use crate::protocol::{ALL, Bounds, Guards, Ownership};

/// Both shards, a batch across them, two changes of hands, a death, a fault and what follows from them.
const TWO_SHARDS: Bounds = Bounds { shards: 2, writes: 2, changes: 2, deaths: 1, faults: 1 };

/// One shard, further: handed over and back while a fault is open, and enough for every way in which a missing guard shows.
const ONE_SHARD: Bounds = Bounds { shards: 1, writes: 2, changes: 3, deaths: 1, faults: 2 };

/// Goes everywhere within the bounds.
fn check(bounds: Bounds) {
    let checker = Ownership { guards: ALL, bounds }.checker().threads(2).symmetry().spawn_dfs().join();
    println!("{bounds:?}: {} states, {} of them different", checker.state_count(), checker.unique_state_count());
    // What must be possible is, somewhere within the bounds; what must not is nowhere.
    for promise in checker.discoveries().keys().filter(|promise| !promise.starts_with("a ")) {
        checker.assert_no_discovery(promise);
    }
    assert!(checker.discovery("a shard is handed over and written there").is_some());
    assert!(checker.discovery("a write is acknowledged after a fault").is_some() || bounds.faults == 0);
}

#[test]
fn two_shards_keep_their_promises_whatever_is_late_lost_or_dead() {
    // All of it at once takes minutes; any three of the four is little work.
    for bounds in [
        Bounds { writes: 1, ..TWO_SHARDS },
        Bounds { changes: 1, ..TWO_SHARDS },
        Bounds { deaths: 0, ..TWO_SHARDS },
        Bounds { faults: 0, ..TWO_SHARDS },
    ] {
        check(bounds);
    }
}

#[test]
#[ignore = "takes minutes; for whoever changes the protocol: cargo test --release -p rookery --test model -- --ignored"]
fn two_shards_keep_their_promises_with_all_of_it_at_once() {
    check(TWO_SHARDS);
}

#[test]
fn one_shard_keeps_its_promises_however_often_it_moves() {
    check(ONE_SHARD);
}

/// The promise that breaks first without a guard.
fn broken_without(guards: Guards) -> Vec<&'static str> {
    let checker =
        Ownership { guards, bounds: ONE_SHARD }.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let mut broken: Vec<&'static str> = Vec::new();
    for (promise, path) in checker.discoveries() {
        if !promise.starts_with("a ") {
            println!("{promise}: {:?}", path.into_actions());
            broken.push(promise);
        }
    }
    broken
}

const ONE_EPOCH: &str = "at most one epoch commits, and epochs only grow";
const NOT_STALE: &str = "no read is stale";
const NOT_TWICE: &str = "nothing is committed twice";
const KNOWS: &str = "an owner with nothing in flight knows all that is committed";

#[test]
fn without_the_epoch_record_a_former_owner_commits() {
    assert!(broken_without(Guards { epoch_record: false, ..ALL }).contains(&ONE_EPOCH));
}

#[test]
fn without_comparing_a_takeover_robs_the_living() {
    assert!(broken_without(Guards { takeover_compares: false, ..ALL }).contains(&NOT_STALE));
}

#[test]
fn without_comparing_a_late_grant_robs_the_new_owner() {
    assert!(broken_without(Guards { grant_compares: false, ..ALL }).contains(&NOT_STALE));
}

#[test]
fn who_looks_for_its_batch_before_it_takes_over_commits_twice() {
    assert!(broken_without(Guards { takeover_before_looking: false, ..ALL }).contains(&NOT_TWICE));
}

#[test]
fn who_opens_again_before_it_takes_over_serves_what_it_has_granted() {
    assert!(broken_without(Guards { takeover_before_reopening: false, ..ALL }).contains(&NOT_STALE));
}

#[test]
fn who_takes_back_a_later_epoch_serves_what_it_remembers_and_not_what_was_written_meanwhile() {
    assert!(broken_without(Guards { same_epoch: false, ..ALL }).contains(&NOT_STALE));
}

#[test]
fn whoever_is_declared_dead_too_early_still_reads() {
    assert!(broken_without(Guards { death_after_lease: false, ..ALL }).contains(&NOT_STALE));
}

#[test]
fn without_checking_the_lease_the_dead_read() {
    assert!(broken_without(Guards { lease_checked: false, ..ALL }).contains(&NOT_STALE));
}

#[test]
fn with_the_door_open_a_shard_is_served_twice_while_it_is_granted() {
    assert!(broken_without(Guards { closed_before_grant: false, ..ALL }).contains(&NOT_STALE));
}

#[test]
fn opened_again_under_its_epoch_a_shard_meets_its_own_batch() {
    assert!(broken_without(Guards { untouched_only: false, ..ALL }).contains(&KNOWS));
}

#[test]
fn what_is_numbered_under_a_later_tenure_than_it_was_decided_under_passes_the_fence() {
    assert!(broken_without(Guards { numbered_as_decided: false, ..ALL }).contains(&ONE_EPOCH));
}

#[test]
fn with_two_looks_for_one_a_lost_shard_is_opened_at_the_end_of_anothers_log() {
    assert!(broken_without(Guards { one_snapshot: false, ..ALL }).contains(&ONE_EPOCH));
}
