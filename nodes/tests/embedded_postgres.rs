//! The private Postgres: real servers on temporary data folders.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::sys::signal::{Signal, kill as kill_process};
use nix::unistd::{Pid, Uid};
use rookery::migrate::{self, Database};
use rookery::postgres::{BinariesError, DataDir, DataDirError, EmbeddedPostgres, Major, PostgresError, Search};
use rookery::testing::{self, Patience, TestPostgres, TestService};
use rookery_actors::ids::UserId;
use rookery_actors::posts::rules::{Body, Tags, Title};
use rookery_actors::posts::{Draft, PostService, Posts};
use rookery_actors::runtime::{Context, Settings};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

const DATABASES: [&str; 4] = ["users", "posts", "comments", "search"];

fn data_folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

async fn start(folder: &Path) -> (DataDir, EmbeddedPostgres) {
    let data = DataDir::lock(folder).unwrap();
    let postgres = EmbeddedPostgres::start_with(&data, &DATABASES, &testing::search()).await.unwrap();
    (data, postgres)
}

async fn connect(config: &tokio_postgres::Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn write_one(postgres: &EmbeddedPostgres) {
    let client = connect(&postgres.config("posts")).await;
    client.batch_execute("CREATE TABLE IF NOT EXISTS kept (n int); INSERT INTO kept VALUES (1)").await.unwrap();
}

async fn kept(postgres: &EmbeddedPostgres) -> i64 {
    connect(&postgres.config("posts")).await.query_one("SELECT count(*) FROM kept", &[]).await.unwrap().get(0)
}

/// Whether `pid` still runs; a zombie does not.
fn runs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let mut patience = Patience::of(Duration::from_secs(30));
    while !condition() {
        assert!(!patience.is_over(), "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_restart_keeps_the_data() {
    let folder = data_folder();

    let cold = Instant::now();
    let (data, postgres) = start(folder.path()).await;
    println!("cold start: {:?}", cold.elapsed());
    write_one(&postgres).await;
    let stop = Instant::now();
    postgres.stop().await;
    println!("stop: {:?}", stop.elapsed());
    drop(data);

    let warm = Instant::now();
    let (_data, postgres) = start(folder.path()).await;
    println!("warm start: {:?}", warm.elapsed());
    assert_eq!(kept(&postgres).await, 1);
    postgres.stop().await;
}

/// A start that is killed while it makes the database leaves a child of initdb behind, which still writes there.
#[tokio::test]
async fn a_first_start_that_was_killed_is_repeated_at_once() {
    let folder = data_folder();
    let unfinished = ["postgres.making", "postgres.making-x7c"].map(|name| folder.path().join(name));
    let writers = unfinished.clone().map(|unfinished| {
        fs::create_dir(&unfinished).unwrap();
        fs::write(unfinished.join("PG_VERSION"), "15").unwrap();
        std::thread::spawn(move || {
            let began = Instant::now();
            for n in 0.. {
                let written = fs::write(unfinished.join(n.to_string()), "");
                if written.is_err() || began.elapsed() > Duration::from_millis(300) {
                    return;
                }
            }
        })
    });

    let (_data, postgres) = start(folder.path()).await;
    write_one(&postgres).await;
    postgres.stop().await;
    for writer in writers {
        writer.join().unwrap();
    }
    assert!(!unfinished.iter().any(|folder| folder.exists()), "what was never finished is gone");
}

#[tokio::test]
async fn a_database_that_an_old_folder_lacks_is_added() {
    let folder = data_folder();
    let (data, postgres) = start(folder.path()).await;
    postgres.stop().await;
    let postgres = EmbeddedPostgres::start_with(&data, &["users", "Added \"later\""], &testing::search()).await.unwrap();
    connect(&postgres.config("Added \"later\"")).await;
    postgres.stop().await;
}

#[tokio::test]
async fn a_stop_leaves_no_server_and_no_socket() {
    let folder = data_folder();
    let (_data, postgres) = start(folder.path()).await;
    let (pid, runtime) = (postgres.id().unwrap(), fs::read_to_string(folder.path().join("postgres.runtime")).unwrap());
    postgres.stop().await;
    assert!(!runs(pid) && !Path::new(&runtime).exists());
}

#[tokio::test]
async fn the_url_leads_to_the_same_database() {
    let folder = data_folder();
    let (_data, postgres) = start(folder.path()).await;
    let client = connect(&postgres.url("search").parse().unwrap()).await;
    let name: String = client.query_one("SELECT current_database()::text", &[]).await.unwrap().get(0);
    assert_eq!(name, "search");
    postgres.stop().await;
}

#[tokio::test]
async fn what_is_acknowledged_is_on_disk_and_nothing_listens_on_the_network() {
    let folder = data_folder();
    let (_data, postgres) = start(folder.path()).await;
    let client = connect(&postgres.config("users")).await;
    for (setting, value) in [("fsync", "on"), ("synchronous_commit", "on"), ("listen_addresses", ""), ("jit", "off")] {
        let is: String = client.query_one("SELECT current_setting($1)", &[&setting]).await.unwrap().get(0);
        assert_eq!(is, value, "{setting}");
    }
    postgres.stop().await;
}

#[tokio::test]
async fn a_server_that_is_killed_says_so_and_restarts_with_its_data() {
    let folder = data_folder();
    let (_data, mut postgres) = start(folder.path()).await;
    write_one(&postgres).await;
    let config = postgres.config("posts");

    kill(postgres.id().unwrap());
    let status = postgres.exited().await;
    assert!(!status.success());
    postgres.restart().await.unwrap();

    connect(&config).await;
    assert_eq!(kept(&postgres).await, 1);
    postgres.stop().await;
}

/// Met in a cluster whose Postgres was started anew, which takes a moment in which it takes no connections: writes were 503s.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_started_anew_fails_no_write() {
    let folder = data_folder();
    let (_data, mut postgres) = start(folder.path()).await;
    let config = postgres.config("posts");
    migrate::run(&mut connect(&config).await, Database::Posts).await.unwrap();
    let service = TestService::start(PostService::default(), config, "n1", Settings::default()).await;
    let posts = Posts::new(service.runtime.clone());
    for _ in 0..3 {
        let server = Pid::from_raw(postgres.id().unwrap().try_into().unwrap());
        let writes = async {
            for n in 0..200 {
                let draft = Draft {
                    author: UserId(Uuid::from_u128(1)),
                    title: Title::parse(&format!("number {n}")).unwrap(),
                    body: Body::parse("").unwrap(),
                    tags: Tags::default(),
                    at: Timestamp::now(),
                };
                posts.publish(draft, Context::within(Duration::from_secs(20))).await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let anew = async {
            // As an operator does: who is connected is sent away.
            kill_process(server, Signal::SIGINT).unwrap();
            postgres.exited().await;
            postgres.restart().await.unwrap();
        };
        tokio::join!(writes, anew);
    }
    service.stop().await;
    postgres.stop().await;
}

/// What a child of ours does when it is told to, by [`Parent::start`]: a process that owns a server.
#[tokio::test]
async fn as_a_parent_of_a_server() {
    let Some(folder) = std::env::var_os("ROOKERY_TEST_PARENT_OF") else {
        return;
    };
    let (_data, postgres) = start(Path::new(&folder)).await;
    write_one(&postgres).await;
    println!("\nserver={}", postgres.id().unwrap());
    std::future::pending::<()>().await;
}

/// Another process that owns a server, and may be killed.
struct Parent {
    process: Child,
    server: u32,
    folder: PathBuf,
}

impl Parent {
    fn start(folder: &Path, command: &mut Command) -> Parent {
        let mut process = command
            .args(["--exact", "as_a_parent_of_a_server", "--nocapture"])
            .env("ROOKERY_TEST_PARENT_OF", folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let server = BufReader::new(process.stdout.take().unwrap())
            .lines()
            .find_map(|line| line.unwrap().strip_prefix("server=").map(|pid| pid.parse().unwrap()))
            .expect("the child has started its server");
        Parent { process, server, folder: folder.to_owned() }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // What a next start would use again, or a stop take away.
        if let Ok(runtime) = fs::read_to_string(self.folder.join("postgres.runtime")) {
            let _ = fs::remove_dir_all(runtime);
        }
    }
}

fn this_test() -> Command {
    Command::new(std::env::current_exe().unwrap())
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn kill_9_of_the_parent_leaves_no_server_behind() {
    let folder = data_folder();
    let mut parent = Parent::start(folder.path(), &mut this_test());
    parent.kill();
    eventually("the server is gone", || !runs(parent.server)).await;
}

/// The next start does not wait for anything: it may meet the server in its last checkpoint.
#[tokio::test]
async fn a_start_right_after_kill_9_finds_everything() {
    let folder = data_folder();
    let mut parent = Parent::start(folder.path(), &mut this_test());
    parent.kill();
    let (_data, postgres) = start(folder.path()).await;
    assert_eq!(kept(&postgres).await, 1);
    postgres.stop().await;
}

/// What is left of it: lock files that name a dead process, or a zombie.
#[tokio::test]
async fn a_start_recovers_when_the_parent_and_the_server_were_killed() {
    let folder = data_folder();
    let mut parent = Parent::start(folder.path(), &mut this_test());
    kill(parent.server);
    parent.kill();
    let (_data, postgres) = start(folder.path()).await;
    assert_eq!(kept(&postgres).await, 1);
    postgres.stop().await;
}

#[tokio::test]
async fn a_second_process_is_refused_and_told_who_has_the_folder() {
    let folder = data_folder();
    let parent = Parent::start(folder.path(), &mut this_test());
    let refusal = DataDir::lock(folder.path()).unwrap_err();
    assert!(matches!(refusal, DataDirError::InUse { pid: Some(pid), .. } if pid == parent.process.id()), "{refusal}");
}

/// The machine has some Postgres, but not the one that made this folder.
#[tokio::test]
async fn a_folder_of_another_major_version_is_recognised_and_left_alone() {
    let folder = data_folder();
    let (data, postgres) = start(folder.path()).await;
    let (mine, bin) = (postgres.binaries().major, postgres.binaries().bin.clone());
    postgres.stop().await;
    let version = folder.path().join("postgres/PG_VERSION");
    fs::write(&version, "16\n").unwrap();

    let only_mine = Search { path: Some(bin.into()), ..Search::default() };
    let refusal = EmbeddedPostgres::start_with(&data, &DATABASES, &only_mine).await.unwrap_err();

    let PostgresError::Binaries(BinariesError::OtherVersion { wanted, here, .. }) = &refusal else {
        panic!("{refusal}");
    };
    assert_eq!((*wanted, here.as_slice()), (Major(16), [mine].as_slice()));
    assert!(refusal.to_string().contains("ROOKERY_PG_BIN"), "{refusal}");

    fs::write(&version, format!("{}\n", mine.0)).unwrap();
    let postgres = EmbeddedPostgres::start_with(&data, &DATABASES, &only_mine).await.unwrap();
    postgres.stop().await;
}

#[tokio::test]
async fn without_any_postgres_the_error_names_both_ways_out() {
    let folder = data_folder();
    let data = DataDir::lock(folder.path()).unwrap();
    let refusal = EmbeddedPostgres::start_with(&data, &[], &Search::default()).await.unwrap_err().to_string();
    assert!(refusal.contains("ROOKERY_PG_BIN") && refusal.contains("Maven Central"), "{refusal}");
}

#[tokio::test]
async fn a_wrong_rookery_pg_bin_is_not_passed_over_in_silence() {
    let folder = data_folder();
    let data = DataDir::lock(folder.path()).unwrap();
    let search = Search { bin: Some("/nonexistent/bin".into()), ..testing::search() };
    let refusal = EmbeddedPostgres::start_with(&data, &[], &search).await.unwrap_err().to_string();
    assert!(refusal.contains("/nonexistent/bin"), "{refusal}");
}

/// The machine's own Postgres is hidden, and the data folder is empty: this fetches for real.
#[tokio::test]
async fn without_a_postgres_on_the_machine_one_is_fetched_once() {
    let folder = data_folder();
    let data = DataDir::lock(folder.path()).unwrap();
    let hidden = Search { fetch: true, ..Search::default() };

    let fetch = Instant::now();
    let postgres = match EmbeddedPostgres::start_with(&data, &DATABASES, &hidden).await {
        Ok(postgres) => postgres,
        Err(error) if std::env::var_os("CI").is_none() && !maven_central_answers().await => {
            println!("skipped: no way to Maven Central ({error})");
            return;
        }
        Err(error) => panic!("{:#}", anyhow::Error::from(error)),
    };
    println!("fetch and cold start: {:?}", fetch.elapsed());
    assert_eq!(postgres.binaries().major, Major(17));
    assert!(postgres.binaries().bin.starts_with(folder.path().canonicalize().unwrap()));
    postgres.stop().await;

    let offline = Search::default();
    let postgres = EmbeddedPostgres::start_with(&data, &DATABASES, &offline).await.unwrap();
    postgres.stop().await;
}

async fn maven_central_answers() -> bool {
    let connect = tokio::net::TcpStream::connect("repo1.maven.org:443");
    tokio::time::timeout(Duration::from_secs(10), connect).await.is_ok_and(|connected| connected.is_ok())
}

#[tokio::test]
async fn a_start_that_fails_quotes_the_server() {
    let folder = data_folder();
    let (data, postgres) = start(folder.path()).await;
    postgres.stop().await;
    fs::remove_file(folder.path().join("postgres/global/pg_control")).unwrap();

    let refusal = EmbeddedPostgres::start_with(&data, &DATABASES, &testing::search()).await.unwrap_err().to_string();
    assert!(refusal.contains("pg_control"), "{refusal}");
}

#[tokio::test]
async fn files_that_are_no_database_are_not_touched() {
    let folder = data_folder();
    fs::create_dir(folder.path().join("postgres")).unwrap();
    fs::write(folder.path().join("postgres/thesis.tex"), "mine").unwrap();
    let data = DataDir::lock(folder.path()).unwrap();

    let refusal = EmbeddedPostgres::start_with(&data, &DATABASES, &testing::search()).await.unwrap_err();

    assert!(matches!(refusal, PostgresError::NotACluster(_)), "{refusal}");
    assert_eq!(fs::read_to_string(folder.path().join("postgres/thesis.tex")).unwrap(), "mine");
}

/// Below a folder that only root may enter, as `/root` is. Means something for root only.
#[tokio::test]
async fn a_data_folder_below_a_closed_folder_works() {
    let closed = data_folder();
    let (_data, postgres) = start(&closed.path().join("project/.rookery")).await;
    write_one(&postgres).await;
    postgres.stop().await;
}

/// Root also tries it as another user; for anybody else every other test is this one.
#[tokio::test]
async fn an_ordinary_user_needs_no_root() {
    if !Uid::effective().is_root() {
        println!("skipped: not root, so every other test is this one");
        return;
    }
    let open = data_folder();
    let exe = open.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    let folder = open.path().join("data");
    fs::create_dir(&folder).unwrap();
    for path in [open.path(), &folder] {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    }

    let mut as_nobody = Command::new("setpriv");
    as_nobody
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"])
        .arg(&exe)
        .env("HOME", open.path())
        .env_remove("XDG_CACHE_HOME")
        .current_dir("/");
    let mut parent = Parent::start(&folder, &mut as_nobody);
    parent.kill();
    eventually("the server is gone", || !runs(parent.server)).await;

    // Root takes over what an ordinary user began, and leaves it to that user.
    let (_data, postgres) = start(&folder).await;
    assert_eq!(kept(&postgres).await, 1);
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(folder.join("postgres/PG_VERSION")).unwrap());
    assert_eq!(owner, 65534);
    postgres.stop().await;
}

#[tokio::test]
async fn nodes_that_start_together_migrate_once() {
    let folder = data_folder();
    let (_data, postgres) = start(folder.path()).await;
    let runs = (0..4).map(|_| async {
        let mut client = connect(&postgres.config("users")).await;
        migrate::run(&mut client, Database::Users).await.unwrap().len()
    });
    let applied: Vec<usize> = futures_util::future::join_all(runs).await;
    assert_eq!(applied.iter().filter(|&&migrations| migrations > 0).count(), 1, "{applied:?}");
    postgres.stop().await;
}

#[tokio::test]
async fn a_database_of_a_newer_build_is_refused() {
    let config = TestPostgres::shared().fresh_database(Database::Posts).await;
    let mut client = connect(&config).await;
    client
        .batch_execute("INSERT INTO refinery_schema_history VALUES (9000, 'from_the_future', '2030-01-01T00:00:00Z', '1')")
        .await
        .unwrap();
    let refusal = migrate::run(&mut client, Database::Posts).await.unwrap_err();
    assert!(matches!(refusal, migrate::MigrateError::Newer { version: 9000, .. }), "{refusal}");
}

#[tokio::test]
async fn a_database_of_another_service_is_named_and_left_as_it_is() {
    let config = TestPostgres::shared().fresh_database(Database::Users).await;
    let mut client = connect(&config).await;
    let refusal = migrate::run(&mut client, Database::Posts).await.unwrap_err();
    let said = refusal.to_string();
    assert!(said.contains("holds the tables of users, not those of posts") && said.contains("swapped"), "{said}");
    // It is not locked either.
    assert_eq!(migrate::run(&mut connect(&config).await, Database::Users).await.unwrap(), []);
}

#[tokio::test]
async fn every_test_has_a_migrated_database_of_its_own() {
    let postgres = TestPostgres::shared();
    for database in Database::ALL {
        let begin = Instant::now();
        let first = postgres.fresh_database(database).await;
        let second = postgres.fresh_database(database).await;
        println!("two databases for {database}: {:?}", begin.elapsed());
        assert_ne!(first.get_dbname(), second.get_dbname());
        connect(&first).await.batch_execute("INSERT INTO relayed VALUES (1, 1)").await.unwrap();
        let rows = connect(&second).await.query("SELECT FROM relayed", &[]).await.unwrap();
        assert!(rows.is_empty());
    }
}
