//! Between a service and its Postgres: slows it down, and cuts, holds or swallows exactly the statement that is meant.
//!
//! It speaks as much of the protocol as it takes to tell statements apart, and passes everything else on as it is.

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{oneshot, watch},
};
use tokio_postgres::config::Host;

/// In the text of every batch, and of nothing else.
pub const BATCH: &str = "INSERT INTO outbox (shard, seq, epoch, batch, key, type, payload";
/// In the text of every renewal of a lease.
pub const RENEWAL: &str = "UPDATE member SET renewed";
/// In the text of the question who owns which shard.
pub const LOOK: &str = "SELECT id, epoch, owner, target FROM shard";
/// In the text of every grant of a hand-off.
pub const GRANT: &str = "EXISTS (SELECT FROM member m";
/// In the text of the note to whom shards are about to be handed.
pub const MARK: &str = "UPDATE shard SET target";
/// In the text with which posts are loaded.
pub const LOAD: &str = "SELECT p.id, p.author, p.title";
/// In the text of the question whether a user likes a post.
pub const LIKED: &str = "SELECT 1 FROM post_like";
/// In the text of the statement with which the resolution of an open outcome begins.
pub const RESOLUTION: &str = "SELECT pg_terminate_backend(pid, 1000)";

/// In the text with which a lane of the committer begins a session.
pub const LANE: &str = "SET plan_cache_mode";

/// What becomes of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes through.
    Passes,
    /// The connection dies before the server has seen it.
    NeverArrives,
    /// The server executes it, and the connection dies before the answer is out.
    AnswerLost,
    /// The server never sees it, and nobody is told.
    Vanishes,
}

/// A statement on its way, stopped in front of the server.
#[derive(Debug)]
pub struct Held(oneshot::Sender<Fate>);

impl Held {
    /// Lets it go on, to its fate. A connection that ended meanwhile takes it along.
    pub fn release(self, fate: Fate) {
        let _ = self.0.send(fate);
    }
}

enum Rule {
    Once(Fate),
    Always(Fate),
    Hold(oneshot::Sender<Held>),
}

struct Shared {
    upstream: PathBuf,
    rules: Mutex<Vec<(&'static str, Rule)>>,
    down: watch::Sender<bool>,
    slowness: watch::Sender<Duration>,
    silent: watch::Sender<bool>,
}

/// Stands in front of one server, for all of its databases.
pub struct Proxy {
    shared: Arc<Shared>,
    config: tokio_postgres::Config,
    folder: tempfile::TempDir,
}

impl Proxy {
    /// Starts in front of the server of `behind`, which listens on a Unix socket.
    ///
    /// # Panics
    /// When there is no such socket, or no place for ours.
    pub fn start(behind: &tokio_postgres::Config) -> Self {
        let [Host::Unix(host)] = behind.get_hosts() else { panic!("the server listens on a Unix socket") };
        let port = behind.get_ports().first().copied().unwrap_or(5432);
        let folder = tempfile::Builder::new().prefix("rk").tempdir().expect("a temporary folder can be made");
        let mut config = tokio_postgres::Config::new();
        // Asked for TLS a server answers without a length, and nothing here could read what follows.
        config.ssl_mode(tokio_postgres::config::SslMode::Disable);
        config.host_path(folder.path()).port(5432);
        behind.get_dbname().map(|name| config.dbname(name));
        behind.get_user().map(|user| config.user(user));
        behind.get_password().map(|password| config.password(password));
        let shared = Arc::new(Shared {
            upstream: host.join(format!(".s.PGSQL.{port}")),
            rules: Mutex::default(),
            down: watch::Sender::new(false),
            slowness: watch::Sender::new(Duration::ZERO),
            silent: watch::Sender::new(false),
        });
        let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).expect("the folder is new and its path short");
        let accepting = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&accepting).serve(client));
            }
        });
        Self { shared, config, folder }
    }

    /// How to reach the server through here.
    pub fn config(&self) -> tokio_postgres::Config {
        self.config.clone()
    }

    /// The same as a URL, for a database of the server.
    pub fn url(&self, database: &str) -> String {
        let user = self.config.get_user().unwrap_or_default();
        format!("postgresql:///{database}?host={}&user={user}&sslmode=disable", self.folder.path().display())
    }

    /// The next statement with this text meets this fate.
    pub fn once(&self, text: &'static str, fate: Fate) {
        self.add(text, Rule::Once(fate));
    }

    /// Every statement with this text does, until [`Proxy::heal`].
    pub fn always(&self, text: &'static str, fate: Fate) {
        self.add(text, Rule::Always(fate));
    }

    /// Stops the next statement with this text in front of the server.
    ///
    /// # Panics
    /// When the proxy is dropped before such a statement comes.
    pub fn hold(&self, text: &'static str) -> impl Future<Output = Held> + use<> {
        let (sender, held) = oneshot::channel();
        self.add(text, Rule::Hold(sender));
        async { held.await.expect("the proxy lives") }
    }

    /// Every answer takes this much longer from now on.
    pub fn slow(&self, by: Duration) {
        self.shared.slowness.send_replace(by);
    }

    /// How many of the rules for one statement have not met theirs yet.
    pub fn waiting(&self) -> usize {
        self.rules().len()
    }

    /// Forgets all rules and lets everybody in, as fast as they can.
    pub fn heal(&self) {
        self.rules().clear();
        self.shared.down.send_replace(false);
        self.shared.silent.send_replace(false);
        self.slow(Duration::ZERO);
    }

    /// Nothing passes any more, in either direction, and neither side is told: a network that is cut.
    pub fn silence(&self) {
        self.shared.silent.send_replace(true);
    }

    /// The server is gone: connections die, new ones are refused.
    pub fn take_down(&self) {
        self.shared.down.send_replace(true);
    }

    fn add(&self, text: &'static str, rule: Rule) {
        self.rules().push((text, rule));
    }

    fn rules(&self) -> std::sync::MutexGuard<'_, Vec<(&'static str, Rule)>> {
        self.shared.rules.lock().expect("no panic under this lock")
    }
}

impl Shared {
    async fn serve(self: Arc<Self>, client: UnixStream) {
        let mut down = self.down.subscribe();
        if *down.borrow() {
            return;
        }
        self.sound().await;
        let Ok(server) = UnixStream::connect(&self.upstream).await else { return };
        let (mut client_in, mut client_out) = client.into_split();
        let (mut server_in, mut server_out) = server.into_split();
        let swallow = Arc::new(AtomicBool::new(false));
        // Whichever ends first takes the connection with it, both directions at once.
        tokio::select! {
            _ = self.requests(&mut client_in, &mut server_out, &swallow) => {}
            _ = self.answers(&mut server_in, &mut client_out, &swallow) => {}
            _ = down.wait_for(|down| *down) => {}
        }
        // Of an end nobody hears either, until the network is whole again.
        self.sound().await;
    }

    /// Waits until the network is whole.
    async fn sound(&self) {
        let _ = self.silent.subscribe().wait_for(|silent| !*silent).await;
    }

    async fn requests(&self, from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, swallow: &AtomicBool) -> io::Result<()> {
        let startup = length_prefixed(from).await?;
        to.write_all(&startup).await?;
        let mut prepared: HashMap<Vec<u8>, String> = HashMap::new();
        loop {
            let message = typed(from).await?;
            let fate = match message[0] {
                // Parse: name, text.
                b'P' => {
                    let (name, text) = two_strings(&message[5..]);
                    prepared.insert(name.to_vec(), String::from_utf8_lossy(text).into_owned());
                    Fate::Passes
                }
                // Bind: portal, statement.
                b'B' => match prepared.get(two_strings(&message[5..]).1) {
                    Some(text) => self.fate(text).await,
                    None => Fate::Passes,
                },
                // A simple query: its text.
                b'Q' => self.fate(&String::from_utf8_lossy(&message[5..])).await,
                _ => Fate::Passes,
            };
            match fate {
                Fate::Passes => {}
                Fate::NeverArrives => return Ok(()),
                Fate::AnswerLost => swallow.store(true, Ordering::SeqCst),
                Fate::Vanishes => std::future::pending().await,
            }
            self.sound().await;
            to.write_all(&message).await?;
        }
    }

    async fn fate(&self, text: &str) -> Fate {
        let decided = {
            let mut rules = self.rules.lock().expect("no panic under this lock");
            let Some(n) = rules.iter().position(|(about, _)| text.contains(about)) else { return Fate::Passes };
            if let Rule::Always(fate) = rules[n].1 {
                return fate;
            }
            rules.remove(n).1
        };
        match decided {
            Rule::Once(fate) | Rule::Always(fate) => fate,
            Rule::Hold(somebody) => {
                let (release, fate) = oneshot::channel();
                let _ = somebody.send(Held(release));
                fate.await.unwrap_or(Fate::NeverArrives)
            }
        }
    }

    async fn answers(&self, from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, swallow: &AtomicBool) -> io::Result<()> {
        loop {
            let message = typed(from).await?;
            // Ready for the next: the last message of every answer.
            let last = message[0] == b'Z';
            if last {
                let slowness = *self.slowness.borrow();
                tokio::time::sleep(slowness).await;
            }
            self.sound().await;
            if !swallow.load(Ordering::SeqCst) {
                to.write_all(&message).await?;
            } else if last {
                // This one is committed.
                return Ok(());
            }
        }
    }
}

async fn length_prefixed(from: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let mut message = vec![0; 4];
    from.read_exact(&mut message).await?;
    let length = u32::from_be_bytes([message[0], message[1], message[2], message[3]]) as usize;
    // The length counts itself.
    message.resize(length.max(4), 0);
    from.read_exact(&mut message[4..]).await?;
    Ok(message)
}

async fn typed(from: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let kind = from.read_u8().await?;
    let mut message = vec![kind];
    message.extend(length_prefixed(from).await?);
    Ok(message)
}

fn two_strings(bytes: &[u8]) -> (&[u8], &[u8]) {
    let mut parts = bytes.splitn(3, |byte| *byte == 0);
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}
