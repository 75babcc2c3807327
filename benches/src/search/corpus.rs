//! As many documents as are wanted, made of the posts that there are.
//!
//! The first posts are those of the input. The others are made of it: their sentences come from any posts of one tag, their
//! lengths are those of the input, and three words in a hundred are others: a misspelling, or a word, name or number
//! from a vocabulary without end. So no text comes twice, and the vocabulary goes on growing as in nature. Every document can
//! be made by itself, and is the same in every run and in a corpus of every size.

use std::{collections::BTreeMap, ops::Range};

use jiff::Timestamp;
use rookery_actors::search::index::{Document, Kind};
use uuid::Uuid;

use super::{
    posts::{Post, Posts},
    words::{coined, misspelt},
};
use crate::draw::Draw;

/// Of so many documents ...
const CYCLE: u64 = 20;
/// ... so many are users,
const USERS: u64 = 1;
/// and so many comments. The others are posts.
const COMMENTS: u64 = 4;

/// One word in so many of a text that is made is not what stands in the input.
const OTHER_WORDS: f64 = 0.03;
/// So many of those are the word itself, misspelt.
const MISSPELT: f64 = 0.25;
/// Ranks of new words that are about equally frequent, so that none is common.
const NEW_WORDS_FLAT: f64 = 2_000.0;
/// How fast their number grows; 0.4 to 0.6 in English.
const NEW_WORDS_BETA: f64 = 0.6;

/// One post in so many has a second tag.
const SECOND_TAG: f64 = 0.2;
/// Between two posts that are younger than the input, in seconds: a million documents are nine years.
const PAUSE: i64 = 300;
/// What is made arrives a little out of order: up to so many seconds late.
const LATE_MAX: f64 = 86_400.0;
/// The ids are of this moment (milliseconds since 1970) and those after it: an import mints them, whatever the posts' age.
const IMPORTED_MS: u64 = 1_767_225_600_000;

/// The first words of posts that are made are drawn with this.
const SEED: u64 = 0x5eed;

/// Makes documents.
pub struct Corpus {
    posts: Vec<Post>,
    tags: Vec<Tag>,
    /// Of each post, its tag.
    tag_of: Vec<usize>,
}

/// What the posts of a tag consist of.
struct Tag {
    name: String,
    titles: Vec<String>,
    sentences: Vec<String>,
    links: Vec<String>,
}

impl Corpus {
    /// A corpus made of these posts.
    pub fn of(posts: Posts) -> Self {
        let mut tags: Vec<Tag> = Vec::new();
        let mut known = BTreeMap::new();
        let mut tag_of = Vec::with_capacity(posts.posts.len());
        for post in &posts.posts {
            let number = *known.entry(post.tag.clone()).or_insert_with(|| {
                tags.push(Tag { name: post.tag.clone(), titles: Vec::new(), sentences: Vec::new(), links: Vec::new() });
                tags.len() - 1
            });
            tag_of.push(number);
            let tag = &mut tags[number];
            tag.titles.push(post.title.clone());
            if post.is_link() {
                tag.links.push(post.body.trim().to_owned());
            } else {
                tag.sentences.extend(sentences(&post.body).map(str::to_owned));
            }
        }
        for tag in &mut tags {
            // A tag of links only still has comments.
            if tag.sentences.is_empty() {
                tag.sentences.clone_from(&tag.titles);
            }
        }
        Self { posts: posts.posts, tags, tag_of }
    }

    /// The first documents, each with a number from 1 on.
    pub fn documents(&self, count: u64) -> impl Iterator<Item = (u64, Document)> {
        (0..count).map(|n| (n + 1, self.document(n)))
    }

    /// What document number `n` is about.
    pub fn kind(n: u64) -> Kind {
        match n % CYCLE {
            0..USERS => Kind::User,
            at if at < USERS + COMMENTS => Kind::Comment,
            _ => Kind::Post,
        }
    }

    /// Document number `n`, from 0 on.
    pub fn document(&self, n: u64) -> Document {
        let mut draw = Draw::of_two(SEED, n);
        match Self::kind(n) {
            Kind::User => self.user(n, &mut draw),
            Kind::Comment => self.comment(n, &mut draw),
            Kind::Post => self.post(n, &mut draw),
        }
    }

    fn post(&self, n: u64, draw: &mut Draw) -> Document {
        let at = post_number(n);
        let (tag, title, body) = match self.posts.get(at) {
            Some(post) => (self.tag_of[at], post.title.clone(), post.body.clone()),
            None => self.made(n, draw),
        };
        let mut tags = vec![self.tags[tag].name.clone()];
        if draw.happens(SECOND_TAG) {
            tags.push(draw.pick(&self.tags).name.clone());
            tags.dedup();
        }
        Document { tags, title: Some(title), author: Some(author(n, draw)), ..self.blank(n, Kind::Post, body, draw) }
    }

    /// The tag, title and body of a post that nobody has written, as long as one that somebody has.
    fn made(&self, n: u64, draw: &mut Draw) -> (usize, String, String) {
        let like = draw.below(self.posts.len());
        let (tag, post) = (&self.tags[self.tag_of[like]], &self.posts[like]);
        let title = {
            let (begin, end) = (draw.pick(&tag.titles), draw.pick(&tag.titles));
            let (begin, end): (Vec<_>, Vec<_>) = (begin.split_whitespace().collect(), end.split_whitespace().collect());
            let halves = begin[..begin.len().div_ceil(2)].iter().chain(&end[end.len() / 2..]);
            varied(&halves.copied().collect::<Vec<_>>(), draw)
        };
        let body = if post.is_link() {
            let link = draw.pick(&tag.links);
            let folder = link.rsplit_once('/').map_or(link.as_str(), |(folder, _)| folder);
            format!("{folder}/{}-{n:x}", coined(new_word(draw)).to_lowercase())
        } else {
            self.text(self.tag_of[like], post.body.len(), draw)
        };
        (self.tag_of[like], title, body)
    }

    fn comment(&self, n: u64, draw: &mut Draw) -> Document {
        // Of an earlier post, as a rule; the block of each number begins with users and comments.
        let block = draw.below((n / CYCLE).max(1) as usize) as u64 * CYCLE;
        let post = block + USERS + COMMENTS + draw.below((CYCLE - USERS - COMMENTS) as usize) as u64;
        let tag = self.tag_of[post_number(post) % self.tag_of.len()];
        // Short ones more often, about a third as long as a text.
        let bytes = 30 + (draw.uniform().powi(3) * 900.0) as usize;
        let body = self.text(tag, bytes, draw);
        Document { author: Some(author(n, draw)), post_id: Some(id(post)), ..self.blank(n, Kind::Comment, body, draw) }
    }

    fn user(&self, n: u64, draw: &mut Draw) -> Document {
        let (first, last) = (coined(draw.rank(500.0, 0.6)), coined(50_000_000 + draw.rank(5_000.0, 0.6)));
        let name = format!("{}{} {first} {last}", first.to_lowercase(), n / CYCLE);
        let body = if draw.happens(0.6) { self.text(draw.below(self.tags.len()), 60, draw) } else { String::new() };
        Document { title: Some(name), ..self.blank(n, Kind::User, body, draw) }
    }

    /// Sentences of a tag, about so many bytes of them; nothing for none.
    fn text(&self, tag: usize, bytes: usize, draw: &mut Draw) -> String {
        let mut text = String::with_capacity(bytes + 100);
        while text.len() < bytes {
            if !text.is_empty() {
                text.push(' ');
            }
            let sentence: Vec<&str> = draw.pick(&self.tags[tag].sentences).split_whitespace().collect();
            text.push_str(&varied(&sentence, draw));
        }
        text
    }

    fn blank(&self, n: u64, kind: Kind, body: String, draw: &mut Draw) -> Document {
        Document {
            kind,
            id: id(n),
            version: 1,
            author: None,
            tags: Vec::new(),
            title: None,
            body,
            created_at: self.created_at(n, draw),
            post_id: None,
            deleted: false,
        }
    }

    /// As long as there are posts of the input, about when those were written; afterwards at a steady pace.
    fn created_at(&self, n: u64, draw: &mut Draw) -> Timestamp {
        let at = post_number(n);
        let second = match (self.posts.get(at), Self::kind(n)) {
            (Some(post), Kind::Post) => post.created_at,
            (Some(post), _) => post.created_at + draw.below(3_600) as i64,
            (None, _) => {
                let last = self.posts.last().map_or(0, |post| post.created_at);
                last + (at - self.posts.len()) as i64 * PAUSE - (draw.uniform().powi(4) * LATE_MAX) as i64
            }
        };
        Timestamp::from_second(second).expect("the times of posts are within our calendar")
    }
}

/// The id of document number `n`: a UUIDv7 that is younger than that of `n - 1`.
pub fn id(n: u64) -> Uuid {
    let mut draw = Draw::of_two(0x1d, n);
    let random = 0x7000 | (draw.number() & 0xfff);
    Uuid::from_u64_pair(((IMPORTED_MS + n) << 16) | random, (draw.number() >> 2) | (1 << 63))
}

/// How many posts there are before document number `n`.
fn post_number(n: u64) -> usize {
    (n / CYCLE * (CYCLE - USERS - COMMENTS) + (n % CYCLE).saturating_sub(USERS + COMMENTS)) as usize
}

/// A user among those before document number `n`; some write much more than others.
fn author(n: u64, draw: &mut Draw) -> Uuid {
    let users = n / CYCLE + 1;
    id((draw.uniform().powi(2) * users as f64) as u64 * CYCLE)
}

fn new_word(draw: &mut Draw) -> u64 {
    draw.rank(NEW_WORDS_FLAT, NEW_WORDS_BETA)
}

/// The words, some of them others, at least one.
fn varied(words: &[&str], draw: &mut Draw) -> String {
    let certain = draw.below(words.len().max(1));
    let mut text = String::with_capacity(words.len() * 7);
    for (at, word) in words.iter().enumerate() {
        if at > 0 {
            text.push(' ');
        }
        match at == certain || draw.happens(OTHER_WORDS) {
            true if draw.happens(MISSPELT) => text.push_str(&misspelt(word, draw)),
            true => text.push_str(&coined(new_word(draw))),
            false => text.push_str(word),
        }
    }
    text
}

/// The sentences of a text, roughly: what ends with a stop, or with a line.
fn sentences(text: &str) -> impl Iterator<Item = &str> {
    let ends = |range: Range<usize>| {
        let line = &text[range.clone()];
        line.match_indices(['.', '!', '?']).map(move |(at, stop)| range.start + at + stop.len()).collect::<Vec<_>>()
    };
    let mut pieces = Vec::new();
    let mut from = 0;
    for line in text.split_inclusive('\n') {
        let range = from..from + line.len();
        let mut begin = range.start;
        for end in ends(range.clone()) {
            // A stop within a word, such as a link, ends nothing.
            if text[end..].starts_with(char::is_whitespace) {
                pieces.push(begin..end);
                begin = end;
            }
        }
        pieces.push(begin..range.end);
        from = range.end;
    }
    pieces.into_iter().map(|range| text[range].trim()).filter(|piece| piece.len() > 10 && piece.len() < 2_000)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::*;
    use crate::search::words::words;

    fn corpus() -> Corpus {
        Corpus::of(Posts::made_up())
    }

    #[test]
    fn three_in_four_documents_are_posts_and_ids_grow() {
        let corpus = corpus();
        let mut kinds = BTreeMap::<Kind, usize>::new();
        let mut last = Uuid::nil();
        for (_, document) in corpus.documents(2_000) {
            *kinds.entry(document.kind).or_default() += 1;
            assert!(document.id > last && document.id.get_version_num() == 7);
            last = document.id;
        }
        assert_eq!(kinds, BTreeMap::from([(Kind::Post, 1_500), (Kind::User, 100), (Kind::Comment, 400)]));
    }

    #[test]
    fn comments_belong_to_posts_and_authors_are_users() {
        let corpus = corpus();
        let documents: Vec<Document> = corpus.documents(2_000).map(|(_, document)| document).collect();
        let of = |kind| documents.iter().filter(move |it| it.kind == kind).map(|it| it.id).collect::<HashSet<_>>();
        let (posts, users) = (of(Kind::Post), of(Kind::User));
        assert!(documents.iter().filter_map(|it| it.post_id).all(|post| posts.contains(&post)));
        assert!(documents.iter().filter_map(|it| it.author).all(|author| users.contains(&author)));
    }

    #[test]
    fn no_text_comes_twice_and_the_vocabulary_grows_as_in_nature() {
        let corpus = corpus();
        let (mut titles, mut vocabulary) = (HashSet::new(), HashSet::new());
        let mut grown = |range: Range<u64>| {
            for n in range {
                let document = corpus.document(n);
                vocabulary.extend(words(&document.body));
                if document.kind == Kind::Post {
                    assert!(titles.insert(document.title), "document {n}");
                }
            }
            vocabulary.len() as f64
        };
        // Those up to 5,333 are the input itself.
        let (few, many) = (grown(6_000..9_000), grown(9_000..18_000));
        let beta = (many / few).log(4.0);
        assert!((0.3..0.8).contains(&beta), "{beta}");
    }

    #[test]
    fn sentences_end_at_stops_and_lines() {
        let text = "This is the first. See http://a.example/b.html for more!\nThe third line";
        let all: Vec<_> = sentences(text).collect();
        assert_eq!(all, ["This is the first.", "See http://a.example/b.html for more!", "The third line"]);
    }
}
