-- Comments of which nothing is left in the thread. An import makes its ids from where a comment comes from, so a second one
-- would bring them back. Those of a closed thread need none: the thread takes no comment any more.
--
-- A row stays for ever, as that of a deleted post does, and is as small.
CREATE TABLE deleted_comment (
    id uuid PRIMARY KEY
);

-- Those from before that the log still tells of.
INSERT INTO deleted_comment (id)
SELECT DISTINCT (o.payload::json ->> 'id')::uuid FROM outbox o
WHERE o.type = 'comment.deleted' AND o.payload IS NOT NULL
  AND NOT EXISTS (SELECT FROM comment c WHERE c.post = o.key AND c.id = (o.payload::json ->> 'id')::uuid)
  AND NOT EXISTS (SELECT FROM closed_thread t WHERE t.post = o.key);
