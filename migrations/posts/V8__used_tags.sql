-- How many posts have a tag: the list of all tags would otherwise count every tag of every post for every page.
--
-- Of the database, not of a shard: the posts of a tag lie in all of them. So a batch notes what it changes, in rows that no other
-- batch waits for, and these are added up now and then, by whichever node comes to it. By triggers, so that what a node of the
-- release before writes counts as well.
CREATE TABLE used_tag (
    tag   text PRIMARY KEY,
    posts int8 NOT NULL
) WITH (fillfactor = 70);
-- In the order of the list: the most used first.
CREATE INDEX used_tag_by_posts ON used_tag ((-posts), tag) WHERE posts > 0;

-- What is not added up yet.
CREATE TABLE tag_change (
    tag    text NOT NULL,
    change int8 NOT NULL
)
-- Written once and taken away within seconds; see outbox.
WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);

CREATE FUNCTION note_tag_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tag_change (tag, change)
    SELECT tag, CASE TG_OP WHEN 'INSERT' THEN count(*) ELSE -count(*) END FROM changed GROUP BY tag;
    RETURN NULL;
END $$;

-- Before the rows are counted: from here on writes of tags wait, some seconds for ten million posts, and are then noted.
CREATE TRIGGER tag_added AFTER INSERT ON post_tag REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION note_tag_change();
CREATE TRIGGER tag_taken_away AFTER DELETE ON post_tag REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION note_tag_change();

INSERT INTO used_tag (tag, posts) SELECT tag, count(*) FROM post_tag GROUP BY tag;
