-- The posts of a tag by likes and by hotness: without it a page of such a list sorts all posts that have the tag.
--
-- Kept by triggers, in the transaction of the write and under the lock of the post's row, so that what a node of the release
-- before writes is in it as well.
CREATE TABLE ranked_tag (
    tag        text NOT NULL,
    post       uuid NOT NULL,
    like_count int8 NOT NULL,
    hot        int8 NOT NULL,
    PRIMARY KEY (post, tag)
);
CREATE INDEX ranked_tag_by_likes ON ranked_tag (tag, like_count, post);
CREATE INDEX ranked_tag_by_hot ON ranked_tag (tag, hot, post);

CREATE FUNCTION rank_added_tags() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ranked_tag (tag, post, like_count, hot)
    SELECT c.tag, c.post, p.like_count, p.hot FROM changed c JOIN post p ON p.id = c.post ORDER BY c.post, c.tag
    ON CONFLICT (post, tag) DO UPDATE SET like_count = excluded.like_count, hot = excluded.hot;
    RETURN NULL;
END $$;
CREATE FUNCTION forget_tags_taken_away() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM ranked_tag r USING changed c WHERE r.post = c.post AND r.tag = c.tag;
    RETURN NULL;
END $$;
CREATE FUNCTION rank_liked_posts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE ranked_tag r SET like_count = n.like_count, hot = n.hot
    FROM changed n JOIN former f ON f.id = n.id WHERE r.post = n.id AND (f.like_count <> n.like_count OR f.hot <> n.hot);
    RETURN NULL;
END $$;

CREATE TRIGGER tag_ranked AFTER INSERT ON post_tag REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION rank_added_tags();
CREATE TRIGGER tag_no_longer_ranked AFTER DELETE ON post_tag REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION forget_tags_taken_away();
CREATE TRIGGER post_ranked AFTER UPDATE ON post REFERENCING OLD TABLE AS former NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION rank_liked_posts();

-- The posts that were there before are gone through a few at a time, so that nobody waits for it: up to which id that is done.
INSERT INTO setting (name, value) VALUES ('ranked_tags', '00000000-0000-0000-0000-000000000000');
