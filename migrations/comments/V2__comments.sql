-- Comments, who likes them, and the names of their authors.

CREATE TABLE comment (
    post       uuid        NOT NULL,
    id         uuid        NOT NULL,            -- UUIDv7: the order of ids is the order of creation
    parent     uuid,                            -- none at the top level
    depth      int2        NOT NULL,
    author     uuid,                            -- none: a tombstone, kept for the replies to it
    body       text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    version    int8        NOT NULL,
    like_count int8        NOT NULL,            -- a tombstone keeps its last count, so that what stands below it keeps its place
    PRIMARY KEY (post, id),                     -- a thread loads as one range
    CHECK ((author IS NULL) = (body IS NULL))
) WITH (fillfactor = 90);                       -- likes are counted in place (HOT): no index has like_count
CREATE INDEX comment_by_author ON comment (author, id) WHERE author IS NOT NULL;
-- Counts the replies where the thread is not at hand.
CREATE INDEX comment_by_parent ON comment (parent) WHERE parent IS NOT NULL AND author IS NOT NULL;

CREATE TABLE comment_like (
    comment uuid NOT NULL,
    user_id uuid NOT NULL,
    PRIMARY KEY (comment, user_id)
);

-- Posts that are gone, by the posts' log. A row stays for ever, so that a comment on its way finds it.
CREATE TABLE closed_thread (
    post uuid PRIMARY KEY
);

-- Names of authors, by the users' log; a deleted user stays as a tombstone, so that a late record brings no name back.
CREATE TABLE author (
    id           uuid PRIMARY KEY,
    version      int8 NOT NULL,
    username     text NOT NULL,
    display_name text NOT NULL,
    avatar_url   text,
    deleted      bool NOT NULL
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
