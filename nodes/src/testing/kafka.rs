//! A real Apache Kafka for tests: one broker (KRaft) on loopback, from the jars that Maven Central holds.

use std::{
    env, fs, io,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    error::KafkaResult,
};
use rookery_actors::event::Topic;
use tempfile::TempDir;

use super::Turn;
use crate::{config, kafka::client::client_config, terminal::note_line};

/// A broker, and what tests do with it, beside other stories ([`Turn`]).
const WEIGHT: usize = 3;

/// The broker's jars as Maven reads them.
const POM: &str = include_str!("kafka.pom.xml");
/// A broker that does not say that it has started is waited for as long as it shows signs of life, which are new lines in its
/// log, or so much time on a processor (a start takes three or four seconds of it, a broker that hangs a hundredth of the time).
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// The longest without one: a machine with thirty busy processes gives it so much in half a minute.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// And the longest of all.
const START_MAX: Duration = Duration::from_secs(600);

/// A broker with a data folder of its own. It ends with the value, or with the test process, however that ends.
#[derive(Debug)]
pub struct TestKafka {
    folder: TempDir,
    jars: PathBuf,
    port: u16,
    broker: Option<Child>,
    /// Whether it has an authorizer: nobody may do what was not allowed.
    is_guarded: bool,
    // Held: the pipe that tells it of our end.
    _cleaner: Child,
    // Held: a story with a broker is a heavy one.
    _turn: Option<Turn>,
}

/// Why there is no broker.
#[derive(Debug, thiserror::Error)]
pub enum TestKafkaError {
    /// Something that a broker needs is not on this machine.
    #[error("{0} is missing: install a Java 17 runtime and Maven (apt-get install openjdk-17-jre-headless maven)")]
    Missing(&'static str),
    /// Maven could not fetch the jars.
    #[error("Maven could not fetch the broker's jars: {0}")]
    Jars(String),
    /// The broker ended, or did not answer in time; its last words.
    #[error("the broker did not start: {0}")]
    Broker(String),
    /// A file or process could not be made.
    #[error("the broker could not be prepared")]
    Io(#[from] io::Error),
}

impl TestKafka {
    /// A running broker; `None` where a machine cannot have one, after saying so. Blocks its thread for some seconds.
    ///
    /// # Panics
    /// With `CI` set, if there is no broker: CI must not pass by skipping. If a broker that could start did not.
    pub fn start_or_skip(test: &str) -> Option<TestKafka> {
        Self::or_skip(test, false)
    }

    /// The same with an authorizer. Users log in by SCRAM: `rookery` may do what [`TestKafka::allow`] has allowed, and
    /// [`ADMINISTRATOR`] everything.
    ///
    /// # Panics
    /// As [`TestKafka::start_or_skip`].
    pub fn start_guarded_or_skip(test: &str) -> Option<TestKafka> {
        Self::or_skip(test, true)
    }

    fn or_skip(test: &str, is_guarded: bool) -> Option<TestKafka> {
        let required = env::var("CI").is_ok_and(|value| !value.is_empty() && value != "false");
        let turn = Turn::wait(WEIGHT);
        match Self::launched(is_guarded) {
            Ok(mut kafka) => {
                kafka._turn = Some(turn);
                Some(kafka)
            }
            Err(error @ (TestKafkaError::Missing(_) | TestKafkaError::Jars(_))) if !required => {
                note_line!("SKIPPED {test}: no Kafka broker: {error}");
                None
            }
            Err(error) => panic!("{test} needs a Kafka broker: {:#}", anyhow::Error::from(error)),
        }
    }

    /// Whether this machine has what a broker needs.
    pub fn is_possible() -> bool {
        missing_tool().is_none()
    }

    /// Starts a broker on an empty data folder.
    ///
    /// # Errors
    /// Why there is none.
    pub fn start() -> Result<TestKafka, TestKafkaError> {
        Self::launched(false)
    }

    fn launched(is_guarded: bool) -> Result<TestKafka, TestKafkaError> {
        let jars = jars()?;
        let folder = tempfile::Builder::new().prefix("rookery-kafka-").tempdir()?;
        let cleaner = end_with_us(folder.path())?;
        // Free now; taken by somebody else before the broker binds it, the start fails and says so.
        let (broker, controller) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        let (port, controller_port) = (broker.local_addr()?.port(), controller.local_addr()?.port());
        drop((broker, controller));
        let properties = match is_guarded {
            true => properties(folder.path(), port, controller_port, "SASL_PLAINTEXT") + &guard(),
            false => properties(folder.path(), port, controller_port, "PLAINTEXT"),
        };
        fs::write(folder.path().join("server.properties"), properties)?;
        fs::write(folder.path().join("log4j2.properties"), LOG4J)?;
        let mut kafka = TestKafka { folder, jars, port, broker: None, is_guarded, _cleaner: cleaner, _turn: None };
        kafka.format()?;
        kafka.launch()?;
        Ok(kafka)
    }

    /// The `[kafka]` section for this broker; of `rookery`, if it has an authorizer.
    pub fn config(&self, partitions: u16) -> config::Kafka {
        self.config_of(USER, partitions)
    }

    /// The same for a user of a broker with an authorizer.
    pub fn config_of(&self, user: &str, partitions: u16) -> config::Kafka {
        let broker = format!("127.0.0.1:{}", self.port).parse().expect("an address is a broker");
        let sasl = self.is_guarded.then(|| config::Sasl {
            mechanism: config::SaslMechanism::ScramSha256,
            username: user.to_owned(),
            password: password(user).parse().expect("any text is a password"),
        });
        config::Kafka { brokers: vec![broker], partitions, sasl, ..config::Kafka::default() }
    }

    /// Lets `rookery` do this with these topics: `Describe`, `Read`, `Write`, … Blocks its thread for a second or two.
    ///
    /// # Panics
    /// If the broker does not do it.
    pub fn allow(&self, operations: &[&str], topics: &[&str]) {
        let client = self.folder.path().join("administrator.properties");
        let jaas = jaas(ADMINISTRATOR);
        let properties = format!("security.protocol=SASL_PLAINTEXT\nsasl.mechanism=SCRAM-SHA-256\nsasl.jaas.config={jaas}\n");
        fs::write(&client, properties).expect("the folder is ours");
        let mut command = self.java();
        command.args(["org.apache.kafka.tools.AclCommand", "--bootstrap-server", &format!("127.0.0.1:{}", self.port)]);
        command.arg("--command-config").arg(client).args(["--add", "--allow-principal", &format!("User:{USER}")]);
        command.args(operations.iter().flat_map(|operation| ["--operation", operation]));
        command.args(topics.iter().flat_map(|topic| ["--topic", topic]));
        let allowed = command.output().expect("java runs");
        assert!(
            allowed.status.success(),
            "{}{}",
            String::from_utf8_lossy(&allowed.stdout),
            String::from_utf8_lossy(&allowed.stderr)
        );
    }

    /// Whether it runs, as far as it was told: neither stopped nor killed.
    pub fn is_running(&self) -> bool {
        self.broker.is_some()
    }

    /// Ends the broker as a power cut would: `kill -9`.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&mut self) {
        let mut broker = self.broker.take().expect("the broker runs");
        broker.kill().expect("the broker is our child");
        broker.wait().expect("the broker is our child");
    }

    /// Ends the broker in order.
    ///
    /// # Panics
    /// If it does not run.
    pub fn stop(&mut self) {
        use nix::{sys::signal, unistd::Pid};

        let mut broker = self.broker.take().expect("the broker runs");
        signal::kill(Pid::from_raw(broker.id().cast_signed()), signal::Signal::SIGTERM).expect("the broker is our child");
        broker.wait().expect("the broker is our child");
    }

    /// Starts the broker again, on the same port and data. Blocks its thread until it answers.
    ///
    /// # Errors
    /// If it does not start.
    pub fn restart(&mut self) -> Result<(), TestKafkaError> {
        self.launch()
    }

    /// Deletes everything that the stopped broker held, as if it were a new one.
    ///
    /// # Errors
    /// If the folder cannot be deleted or formatted.
    ///
    /// # Panics
    /// If it runs.
    pub fn wipe(&mut self) -> Result<(), TestKafkaError> {
        assert!(self.broker.is_none(), "the broker is stopped first");
        fs::remove_dir_all(self.folder.path().join("data"))?;
        self.format()
    }

    /// Takes everything out of the topics of events, as if retention had.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn empty_topics(&self, partitions: u16) -> KafkaResult<()> {
        let admin: AdminClient<DefaultClientContext> = client_config(&self.config(partitions), "test").create()?;
        let mut all = TopicPartitionList::new();
        for (topic, partition) in Topic::ALL.iter().flat_map(|topic| (0..partitions).map(move |partition| (topic, partition))) {
            all.add_partition_offset(topic.kafka_name(), i32::from(partition), Offset::End)?;
        }
        admin.delete_records(&all, &AdminOptions::new()).await?;
        Ok(())
    }

    fn format(&self) -> Result<(), TestKafkaError> {
        let id = self.java().args(["kafka.tools.StorageTool", "random-uuid"]).output()?;
        let id = String::from_utf8_lossy(&id.stdout).lines().last().unwrap_or_default().trim().to_owned();
        let properties = self.folder.path().join("server.properties");
        let mut format = self.java();
        format.args(["kafka.tools.StorageTool", "format", "-t", &id, "-c"]).arg(properties);
        if self.is_guarded {
            let scram = |user| format!("SCRAM-SHA-256=[name={user},password={}]", password(user));
            format.args([USER, ADMINISTRATOR].into_iter().flat_map(|user| ["--add-scram".to_owned(), scram(user)]));
        }
        let formatted = format.output()?;
        if formatted.status.success() {
            return Ok(());
        }
        Err(TestKafkaError::Broker(String::from_utf8_lossy(&formatted.stderr).into_owned()))
    }

    fn launch(&mut self) -> Result<(), TestKafkaError> {
        let log = self.folder.path().join("broker.log");
        let output = fs::File::create(&log)?;
        let mut broker = self
            .java()
            .arg("kafka.Kafka")
            .arg(self.folder.path().join("server.properties"))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // A Ctrl-C is for us; the cleaner follows.
            .process_group(0)
            .spawn()?;
        fs::write(self.folder.path().join("pid"), broker.id().to_string())?;
        let (began, mut life) = (Instant::now(), Life::new());
        loop {
            let said = fs::read_to_string(&log).unwrap_or_default();
            if said.contains("Kafka Server started") {
                self.broker = Some(broker);
                return Ok(());
            }
            let silence = life.silence(said.len(), processor_time(broker.id()));
            if broker.try_wait()?.is_some() || silence > SILENCE_MAX || began.elapsed() > START_MAX {
                let _ = broker.kill();
                broker.wait()?;
                let last: Vec<&str> = said.lines().rev().take(20).collect();
                return Err(TestKafkaError::Broker(last.into_iter().rev().collect::<Vec<_>>().join("\n")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn java(&self) -> Command {
        let mut log4j = std::ffi::OsString::from("-Dlog4j2.configurationFile=");
        log4j.push(self.folder.path().join("log4j2.properties"));
        let mut command = Command::new("java");
        // A broker for a test is small and short-lived: the first compiler and one collector thread start it fastest.
        command.args(["-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp"]).arg(self.jars.join("*")).arg(log4j);
        command
    }
}

/// What a broker that starts has shown of itself.
struct Life {
    said: usize,
    worked: Duration,
    shown: Instant,
}

impl Life {
    fn new() -> Self {
        Self { said: 0, worked: Duration::ZERO, shown: Instant::now() }
    }

    /// How long it has shown nothing, with a log of so many bytes and so much time on a processor by now.
    fn silence(&mut self, said: usize, worked: Duration) -> Duration {
        if said > self.said || worked >= self.worked + SIGN_OF_LIFE {
            *self = Self { said, worked, shown: Instant::now() };
        }
        self.shown.elapsed()
    }
}

/// What a process has had of the processors so far.
fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name, which may hold anything, come the state and ten numbers, then the ticks for itself and in the kernel.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    // A hundred a second, wherever Linux tells.
    Duration::from_millis(ticks * 10)
}

impl Drop for TestKafka {
    fn drop(&mut self) {
        if self.broker.is_some() {
            self.kill();
        }
    }
}

/// The folder with the jars; fetched once per machine, and complete as soon as it is there.
fn jars() -> Result<PathBuf, TestKafkaError> {
    match missing_tool() {
        Some(tool) => Err(TestKafkaError::Missing(tool)),
        None => fetch(&cache()),
    }
}

/// What has to be installed first; Maven only until the jars are there.
fn missing_tool() -> Option<&'static str> {
    let works = |tool, version| {
        let found = Command::new(tool).arg(version).stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.is_ok_and(|status| status.success())
    };
    if !works("java", "-version") {
        return Some("java");
    }
    (!cache().join(VERSION).is_dir() && !works("mvn", "--version")).then_some("mvn")
}

/// The folder of the jars: Kafka's version, and its tools.
const VERSION: &str = "4.1.0-tools";

fn fetch(cache: &Path) -> Result<PathBuf, TestKafkaError> {
    let target = cache.join(VERSION);
    if target.is_dir() {
        return Ok(target);
    }
    fs::create_dir_all(cache)?;
    // Several test processes may fetch at once; whoever is done first names the folder, the others drop theirs.
    let folder = tempfile::Builder::new().prefix("fetching-").tempdir_in(cache)?;
    let (pom, jars) = (folder.path().join("pom.xml"), folder.path().join("jars"));
    fs::write(&pom, POM)?;
    let mut output = std::ffi::OsString::from("-DoutputDirectory=");
    output.push(&jars);
    let fetched = Command::new("mvn")
        .args(["-q", "-B", "-f"])
        .arg(&pom)
        .args(["dependency:copy-dependencies", "-DincludeScope=runtime"])
        .arg(output)
        .output()?;
    if !fetched.status.success() {
        return Err(TestKafkaError::Jars(String::from_utf8_lossy(&fetched.stdout).trim().to_owned()));
    }
    match fs::rename(&jars, &target) {
        Err(error) if !target.is_dir() => Err(error.into()),
        _ => Ok(target),
    }
}

fn cache() -> PathBuf {
    let home = env::var_os("HOME").map_or_else(env::temp_dir, PathBuf::from);
    let cache = env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
    cache.join("rookery").join("kafka-jars")
}

/// After `kill -9` nothing of ours runs, so a shell waits at the end of a pipe which the kernel closes when we are gone.
fn end_with_us(folder: &Path) -> io::Result<Child> {
    Command::new("sh")
        .arg("-c")
        .arg(
            r#"read -r _
               pid=$(cat "$1/pid" 2>/dev/null)
               # The number may be somebody else's by now: only a process that names our folder is ours.
               if [ -n "$pid" ] && tr '\0' ' ' < "/proc/$pid/cmdline" 2>/dev/null | grep -qF "$1"; then kill -9 "$pid"; fi
               rm -rf "$1""#,
        )
        .arg("rookery-kafka-cleaner")
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}

/// Who may do only what was allowed, on a broker with an authorizer.
const USER: &str = "rookery";
/// Who may do everything there.
pub const ADMINISTRATOR: &str = "administrator";

fn password(user: &str) -> String {
    format!("the password of {user}").replace(' ', "-")
}

fn jaas(user: &str) -> String {
    let module = "org.apache.kafka.common.security.scram.ScramLoginModule";
    format!("{module} required username=\"{user}\" password=\"{}\";", password(user))
}

/// What guards a broker. Its controller is this same process, over a listener of its own where nobody logs in.
fn guard() -> String {
    format!(
        "listener.security.protocol.map=SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=SCRAM-SHA-256
sasl.mechanism.inter.broker.protocol=SCRAM-SHA-256
listener.name.sasl_plaintext.scram-sha-256.sasl.jaas.config={}
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:{ADMINISTRATOR};User:ANONYMOUS
",
        jaas(ADMINISTRATOR)
    )
}

fn properties(folder: &Path, port: u16, controller_port: u16, listener: &str) -> String {
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners={listener}://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners={listener}://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name={listener}
log.dirs={}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
log.retention.check.interval.ms=500
",
        folder.join("data").display()
    )
}

const LOG4J: &str = "rootLogger.level = WARN
rootLogger.appenderRef.out.ref = out
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = INFO
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %c{1}: %m%n
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_says_something_or_works_is_alive() {
        let long_ago = Instant::now() - SILENCE_MAX;
        let silent = || Life { said: 10, worked: SIGN_OF_LIFE, shown: long_ago };
        assert!(silent().silence(10, SIGN_OF_LIFE) >= SILENCE_MAX);
        assert!(silent().silence(10, SIGN_OF_LIFE + Duration::from_millis(600)) >= SILENCE_MAX, "as one does that hangs");
        assert!(silent().silence(11, SIGN_OF_LIFE) < SILENCE_MAX);
        assert!(silent().silence(10, SIGN_OF_LIFE * 2) < SILENCE_MAX);
    }

    #[test]
    fn what_a_process_has_had_of_the_processors_is_read_from_the_kernel() {
        let before = processor_time(std::process::id());
        let began = Instant::now();
        while processor_time(std::process::id()) < before + Duration::from_millis(30) {
            assert!(began.elapsed() < Duration::from_secs(60), "{before:?}");
        }
    }
}
