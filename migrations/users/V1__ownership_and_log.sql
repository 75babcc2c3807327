-- Who owns which shard, and the log that is the fence: the same in every service's database. PROTOCOL: "Tables", rules 1-5.

-- One row per service process and start. An incarnation that is dead stays dead; its node comes back under a new one.
CREATE TABLE member (
    incarnation uuid PRIMARY KEY,
    node        text NOT NULL,
    address     text,
    renewed     bigint NOT NULL DEFAULT 0,      -- a counter, not a time: observers trust their own clocks only
    state       text NOT NULL CHECK (state IN ('live', 'draining', 'dead')),
    started     timestamptz NOT NULL DEFAULT now()
)
-- Renewed twice a second: with room in its page an update stays there (HOT) and the next read prunes the old versions.
WITH (fillfactor = 50);

-- The directory. No foreign key to member: its check would lock the row that the lease renews. No index on owner: the table
-- is a few pages, and an index would take the HOT updates away.
CREATE TABLE shard (
    id     int2 PRIMARY KEY,
    epoch  bigint NOT NULL DEFAULT 0,
    owner  uuid,
    target uuid
) WITH (fillfactor = 50);

-- The log: gap-free per shard. Its primary key is the fence, so nothing here may ever say ON CONFLICT. Epoch records have
-- no payload.
CREATE TABLE outbox (
    shard   int2,
    seq     int8,
    epoch   int8 NOT NULL,
    batch   uuid,
    key     uuid,
    type    text NOT NULL,
    payload text,
    headers text,
    at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard, seq)
)
-- Written once, read once, trimmed from the front: the default of a fifth of the table dead would let it and its index
-- keep a fifth of air, and one vacuum would have the whole fifth to do at once. A fixed number keeps each one short.
WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
      autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000,
      autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000);

-- The next three are positions, overwritten all the time: half-empty pages keep the updates in place (HOT), off the index.

-- How far Kafka has the log. Its own table, so that the relay never touches a row that a batch holds.
CREATE TABLE relayed (
    shard int2 PRIMARY KEY,
    seq   int8 NOT NULL
) WITH (fillfactor = 50);

-- Who reads this log, and how far: what trimming waits for.
CREATE TABLE consumer (
    name     text,
    shard    int2,
    position int8 NOT NULL,
    PRIMARY KEY (name, shard)
) WITH (fillfactor = 50);

-- What each of our shards has applied of a foreign log; moves in the transaction that applies.
CREATE TABLE inbox (
    shard    int2,
    source   text,
    position int8 NOT NULL,
    PRIMARY KEY (shard, source)
) WITH (fillfactor = 50);

CREATE TABLE idempotency (
    shard        int2,
    key          text,
    request_hash bytea,
    reply        text,
    at           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard, key)
)
-- Kept for a day and then deleted in slices; see outbox.
WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);

-- Finds what is older than a day. Rows arrive in the order of time, so a few bytes per 32 pages are enough, and an insert
-- pays next to nothing for them.
CREATE INDEX idempotency_at ON idempotency USING brin (at) WITH (pages_per_range = 32, autosummarize = on);

-- Facts that are fixed with the database, the number of shards for one; compared with the configuration at every start.
CREATE TABLE setting (
    name  text PRIMARY KEY,
    value text NOT NULL
);
