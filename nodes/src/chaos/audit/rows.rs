//! What the four databases hold, and where they contradict each other.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Error, Row};
use uuid::Uuid;

use crate::chaos::inspector::{Counts, Listed};

/// The facts and their copies.
#[derive(Debug, Default)]
pub(super) struct Rows {
    posts: BTreeMap<Uuid, Post>,
    /// Comments that can be read, of posts that there are.
    comments: BTreeMap<Uuid, i64>,
    /// How many of them each post and each author has: what stands under a post that is gone counts for nobody.
    comments_of_post: BTreeMap<Uuid, i64>,
    comments_of_author: BTreeMap<Uuid, i64>,
    pub(super) users: BTreeMap<Uuid, User>,
    /// By kind and id.
    documents: BTreeMap<(String, Uuid), Document>,
    /// Rows that contradict others.
    pub(super) mismatched: Vec<String>,
    /// Dead letters.
    pub(super) dead: Vec<String>,
    /// Where the records stand of comments that have no document, and how far search says to have come there.
    undocumented: Vec<String>,
}

/// So many of them are looked at.
const UNDOCUMENTED_MAX: usize = 3;

#[derive(Debug)]
struct Post {
    author: Uuid,
    version: i64,
    /// As the row says.
    likes: i64,
    /// As there are rows.
    likers: i64,
    /// As the counter says.
    comments: i64,
}

#[derive(Debug)]
pub(super) struct User {
    pub(super) name: String,
    version: i64,
    /// As the counters say.
    counts: Counts,
    /// As there are rows.
    followers: i64,
    following: i64,
}

#[derive(Debug)]
struct Document {
    version: i64,
    deleted: bool,
    post: Option<Uuid>,
    /// It holds words.
    worded: bool,
}

impl Rows {
    pub(super) async fn read(clients: &BTreeMap<&'static str, Client>) -> Result<Self, Error> {
        let mut rows = Self::default();
        rows.read_posts(&clients["posts"]).await?;
        rows.read_comments(&clients["comments"]).await?;
        rows.read_users(&clients["users"]).await?;
        rows.read_follows(&clients["users"], &clients["posts"]).await?;
        rows.read_documents(&clients["search"]).await?;
        rows.look_for_undocumented(&clients["comments"], &clients["search"]).await?;
        for (service, client) in clients {
            let dead = client.query("SELECT source, seq, reason FROM dead_letter ORDER BY source, seq", &[]).await?;
            rows.dead.extend(dead.iter().map(|row| {
                let (source, seq, reason): (&str, i64, &str) = (row.get(0), row.get(1), row.get(2));
                format!("{service} could not apply record {seq} of {source}: {reason}")
            }));
        }
        Ok(rows)
    }

    async fn read_posts(&mut self, posts: &Client) -> Result<(), Error> {
        let select = "SELECT p.id, p.author, p.version, p.like_count, (SELECT count(*) FROM post_like l WHERE l.post = p.id),
                             COALESCE(c.comment_count, 0)
                      FROM post p LEFT JOIN post_counter c ON c.post = p.id";
        for row in posts.query(select, &[]).await? {
            let post =
                Post { author: row.get(1), version: row.get(2), likes: row.get(3), likers: row.get(4), comments: row.get(5) };
            self.posts.insert(row.get(0), post);
        }
        let untagged = "SELECT p.id FROM post p
                        WHERE (SELECT count(*) FROM post_tag t WHERE t.post = p.id AND t.tag = ANY(p.tags)) <> cardinality(p.tags)";
        let ghosts = "SELECT DISTINCT t.post FROM post_tag t
                      WHERE NOT EXISTS (SELECT FROM post p WHERE p.id = t.post AND t.tag = ANY(p.tags))";
        for (select, what) in [(untagged, "is not found by each of its tags"), (ghosts, "is found by a tag it does not have")] {
            let rows = posts.query(select, &[]).await?;
            self.mismatched.extend(rows.iter().map(|row| format!("post {} {what}", row.get::<_, Uuid>(0))));
        }
        Ok(())
    }

    async fn read_comments(&mut self, comments: &Client) -> Result<(), Error> {
        for row in comments.query("SELECT id, post, author, version FROM comment", &[]).await? {
            let (id, post, author): (Uuid, Uuid, Option<Uuid>) = (row.get(0), row.get(1), row.get(2));
            // The posts database decides whether the post exists: the audit must not trust what comments has made of that.
            if !self.posts.contains_key(&post) {
                self.mismatched.push(format!("comment {id} is left of post {post}, which is gone"));
            } else if let Some(author) = author {
                *self.comments_of_post.entry(post).or_default() += 1;
                *self.comments_of_author.entry(author).or_default() += 1;
                self.comments.insert(id, row.get(3));
            }
        }
        let miscounted = "SELECT c.id FROM comment c
                          WHERE c.author IS NOT NULL AND c.like_count <> (SELECT count(*) FROM comment_like l WHERE l.comment = c.id)";
        let miscounted = comments.query(miscounted, &[]).await?;
        self.mismatched
            .extend(miscounted.iter().map(|row| format!("the likes of comment {} are miscounted", row.get::<_, Uuid>(0))));
        Ok(())
    }

    async fn read_users(&mut self, users: &Client) -> Result<(), Error> {
        let select = "SELECT u.id, u.username, u.version, COALESCE(c.post_count, 0), COALESCE(c.comment_count, 0),
                             COALESCE(c.follower_count, 0), COALESCE(c.following_count, 0),
                             (SELECT count(*) FROM follower f WHERE f.followee = u.id),
                             (SELECT count(*) FROM follow f WHERE f.follower = u.id)
                      FROM app_user u LEFT JOIN user_counter c ON c.user_id = u.id WHERE NOT u.deleted";
        for row in users.query(select, &[]).await? {
            let counts = Counts { posts: row.get(3), comments: row.get(4), followers: row.get(5), following: row.get(6) };
            let user = User { name: row.get(1), version: row.get(2), counts, followers: row.get(7), following: row.get(8) };
            self.users.insert(row.get(0), user);
        }
        Ok(())
    }

    /// Who follows whom is known three times.
    async fn read_follows(&mut self, users: &Client, posts: &Client) -> Result<(), Error> {
        let edges = |rows: Vec<Row>| rows.iter().map(|row| (row.get(0), row.get(1))).collect::<BTreeSet<(Uuid, Uuid)>>();
        let truth = edges(users.query("SELECT follower, followee FROM follow", &[]).await?);
        let copies = [
            ("the followee", edges(users.query("SELECT follower, followee FROM follower", &[]).await?)),
            ("the feed", edges(posts.query("SELECT follower, followee FROM follow WHERE active", &[]).await?)),
        ];
        for (who, copy) in copies {
            for (follower, followee) in truth.symmetric_difference(&copy) {
                self.mismatched.push(format!("{who} has not heard whether {follower} follows {followee}"));
            }
        }
        Ok(())
    }

    async fn read_documents(&mut self, search: &Client) -> Result<(), Error> {
        let select = "SELECT type, id, version, (doc::jsonb ->> 'deleted')::bool, doc::jsonb ->> 'post_id',
                             concat(doc::jsonb ->> 'title', doc::jsonb ->> 'body') !~ '^\\s*$' FROM documents";
        for row in search.query(select, &[]).await? {
            let document = Document {
                version: row.get(2),
                deleted: row.get::<_, Option<bool>>(3).unwrap_or(false),
                post: row.get::<_, Option<&str>>(4).and_then(|post| post.parse().ok()),
                worded: row.get(5),
            };
            self.documents.insert((row.get(0), row.get(1)), document);
        }
        Ok(())
    }

    async fn look_for_undocumented(&mut self, comments: &Client, search: &Client) -> Result<(), Error> {
        let has_none = |id: &&Uuid| !self.documents.contains_key(&("comment".to_owned(), **id));
        for id in self.comments.keys().filter(has_none).take(UNDOCUMENTED_MAX) {
            let records = "SELECT shard, seq, type, at::text FROM outbox WHERE payload LIKE '%' || $1::text || '%' ORDER BY seq";
            for row in comments.query(records, &[&id.to_string()]).await? {
                let (shard, seq, kind, at): (i16, i64, &str, &str) = (row.get(0), row.get(1), row.get(2), row.get(3));
                let source = format!("comments/{shard}");
                let places =
                    "SELECT (SELECT string_agg(shard || ':' || position, ' ' ORDER BY shard) FROM inbox WHERE source = $1),
                                     (SELECT position FROM carried WHERE source = $1), (SELECT count(*) FROM rebuild)";
                let places = search.query_one(places, &[&source]).await?;
                let (inbox, carried, rebuilds): (Option<&str>, Option<i64>, i64) = (places.get(0), places.get(1), places.get(2));
                self.undocumented.push(format!(
                    "comment {id}: {kind} is record {seq} of {source}, of {at}; applied up to {}, carried up to {carried:?}, \
                     {rebuilds} rebuilds wanted",
                    inbox.unwrap_or("nowhere"),
                ));
            }
        }
        Ok(())
    }

    /// Counters that a recount contradicts: in the rows, and in what the API answers from memory.
    pub(super) fn miscounted(&self, listed: &[Listed], pages: &BTreeMap<String, Counts>) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut posts_of: BTreeMap<Uuid, i64> = BTreeMap::new();
        for (id, post) in &self.posts {
            *posts_of.entry(post.author).or_default() += 1;
            let comments = self.comments_of_post.get(id).copied().unwrap_or(0);
            if (post.likes, post.comments) != (post.likers, comments) {
                let (likers, told) = (post.likers, (post.likes, post.comments));
                wrong.push(format!("post {id} counts {told:?} likes and comments, there are {:?}", (likers, comments)));
            }
        }
        for post in listed {
            let Some(row) = self.posts.get(&post.id) else { continue };
            if (post.likes, post.comments) != (row.likers, self.comments_of_post.get(&post.id).copied().unwrap_or(0)) {
                wrong.push(format!("the list tells {} likes and {} comments of post {}", post.likes, post.comments, post.id));
            }
        }
        for (id, user) in &self.users {
            let truth = Counts {
                posts: posts_of.get(id).copied().unwrap_or(0),
                comments: self.comments_of_author.get(id).copied().unwrap_or(0),
                followers: user.followers,
                following: user.following,
            };
            let page = pages.get(&user.name).copied().unwrap_or_default();
            for (told, whose) in [(user.counts, "the row"), (page, "the page")] {
                if told != truth {
                    wrong.push(format!("{whose} of {} tells {told:?}, a recount {truth:?}", user.name));
                }
            }
        }
        wrong
    }

    /// The documents of a kind that an index holds: those under a post that is gone leave it with the post.
    pub(super) fn findable(&self, kind: &str) -> BTreeSet<Uuid> {
        let is_gone = |post: &Uuid| self.documents.get(&("post".to_owned(), *post)).is_some_and(|post| post.deleted);
        let of_kind = self.documents.iter().filter(|((of, _), _)| of == kind);
        let there = of_kind.filter(|(_, document)| !document.deleted && !document.post.as_ref().is_some_and(is_gone));
        there.map(|((_, id), _)| *id).collect()
    }

    /// Documents that are not as the rows are, and rows without one.
    pub(super) fn misdocumented(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut rows: BTreeMap<(&str, Uuid), i64> = BTreeMap::new();
        rows.extend(self.posts.iter().map(|(id, post)| (("post", *id), post.version)));
        rows.extend(self.comments.iter().map(|(id, version)| (("comment", *id), *version)));
        rows.extend(self.users.iter().map(|(id, user)| (("user", *id), user.version)));
        for ((kind, id), document) in &self.documents {
            match rows.remove(&(kind.as_str(), *id)) {
                Some(version) if document.deleted || document.version != version => {
                    wrong.push(format!("{kind} {id} has version {version}, its document {document:?}"));
                }
                None if !document.deleted => wrong.push(format!("{kind} {id} is gone, its document is not")),
                None if document.worded => wrong.push(format!("{kind} {id} is gone, its document still says what it said")),
                _ => {}
            }
        }
        wrong.extend(rows.keys().map(|(kind, id)| format!("{kind} {id} has no document")));
        wrong.extend(self.undocumented.iter().cloned());
        wrong
    }
}
