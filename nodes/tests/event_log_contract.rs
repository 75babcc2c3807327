//! What every event log promises its readers, on a posts service that really writes.

mod event_log;

use std::{sync::Arc, time::Duration};

use rookery::event_log::EmbeddedLog;
use rookery_actors::event::EventLog;

use self::event_log::{Follower, KafkaBench, Publisher, seqs};

/// A publisher, and a way to open a log of its events as a consumer that starts anew.
struct Bench {
    publisher: Publisher,
    open: Box<dyn Fn() -> Arc<dyn EventLog>>,
    _kafka: Option<KafkaBench>,
}

async fn embedded(_: &str) -> Option<Bench> {
    let publisher = Publisher::start().await;
    let posts = publisher.source();
    let open = move || -> Arc<dyn EventLog> { Arc::new(EmbeddedLog::new(posts.clone(), posts.clone(), posts.clone())) };
    Some(Bench { publisher, open: Box::new(open), _kafka: None })
}

async fn kafka(test: &str) -> Option<Bench> {
    let broker = event_log::broker(test).await?;
    let publisher = Publisher::start().await;
    let kafka = KafkaBench::start(broker, &publisher).await;
    let opener = kafka.opener();
    Some(Bench { publisher, open: Box::new(move || Arc::new(opener())), _kafka: Some(kafka) })
}

/// The contract: each promise once for each implementation.
macro_rules! contract {
    ($($(#[$doc:meta])* async fn $promise:ident($bench:ident: Bench) $body:block)*) => {
        mod promises {
            use super::*;
            $($(#[$doc])* pub(super) async fn $promise($bench: Bench) $body)*
        }
        contract!(@of embedded: $($promise)*);
        contract!(@of kafka: $($promise)*);
    };
    (@of $log:ident: $($promise:ident)*) => {
        mod $log {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $promise() {
                    if let Some(bench) = super::$log(stringify!($promise)).await {
                        super::promises::$promise(bench).await;
                    }
                }
            )*
        }
    };
}

contract! {
    async fn every_record_comes_once_and_in_order(bench: Bench) {
        bench.publisher.publish(100).await;
        let mut follower = Follower::of((bench.open)());
        follower.catch_up(&bench.publisher).await;
        assert_eq!(follower.read, bench.publisher.outbox().await);
    }

    async fn a_fetch_repeated_from_the_same_position_gives_the_same(bench: Bench) {
        let (shard, _) = bench.publisher.publish_one().await;
        let log = (bench.open)();
        let first = seqs(&*log, shard, 0).await;
        assert!(!first.is_empty());
        assert_eq!(seqs(&*log, shard, 0).await, first);
    }

    async fn a_reader_that_goes_back_gets_everything_again(bench: Bench) {
        bench.publisher.publish(100).await;
        let mut follower = Follower::of((bench.open)());
        follower.catch_up(&bench.publisher).await;
        let first = std::mem::take(&mut follower.read);
        follower.rewind();
        follower.catch_up(&bench.publisher).await;
        assert_eq!(follower.read, first);
    }

    async fn a_reader_that_starts_anew_goes_on_from_its_position(bench: Bench) {
        bench.publisher.publish(50).await;
        let mut follower = Follower::of((bench.open)());
        follower.catch_up(&bench.publisher).await;
        bench.publisher.publish(50).await;
        follower.log = (bench.open)();
        follower.catch_up(&bench.publisher).await;
        assert_eq!(follower.read, bench.publisher.outbox().await);
    }

    async fn a_wait_ends_with_the_first_news(bench: Bench) {
        let mut follower = Follower::of((bench.open)());
        follower.catch_up(&bench.publisher).await;
        let wait = follower.fetch(Duration::from_secs(30));
        let ((fetched, waited), (shard, seq)) = tokio::join!(wait, bench.publisher.publish_one());
        assert_eq!(fetched.iter().map(|fetched| (fetched.shard, fetched.records[0].seq)).collect::<Vec<_>>(), [(shard, seq)]);
        assert!(waited < Duration::from_secs(10), "{waited:?}");
    }

    async fn a_wait_without_news_ends_with_nothing(bench: Bench) {
        let mut follower = Follower::of((bench.open)());
        follower.catch_up(&bench.publisher).await;
        let (fetched, waited) = follower.fetch(Duration::from_millis(200)).await;
        assert_eq!(fetched, []);
        assert!(waited >= Duration::from_millis(200), "{waited:?}");
    }

    async fn a_small_appetite_still_gets_a_record(bench: Bench) {
        let (shard, seq) = bench.publisher.publish_one().await;
        let log = (bench.open)();
        let fetched = log.fetch(event_log::TOPIC, &[(shard, seq - 1)], 1, Duration::from_secs(10)).await.unwrap();
        assert_eq!(fetched[0].records.len(), 1);
    }
}
