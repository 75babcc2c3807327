-- Users, where they are logged in, and who follows whom.

-- A deleted account stays as a tombstone without any personal data, so that its id is never used again and a rebuild of
-- the projections knows that it is gone. Its username and its address are free from then on.
CREATE TABLE app_user (
    id            uuid        PRIMARY KEY,      -- UUIDv7
    username      text,                         -- these two are null in tombstones only ...
    email         text,                         -- ... but imported authors have no address
    password_hash text,                         -- none: cannot log in
    display_name  text        NOT NULL,
    bio           text        NOT NULL,
    avatar_url    text,
    roles         text[]      NOT NULL,
    version       int8        NOT NULL,         -- of the profile
    created_at    timestamptz NOT NULL,
    updated_at    timestamptz NOT NULL,
    deleted       bool        NOT NULL DEFAULT false,
    CHECK (deleted = (username IS NULL)),
    CHECK (NOT deleted OR (email IS NULL AND password_hash IS NULL AND avatar_url IS NULL))
);
-- The service knows by these names what was taken.
CREATE UNIQUE INDEX app_user_username_key ON app_user (username) WHERE username IS NOT NULL;
CREATE UNIQUE INDEX app_user_email_key ON app_user (email) WHERE email IS NOT NULL;

CREATE TABLE session (
    user_id      uuid        NOT NULL,
    id           uuid        NOT NULL,
    refresh_hash bytea       NOT NULL,          -- SHA-256 of the one token that counts
    generation   int8        NOT NULL,
    created_at   timestamptz NOT NULL,
    last_used_at timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    user_agent   text,
    PRIMARY KEY (user_id, id)
) WITH (fillfactor = 70);                       -- updated in place (HOT) at every refresh

-- Whom a user follows: written by the user's own shard.
CREATE TABLE follow (
    follower uuid        NOT NULL,
    followee uuid        NOT NULL,
    at       timestamptz NOT NULL,
    PRIMARY KEY (follower, followee)
);

-- Who follows a user: written by the user's own shard, from the users' log.
CREATE TABLE follower (
    followee uuid        NOT NULL,
    follower uuid        NOT NULL,
    at       timestamptz NOT NULL,
    PRIMARY KEY (followee, follower)
);

-- In deltas, most of them told by other logs; apart from the user, so that neither waits for the other.
CREATE TABLE user_counter (
    user_id         uuid PRIMARY KEY,
    post_count      int8 NOT NULL,
    comment_count   int8 NOT NULL,
    follower_count  int8 NOT NULL,
    following_count int8 NOT NULL
) WITH (fillfactor = 70);                       -- updated in place (HOT): room on the page for the next version

-- Deleted accounts whose edges are still to be taken away, a few at a time.
CREATE TABLE departed (
    user_id uuid PRIMARY KEY
);

-- What signs access tokens. Of the cluster, not of a shard; written rarely, under an advisory lock.
CREATE TABLE signing_key (
    kid        text        PRIMARY KEY,
    sealed     bytea       NOT NULL,            -- PKCS #8, sealed with the cluster's secret
    public     bytea       NOT NULL,
    created_at timestamptz NOT NULL,
    not_before timestamptz NOT NULL,            -- published until then, but signs nothing yet
    retired_at timestamptz                      -- every token that it signed has expired by then
);

-- Records of foreign logs that could not be applied, until they are replayed.
CREATE TABLE dead_letter (
    shard    int2        NOT NULL,
    source   text        NOT NULL,
    seq      int8        NOT NULL,
    type     text        NOT NULL,
    key      uuid        NOT NULL,
    payload  text,
    reason   text        NOT NULL,
    at       timestamptz NOT NULL DEFAULT now(),
    relayed  bool        NOT NULL DEFAULT false,  -- Kafka has it
    PRIMARY KEY (shard, source, seq)
);

-- A starting gateway asks for the sessions that were closed within the life of a token. The log grows in time order,
-- so a few summaries of block ranges do for an index.
CREATE INDEX outbox_by_time ON outbox USING brin (at) WITH (pages_per_range = 16);
