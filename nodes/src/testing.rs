//! What the tests of every crate of the workspace share: a real Postgres, and new databases in it.

pub mod backup;
mod kafka;
mod node;
mod patience;
mod router;
mod service;
mod turns;

use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::OnceCell;

pub use self::kafka::{ADMINISTRATOR, TestKafka, TestKafkaError};
pub use self::node::TestNode;
pub use self::patience::Patience;
pub use self::router::TestNetwork;
pub use self::service::{LEASE, TestService, rob};
pub use self::turns::Turn;
use crate::migrate::{self, Database};
use crate::postgres::{self, DataDir, EmbeddedPostgres, Search};

/// Waits for a condition that others bring about; there is no sleeping for luck.
///
/// # Panics
/// When it does not come about within this time, as a busy machine has it ([`Patience`]).
pub async fn eventually(within: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let mut patience = Patience::of(within);
    while !condition().await {
        assert!(!patience.is_over(), "waited in vain for {} s until {what}", patience.spent().as_secs());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The one Postgres of a test process, with the settings of production but one: nothing is forced to disk.
///
/// It starts with the first call of [`Self::shared`], ends with the process, however that ends, and takes its data with
/// it. Tests keep apart by having a database each.
#[derive(Debug)]
pub struct TestPostgres {
    server: EmbeddedPostgres,
    // Held: the lock, and the pipe that tells the cleaner of our end.
    _data: DataDir,
    _cleaner: Child,
    templates: [OnceCell<()>; Database::ALL.len()],
    made: AtomicU32,
}

impl TestPostgres {
    /// The server of this process. The first call takes about a second, in which it blocks its thread.
    ///
    /// # Panics
    /// If there is no Postgres and none can be fetched: the message says what to do.
    pub fn shared() -> &'static TestPostgres {
        static SHARED: OnceLock<TestPostgres> = OnceLock::new();
        SHARED.get_or_init(|| {
            // Each test has a runtime of its own, which ends with it: the server must not hang on one of them.
            std::thread::spawn(|| {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime can be made")
                    .block_on(TestPostgres::start())
            })
            .join()
            .expect("the Postgres of the tests starts")
        })
    }

    /// A new database with the schema of `database`, that no other test knows.
    ///
    /// # Panics
    /// If Postgres or the migrations fail.
    pub async fn fresh_database(&self, database: Database) -> tokio_postgres::Config {
        let template = format!("template_{database}");
        self.templates[database as usize]
            .get_or_init(|| async {
                self.create(&template, "template1").await;
                let mut client = self.connect(&template).await;
                migrate::run(&mut client, database).await.expect("the migrations apply");
                // A template can be copied only while nobody is connected to it.
                drop(client);
            })
            .await;
        let name = format!("{database}_{}", self.made.fetch_add(1, Ordering::Relaxed));
        self.create(&name, &template).await;
        self.server.config(&name)
    }

    /// The URL of a new database that holds what a plain dump with INSERT statements says.
    ///
    /// # Panics
    /// If Postgres refuses it.
    pub async fn restored(&self, name: &str, dump: &str) -> String {
        self.create(name, "template0").await;
        self.connect(name).await.batch_execute(dump).await.expect("the dump is complete");
        self.server.url(name)
    }

    /// The server itself.
    pub fn server(&self) -> &EmbeddedPostgres {
        &self.server
    }

    async fn start() -> TestPostgres {
        let folder = tempfile::Builder::new().prefix("rookery-test-").tempdir().expect("a temporary folder can be made");
        let cleaner = remove_at_our_end(folder.path().to_owned()).expect("a shell can be started");
        let data = DataDir::lock(folder.keep()).expect("the folder is new");
        let server = EmbeddedPostgres::start_with(&data, &[], &search()).await.unwrap_or_else(|error| {
            panic!("{:#}", anyhow::Error::from(error));
        });
        let client = postgres::connect(&server.config("postgres")).await.expect("the server runs");
        // The data end with this process. A kill of either loses nothing by it, only one of the machine would.
        for statement in ["ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"] {
            client.batch_execute(statement).await.expect("a superuser may change settings");
        }
        TestPostgres {
            server,
            _data: data,
            _cleaner: cleaner,
            templates: [const { OnceCell::const_new() }; Database::ALL.len()],
            made: AtomicU32::new(0),
        }
    }

    async fn create(&self, name: &str, template: &str) {
        let statement = format!("CREATE DATABASE {} TEMPLATE {}", postgres::quoted(name), postgres::quoted(template));
        let client = self.connect("postgres").await;
        // The session of a dropped client ends a moment later; Postgres itself waits for it, up to 5 s.
        client.batch_execute(&statement).await.expect("a database can be made");
    }

    async fn connect(&self, database: &str) -> tokio_postgres::Client {
        postgres::connect(&self.server.config(database)).await.expect("the server runs")
    }
}

/// As a node searches, but what is fetched is kept for the next test process.
pub fn search() -> Search {
    let home = std::env::var_os("HOME").map_or_else(std::env::temp_dir, PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
    Search { cache: Some(cache.join("rookery")), ..Search::machine() }
}

/// A static is never dropped, and after `kill -9` nothing of ours runs. So a shell waits at the end of a pipe which the
/// kernel closes when we are gone, whichever way, and then for the server to let go of its folders.
fn remove_at_our_end(folder: PathBuf) -> io::Result<Child> {
    use std::os::unix::process::CommandExt;

    Command::new("sh")
        .arg("-c")
        .arg(
            r#"read -r _
               runtime=$(cat "$1/postgres.runtime" 2>/dev/null)
               pid=$(head -n 1 "$1/postgres/postmaster.pid" 2>/dev/null)
               [ -n "$pid" ] && kill -QUIT "$pid" 2>/dev/null
               tries=0
               while [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null && [ $tries -lt 200 ]; do sleep 0.05; tries=$((tries + 1)); done
               rm -rf "$1"
               [ -n "$runtime" ] && rm -rf "$runtime""#,
        )
        .arg("rookery-test-cleaner")
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A Ctrl-C is for us; the cleaner follows.
        .process_group(0)
        .spawn()
}
