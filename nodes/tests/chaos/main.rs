//! What goes wrong, and what must be true all the same: short versions of `rookery chaos run`.
//!
//! `ROOKERY_TEST_SEED` repeats the wishes of a run, `ROOKERY_CHAOS_NODES` says on how many nodes.

mod harness;
mod logs;
mod stories;

use rookery::chaos::{
    run::{Options, run},
    scenario::{Need, Scenario},
};

/// Runs a scenario on so many nodes; what it needs and this machine does not have skips it by name, but not in CI.
async fn keeps_every_promise(scenario: Scenario, nodes: u16) {
    let missing: Vec<_> = scenario.missing(nodes).iter().map(ToString::to_string).collect();
    if !missing.is_empty() {
        assert!(!harness::is_ci(), "{} needs {}", scenario.name(), missing.join(" and "));
        eprintln!("SKIPPED {}: it needs {}", scenario.name(), missing.join(" and "));
        return;
    }
    let seed = std::env::var("ROOKERY_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("ROOKERY_TEST_SEED={seed}");
    // A broker takes as much as two nodes.
    let broker = if scenario.needs().contains(&Need::Kafka) { 2 } else { 0 };
    let _turn = harness::turn(nodes + broker);
    let options = Options::new(scenario, env!("CARGO_BIN_EXE_rookery"), nodes, seed);
    let report = run(&options).await.unwrap_or_else(|error| panic!("{error:#}"));
    assert!(report.is_good(), "{report}");
    println!("{report}");
}

macro_rules! scenarios {
    (on $nodes:expr; $($test:ident: $scenario:ident;)+) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            keeps_every_promise(Scenario::$scenario, $nodes).await;
        }
    )+};
}

scenarios! { on harness::nodes_or(3);
    nothing_is_wrong_when_nothing_goes_wrong: Calm;
    a_crash_between_commit_and_answer_loses_nothing_and_does_nothing_twice: CrashAfterCommit;
    kill_9_loses_nothing: Kill;
    a_node_that_slept_longer_than_its_lease_serves_nothing_stale: Sleep;
    postgres_may_be_killed: PostgresRestart;
    postgres_may_be_slow: PostgresSlow;
    connections_may_die_at_a_commit: CommitCut;
    statements_may_never_be_answered: Silence;
    a_process_of_postgres_may_stand_still: BackendFrozen;
    the_time_of_day_decides_nothing: ClockJump;
    a_record_that_nobody_can_apply_is_replayed: PoisonRecord;
    kafka_may_die: KafkaDown;
    kafka_may_lose_what_nobody_has_read: TopicHoles;
    copies_may_be_evicted_as_fast_as_they_are_borrowed: ReaderCrowd;
    the_database_of_search_may_be_restored: SearchRestored;
}

// What happens within one node costs half as much on one.
scenarios! { on harness::nodes_or(1);
    entities_that_panic_are_back_with_what_was_committed: ActorPanic;
    a_storm_of_panics_loses_nothing: PanicStorm;
    a_full_disk_stops_writes_and_loses_none: DiskFull;
    a_slow_consumer_catches_up: SlowConsumer;
}

// What takes several, whatever was asked for.
scenarios! { on harness::nodes_or(3).max(3);
    a_host_may_be_gone_without_a_word: HostGone;
    a_node_may_be_cut_off_from_everything: Partition;
    a_node_may_be_cut_off_from_the_others: PartitionNodes;
    a_node_may_be_cut_off_from_postgres: PartitionPostgres;
    a_wire_may_carry_one_way_only: PartitionAsymmetric;
    a_wire_may_flap: FlappingLink;
    a_rolling_restart_fails_no_request: RollingRestart;
    nodes_may_come_and_go: Scale;
}
