//! The way to Kafka, on a real broker; and how a client logs in, at a listener that takes it down.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use rdkafka::{
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    client::DefaultClientContext,
};
use rookery::{
    config::{self, Config},
    kafka::{client::Probe, topics},
    testing::TestKafka,
};
use rookery_actors::event::Topic;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::block_in_place,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    certificates::Authority,
    event_log::{client, delete_topics},
    lab::{
        Lab,
        Who::{Guarded, Plain, Relay},
        eventually, text,
    },
};

/// Longest wait for an answer of a broker.
const PATIENCE: Duration = Duration::from_secs(20);

/// A topic as a broker has it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MadeTopic {
    partitions: usize,
    copies: usize,
    retention_ms: String,
}

/// How topics were made with the knobs as shipped, and what became of some that were to have two copies on one broker.
pub(crate) struct MadeTopics {
    shipped: MadeTopic,
    two_copies: String,
}

impl MadeTopics {
    /// On an empty broker, which is empty again after it.
    pub(crate) async fn as_shipped(broker: &TestKafka) -> Self {
        let brokers = broker.config(1).brokers;
        let shipped = config::Kafka { brokers, ..config::Kafka::default() };
        let copies = config::Kafka { replication_factor: 2, ..shipped.clone() };
        let two_copies = topics::ensure(&copies).await.map_or_else(|error| error.to_string(), |made| format!("made {made:?}"));
        topics::ensure(&shipped).await.unwrap();
        let made = Self { shipped: MadeTopic::of(&shipped).await, two_copies };
        delete_topics(&shipped).await;
        made
    }
}

impl MadeTopic {
    async fn of(config: &config::Kafka) -> Self {
        let admin: AdminClient<DefaultClientContext> = client(config).create().unwrap();
        let name = Topic::Posts.kafka_name();
        let described = admin.describe_configs(&[ResourceSpecifier::Topic(name)], &AdminOptions::new()).await.unwrap();
        let retention = described[0].as_ref().unwrap().get("retention.ms").unwrap().value.clone();
        let metadata = block_in_place(|| admin.inner().fetch_metadata(Some(name), PATIENCE)).unwrap();
        let partitions = metadata.topics()[0].partitions();
        Self { partitions: partitions.len(), copies: partitions[0].replicas().len(), retention_ms: retention.unwrap_or_default() }
    }
}

/// The topic that the relaying node has made.
async fn relayed(lab: &Lab) -> MadeTopic {
    MadeTopic::of(&lab.of(Relay).config.kafka).await
}

fn shipped(lab: &Lab) -> &MadeTopic {
    &lab.made.as_ref().expect("there is a broker").shipped
}

pub(crate) async fn brokers(lab: &Lab) {
    let probes = async |who| lab.of(who).get("/readyz?verbose").await.body["probes"].clone();
    assert_eq!(probes(Plain).await.get("kafka"), None, "the embedded log");
    assert_eq!(probes(Relay).await["kafka"]["status"], "ok");
    let node = lab.of(Relay);
    let token = text(&node.register("relayed").await["access_token"]);
    node.publish(&token, "told to everybody").await;
    let config = &node.config.kafka;
    let consumer: rdkafka::consumer::BaseConsumer = client(config).create().unwrap();
    let end = |partition| {
        use rdkafka::consumer::Consumer;
        block_in_place(|| consumer.fetch_watermarks(Topic::Posts.kafka_name(), partition, PATIENCE)).unwrap().1
    };
    eventually("the broker has the post", async || (0..3).map(end).sum::<i64>() > 16).await;
}

pub(crate) async fn partitions(lab: &Lab) {
    assert_eq!((shipped(lab).partitions, relayed(lab).await.partitions), (32, 3));
}

pub(crate) async fn replication_factor(lab: &Lab) {
    assert_eq!((shipped(lab).copies, relayed(lab).await.copies), (1, 1));
    let refused = &lab.made.as_ref().expect("there is a broker").two_copies;
    assert!(refused.contains("could not be made") && refused.contains("ReplicationFactor"), "{refused}");
}

pub(crate) async fn retention(lab: &Lab) {
    assert_eq!((&*shipped(lab).retention_ms, &*relayed(lab).await.retention_ms), ("604800000", "7200000"));
}

/// What a client says until it has logged in.
#[derive(Clone, Debug, Default)]
struct Login {
    /// Over TLS.
    encrypted: usize,
    /// Handshakes that a client broke off: it does not trust us.
    distrusted: usize,
    mechanism: Option<String>,
    /// As `plain` sends it.
    proof: Option<String>,
}

/// Listens where a broker would, with a certificate, and takes down what it is told. It never lets anybody in.
pub(crate) struct Recorder {
    pub(crate) address: SocketAddr,
    heard: Arc<Mutex<Login>>,
}

impl Recorder {
    pub(crate) async fn start(authority: &Authority) -> Self {
        let [certificate, key, _] = authority.node("broker");
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_file(certificate).unwrap()],
                PrivateKeyDer::from_pem_file(key).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let recorder = Self { address: listener.local_addr().unwrap(), heard: Arc::default() };
        let heard = Arc::clone(&recorder.heard);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, heard) = (acceptor.clone(), Arc::clone(&heard));
                // Whatever ends a connection, what was said over it has been taken down.
                tokio::spawn(async move { drop(listen(&acceptor, stream, &heard).await) });
            }
        });
        recorder
    }

    fn heard(&self) -> Login {
        self.heard.lock().unwrap().clone()
    }
}

/// Keys of requests.
const API_VERSIONS: i16 = 18;
const SASL_HANDSHAKE: i16 = 17;
const SASL_AUTHENTICATE: i16 = 36;
/// What we say that we understand, and up to which version.
const UNDERSTOOD: [(i16, i16); 4] = [(3, 1), (SASL_HANDSHAKE, 1), (API_VERSIONS, 3), (SASL_AUTHENTICATE, 1)];

async fn listen(acceptor: &TlsAcceptor, stream: TcpStream, heard: &Mutex<Login>) -> io::Result<()> {
    let mut stream = match acceptor.accept(stream).await {
        Ok(stream) => stream,
        Err(error) => {
            heard.lock().unwrap().distrusted += 1;
            return Err(error);
        }
    };
    loop {
        let mut request = vec![0; usize::try_from(stream.read_i32().await?).map_err(io::Error::other)?];
        stream.read_exact(&mut request).await?;
        heard.lock().unwrap().encrypted += 1;
        let (head, rest) = request.split_at(8);
        let (key, version) = (i16::from_be_bytes([head[0], head[1]]), i16::from_be_bytes([head[2], head[3]]));
        // After the client's name.
        let body = &rest[2 + usize::from(u16::from_be_bytes([rest[0], rest[1]]))..];
        let mut answer = head[4..8].to_vec();
        match key {
            API_VERSIONS => answer.extend(versions(version)),
            SASL_HANDSHAKE => {
                let mechanism = &body[2..];
                heard.lock().unwrap().mechanism = Some(String::from_utf8_lossy(mechanism).into_owned());
                answer.extend([0, 0, 0, 0, 0, 1]);
                answer.extend(body);
            }
            SASL_AUTHENTICATE => {
                heard.lock().unwrap().proof = Some(String::from_utf8_lossy(&body[4..]).into_owned());
                return Ok(());
            }
            key => return Err(io::Error::other(format!("a request of kind {key} before the login"))),
        }
        stream.write_i32(i32::try_from(answer.len()).map_err(io::Error::other)?).await?;
        stream.write_all(&answer).await?;
        stream.flush().await?;
    }
}

/// The answer to a question for versions, from the error on.
fn versions(asked: i16) -> Vec<u8> {
    let is_compact = asked >= 3;
    let count = u8::try_from(UNDERSTOOD.len()).unwrap();
    let mut answer = vec![0, 0];
    answer.extend(if is_compact { vec![count + 1] } else { vec![0, 0, 0, count] });
    for (key, version_max) in UNDERSTOOD {
        answer.extend([key.to_be_bytes(), [0, 0], version_max.to_be_bytes()].concat());
        answer.extend(is_compact.then_some(0));
    }
    // How long to wait before the next request, and no further fields.
    answer.extend((asked >= 1).then_some([0; 4]).into_iter().flatten());
    answer.extend(is_compact.then_some(0));
    answer
}

/// Waits until the guarded node has said this much.
async fn login<T>(lab: &Lab, what: &str, heard: impl Fn(&Login) -> Option<T>) -> T {
    eventually(what, async || heard(&lab.recorder.heard()).is_some()).await;
    heard(&lab.recorder.heard()).expect("nothing is forgotten")
}

pub(crate) async fn tls(lab: &Lab) {
    let encrypted = login(lab, "the node speaks to its broker over TLS", |heard| Some(heard.encrypted).filter(|n| *n > 0)).await;
    assert!(encrypted > 0);
    // As shipped, in the clear: no handshake comes about.
    let before = lab.recorder.heard();
    assert!(
        asked(lab, &[("ROOKERY__KAFKA__TLS__ENABLED", "false"), ("ROOKERY__KAFKA__SASL__MECHANISM", "scram-sha-256")]).is_err()
    );
    eventually("what is no TLS is noticed", async || lab.recorder.heard().distrusted > before.distrusted).await;
}

pub(crate) async fn ca_file(lab: &Lab) {
    login(lab, "the node trusts our authority", |heard| (heard.encrypted > 0).then_some(())).await;
    let before = lab.recorder.heard();
    let refused = asked(lab, &[("ROOKERY__KAFKA__TLS__CA_FILE", "")]);
    assert!(refused.is_err(), "an authority that this machine does not know");
    eventually("it is not trusted", async || lab.recorder.heard().distrusted > before.distrusted).await;
}

pub(crate) async fn mechanism(lab: &Lab) {
    assert_eq!(login(lab, "the node names a mechanism", |heard| heard.mechanism.clone()).await, "PLAIN");
}

pub(crate) async fn username(lab: &Lab) {
    let proof = login(lab, "the node logs in", |heard| heard.proof.clone()).await;
    assert!(proof.starts_with("\0knobs\0"), "{proof:?}");
}

pub(crate) async fn password(lab: &Lab) {
    let proof = login(lab, "the node logs in", |heard| heard.proof.clone()).await;
    assert!(proof.ends_with("\0the password of knobs"), "{proof:?}");
}

/// Asks the listener as the guarded node does, with something changed.
fn asked(lab: &Lab, changed: &[(&str, &str)]) -> Result<Duration, rdkafka::error::KafkaError> {
    let mut set: HashMap<_, _> = lab.of(Guarded).set.iter().cloned().collect();
    set.extend(changed.iter().map(|(name, value)| ((*name).into(), (*value).into())));
    let file: Option<(&Path, &str)> = None;
    let config = Config::read(file, set).unwrap_or_else(|errors| panic!("{errors}"));
    let probe = Probe::new(&config.kafka).unwrap();
    block_in_place(|| probe.latency(Duration::from_secs(2)))
}
