-- A log has a history: a database that was put back to an older state goes on differently from there. The same in every
-- service's database.

-- How far the bridges into this service have carried each foreign log, as this database knows it, and by which history of that
-- log: the batch of the last epoch record up to there. None: not known, or there was none.
CREATE TABLE carried (
    source   text PRIMARY KEY,
    position int8 NOT NULL,
    history  uuid
) WITH (fillfactor = 50);                       -- positions, overwritten all the time: see consumer

-- Shards of ours that are to be made anew from what a publisher has, because records of its log were missed for good. The row
-- goes with the transaction that does it.
CREATE TABLE rebuild (
    shard    int2,
    topic    text,
    restored bool NOT NULL,                     -- the publisher went back: what we have of it may be newer than what is so
    PRIMARY KEY (shard, topic)
);

-- Finds the epoch record before a position: they are few, and stay when the log is trimmed.
CREATE INDEX outbox_epochs ON outbox (shard, seq) WHERE type = 'epoch';

-- What a starting node reads of names after the places of those who follow them.
CREATE INDEX outbox_names ON outbox (shard, seq) WHERE type IN ('user.updated', 'user.deleted');
