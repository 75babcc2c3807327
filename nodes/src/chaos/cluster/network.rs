//! A network for one cluster, with a wire per node that can be cut in either direction: network namespaces and a bridge.
//!
//! What is cut is silence: packets are sent to a hardware address that nobody has, as to a host that is gone. Nobody is told.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, bail};
use tokio::{io::AsyncReadExt, process::Child};

/// An address of the link layer that no card has.
const NOBODY: &str = "02:00:00:00:00:01";
/// Where every node's gateway listens, each at its own address.
const GATEWAY_PORT: u16 = 8080;
/// Where the nodes listen for each other.
const LINK_PORT: u16 = 7400;

/// The network. Dropped, it goes, with the wires of the nodes that are still in it.
pub struct Network {
    /// First three bytes of every address.
    prefix: String,
    /// One namespace per node, each kept by a process.
    nodes: Vec<Child>,
    // Held: the bridge is in its namespace.
    _switch: Child,
}

impl Network {
    /// Whether this machine has the tools; to be root is another matter.
    pub fn is_possible() -> bool {
        let has =
            |tool: &str| ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|folder| Path::new(folder).join(tool).exists());
        ["ip", "nsenter", "unshare"].into_iter().all(has)
    }

    /// Makes the wires of so many nodes. Needs root, and `ip` from iproute2.
    pub(super) async fn of(nodes: u16) -> anyhow::Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        // Apart from those of other processes, if all goes as it usually does.
        let id = 8 * process + number % 8;
        let prefix = format!("10.{}.{}", 64 + id / 256 % 128, id % 256);
        let ours = format!("rk{process}x{number}");
        let switch = namespace().await?;
        let mut keepers = Vec::new();
        let mut script = String::from("set -e\n");
        let bridge = pid(&switch)?;
        let in_switch = format!("nsenter --net=/proc/{bridge}/ns/net ip");
        // A link of ours, by which clients reach the gateways; it goes with the namespace at its other end.
        let _ = writeln!(
            script,
            "{in_switch} link add br0 type bridge\n{in_switch} link set br0 up
             ip link add {ours} type veth peer name up0 netns {bridge}
             {in_switch} link set up0 master br0 up\nip addr add {prefix}.254/24 dev {ours}\nip link set {ours} up"
        );
        for node in 1..=nodes {
            let keeper = namespace().await?;
            let of = pid(&keeper)?;
            let inside = format!("nsenter --net=/proc/{of}/ns/net ip");
            let _ = writeln!(
                script,
                "{in_switch} link add v{node} type veth peer name eth0 netns {of}\n{in_switch} link set v{node} master br0 up
                 {inside} link set lo up\n{inside} addr add {prefix}.{node}/24 dev eth0\n{inside} link set eth0 up"
            );
            keepers.push(keeper);
        }
        run(&script).await.context("cannot make a network")?;
        Ok(Self { prefix, nodes: keepers, _switch: switch })
    }

    /// A program on the wire of a node; the first is 1.
    pub(super) fn command(&self, node: usize, program: &Path) -> anyhow::Result<Command> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace(node)?.display())).arg("--").arg(program);
        command
            .env("ROOKERY__GATEWAY__LISTEN", self.gateway(node))
            .env("ROOKERY__CLUSTER__LISTEN", format!("{}.{node}:{LINK_PORT}", self.prefix));
        Ok(command)
    }

    /// Where a node's gateway listens.
    pub(super) fn gateway(&self, node: usize) -> String {
        format!("{}.{node}:{GATEWAY_PORT}", self.prefix)
    }

    /// What one node sends to the other does not arrive; the other direction stays as it is.
    pub(super) async fn cut(&self, from: usize, to: usize) -> anyhow::Result<()> {
        self.neighbour(from, to, &format!("replace {}.{to} lladdr {NOBODY} nud permanent", self.prefix)).await
    }

    /// Packets from one node to the other arrive again.
    pub(super) async fn heal(&self, from: usize, to: usize) -> anyhow::Result<()> {
        self.neighbour(from, to, &format!("del {}.{to}", self.prefix)).await
    }

    async fn neighbour(&self, from: usize, to: usize, what: &str) -> anyhow::Result<()> {
        let namespace = self.namespace(from)?;
        let script = format!("nsenter --net={} ip neigh {what} dev eth0", namespace.display());
        run(&script).await.with_context(|| format!("cannot cut or heal the way from node {from} to node {to}"))
    }

    fn namespace(&self, node: usize) -> anyhow::Result<PathBuf> {
        let keeper = node.checked_sub(1).and_then(|index| self.nodes.get(index)).context("there is no such node")?;
        Ok(format!("/proc/{}/ns/net", pid(keeper)?).into())
    }
}

/// A process in a network namespace of its own, until its input ends.
async fn namespace() -> anyhow::Result<Child> {
    let mut command = tokio::process::Command::new("unshare");
    command.args(["--net", "sh", "-c", "echo there; exec cat"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().context("cannot make a network namespace")?;
    // Before it has said so, it is still in the namespace of this process.
    let mut stdout = child.stdout.take().context("its output is a pipe")?;
    stdout.read_exact(&mut [0; 6]).await.context("there is no network namespace")?;
    Ok(child)
}

fn pid(keeper: &Child) -> anyhow::Result<u32> {
    keeper.id().context("the keeper of a namespace has ended")
}

async fn run(script: &str) -> anyhow::Result<()> {
    let output = tokio::process::Command::new("sh").args(["-c", script]).output().await?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
