//! Between a service and its Postgres: cuts, holds and swallows exactly the statement that a test means.

use std::{
    collections::HashSet,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
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
pub(crate) const BATCH: &str = "WITH t0 AS";
/// In the text of every renewal.
pub(crate) const RENEWAL: &str = "UPDATE member SET renewed";

/// In the text of every grant of a hand-off.
pub(crate) const GRANT: &str = "EXISTS (SELECT FROM member m";
/// In the text of the question whether a user likes a post.
pub(crate) const LIKED: &str = "SELECT 1 FROM post_like";

/// All of them.
const KNOWN: [&str; 4] = [BATCH, RENEWAL, GRANT, LIKED];

/// What becomes of a statement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fate {
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
pub(crate) struct Held(oneshot::Sender<Fate>);

impl Held {
    pub(crate) fn release(self, fate: Fate) {
        self.0.send(fate).expect("the connection waits for its fate");
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
}

pub(crate) struct Proxy {
    shared: Arc<Shared>,
    config: tokio_postgres::Config,
    _folder: tempfile::TempDir,
}

impl Proxy {
    pub(crate) fn start(behind: &tokio_postgres::Config) -> Self {
        let [Host::Unix(host)] = behind.get_hosts() else { panic!("the test server listens on a unix socket") };
        let port = behind.get_ports().first().copied().unwrap_or(5432);
        let folder = tempfile::Builder::new().prefix("rk").tempdir().unwrap();
        let mut config = tokio_postgres::Config::new();
        // Asked for TLS a server answers without a length, and nothing here could read what follows.
        config.ssl_mode(tokio_postgres::config::SslMode::Disable);
        config.host_path(folder.path()).port(5432).dbname(behind.get_dbname().unwrap()).user(behind.get_user().unwrap());
        if let Some(password) = behind.get_password() {
            config.password(password);
        }
        let shared = Arc::new(Shared {
            upstream: host.join(format!(".s.PGSQL.{port}")),
            rules: Mutex::default(),
            down: watch::Sender::new(false),
        });
        let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
        let accepting = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&accepting).serve(client));
            }
        });
        Self { shared, config, _folder: folder }
    }

    pub(crate) fn config(&self) -> tokio_postgres::Config {
        self.config.clone()
    }

    /// The next statement with this text meets this fate.
    pub(crate) fn once(&self, text: &'static str, fate: Fate) {
        self.shared.rules.lock().unwrap().push((text, Rule::Once(fate)));
    }

    /// Every statement with this text does, until [`Proxy::heal`].
    pub(crate) fn always(&self, text: &'static str, fate: Fate) {
        self.shared.rules.lock().unwrap().push((text, Rule::Always(fate)));
    }

    /// Stops the next statement with this text in front of the server.
    pub(crate) fn hold(&self, text: &'static str) -> impl Future<Output = Held> + use<> {
        let (sender, held) = oneshot::channel();
        self.shared.rules.lock().unwrap().push((text, Rule::Hold(sender)));
        async { held.await.expect("the proxy lives") }
    }

    /// Forgets all rules and lets everybody in.
    pub(crate) fn heal(&self) {
        self.shared.rules.lock().unwrap().clear();
        self.shared.down.send_replace(false);
    }

    /// The server is gone: connections die, new ones are refused.
    pub(crate) fn take_down(&self) {
        self.shared.down.send_replace(true);
    }
}

impl Shared {
    async fn serve(self: Arc<Self>, client: UnixStream) {
        let mut down = self.down.subscribe();
        if *down.borrow() {
            return;
        }
        let Ok(server) = UnixStream::connect(&self.upstream).await else { return };
        let (client_in, client_out) = client.into_split();
        let (server_in, server_out) = server.into_split();
        let swallow = Arc::new(AtomicBool::new(false));
        // Whichever ends first takes the connection with it, both directions at once.
        tokio::select! {
            _ = self.requests(client_in, server_out, &swallow) => {}
            _ = answers(server_in, client_out, &swallow) => {}
            _ = down.wait_for(|down| *down) => {}
        }
    }

    async fn requests(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, swallow: &AtomicBool) -> io::Result<()> {
        let startup = length_prefixed(&mut from).await?;
        to.write_all(&startup).await?;
        let mut prepared: HashSet<(&'static str, Vec<u8>)> = HashSet::new();
        loop {
            let message = typed(&mut from).await?;
            match message[0] {
                // Parse: name, text.
                b'P' => {
                    let (name, text) = two_strings(&message[5..]);
                    let text = String::from_utf8_lossy(text).into_owned();
                    for known in KNOWN.into_iter().filter(|known| text.contains(known)) {
                        prepared.insert((known, name.to_vec()));
                    }
                }
                // Bind: portal, statement.
                b'B' => {
                    let (_, name) = two_strings(&message[5..]);
                    let text = KNOWN.into_iter().find(|text| prepared.contains(&(*text, name.to_vec())));
                    match self.fate(text).await {
                        Fate::Passes => {}
                        Fate::NeverArrives => return Ok(()),
                        Fate::AnswerLost => swallow.store(true, Ordering::SeqCst),
                        Fate::Vanishes => std::future::pending().await,
                    }
                }
                _ => {}
            }
            to.write_all(&message).await?;
        }
    }

    async fn fate(&self, text: Option<&'static str>) -> Fate {
        let Some(text) = text else { return Fate::Passes };
        let decided = {
            let mut rules = self.rules.lock().unwrap();
            let Some(n) = rules.iter().position(|(about, _)| *about == text) else { return Fate::Passes };
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
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, swallow: &AtomicBool) -> io::Result<()> {
    loop {
        let message = typed(&mut from).await?;
        if !swallow.load(Ordering::SeqCst) {
            to.write_all(&message).await?;
        } else if message[0] == b'Z' {
            // Ready for the next: this one is committed.
            return Ok(());
        }
    }
}

async fn length_prefixed(from: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let mut message = vec![0; 4];
    from.read_exact(&mut message).await?;
    let length = u32::from_be_bytes(message[..4].try_into().unwrap()) as usize;
    message.resize(length, 0);
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
