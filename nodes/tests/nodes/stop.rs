//! SIGTERM: what a client and a balancer see of a node that leaves the others.

use std::time::Duration;

use nix::sys::signal::Signal;
use rookery::testing::Turn;

use crate::{process::Running, roles::Shared};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_is_not_ready_at_once_and_serves_until_balancers_have_noticed() {
    let _turn = Turn::wait(3);
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let mut first = shared.node("n1", "gateway,users,posts,comments,search");
    // Long enough for a busy machine to look around in.
    first.env("ROOKERY__GATEWAY__DRAIN_MS", "5000");
    let mut leaving = Running::start(first, &folder.path().join("n1")).await;
    let others = shared.node("n2", "gateway,users,posts,comments,search");
    let staying = Running::start(others, &folder.path().join("n2")).await;
    let url = leaving.greeted("listens on").unwrap().to_owned();
    let health = format!("http://{}", leaving.greeted("posts").unwrap());
    assert_eq!(leaving.get(&format!("{url}/readyz")).await.0, 200);

    leaving.signal(Signal::SIGTERM);
    leaving.until("it says that it is stopping", async |node| node.get(&format!("{url}/readyz")).await.0 == 503).await;
    assert_eq!(leaving.get(&format!("{health}/readyz")).await.0, 503, "on every port");
    let answer = reqwest::get(format!("{url}/api/v1/posts")).await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["connection"]), (200, &"close".parse().unwrap()));

    let status = leaving.ended(Duration::from_secs(15)).await;
    assert!(status.success(), "{status}: {}", leaving.log());
    assert!(reqwest::get(format!("{url}/livez")).await.is_err(), "nobody listens any more");
    let url = staying.greeted("listens on").unwrap();
    staying.until("it has all shards", async |node| node.get(&format!("{url}/api/v1/posts")).await.0 == 200).await;
    // What was handed over in order was never without a lease.
    assert!(!staying.log().contains("fell silent"), "{}", staying.log());
    staying.stop().await;
}
