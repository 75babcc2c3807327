//! Databases full of rows, as after years of use: what is looked for is spread among what is not.

use rookery::migrate::Database;
use tokio_postgres::Config;
use uuid::Uuid;

use crate::plans::connect;

/// Shards of a service, and of search.
const SHARDS: i64 = 256;
const PARTITIONS: i64 = 4;

/// Records of a shard that are old enough to go; the others are young.
const OLD_RECORDS: i64 = 20;

/// A user, a post or a comment by its number.
pub(crate) fn user(n: i64) -> Uuid {
    Uuid::from_u128(0x0170_0000_0000_7000_8000_0000_0000_0000 + n as u128)
}

pub(crate) fn post(n: i64) -> Uuid {
    Uuid::from_u128(0x0180_0000_0000_7000_8000_0000_0000_0000 + n as u128)
}

pub(crate) fn comment(n: i64) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + n as u128)
}

/// The same in SQL.
const IDS: &str = "
    CREATE FUNCTION pg_temp.usr(n int8) RETURNS uuid LANGUAGE sql IMMUTABLE AS
        $$ SELECT ('01700000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid $$;
    CREATE FUNCTION pg_temp.pst(n int8) RETURNS uuid LANGUAGE sql IMMUTABLE AS
        $$ SELECT ('01800000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid $$;
    CREATE FUNCTION pg_temp.cmt(n int8) RETURNS uuid LANGUAGE sql IMMUTABLE AS
        $$ SELECT ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid $$;";

/// Fills a database with so many rows of each kind. The first user writes, likes and is followed most.
pub(crate) async fn fill(config: &Config, database: Database, rows: i64) {
    let client = connect(config).await;
    client.batch_execute(IDS).await.unwrap();
    let shards = if database == Database::Search { PARTITIONS } else { SHARDS };
    // In search, the records with which the documents came.
    let log = if database == Database::Search { rows / 8 } else { (rows / 100).max(2 * OLD_RECORDS) };
    let tables = match database {
        Database::Users => USERS,
        Database::Posts => POSTS,
        Database::Comments => COMMENTS,
        Database::Search => DOCUMENTS,
    };
    let fill = [OF_ALL, tables].concat();
    let fill = fill
        .replace(":rows", &rows.to_string())
        .replace(":shards", &shards.to_string())
        .replace(":log", &log.to_string())
        .replace(":old", &OLD_RECORDS.to_string());
    client.batch_execute(&fill).await.unwrap();
    client.batch_execute("VACUUM ANALYZE").await.unwrap();
}

const OF_ALL: &str = "
    INSERT INTO shard (id, epoch) SELECT n, 1 FROM generate_series(0, :shards - 1) n;
    INSERT INTO outbox (shard, seq, epoch, batch, key, type, payload, at)
        SELECT s, seq, 1, pg_temp.usr(0), pg_temp.usr(seq), 'a.test', '{}',
               CASE WHEN seq <= :old THEN now() - interval '2 hours' ELSE now() END
        FROM generate_series(0, :shards - 1) s, generate_series(1, :log) seq;
    INSERT INTO consumer (name, shard, position)
        SELECT name, s, :log FROM unnest(ARRAY['users', 'posts', 'comments', 'search']) name, generate_series(0, :shards - 1) s;
    INSERT INTO member (incarnation, node, renewed, state) SELECT pg_temp.usr(n), 'n' || n, 9, 'dead' FROM generate_series(1, :rows / 20) n;
    -- In the order in which pages are used again: of no time in particular.
    INSERT INTO idempotency (shard, key, request_hash, reply, at)
        SELECT n % :shards, 'key ' || n, '', '{}',
               now() - CASE WHEN n % (:rows / 100) = 0 THEN interval '25 hours' ELSE make_interval(secs => (n::int8 * 7919) % 80000) END
        FROM generate_series(1, :rows) n;
    ";

const USERS: &str = "
    INSERT INTO app_user (id, username, email, display_name, bio, roles, version, created_at, updated_at)
        SELECT pg_temp.usr(n), 'user_' || n, 'user_' || n || '@example.org', 'U', '', '{}', 1, now(), now() FROM generate_series(1, :rows) n;
    INSERT INTO user_counter SELECT pg_temp.usr(n), 0, 0, CASE n WHEN 1 THEN :rows ELSE 1 END, 10 FROM generate_series(1, :rows) n;
    INSERT INTO session (user_id, id, refresh_hash, generation, created_at, last_used_at, expires_at)
        SELECT pg_temp.usr(n), pg_temp.usr(n), decode(repeat('00', 32), 'hex'), 0, now(), now(), now() + interval '30 days' FROM generate_series(1, :rows) n;
    INSERT INTO follow (follower, followee, at)
        SELECT pg_temp.usr(n), pg_temp.usr(1), now() FROM generate_series(2, :rows) n
        UNION ALL SELECT pg_temp.usr(1), pg_temp.usr(n), now() FROM generate_series(2, 11) n;
    INSERT INTO follower (followee, follower, at) SELECT followee, follower, at FROM follow;
    ";

const POSTS: &str = "
    INSERT INTO post (id, author, title, body, tags, created_at, updated_at, version, like_count, hot)
        SELECT pg_temp.pst(n), pg_temp.usr(CASE WHEN n % 4 = 0 THEN 1 ELSE n % 1000 END), 'A title', 'A body',
               ARRAY['t' || n % (:rows / 20)] || CASE WHEN n % 2 = 0 THEN ARRAY['popular'] ELSE '{}' END
                   || CASE WHEN n < 4 THEN ARRAY['rare'] ELSE '{}' END,
               now(), now(), 1, CASE WHEN n % 4 = 1 AND n <= :rows / 2 THEN 0 ELSE n % 7 + 1 END, n
        FROM generate_series(1, :rows) n;
    INSERT INTO post_tag (tag, post) SELECT tag, id FROM post, unnest(tags) tag;
    INSERT INTO post_like (post, user_id)
        SELECT pg_temp.pst(n), pg_temp.usr(1) FROM generate_series(1, :rows) n
        UNION ALL SELECT pg_temp.pst(2), pg_temp.usr(n) FROM generate_series(2, :rows) n
        UNION ALL SELECT pg_temp.pst(10 * n + 2), pg_temp.usr(-1) FROM generate_series(1, 30) n;
    INSERT INTO post_counter SELECT pg_temp.pst(n), 5 FROM generate_series(1, :rows) n;
    INSERT INTO author (id, version, username, display_name, deleted)
        SELECT pg_temp.usr(n), 1, 'user_' || n, 'U', false FROM generate_series(1, :rows) n
        UNION ALL SELECT pg_temp.usr(-1), 2, '', '', true;
    INSERT INTO follow (follower, followee, active)
        SELECT pg_temp.usr(n), pg_temp.usr(1), true FROM generate_series(2, :rows) n
        UNION ALL SELECT pg_temp.usr(1), pg_temp.usr(n), true FROM generate_series(2, 11) n
        UNION ALL SELECT pg_temp.usr(2), pg_temp.usr(n), false FROM generate_series(2, 11) n;
    -- One who is gone for long, and of whom nothing is left.
    INSERT INTO author (id, version, username, display_name, deleted, departed_at)
        SELECT pg_temp.usr(:rows + 1), 2, '', '', true, now() - interval '30 days';
    INSERT INTO deleted_post SELECT pg_temp.pst(2 * :rows + n) FROM generate_series(1, :rows) n;
    ";

const COMMENTS: &str = "
    INSERT INTO comment (post, id, parent, depth, author, body, created_at, updated_at, version, like_count)
        SELECT pg_temp.pst(n / 50), pg_temp.cmt(n), CASE WHEN n % 50 <> 0 THEN pg_temp.cmt(n - n % 50) END,
               CASE WHEN n % 50 <> 0 THEN 1 ELSE 0 END, pg_temp.usr(CASE WHEN n % 4 = 0 THEN 1 ELSE n % 1000 END), 'A comment',
               now(), now(), 1, 1
        FROM generate_series(0, :rows) n;
    INSERT INTO comment_like (comment, user_id)
        SELECT pg_temp.cmt(n), pg_temp.usr(1) FROM generate_series(1, :rows) n
        UNION ALL SELECT pg_temp.cmt(50 * n), pg_temp.usr(-1) FROM generate_series(1, 30) n;
    -- Before all others, and behind them.
    INSERT INTO closed_thread (post, swept)
        SELECT ('01000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, true FROM generate_series(1, :rows / 2) n
        UNION ALL SELECT pg_temp.pst(2 * :rows + n), true FROM generate_series(1, :rows / 2) n;
    INSERT INTO author (id, version, username, display_name, deleted)
        SELECT pg_temp.usr(n), 1, 'user_' || n, 'U', false FROM generate_series(1, :rows) n
        UNION ALL SELECT pg_temp.usr(-1), 2, '', '', true;
    ";

const DOCUMENTS: &str = "
    INSERT INTO documents (shard, seq, type, id, version, doc)
        SELECT n % :shards, n / :shards + 1, kind, CASE kind WHEN 'post' THEN pg_temp.pst(n) ELSE pg_temp.cmt(n) END, 1,
               json_build_object('kind', kind, 'id', CASE kind WHEN 'post' THEN pg_temp.pst(n) ELSE pg_temp.cmt(n) END, 'version', 1,
                   'author', pg_temp.usr(1), 'title', CASE kind WHEN 'post' THEN 'A title' END, 'body', 'A body',
                   'created_at', '2026-01-01T00:00:00Z', 'post_id', CASE kind WHEN 'comment' THEN pg_temp.pst(n) END,
                   'deleted', kind = 'post' AND n % 10 = 0)
        FROM generate_series(0, :rows / 2 - 1) n, unnest(ARRAY['post', 'comment']) kind;
    ";
