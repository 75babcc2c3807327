-- Posts that were deleted. An import makes its ids from where a post comes from, so a second one would bring them back.
--
-- A row stays for ever, as a closed thread does in comments and a deletion in search: nobody can say when the last import of
-- a file was. It is about 80 bytes with its index, so ten million deleted posts take less than a gigabyte.
CREATE TABLE deleted_post (
    id uuid PRIMARY KEY
);

-- Those from before that the log still tells of.
INSERT INTO deleted_post (id) SELECT DISTINCT key FROM outbox WHERE type = 'post.deleted' ORDER BY key;
