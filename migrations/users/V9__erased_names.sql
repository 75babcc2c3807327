-- What deleted accounts were called, as keyed hashes: without the key, which is sealed with the cluster's secret, nobody can
-- tell a name from it. An import that names an author by name alone asks here whether somebody else of that name is meant.
--
-- A row stays for ever, for the reason that one of deleted_post does: nobody can say when the last import of a file was.
CREATE TABLE erased_name (
    name    bytea NOT NULL,                     -- HMAC-SHA256
    user_id uuid  NOT NULL,                     -- the tombstone's
    PRIMARY KEY (name, user_id)
);
