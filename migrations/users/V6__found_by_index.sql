-- What is looked for again and again is found without reading what else there is: the same in every service's database.

-- Keys past their day. A summary of block ranges does that only until pages are used again: then each holds new rows and old ones.
-- Writes with a key wait while it is made, less than a second for a million.
CREATE INDEX idempotency_by_age ON idempotency (at);
DROP INDEX idempotency_at;
-- Where the write that is answered so stands in the log; none: a node of the release before has written it.
ALTER TABLE idempotency ADD COLUMN seq int8;

-- Those who live, among all who ever did. A renewal changes none of it, so it stays in its page (HOT).
CREATE INDEX member_living ON member (node) WHERE state <> 'dead';

-- The sessions that were closed within the life of a token, for a starting gateway: few of all records, and by a summary of block
-- ranges the whole log is read once its pages are used again.
CREATE INDEX outbox_closed_session ON outbox (at) WHERE type = 'session.closed';
DROP INDEX outbox_by_time;
