//! An index whose partitions lie on several nodes.

use std::time::Duration;

use jiff::Timestamp;
use rookery::{migrate::Database, testing::TestPostgres};
use rookery_actors::{
    event::Topic,
    ids::{ShardId, mint, shard_of},
    search::{
        DOCUMENTS_AFTER, SearchRequest, SearchToken,
        index::{Document, Kind, Query, Search},
    },
};
use tokio_postgres::NoTls;

use super::support::*;

pub(crate) fn document(body: &str) -> Document {
    Document {
        kind: Kind::Post,
        id: mint(Timestamp::now(), PARTITIONS, None),
        version: 1,
        author: None,
        tags: Vec::new(),
        title: None,
        body: body.to_owned(),
        created_at: Timestamp::now(),
        post_id: None,
        deleted: false,
    }
}

fn for_words(words: &str) -> Search {
    Search { query: Query::parse(words).unwrap(), ..Search::default() }
}

/// How many documents a node finds; none: not all partitions answered.
async fn found(node: &Node, words: &str) -> Option<u64> {
    let found = node.search().search(for_words(words), deadline()).await.ok()?;
    (!found.partial).then_some(found.hits.total)
}

/// How many nodes have a replica of each partition.
fn copies(world: &World) -> Vec<usize> {
    let has = |node: &&Node, partition| node.search().replicas().contains(&(ShardId(partition), true));
    (0..PARTITIONS).map(|partition| world.nodes.iter().filter(|node| has(node, partition)).count()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_finds_what_lies_elsewhere() {
    let world = World::with_search(4).await;
    eventually("every partition has two replicas", async || copies(&world).iter().all(|copies| *copies == 2)).await;
    let documents: Vec<_> = (0..40).map(|_| document("it weaves algebraic patterns")).collect();
    world.nodes[0].search().put(documents).await.unwrap();
    for node in &world.nodes {
        eventually("nobody has everything", async || node.search().replicas().len() < usize::from(PARTITIONS)).await;
        eventually("everything is found", async || found(node, "weaving").await == Some(40)).await;
        eventually("and counted", async || node.search().document_count(deadline()).await == 40).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_builds_its_replicas_while_the_others_serve() {
    let mut world = World::with_search(2).await;
    world.nodes[0].search().put((0..40).map(|_| document("it weaves")).collect()).await.unwrap();
    for node in &world.nodes {
        eventually("everything is found", async || found(node, "weaves").await == Some(40)).await;
    }
    world.join(2).await;
    eventually("every partition has two replicas, not all where they were", async || {
        for node in &world.nodes[..2] {
            assert_eq!(found(node, "weaves").await, Some(40));
        }
        copies(&world).iter().all(|copies| *copies == 2) && !world.nodes[2].search().replicas().is_empty()
    })
    .await;
    for node in &world.nodes {
        eventually("everything is found", async || found(node, "weaves").await == Some(40)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_goes_leaves_a_replica_of_everything() {
    let world = World::with_search(3).await;
    eventually("every partition has two replicas", async || copies(&world).iter().all(|copies| *copies == 2)).await;
    world.nodes[0].search().put((0..40).map(|_| document("it weaves")).collect()).await.unwrap();
    eventually("everything is found", async || found(&world.nodes[0], "weaves").await == Some(40)).await;
    eventually("also by the others", async || found(&world.nodes[1], "weaves").await == Some(40)).await;
    world.network.cut_off("n3", true);
    assert_eq!(found(&world.nodes[0], "weaves").await, Some(40));
    assert_eq!(found(&world.nodes[1], "weaves").await, Some(40));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_waits_for_its_token_at_the_replica_that_answers() {
    let world = World::with_search(4).await;
    let mut bridges = Vec::new();
    for node in &world.nodes {
        bridges.push(node.bridge(Topic::Posts, node.posts.runtime(), node.search().runtime()));
    }
    eventually("every partition has two replicas", async || copies(&world).iter().all(|copies| *copies == 2)).await;
    for n in 0..8_u64 {
        let node = &world.nodes[n as usize % 4];
        let accepted = node.posts.publish(draft("On the Analytical Engine"), soon()).await.unwrap();
        let key = accepted.reply.post.unwrap().id.0;
        let token = SearchToken { topic: Topic::Posts, shard: accepted.shard, seq: accepted.seq, key };
        let asker = &world.nodes[(n as usize + 1) % 4];
        let search = Search { limit: 50, ..for_words("engine") };
        let found = asker
            .search()
            .search(SearchRequest { after: Some((token, Duration::from_secs(10))), ..search.into() }, deadline())
            .await
            .unwrap();
        assert!(found.hits.items.iter().any(|hit| hit.id == key), "{n}: {found:?}");
    }
    bridges.iter().for_each(|bridge| bridge.stop());
}

fn indexed(world: &World) -> u64 {
    world.nodes.iter().map(|node| node.search().indexed()).sum()
}

/// Stores so many documents and waits until both of two nodes find all that were stored so far; how often one was indexed.
async fn put_and_find(world: &World, count: u64, stored: &mut u64) -> u64 {
    let before = indexed(world);
    world.nodes[0].search().put((0..count).map(|_| document("it weaves")).collect()).await.unwrap();
    *stored += count;
    for node in &world.nodes {
        eventually("everything is found", async || found(node, "weaves").await == Some(*stored)).await;
    }
    indexed(world) - before
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_replicas_one_indexes_and_the_other_copies() {
    let world = World::with_search(2).await;
    let mut stored = 0;
    // Until both have heard of each other both index.
    eventually("each is indexed once", async || put_and_find(&world, 40, &mut stored).await == 40).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_other_replica_is_gone_indexes_by_itself_and_copies_again_when_it_is_back() {
    let world = World::with_search(2).await;
    let mut stored = 0;
    put_and_find(&world, 40, &mut stored).await;
    for (gone, left) in [("n1", &world.nodes[1]), ("n2", &world.nodes[0])] {
        eventually("both have everything", async || copies(&world).iter().all(|copies| *copies == 2)).await;
        world.network.cut_off(gone, true);
        // Of shards that are served where the others cannot be asked.
        let served = |document: &Document| left.search().runtime().head(shard_of(document.id, PARTITIONS)).is_some();
        let documents: Vec<_> = (0..40).map(|_| document("it weaves")).filter(served).collect();
        stored += documents.len() as u64;
        left.search().put(documents).await.unwrap();
        eventually("it goes on", async || found(left, "weaves").await == Some(stored)).await;
        world.network.cut_off(gone, false);
    }
    put_and_find(&world, 40, &mut stored).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_builds_the_indexes_of_all_nodes() {
    let world = World::with_search(3).await;
    world.nodes[0].search().put((0..20).map(|_| document("it weaves")).collect()).await.unwrap();
    world.nodes[1].search().rebuild(Duration::from_secs(10)).await.unwrap();
    for node in &world.nodes {
        eventually("everything is found", async || found(node, "weaves").await == Some(20)).await;
    }
}

/// What was broken: with every commit of an index that had a comment, Postgres read all documents there are and hashed those
/// of deleted posts, for seconds.
#[tokio::test]
async fn an_index_reads_what_is_new_by_its_key_however_many_documents_there_are() {
    let config = TestPostgres::shared().fresh_database(Database::Search).await;
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    // A post and its comment with each record; every tenth post is gone.
    let fill = "INSERT INTO documents (shard, seq, type, id, version, doc)
                SELECT n % 4, n / 4, kind, md5(kind || n)::uuid, 1, json_build_object(
                    'post_id', CASE kind WHEN 'comment' THEN md5('post' || n)::uuid END,
                    'deleted', kind = 'post' AND n % 10 = 0)
                FROM generate_series(0, 19999) n, unnest(ARRAY['post', 'comment']) kind";
    client.execute(fill, &[]).await.unwrap();
    let (shard, applied, at_most) = (0_i16, 4_990_i64, 5_000_i64);
    for analyzed in [false, true] {
        if analyzed {
            client.execute("ANALYZE documents", &[]).await.unwrap();
        }
        let plan = client.query(&format!("EXPLAIN {DOCUMENTS_AFTER}"), &[&shard, &applied, &at_most]).await.unwrap();
        let plan = plan.iter().map(|row| row.get::<_, &str>(0)).collect::<Vec<_>>().join("\n");
        assert!(!plan.contains("Seq Scan") && !plan.contains("hashed"), "analyzed: {analyzed}\n{plan}");
        // Nine records, and the comment of the one post that is gone is not read.
        assert_eq!(client.query(DOCUMENTS_AFTER, &[&shard, &applied, &at_most]).await.unwrap().len(), 17);
    }
}
