//! `rookery up` and `rookery node`: a node, or several, until they are told to stop.

use std::{io, net::SocketAddr, path::PathBuf};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Exit, in_runtime};
use crate::{
    config::{self, Config, Role},
    fleet::Fleet,
    node::{Node, address::on_this_machine},
    open_files,
    postgres::DataDir,
    telemetry,
    terminal::{self, note_line},
};

/// Runs a node in this process.
pub(super) fn run(mut config: Config) -> anyhow::Result<Exit> {
    // One of several says whose its lines are.
    let name = (!config.is_alone()).then(|| config.node.name.to_string());
    let metrics = telemetry::install(&config.log, name.as_deref())?;
    warn_of_unknown_variables();
    if config.node.roles.has(Role::Gateway) {
        config.gateway.connections_max = open_files::make_room_for(config.gateway.connections_max);
    }
    in_runtime(async {
        // From here on a signal is a wish to stop in order, also during the start.
        let mut signals = Signals::new()?;
        let upkeep = tokio::spawn(telemetry::keep_up(metrics.clone()));
        let node = signals.unless_stopped("the node was", Node::start(config, metrics)).await?;
        greet(&node);
        let failed = tokio::select! {
            () = signals.next() => None,
            reason = node.failed() => Some(reason),
        };
        let exit = signals.stopping(failed, node.stop()).await;
        upkeep.abort();
        telemetry::finish();
        exit
    })
}

/// Runs several nodes, a process each, over what this one holds for them.
pub(super) fn run_several(config: Config, file: Option<PathBuf>, nodes: u16) -> anyhow::Result<Exit> {
    telemetry::install(&config.log, None)?;
    warn_of_unknown_variables();
    in_runtime(async {
        let mut signals = Signals::new()?;
        let health = health(config.services.listening());
        let fleet = signals.unless_stopped("the nodes were", Fleet::start(config, file, nodes)).await?;
        greet_for_all(&fleet, &health).await;
        let failed = tokio::select! {
            () = signals.next() => None,
            reason = fleet.failed() => Some(reason),
        };
        let exit = signals.stopping(failed, fleet.stop()).await;
        telemetry::finish();
        exit
    })
}

fn warn_of_unknown_variables() {
    for unknown in config::unknown_variables() {
        tracing::warn!("{unknown}");
    }
}

/// Ctrl-C, SIGTERM and SIGHUP.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// None: the process was started to outlive its terminal.
    hang_up: Option<Signal>,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let hang_up = if ignores_hang_up() { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())?, hang_up })
    }

    /// The next wish to stop. There is nothing to reload, so SIGHUP is one too: the terminal has gone, or somebody means a
    /// reload, and neither may end what is under way.
    async fn next(&mut self) {
        let Self { interrupt, terminate, hang_up } = self;
        let hung_up = async {
            match hang_up {
                Some(hang_up) => {
                    hang_up.recv().await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = Self::insistence(interrupt, terminate) => {}
            () = hung_up => {}
        }
    }

    /// SIGINT or SIGTERM. A terminal that goes sends SIGHUP more than once, as its shell does too: that is no impatience.
    async fn insistence(interrupt: &mut Signal, terminate: &mut Signal) {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }

    /// What a start comes to, unless a signal ends it: what has begun to run by then ends with this process.
    ///
    /// # Errors
    /// Those of the start; or that it was stopped before `what`.
    async fn unless_stopped<T>(&mut self, what: &str, start: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        tokio::select! {
            started = start => started,
            () = self.next() => anyhow::bail!("stopped before {what} up"),
        }
    }

    /// Waits for a stop in order. `failed`: it is no wish, and why.
    async fn stopping(&mut self, failed: Option<String>, stop: impl Future<Output = ()>) -> anyhow::Result<Exit> {
        if failed.is_none() {
            note_line!("stopping; once more ends it at once");
        }
        // A second signal does not wait for what the first one asked for; the data survive that too.
        tokio::select! {
            () = stop => {}
            () = Self::insistence(&mut self.interrupt, &mut self.terminate) => std::process::exit(1),
        }
        match failed {
            Some(reason) => Err(anyhow::Error::msg(reason)),
            None => Ok(Exit::Done),
        }
    }
}

/// Whether SIGHUP was ignored when we were started, as `nohup` does: a handler would undo it.
fn ignores_hang_up() -> bool {
    const HANG_UP: u64 = 1 << (libc::SIGHUP - 1);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & HANG_UP != 0)
}

/// Where the node listens, and a first request that works.
fn greet(node: &Node) {
    let health = match node.health_ports.as_slice() {
        [] => "as the gateway's".to_owned(),
        ports => health(ports.iter().copied()),
    };
    let (data, new) = (node.data_dir().path().display(), new(node.data_dir()));
    let text = match node.gateway.map(on_this_machine) {
        Some(gateway) => {
            format!("Rookery listens on http://{gateway}  (data in {data})\nhealth: {health}\n{new}{}", first(gateway))
        }
        None => format!("Rookery node {} runs  (data in {data})\nhealth: {health}\n{new}", node.config.node.name),
    };
    terminal::answer(text);
}

/// Where the nodes listen, and a first request that works.
async fn greet_for_all(fleet: &Fleet, health: &str) {
    let listening = |gateway: Option<String>| gateway.and_then(|gateway| gateway.parse().ok()).map(on_this_machine);
    let gateways: Vec<_> =
        fleet.nodes().await.into_iter().filter_map(|node| Some((node.name, listening(node.gateway)?))).collect();
    let Some((_, gateway)) = gateways.first() else { return };
    let all = gateways.iter().map(|(name, gateway)| format!("{name} http://{gateway}")).collect::<Vec<_>>().join(", ");
    let (data, new) = (fleet.data_dir().path().display(), new(fleet.data_dir()));
    terminal::answer(format_args!(
        "Rookery listens on http://{gateway}  (data in {data})
nodes: {all}
health: {health}; 10 higher with each further node
{new}{}",
        first(*gateway)
    ));
}

fn health(ports: impl IntoIterator<Item = (Role, SocketAddr)>) -> String {
    ports.into_iter().map(|(role, address)| format!("{role} {address}")).collect::<Vec<_>>().join(", ")
}

/// What to know of a folder that was begun just now.
fn new(data: &DataDir) -> &'static str {
    match data.is_new() {
        true => "This data folder is new and empty. One that you have is taken with --data-dir DIR, or ROOKERY__DATA_DIR.\n",
        false => "",
    }
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
