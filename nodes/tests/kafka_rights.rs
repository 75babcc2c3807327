//! A node whose Kafka user may do no more than it needs, on a broker with an authorizer of its own: in a process of its own, for
//! a broker takes the turn of its process for as long as that lives.

mod event_log;

use std::time::Duration;

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
};
use rookery::{
    config::{self, Config},
    kafka::topics,
    node::Node,
    testing::{ADMINISTRATOR, TestKafka, eventually},
};
use rookery_actors::{
    event::Topic,
    ids::UserId,
    posts::{
        Draft,
        rules::{Body, Tags, Title},
    },
    runtime::Context,
};
use uuid::Uuid;

use self::event_log::{PARTITIONS, TOPIC, client};

const A_LONG_TIME: Duration = Duration::from_secs(60);

/// What the user of a node needs, and no more: topics that somebody else has made, and the right to describe, read and write
/// them. What was broken: without the right to create topics no relay started if one was missing, and nobody said so.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_may_create_no_topics_publishes_to_those_that_are_there_and_names_those_that_are_not() {
    let test = "a_node_that_may_create_no_topics_publishes_to_those_that_are_there_and_names_those_that_are_not";
    let Some(broker) = tokio::task::block_in_place(|| TestKafka::start_guarded_or_skip(test)) else {
        return;
    };
    let administrator = broker.config_of(ADMINISTRATOR, PARTITIONS);
    let letters = Topic::ALL.map(topics::dead_letters);
    let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
    let [users, comments] = [Topic::Users, Topic::Comments].map(Topic::kafka_name);
    make(&administrator, &[users, comments]).await;
    let rights = ["Describe", "Read", "Write"];
    tokio::task::block_in_place(|| broker.allow(&rights, &[users, comments]));

    let folder = tempfile::tempdir().unwrap();
    let mut config = Config { data_dir: folder.path().to_owned(), kafka: broker.config(PARTITIONS), ..Config::default() };
    let free = "127.0.0.1:0".parse().unwrap();
    let services = &mut config.services;
    config.gateway.listen = free;
    for service in [&mut services.users, &mut services.posts, &mut services.comments, &mut services.search] {
        service.listen = free;
    }
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    let node = Node::start(config, metrics).await.unwrap_or_else(|error| panic!("{error:#}"));
    let probe = async || {
        let answer = reqwest::get(format!("http://{}/readyz?verbose", node.gateway.unwrap())).await.unwrap();
        let (status, told) = (answer.status(), answer.text().await.unwrap());
        assert_eq!(status, 200, "{told}");
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        told["probes"]["kafka"].clone()
    };
    // Which topics it misses: in a list, so that each but the last is followed by a comma.
    let misses = async |topics: &[&str]| {
        let probe = probe().await;
        let detail = probe["detail"].as_str().unwrap_or_default().replace(" are missing", ", are missing");
        let named = [&[TOPIC.kafka_name()][..], &letters].concat();
        probe["status"] == "degraded"
            && detail.contains("make them beforehand with 3 partitions")
            && named.iter().all(|topic| topics.contains(topic) == detail.contains(&format!("{topic},")))
    };
    let missing = [&[TOPIC.kafka_name()][..], &letters].concat();
    eventually(A_LONG_TIME, "it says which topics are missing", async || misses(&missing).await).await;
    eventually(A_LONG_TIME, "what has its topic is published", async || {
        node.faces.users.runtime().oldest_unrelayed().await.unwrap().is_none()
    })
    .await;

    // The administrator hears of it.
    let draft = Draft {
        author: UserId(Uuid::from_u128(1)),
        title: Title::parse("Least privilege").unwrap(),
        body: Body::parse("It is enough.").unwrap(),
        tags: Tags::default(),
        at: jiff::Timestamp::now(),
    };
    node.faces.posts.publish(draft, Context::within(A_LONG_TIME)).await.unwrap();
    make(&administrator, &[TOPIC.kafka_name()]).await;
    tokio::task::block_in_place(|| broker.allow(&rights, &[TOPIC.kafka_name()]));
    eventually(A_LONG_TIME, "the post is published", async || {
        records(&administrator, TOPIC.kafka_name()) > 0 && node.faces.posts.runtime().oldest_unrelayed().await.unwrap().is_none()
    })
    .await;
    eventually(A_LONG_TIME, "those of dead letters alone are missing", async || misses(&letters).await).await;
    make(&administrator, &letters).await;
    tokio::task::block_in_place(|| broker.allow(&["Describe", "Write"], &letters));
    eventually(A_LONG_TIME, "nothing is missing any more", async || probe().await["status"] == "ok").await;
    node.stop().await;
}

/// Topics as an administrator makes them.
async fn make(administrator: &config::Kafka, names: &[&str]) {
    let admin: AdminClient<DefaultClientContext> = client(administrator).create().unwrap();
    let topics: Vec<NewTopic<'_>> =
        names.iter().map(|name| NewTopic::new(name, i32::from(PARTITIONS), TopicReplication::Fixed(1))).collect();
    for made in admin.create_topics(&topics, &AdminOptions::new()).await.unwrap() {
        made.unwrap();
    }
}

/// How many records were ever appended to a topic.
fn records(administrator: &config::Kafka, topic: &str) -> i64 {
    let consumer: BaseConsumer = client(administrator).set("group.id", "stranger").create().unwrap();
    let end = |partition| consumer.fetch_watermarks(topic, partition, A_LONG_TIME).unwrap().1;
    tokio::task::block_in_place(|| (0..i32::from(PARTITIONS)).map(end).sum())
}
