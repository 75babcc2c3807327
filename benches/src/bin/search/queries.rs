//! The questions: of each kind as many different ones as are wanted and as the documents have.

use std::collections::{HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};
use rookery_actors::search::index::{Document, Kind};
use rookery_benches::{
    draw::Draw,
    search::{
        ask::{Ask, Clause},
        corpus::Corpus,
        words::{misspelt, telling_words, words},
    },
};

/// A frequent word is in more documents than this share of all,
const FREQUENT_MIN: f64 = 0.005;
/// a mid one in more than this share,
const MID_MIN: f64 = 0.000_5;
/// and a rare one in fewer documents than this.
const RARE_BELOW: u32 = 10;

/// How far down a deep page begins.
const DEEP: usize = 100;
/// Tries for each question: not every document has what it takes, and no question comes twice.
const TRIES: usize = 40;

/// The kinds of one word, by frequency: their mean is what one word costs.
pub(crate) const BANDS: [&str; 3] = ["frequent word", "mid word", "rare word"];
const TYPO: &str = "typo";
const NO_HIT: &str = "no hit";

/// Questions of one kind.
pub(crate) struct QueryKind {
    /// Its name.
    pub name: &'static str,
    /// The questions, all different.
    pub asks: Vec<Ask>,
}

impl QueryKind {
    /// Whether no document has the word that is asked for.
    pub(crate) fn is_misspelt(&self) -> bool {
        is_misspelt(self.name)
    }
}

/// Whether the questions of this kind are for a word that no document has.
pub(crate) fn is_misspelt(name: &str) -> bool {
    [TYPO, NO_HIT].contains(&name)
}

/// The words of all documents, the most frequent first, and how many documents have each.
pub(crate) struct Vocabulary {
    words: Vec<(String, u32)>,
    known: HashSet<String>,
}

impl Vocabulary {
    /// Counts the words of so many documents.
    pub(crate) fn of(corpus: &Corpus, documents: u64) -> Self {
        let mut counts = HashMap::<String, u32>::new();
        let mut seen = HashSet::new();
        for (_, document) in corpus.documents(documents) {
            seen.clear();
            for word in telling_words(&text(&document)) {
                if seen.insert(word.clone()) {
                    *counts.entry(word).or_default() += 1;
                }
            }
        }
        let mut words: Vec<(String, u32)> = counts.into_iter().collect();
        words.sort_unstable_by(|a, b| (b.1, &a.0).cmp(&(a.1, &b.0)));
        Self { known: words.iter().map(|(word, _)| word.clone()).collect(), words }
    }

    /// How many different words there are.
    pub(crate) fn len(&self) -> usize {
        self.words.len()
    }

    /// The words that most documents have.
    pub(crate) fn most_frequent(&self, count: usize) -> Vec<String> {
        self.words.iter().take(count).map(|(word, _)| word.clone()).collect()
    }

    /// Some of the words that so many documents have, in any order.
    fn band(&self, documents: impl Fn(u32) -> bool, count: usize, draw: &mut Draw) -> Vec<&str> {
        let mut band: Vec<&str> =
            self.words.iter().filter(|(_, count)| documents(*count)).map(|(word, _)| word.as_str()).collect();
        draw.shuffle(&mut band);
        band.truncate(count);
        band
    }
}

/// Questions that nobody measures, so that the first ones which count do not pay for what all need.
pub(crate) fn warm_up(corpus: &Corpus, documents: u64) -> Vec<Ask> {
    Maker { corpus, documents, count: 200 }.of_documents(0xaa, |draw, words, _| Some(Ask::words(some(words, 2, draw)?)))
}

/// All kinds.
pub(crate) fn all(corpus: &Corpus, vocabulary: &Vocabulary, documents: u64, count: usize) -> Vec<QueryKind> {
    let maker = Maker { corpus, documents, count };
    let share = |share: f64| (documents as f64 * share).max(1.0) as u32;
    let (frequent, mid) = (share(FREQUENT_MIN), share(MID_MIN));
    let mut draw = Draw::of(0xba4d);
    let frequent_words = vocabulary.band(|count| count > frequent, usize::MAX, &mut draw);
    let mid_words = vocabulary.band(|count| count > mid && count <= frequent, count, &mut draw);
    let rare_words = vocabulary.band(|count| count < RARE_BELOW && count > 1, count, &mut draw);
    let each = |words: &[&str]| words.iter().take(count).map(|word| Ask::words([*word])).collect::<Vec<_>>();
    let kinds = vec![
        (BANDS[0], each(&frequent_words)),
        (BANDS[1], each(&mid_words)),
        (BANDS[2], each(&rare_words)),
        ("two words", maker.of_documents(2, |draw, words, _| Some(Ask::words(some(words, 2, draw)?)))),
        ("three words", maker.of_documents(3, |draw, words, _| Some(Ask::words(some(words, 3, draw)?)))),
        ("phrase", maker.of_documents(4, |draw, _, document| phrase(draw, document))),
        ("prefix", maker.of_documents(5, |draw, words, _| prefix(draw, words))),
        (TYPO, typos(vocabulary, mid, count)),
        ("exclusion", maker.of_documents(7, |draw, words, _| exclusion(draw, words))),
        (NO_HIT, no_hits(vocabulary, count)),
        (
            "by type",
            maker.of_documents(9, |draw, words, document| {
                Some(Ask { kind: Some(document.kind), ..Ask::words(some(words, 1, draw)?) })
            }),
        ),
        (
            "by author",
            maker.of_documents(10, |draw, words, document| {
                Some(Ask { author: Some(document.author?), ..Ask::words(some(words, 1, draw)?) })
            }),
        ),
        (
            "sort=new",
            maker.of_documents(11, |draw, words, _| {
                let count = 1 + draw.below(2);
                Some(Ask { new: true, ..Ask::words(some(words, count, draw)?) })
            }),
        ),
        (
            "limit=100",
            maker.of_documents(12, |draw, words, _| {
                let count = 1 + draw.below(2);
                Some(Ask { limit: 100, ..Ask::words(some(words, count, draw)?) })
            }),
        ),
        (
            "deep page",
            maker.many(13, |draw| {
                // Two words, so that there are enough of them, and hits enough for the page.
                let (one, other) = (*draw.pick(&frequent_words), *draw.pick(&frequent_words));
                (one != other).then(|| Ask { behind: DEEP, ..Ask::words([one, other]) })
            }),
        ),
        ("empty q", maker.many(14, |draw| Some(maker.everything(draw)))),
    ];
    kinds.into_iter().map(|(name, asks)| QueryKind { name, asks }).collect()
}

struct Maker<'a> {
    corpus: &'a Corpus,
    documents: u64,
    count: usize,
}

impl Maker<'_> {
    /// As many different questions as are wanted, made one by one.
    fn many(&self, seed: u64, mut make: impl FnMut(&mut Draw) -> Option<Ask>) -> Vec<Ask> {
        let mut draw = Draw::of_two(0xa5c, seed);
        let (mut asks, mut seen) = (Vec::new(), HashSet::new());
        for _ in 0..self.count * TRIES {
            if asks.len() == self.count {
                break;
            }
            if let Some(ask) = make(&mut draw)
                && seen.insert(ask.clone())
            {
                asks.push(ask);
            }
        }
        asks
    }

    /// The same, each from the telling words of a document.
    fn of_documents(&self, seed: u64, make: impl Fn(&mut Draw, &[String], &Document) -> Option<Ask>) -> Vec<Ask> {
        self.many(seed, |draw| {
            let document = self.corpus.document(draw.below(self.documents as usize) as u64);
            let mut words: Vec<String> = telling_words(&text(&document)).collect();
            words.sort_unstable();
            words.dedup();
            make(draw, &words, &document)
        })
    }

    /// No word, but something that not everything has.
    fn everything(&self, draw: &mut Draw) -> Ask {
        let mut ask = Ask::of([]);
        let document = self.corpus.document(draw.below(self.documents as usize) as u64);
        let to = document.created_at;
        let days = 30 + draw.below(700) as i64;
        let from = to.checked_sub(SignedDuration::from_hours(24 * days)).unwrap_or(Timestamp::UNIX_EPOCH);
        match draw.below(4) {
            0 => (ask.tag, ask.to) = (document.tags.first().cloned(), Some(to)),
            1 => (ask.author, ask.to) = (document.author, Some(to)),
            2 => (ask.kind, ask.from, ask.to) = (Some(*draw.pick(&Kind::ALL)), Some(from), Some(to)),
            _ => ask.to = Some(to),
        }
        ask
    }
}

fn text(document: &Document) -> String {
    format!("{} {}", document.title.as_deref().unwrap_or_default(), document.body)
}

/// So many of the words, none twice.
fn some<'a>(words: &'a [String], count: usize, draw: &mut Draw) -> Option<Vec<&'a str>> {
    let mut all: Vec<&str> = words.iter().map(String::as_str).collect();
    draw.shuffle(&mut all);
    all.truncate(count);
    (all.len() == count).then_some(all)
}

/// Two or three words in a row, at least one of which says something.
fn phrase(draw: &mut Draw, document: &Document) -> Option<Ask> {
    let all: Vec<String> = words(&text(document)).collect();
    let length = 2 + draw.below(2);
    let from = draw.below(all.len().checked_sub(length)?.max(1));
    let phrase = all[from..from + length].join(" ");
    let tells = telling_words(&phrase).next().is_some() && phrase.is_ascii() && phrase.len() < 60;
    tells.then(|| Ask::of([Clause::Phrase(phrase)]))
}

fn prefix(draw: &mut Draw, words: &[String]) -> Option<Ask> {
    let word = some(words, 1, draw)?[0];
    let letters = 3 + draw.below(3);
    (word.len() > letters).then(|| Ask::of([Clause::Prefix(word[..letters].to_owned())]))
}

fn exclusion(draw: &mut Draw, words: &[String]) -> Option<Ask> {
    let two = some(words, 2, draw)?;
    Some(Ask::of([Clause::Word(two[0].to_owned()), Clause::Not(two[1].to_owned())]))
}

/// Words that many documents have, with a mistake that makes of them what no document has.
fn typos(vocabulary: &Vocabulary, documents_min: u32, count: usize) -> Vec<Ask> {
    let mut draw = Draw::of(0x790);
    let meant = vocabulary.band(|documents| documents > documents_min, usize::MAX, &mut draw);
    let meant: Vec<&str> = meant.into_iter().filter(|word| word.len() > 4).collect();
    let mut seen = HashSet::new();
    let rounds = meant.iter().cycle().take(meant.len() * TRIES);
    let wrong = rounds.map(|word| misspelt(word, &mut draw)).filter(|word| !vocabulary.known.contains(word));
    wrong.filter(|word| seen.insert(word.clone())).take(count).map(|word| Ask::words([word.as_str()])).collect()
}

/// Letters that are no word.
fn no_hits(vocabulary: &Vocabulary, count: usize) -> Vec<Ask> {
    let mut draw = Draw::of(0x7017);
    let mut nonsense = || -> String {
        let length = 7 + draw.below(6);
        (0..length).map(|_| char::from(b'a' + draw.below(26) as u8)).collect()
    };
    let mut all: HashSet<String> = HashSet::new();
    while all.len() < count {
        all.extend(Some(nonsense()).filter(|word| !vocabulary.known.contains(word)));
    }
    let mut all: Vec<String> = all.into_iter().collect();
    all.sort_unstable();
    all.iter().map(|word| Ask::words([word.as_str()])).collect()
}

#[cfg(test)]
mod tests {
    use rookery_benches::search::posts::Posts;

    use super::*;

    #[test]
    fn every_kind_has_different_questions_and_the_same_every_time() {
        let corpus = Corpus::of(Posts::made_up());
        let vocabulary = Vocabulary::of(&corpus, 1_000);
        let kinds = all(&corpus, &vocabulary, 1_000, 20);
        let again = all(&corpus, &vocabulary, 1_000, 20);
        assert_eq!(kinds.len(), 16);
        for (kind, again) in kinds.iter().zip(&again) {
            assert_eq!(kind.asks.iter().collect::<HashSet<_>>().len(), 20, "{}", kind.name);
            assert_eq!(kind.asks, again.asks, "{}", kind.name);
        }
    }

    #[test]
    fn no_document_has_what_is_asked_for_in_vain() {
        let corpus = Corpus::of(Posts::made_up());
        let vocabulary = Vocabulary::of(&corpus, 500);
        let kinds = all(&corpus, &vocabulary, 500, 20);
        for ask in kinds.iter().filter(|kind| kind.is_misspelt()).flat_map(|kind| &kind.asks) {
            assert!(!vocabulary.known.contains(&ask.text), "{}", ask.text);
        }
    }
}
