//! `rookery up` and `rookery node`: a node, or several, until they are told to stop.

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Exit;
use crate::{
    config::{Config, Role},
    fleet::Fleet,
    node::Node,
    telemetry,
};

/// Runs a node in this process.
pub(super) fn run(config: Config) -> anyhow::Result<Exit> {
    // One of several says whose its lines are.
    let name = (!config.is_alone()).then(|| config.node.name.to_string());
    let metrics = telemetry::install(&config.log, name.as_deref())?;
    runtime()?.block_on(async {
        // From here on a signal is a wish to stop in order, also during the start.
        let mut signals = Signals::new()?;
        let upkeep = tokio::spawn(telemetry::keep_up(metrics.clone()));
        let node = Node::start(config, metrics).await?;
        greet(&node);
        let failed = tokio::select! {
            () = signals.next() => None,
            reason = node.failed() => Some(reason),
        };
        let exit = signals.stopping(failed, node.stop()).await;
        upkeep.abort();
        exit
    })
}

/// Runs several nodes, a process each, over what this one holds for them.
pub(super) fn run_several(config: Config, file: Option<PathBuf>, nodes: u16) -> anyhow::Result<Exit> {
    telemetry::install(&config.log, None)?;
    runtime()?.block_on(async {
        let mut signals = Signals::new()?;
        let health = health(config.services.listening());
        let fleet = tokio::select! {
            fleet = Fleet::start(config, file, nodes) => fleet?,
            // Whatever has begun to run ends with this process.
            () = signals.next() => anyhow::bail!("stopped before the nodes were up"),
        };
        greet_for_all(&fleet, &health).await;
        let failed = tokio::select! {
            () = signals.next() => None,
            () = fleet.failed() => Some(crate::node::POSTGRES_GONE.to_owned()),
        };
        signals.stopping(failed, fleet.stop()).await
    })
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

/// Ctrl-C and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Waits for a stop in order. `failed`: it is no wish, and why.
    async fn stopping(&mut self, failed: Option<String>, stop: impl Future<Output = ()>) -> anyhow::Result<Exit> {
        if failed.is_none() {
            say(io::stderr(), "stopping; once more ends it at once\n");
        }
        // A second signal does not wait for what the first one asked for; the data survive that too.
        tokio::select! {
            () = stop => {}
            () = self.next() => std::process::exit(1),
        }
        match failed {
            Some(reason) => Err(anyhow::Error::msg(reason)),
            None => Ok(Exit::Done),
        }
    }
}

/// Where the node listens, and a first request that works.
fn greet(node: &Node) {
    let health = match node.health_ports.as_slice() {
        [] => "as the gateway's".to_owned(),
        ports => health(ports.iter().copied()),
    };
    let data = node.data_dir().display();
    let text = match node.gateway.map(reachable) {
        Some(gateway) => format!("Rookery listens on http://{gateway}  (data in {data})\nhealth: {health}\n{}", first(gateway)),
        None => format!("Rookery node {} runs  (data in {data})\nhealth: {health}\n", node.config.node.name),
    };
    say(io::stdout(), &text);
}

/// Where the nodes listen, and a first request that works.
async fn greet_for_all(fleet: &Fleet, health: &str) {
    let listening = |gateway: Option<String>| gateway.and_then(|gateway| gateway.parse().ok()).map(reachable);
    let gateways: Vec<_> =
        fleet.nodes().await.into_iter().filter_map(|node| Some((node.name, listening(node.gateway)?))).collect();
    let Some((_, gateway)) = gateways.first() else { return };
    let all = gateways.iter().map(|(name, gateway)| format!("{name} http://{gateway}")).collect::<Vec<_>>().join(", ");
    let data = fleet.data_dir().display();
    say(
        io::stdout(),
        &format!(
            "Rookery listens on http://{gateway}  (data in {data})
nodes: {all}
health: {health}; 10 higher with each further node
{}",
            first(*gateway)
        ),
    );
}

fn health(ports: impl IntoIterator<Item = (Role, SocketAddr)>) -> String {
    ports.into_iter().map(|(role, address)| format!("{role} {address}")).collect::<Vec<_>>().join(", ")
}

/// What somebody can type who has never seen it.
fn first(gateway: SocketAddr) -> String {
    format!(
        "
Try it:
  curl -s http://{gateway}/api/v1/auth/register -H 'content-type: application/json' \\
    -d '{{\"username\":\"ada\",\"email\":\"ada@example.org\",\"password\":\"correct horse battery\"}}'
  curl -s http://{gateway}/api/v1/posts
The contract is at http://{gateway}/docs, the command line at `rookery --help`. Ctrl-C stops it.
"
    )
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
