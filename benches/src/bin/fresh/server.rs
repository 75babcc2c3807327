//! A Rookery of its own, and a few people in it.

use std::{
    fs::File,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rookery_benches::http::{Connection, Request};
use serde_json::{Value, json};
use tempfile::TempDir;

const USERS: usize = 8;
const READY_WITHIN: Duration = Duration::from_secs(90);
const STOPS_WITHIN: Duration = Duration::from_secs(20);

/// Stopped when dropped.
pub(crate) struct Server {
    child: Child,
    gateway: SocketAddr,
    tokens: Vec<String>,
    _data: TempDir,
}

impl Server {
    pub(crate) async fn start(program: &Path) -> anyhow::Result<Self> {
        let data = TempDir::new()?;
        let log = File::create(data.path().join("log"))?;
        // All are held until all are found, or the same port could come twice.
        let listeners: Vec<_> = (0..5).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
        let free: Vec<_> = listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
        drop(listeners);
        let mut command = Command::new(program);
        command
            .arg("up")
            .env("ROOKERY__DATA_DIR", data.path().join("data"))
            .env("ROOKERY__GATEWAY__RATE_LIMITS", "false")
            .env("ROOKERY__GATEWAY__LISTEN", free[0].to_string())
            .env("ROOKERY__LOG__FILTER", "warn");
        for (address, service) in free[1..].iter().zip(["USERS", "COMMENTS", "POSTS", "SEARCH"]) {
            command.env(format!("ROOKERY__SERVICES__{service}__LISTEN"), address.to_string());
        }
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut server = Self { child, gateway: free[0], tokens: Vec::new(), _data: data };
        server.wait_until_ready().await?;
        // On a busy machine an answer may come too late, and the name is taken then.
        for n in 0..3 * USERS {
            let name = format!("fresh_{n}");
            let account = json!({"username": name, "email": format!("{name}@example.org"), "password": "a long pass phrase"});
            if let Ok(answer) = server.ask(&Request::post("/api/v1/auth/register", &[], &account.to_string()), 0).await {
                server.tokens.push(answer["access_token"].as_str().context("no token")?.to_owned());
            }
            if server.tokens.len() == USERS {
                return Ok(server);
            }
        }
        anyhow::bail!("too few users can register: {}", server.tokens.len())
    }

    /// What the user whose turn it is says of itself.
    pub(crate) fn bearer(&self, n: u64) -> String {
        format!("Bearer {}", self.tokens[n as usize % USERS])
    }

    /// The answer, on a connection of its own.
    pub(crate) async fn ask(&self, request: &Request, serial: u64) -> anyhow::Result<Value> {
        let mut bytes = Vec::new();
        request.write(serial, &mut bytes);
        let mut connection = Connection::open(self.gateway).await?;
        let response = connection.exchange(&bytes).await?;
        let body = String::from_utf8_lossy(response.body);
        anyhow::ensure!(response.is_success(), "{}: {body}", response.status);
        Ok(serde_json::from_str(&body)?)
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        while let Err(error) = self.ask(&Request::get("/readyz"), 0).await {
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("rookery ended: {status}");
            }
            anyhow::ensure!(Instant::now() < deadline, "rookery did not become ready: {error:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let deadline = Instant::now() + STOPS_WITHIN;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                eprintln!("rookery did not stop on SIGTERM; killed");
                let _ = self.child.kill().and_then(|()| self.child.wait());
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
