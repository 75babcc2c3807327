//! The private Postgres: real servers on temporary data folders.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
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
    let hidden = Search { fetch: Some(Duration::from_secs(600)), ..Search::default() };

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

/// What a power cut had emptied, or a disk that was full, stays in the way of what is fetched again; what cannot run there at all
/// is not even fetched.
#[tokio::test]
async fn nothing_is_fetched_to_where_nothing_can_be_run() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let is_noexec = |fields: &[&str]| fields.len() > 3 && fields[3].split(',').any(|option| option == "noexec");
    let mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).filter(|fields| is_noexec(fields));
    let Some(cache) = mounts.into_iter().find_map(|fields| tempfile::tempdir_in(fields[1]).ok()) else {
        println!("skipped: no file system here is mounted with noexec and can be written");
        return;
    };
    let folder = data_folder();
    let data = DataDir::lock(folder.path()).unwrap();
    let search = Search { cache: Some(cache.path().to_owned()), fetch: Some(Duration::ZERO), ..Search::default() };
    let refusal = EmbeddedPostgres::start_with(&data, &DATABASES, &search).await.unwrap_err();
    let refusal = format!("{:#}", anyhow::Error::from(refusal));
    assert!(refusal.contains("mounted with `noexec`"), "{refusal}");
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
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
    let owner = fs::metadata(folder.join("postgres/PG_VERSION")).unwrap().uid();
    assert_eq!(owner, 65534);
    postgres.stop().await;
}

/// The server's user owns the folder of the database and may put anything there, and root writes there at every start.
#[tokio::test]
async fn a_link_that_the_servers_user_has_put_into_its_folder_is_not_followed() {
    let folder = data_folder();
    let (data, postgres) = start(folder.path()).await;
    postgres.stop().await;
    let victim = folder.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let cluster = folder.path().join("postgres");
    for name in ["rookery.conf", "rookery_hba.conf", "rookery_ident.conf"] {
        fs::remove_file(cluster.join(name)).unwrap();
        for name in [name.to_owned(), format!("{name}.new")] {
            std::os::unix::fs::symlink(&victim, cluster.join(name)).unwrap();
        }
    }
    let before = fs::metadata(&victim).unwrap();

    let postgres = EmbeddedPostgres::start_with(&data, &DATABASES, &testing::search()).await.unwrap();
    let after = fs::metadata(&victim).unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert_eq!(before.uid(), after.uid());
    let (settings, of) = (fs::symlink_metadata(cluster.join("rookery.conf")).unwrap(), fs::metadata(&cluster).unwrap());
    assert!(settings.is_file() && settings.uid() == of.uid());
    postgres.stop().await;
}

/// The folder of the socket is the server's user's too: root must not empty what is put in its place.
#[tokio::test]
async fn a_restart_looks_whose_folder_it_empties() {
    let folder = data_folder();
    let (_data, mut postgres) = start(folder.path()).await;
    write_one(&postgres).await;
    let runtime = PathBuf::from(fs::read_to_string(folder.path().join("postgres.runtime")).unwrap());
    let victim = data_folder();
    let precious = victim.path().join("precious");
    fs::write(&precious, "").unwrap();
    kill(postgres.id().unwrap());
    postgres.exited().await;
    fs::remove_dir_all(&runtime).unwrap();
    std::os::unix::fs::symlink(victim.path(), &runtime).unwrap();

    let refusal = postgres.restart().await.map_err(|error| format!("{:#}", anyhow::Error::from(error)));
    assert!(precious.exists(), "what a link leads to is nobody's to remove");
    let refusal = refusal.unwrap_err();
    assert!(refusal.contains(runtime.to_str().unwrap()), "{refusal}");

    // As a cleaner of /tmp leaves it. The configurations that others have of it stay good.
    fs::remove_file(&runtime).unwrap();
    postgres.restart().await.unwrap();
    assert_eq!(kept(&postgres).await, 1);
    postgres.stop().await;
}

/// What a child of ours does when it is told to: it starts a server, which may meet another, and stops it.
#[tokio::test]
async fn as_a_starter_of_a_server() {
    let Some(folder) = std::env::var_os("ROOKERY_TEST_PARENT_OF") else {
        return;
    };
    let (_data, postgres) = start(Path::new(&folder)).await;
    println!("\nkept={}", kept(&postgres).await);
    postgres.stop().await;
}

/// As in a container: what another user's process works on, root may not see without CAP_SYS_PTRACE.
#[tokio::test]
async fn a_leftover_server_is_ended_by_a_root_who_may_not_see_where_it_works() {
    if !Uid::effective().is_root() {
        println!("skipped: only root has a server of another user");
        return;
    }
    let folder = data_folder();
    let (data, postgres) = start(folder.path()).await;
    write_one(&postgres).await;
    let bin = postgres.binaries().bin.clone();
    postgres.stop().await;
    drop(data);
    let cluster = folder.path().canonicalize().unwrap().join("postgres");
    let (owner, group) = (fs::metadata(&cluster).unwrap().uid(), fs::metadata(&cluster).unwrap().gid());
    let runtime = tempfile::Builder::new().prefix("rookery-").tempdir_in("/tmp").unwrap();
    std::os::unix::fs::chown(runtime.path(), Some(owner), Some(owner)).unwrap();
    // Neither a child of this process, nor told to end with it.
    let script = r#"setpriv --reuid="$1" --regid="$5" --clear-groups "$2/postgres" -D "$3" -c config_file="$3/rookery.conf" -c hba_file="$3/rookery_hba.conf" \
        -c ident_file="$3/rookery_ident.conf" -c unix_socket_directories="$4" >/dev/null 2>&1 &"#;
    let mut leftover = Command::new("sh");
    leftover.args(["-c", script, "sh"]).arg(owner.to_string()).arg(&bin).arg(&cluster).arg(runtime.path());
    leftover.arg(group.to_string()).current_dir("/");
    assert!(leftover.status().unwrap().success());
    let socket = runtime.path().join(".s.PGSQL.5432");
    eventually("the leftover server listens", || socket.exists()).await;
    let pid = fs::read_to_string(cluster.join("postmaster.pid")).unwrap();
    let pid: u32 = pid.lines().next().unwrap().parse().unwrap();

    let mut restricted = Command::new("setpriv");
    restricted.args(["--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]).arg(std::env::current_exe().unwrap());
    restricted.args(["--exact", "as_a_starter_of_a_server", "--nocapture"]).env("ROOKERY_TEST_PARENT_OF", folder.path());
    let output = tokio::task::spawn_blocking(move || restricted.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let ended = !runs(pid);
    if !ended {
        kill(pid);
    }
    assert!(output.status.success() && said.contains("kept=1"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(ended, "the leftover server is gone");
}

/// Somebody who holds the lock of migrations in a session of its own, without a limit as this build sets it.
async fn holder_of_the_lock(config: &tokio_postgres::Config) -> Client {
    let mut config = config.clone();
    let holder = connect(config.application_name("an older node")).await;
    holder.execute("SELECT pg_advisory_lock($1)", &[&i64::from_be_bytes(*b"rookery\0")]).await.unwrap();
    holder
}

#[tokio::test]
async fn a_migration_waits_for_another_that_works_and_not_for_ever_for_one_that_hangs() {
    let config = TestPostgres::shared().fresh_database(Database::Posts).await;
    let idle_max = Duration::from_millis(300);
    let holder = holder_of_the_lock(&config).await;
    let mut client = connect(&config).await;
    let refusal = migrate::run_behind(&mut client, Database::Posts, idle_max).await.unwrap_err();
    assert!(matches!(&refusal, migrate::MigrateError::Held { name, .. } if name == "an older node"), "{refusal}");
    let said = refusal.to_string();
    let pid: i32 = holder.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    assert!(said.contains(&format!("pg_terminate_backend({pid})")), "{said}");

    // Longer than anybody may be idle, but it is at work.
    let works = holder.batch_execute("SELECT pg_sleep(1.5); SELECT pg_advisory_unlock_all()");
    let mut client = connect(&config).await;
    let waits = migrate::run_behind(&mut client, Database::Posts, idle_max);
    let (worked, migrated) = tokio::join!(works, waits);
    worked.unwrap();
    assert_eq!(migrated.unwrap(), []);
}

/// A process that stands still in the middle of its migration would keep the lock from all others: the server ends its session.
#[tokio::test]
async fn a_session_may_be_idle_for_a_minute_while_it_migrates_and_as_before_afterwards() {
    let config = TestPostgres::shared().fresh_database(Database::Posts).await;
    let holder = holder_of_the_lock(&config).await;
    let (watcher, mut client) = (connect(&config).await, connect(&config).await);
    let it_waits = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND query LIKE '%pg_try_advisory_lock%' AND pid <> pg_backend_pid()";
        let mut patience = Patience::of(Duration::from_secs(30));
        while watcher.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            assert!(!patience.is_over(), "it does not wait");
        }
    };
    tokio::select! {
        outcome = migrate::run_behind(&mut client, Database::Posts, Duration::from_secs(600)) => panic!("it waits: {outcome:?}"),
        () = it_waits => {}
    }
    let limits = async |client: &Client| {
        let mut limits = Vec::new();
        for setting in ["idle_session_timeout", "idle_in_transaction_session_timeout"] {
            limits.push(client.query_one(&format!("SHOW {setting}"), &[]).await.unwrap().get::<_, String>(0));
        }
        limits
    };
    assert_eq!(limits(&client).await, ["1min", "1min"]);
    drop(holder);
    migrate::run(&mut client, Database::Posts).await.unwrap();
    assert_eq!(limits(&client).await, ["0", "0"]);
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
