//! `rookery up` and `rookery node`: a node until it is told to stop.

use std::{
    io::{self, Write},
    net::SocketAddr,
};

use tokio::signal::unix::{SignalKind, signal};

use super::Exit;
use crate::{config::Config, node::Node, telemetry};

/// Runs a node.
pub(super) fn run(config: Config) -> anyhow::Result<Exit> {
    let metrics = telemetry::install(&config.log)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        // From here on a signal is a wish to stop in order, also during the start.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let upkeep = tokio::spawn(telemetry::keep_up(metrics.clone()));
        let node = Node::start(config, metrics).await?;
        greet(&node);
        let failed = tokio::select! {
            _ = interrupt.recv() => false,
            _ = terminate.recv() => false,
            () = node.failed() => true,
        };
        if !failed {
            say(io::stderr(), "stopping; once more ends it at once\n");
        }
        // A second signal does not wait for what the first one asked for; the data survive that too.
        tokio::select! {
            () = node.stop() => {}
            _ = interrupt.recv() => std::process::exit(1),
            _ = terminate.recv() => std::process::exit(1),
        }
        upkeep.abort();
        if failed {
            anyhow::bail!("the private Postgres has died and does not start again; its log says why")
        }
        Ok(Exit::Done)
    })
}

/// Where the node listens, and a first request that works.
fn greet(node: &Node) {
    let mut health = node.health.iter().map(|(role, address)| format!("{role} {address}")).collect::<Vec<_>>().join(", ");
    if health.is_empty() {
        "as the gateway's".clone_into(&mut health);
    }
    let data = node.data_dir().display();
    let text = match node.gateway.map(reachable) {
        Some(gateway) => format!(
            "Rookery listens on http://{gateway}  (data in {data})
health: {health}

Try it:
  curl -s http://{gateway}/api/v1/auth/register -H 'content-type: application/json' \\
    -d '{{\"username\":\"ada\",\"email\":\"ada@example.org\",\"password\":\"correct horse battery\"}}'
  curl -s http://{gateway}/api/v1/posts
The contract is at http://{gateway}/docs, the command line at `rookery --help`. Ctrl-C stops it.
"
        ),
        None => format!("Rookery node {} runs  (data in {data})\nhealth: {health}\n", node.config.node.name),
    };
    say(io::stdout(), &text);
}

/// Tells whoever may be listening. `println!` panics when nobody is, and a node must outlive its terminal.
fn say(mut to: impl Write, text: &str) {
    let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
}

/// An address that a client on this machine can use.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let mut address = listen;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_for_all_interfaces_is_reached_by_the_local_one() {
        assert_eq!(reachable("0.0.0.0:8080".parse().unwrap()), "127.0.0.1:8080".parse().unwrap());
        assert_eq!(reachable("10.0.0.1:80".parse().unwrap()), "10.0.0.1:80".parse().unwrap());
    }
}
