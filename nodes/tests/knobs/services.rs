//! What a node takes for its services: addresses, databases, connections and memory.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures_util::{StreamExt, future::join_all, stream};
use rookery::migrate::Database;
use tokio::task::{JoinSet, spawn_blocking};
use uuid::Uuid;

use crate::{
    lab::{
        Held, Lab, Node,
        Who::{self, Member, Plain, Small, Up},
        eventually, text,
    },
    process,
};

/// Longer than it takes to begin what is not held back.
const A_MOMENT: Duration = Duration::from_millis(300);

pub(crate) async fn shards(lab: &Lab) {
    for (who, shards) in [(Plain, 256), (Member, 8)] {
        assert_eq!(count(lab.of(who), Database::Posts, "SELECT count(*) FROM shard").await, shards);
    }
}

pub(crate) async fn search_partitions(lab: &Lab) {
    for (who, partitions) in [(Plain, 4), (Member, 6)] {
        assert_eq!(count(lab.of(who), Database::Search, "SELECT count(*) FROM shard").await, partitions);
        let indexes = std::fs::read_dir(lab.of(who).data.join("search")).unwrap().count();
        assert_eq!(i64::try_from(indexes).unwrap(), partitions, "the indexes of {who:?}");
    }
}

pub(crate) async fn listen(lab: &Lab, service: Database) {
    let host = match service {
        Database::Users => "127.0.0.2",
        Database::Comments => "127.0.0.3",
        Database::Posts => "127.0.0.4",
        Database::Search => "127.0.0.5",
    };
    for (who, host) in [(Plain, "127.0.0.1"), (Member, host)] {
        let node = lab.of(who);
        let address = node.running.greeted(&format!(" {service} ")).unwrap();
        assert_eq!(address.split(':').next(), Some(host), "{}", node.running.greeting);
        assert_eq!(node.running.get(&format!("http://{address}/livez")).await.0, 200);
        assert_eq!(node.running.get(&format!("http://{address}/api/v1/posts")).await.0, 404, "health only");
    }
}

pub(crate) async fn database_url(lab: &Lab, service: Database) {
    let members = "SELECT count(*) FROM member WHERE state = 'live' AND node = 'n1'";
    assert_eq!(count(lab.of(Plain), service, members).await, 1, "it is a member where the URL leads");
    assert!(!lab.of(Plain).data.join("postgres").exists(), "and needs no Postgres of its own");
    let sockets = std::fs::read_to_string(lab.of(Up).data.join("postgres.runtime")).unwrap();
    let own = format!("host={} user=rookery dbname={service}", sockets.trim());
    let (client, connection) = tokio_postgres::connect(&own, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(client.query_one(members, &[]).await.unwrap().get::<_, i64>(0), 1, "the embedded Postgres");
}

pub(crate) async fn loads_max(lab: &Lab, service: Database) {
    let most = match service {
        Database::Users => 1,
        Database::Comments => 2,
        Database::Posts => 3,
        Database::Search => {
            assert_eq!((lab.index_reads[&Plain], lab.index_reads[&Member]), (4, 3), "of four indexes and of six");
            return;
        }
    };
    all_load(lab.of(Plain), service, most + 1).await;
    no_more_load(lab.of(Member), service, most).await;
}

pub(crate) async fn pool_max(lab: &Lab, service: Database) {
    let most = match service {
        Database::Users | Database::Posts => 2,
        Database::Comments => 3,
        Database::Search => {
            assert_eq!((lab.index_reads[&Plain], lab.index_reads[&Small]), (4, 2), "of four indexes each");
            return;
        }
    };
    all_load(lab.of(Plain), service, most + 1).await;
    no_more_load(lab.of(Small), service, most).await;
}

pub(crate) async fn commands_max(lab: &Lab) {
    let most = "SELECT COALESCE(max(n), 0) FROM (SELECT count(*) AS n FROM outbox WHERE type = 'post.created' GROUP BY batch) b";
    for (who, wanted) in [(Plain, 6..=512), (Member, 5..=5)] {
        let node = lab.of(who);
        let token = token(node, "committer").await;
        eventually("what waits is committed together", async || {
            publish_together(node, &token, "short").await;
            let found = count(node, Database::Posts, most).await;
            assert!(found <= *wanted.end(), "{found} commands in one commit of {who:?}");
            wanted.contains(&found)
        })
        .await;
    }
}

pub(crate) async fn bytes_max(lab: &Lab) {
    let most = "SELECT COALESCE(max(n), 0)::int8 FROM (SELECT sum(octet_length(payload)) AS n FROM outbox
                WHERE type = 'post.created' AND octet_length(payload) > 100000 GROUP BY batch) b";
    let largest = "\u{1F426}".repeat(40_000);
    for (who, wanted) in [(Plain, 1 << 20..=4 << 20), (Member, 1..=1 << 20)] {
        let node = lab.of(who);
        let token = token(node, "bytes").await;
        eventually("what waits is committed together", async || {
            publish_together(node, &token, &largest).await;
            let found = count(node, Database::Posts, most).await;
            assert!(found <= *wanted.end(), "{found} bytes in one commit of {who:?}");
            wanted.contains(&found)
        })
        .await;
    }
    let members = "SELECT max(n) FROM (SELECT count(*) AS n FROM outbox
                   WHERE type = 'post.created' AND octet_length(payload) > 100000 GROUP BY batch) b";
    let members = count(lab.of(Member), Database::Posts, members).await;
    assert!((1..5).contains(&members), "the bytes end a commit before the commands do: {members}");
}

pub(crate) async fn cache_bytes(lab: &Lab, service: Database) {
    let bytes = |who: Who| lab.of(who).status()["services"][service.name()]["bytes"].as_u64().unwrap();
    for who in [Plain, Member] {
        let node = lab.of(who);
        let read = async |path: String| assert_eq!(node.get(&path).await.status, 200, "{path}");
        let paths = fill(node, service).await;
        stream::iter(paths).for_each_concurrent(8, read).await;
    }
    assert!(bytes(Plain) > 1 << 20, "all that was read is kept: {} bytes", bytes(Plain));
    eventually("the longest unused is gone", async || bytes(Member) <= 1 << 20).await;
}

/// An index takes its documents in by pages; a page is all that is on its way into it.
pub(crate) async fn search_cache_bytes(lab: &Lab) {
    // Documents that are stored together, and so are in one page, are a mebibyte about.
    let together = 1_300_000;
    let reindex = async |who| {
        // With the largest posts of others enough for more than that in one of four indexes.
        for _ in 0..2 {
            fill(lab.of(who), Database::Posts).await;
        }
        let data = lab.of(who).data.clone();
        let output = spawn_blocking(move || process::run(&["reindex"], &data)).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        lab.of(who).metric("rookery_search_page_bytes", "quantile=\"1\"").await as u64
    };
    let (plain, member) = tokio::join!(reindex(Plain), reindex(Member));
    assert!(plain > together, "as much as there is: {plain} bytes");
    assert!((1..together).contains(&member), "no more than its share, or what was stored together: {member} bytes");
}

pub(crate) async fn passivate_after(lab: &Lab) {
    let loaded = |who: Who, service: &str| lab.of(who).status()["services"][service]["entities"].as_u64().unwrap();
    for who in [Plain, Small] {
        let token = token(lab.of(who), "idle").await;
        lab.of(who).publish(&token, "soon forgotten").await;
    }
    for service in ["users", "posts"] {
        eventually("what is idle has gone", async || loaded(Small, service) == 0).await;
        assert!(loaded(Plain, service) > 0, "{service} stay for five minutes");
    }
}

/// Things that are asked for while the database lets none of them be loaded.
struct Loading<'a> {
    node: &'a Node,
    service: Database,
    held: Held,
    paths: Vec<String>,
    asked: JoinSet<()>,
}

impl<'a> Loading<'a> {
    /// Begins with so many that were never asked for.
    async fn of(node: &'a Node, service: Database, count: usize) -> Self {
        let paths = unseen(node, service, count).await;
        let table = match service {
            Database::Users => "session",
            Database::Posts => "post_counter",
            Database::Comments | Database::Search => "closed_thread",
        };
        Self { node, service, held: node.hold(service, table).await, paths, asked: JoinSet::new() }
    }

    /// How many statements load.
    async fn statements(&self) -> usize {
        let begins = match self.service {
            Database::Users => "SELECT user_id, id, refresh_hash",
            Database::Posts => "SELECT p.id, p.author",
            Database::Comments | Database::Search => "SELECT post, NULL::uuid",
        };
        usize::try_from(self.node.held_up(self.service, begins).await).unwrap()
    }

    fn ask(&mut self) {
        let url = self.node.url(&self.paths.pop().expect("there are enough"));
        self.asked.spawn(async move { drop(reqwest::get(url).await) });
    }

    /// Asks one after the other: those that come while others load would share the next statement.
    async fn ask_until(&mut self, loading: usize) {
        for wanted in 1..=loading {
            self.ask();
            let what = format!("{wanted} {} load at a time", self.service);
            eventually(&what, async || self.statements().await >= wanted).await;
        }
    }

    async fn end(self) {
        self.held.release().await;
        self.asked.join_all().await;
    }
}

async fn all_load(node: &Node, service: Database, count: usize) {
    let mut loading = Loading::of(node, service, count).await;
    loading.ask_until(count).await;
    loading.end().await;
}

async fn no_more_load(node: &Node, service: Database, most: usize) {
    let mut loading = Loading::of(node, service, most + 1).await;
    loading.ask_until(most).await;
    loading.ask();
    tokio::time::sleep(A_MOMENT).await;
    let found = loading.statements().await;
    loading.end().await;
    assert_eq!(found, most, "{service} that load at a time");
}

/// Where things are read that are in the database and not in memory.
async fn unseen(node: &Node, service: Database, count: usize) -> Vec<String> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let mut paths = Vec::new();
    for _ in 0..count {
        paths.push(match service {
            Database::Users => {
                let name = format!("unseen_{}", MADE.fetch_add(1, Ordering::Relaxed));
                let make = "INSERT INTO app_user (id, username, display_name, bio, roles, version, created_at, updated_at)
                            VALUES (gen_random_uuid(), $1, '', '', '{}', 1, now(), now())";
                node.sql(service).await.execute(make, &[&name]).await.unwrap();
                format!("/api/v1/users/{name}")
            }
            Database::Posts => format!("/api/v1/posts/{}", Uuid::new_v4()),
            Database::Comments | Database::Search => {
                let make = "INSERT INTO post (id, author, title, body, tags, created_at, updated_at, version, like_count, hot)
                            VALUES (gen_random_uuid(), gen_random_uuid(), '', '', '{}', now(), now(), 1, 0, 0) RETURNING id";
                let row = node.sql(Database::Posts).await.query_one(make, &[]).await.unwrap();
                format!("/api/v1/posts/{}/comments", row.get::<_, Uuid>(0))
            }
        });
    }
    paths
}

/// Publishes a dozen posts of which the first waits for its commit until the others have come.
async fn publish_together(node: &Node, token: &str, body: &str) {
    let held = node.hold(Database::Posts, "post").await;
    let publishing = join_all((0..12).map(|_| node.publish(token, body)));
    let release = async {
        eventually("the first one waits", async || node.held_up(Database::Posts, "").await > 0).await;
        tokio::time::sleep(A_MOMENT).await;
        held.release().await;
    };
    tokio::join!(publishing, release);
}

async fn token(node: &Node, name: &str) -> String {
    text(&node.register(name).await["access_token"])
}

async fn count(node: &Node, database: Database, sql: &str) -> i64 {
    node.sql(database).await.query_one(sql, &[]).await.unwrap().get(0)
}

/// Stores more than a mebibyte of a service that its node has not seen: where it is read.
async fn fill(node: &Node, service: Database) -> Vec<String> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let post = |body: &str| {
        format!(
            "INSERT INTO post (id, author, title, body, tags, created_at, updated_at, version, like_count, hot)
             SELECT gen_random_uuid(), gen_random_uuid(), 'full', {body}, '{{}}', now(), now(), 1, 0, 0
             FROM generate_series(1, 10) RETURNING id::text"
        )
    };
    let make = match service {
        Database::Users => format!(
            "INSERT INTO app_user (id, username, display_name, bio, roles, version, created_at, updated_at)
             SELECT gen_random_uuid(), 'full_{}_' || n, '', repeat('\u{1F426}', 500), '{{}}', 1, now(), now()
             FROM generate_series(1, 300) n RETURNING username",
            MADE.fetch_add(1, Ordering::Relaxed)
        ),
        Database::Posts => post("repeat('\u{1F426}', 40000)"),
        Database::Comments | Database::Search => post("''"),
    };
    let client = node.sql(if service == Database::Comments { Database::Posts } else { service }).await;
    let made: Vec<String> = client.query(&make, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    if service == Database::Comments {
        let comments = "INSERT INTO comment (post, id, depth, author, body, created_at, updated_at, version, like_count)
                        SELECT post::uuid, gen_random_uuid(), 0, gen_random_uuid(), 'full', now(), now(), 1, 0
                        FROM unnest($1::text[]) post, generate_series(1, 2000)";
        node.sql(service).await.execute(comments, &[&made]).await.unwrap();
    }
    let path = |made: String| match service {
        Database::Users => format!("/api/v1/users/{made}"),
        Database::Posts => format!("/api/v1/posts/{made}"),
        Database::Comments | Database::Search => format!("/api/v1/posts/{made}/comments?limit=1"),
    };
    made.into_iter().map(path).collect()
}
