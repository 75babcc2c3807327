-- Whether the comments of a deleted post are gone, and with them what others count of them. Until then the row is the whole
-- state of that sweep: what is left to do are the comments that still have rows. Those from before begin anew.
ALTER TABLE closed_thread ADD COLUMN swept bool NOT NULL DEFAULT false;

-- Holds what is left to do, which is next to nothing most of the time.
CREATE INDEX closed_thread_unswept ON closed_thread (post) WHERE NOT swept;
