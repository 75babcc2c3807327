//! The HTTP edge: how much it takes, from whom, and how long it waits.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use reqwest::{Client, RequestBuilder};
use rookery::migrate::Database;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use uuid::Uuid;

use crate::lab::{
    Answer, Lab, Node,
    Who::{self, Gateway, Member, Plain, Small, Strict, Up},
    eventually,
};

/// Longer than an answer takes that nothing holds back.
const A_MOMENT: Duration = Duration::from_millis(300);

/// What the rates are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Auth,
    Read,
    Write,
    Search,
}

impl Class {
    /// A request of this class that costs next to nothing.
    fn request(self, http: &Client, node: &Node) -> RequestBuilder {
        match self {
            Self::Auth => http.post(node.url("/api/v1/auth/login")).json(&json!({})),
            Self::Read => http.get(node.url("/api/v1/posts?limit=none")),
            Self::Write => http.post(node.url("/api/v1/posts")).json(&json!({})),
            Self::Search => http.get(node.url("/api/v1/search?limit=none")),
        }
    }

    /// As shipped, and on the strict gateway: how many at once, and how many a minute.
    fn rates(self) -> [(u32, u32); 2] {
        match self {
            Self::Auth => [(10, 20), (2, 3)],
            Self::Read => [(200, 1_200), (3, 4)],
            Self::Write => [(30, 120), (4, 5)],
            Self::Search => [(40, 240), (5, 6)],
        }
    }
}

/// A client at an address of this machine that no other client has.
fn client() -> Client {
    static MADE: AtomicU32 = AtomicU32::new(0);
    const FIRST: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 1);
    let address = Ipv4Addr::from_bits(FIRST.to_bits() + MADE.fetch_add(1, Ordering::Relaxed));
    Client::builder().local_address(IpAddr::from(address)).build().unwrap()
}

/// How many requests of a class a new client has before one is refused, at most this many, and when it may come again.
async fn allowed(node: &Node, class: Class, most: u32) -> Option<(u32, u32)> {
    let http = client();
    for allowed in 0..most {
        let answer = Answer::of(class.request(&http, node)).await;
        if answer.status == 429 {
            return Some((allowed, answer.header("retry-after").parse().unwrap()));
        }
    }
    None
}

pub(crate) async fn listen(lab: &Lab) {
    for (who, ip) in [(Gateway, [127, 0, 0, 1]), (Strict, [127, 0, 0, 6])] {
        let node = lab.of(who);
        assert_eq!(node.address().ip(), IpAddr::from(ip));
        assert_eq!(node.get("/livez").await.status, 200, "{who:?} answers there");
    }
    let elsewhere = TcpStream::connect(("127.0.0.1", lab.of(Strict).address().port())).await;
    assert!(elsewhere.is_err(), "and nowhere else");
}

pub(crate) async fn rate_limits(lab: &Lab) {
    assert!(allowed(lab.of(Up), Class::Auth, 100).await.is_some());
    assert_eq!(allowed(lab.of(Plain), Class::Auth, 100).await, None);
}

pub(crate) async fn burst(lab: &Lab, class: Class) {
    for (who, (burst, _)) in [Up, Strict].into_iter().zip(class.rates()) {
        let (found, _) = allowed(lab.of(who), class, burst * 3).await.expect("there is an end to it");
        // Some come back while a slow machine asks.
        assert!(found >= burst, "{class:?} on {who:?}: {found} at once");
        assert!(found <= burst + 1 || who == Up, "{class:?} on {who:?}: {found} at once");
    }
}

pub(crate) async fn per_minute(lab: &Lab, class: Class) {
    for (who, (burst, per_minute)) in [Up, Strict].into_iter().zip(class.rates()) {
        let (_, again_s) = allowed(lab.of(who), class, burst * 3).await.expect("there is an end to it");
        let every_s = 60_u32.div_ceil(per_minute);
        assert!((1..=every_s).contains(&again_s), "{class:?} on {who:?}: in {again_s} s, not {every_s}");
        // Of the time to the next one some has passed, on a slow machine.
        assert!(who == Up || again_s * 2 > every_s, "{class:?} on {who:?}: in {again_s} s, not {every_s}");
    }
}

pub(crate) async fn body_limit(lab: &Lab) {
    let of = |bytes: usize| json!({"login": "x".repeat(bytes), "password": "p"});
    let status = async |who, bytes| {
        let http = client();
        Answer::of(http.post(lab.of(who).url("/api/v1/auth/login")).json(&of(bytes))).await.status
    };
    assert_eq!(status(Strict, 4_000).await, 401, "there is no such user");
    assert_eq!(status(Strict, 4_100).await, 413);
    assert_eq!(status(Gateway, 520_000).await, 401, "there is no such user");
    assert_eq!(status(Gateway, 525_000).await, 413);
}

pub(crate) async fn request_timeout(lab: &Lab) {
    let held = lab.of(Member).hold(Database::Posts, "post_counter").await;
    let path = format!("/api/v1/posts/{}", Uuid::new_v4());
    let began = Instant::now();
    let patient = lab.of(Gateway).get(&path);
    tokio::pin!(patient);
    let answer = tokio::select! {
        answer = Answer::of(client().get(lab.of(Strict).url(&path))) => answer,
        answer = &mut patient => panic!("nobody can have an answer yet: {answer:?}"),
    };
    let waited = began.elapsed();
    held.release().await;
    assert!(answer.status == 503 && waited >= Duration::from_millis(1_950), "after {waited:?}: {answer:?}");
    let answer = patient.await;
    assert_eq!(answer.status, 404, "ten seconds are long enough: {}", answer.body);
}

pub(crate) async fn header_timeout(lab: &Lab) {
    let begun = async |who| {
        let mut stream = TcpStream::connect(lab.of(who).address()).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: knobs\r\n").await.unwrap();
        stream
    };
    let began = Instant::now();
    let (mut strict, shipped) = (begun(Strict).await, begun(Gateway).await);
    let mut said = Vec::new();
    strict.read_to_end(&mut said).await.unwrap();
    let waited = began.elapsed();
    assert!(waited >= Duration::from_millis(1_450), "closed after {waited:?}");
    let early = shipped.try_read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(early, Err(io::ErrorKind::WouldBlock), "five seconds are not over, after {waited:?}");
}

/// Opens a connection and asks for something over it; none: nobody takes it.
async fn connected(node: &Node) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(node.address()).await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: knobs\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    let answered = timeout(A_MOMENT, stream.read_exact(&mut first)).await;
    (answered.ok()?.is_ok() && first.starts_with(b"HTTP/1.1 200")).then_some(stream)
}

pub(crate) async fn connections_max(lab: &Lab) {
    let taken = async |who| {
        let mut open = Vec::new();
        while let Some(connection) = connected(lab.of(who)).await {
            open.push(connection);
            if open.len() > 30 {
                break;
            }
        }
        open.len()
    };
    let (strict, shipped) = (taken(Strict).await, taken(Gateway).await);
    // The lab itself may have some open.
    assert!((10..=20).contains(&strict), "{strict} connections");
    assert_eq!(shipped, 31, "and there is room for more");
}

pub(crate) async fn concurrency_max(lab: &Lab) {
    // In work until the rest of the body comes.
    let begin = async |who, n: usize| {
        let mut stream = TcpStream::connect(lab.of(who).address()).await.unwrap();
        let head = format!(
            "POST /api/v1/auth/login HTTP/1.1\r\nHost: knobs\r\nX-Forwarded-For: 198.51.100.{n}\r\n\
             Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    };
    let status = async |who: Who| Answer::of(client().get(lab.of(who).url("/api/v1/posts?limit=none"))).await.status;
    let _strict = join_all((0..8).map(|n| begin(Strict, n))).await;
    let _shipped = join_all((0..8).map(|n| begin(Gateway, n))).await;
    eventually("eight are in work, and no more", async || status(Strict).await == 503).await;
    assert_eq!(status(Gateway).await, 400, "there is room for more");
}

pub(crate) async fn cors_origins(lab: &Lab) {
    let allowed = async |who: Who, origin: &str| {
        let request = client().get(lab.of(who).url("/livez")).header("origin", origin);
        Answer::of(request).await.header("access-control-allow-origin").to_owned()
    };
    assert_eq!(allowed(Gateway, "https://b.example").await, "*");
    assert_eq!(allowed(Strict, "https://a.example").await, "https://a.example");
    assert_eq!(allowed(Strict, "https://b.example").await, "");
}

pub(crate) async fn trusted_proxies(lab: &Lab) {
    for (who, is_believed) in [(Up, false), (Strict, true)] {
        let http = client();
        let left = async |forwarded: &str| {
            let request = Class::Auth.request(&http, lab.of(who)).header("x-forwarded-for", forwarded);
            let answer = Answer::of(request).await;
            let header = answer.header("ratelimit");
            let left = header.split(";r=").nth(1).and_then(|rest| rest.split(';').next());
            left.unwrap_or_else(|| panic!("{header}")).parse::<u32>().unwrap()
        };
        let (one, other) = (left("203.0.113.1").await, left("203.0.113.2").await);
        assert_eq!(one == other, is_believed, "{who:?} takes them for two clients: {one} and {other} requests left");
    }
}

pub(crate) async fn drain(lab: &Lab) {
    // From the wish to stop to the first refusal.
    let served = async |who: Who| {
        let node = lab.of(who);
        let address = node.address();
        node.running.signal(Signal::SIGTERM);
        let began = Instant::now();
        eventually("nobody listens any more", async || TcpStream::connect(address).await.is_err()).await;
        began.elapsed()
    };
    let (shipped, turned) = tokio::join!(served(Plain), served(Small));
    assert!(shipped >= Duration::from_millis(500) && turned >= Duration::from_secs(3), "{shipped:?} and {turned:?}");
    assert!(shipped < turned, "{shipped:?} and {turned:?}");
}
