//! What all nodes must agree on: a node that differs is refused by name, and a change is a command.

use std::process::Command;

use rookery::{migrate::Database, testing::Turn};

use crate::{
    process::{Running, ended, rookery},
    roles::Shared,
};

const ROLES: &str = "gateway,users,posts,comments,search";

fn with(mut command: Command, variables: &[(&str, &str)]) -> Command {
    command.envs(variables.iter().copied());
    command
}

/// What was broken: it was taken, and two nodes served the same shards for seconds, or looked for them in different places.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_differs_from_what_the_nodes_agree_on_does_not_start() {
    let _turn = Turn::wait(2);
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let first = Running::start(shared.node("n1", ROLES), &folder.path().join("n1")).await;
    for (roles, variable, value, told) in [
        (ROLES, "ROOKERY__LEASE__TTL_MS", "5000", ["lease.ttl_ms is 2500", "says 5000"]),
        // One that owns nothing routes by it all the same.
        ("gateway", "ROOKERY__CLUSTER__SHARDS", "128", ["cluster.shards is 256", "says 128"]),
        ("gateway", "ROOKERY__CLUSTER__SEARCH_PARTITIONS", "2", ["cluster.search_partitions is 4", "says 2"]),
        ("gateway", "ROOKERY__TOKENS__ISSUER", "other", ["tokens.issuer is rookery", "says other"]),
        ("gateway", "ROOKERY__TOKENS__AUDIENCE", "other", ["tokens.audience is rookery", "says other"]),
        ("gateway", "ROOKERY__TOKENS__ACCESS_TTL_S", "60", ["tokens.access_ttl_s is 900", "says 60"]),
        ("posts", "ROOKERY__KAFKA__BROKERS", "127.0.0.1:1", ["kafka.brokers is empty", "says set"]),
    ] {
        let (code, said) = ended(with(shared.node("n2", roles), &[(variable, value)]), &folder.path().join("n2"));
        assert!(code == Some(1) && told.iter().all(|told| said.contains(told)), "{variable}: {code:?}: {said}");
        let is_fixed = variable.contains("__CLUSTER__");
        assert_eq!(said.contains("rookery pins set"), !is_fixed, "{variable}: {said}");
    }
    let second = Running::start(shared.node("n2", ROLES), &folder.path().join("n2")).await;
    second.stop().await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_changed_by_a_command_and_then_node_by_node() {
    let _turn = Turn::wait(2);
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let data = |name: &str| folder.path().join(name);
    let longer = [("ROOKERY__LEASE__TTL_MS", "5000")];
    let first = Running::start(shared.node("n1", ROLES), &data("n1")).await;
    let pins = |arguments: &[&str], variables: &[(&str, &str)]| {
        ended(with(shared.command(&[&["pins"], arguments].concat()), variables), &data("n9"))
    };
    let (code, said) = pins(&["list"], &longer);
    assert!(code == Some(0) && said.contains("2500  (here: 5000)"), "{said}");

    // A member of a release that does not say how long its lease is: the others would wait for the wrong time.
    let unsaid = "UPDATE member SET lease_ms = NULL";
    shared.sql(Database::Posts).await.batch_execute(unsaid).await.unwrap();
    let (code, said) = pins(&["set", "lease.ttl_ms"], &longer);
    assert!(code == Some(1) && said.contains("n1 runs a release") && said.contains("upgrade it first"), "{said}");
    let said_again = "UPDATE member SET lease_ms = 2500";
    shared.sql(Database::Posts).await.batch_execute(said_again).await.unwrap();

    for (key, told) in [("cluster.shards", "fixed with the databases"), ("gateway.listen", "no pinned setting; lease.ttl_ms")] {
        let (code, said) = pins(&["set", key], &longer);
        assert!(code == Some(1) && said.contains(told), "{key}: {said}");
    }
    let (code, said) = pins(&["set", "lease.ttl_ms"], &longer);
    assert!(code == Some(0), "{said}");
    let second = Running::start(with(shared.node("n2", ROLES), &longer), &data("n2")).await;
    let (code, said) = ended(shared.node("n3", ROLES), &data("n3"));
    assert!(code == Some(1) && said.contains("lease.ttl_ms is 5000"), "{said}");
    // The one that runs goes on with what it has, until it is started anew.
    first.stop().await;
    let first = Running::start(with(shared.node("n1", ROLES), &longer), &data("n1")).await;
    first.stop().await;
    second.stop().await;
}

/// Nobody else is on a private database, so there is nobody to agree with.
#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_follows_the_configuration_of_its_nodes() {
    let _turn = Turn::wait(2);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    for (arguments, ttl) in [(&["up"][..], "2500"), (&["up", "--nodes", "2"], "3000"), (&["up"], "2000")] {
        let node = Running::start(with(rookery(arguments), &[("ROOKERY__LEASE__TTL_MS", ttl)]), &data).await;
        node.stop().await;
        let (code, said) = ended(with(rookery(&["pins", "list"]), &[("ROOKERY__LEASE__TTL_MS", ttl)]), &data);
        assert!(code == Some(0) && !said.contains("here:") && said.matches(ttl).count() == 4, "{said}");
    }
    let (code, said) = ended(with(rookery(&["up"]), &[("ROOKERY__CLUSTER__SHARDS", "128")]), &data);
    assert!(code == Some(1) && said.contains("cluster.shards is 256"), "{said}");
}
