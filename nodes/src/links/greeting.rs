//! The greeting: two nodes prove to each other that they share the cluster's secret, before ractor_cluster hears of it.
//!
//! Its own handshake knows neither deadlines nor who is at the other end before a session exists, challenges with 32
//! bits, and answers a challenge of its own making. Here each side proves itself over both sides' fresh nonces and in
//! its role, so nothing can be replayed or reflected; the acceptor learns who knocks while it can still end a stale
//! session of that node; and whoever is refused is told why.

use std::{fmt, io, sync::Arc};

use aws_lc_rs::{hmac, rand};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use uuid::Uuid;

/// One life of a node: its configured name, and what no other life of it shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) name: Arc<str>,
    pub(super) incarnation: Uuid,
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.name, self.incarnation)
    }
}

/// The key by which the nodes of a cluster know each other.
#[derive(Clone)]
pub struct LinkKey(hmac::Key);

impl LinkKey {
    /// Takes the key that was derived from the cluster's secret for this purpose.
    #[must_use]
    pub fn new(derived: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, derived))
    }

    /// What the sessions of ractor_cluster show each other, again.
    pub(super) fn cookie(&self) -> String {
        hmac::sign(&self.0, b"cookie").as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn tag(&self, role: Role, transcript: &[u8]) -> hmac::Tag {
        hmac::sign(&self.0, &[role.label(), transcript].concat())
    }

    fn verify(&self, role: Role, transcript: &[u8], tag: &[u8]) -> Result<(), GreetingError> {
        hmac::verify(&self.0, &[role.label(), transcript].concat(), tag).map_err(|_| GreetingError::Secret)
    }
}

impl fmt::Debug for LinkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkKey([redacted])")
    }
}

/// Who is at the other end, proven, and the number of the link that both will use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Met {
    pub(super) peer: Instance,
    pub(super) token: u64,
}

/// Why an acceptor does not want a link with somebody who is one of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejection {
    #[error("its secret is another one")]
    Secret,
    #[error("another node answers at this address")]
    NotMe,
    #[error("it has our own name")]
    Namesake,
    #[error("it is dialling us itself right now")]
    Simultaneous,
    #[error("it holds a link that it dialled for alive")]
    Linked,
    #[error("it is about to stop")]
    Stopping,
}

/// Why there was no greeting.
#[derive(Debug, thiserror::Error)]
pub(super) enum GreetingError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("whoever is there is no Rookery node")]
    Stranger,
    #[error("it speaks version {theirs} of the links, we speak {VERSION}")]
    Version { theirs: u8 },
    #[error("the other side does not know the cluster's secret")]
    Secret,
    #[error("it refused: {0}")]
    Rejected(#[from] Rejection),
    #[error("{found} answers there")]
    Another { found: Instance },
    #[error("the system's random source failed")]
    NoRandomness,
}

/// Changes with the greeting, with the layout of the envelopes, and with what services ask each other.
const VERSION: u8 = 2;
const MAGIC: [u8; 4] = *b"rkry";
const NONCE: usize = 32;
const TAG: usize = 32;
const WELCOME: u8 = 0;

#[derive(Clone, Copy)]
enum Role {
    Dialler,
    Acceptor,
    Token,
}

impl Role {
    fn label(self) -> &'static [u8] {
        match self {
            Self::Dialler => b"dialler",
            Self::Acceptor => b"acceptor",
            Self::Token => b"token",
        }
    }
}

/// Greets whoever accepted us and waits to be welcomed. `wanted` is the name of the node that should be there.
pub(super) async fn dial<S>(stream: &mut S, key: &LinkKey, me: &Instance, wanted: &str) -> Result<Met, GreetingError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut transcript = hello(me)?;
    push_name(&mut transcript, wanted);
    stream.write_all(&transcript).await?;
    let peer = read_hello(stream, &mut transcript).await?;
    let mut tag = [0; TAG];
    stream.read_exact(&mut tag).await?;
    // Also if we are about to hang up: the other side shall be able to say why.
    stream.write_all(key.tag(Role::Dialler, &transcript).as_ref()).await?;
    stream.flush().await?;
    key.verify(Role::Acceptor, &transcript, &tag)?;
    match stream.read_u8().await? {
        WELCOME if *peer.name == *wanted => Ok(Met { peer, token: token(key, &transcript) }),
        WELCOME => Err(GreetingError::Another { found: peer }),
        code => Err(match rejection(code) {
            Rejection::NotMe => GreetingError::Another { found: peer },
            rejection => GreetingError::Rejected(rejection),
        }),
    }
}

/// Greets whoever dialled us. They wait for [`welcome`] or [`refuse`], unless this fails.
pub(super) async fn receive<S>(stream: &mut S, key: &LinkKey, me: &Instance) -> Result<Met, GreetingError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut transcript = Vec::new();
    let peer = read_hello(stream, &mut transcript).await;
    if let Err(GreetingError::Version { .. }) = peer {
        // As far as every version is the same.
        stream.write_all(&[&MAGIC[..], &[VERSION]].concat()).await?;
    }
    let peer = peer?;
    let wanted = read_name(stream, &mut transcript).await?;
    let hello = hello(me)?;
    transcript.extend_from_slice(&hello);
    stream.write_all(&[&hello, key.tag(Role::Acceptor, &transcript).as_ref()].concat()).await?;
    stream.flush().await?;
    let mut tag = [0; TAG];
    stream.read_exact(&mut tag).await?;
    if let Err(error) = key.verify(Role::Dialler, &transcript, &tag) {
        refuse(stream, Rejection::Secret).await?;
        return Err(error);
    }
    if *wanted != *me.name {
        refuse(stream, Rejection::NotMe).await?;
        return Err(Rejection::NotMe.into());
    }
    Ok(Met { peer, token: token(key, &transcript) })
}

/// Tells a dialler that the link may begin.
pub(super) async fn welcome(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    stream.write_u8(WELCOME).await?;
    stream.flush().await
}

/// Tells a dialler that there will be no link, and why.
pub(super) async fn refuse(stream: &mut (impl AsyncWrite + Unpin), rejection: Rejection) -> io::Result<()> {
    let code = REJECTIONS.iter().position(|known| *known == rejection).expect("every rejection has a code");
    stream.write_u8(u8::try_from(code + 1).expect("there are a few")).await?;
    stream.flush().await
}

/// Their codes are their places, beginning with 1; only ever appended to.
const REJECTIONS: [Rejection; 6] =
    [Rejection::Secret, Rejection::NotMe, Rejection::Namesake, Rejection::Simultaneous, Rejection::Linked, Rejection::Stopping];

fn rejection(code: u8) -> Rejection {
    let place = usize::from(code).checked_sub(1);
    // A reason of a later version: it does not want us now.
    place.and_then(|place| REJECTIONS.get(place)).copied().unwrap_or(Rejection::Stopping)
}

fn hello(me: &Instance) -> Result<Vec<u8>, GreetingError> {
    let mut nonce = [0; NONCE];
    rand::fill(&mut nonce).map_err(|_| GreetingError::NoRandomness)?;
    let mut hello = [&MAGIC[..], &[VERSION], &nonce, me.incarnation.as_bytes()].concat();
    push_name(&mut hello, &me.name);
    Ok(hello)
}

fn push_name(to: &mut Vec<u8>, name: &str) {
    to.push(u8::try_from(name.len()).expect("a node's name has 32 letters at most"));
    to.extend_from_slice(name.as_bytes());
}

async fn read_hello(stream: &mut (impl AsyncRead + Unpin), transcript: &mut Vec<u8>) -> Result<Instance, GreetingError> {
    let mut head = [0; MAGIC.len() + 1];
    stream.read_exact(&mut head).await?;
    let [magic @ .., theirs] = head;
    if magic != MAGIC {
        return Err(GreetingError::Stranger);
    }
    if theirs != VERSION {
        return Err(GreetingError::Version { theirs });
    }
    let mut rest = [0; NONCE + 16];
    stream.read_exact(&mut rest).await?;
    transcript.extend_from_slice(&head);
    transcript.extend_from_slice(&rest);
    let incarnation = Uuid::from_bytes(*rest.last_chunk().expect("it ends with 16 bytes of incarnation"));
    let name = read_name(stream, transcript).await?;
    Ok(Instance { name, incarnation })
}

async fn read_name(stream: &mut (impl AsyncRead + Unpin), transcript: &mut Vec<u8>) -> Result<Arc<str>, GreetingError> {
    let length = stream.read_u8().await?;
    let mut name = vec![0; usize::from(length)];
    stream.read_exact(&mut name).await?;
    transcript.push(length);
    transcript.extend_from_slice(&name);
    String::from_utf8(name).map(Arc::from).map_err(|_| GreetingError::Stranger)
}

fn token(key: &LinkKey, transcript: &[u8]) -> u64 {
    let tag = key.tag(Role::Token, transcript);
    u64::from_le_bytes(*tag.as_ref().first_chunk().expect("HMAC-SHA256 has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    fn instance(name: &str) -> Instance {
        Instance { name: name.into(), incarnation: Uuid::new_v4() }
    }

    fn key(secret: u8) -> LinkKey {
        LinkKey::new(&[secret; 32])
    }

    /// A dialler that wants `n2` and an acceptor called `n2`, who decides.
    async fn meet(
        theirs: u8,
        wanted: &str,
        decide: Option<Rejection>,
    ) -> (Result<Met, GreetingError>, Result<Met, GreetingError>) {
        let (mut near, mut far) = duplex(1024);
        let (n1, n2) = (instance("n1"), instance("n2"));
        let (our_key, their_key) = (key(1), key(theirs));
        let accept = async {
            let met = receive(&mut far, &their_key, &n2).await?;
            match decide {
                Some(rejection) => refuse(&mut far, rejection).await?,
                None => welcome(&mut far).await?,
            }
            Ok(met)
        };
        tokio::join!(dial(&mut near, &our_key, &n1, wanted), accept)
    }

    #[tokio::test]
    async fn two_that_share_the_secret_meet() {
        let (dialled, accepted) = meet(1, "n2", None).await;
        let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
        assert_eq!((&*dialled.peer.name, &*accepted.peer.name), ("n2", "n1"));
        assert_eq!(dialled.token, accepted.token);
    }

    #[tokio::test]
    async fn another_secret_is_noticed_on_both_sides() {
        let (dialled, accepted) = meet(2, "n2", None).await;
        assert!(matches!(dialled, Err(GreetingError::Secret)), "{dialled:?}");
        assert!(matches!(accepted, Err(GreetingError::Secret)), "{accepted:?}");
    }

    #[tokio::test]
    async fn another_node_at_the_address_says_who_it_is() {
        let (dialled, accepted) = meet(1, "n3", None).await;
        let Err(GreetingError::Another { found }) = dialled else { panic!("{dialled:?}") };
        assert_eq!(&*found.name, "n2");
        assert!(accepted.is_err());
    }

    #[tokio::test]
    async fn who_is_refused_is_told_why() {
        for rejection in REJECTIONS.into_iter().filter(|rejection| *rejection != Rejection::NotMe) {
            let (dialled, _) = meet(1, "n2", Some(rejection)).await;
            assert!(matches!(dialled, Err(GreetingError::Rejected(told)) if told == rejection), "{dialled:?}");
        }
    }

    #[tokio::test]
    async fn an_echo_of_our_own_greeting_proves_nothing() {
        let (mut near, mut far) = duplex(1024);
        let (me, key) = (instance("n1"), key(1));
        let echo = async {
            let mut transcript = Vec::new();
            read_hello(&mut far, &mut transcript).await.unwrap();
            far.write_all(&transcript).await.unwrap();
            far.write_all(key.tag(Role::Dialler, &transcript).as_ref()).await.unwrap();
            // Ours, by the time it comes, is for another transcript and another role.
            far
        };
        let (greeted, _far) = tokio::join!(dial(&mut near, &key, &me, "n2"), echo);
        assert!(matches!(greeted, Err(GreetingError::Secret)), "{greeted:?}");
    }

    #[tokio::test]
    async fn a_browser_is_no_node() {
        let (mut near, mut far) = duplex(1024);
        near.write_all(b"GET / HTTP/1.1\r\nhost: n2\r\n\r\n").await.unwrap();
        let accepted = receive(&mut far, &key(1), &instance("n2")).await;
        assert!(matches!(accepted, Err(GreetingError::Stranger)), "{accepted:?}");
    }

    #[tokio::test]
    async fn another_version_is_named() {
        let (mut near, mut far) = duplex(1024);
        near.write_all(&[&MAGIC[..], &[VERSION + 1]].concat()).await.unwrap();
        let accepted = receive(&mut far, &key(1), &instance("n2")).await;
        assert!(matches!(accepted, Err(GreetingError::Version { theirs }) if theirs == VERSION + 1), "{accepted:?}");
        let mut answer = [0; 5];
        near.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[..], [&MAGIC[..], &[VERSION]].concat());
    }

    #[test]
    fn a_key_does_not_show() {
        assert_eq!(format!("{:?}", key(1)), "LinkKey([redacted])");
    }
}
