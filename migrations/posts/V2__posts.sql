-- Posts, who likes them, and the names of their authors.

CREATE TABLE post (
    id         uuid        PRIMARY KEY,         -- UUIDv7: the order of ids is the order of creation
    author     uuid        NOT NULL,
    title      text        NOT NULL,
    body       text        NOT NULL,
    tags       text[]      NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    version    int8        NOT NULL,
    like_count int8        NOT NULL,
    hot        int8        NOT NULL             -- millionths of log10(max(likes, 1)) + seconds / 45000, kept by the entity
);
CREATE INDEX post_by_author ON post (author, id);
CREATE INDEX post_by_hot ON post (hot, id);
-- Most posts have no likes and are listed by age: they need no place in this index.
CREATE INDEX post_by_likes ON post (like_count, id) WHERE like_count > 0;

CREATE TABLE post_tag (
    tag  text NOT NULL,
    post uuid NOT NULL,
    PRIMARY KEY (tag, post)
);

CREATE TABLE post_like (
    post    uuid NOT NULL,
    user_id uuid NOT NULL,
    PRIMARY KEY (post, user_id)
);

-- Told by the comments' log, in deltas; apart from the post, so that neither waits for the other.
CREATE TABLE post_counter (
    post          uuid PRIMARY KEY,
    comment_count int8 NOT NULL
) WITH (fillfactor = 70);                       -- updated in place (HOT): room on the page for the next version

-- Names of authors, by the users' log; a deleted user stays as a tombstone, so that a late record brings no name back.
CREATE TABLE author (
    id           uuid PRIMARY KEY,
    version      int8 NOT NULL,
    username     text NOT NULL,
    display_name text NOT NULL,
    avatar_url   text,
    deleted      bool NOT NULL
);

-- Who follows whom, by the users' log: for the feed.
CREATE TABLE follow (
    follower uuid NOT NULL,
    followee uuid NOT NULL,
    active   bool NOT NULL,                     -- false: unfollowed; kept, for a statement cannot both add and delete it
    PRIMARY KEY (follower, followee)
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
    relayed  bool        NOT NULL DEFAULT false,         -- whether Kafka's dead-letter topic has it; without Kafka, never
    PRIMARY KEY (shard, source, seq)
);
