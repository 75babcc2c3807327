//! A whole node for tests that speak HTTP.

use std::{net::SocketAddr, process::Child, sync::OnceLock};

use super::remove_at_our_end;
use crate::{config::Config, node::Node};

/// The one node of a test process: all services and the gateway over a private Postgres, without rate limits.
///
/// It starts with the first call of [`TestNode::shared`] and ends with the process, which takes its data along. Tests keep
/// apart by users of their own.
pub struct TestNode {
    /// Where the gateway listens.
    pub gateway: SocketAddr,
    // Held: the pipe that tells the cleaner of our end.
    _cleaner: Child,
}

impl TestNode {
    /// The node of this process. The first call takes a few seconds, in which it blocks its thread.
    ///
    /// # Panics
    /// If the node does not start: the message says why.
    pub fn shared() -> &'static TestNode {
        static SHARED: OnceLock<TestNode> = OnceLock::new();
        SHARED.get_or_init(|| {
            let (started, address) = std::sync::mpsc::channel();
            let folder =
                tempfile::Builder::new().prefix("rookery-test-").tempdir().expect("a temporary folder can be made").keep();
            let cleaner = remove_at_our_end(folder.clone()).expect("a shell can be started");
            // Each test has a runtime of its own, which ends with it: the node must not hang on one of them.
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime can be made");
                runtime.block_on(async {
                    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
                    let node = Node::start(config(&folder), metrics).await.unwrap_or_else(|error| panic!("{error:#}"));
                    started.send(node.gateway.expect("it has every role")).expect("the first caller waits");
                    std::future::pending::<()>().await;
                });
            });
            let gateway = address.recv().expect("the node of the tests starts");
            TestNode { gateway, _cleaner: cleaner }
        })
    }
}

fn config(data: &std::path::Path) -> Config {
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = Config { data_dir: data.to_owned(), ..Config::default() };
    config.gateway.listen = free;
    config.gateway.rate_limits = false;
    let services = &mut config.services;
    for service in [&mut services.users, &mut services.posts, &mut services.comments, &mut services.search] {
        service.listen = free;
    }
    config
}
