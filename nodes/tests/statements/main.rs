//! No statement of the product reads more because a table has grown.
//!
//! A whole node works on databases that were filled by SQL, small ones and then larger ones, and does everything that it can do.
//! Postgres itself notes what each statement came upon (`auto_explain`): rows visited, those that a filter threw away included,
//! and blocks. What grows with the tables is refused, and so is a statement in the sources that nothing here has carried out.
//!
//! CI does a small part of it. With a million rows in each table:
//! `ROOKERY_SCALE=full cargo test --release -p rookery --test statements -- --nocapture`

mod fill;
mod plans;
mod sources;
mod work;

use std::collections::BTreeMap;

use rookery::{
    config::Config,
    migrate::Database,
    node::Node,
    testing::{TestPostgres, Turn},
};

use self::plans::Visit;

/// What may visit more rows in larger tables, how many at most, and why.
const ALLOWED: &[(&str, u64, &str)] = &[
    (
        "FROM documents WHERE shard = $1 AND seq > $2 ORDER BY seq LIMIT",
        12_000,
        "a page of an index that is built, 5,000 documents",
    ),
    ("WITH t0 AS (INSERT INTO inbox", 2_000, "what came by events while a batch was under way, by its keys"),
    ("UPDATE ranked_tag r SET like_count", 5_000, "the tags of the posts that a batch changes, by their keys"),
    ("DELETE FROM tag_change", 60_000, "adds up 10,000 notes of batches at most, and leaves none"),
    (
        "NULL::uuid, NULL::uuid, 0::int8, 0::int8, true FROM closed_thread",
        60_000,
        "whole threads, as many as are loaded together",
    ),
    ("SELECT seq, doc FROM documents d", 40_000, "the same page: 5,000 documents, and the post of each comment among them"),
];

/// What no work of one node without Kafka carries out, and why it reads little all the same.
const NOT_DONE: &[(&str, &str)] = &[
    ("FROM consumer WHERE name = $1 AND shard = ANY($2) AND hint", "Kafka: by the key of a consumer's shards"),
    ("UPDATE consumer c SET hint", "Kafka: by the key of a consumer's shards"),
    ("SELECT shard, seq FROM relayed", "Kafka: by the shard"),
    ("UPDATE relayed SET seq = 0", "Kafka: a row for each shard, when a topic was lost"),
    ("WITH step AS", "Kafka: by the shard"),
    ("UPDATE dead_letter", "Kafka: letters are few, each is an alarm"),
    ("FROM dead_letter WHERE NOT relayed", "Kafka: letters are few, each is an alarm"),
    ("FROM dead_letter WHERE shard = $1 AND source = $2 AND seq = $3", "a letter by its key, when it is replayed"),
    ("INSERT INTO dead_letter", "by its key, when a record cannot be applied"),
    ("DELETE FROM dead_letter d USING", "letters are few, each is an alarm"),
    ("DELETE FROM documents d USING", "a rebuild: all that a shard has of a kind, once"),
    ("SELECT id, version, username, display_name, avatar_url, deleted FROM", "a rebuild, by keys"),
    ("DELETE FROM rebuild b USING", "by the shard, when it was made anew"),
    ("FROM UNNEST($1::uuid[], $2::uuid[]) AS r(post, id) JOIN comment c", "an import: by keys"),
    ("SELECT id FROM deleted_comment WHERE id = ANY", "an import: by keys"),
    ("SELECT id FROM author WHERE id = ANY($1) AND deleted", "by keys, when a name is learnt"),
    ("UPDATE signing_key", "keys are few"),
    ("INSERT INTO signing_key", "keys are few"),
    ("UPDATE node SET state", "a row for each node"),
    ("UPDATE setting SET value", "settings are few"),
    ("SELECT value FROM setting WHERE name = $1", "by its key, for a command"),
    ("SELECT node FROM member WHERE state <> 'dead' AND lease_ms IS NULL", "members who live are few, for a command"),
    ("UPDATE member SET state", "by its key, when somebody leaves or is found dead"),
    ("UPDATE shard SET target", "by the shard, when it is handed over"),
    ("SELECT s.id, l.seq, s.epoch", "a look at the end of some shards' logs, when they were handed over"),
    ("SELECT id, epoch FROM shard WHERE id = ANY($1) AND owner = $2", "by the shard, when a commit is in doubt"),
    ("SELECT 1 FROM outbox WHERE shard = $1 AND seq = $2 AND batch = $3", "by its key, when a commit is in doubt"),
    ("SELECT pg_terminate_backend", "sessions of a server"),
    ("SELECT count(*)", "sessions of a server, and letters, which are few"),
    ("SELECT pg_advisory", "no table"),
    ("SELECT pg_try_advisory", "no table"),
    ("SELECT a.pid, COALESCE(a.application_name", "sessions of a server, while another process migrates"),
    ("SELECT datname", "databases are few"),
    ("SELECT pg_backend_pid", "no table"),
];

/// Rows in the larger tables; the smaller ones have a fifth.
fn rows() -> i64 {
    if std::env::var("ROOKERY_SCALE").is_ok_and(|scale| scale == "full") { 1_000_000 } else { 40_000 }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_statement_reads_more_because_a_table_has_grown() {
    let _turn = Turn::wait(2);
    if !plans::are_told().await {
        println!("this Postgres comes without auto_explain: nothing is looked at");
        return;
    }
    let small = visits(rows() / 5).await;
    let large = visits(rows()).await;
    println!("{} statements were carried out", large.len());

    let mut complaints = Vec::new();
    for (statement, after) in &large {
        let Some(before) = small.get(statement).map(|visit| visit.rows) else { continue };
        let allowed = ALLOWED.iter().any(|(part, at_most, _)| statement.contains(part) && after.rows <= *at_most);
        if after.rows > 2 * before + 100 && !allowed {
            complaints.push(format!("{before} rows and blocks, then {}:\n{statement}\n{}", after.rows, after.plan));
        }
    }
    let grown = complaints.len();
    let carried_out: Vec<&str> = large.keys().map(String::as_str).collect();
    for (file, begin) in sources::statements() {
        let is_done = carried_out.iter().any(|text| text.contains(&begin));
        if !is_done && !NOT_DONE.iter().any(|(part, _)| begin.contains(part)) {
            complaints.push(format!("not carried out, {file}: {begin}"));
        }
    }
    let rest = complaints.len() - grown;
    assert!(
        complaints.is_empty(),
        "{grown} statements read more in larger tables, {rest} were not carried out\n\n{}",
        complaints.join("\n")
    );
}

/// What each statement of a node came upon at most, in tables of so many rows.
async fn visits(rows: i64) -> BTreeMap<String, Visit> {
    let postgres = TestPostgres::shared();
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config { data_dir: folder.path().to_owned(), ..Config::default() };
    let free = "127.0.0.1:0".parse().unwrap();
    config.gateway.listen = free;
    for database in Database::ALL {
        let of = postgres.fresh_database(database).await;
        fill::fill(&of, database, rows).await;
        plans::tell(&of).await;
        let service = match database {
            Database::Users => &mut config.services.users,
            Database::Posts => &mut config.services.posts,
            Database::Comments => &mut config.services.comments,
            Database::Search => &mut config.services.search,
        };
        service.listen = free;
        let url = postgres.server().url(of.get_dbname().expect("it has a name"));
        service.database_url = Some(url.parse().unwrap_or_else(|_| panic!("it is a URL")));
    }
    let log = plans::Log::begin().await;
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    let node = Node::start(config, metrics).await.unwrap_or_else(|error| panic!("{error:#}"));
    work::everything(&node, rows).await;
    node.stop().await;
    log.visits()
}
