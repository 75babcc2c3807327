//! What a request to another node costs: from this process to a second one and back, over real sockets.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use futures_util::{StreamExt, future::BoxFuture, stream};
use rookery::links::{Handler, LinkKeys, Links, LinksConfig, Meta, PeerAddress, Refusal, Request};
use rookery_actors::secret::ClusterSecret;
use tokio::runtime::Runtime;

/// Makes this executable the second node.
const VARIABLE: &str = "ROOKERY_BENCH_LINKS";

struct Echo;

impl Handler for Echo {
    fn handle(&self, request: Request) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        Box::pin(std::future::ready(Ok(request.body)))
    }
}

fn config(node: &str) -> LinksConfig {
    LinksConfig {
        node: node.to_owned(),
        listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        keys: LinkKeys::new(&ClusterSecret::from_bytes(&[7; 32]).expect("32 bytes are enough").into()),
        cookie: "cookie".to_owned(),
        tls: None,
        dials_all: false,
        heartbeat: Duration::from_millis(500),
        heartbeats_missed_max: 20,
        in_flight_max: 1_024,
        handshake_timeout: Duration::from_secs(5),
        connections_max: 16,
    }
}

/// Answers until its standard input ends.
fn second_node() {
    Runtime::new().expect("a runtime").block_on(async {
        let links = Links::start(config("n2"), Arc::new(Echo)).await.expect("the second node starts");
        println!("{}", links.address().expect("it listens"));
        let (ended, input_ends) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            let _ = ended.send(());
        });
        let _ = input_ends.await;
    });
}

/// The second node; it ends with this.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn links(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut peer = Peer(
        Command::new(std::env::current_exe().expect("this executable has a path"))
            .env(VARIABLE, "n2")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the second node starts"),
    );
    let mut address = String::new();
    let output = peer.0.stdout.take().expect("it is piped");
    BufReader::new(output).read_line(&mut address).expect("it says where it listens");
    let links = runtime.block_on(async {
        let links = Links::start(config("n1"), Arc::new(Echo)).await.expect("the first node starts");
        links.set_peers(vec![PeerAddress { name: "n2".to_owned(), address: address.trim().to_owned() }]);
        links.peers().wait_for(|peers| peers.values().any(|peer| peer.is_linked())).await.expect("they are linked");
        links
    });
    let mut group = criterion.benchmark_group("links");
    for (bytes, concurrent) in [(100, 1), (100, 64), (100, 512), (4_096, 64)] {
        group.throughput(Throughput::Elements(1));
        let id = BenchmarkId::new(format!("{bytes}_bytes"), concurrent);
        let body = Bytes::from(vec![7; bytes]);
        group.bench_function(id, |bencher| {
            bencher.to_async(&runtime).iter_custom(|requests| {
                let (links, body) = (links.clone(), body.clone());
                async move {
                    let began = Instant::now();
                    // Each caller a task of its own, as requests of clients are.
                    let callers = stream::iter((0..concurrent).map(|caller| {
                        let (links, body) = (links.clone(), body.clone());
                        let share = requests / concurrent + u64::from(caller < requests % concurrent);
                        tokio::spawn(async move {
                            for _ in 0..share {
                                let meta = Meta::until(Instant::now() + Duration::from_secs(30));
                                links.request("n2", 1, body.clone(), meta).await.expect("the second node answers");
                            }
                        })
                    }));
                    callers.buffer_unordered(concurrent as usize).for_each(async |done| done.expect("no caller panics")).await;
                    began.elapsed()
                }
            });
        });
    }
    group.throughput(Throughput::Bytes(8 << 20));
    group.sample_size(10);
    group.bench_function("8_MiB", |bencher| {
        let body = Bytes::from(vec![7; 8 << 20]);
        bencher.to_async(&runtime).iter(|| {
            let (links, body) = (links.clone(), body.clone());
            async move {
                let meta = Meta::until(Instant::now() + Duration::from_secs(30));
                links.request("n2", 1, body, meta).await.expect("the second node answers")
            }
        });
    });
    group.finish();
}

criterion_group!(benches, links);

fn main() {
    if std::env::var_os(VARIABLE).is_some() {
        return second_node();
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
