//! Pure. What a line of an import file says: our own form, or the form of the "Top 2.5 Million" posts.

use std::{collections::HashMap, fmt::Display};

use aws_lc_rs::digest;
use jiff::Timestamp;
use rookery_actors::{
    comments::CommentBody,
    ids::{CommentId, PostId, UserId, uuid_v7},
    posts::rules::{Body, Tags, Title},
    users::names::{AvatarUrl, Bio, DisplayName, Username},
};
use serde::{Deserialize, Deserializer, de::Error};
use uuid::Uuid;

use crate::admin::item::{Author, Comment, Item, Post, User};

/// What the help says of the fields.
pub(super) const HELP: &str = "\
Lines: one JSON object each, the file plain or gzip.

  {\"type\": \"user\", \"source_id\", \"username\", \"display_name\"?, \"bio\"?, \"avatar_url\"?, \"created_at\"}
  {\"type\": \"post\", \"source_id\", \"author\", \"title\", \"body\"?, \"tags\"?, \"created_at\"}
  {\"type\": \"comment\", \"source_id\", \"post\", \"parent\"?, \"author\", \"body\", \"created_at\"}

  source_id   what the source calls it; ids are made of it and the time, so that a second import finds what
              is there. \"id\" (a UUID) may stand instead; with neither, the whole line names itself.
  created_at  RFC 3339 or Unix seconds; kept.
  author      the name of a user: one of a line before, or one who is there. The name of an account that was deleted
              here is not enough, for somebody else may have it now.
  post, parent  the source_id of a line before, or the UUID of what is there.

  Users get no password and cannot log in until `rookery admin password` gives them one; e-mail addresses are not imported.

  {\"source_id\", \"tag\", \"title\", \"body\", \"created_at\"}: the posts of the Reddit \"Top 2.5 Million\" set, as they are.
  Authors are made for them. &amp; &lt; &gt; become & < >; a title becomes one line; a tag gets small letters and
  hyphens; score and num_comments are dropped.

Examples:
  rookery import posts.jsonl.gz
  rookery import - --strict --errors bad.jsonl < dump.jsonl
  rookery import dump.jsonl --node https://rookery.example --token \"$TOKEN\"";

/// Authors that are made for posts without any. One for each post would double an import's work, since a name is claimed
/// in a commit of its own, and a handful would have thousands of posts each. Which one it is follows from the source id.
const AUTHORS: u64 = 2_000;

/// Since when they are there, in Unix seconds: their ids must not depend on which of their posts comes first.
const AUTHORS_SINCE: i64 = 1_104_537_600; // 2005-01-01

/// U+FEFF, with which some programs begin what they save as UTF-8.
const BYTE_ORDER_MARK: &[u8] = "\u{FEFF}".as_bytes();

/// Turns lines into items; remembers the source ids of posts and comments, for the comments that name them.
#[derive(Default)]
pub(super) struct Reader {
    posts: HashMap<String, PostId>,
    comments: HashMap<String, CommentId>,
}

/// A line in our own form. One struct for all types, so that an unknown field is found in each.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ours {
    r#type: Type,
    id: Option<Uuid>,
    source_id: Option<String>,
    #[serde(deserialize_with = "time")]
    created_at: Timestamp,
    username: Option<String>,
    display_name: Option<String>,
    bio: Option<String>,
    avatar_url: Option<String>,
    author: Option<String>,
    title: Option<String>,
    body: Option<String>,
    tags: Option<Vec<String>>,
    post: Option<String>,
    parent: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Type {
    User,
    Post,
    Comment,
}

/// What tells the forms apart.
#[derive(Deserialize)]
struct Form {
    r#type: Option<serde::de::IgnoredAny>,
}

/// A post of the "Top 2.5 Million".
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reddit {
    source_id: String,
    tag: String,
    title: String,
    body: String,
    #[serde(deserialize_with = "time")]
    created_at: Timestamp,
    #[serde(rename = "score")]
    _score: Option<serde::de::IgnoredAny>,
    #[serde(rename = "num_comments")]
    _num_comments: Option<serde::de::IgnoredAny>,
}

impl Reader {
    /// What a line says, checked by the rules of what it is to become; none: nothing, it is blank.
    ///
    /// # Errors
    /// The reason why it cannot be imported.
    pub(super) fn read(&mut self, line: &[u8]) -> Result<Option<Item>, String> {
        // Before every line: files are strung together as well.
        let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line).trim_ascii();
        if line.is_empty() {
            return Ok(None);
        }
        let text = str::from_utf8(line).map_err(|error| format!("not UTF-8: {error}"))?;
        // An array of the values in order would do for serde as well.
        if !text.starts_with('{') {
            return Err("not a JSON object".to_owned());
        }
        let form: Form = serde_json::from_str(text).map_err(|error| format!("not a JSON object: {error}"))?;
        let item = if form.r#type.is_some() {
            self.ours(text)?
        } else {
            reddit(serde_json::from_str(text).map_err(|error| error.to_string())?)?
        };
        check(&item)?;
        Ok(Some(item))
    }

    fn ours(&mut self, text: &str) -> Result<Item, String> {
        let line: Ours = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let at = line.created_at;
        // Without any name of its own, a line is its own name.
        let source = line.source_id.as_deref().unwrap_or(text);
        let id = |kind| line.id.unwrap_or_else(|| derived(kind, source, at));
        match line.r#type {
            Type::User => {
                foreign(&[
                    ("author", &line.author),
                    ("title", &line.title),
                    ("post", &line.post),
                    ("parent", &line.parent),
                    ("body", &line.body),
                ])?;
                Ok(Item::User(User {
                    id: UserId(id("user")),
                    username: given("username", line.username)?,
                    display_name: line.display_name.unwrap_or_default(),
                    bio: line.bio.unwrap_or_default(),
                    avatar_url: line.avatar_url,
                    created_at: at,
                }))
            }
            Type::Post => {
                foreign(&[("username", &line.username), ("bio", &line.bio), ("post", &line.post), ("parent", &line.parent)])?;
                let id = PostId(id("post"));
                if let Some(source) = &line.source_id {
                    self.posts.insert(source.clone(), id);
                }
                Ok(Item::Post(Post {
                    id,
                    author: Author::Named(given("author", line.author)?),
                    title: given("title", line.title)?,
                    body: line.body.unwrap_or_default(),
                    tags: line.tags.unwrap_or_default(),
                    created_at: at,
                }))
            }
            Type::Comment => {
                foreign(&[("username", &line.username), ("bio", &line.bio), ("title", &line.title)])?;
                let id = CommentId(id("comment"));
                let post = resolve("post", &given("post", line.post)?, &self.posts)?;
                let parent = line.parent.as_deref().map(|parent| resolve("parent", parent, &self.comments)).transpose()?;
                if let Some(source) = &line.source_id {
                    self.comments.insert(source.clone(), id);
                }
                Ok(Item::Comment(Comment {
                    id,
                    post,
                    parent,
                    author: Author::Named(given("author", line.author)?),
                    body: given("body", line.body)?,
                    created_at: at,
                }))
            }
        }
    }
}

fn reddit(line: Reddit) -> Result<Item, String> {
    let Reddit { source_id, tag, title, body, created_at, .. } = line;
    Ok(Item::Post(Post {
        id: PostId(derived("post", &source_id, created_at)),
        author: made_up_author(&source_id)?,
        title: one_line(&unescaped(&title)),
        body: unescaped(&body),
        tags: vec![tag.to_lowercase().replace('_', "-")],
        created_at,
    }))
}

/// The id of what a source calls `source_id`: the same for the same words and time, so that a second import finds it.
pub(super) fn derived(kind: &str, source_id: &str, at: Timestamp) -> Uuid {
    uuid_v7(at, hash(kind, source_id).first_chunk().copied().expect("a SHA-256 has more than ten bytes"))
}

fn made_up_author(source_id: &str) -> Result<Author, String> {
    let number =
        u64::from_be_bytes(*hash("author of post", source_id).first_chunk().expect("a SHA-256 has more than eight bytes"));
    let username = format!("import_{:04}", number % AUTHORS);
    let since = Timestamp::from_second(AUTHORS_SINCE).map_err(|error| error.to_string())?;
    Ok(Author::Made { id: UserId(derived("user", &username, since)), username, since })
}

fn hash(kind: &str, text: &str) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"rookery import\0");
    context.update(kind.as_bytes());
    context.update(b"\0");
    context.update(text.as_bytes());
    context.finish().as_ref().try_into().expect("a SHA-256 has 32 bytes")
}

/// That set escapes these three and nothing else, once.
fn unescaped(text: &str) -> String {
    // The ampersand last: `&amp;lt;` was written by a person as `&lt;`.
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

/// People broke lines in titles and pasted control characters: breaks become spaces, the rest carries nothing.
fn one_line(title: &str) -> String {
    let is_break = |c: char| c.is_whitespace() && (c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'));
    let is_invisible = |c: char| c.is_control() || matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    if !title.contains(|c| is_break(c) || is_invisible(c)) {
        return title.to_owned();
    }
    let spaced: String = title.chars().map(|c| if is_break(c) { ' ' } else { c }).filter(|c| !is_invisible(*c)).collect();
    spaced.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn given(field: &str, value: Option<String>) -> Result<String, String> {
    value.ok_or_else(|| format!("{field} is missing"))
}

fn foreign(fields: &[(&str, &Option<String>)]) -> Result<(), String> {
    match fields.iter().find(|(_, value)| value.is_some()) {
        Some((field, _)) => Err(format!("{field} does not belong to this type")),
        None => Ok(()),
    }
}

fn resolve<T: Copy + From<Uuid>>(field: &str, name: &str, known: &HashMap<String, T>) -> Result<T, String> {
    let as_id = || name.parse::<Uuid>().ok().map(T::from);
    known.get(name).copied().or_else(as_id).ok_or_else(|| format!("{field}: no line before this one has the source_id {name:?}"))
}

/// The node checks again; here it is found without asking.
fn check(item: &Item) -> Result<(), String> {
    fn rule<T, E: Display>(field: &str, parsed: Result<T, E>) -> Result<(), String> {
        parsed.map(drop).map_err(|error| format!("{field} {error}"))
    }
    match item {
        Item::User(user) => {
            rule("username", Username::parse(&user.username))?;
            rule("display_name", DisplayName::parse(&user.display_name))?;
            rule("bio", Bio::parse(&user.bio))?;
            user.avatar_url.as_deref().map_or(Ok(()), |url| rule("avatar_url", AvatarUrl::parse(url)))
        }
        Item::Post(post) => {
            rule("title", Title::parse(&post.title))?;
            rule("body", Body::parse(&post.body))?;
            rule("tags", Tags::parse(&post.tags))
        }
        Item::Comment(comment) => rule("body", CommentBody::parse(comment.body.as_str())),
    }
}

/// RFC 3339 or Unix seconds, within what an id can hold.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Time {
        Seconds(i64),
        Fraction(f64),
        Text(String),
    }
    let wrong = |error: jiff::Error| D::Error::custom(format!("created_at: {error}"));
    let time =
        match Time::deserialize(deserializer).map_err(|_| D::Error::custom("created_at is neither RFC 3339 nor Unix seconds"))? {
            Time::Seconds(seconds) => Timestamp::from_second(seconds).map_err(wrong)?,
            #[expect(clippy::cast_possible_truncation, reason = "as saturates, and out of range is an error in the next step")]
            Time::Fraction(seconds) => Timestamp::from_microsecond((seconds * 1e6).round() as i64).map_err(wrong)?,
            Time::Text(text) => text.parse().map_err(wrong)?,
        };
    if time < Timestamp::UNIX_EPOCH {
        return Err(D::Error::custom("created_at is before 1970, which no id can hold"));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POST: &str = r#"{"source_id":"174bt","tag":"Ask_Science","title":"Tom &amp; Jerry\r\nagain\n","body":"a &lt; b &amp;&amp; c","created_at":1172701661,"score":705,"num_comments":49}"#;

    fn read(line: &str) -> Result<Item, String> {
        Reader::default().read(line.as_bytes()).map(|item| item.expect("the line is not blank"))
    }

    fn post(line: &str) -> Post {
        match read(line).unwrap() {
            Item::Post(post) => post,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_post_of_the_top_2_5_million_becomes_one_of_ours() {
        let post = post(POST);
        assert_eq!((post.title.as_str(), post.body.as_str()), ("Tom & Jerry again", "a < b && c"));
        assert_eq!(post.tags, ["ask-science"]);
        assert_eq!(post.created_at.as_second(), 1_172_701_661);
    }

    #[test]
    fn the_same_source_id_and_time_give_the_same_id_and_author() {
        let (first, again) = (post(POST), post(&POST.replace("again", "still")));
        assert_eq!((first.id, first.author), (again.id, again.author));
        assert_ne!(first.id, post(&POST.replace("174bt", "174bu")).id);
    }

    #[test]
    fn an_id_is_a_uuid_of_version_7_that_carries_the_time() {
        let id = post(POST).id.0;
        assert_eq!(id.get_version_num(), 7);
        assert_eq!(id.get_timestamp().unwrap().to_unix().0, 1_172_701_661);
    }

    #[test]
    fn ids_never_change_or_a_second_import_would_find_nothing() {
        assert_eq!(post(POST).id.0.to_string(), "01110a77-4748-7da5-ace1-f5a68f45d248");
    }

    #[test]
    fn made_up_authors_are_a_few_and_valid() {
        let mut names = std::collections::HashSet::new();
        for n in 0..20_000 {
            let Author::Made { username, .. } = made_up_author(&n.to_string()).unwrap() else { panic!("it is made up") };
            Username::parse(&username).unwrap();
            names.insert(username);
        }
        assert!((1_900..=2_000).contains(&names.len()), "{}", names.len());
    }

    #[test]
    fn escapes_are_undone_once() {
        assert_eq!(unescaped("&amp;lt; &lt;&gt; &amp;"), "&lt; <> &");
    }

    #[test]
    fn a_title_keeps_its_words_and_loses_what_cannot_be_seen() {
        assert_eq!(one_line("America'\u{80}\u{99}s Flawed\u{2029}Election\t"), "America's Flawed Election");
        assert_eq!(one_line("two  spaces stay"), "two  spaces stay");
    }

    #[test]
    fn a_comment_names_its_post_and_its_parent_by_their_source_ids() {
        let mut reader = Reader::default();
        let lines = [
            r#"{"type":"user","username":"Ada","created_at":"2013-08-01T12:00:00Z"}"#,
            r#"{"type":"post","source_id":"p1","author":"ada","title":"Hello","created_at":"2013-08-01T12:00:00Z"}"#,
            r#"{"type":"comment","source_id":"c1","post":"p1","author":"ada","body":"first","created_at":1375358400}"#,
            r#"{"type":"comment","post":"p1","parent":"c1","author":"ada","body":"second","created_at":1375358401}"#,
        ];
        let items: Vec<Item> = lines.iter().map(|line| reader.read(line.as_bytes()).unwrap().unwrap()).collect();
        let (Item::Post(post), Item::Comment(first), Item::Comment(second)) = (&items[1], &items[2], &items[3]) else {
            panic!("{items:?}")
        };
        assert_eq!((first.post, first.parent), (post.id, None));
        assert_eq!((second.post, second.parent), (post.id, Some(first.id)));
    }

    #[test]
    fn a_bad_line_says_what_is_wrong() {
        let long = format!(r#"{{"source_id":"x","tag":"a","title":"{}","body":"","created_at":1}}"#, "x".repeat(201));
        for (line, reason) in [
            ("{", "not a JSON object"),
            ("[1]", "not a JSON object"),
            (r#"{"type":"like"}"#, "unknown variant `like`"),
            (r#"{"type":"post","author":"ada","title":"t","created_at":1,"colour":"red"}"#, "unknown field `colour`"),
            (r#"{"type":"post","title":"t","created_at":1}"#, "author is missing"),
            (r#"{"type":"user","username":"ada","title":"t","created_at":1}"#, "title does not belong"),
            (r#"{"type":"post","author":"ada","title":"t","created_at":"yesterday"}"#, "created_at"),
            (r#"{"type":"post","author":"ada","title":"t","created_at":-5}"#, "before 1970"),
            (r#"{"type":"comment","post":"p9","author":"ada","body":"b","created_at":1}"#, "no line before this one"),
            (r#"{"source_id":"x","tag":"c++","title":"t","body":"","created_at":1}"#, "tags may only contain"),
            (&long, "title must have at most 200 characters"),
        ] {
            let error = read(line).unwrap_err();
            assert!(error.contains(reason), "{line}: {error}");
        }
        assert!(Reader::default().read(b"\xff").unwrap_err().starts_with("not UTF-8"));
    }

    #[test]
    fn a_byte_order_mark_loses_nothing_and_changes_no_id() {
        let marked = format!("\u{FEFF}{POST}");
        assert_eq!(post(&marked).id, post(POST).id);
        // Without a source id, the line itself is what its id is made of.
        let nameless = r#"{"type":"post","author":"ada","title":"t","created_at":1}"#;
        assert_eq!(post(&format!("\u{FEFF}{nameless}\r\n")).id, post(nameless).id);
        assert_eq!(Reader::default().read("\u{FEFF}\n".as_bytes()).unwrap(), None);
    }

    #[test]
    fn a_blank_line_is_nothing() {
        assert_eq!(Reader::default().read(b"  \r\n").unwrap(), None);
    }
}
