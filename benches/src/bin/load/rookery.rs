//! A Rookery of its own with people, posts and a thread in it.

use std::{
    collections::BTreeMap,
    fs::File,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use rookery_benches::{
    http::{Connection, Request},
    text,
};
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    cases::Kind,
    subjects::{Sample, Subject},
};

const USERS: usize = 64;
const POSTS: usize = 256;
const COMMENTS: usize = 200;
const PAGE: usize = 20;
/// Different texts that are posted under load.
const TEXTS: u64 = 512;
const SERVICES: [&str; 4] = ["USERS", "COMMENTS", "POSTS", "SEARCH"];
const SECRET: &str = "a secret that is good for one throw-away cluster";
const PASSWORD: &str = "correct horse battery staple";

const READY_WITHIN: Duration = Duration::from_secs(60);
/// Tokens live 15 minutes.
const LOG_IN_AGAIN_AFTER: Duration = Duration::from_secs(5 * 60);
const SEARCHABLE_WITHIN: Duration = Duration::from_secs(60);
/// From when everything is found: merges of the index, the last checkpoints of projections.
const IDLE_WITHIN: Duration = Duration::from_secs(15);
const POLL_EVERY: Duration = Duration::from_millis(250);
/// Below this share of one core, over one poll, a server counts as idle.
const IDLE_SHARE: f64 = 0.08;

/// A running Rookery.
pub(crate) struct Rookery {
    pub(crate) subject: Subject,
    runtime: tokio::runtime::Runtime,
    users: Vec<User>,
    logged_in_at: Instant,
    posts: Vec<String>,
    thread: String,
    /// Posts with the marker that search should find.
    posts_expected: u64,
    serial: u64,
    log: PathBuf,
    program: PathBuf,
    data: TempDir,
}

struct User {
    name: String,
    token: String,
}

/// What was left to do when a load of writes ended.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CatchUp {
    /// When the last post was found, or nothing if that took too long.
    pub(crate) searchable_after_ms: Option<u64>,
    /// When server and Postgres were idle, or were no longer waited for.
    pub(crate) idle_after_ms: u64,
    #[serde(skip)]
    pub(crate) server: Duration,
    #[serde(skip)]
    pub(crate) postgres: Duration,
}

impl Rookery {
    /// Starts `rookery up` in a new data folder and fills it.
    pub(crate) fn start(program: &Path) -> anyhow::Result<Self> {
        let data = TempDir::new()?;
        let log = data.path().join("bench.log");
        let (mut command, gateway) = node(program, &data.path().join("data"), &log)?;
        let mut rookery = Self {
            subject: spawn(command.arg("up"), gateway)?,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            users: Vec::new(),
            logged_in_at: Instant::now(),
            posts: Vec::new(),
            thread: String::new(),
            posts_expected: 0,
            serial: 0,
            log,
            program: program.to_owned(),
            data,
        };
        rookery.fill().with_context(|| rookery.end_of_log())?;
        Ok(rookery)
    }

    /// Starts a node that is nothing but a gateway to this one, and waits until it answers.
    pub(crate) fn far_gateway(&mut self) -> anyhow::Result<Subject> {
        let data = self.data.path().join("far");
        let (mut command, gateway) = node(&self.program, &data, &self.log)?;
        let sockets = self.sockets()?;
        for service in SERVICES {
            let url = format!("postgresql:///{}?host={sockets}&user=rookery", service.to_lowercase());
            command.env(format!("ROOKERY__SERVICES__{service}__DATABASE_URL"), url);
        }
        let subject = spawn(command.args(["node", "--name", "far", "--roles", "gateway"]), gateway)?;
        let post = format!("/api/v1/posts/{}", self.thread);
        self.wait_for(gateway, &Request::get(&post)).with_context(|| self.end_of_log())?;
        Ok(subject)
    }

    /// Where the private Postgres has its socket, as the server itself has noted.
    fn sockets(&self) -> anyhow::Result<String> {
        let file = self.data.path().join("data/postgres/postmaster.pid");
        let noted = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        Ok(noted.lines().nth(4).context("postmaster.pid names no socket folder")?.to_owned())
    }

    fn fill(&mut self) -> anyhow::Result<()> {
        self.wait_until_ready()?;
        self.subject.find_postmaster();
        for n in 0..USERS {
            let name = format!("bench_{n}");
            let email = format!("{name}@example.org");
            let account = json!({"username": name, "email": email, "password": PASSWORD});
            let answer = self.post("/api/v1/auth/register", None, &account.to_string())?;
            let token = text_at(&answer, "/access_token")?;
            self.users.push(User { name, token });
        }
        for n in 0..POSTS {
            let answer = self.post("/api/v1/posts", Some(n), &text::post(n as u64))?;
            self.posts.push(text_at(&answer, "/id")?);
        }
        self.posts_expected = POSTS as u64;
        self.thread = self.posts[0].clone();
        self.fill_thread()?;
        self.check_answers()?;
        let caught_up = self.catch_up()?;
        anyhow::ensure!(
            caught_up.searchable_after_ms.is_some(),
            "search does not find the {POSTS} posts of the bench after {SEARCHABLE_WITHIN:?}"
        );
        Ok(())
    }

    /// A third of the comments answers the post, the others earlier comments.
    fn fill_thread(&mut self) -> anyhow::Result<()> {
        let path = format!("/api/v1/posts/{}/comments", self.thread);
        let mut ids: Vec<String> = Vec::new();
        for n in 0..COMMENTS {
            let mut comment = json!({"body": text::comment(n as u64)});
            if n % 3 != 0 {
                comment["parent_id"] = json!(ids[n / 2]);
            }
            let answer = self.post(&path, Some(n), &comment.to_string())?;
            ids.push(text_at(&answer, "/id")?);
        }
        Ok(())
    }

    /// A fast wrong answer is not worth measuring.
    fn check_answers(&mut self) -> anyhow::Result<()> {
        let post = self.get(&format!("/api/v1/posts/{}", self.thread))?;
        anyhow::ensure!(text_at(&post, "/id")? == self.thread, "another post: {post}");
        for path in [self.comments_path(), list_path()] {
            let page = self.get(&path)?;
            let items = page["items"].as_array().map_or(0, Vec::len);
            anyhow::ensure!(items == PAGE, "{items} items at {path}");
        }
        Ok(())
    }

    fn comments_path(&self) -> String {
        format!("/api/v1/posts/{}/comments?limit={PAGE}", self.thread)
    }

    /// What a kind of case sends.
    pub(crate) fn requests(&mut self, kind: Kind) -> anyhow::Result<Arc<[Request]>> {
        Ok(match kind {
            Kind::Get | Kind::Remote => {
                let path = |id| format!("/api/v1/posts/{id}");
                self.posts.iter().map(|id| Request::get(&path(id))).collect()
            }
            Kind::Comments => [Request::get(&self.comments_path())].into(),
            Kind::List => [Request::get(&list_path())].into(),
            Kind::Create => {
                self.log_in_again_when_due()?;
                (0..TEXTS).map(|n| self.create_request(n as usize, &text::post(n))).collect()
            }
            Kind::Login => {
                let login = |user: &User| {
                    let login = json!({"login": user.name, "password": PASSWORD});
                    Request::post("/api/v1/auth/login", &[], &login.to_string())
                };
                self.users.iter().map(login).collect()
            }
            Kind::Bare | Kind::Insert | Kind::Argon2 => {
                unreachable!("a baseline is not asked of Rookery")
            }
        })
    }

    fn create_request(&self, user: usize, json: &str) -> Request {
        let bearer = format!("Bearer {}", self.users[user % USERS].token);
        Request::post("/api/v1/posts", &[("authorization", &bearer)], json)
    }

    fn log_in_again_when_due(&mut self) -> anyhow::Result<()> {
        if self.logged_in_at.elapsed() < LOG_IN_AGAIN_AFTER {
            return Ok(());
        }
        for n in 0..USERS {
            let login = json!({"login": self.users[n].name, "password": PASSWORD});
            let answer = self.post("/api/v1/auth/login", None, &login.to_string())?;
            self.users[n].token = text_at(&answer, "/access_token")?;
        }
        self.logged_in_at = Instant::now();
        Ok(())
    }

    /// Notes posts that a load has created.
    pub(crate) fn created(&mut self, posts: u64) {
        self.posts_expected += posts;
    }

    /// Waits until search finds every post and then until nothing is left to do.
    pub(crate) fn catch_up(&mut self) -> anyhow::Result<CatchUp> {
        let started = Instant::now();
        let mut deadline = started + SEARCHABLE_WITHIN;
        let first = self.subject.sample();
        let mut last = (started, spent_of(&first));
        let mut searchable_after_ms = None;
        let mut idle_polls = 0;
        loop {
            std::thread::sleep(POLL_EVERY);
            if searchable_after_ms.is_none() && self.posts_found()? >= self.posts_expected {
                searchable_after_ms = Some(millis(started.elapsed()));
                deadline = Instant::now() + IDLE_WITHIN;
            }
            let sample = self.subject.sample();
            let now = (Instant::now(), spent_of(&sample));
            let share = (now.1 - last.1).as_secs_f64() / (now.0 - last.0).as_secs_f64();
            last = now;
            idle_polls = if share < IDLE_SHARE { idle_polls + 1 } else { 0 };
            let done = searchable_after_ms.is_some() && idle_polls >= 2;
            if done || Instant::now() > deadline {
                return Ok(CatchUp {
                    searchable_after_ms,
                    idle_after_ms: millis(started.elapsed()),
                    server: sample.server - first.server,
                    postgres: sample.postgres - first.postgres,
                });
            }
        }
    }

    fn posts_found(&mut self) -> anyhow::Result<u64> {
        let path = format!("/api/v1/search?q={}&type=posts&limit=1", text::MARKER);
        let answer = self.get(&path)?;
        answer["total"].as_u64().with_context(|| format!("no total in {answer}"))
    }

    /// The counters of `/metrics`, or none if there is no such page.
    pub(crate) fn counters(&mut self) -> BTreeMap<String, f64> {
        let page = self.ask(&Request::get("/metrics"));
        page.map(|text| parse_counters(&text)).unwrap_or_default()
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        self.wait_for(self.subject.address, &Request::get("/readyz"))
    }

    fn wait_for(&mut self, address: SocketAddr, request: &Request) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            match self.ask_at(address, request) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context("rookery did not become ready"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
            if let Some(status) = self.subject.ended()? {
                anyhow::bail!("rookery ended: {status}");
            }
        }
    }

    fn get(&mut self, path: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.ask(&Request::get(path))?)?)
    }

    fn post(&mut self, path: &str, user: Option<usize>, json: &str) -> anyhow::Result<Value> {
        let bearer = user.map(|user| format!("Bearer {}", self.users[user % USERS].token));
        let headers = bearer.iter().map(|bearer| ("authorization", bearer.as_str()));
        let request = Request::post(path, &headers.collect::<Vec<_>>(), json);
        Ok(serde_json::from_str(&self.ask(&request)?)?)
    }

    fn ask(&mut self, request: &Request) -> anyhow::Result<String> {
        self.ask_at(self.subject.address, request)
    }

    fn ask_at(&mut self, address: SocketAddr, request: &Request) -> anyhow::Result<String> {
        self.serial += 1;
        let mut bytes = Vec::new();
        request.write(self.serial, &mut bytes);
        self.runtime.block_on(async {
            let mut connection = Connection::open(address).await?;
            let response = connection.exchange(&bytes).await?;
            let body = String::from_utf8_lossy(response.body).into_owned();
            anyhow::ensure!(response.is_success(), "{}: {body}", response.status);
            Ok(body)
        })
    }

    fn end_of_log(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(20)..].join("\n");
        format!("rookery cannot be measured; the end of what it said:\n{end}\n")
    }
}

/// A node of the bench's cluster that is about to start, and where its gateway will listen.
fn node(program: &Path, data: &Path, log: &Path) -> anyhow::Result<(Command, SocketAddr)> {
    let [gateway, link, health @ ..] = free_addresses::<6>()?;
    let output = File::options().create(true).append(true).open(log)?;
    let mut command = Command::new(program);
    command
        .env("ROOKERY__DATA_DIR", data)
        .env("ROOKERY__SECRET", SECRET)
        .env("ROOKERY__CLUSTER__LISTEN", link.to_string())
        .env("ROOKERY__GATEWAY__LISTEN", gateway.to_string())
        .env("ROOKERY__GATEWAY__RATE_LIMITS", "false")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    for (service, address) in SERVICES.iter().zip(health) {
        command.env(format!("ROOKERY__SERVICES__{service}__LISTEN"), address.to_string());
    }
    Ok((command, gateway))
}

fn spawn(command: &mut Command, gateway: SocketAddr) -> anyhow::Result<Subject> {
    let child = command.spawn().with_context(|| format!("starting {}", command.get_program().display()))?;
    Ok(Subject::of(child, gateway))
}

fn list_path() -> String {
    format!("/api/v1/posts?sort=new&limit={PAGE}")
}

/// Addresses that are free now; another program could take one before Rookery does.
fn free_addresses<const N: usize>() -> anyhow::Result<[SocketAddr; N]> {
    // All are held until all are found, or the same port could come twice.
    let listeners: Vec<_> = (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let addresses: Vec<_> = listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
    Ok(addresses.try_into().expect("as many addresses as listeners"))
}

fn spent_of(sample: &Sample) -> Duration {
    sample.server + sample.postgres
}

fn text_at(answer: &Value, pointer: &str) -> anyhow::Result<String> {
    let text = answer.pointer(pointer).and_then(Value::as_str);
    Ok(text.with_context(|| format!("no {pointer} in {answer}"))?.to_owned())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Reads the counters of a page in Prometheus' text format.
fn parse_counters(page: &str) -> BTreeMap<String, f64> {
    let mut counters = BTreeMap::new();
    let mut counter = None;
    for line in page.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            counter = kind.strip_suffix(" counter");
        } else if let (Some(name), Some((series, value))) = (counter, line.rsplit_once(' '))
            && series.starts_with(name)
            && let Ok(value) = value.parse()
        {
            counters.insert(series.to_owned(), value);
        }
    }
    counters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_counters_are_read_from_a_metrics_page() {
        let page = "# TYPE hits counter\nhits{route=\"/ a\"} 3\nhits 4.5\n\
                    # TYPE depth gauge\ndepth 7\n";
        let expected = [("hits".to_owned(), 4.5), ("hits{route=\"/ a\"}".to_owned(), 3.0)];
        assert_eq!(parse_counters(page), BTreeMap::from(expected));
    }
}
