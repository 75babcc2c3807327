//! A node that is nothing but its links, in a process of its own: this test executable, started again.
//!
//! It is told what to do in lines of JSON on its standard input and answers in lines of JSON, each with the number of
//! the order. A process has one set of links, so the tests themselves have none.

use std::{
    collections::BTreeMap,
    io::Write,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use metrics_exporter_prometheus::PrometheusHandle;
use rookery::{
    config::Log,
    links::{Handler, LinkError, LinkKeys, Links, LinksConfig, Meta, PeerAddress, Refusal, Request, TlsFiles},
    telemetry,
};
use rookery_actors::secret::ClusterSecret;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::watch,
};

/// The variable that makes a test executable a node, and says which.
pub(crate) const VARIABLE: &str = "ROOKERY_TEST_LINKS";

/// Answers with the body it got.
pub(crate) const ECHO: u8 = 0;
/// Answers when it is told to, by `open`.
pub(crate) const GATE: u8 = 1;
/// Panics.
pub(crate) const PANIC: u8 = 2;
/// Answers with as many bytes as the first four of the body say.
pub(crate) const PAGE: u8 = 3;
/// Declines with the body it got.
pub(crate) const DECLINE: u8 = 4;
/// Answers with what it was told besides the body.
pub(crate) const META: u8 = 5;
/// Nobody answers for it.
pub(crate) const NOBODY: u8 = 9;

/// What a node is to be.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) secret: u8,
    pub(crate) dials_all: bool,
    pub(crate) heartbeat_ms: u64,
    pub(crate) in_flight_max: usize,
    /// Certificate, key, authority.
    pub(crate) tls: Option<[PathBuf; 3]>,
}

/// What a node can be told to do.
#[derive(Serialize, Deserialize)]
pub(crate) enum Order {
    /// These nodes are there.
    Peers(Vec<(String, SocketAddr)>),
    /// Answer when a life of this node is linked, with that life.
    UntilLinked(String),
    /// Answer when this node is not linked.
    UntilApart(String),
    /// Ask so many times at once, and answer with how often which outcome came, and the time of the slowest.
    Ask { peer: String, service: u8, bytes: usize, times: usize, patience_ms: u64 },
    /// Answer when so many requests have arrived at the gate, ever.
    UntilArrived(usize),
    /// Let all pass the gate.
    Open,
    /// Answer with the metrics.
    Metrics,
    /// Start links once more in the same process, and answer with the error.
    Again,
    /// End all links, when what is in work has been answered.
    Stop,
}

/// The life of the process.
pub(crate) fn run(spec: &str) {
    let spec: Spec = serde_json::from_str(spec).expect("the test says what to be");
    let metrics = telemetry::install(&Log::default(), None).expect("nothing is installed yet");
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
        let gate = Arc::new(Gate::default());
        let links = match Links::start(config(&spec), Arc::new(Service(Arc::clone(&gate)))).await {
            Ok(links) => links,
            Err(error) => return say(0, json!({"error": error.to_string()})),
        };
        say(0, json!({"address": links.address(), "incarnation": links.incarnation()}));
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let (number, order): (u64, Order) = serde_json::from_str(&line).expect("the test gives orders");
            let (links, gate, metrics, spec) = (links.clone(), Arc::clone(&gate), metrics.clone(), spec.clone());
            tokio::spawn(async move { say(number, obey(order, &spec, &links, &gate, &metrics).await) });
        }
    });
}

fn config(spec: &Spec) -> LinksConfig {
    LinksConfig {
        node: spec.name.clone(),
        listen: spec.listen,
        keys: LinkKeys::new(&ClusterSecret::from_bytes(&[spec.secret; 32]).unwrap().into()),
        cookie: "cookie".to_owned(),
        tls: spec.tls.clone().map(|[certificate, key, authority]| TlsFiles { certificate, key, authority: Some(authority) }),
        dials_all: spec.dials_all,
        heartbeat: Duration::from_millis(spec.heartbeat_ms),
        heartbeats_missed_max: 4,
        in_flight_max: spec.in_flight_max,
        handshake_timeout: Duration::from_secs(5),
        connections_max: 64,
    }
}

async fn obey(order: Order, spec: &Spec, links: &Links, gate: &Gate, metrics: &PrometheusHandle) -> Value {
    match order {
        Order::Peers(peers) => {
            let address = |(name, address): (String, SocketAddr)| PeerAddress { name, address: address.to_string() };
            links.set_peers(peers.into_iter().map(address).collect());
            Value::Null
        }
        Order::UntilLinked(peer) => {
            let mut peers = links.peers();
            let linked = peers.wait_for(|peers| peers.get(&peer).is_some_and(|peer| peer.is_linked())).await;
            json!(linked.expect("the links are there")[&peer].incarnation)
        }
        Order::UntilApart(peer) => {
            let _ = links.peers().wait_for(|peers| !peers.get(&peer).is_some_and(|peer| peer.is_linked())).await;
            Value::Null
        }
        Order::Ask { peer, service, bytes, times, patience_ms } => {
            ask(links, &peer, service, bytes, times, Duration::from_millis(patience_ms)).await
        }
        Order::UntilArrived(count) => {
            let _ = gate.arrived.subscribe().wait_for(|arrived| *arrived >= count).await;
            Value::Null
        }
        Order::Open => {
            gate.open.send_replace(true);
            Value::Null
        }
        Order::Metrics => metrics.render().into(),
        Order::Again => {
            let again = Links::start(config(spec), Arc::new(Service(Arc::new(Gate::default())))).await;
            again.err().map(|error| error.to_string()).into()
        }
        Order::Stop => {
            links.stop(Duration::from_secs(10)).await;
            Value::Null
        }
    }
}

async fn ask(links: &Links, peer: &str, service: u8, bytes: usize, times: usize, patience: Duration) -> Value {
    let body = match service {
        PAGE => Bytes::copy_from_slice(&u32::try_from(bytes).unwrap().to_le_bytes()),
        _ => (0..=u8::MAX).collect::<Vec<_>>().repeat(bytes / 256 + 1).split_off(256 - bytes % 256).into(),
    };
    let asked = (0..times).map(|_| {
        let (links, peer, body) = (links.clone(), peer.to_owned(), body.clone());
        let meta = Meta {
            hops: 3,
            epoch: 42,
            request_id: "r-1".into(),
            traceparent: "00-1-2-01".into(),
            ..Meta::until(Instant::now() + patience)
        };
        tokio::spawn(async move {
            let began = Instant::now();
            let answer = links.request(&peer, service, body.clone(), meta).await;
            (outcome(service, bytes, &body, answer), began.elapsed())
        })
    });
    let asked: Vec<_> = asked.collect();
    let (mut outcomes, mut slowest) = (BTreeMap::<String, usize>::new(), Duration::ZERO);
    for request in asked {
        let (outcome, took) = request.await.unwrap();
        *outcomes.entry(outcome).or_default() += 1;
        slowest = slowest.max(took);
    }
    json!({"outcomes": outcomes, "slowest_ms": slowest.as_millis()})
}

fn outcome(service: u8, bytes: usize, asked: &Bytes, answer: Result<Bytes, LinkError>) -> String {
    match (service, answer) {
        (ECHO | GATE, Ok(answer)) if answer == asked => "answered".to_owned(),
        (PAGE, Ok(answer)) if answer == vec![7_u8; bytes] => "answered".to_owned(),
        (META, Ok(answer)) => String::from_utf8(answer.to_vec()).unwrap(),
        (_, Ok(answer)) => format!("a wrong answer of {} bytes", answer.len()),
        (_, Err(error)) => error.to_string(),
    }
}

struct Service(Arc<Gate>);

#[derive(Default)]
struct Gate {
    open: watch::Sender<bool>,
    arrived: watch::Sender<usize>,
}

impl Handler for Service {
    fn handle(&self, Request { peer, service, body, meta }: Request) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let gate = Arc::clone(&self.0);
        Box::pin(async move {
            match service {
                ECHO => Ok(body),
                GATE => {
                    gate.arrived.send_modify(|arrived| *arrived += 1);
                    let _ = gate.open.subscribe().wait_for(|open| *open).await;
                    Ok(body)
                }
                PANIC => panic!("told to"),
                PAGE => Ok(vec![7; u32::from_le_bytes(body[..4].try_into().unwrap()) as usize].into()),
                DECLINE => Err(Refusal::Declined(body)),
                META => {
                    let Meta { hops, epoch, request_id, traceparent, deadline } = meta;
                    let left_ms = deadline.saturating_duration_since(Instant::now()).as_millis();
                    let in_time = left_ms > 1_000 && left_ms < 60_000;
                    Ok(format!("from {peer}: {hops} {epoch} {request_id} {traceparent}, in time: {in_time}").into())
                }
                _ => Err(Refusal::UnknownService),
            }
        })
    }
}

/// A line by itself: the test harness writes to the same stream.
fn say(number: u64, answer: Value) {
    let line = format!("\n{}\n", json!([number, answer]));
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
}
