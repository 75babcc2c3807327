//! Links between real processes: what travels, what ends, and who is turned away.

mod certificates;
mod node;
mod support;

use std::{sync::Arc, time::Duration};

use nix::sys::signal::Signal;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use certificates::Authority;
use node::{DECLINE, ECHO, GATE, META, NOBODY, Order, PAGE, PANIC};
use support::{Node, introduce, spec};

const MIB: usize = 1 << 20;

/// No test: what the tests start.
#[test]
fn this_is_a_node() {
    if let Ok(spec) = std::env::var(node::VARIABLE) {
        node::run(&spec);
    }
}

mod what_travels {
    use super::*;

    #[tokio::test]
    async fn a_request_is_answered_whoever_dialled() {
        let (n1, n2) = Node::pair(|_| {}).await;
        n1.ask("n2", ECHO, 100, 1).await.assert_all("answered");
        n2.ask("n1", ECHO, 100, 1).await.assert_all("answered");
        n1.ask("n2", ECHO, 0, 1).await.assert_all("answered");
    }

    #[tokio::test]
    async fn what_a_request_says_about_itself_arrives() {
        let (n1, _n2) = Node::pair(|_| {}).await;
        n1.ask("n2", META, 0, 1).await.assert_all("from n1: 3 42 r-1 00-1-2-01, in time: true");
    }

    #[tokio::test]
    async fn requests_that_are_asked_at_the_same_time_share_batches() {
        let (n1, n2) = Node::pair(|_| {}).await;
        for _ in 0..20 {
            n1.ask("n2", ECHO, 100, 200).await.assert_all("answered");
        }
        let envelopes = n2.metric("rookery_link_envelopes_total", "received").await;
        let batches = n2.metric("rookery_link_batches_total", "received").await;
        assert!(envelopes >= 4_000.0 && batches < envelopes / 2.0, "{batches} batches for {envelopes} envelopes");
    }

    #[tokio::test]
    async fn bodies_of_megabytes_pass_both_ways() {
        let (n1, _n2) = Node::pair(|_| {}).await;
        n1.ask("n2", ECHO, 8 * MIB, 1).await.assert_all("answered");
        n1.ask("n2", PAGE, 16 * MIB, 3).await.assert_all("answered");
        n1.ask("n2", ECHO, 300 * 1024, 20).await.assert_all("answered");
    }

    #[tokio::test]
    async fn a_small_request_does_not_wait_for_a_large_one() {
        let (n1, _n2) = Node::pair(|_| {}).await;
        let (large, small) = tokio::join!(n1.ask("n2", ECHO, 16 * MIB, 4), n1.ask("n2", ECHO, 100, 100));
        large.assert_all("answered");
        small.assert_all("answered");
        assert!(small.slowest < large.slowest, "small {:?}, large {:?}", small.slowest, large.slowest);
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_refused_with_its_size() {
        let (n1, _n2) = Node::pair(|_| {}).await;
        let error = "not delivered: a body of 16777217 bytes is more than a link carries (16777216)";
        n1.ask("n2", ECHO, 16 * MIB + 1, 1).await.assert_all(error);
        let error = "outcome unknown: an answer of 16777217 bytes is more than a link carries (16777216)";
        n1.ask("n2", PAGE, 16 * MIB + 1, 1).await.assert_all(error);
    }

    #[tokio::test]
    async fn every_request_is_answered_also_with_a_no() {
        let (n1, _n2) = Node::pair(|_| {}).await;
        n1.ask("n2", DECLINE, 10, 1).await.assert_all("declined");
        n1.ask("n2", NOBODY, 10, 1).await.assert_all("nobody there answers for this service");
        n1.ask("n2", PANIC, 10, 1).await.assert_all("outcome unknown: the handler crashed");
        n1.ask("n2", ECHO, 10, 1).await.assert_all("answered");
    }
}

mod limits {
    use super::*;

    #[tokio::test]
    async fn beyond_the_credits_the_answer_is_overloaded_at_once() {
        let (n1, n2) = Node::pair(|spec| spec.in_flight_max = 8).await;
        let waiting = n1.ask("n2", GATE, 10, 8);
        let refused = async {
            n2.order(Order::UntilArrived(8)).await;
            let refused = n1.ask("n2", ECHO, 10, 100).await;
            n2.order(Order::Open).await;
            refused
        };
        let (waiting, refused) = tokio::join!(waiting, refused);
        refused.assert_all("too much is in flight to that node");
        waiting.assert_all("answered");
        n1.ask("n2", ECHO, 10, 8).await.assert_all("answered");
    }

    #[tokio::test]
    async fn a_node_that_is_asked_too_much_says_so() {
        let n1 = Node::start(&spec("n1")).await;
        let few = support::spec("n2");
        let n2 = Node::start(&node::Spec { in_flight_max: 4, ..few }).await;
        introduce(&[&n1, &n2]).await;
        n1.until_linked("n2").await;
        let waiting = n1.ask("n2", GATE, 10, 4);
        let refused = async {
            n2.order(Order::UntilArrived(4)).await;
            let refused = n1.ask("n2", ECHO, 10, 5).await;
            n2.order(Order::Open).await;
            refused
        };
        let (waiting, refused) = tokio::join!(waiting, refused);
        refused.assert_all("too much is in flight to that node");
        waiting.assert_all("answered");
    }

    #[tokio::test]
    async fn what_is_late_is_given_up_and_not_worked_on_for_ever() {
        let (n1, n2) = Node::pair(|spec| spec.in_flight_max = 8).await;
        let late = n1.ask_until("n2", GATE, 10, 8, Duration::from_millis(50)).await;
        late.assert_all("outcome unknown: no answer came by the deadline");
        n1.ask_until("n2", ECHO, 10, 1, Duration::ZERO).await.assert_all("the deadline passed before it was worked on");
        // Its handlers have given up too: there is room for as many again.
        n2.order(Order::Open).await;
        n1.ask("n2", GATE, 10, 8).await.assert_all("answered");
    }

    #[tokio::test]
    async fn to_nobody_nothing_is_delivered() {
        let n1 = Node::start(&spec("n1")).await;
        n1.ask("n9", ECHO, 10, 1).await.assert_all("not delivered: there is no link to that node");
    }
}

mod what_ends {
    use super::*;

    #[tokio::test]
    async fn kill_9_of_a_node_fails_what_is_pending_and_its_next_life_is_linked() {
        let (n1, n2) = Node::pair(|_| {}).await;
        let former = n1.until_linked("n2").await;
        assert_eq!(former, n2.incarnation);
        let pending = n1.ask("n2", GATE, 10, 50);
        let killed = async {
            n2.order(Order::UntilArrived(50)).await;
            n2.signal(Signal::SIGKILL);
        };
        let (pending, ()) = tokio::join!(pending, killed);
        pending.assert_all("outcome unknown: the link ended before the answer came");
        n1.until_apart("n2").await;
        n1.ask("n2", ECHO, 10, 1).await.assert_all("not delivered: there is no link to that node");

        let next = Node::start(&node::Spec { listen: Some(n2.address), ..spec("n2") }).await;
        assert_eq!(n1.until_linked("n2").await, next.incarnation);
        n1.ask("n2", ECHO, 10, 1).await.assert_all("answered");
    }

    /// Here the other side has to dial again.
    #[tokio::test]
    async fn kill_9_of_the_node_that_dialled_ends_the_link_too() {
        let (n1, n2) = Node::pair(|_| {}).await;
        n1.signal(Signal::SIGKILL);
        n2.until_apart("n1").await;
        let next = Node::start(&spec("n1")).await;
        next.order(Order::Peers(vec![("n2".to_owned(), n2.address)])).await;
        assert_eq!(n2.until_linked("n1").await, next.incarnation);
        n2.ask("n1", ECHO, 10, 1).await.assert_all("answered");
    }

    #[tokio::test]
    async fn a_frozen_node_is_noticed_by_its_heartbeats_and_linked_again_when_it_wakes() {
        let (n1, n2) = Node::pair(|spec| spec.heartbeat_ms = 1_000).await;
        let pending = n1.ask("n2", GATE, 10, 50);
        let frozen = async {
            n2.order(Order::UntilArrived(50)).await;
            n2.signal(Signal::SIGSTOP);
        };
        let (pending, ()) = tokio::join!(pending, frozen);
        pending.assert_all("outcome unknown: the link ended before the answer came");
        // Long before their deadline, which is 30 s away.
        assert!(pending.slowest < Duration::from_secs(15), "{:?}", pending.slowest);
        n1.until_logged(&["WARN", "heartbeats in a row", "n2"]).await;
        n1.until_apart("n2").await;
        n2.signal(Signal::SIGCONT);
        assert_eq!(n1.until_linked("n2").await, n2.incarnation);
        n1.ask("n2", ECHO, 10, 1).await.assert_all("answered");
        n2.ask("n1", ECHO, 10, 1).await.assert_all("answered");
    }

    #[tokio::test]
    async fn a_node_that_stops_answers_what_it_has_begun() {
        let (n1, n2) = Node::pair(|_| {}).await;
        let begun = n1.ask("n2", GATE, 10, 20);
        let stop = async {
            n2.order(Order::UntilArrived(20)).await;
            let stopping = n2.order(Order::Stop);
            let meanwhile = async {
                let refused = loop {
                    let asked = n1.ask("n2", ECHO, 10, 1).await;
                    if !asked.counts.contains_key("answered") {
                        break asked;
                    }
                };
                refused.assert_all("not delivered: the node is about to stop");
                n2.order(Order::Open).await;
            };
            tokio::join!(stopping, meanwhile);
        };
        let (begun, ()) = tokio::join!(begun, stop);
        begun.assert_all("answered");
        n1.until_apart("n2").await;
    }
}

mod who_is_there {
    use super::*;

    /// Everything that other nodes could reach is advertised over every link.
    #[tokio::test]
    async fn a_second_actor_that_other_nodes_could_reach_stops_the_start() {
        let n1 = Node::start(&spec("n1")).await;
        let error = n1.order(Order::Again).await;
        assert!(error.as_str().unwrap().starts_with("2 actors can be reached from other nodes"), "{error}");
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let n1 = Node::start(&spec("n1")).await;
        let error = Node::refused(&node::Spec { listen: Some(n1.address), ..spec("n2") }).await;
        let told = format!("cannot listen on {} for other nodes: set another `listen`", n1.address);
        assert!(error.starts_with(&told), "{error}");
    }
}

mod who_dials {
    use super::*;

    #[tokio::test]
    async fn a_node_that_nobody_knows_of_reaches_everybody() {
        let (n1, n2) = Node::pair(|_| {}).await;
        let gateway = Node::start(&node::Spec { dials_all: true, listen: None, ..spec("z-gateway") }).await;
        gateway.order(Order::Peers(vec![("n1".to_owned(), n1.address), ("n2".to_owned(), n2.address)])).await;
        for node in [&n1, &n2] {
            gateway.until_linked(&node.name).await;
            gateway.ask(&node.name, ECHO, 10, 1).await.assert_all("answered");
            node.until_linked("z-gateway").await;
            node.ask("z-gateway", ECHO, 10, 1).await.assert_all("answered");
        }
    }

    #[tokio::test]
    async fn two_that_dial_each_other_end_up_with_one_link() {
        let (n1, n2) = Node::pair(|spec| spec.dials_all = true).await;
        n1.ask("n2", ECHO, 10, 100).await.assert_all("answered");
        n2.ask("n1", ECHO, 10, 100).await.assert_all("answered");
    }

    #[tokio::test]
    async fn an_address_where_another_node_answers_is_named() {
        let n1 = Node::start(&spec("n1")).await;
        let n3 = Node::start(&spec("n3")).await;
        n1.order(Order::Peers(vec![("n2".to_owned(), n3.address)])).await;
        n1.until_logged(&["cannot reach node n2", "n3#", "answers there"]).await;
    }
}

mod who_is_turned_away {
    use super::*;

    #[tokio::test]
    async fn silent_clients_keep_nobody_from_joining() {
        let n2 = Node::start(&spec("n2")).await;
        let mut silent = Vec::new();
        for _ in 0..20 {
            silent.push(TcpStream::connect(n2.address).await.unwrap());
        }
        let n1 = Node::start(&spec("n1")).await;
        introduce(&[&n1, &n2]).await;
        n1.until_linked("n2").await;
        n1.ask("n2", ECHO, 10, 1).await.assert_all("answered");
        // And they are shown out.
        assert_eq!(silent[0].read(&mut [0; 1]).await.unwrap(), 0);
        n2.until_logged(&["WARN", "connections for the links are refused", "it took longer than 5000 ms"]).await;
    }

    #[tokio::test]
    async fn a_node_with_another_secret_is_refused_and_both_sides_log_why() {
        let n2 = Node::start(&spec("n2")).await;
        let n1 = Node::start(&node::Spec { secret: 2, ..spec("n1") }).await;
        introduce(&[&n1, &n2]).await;
        let why = "the other side has another secret than this node";
        n2.until_logged(&["WARN", "connections for the links are refused", why]).await;
        n1.until_logged(&["WARN", "n2: the node cannot be reached", why]).await;
        n1.ask("n2", ECHO, 10, 1).await.assert_all("not delivered: there is no link to that node");
    }

    #[tokio::test]
    async fn whoever_speaks_something_else_is_refused() {
        let n1 = Node::start(&spec("n1")).await;
        let mut browser = TcpStream::connect(n1.address).await.unwrap();
        browser.write_all(b"GET / HTTP/1.1\r\nhost: n1\r\n\r\n").await.unwrap();
        n1.until_logged(&["connections for the links are refused", "no Rookery node"]).await;
    }
}

mod tls {
    use super::*;

    #[tokio::test]
    async fn nodes_with_certificates_of_the_same_authority_are_linked() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "ours");
        let (n1, n2) = Node::pair(|spec| spec.tls = Some(authority.node(&spec.name))).await;
        n1.ask("n2", ECHO, 8 * MIB, 2).await.assert_all("answered");
        n2.ask("n1", ECHO, 100, 200).await.assert_all("answered");
        n2.signal(Signal::SIGKILL);
        n1.until_apart("n2").await;
    }

    #[tokio::test]
    async fn a_certificate_of_another_authority_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = (Authority::new(folder.path(), "ours"), Authority::new(folder.path(), "theirs"));
        let n2 = Node::start(&node::Spec { tls: Some(ours.node("n2")), ..spec("n2") }).await;
        let [certificate, key, _] = theirs.node("n1");
        let n1 = Node::start(&node::Spec { tls: Some([certificate, key, ours.file()]), ..spec("n1") }).await;
        introduce(&[&n1, &n2]).await;
        n2.until_logged(&["WARN", "connections for the links are refused", "no TLS"]).await;
        n1.until_logged(&["WARN", "n2: the node cannot be reached"]).await;
    }

    #[tokio::test]
    async fn a_node_without_tls_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "ours");
        let n2 = Node::start(&node::Spec { tls: Some(authority.node("n2")), ..spec("n2") }).await;
        let n1 = Node::start(&spec("n1")).await;
        introduce(&[&n1, &n2]).await;
        n2.until_logged(&["WARN", "connections for the links are refused", "no TLS"]).await;
    }

    #[tokio::test]
    async fn a_client_without_a_certificate_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "ours");
        let n2 = Node::start(&node::Spec { tls: Some(authority.node("n2")), ..spec("n2") }).await;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority.file()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();
        let stream = TcpStream::connect(n2.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        // In TLS 1.3 the client is done before the server has looked for a certificate.
        let mut stream = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, stream).await.unwrap();
        assert!(stream.read_u8().await.is_err());
        n2.until_logged(&["WARN", "connections for the links are refused", "no TLS", "certificate"]).await;
    }
}
