-- What can be found: the source of every index, itself made from the logs of the other services.

CREATE TABLE documents (
    shard   int2 NOT NULL,
    seq     int8 NOT NULL,                      -- the record of our own log with which this version came
    type    text NOT NULL,
    id      uuid NOT NULL,
    version int8 NOT NULL,
    doc     text NOT NULL,                      -- JSON; a deletion stays as a row, so that nothing older returns
    PRIMARY KEY (type, id)
);
CREATE INDEX documents_by_seq ON documents (shard, seq);

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
