-- What is left to do about the likes of a deleted account: since when it is known to be gone, and whether all of them are
-- taken back. Whatever was deleted before begins anew.
ALTER TABLE author ADD COLUMN departed_at timestamptz;
ALTER TABLE author ADD COLUMN likes_gone bool NOT NULL DEFAULT false;

-- Holds what is left to do, which is next to nothing most of the time.
CREATE INDEX author_departed ON author (id) WHERE deleted AND NOT likes_gone;

-- Finds what an account likes. Writes of likes wait while it is made, some seconds for ten million.
CREATE INDEX comment_like_by_user ON comment_like (user_id, comment);

-- Finds the thread of a comment that is liked. The same for writes of comments.
CREATE INDEX comment_by_id ON comment (id);
