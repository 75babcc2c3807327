//! How a node is reached by the others, and how long it keeps what it owns.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use reqwest::Client;
use rookery::migrate::Database;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;
use uuid::Uuid;

use crate::lab::{
    Answer, Lab, Node,
    Who::{self, Gateway, Member, Plain, Small, Strict, Up},
    eventually,
};

/// Longer than what is not waited for takes.
const A_MOMENT: Duration = Duration::from_millis(500);

/// Where the others are told to dial a node.
async fn advertised(node: &Node) -> String {
    let client = node.sql(Database::Users).await;
    client.query_one("SELECT address FROM member WHERE state = 'live'", &[]).await.unwrap().get(0)
}

/// The ports on which a process listens, as the kernel knows them.
fn ports(node: &Node) -> BTreeSet<u16> {
    let folder = format!("/proc/{}", node.running.pid());
    let open = std::fs::read_dir(format!("{folder}/fd")).unwrap();
    let own: BTreeSet<String> = open
        .filter_map(|file| Some(std::fs::read_link(file.ok()?.path()).ok()?.to_string_lossy().into_owned()))
        .filter_map(|target| Some(target.strip_prefix("socket:[")?.trim_end_matches(']').to_owned()))
        .collect();
    let table = std::fs::read_to_string(format!("{folder}/net/tcp")).unwrap();
    let listening = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, port) = fields.get(1)?.split_once(':')?;
        // 0A: it listens. The tenth field is the socket's number.
        (fields[3] == "0A" && own.contains(fields[9])).then(|| u16::from_str_radix(port, 16).unwrap())
    };
    table.lines().skip(1).filter_map(listening).collect()
}

pub(crate) async fn listen(lab: &Lab) {
    assert_eq!(ports(lab.of(Up)).len(), 5, "a gateway and the health of four services");
    let address: SocketAddr = advertised(lab.of(Plain)).await.parse().unwrap();
    let ports = ports(lab.of(Plain));
    assert!(ports.contains(&address.port()), "{address} is one of {ports:?}");
}

pub(crate) async fn advertise(lab: &Lab) {
    let own = advertised(lab.of(Plain)).await;
    assert!(own.starts_with("127.0.0.1:"), "where it listens: {own}");
    assert_eq!(advertised(lab.of(Small)).await, "knobs.example:7400");
}

/// Dials the links of a node with TLS and without a certificate: the certificate that it shows, and whether it talks on.
async fn shown(lab: &Lab, address: &str) -> Option<(CertificateDer<'static>, bool)> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(lab.authority.file()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let host = ServerName::try_from("127.0.0.1").unwrap();
    let mut tls = TlsConnector::from(Arc::new(config)).connect(host, stream).await.ok()?;
    let certificate = tls.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
    // A server that wants a certificate says so after the handshake, and one that wants none waits for a greeting.
    let is_accepted = timeout(A_MOMENT, tls.read(&mut [0])).await.is_err();
    Some((certificate, is_accepted))
}

pub(crate) async fn cert_file(lab: &Lab) {
    let plain = advertised(lab.of(Plain)).await;
    assert!(shown(lab, &plain).await.is_none(), "no TLS");
    let (found, _) = shown(lab, &advertised(lab.of(Member)).await).await.expect("TLS");
    let tls = lab.of(Member).config.cluster.tls.as_ref().unwrap();
    assert_eq!(found, CertificateDer::from_pem_file(&tls.cert).unwrap());
}

pub(crate) async fn key_file(lab: &Lab) {
    // A handshake proves that the key is the certificate's.
    assert!(shown(lab, &advertised(lab.of(Member)).await).await.is_some());
    let others = &lab.of(Gateway).config.cluster.tls.as_ref().unwrap().key;
    let mut command = lab.again(Member, "impostor");
    command.env("ROOKERY__CLUSTER__TLS__KEY_FILE", others);
    let said = lab.refused(command).await;
    assert!(said.contains("do not make a TLS configuration"), "{said}");
}

pub(crate) async fn ca_file(lab: &Lab) {
    let (_, is_accepted) = shown(lab, &advertised(lab.of(Member)).await).await.expect("TLS");
    assert!(!is_accepted, "without a certificate of the authority nobody is heard");
    // It is advertised elsewhere; of its ports, one speaks TLS.
    let mut others = Vec::new();
    for port in ports(lab.of(Small)) {
        others.extend(shown(lab, &format!("127.0.0.1:{port}")).await);
    }
    let [(_, is_accepted)] = others[..] else { panic!("{others:?}") };
    assert!(is_accepted, "dialling needs no certificate");
}

pub(crate) async fn heartbeat(lab: &Lab) {
    let heartbeats = async |who| lab.of(who).metric("rookery_link_round_trip_seconds_count", "peer=\"member\"").await;
    let before = tokio::join!(heartbeats(Gateway), heartbeats(Strict));
    // Twice a second, so that some come.
    eventually("heartbeats come", async || heartbeats(Gateway).await >= before.0 + 3.0).await;
    let (shipped, turned) = (heartbeats(Gateway).await - before.0, heartbeats(Strict).await - before.1);
    assert!(turned > shipped * 4.0, "ten times as often: {turned} while there were {shipped}");
}

pub(crate) async fn heartbeats_missed_max(lab: &Lab) {
    let member = &lab.of(Member).running;
    member.signal(Signal::SIGSTOP);
    for (who, missed) in [(Gateway, 4), (Strict, 40)] {
        let words = format!("nothing has come for {missed} heartbeats in a row");
        eventually(&format!("{who:?} says that {words}"), async || lab.of(who).running.log().contains(&words)).await;
    }
    member.signal(Signal::SIGCONT);
    for who in [Gateway, Strict] {
        lab.ready(who).await;
    }
}

pub(crate) async fn in_flight_max(lab: &Lab) {
    let held = lab.of(Member).hold(Database::Posts, "post_counter").await;
    let refused = async |who| {
        let http = Client::new();
        let ask = async |n: usize| {
            let request = http.get(lab.of(who).url(&format!("/api/v1/posts/{}", Uuid::new_v4())));
            let request = request.header("x-forwarded-for", format!("198.51.100.{n}"));
            match timeout(Duration::from_millis(1_500), Answer::of(request)).await {
                Ok(answer) => {
                    assert!(answer.body.to_string().contains("more to do than it can"), "{}", answer.body);
                    1
                }
                Err(_) => 0,
            }
        };
        join_all((0..6).map(ask)).await.into_iter().sum::<usize>()
    };
    let (shipped, turned) = tokio::join!(refused(Gateway), refused(Strict));
    held.release().await;
    // One of the two places may be taken by what the nodes ask each other.
    assert!(shipped == 0 && (4..=5).contains(&turned), "{shipped} and {turned} of six were refused");
}

pub(crate) async fn copies_bytes(lab: &Lab) {
    let token = crate::lab::text(&lab.of(Member).register("lender").await["access_token"]);
    let post = lab.of(Member).publish(&token, "read elsewhere").await;
    let shown = async |who: Who| {
        // What was refused before may have opened the breaker.
        let read = async || lab.of(who).get(&format!("/api/v1/posts/{post}")).await.status == 200;
        eventually("the post is read", read).await;
        lab.of(who).metric("rookery_copies_shown_total", "service=\"posts\"").await
    };
    eventually("a copy is shown", async || shown(Gateway).await > 0.0).await;
    for _ in 0..10 {
        assert_eq!(shown(Strict).await, 0.0);
    }
    let kept = lab.of(Strict).metric("rookery_copies_borrowed_total", "").await;
    assert_eq!(kept, 0.0, "of no service");
}

pub(crate) async fn renew(lab: &Lab) {
    let renewed = async |who| -> i64 {
        let client = lab.of(who).sql(Database::Users).await;
        client.query_one("SELECT max(renewed) FROM member WHERE state = 'live'", &[]).await.unwrap().get(0)
    };
    let before = tokio::join!(renewed(Plain), renewed(Member));
    eventually("the lease is renewed", async || renewed(Member).await >= before.1 + 2).await;
    let (shipped, turned) = (renewed(Plain).await - before.0, renewed(Member).await - before.1);
    assert!(shipped > turned, "three times as often: {shipped} while there were {turned}");
}

pub(crate) async fn ttl(lab: &Lab) {
    // From when it can no longer renew until it no longer serves: less than a lease, and at least one without a renewal.
    let lasts = async |who: Who| {
        let held = lab.of(who).hold(Database::Search, "member").await;
        let began = Instant::now();
        eventually("the lease ends", async || {
            let answer = lab.of(who).get("/readyz?verbose").await;
            answer.body["probes"]["search.shards"]["detail"] == "the lease has ended"
        })
        .await;
        held.release().await;
        began.elapsed()
    };
    let (shipped, turned) = tokio::join!(lasts(Plain), lasts(Member));
    assert!(shipped >= Duration::from_millis(1_500) && turned >= Duration::from_millis(3_800), "{shipped:?} and {turned:?}");
    assert!(shipped < turned, "{shipped:?} and {turned:?}");
}
