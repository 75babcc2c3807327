//! How well the order of what is found fits what was meant: known items, that is, posts that somebody remembers badly.
//!
//! Each question is made from one post, which is the only right answer. Nobody has judged the others, so a question of two
//! words cannot be answered perfectly; the figures say something beside those of another engine, and beside those of
//! yesterday. [`FLOORS`] are what a change must not fall below.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use rookery_actors::search::index::{Document, Kind};
use serde::Serialize;
use uuid::Uuid;

use super::{
    ask::Ask,
    corpus,
    engine::{BATCH_DOCUMENTS, Engine},
    plain::{Layout, Plain},
    posts::{Origin, Post, Posts},
    words::{is_stop_word, misspelt, telling_words, words},
};
use crate::draw::Draw;

/// As far down as somebody looks.
const DEPTH: usize = 10;
/// Words of a title that are typed at most.
const WORDS_MAX: usize = 12;
/// What the search box takes, in bytes.
const TEXT_BYTES_MAX: usize = 199;
/// Telling words of a title from which something can be left out.
const TELLING_MIN: usize = 3;
/// Words of a fragment.
const FRAGMENT: usize = 8;
/// Words of a body from which a fragment is taken.
const BODY_WORDS_MIN: usize = 30;
/// Words of a title of which half are misspelt: of a longer one the others would do.
const TYPOS_WORDS: usize = 4;

/// How a post is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Memory {
    /// Its title, as it is.
    Title,
    /// The first telling words of its title, half of them with a typing mistake.
    Typos,
    /// Its title, in another order.
    Swapped,
    /// Half of the words of its title.
    Dropped,
    /// Some words in a row of its body.
    Fragment,
    /// A word of its title and one of its body.
    TwoWords,
}

impl Memory {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Title, Self::Typos, Self::Swapped, Self::Dropped, Self::Fragment, Self::TwoWords];

    /// As a table says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Title => "title",
            Self::Typos => "title, typos",
            Self::Swapped => "title, words swapped",
            Self::Dropped => "title, words dropped",
            Self::Fragment => "fragment of the body",
            Self::TwoWords => "two words",
        }
    }
}

/// A question and its right answer.
#[derive(Clone, Debug)]
pub struct KnownItem {
    /// How it is remembered.
    pub memory: Memory,
    /// What is asked.
    pub ask: Ask,
    /// What was meant.
    pub meant: Uuid,
}

/// How well the questions of one kind were answered, each figure from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quality {
    /// How many questions.
    pub questions: usize,
    /// The discounted gain among the first ten: 1 for the first place, 0.63 for the second, 0.29 for the tenth.
    pub ndcg: f64,
    /// The mean of 1 / place among the first ten.
    pub mrr: f64,
    /// How many were answered among the first ten.
    pub recall: f64,
}

/// The quality of both engines, by kind of question.
pub type Compared = Vec<(Memory, Quality, Quality)>;

/// Asks our engine and plain BM25 (the title three times) so many questions of each kind about these posts; both indexes are
/// made in this folder.
///
/// # Errors
/// When an index cannot be written or read.
pub fn compare(posts: &Posts, questions: usize, folder: &Path) -> anyhow::Result<Compared> {
    let documents: Vec<(u64, Document)> = (0u64..).zip(&posts.posts).map(|(n, post)| (n + 1, document(n, post))).collect();
    let mut ours = Engine::open(&folder.join("rookery"))?;
    let mut plain = Plain::create(&folder.join("plain"), Layout::OneText)?;
    for batch in documents.chunks(BATCH_DOCUMENTS) {
        ours.apply(batch)?;
        plain.add(batch)?;
    }
    plain.finish()?;
    let items = known_items(&documents, questions);
    let ours = qualities(&items, |ask| ours.best(ask))?;
    let plain = qualities(&items, |ask| plain.best(ask))?;
    Ok(Memory::ALL.into_iter().filter_map(|memory| Some((memory, *ours.get(&memory)?, *plain.get(&memory)?))).collect())
}

/// Makes so many questions of each kind, as far as there are posts that have what it takes.
fn known_items(documents: &[(u64, Document)], questions: usize) -> Vec<KnownItem> {
    let titles = documents.iter().filter_map(|(_, document)| Some(words(document.title.as_deref()?).collect::<Vec<_>>()));
    let mut count = HashMap::<Vec<String>, usize>::new();
    titles.for_each(|title| *count.entry(title).or_default() += 1);
    let mut order: Vec<&Document> = documents.iter().map(|(_, document)| document).collect();
    let mut items = Vec::new();
    for memory in Memory::ALL {
        // Others for each kind, so that all figures together are about many posts.
        let mut draw = Draw::of_two(0x4e1, memory as u64);
        draw.shuffle(&mut order);
        let alone = order.iter().filter(|document| {
            let title: Vec<String> = words(document.title.as_deref().unwrap_or_default()).collect();
            count.get(&title) == Some(&1)
        });
        let asks = alone.filter_map(|document| {
            let ask = Ask { limit: DEPTH, ..remembered(memory, document, &mut draw)? };
            Some(KnownItem { memory, ask, meant: document.id })
        });
        items.extend(asks.take(questions));
    }
    items
}

/// What somebody types who remembers a post so, if it can be remembered so.
fn remembered(memory: Memory, document: &Document, draw: &mut Draw) -> Option<Ask> {
    let mut title: Vec<String> = words(document.title.as_deref()?).take(WORDS_MAX).collect();
    let telling: HashSet<String> = title.iter().filter(|word| !is_stop_word(word)).cloned().collect();
    let body = || -> Vec<String> { if document.body.starts_with("http") { Vec::new() } else { words(&document.body).collect() } };
    if telling.len() < TELLING_MIN {
        return None;
    }
    match memory {
        Memory::Title => {}
        Memory::Typos => {
            title.retain(|word| !is_stop_word(word));
            title.truncate(TYPOS_WORDS);
            let mut wrong: Vec<usize> = (0..title.len()).filter(|at| title[*at].len() > 4).collect();
            draw.shuffle(&mut wrong);
            wrong.truncate(title.len() / 2);
            if wrong.is_empty() {
                return None;
            }
            for at in wrong {
                title[at] = misspelt(&title[at], draw);
            }
        }
        Memory::Swapped => draw.shuffle(&mut title),
        Memory::Dropped => {
            let mut kept: Vec<usize> = (0..title.len()).collect();
            draw.shuffle(&mut kept);
            kept.truncate(title.len().div_ceil(2));
            kept.sort_unstable();
            title = kept.into_iter().map(|at| title[at].clone()).collect();
            if title.iter().all(|word| is_stop_word(word)) {
                return None;
            }
        }
        Memory::Fragment => {
            let body = body();
            let from = draw.below(body.len().checked_sub(BODY_WORDS_MIN)?.max(1));
            title = body[from..from + FRAGMENT].to_vec();
        }
        Memory::TwoWords => {
            let body: Vec<String> = telling_words(&body().join(" ")).filter(|word| !telling.contains(word)).collect();
            let title_words: Vec<String> = title.into_iter().filter(|word| telling.contains(word)).collect();
            if body.is_empty() {
                return None;
            }
            title = vec![draw.pick(&title_words).clone(), draw.pick(&body).clone()];
        }
    }
    let ask = Ask::words(title.iter().map(String::as_str));
    (ask.text.len() <= TEXT_BYTES_MAX).then_some(ask)
}

fn qualities(items: &[KnownItem], find: impl Fn(&Ask) -> anyhow::Result<Vec<Uuid>>) -> anyhow::Result<HashMap<Memory, Quality>> {
    let mut places = HashMap::<Memory, Vec<Option<usize>>>::new();
    for item in items {
        let found = find(&item.ask)?;
        places.entry(item.memory).or_default().push(found.iter().position(|id| *id == item.meant));
    }
    Ok(places.into_iter().map(|(memory, places)| (memory, Quality::of(&places))).collect())
}

impl Quality {
    /// Of the places, from 0 on, at which what was meant was found.
    fn of(places: &[Option<usize>]) -> Self {
        let mean = |worth: fn(usize) -> f64| {
            let sum: f64 = places.iter().flatten().filter(|place| **place < DEPTH).map(|place| worth(*place)).sum();
            sum / places.len().max(1) as f64
        };
        Self {
            questions: places.len(),
            ndcg: mean(|place| 1.0 / (place as f64 + 2.0).log2()),
            mrr: mean(|place| 1.0 / (place as f64 + 1.0)),
            recall: mean(|_| 1.0),
        }
    }
}

/// A post of the input as a document, and nothing else about it.
fn document(n: u64, post: &Post) -> Document {
    Document {
        kind: Kind::Post,
        id: corpus::id(n),
        version: 1,
        author: None,
        tags: vec![post.tag.clone()],
        title: Some(post.title.clone()),
        body: post.body.clone(),
        created_at: jiff::Timestamp::from_second(post.created_at).expect("the times of posts are within our calendar"),
        post_id: None,
        deleted: false,
    }
}

/// What is asked about, for which floors are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// All posts of people, [`WHOLE_QUESTIONS`] of each kind: the binary `relevance`.
    Whole,
    /// [`SAMPLE_POSTS`] of them, [`SAMPLE_QUESTIONS`] of each kind: a test.
    Sample,
    /// As many made-up ones: the same test where those of people are missing.
    MadeUp,
}

/// Posts in the test, few enough for a build without optimisation.
pub const SAMPLE_POSTS: usize = 500;
/// Questions of each kind in the test.
pub const SAMPLE_QUESTIONS: usize = 40;

/// Questions of each kind over the whole.
pub const WHOLE_QUESTIONS: usize = 500;

impl Scale {
    /// That of these posts, or of a sample of them; none for all of the made-up ones.
    pub fn of(posts: &Posts, sample: bool) -> Option<Self> {
        match (posts.origin, sample) {
            (Origin::People, false) => Some(Self::Whole),
            (Origin::People, true) => Some(Self::Sample),
            (Origin::MadeUp, true) => Some(Self::MadeUp),
            (Origin::MadeUp, false) => None,
        }
    }
}

/// The least nDCG of our engine: over the whole, over the sample, over made-up posts. A little below what it reaches, and to
/// be raised with it.
pub const FLOORS: [(Memory, [f64; 3]); 6] = [
    (Memory::Title, [0.99, 0.995, 0.995]),
    (Memory::Typos, [0.96, 0.99, 0.99]),
    (Memory::Swapped, [0.99, 0.995, 0.995]),
    (Memory::Dropped, [0.96, 0.99, 0.99]),
    (Memory::Fragment, [0.925, 0.985, 0.975]),
    (Memory::TwoWords, [0.73, 0.965, 0.965]),
];

/// By how much our nDCG of a kind may be below that of plain BM25. The goal is 0 for every one; of whole titles, one in some
/// hundred comes second.
pub const BEHIND_PLAIN_MAX: [f64; 3] = [0.003, 0.0, 0.0];

/// What fell below its floor, in sentences.
pub fn below_floor(scale: Scale, compared: &Compared) -> Vec<String> {
    let at = scale as usize;
    let mut said = Vec::new();
    for (memory, floors) in FLOORS {
        let Some((_, ours, plain)) = compared.iter().find(|(of, ..)| *of == memory) else {
            said.push(format!("nothing was asked by {}", memory.as_str()));
            continue;
        };
        if ours.ndcg < floors[at] {
            said.push(format!("{}: nDCG@10 is {:.3}, the floor {:.3}", memory.as_str(), ours.ndcg, floors[at]));
        }
        if ours.ndcg < plain.ndcg - BEHIND_PLAIN_MAX[at] {
            let most = BEHIND_PLAIN_MAX[at];
            said.push(format!(
                "{}: nDCG@10 is {:.3}, more than {most} below that of plain BM25, {:.3}",
                memory.as_str(),
                ours.ndcg,
                plain.ndcg
            ));
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_is_worth_everything_and_the_eleventh_nothing() {
        assert_eq!(Quality::of(&[Some(0)]), Quality { questions: 1, ndcg: 1.0, mrr: 1.0, recall: 1.0 });
        assert_eq!(Quality::of(&[Some(10), None]), Quality { questions: 2, ndcg: 0.0, mrr: 0.0, recall: 0.0 });
        let second = Quality::of(&[Some(1)]);
        assert!((second.ndcg - 0.630_9).abs() < 1e-3 && (second.mrr - 0.5).abs() < 1e-9, "{second:?}");
    }

    #[test]
    fn questions_are_the_same_every_time_and_of_every_kind() {
        let posts = Posts::made_up().sample(300);
        let documents: Vec<_> = (0u64..).zip(&posts.posts).map(|(n, post)| (n + 1, document(n, post))).collect();
        let asked = |items: Vec<KnownItem>| items.into_iter().map(|item| item.ask.text).collect::<Vec<_>>();
        let items = known_items(&documents, 20);
        assert_eq!(asked(items.clone()), asked(known_items(&documents, 20)));
        for memory in Memory::ALL {
            assert_eq!(items.iter().filter(|item| item.memory == memory).count(), 20, "{memory:?}");
        }
    }
}
