//! The greeting: two nodes prove to each other that they share the cluster's secret, before ractor_cluster hears of it.
//!
//! Its own handshake knows neither deadlines nor who is at the other end before a session exists, challenges with 32
//! bits, and answers a challenge of its own making. Here each side proves itself over both sides' fresh nonces and in
//! its role, so nothing can be replayed or reflected; the acceptor learns who knocks while it can still end a stale
//! session of that node; and whoever is refused is told why.
//!
//! Nodes of different builds agree on the lower version: an acceptor answers in the dialler's version if it knows it, and
//! names its own otherwise, so that the dialler tries again with that one. All versions begin with magic and version.

use std::{fmt, io, ops::RangeInclusive, sync::Arc};

use aws_lc_rs::{hmac, rand};
use rookery_actors::secret::{KeyRing, Purpose, Tagger};
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

/// The keys by which the nodes of a cluster know each other: one for each secret that this node recognises.
#[derive(Clone, Debug)]
pub struct LinkKeys(Tagger);

impl LinkKeys {
    /// The keys that are derived from the cluster's secrets for this purpose.
    #[must_use]
    pub fn new(secrets: &KeyRing) -> Self {
        Self(secrets.tagger(Purpose::Link))
    }

    /// The key with which this node proves itself first.
    fn current(&self) -> &hmac::Key {
        let (keys, current) = self.0.keys();
        &keys[current]
    }

    /// The key that made a tag.
    fn of(&self, role: Role, transcript: &[u8], tag: &[u8]) -> Result<&hmac::Key, GreetingError> {
        let said = [role.label(), transcript].concat();
        self.0.keys().0.iter().find(|key| hmac::verify(key, &said, tag).is_ok()).ok_or(GreetingError::Secret)
    }
}

/// Who is at the other end, proven, and the number of the link that both will use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Met {
    pub(super) peer: Instance,
    pub(super) token: u64,
    /// The version of the links that both speak.
    pub(super) version: u8,
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
    #[error("it speaks version {theirs} of the links, we speak {OLDEST} to {VERSION}")]
    Version { theirs: u8 },
    #[error(
        "the other side has another secret than this node: give all nodes the same `secret`, or the one that it replaces as `secret_previous`"
    )]
    Secret,
    #[error("it refused: {0}")]
    Rejected(#[from] Rejection),
    #[error("{found} answers there")]
    Another { found: Instance },
    #[error("the system's random source failed")]
    NoRandomness,
}

/// Changes with the greeting, with the layout of the envelopes, and with what services ask each other.
///
/// Since 3 greetings, envelopes and bodies may gain fields at their ends, which older nodes pass over.
pub(super) const VERSION: u8 = 3;
/// The oldest that is still spoken: of builds up to 0.1.0.
pub(super) const OLDEST: u8 = 2;
/// The most that a greeting may hold beyond what this build reads, in bytes.
const EXTRA_MAX: usize = 1_024;
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
///
/// # Errors
/// [`GreetingError::Version`] with the version of a node that does not speak this one, among others.
pub(super) async fn dial<S>(
    stream: &mut S,
    keys: &LinkKeys,
    me: &Instance,
    wanted: &str,
    version: u8,
) -> Result<Met, GreetingError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut transcript = hello(me, version)?;
    push_name(&mut transcript, wanted);
    stream.write_all(&transcript).await?;
    let (peer, _) = read_hello(stream, &mut transcript, version..=version).await?;
    let mut tag = [0; TAG];
    stream.read_exact(&mut tag).await?;
    let key = keys.of(Role::Acceptor, &transcript, &tag);
    // Also if we are about to hang up: the other side shall be able to say why.
    let ours = prove(key.as_ref().unwrap_or(&keys.current()), Role::Dialler, &transcript);
    stream.write_all(ours.as_ref()).await?;
    stream.flush().await?;
    let key = key?;
    match stream.read_u8().await? {
        WELCOME if *peer.name == *wanted => Ok(Met { peer, token: token(key, &transcript), version }),
        WELCOME => Err(GreetingError::Another { found: peer }),
        code => Err(match rejection(code) {
            Rejection::NotMe => GreetingError::Another { found: peer },
            rejection => GreetingError::Rejected(rejection),
        }),
    }
}

/// Greets whoever dialled us. They wait for [`welcome`] or [`refuse`], unless this fails.
pub(super) async fn receive<S>(stream: &mut S, keys: &LinkKeys, me: &Instance) -> Result<Met, GreetingError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut transcript = Vec::new();
    let peer = read_hello(stream, &mut transcript, OLDEST..=VERSION).await;
    if let Err(GreetingError::Version { .. }) = peer {
        // As far as every version is the same.
        stream.write_all(&[&MAGIC[..], &[VERSION]].concat()).await?;
    }
    let (peer, version) = peer?;
    let wanted = read_name(stream, &mut transcript).await?;
    let hello = hello(me, version)?;
    transcript.extend_from_slice(&hello);
    stream.write_all(&[&hello, prove(keys.current(), Role::Acceptor, &transcript).as_ref()].concat()).await?;
    stream.flush().await?;
    let mut tag = [0; TAG];
    stream.read_exact(&mut tag).await?;
    let key = match keys.of(Role::Dialler, &transcript, &tag) {
        Ok(key) => key,
        Err(error) => {
            refuse(stream, Rejection::Secret).await?;
            return Err(error);
        }
    };
    if *wanted != *me.name {
        refuse(stream, Rejection::NotMe).await?;
        return Err(Rejection::NotMe.into());
    }
    Ok(Met { peer, token: token(key, &transcript), version })
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

fn hello(me: &Instance, version: u8) -> Result<Vec<u8>, GreetingError> {
    let mut nonce = [0; NONCE];
    rand::fill(&mut nonce).map_err(|_| GreetingError::NoRandomness)?;
    let mut hello = [&MAGIC[..], &[version], &nonce, me.incarnation.as_bytes()].concat();
    push_name(&mut hello, &me.name);
    if version > OLDEST {
        // Nothing yet beyond what every version has.
        hello.extend_from_slice(&0_u16.to_le_bytes());
    }
    Ok(hello)
}

fn prove(key: &hmac::Key, role: Role, transcript: &[u8]) -> hmac::Tag {
    hmac::sign(key, &[role.label(), transcript].concat())
}

fn push_name(to: &mut Vec<u8>, name: &str) {
    to.push(u8::try_from(name.len()).expect("a node's name has 32 letters at most"));
    to.extend_from_slice(name.as_bytes());
}

async fn read_hello(
    stream: &mut (impl AsyncRead + Unpin),
    transcript: &mut Vec<u8>,
    spoken: RangeInclusive<u8>,
) -> Result<(Instance, u8), GreetingError> {
    let mut head = [0; MAGIC.len() + 1];
    stream.read_exact(&mut head).await?;
    let [magic @ .., theirs] = head;
    if magic != MAGIC {
        return Err(GreetingError::Stranger);
    }
    if !spoken.contains(&theirs) {
        return Err(GreetingError::Version { theirs });
    }
    let mut rest = [0; NONCE + 16];
    stream.read_exact(&mut rest).await?;
    transcript.extend_from_slice(&head);
    transcript.extend_from_slice(&rest);
    let incarnation = Uuid::from_bytes(*rest.last_chunk().expect("it ends with 16 bytes of incarnation"));
    let name = read_name(stream, transcript).await?;
    if theirs > OLDEST {
        // What a later build says besides.
        let length = stream.read_u16_le().await?;
        if usize::from(length) > EXTRA_MAX {
            return Err(GreetingError::Stranger);
        }
        let mut extra = vec![0; usize::from(length)];
        stream.read_exact(&mut extra).await?;
        transcript.extend_from_slice(&length.to_le_bytes());
        transcript.extend_from_slice(&extra);
    }
    Ok((Instance { name, incarnation }, theirs))
}

async fn read_name(stream: &mut (impl AsyncRead + Unpin), transcript: &mut Vec<u8>) -> Result<Arc<str>, GreetingError> {
    let length = stream.read_u8().await?;
    let mut name = vec![0; usize::from(length)];
    stream.read_exact(&mut name).await?;
    transcript.push(length);
    transcript.extend_from_slice(&name);
    String::from_utf8(name).map(Arc::from).map_err(|_| GreetingError::Stranger)
}

fn token(key: &hmac::Key, transcript: &[u8]) -> u64 {
    let tag = prove(key, Role::Token, transcript);
    u64::from_le_bytes(*tag.as_ref().first_chunk().expect("HMAC-SHA256 has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use rookery_actors::secret::{ClusterSecret, FormerReading};
    use tokio::io::duplex;

    use super::*;

    fn instance(name: &str) -> Instance {
        Instance { name: name.into(), incarnation: Uuid::new_v4() }
    }

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn key(secret: u8) -> LinkKeys {
        LinkKeys::new(&ClusterSecret::from_bytes(&[secret; 32]).unwrap().into())
    }

    /// A dialler that wants `n2`, in a version, and an acceptor called `n2`.
    async fn greet(dialler: &LinkKeys, acceptor: &LinkKeys, version: u8) -> [Result<Met, GreetingError>; 2] {
        let (mut near, mut far) = duplex(1024);
        let (n1, n2) = (instance("n1"), instance("n2"));
        let accept = async {
            let met = receive(&mut far, acceptor, &n2).await?;
            welcome(&mut far).await?;
            Ok(met)
        };
        let (dialled, accepted) = tokio::join!(dial(&mut near, dialler, &n1, "n2", version), accept);
        [dialled, accepted]
    }

    #[tokio::test]
    async fn nodes_of_different_builds_speak_the_older_version() {
        for version in OLDEST..=VERSION {
            let [dialled, accepted] = greet(&key(1), &key(1), version).await.map(Result::unwrap);
            assert_eq!((dialled.version, accepted.version), (version, version));
            assert_eq!(dialled.token, accepted.token);
        }
    }

    #[tokio::test]
    async fn a_node_that_does_not_speak_a_version_names_its_own() {
        let [dialled, accepted] = greet(&key(1), &key(1), VERSION + 1).await;
        assert!(matches!(dialled, Err(GreetingError::Version { theirs: VERSION })), "{dialled:?}");
        assert!(matches!(accepted, Err(GreetingError::Version { .. })), "{accepted:?}");
    }

    #[tokio::test]
    async fn a_greeting_may_say_more_than_this_build_reads() {
        let (mut near, mut far) = duplex(1024);
        let mut later = hello(&instance("n1"), VERSION).unwrap();
        later.truncate(later.len() - 2);
        later.extend_from_slice(b"\x04\x00more");
        near.write_all(&later).await.unwrap();
        let mut transcript = Vec::new();
        let (met, _) = read_hello(&mut far, &mut transcript, OLDEST..=VERSION).await.unwrap();
        assert_eq!((&*met.name, &transcript), ("n1", &later));
    }

    /// A build of before takes the secret's text as it stands, and dials and is dialled with nothing else.
    #[tokio::test]
    async fn a_node_of_before_and_one_of_today_meet_both_ways() {
        let before = LinkKeys::new(&ClusterSecret::from_bytes(HEX.as_bytes()).unwrap().into());
        let secrets = KeyRing::read(&HEX.into(), FormerReading::Literal, None).unwrap();
        secrets.settle([[].as_slice()]);
        let today = LinkKeys::new(&secrets);
        for (dialler, acceptor) in [(&before, &today), (&today, &before)] {
            let [dialled, accepted] = greet(dialler, acceptor, OLDEST).await.map(Result::unwrap);
            assert_eq!(dialled.token, accepted.token);
        }
    }

    #[tokio::test]
    async fn nodes_meet_while_their_secret_is_replaced() {
        let old = KeyRing::read(&HEX.into(), FormerReading::Literal, None).unwrap();
        let both = KeyRing::read(&HEX.replace("0001", "ff01").into(), FormerReading::Literal, Some(&HEX.into())).unwrap();
        both.settle([old.ids().as_slice()]);
        let (old, both) = (LinkKeys::new(&old), LinkKeys::new(&both));
        for (dialler, acceptor) in [(&old, &both), (&both, &old)] {
            let [dialled, accepted] = greet(dialler, acceptor, VERSION).await.map(Result::unwrap);
            assert_eq!(dialled.token, accepted.token);
        }
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
        tokio::join!(dial(&mut near, &our_key, &n1, wanted, VERSION), accept)
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
            read_hello(&mut far, &mut transcript, OLDEST..=VERSION).await.unwrap();
            far.write_all(&transcript).await.unwrap();
            far.write_all(prove(key.current(), Role::Dialler, &transcript).as_ref()).await.unwrap();
            // Ours, by the time it comes, is for another transcript and another role.
            far
        };
        let (greeted, _far) = tokio::join!(dial(&mut near, &key, &me, "n2", VERSION), echo);
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
        assert_eq!(format!("{:?}", key(1)), "LinkKeys(Tagger([redacted]))");
    }
}
