-- What is left to do about the likes of a deleted account: since when it is known to be gone, and whether all of them are
-- taken back. Whatever was deleted before begins anew.
ALTER TABLE author ADD COLUMN departed_at timestamptz;
ALTER TABLE author ADD COLUMN likes_gone bool NOT NULL DEFAULT false;

-- Holds what is left to do, which is next to nothing most of the time.
CREATE INDEX author_departed ON author (id) WHERE deleted AND NOT likes_gone;

-- Finds what an account likes. Writes of likes wait while it is made, some seconds for ten million.
CREATE INDEX post_like_by_user ON post_like (user_id, post);

-- Follows that ended used to stay, with the ids of both. Those that did, and what an older node beside us writes.
CREATE INDEX follow_ended ON follow (follower, followee) WHERE NOT active;
