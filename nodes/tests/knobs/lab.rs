//! The nodes on which the knobs are looked at: some as shipped, some with many knobs turned at once.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use futures_util::future::join_all;
use reqwest::{Client, RequestBuilder, header::HeaderMap};
use rookery::{
    config::Config,
    migrate::Database,
    testing::{self, Patience, TestKafka, TestPostgres, Turn},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::{
    certificates::Authority,
    kafka::{MadeTopics, Recorder},
    process::{self, Running, rookery},
};

/// Longer than what is waited for takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The secret of the cluster of [`Who::Member`], which [`Who::Small`] knows as its former one.
const SECRET: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// The nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// `rookery up`, as shipped.
    Up,
    /// A node of a cluster, as shipped, without rate limits. The only one in its cluster.
    Plain,
    /// The only member of a cluster with two gateways; has turned what concerns services.
    Member,
    /// A gateway of that cluster, as shipped, without rate limits.
    Gateway,
    /// The other one, with strict limits.
    Strict,
    /// Alone in its cluster: few connections, soon idle, and events go through Kafka.
    Small,
    /// The same node, if there is a Kafka.
    Relay,
    /// Is to log in to Kafka over TLS.
    Guarded,
}

/// A running node.
pub(crate) struct Node {
    pub(crate) config: Config,
    /// Its environment.
    pub(crate) set: Vec<(OsString, OsString)>,
    pub(crate) running: Running,
    pub(crate) data: PathBuf,
    urls: BTreeMap<&'static str, String>,
    http: Client,
}

/// An answer of a gateway.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

/// All of them.
pub(crate) struct Lab {
    nodes: BTreeMap<Who, Node>,
    pub(crate) authority: Authority,
    /// The most indexes that read their documents at once when these nodes started.
    pub(crate) index_reads: BTreeMap<Who, i64>,
    pub(crate) recorder: Recorder,
    pub(crate) made: Option<MadeTopics>,
    pub(crate) broker: Option<TestKafka>,
    folder: TempDir,
    _turn: Option<Turn>,
}

/// Tables that nobody else can read or write, until this is dropped or released.
pub(crate) struct Held(tokio_postgres::Client);

/// How a node is started.
struct Plan {
    who: Who,
    command: Command,
    urls: BTreeMap<&'static str, String>,
}

impl Lab {
    pub(crate) async fn start() -> Self {
        let broker = tokio::task::block_in_place(|| TestKafka::start_or_skip("every_knob_does_what_the_file_says"));
        // A broker has taken a turn already.
        let turn = broker.is_none().then(|| tokio::task::block_in_place(|| Turn::wait(3)));
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "authority");
        let recorder = Recorder::start(&authority).await;
        let made = match &broker {
            Some(broker) => Some(MadeTopics::as_shipped(broker).await),
            None => None,
        };

        let (own, shared, small, guarded) = (urls().await, urls().await, urls().await, urls().await);
        let certificate = |name: &str| {
            let [cert, key, ca] = authority.node(name).map(|path| path.to_str().unwrap().to_owned());
            vec![("cluster.tls.cert_file", cert), ("cluster.tls.key_file", key), ("cluster.tls.ca_file", ca)]
        };
        let small_certificate = certificate("small");
        let plain = Plan::node(Who::Plain, own, &[("secret", "a secret that is none of the others' own")]);
        let cluster = [
            ("secret", SECRET),
            ("cluster.shards", "8"),
            ("cluster.search_partitions", "6"),
            ("lease.ttl_ms", "6000"),
            ("lease.renew_ms", "1500"),
            ("tokens.access_ttl_s", "600"),
            ("tokens.refresh_ttl_days", "7"),
            ("tokens.issuer", "knobs.example"),
            ("tokens.audience", "knobs"),
        ];
        let member = Plan::node(Who::Member, shared.clone(), &cluster).with(&certificate("member")).with(&[
            ("node.name", "member"),
            ("committer.commands_max", "5"),
            ("committer.bytes_max", "1048576"),
            ("services.users.listen", "127.0.0.2:0"),
            ("services.comments.listen", "127.0.0.3:0"),
            ("services.posts.listen", "127.0.0.4:0"),
            ("services.search.listen", "127.0.0.5:0"),
            ("services.users.loads_max", "1"),
            ("services.comments.loads_max", "2"),
            ("services.posts.loads_max", "3"),
            ("services.search.loads_max", "3"),
            ("services.users.cache_bytes", "1048576"),
            ("services.comments.cache_bytes", "1048576"),
            ("services.posts.cache_bytes", "1048576"),
            ("services.search.cache_bytes", "1048576"),
            ("log.filter", "info,rookery=debug"),
        ]);
        let a_gateway = [("node.roles", "gateway")];
        let gateway = Plan::node(Who::Gateway, shared.clone(), &cluster)
            .with(&certificate("gateway"))
            .with(&a_gateway)
            .with(&[("node.name", "gateway")]);
        let strict = Plan::node(Who::Strict, shared, &cluster).with(&certificate("strict")).with(&a_gateway).with(&[
            ("node.name", "strict"),
            ("cluster.heartbeat_ms", "50"),
            ("cluster.heartbeats_missed_max", "40"),
            ("cluster.in_flight_max", "2"),
            ("cluster.copies_bytes", "0"),
            ("gateway.listen", "127.0.0.6:0"),
            ("gateway.rate_limits", "true"),
            ("gateway.body_limit_bytes", "4096"),
            ("gateway.request_timeout_ms", "2000"),
            ("gateway.header_timeout_ms", "1500"),
            ("gateway.connections_max", "20"),
            ("gateway.concurrency_max", "8"),
            ("gateway.cors_origins", "https://a.example"),
            ("gateway.trusted_proxies", "127.0.0.0/8"),
            ("gateway.rates.auth.burst", "2"),
            ("gateway.rates.auth.per_minute", "3"),
            ("gateway.rates.read.burst", "3"),
            ("gateway.rates.read.per_minute", "4"),
            ("gateway.rates.write.burst", "4"),
            ("gateway.rates.write.per_minute", "5"),
            ("gateway.rates.search.burst", "5"),
            ("gateway.rates.search.per_minute", "6"),
            ("log.format", "human"),
        ]);
        let mut small = Plan::node(Who::Small, small, &[("secret", "another secret that nobody else has at all")]).with(&[
            ("secret_previous", SECRET),
            ("cluster.shards", "16"),
            ("cluster.advertise", "knobs.example:7400"),
            ("entities.passivate_after_s", "1"),
            ("services.users.pool_max", "2"),
            ("services.comments.pool_max", "3"),
            ("services.posts.pool_max", "2"),
            ("services.search.pool_max", "2"),
            ("gateway.drain_ms", "3000"),
        ]);
        let (certificate_and_key, _) = small_certificate.split_at(2);
        small = small.with(certificate_and_key);
        if let Some(broker) = &broker {
            let brokers = broker.config(1).brokers[0].to_string();
            small = small.with(&[("kafka.brokers", &*brokers), ("kafka.partitions", "3"), ("kafka.retention_ms", "7200000")]);
        }
        let guarded = Plan::node(Who::Guarded, guarded, &[("secret", "a secret of the node that is to log in")]).with(&[
            ("node.roles", "comments"),
            ("cluster.shards", "4"),
            ("kafka.brokers", &*recorder.address.to_string()),
            ("kafka.replication_factor", "2"),
            ("kafka.tls.enabled", "true"),
            ("kafka.tls.ca_file", authority.file().to_str().unwrap()),
            ("kafka.sasl.mechanism", "plain"),
            ("kafka.sasl.username", "knobs"),
            ("kafka.sasl.password", "the password of knobs"),
        ]);

        let watched = [&plain, &member, &small].map(|plan| (plan.who, plan.urls["search"].clone()));
        let index_reads = IndexReads::watch(watched).await;
        let up = Plan::up(folder.path().join("up"));
        let plans = [up, plain, member, gateway, strict, small, guarded];
        let nodes: BTreeMap<Who, Node> = join_all(plans.map(|plan| plan.start(folder.path()))).await.into_iter().collect();
        let index_reads = index_reads.finish().await;
        let lab = Self { nodes, authority, index_reads, recorder, made, broker, folder, _turn: turn };
        for who in [Who::Plain, Who::Member, Who::Gateway, Who::Strict, Who::Small] {
            lab.ready(who).await;
        }
        lab
    }

    /// A node; none: this machine has no Kafka for it.
    pub(crate) fn find(&self, who: Who) -> Option<&Node> {
        match who {
            Who::Relay if self.broker.is_none() => None,
            Who::Relay => self.nodes.get(&Who::Small),
            who => self.nodes.get(&who),
        }
    }

    pub(crate) fn of(&self, who: Who) -> &Node {
        self.find(who).expect("it runs")
    }

    /// Waits until a gateway reaches all services.
    pub(crate) async fn ready(&self, who: Who) {
        let node = self.of(who);
        let what = format!("{who:?} is ready");
        eventually(&what, async || {
            let answer = node.get("/readyz").await;
            answer.status == 200 && answer.body["status"] == "ok"
        })
        .await;
    }

    /// The command that started a node, to start it once more with something changed, in a data folder of its own.
    pub(crate) fn again(&self, who: Who, name: &str) -> Command {
        let mut command = rookery(&["node"]);
        clear(&mut command);
        command.envs(self.of(who).set.iter().map(|(name, value)| (name, value)));
        command.env("ROOKERY__NODE__NAME", name).env("ROOKERY__DATA_DIR", self.folder.path().join(name));
        command
    }

    /// Starts what is not to run, and waits for its last words.
    pub(crate) async fn refused(&self, mut command: Command) -> String {
        let said = self.folder.path().join("refused.log");
        command.stdout(std::process::Stdio::null()).stderr(std::fs::File::create(&said).unwrap());
        let mut child = command.spawn().unwrap();
        let mut patience = Patience::of(PATIENCE);
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if patience.is_over() => break None,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let _ = child.kill();
        let _ = child.wait();
        let said = std::fs::read_to_string(said).unwrap();
        assert!(status.is_some_and(|status| !status.success()), "it runs: {said}");
        said
    }
}

impl Node {
    /// Where its gateway listens.
    pub(crate) fn address(&self) -> SocketAddr {
        let greeted = self.running.greeted("listens on").expect("it is a gateway");
        greeted.strip_prefix("http://").expect("it is a URL").parse().unwrap()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        Answer::of(self.http.get(self.url(path))).await
    }

    pub(crate) async fn post(&self, path: &str, token: Option<&str>, body: &Value) -> Answer {
        let request = self.http.post(self.url(path)).json(body);
        Answer::of(token.iter().fold(request, |request, token| request.bearer_auth(token))).await
    }

    /// A new user: what the gateway answers.
    pub(crate) async fn register(&self, name: &str) -> Value {
        let user = json!({"username": name, "email": format!("{name}@example.org"), "password": "a long pass phrase"});
        let answer = self.post("/api/v1/auth/register", None, &user).await;
        assert_eq!(answer.status, 201, "{name}: {}", answer.body);
        answer.body
    }

    /// What is written as a post: its id.
    pub(crate) async fn publish(&self, token: &str, body: &str) -> String {
        let post = json!({"title": "knobs", "body": body, "tags": []});
        let answer = self.post("/api/v1/posts", Some(token), &post).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        text(&answer.body["id"])
    }

    /// The sum of a metric over all series that have this label or part of one.
    pub(crate) async fn metric(&self, name: &str, label: &str) -> f64 {
        let (status, text) = self.running.get(&self.url("/metrics")).await;
        assert_eq!(status, 200);
        let of = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, labels) = series.split_once('{').unwrap_or((series, ""));
            (found == name && labels.contains(label)).then(|| value.parse::<f64>().unwrap())
        };
        text.lines().filter_map(of).sum()
    }

    /// What `rookery status` says of it.
    pub(crate) fn status(&self) -> Value {
        let status = process::status(&self.data);
        let name = self.config.node.name.as_str();
        let own = status["nodes"].as_array().unwrap().iter().find(|node| node["name"] == name);
        own.unwrap_or_else(|| panic!("{name} is in {status}")).clone()
    }

    /// A session of one of its databases, which are the test's.
    pub(crate) async fn sql(&self, database: Database) -> tokio_postgres::Client {
        connect(&self.urls[database.name()]).await
    }

    /// Keeps everybody else away from a table.
    pub(crate) async fn hold(&self, database: Database, table: &str) -> Held {
        Held::take(&self.urls[database.name()], table).await
    }

    /// How many statements that begin like this wait for a table.
    pub(crate) async fn held_up(&self, database: Database, statement: &str) -> i64 {
        held_up(&self.sql(database).await, statement).await
    }
}

impl Answer {
    pub(crate) async fn of(request: RequestBuilder) -> Self {
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let body = answer.text().await.unwrap();
        // What is no JSON is text.
        let body = serde_json::from_str(&body).unwrap_or(Value::String(body));
        Self { status, headers, body }
    }

    /// A header; empty: there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Held {
    async fn take(url: &str, table: &str) -> Self {
        let client = connect(url).await;
        client.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")).await.unwrap();
        Self(client)
    }

    /// Lets the others at it.
    pub(crate) async fn release(self) {
        self.0.batch_execute("ROLLBACK").await.unwrap();
    }
}

async fn held_up(client: &tokio_postgres::Client, statement: &str) -> i64 {
    let count = "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND wait_event_type = 'Lock' AND starts_with(query, $1)";
    client.query_one(count, &[&statement]).await.unwrap().get(0)
}

/// Looks how many indexes read at once. Every index reads when its node has just started, and here all of them have to wait.
struct IndexReads {
    held: Vec<Held>,
    counters: Vec<(Who, tokio_postgres::Client)>,
}

impl IndexReads {
    async fn watch(nodes: [(Who, String); 3]) -> Self {
        let (mut held, mut counters) = (Vec::new(), Vec::new());
        for (who, url) in nodes {
            held.push(Held::take(&url, "documents").await);
            counters.push((who, connect(&url).await));
        }
        Self { held, counters }
    }

    /// The most at once, now that the nodes run.
    async fn finish(self) -> BTreeMap<Who, i64> {
        let mut most: BTreeMap<Who, i64> = BTreeMap::new();
        let mut since = Instant::now();
        // Those that may, do so at once: what does not grow for a while is all.
        while since.elapsed() < Duration::from_secs(1) {
            for (who, client) in &self.counters {
                let now = held_up(client, "SELECT seq, octet_length(doc)").await;
                if now > *most.entry(*who).or_default() {
                    (since, _) = (Instant::now(), most.insert(*who, now));
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for held in self.held {
            held.release().await;
        }
        most
    }
}

impl Plan {
    fn node(who: Who, urls: BTreeMap<&'static str, String>, knobs: &[(&str, &str)]) -> Self {
        let mut command = rookery(&["node"]);
        clear(&mut command);
        let mut plan = Self { who, command, urls };
        for (service, url) in plan.urls.clone() {
            plan = plan.with(&[(&*format!("services.{service}.database_url"), url)]);
        }
        plan.with(&FREE_PORTS).with(&[("cluster.listen", "127.0.0.1:0"), ("gateway.rate_limits", "false")]).with(knobs)
    }

    /// In a folder of its own, without a data folder that is named.
    fn up(folder: PathBuf) -> Self {
        std::fs::create_dir(&folder).unwrap();
        let mut command = process::in_shell("unset ROOKERY__DATA_DIR && exec \"$ROOKERY_TEST_PROGRAM\" up");
        clear(&mut command);
        command.current_dir(folder);
        Self { who: Who::Up, command, urls: BTreeMap::new() }.with(&FREE_PORTS)
    }

    fn with(mut self, knobs: &[(&str, impl AsRef<str>)]) -> Self {
        for (path, value) in knobs {
            self.command.env(variable(path), value.as_ref());
        }
        self
    }

    async fn start(self, folder: &Path) -> (Who, Node) {
        let Self { who, command, urls } = self;
        let data = match who {
            Who::Up => folder.join("up").join(".rookery"),
            _ => folder.join(format!("{who:?}").to_lowercase()),
        };
        let set: Vec<_> = command.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect();
        let mut config = Config::read(None, set.clone()).unwrap_or_else(|errors| panic!("{who:?}: {errors}"));
        if who != Who::Up {
            config.data_dir.clone_from(&data);
        }
        let running = Running::start(command, &data).await;
        (who, Node { config, set, running, data, urls, http: Client::new() })
    }
}

const FREE_PORTS: [(&str, &str); 5] = [
    ("gateway.listen", "127.0.0.1:0"),
    ("services.users.listen", "127.0.0.1:0"),
    ("services.comments.listen", "127.0.0.1:0"),
    ("services.posts.listen", "127.0.0.1:0"),
    ("services.search.listen", "127.0.0.1:0"),
];

/// Takes away what the tests of nodes configure for theirs.
fn clear(command: &mut Command) {
    let set: Vec<_> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
    for name in set.iter().filter(|name| name.as_encoded_bytes().starts_with(b"ROOKERY__")) {
        command.env_remove(name);
    }
}

/// The environment variable of a knob.
fn variable(path: &str) -> String {
    format!("ROOKERY__{}", path.to_uppercase().replace('.', "__"))
}

/// New databases.
async fn urls() -> BTreeMap<&'static str, String> {
    let postgres = TestPostgres::shared();
    let mut urls = BTreeMap::new();
    for database in Database::ALL {
        let made = postgres.fresh_database(database).await;
        urls.insert(database.name(), postgres.server().url(made.get_dbname().unwrap()));
    }
    urls
}

async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A string of an answer.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// Waits for a condition.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    testing::eventually(PATIENCE, what, condition).await;
}
