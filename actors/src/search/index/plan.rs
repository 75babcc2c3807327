//! From what a query asks for to what is looked up, with the numbers by which it is scored.
//!
//! A plan is made once for a search, from what all partitions say of its words, and goes along to each of them and into the
//! cursor: so a score is the same wherever a document lies, and on every page.
//!
//! What a search may cost is decided here, before any of it is spent. What is too dear gives way, and is named: first words
//! that a misspelt one may have meant, then words that a prefix stands for, then the most frequent plain words; of those the
//! [`WORDS_KEPT`] rarest stay whatever they cost.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::reading::{By, Excluded, Reading};
use super::text::Stemmer;

/// Of so many words of a query other spellings are looked for; each costs a walk over the dictionaries.
const SPELLINGS_MAX: usize = 8;
/// The words that a misspelt one may have meant, at most.
pub(super) const MEANT_MAX: usize = 8;
/// So many prefixes of a query are looked up.
const PREFIXES_MAX: usize = 8;
/// The words that all prefixes of a query stand for, at most: the most frequent ones. Each is looked up in every segment.
pub(super) const PREFIX_WORDS_MAX: usize = 768;
/// A word that fewer documents have may be misspelt, which is said and changes nothing else.
const RARE: u64 = 3;
/// How many times as many documents must have what it may have meant.
const MEANT_MORE: u64 = 10;
/// Plain words of a query that are never left out.
const WORDS_KEPT: usize = 40;
/// What a similar word weighs, by how many edits it is away.
const SIMILAR: [f32; 3] = [1.0, 0.6, 0.4];

/// Postings that a search may go through on all partitions together, about: some 10 ms.
const POSTINGS_MAX: u64 = 1_500_000;

/// The same of what excluded prefixes stand for.
const EXCLUDED_MAX: u64 = POSTINGS_MAX / 4;

/// What is asked of every partition before a search is planned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wishes {
    /// How many documents have each of these stems.
    pub(super) stems: Vec<String>,
    /// The same of pairs of dense scripts.
    pub(super) pairs: Vec<String>,
    /// Which words begin so.
    pub(super) prefixes: Vec<String>,
    /// Which words are spelt similarly, up to so many edits away.
    pub(super) similar: Vec<(String, u8)>,
}

/// What they say, in the order of the wishes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Documents, those that were replaced or deleted lately included.
    pub(super) documents: u64,
    /// Their words.
    pub(super) tokens: u64,
    pub(super) stems: Vec<u64>,
    pub(super) pairs: Vec<u64>,
    /// For each prefix its words and how many documents have them, the most frequent ones; and whether there are more.
    pub(super) prefixes: Vec<(Vec<(String, u64)>, bool)>,
    /// For each word those that are similar, how many documents have them, and how many edits they are away.
    pub(super) similar: Vec<Vec<(String, u64, u8)>>,
}

impl Statistics {
    /// Whether anybody has said anything: nodes of 0.2 do not.
    pub fn tells(&self) -> bool {
        self.documents > 0
    }

    /// Adds what another partition says of the same wishes.
    pub fn add(&mut self, other: Statistics) {
        self.documents += other.documents;
        self.tokens += other.tokens;
        let sum = |mine: &mut Vec<u64>, theirs: Vec<u64>| {
            mine.resize(mine.len().max(theirs.len()), 0);
            mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| *mine += theirs);
        };
        sum(&mut self.stems, other.stems);
        sum(&mut self.pairs, other.pairs);
        self.prefixes.resize(self.prefixes.len().max(other.prefixes.len()), Default::default());
        for ((mine, more), (theirs, others_more)) in self.prefixes.iter_mut().zip(other.prefixes) {
            let mut words: BTreeMap<String, u64> = std::mem::take(mine).into_iter().collect();
            theirs.into_iter().for_each(|(word, documents)| *words.entry(word).or_default() += documents);
            *more |= others_more || words.len() > PREFIX_WORDS_MAX;
            *mine = most_frequent(words, PREFIX_WORDS_MAX);
        }
        self.similar.resize(self.similar.len().max(other.similar.len()), Vec::new());
        for (mine, theirs) in self.similar.iter_mut().zip(other.similar) {
            let mut words: BTreeMap<String, (u64, u8)> =
                mine.drain(..).map(|(word, documents, edits)| (word, (documents, edits))).collect();
            for (word, documents, edits) in theirs {
                let known = words.entry(word).or_insert((0, edits));
                *known = (known.0 + documents, known.1.min(edits));
            }
            *mine = words.into_iter().map(|(word, (documents, edits))| (word, documents, edits)).collect();
        }
    }
}

/// The most frequent of these words, in that order; of equals the shortest.
pub(super) fn most_frequent(words: BTreeMap<String, u64>, limit: usize) -> Vec<(String, u64)> {
    let mut words: Vec<(String, u64)> = words.into_iter().collect();
    words.sort_by(|a, b| (Reverse(a.1), a.0.len(), &a.0).cmp(&(Reverse(b.1), b.0.len(), &b.0)));
    words.truncate(limit);
    words
}

/// A search as every partition carries it out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub(super) documents: u64,
    pub(super) tokens: u64,
    /// For each thing that is wanted, by what it is found.
    pub(super) forms: Vec<Vec<Form>>,
    /// How many documents have each of the words that say little.
    #[serde(default)]
    pub(super) lesser: Vec<u64>,
    /// For each prefix that is excluded, its words.
    pub(super) excluded: Vec<Vec<String>>,
    /// What the query was taken to mean where no document has its words, or may have meant where hardly any has.
    pub(super) meant: Option<String>,
    /// What would have cost too much.
    pub(super) left_out: Vec<String>,
}

/// Something by which a word is found. Written in short, for it goes into cursors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "FormParts", into = "FormParts")]
pub(super) struct Form {
    pub text: String,
    pub kind: FormKind,
    /// How many documents have it.
    pub documents: u64,
    /// How many edits it is away from what was typed.
    pub edits: u8,
}

type FormParts = (String, FormKind, u64, u8);

impl From<FormParts> for Form {
    fn from((text, kind, documents, edits): FormParts) -> Self {
        Self { text, kind, documents, edits }
    }
}

impl From<Form> for FormParts {
    fn from(Form { text, kind, documents, edits }: Form) -> Self {
        (text, kind, documents, edits)
    }
}

/// Where a form is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FormKind {
    #[serde(rename = "s")]
    Stem,
    #[serde(rename = "p")]
    Pair,
    /// A word as written: one that a prefix stands for.
    #[serde(rename = "w")]
    Word,
}

impl Form {
    /// What it weighs beside an exact match.
    pub(super) fn closeness(&self) -> f32 {
        SIMILAR[usize::from(self.edits).min(SIMILAR.len() - 1)]
    }
}

impl Plan {
    /// Whether it was made of the same reading of a query.
    pub(super) fn fits(&self, reading: &Reading) -> bool {
        let prefixes = reading.excluded.iter().filter(|excluded| matches!(excluded, Excluded::Prefix(_))).count();
        self.forms.len() == reading.wanted.len() && self.lesser.len() == reading.lesser.len() && self.excluded.len() == prefixes
    }

    /// What is to be asked first.
    pub(super) fn wishes(reading: &Reading) -> Wishes {
        let mut wishes = Wishes::default();
        for wanted in &reading.wanted {
            match &wanted.by {
                By::Stem(stem) => wishes.stems.push(stem.clone()),
                By::Pair => wishes.pairs.push(wanted.text.clone()),
                By::Prefix => wishes.prefixes.push(wanted.text.clone()),
            }
        }
        wishes.stems.extend(reading.lesser.iter().cloned());
        let excluded = reading.excluded.iter().filter_map(|excluded| match excluded {
            Excluded::Prefix(prefix) => Some(prefix.clone()),
            _ => None,
        });
        wishes.prefixes.extend(excluded);
        wishes.prefixes.truncate(PREFIXES_MAX);
        wishes
    }

    /// What is to be asked then: which words are similar to those that no document has, and which are very similar to those
    /// that hardly any has. Not where a phrase says how its words are spelt.
    pub(super) fn wishes_for_spelling(reading: &Reading, statistics: &Statistics) -> Option<Wishes> {
        let mut stems = statistics.stems.iter();
        let mut similar = Vec::new();
        for wanted in reading.wanted.iter().filter(|_| reading.phrases.is_empty()) {
            if let By::Stem(_) = wanted.by {
                let documents = stems.next().copied().unwrap_or(0);
                let edits = edits_max(&wanted.text).min(if documents == 0 { 2 } else { 1 });
                if documents < RARE && similar.len() < SPELLINGS_MAX && edits > 0 {
                    similar.push((wanted.text.clone(), edits));
                }
            }
        }
        (!similar.is_empty()).then(|| Wishes { similar, ..Wishes::default() })
    }

    /// Makes a plan of what all partitions have said, `spelling` of the second wishes.
    pub(super) fn of(reading: &Reading, statistics: &Statistics, asked: &Wishes, spelling: &Statistics) -> Plan {
        let mut plan = Plan { documents: statistics.documents, tokens: statistics.tokens, ..Plan::default() };
        let (mut stems, mut pairs) = (statistics.stems.iter(), statistics.pairs.iter());
        let shared = PREFIX_WORDS_MAX / statistics.prefixes.len().max(1);
        let within = |(words, more): &(Vec<(String, u64)>, bool)| {
            (words[..words.len().min(shared)].to_vec(), *more || words.len() > shared)
        };
        let prefixes: Vec<(Vec<(String, u64)>, bool)> = statistics.prefixes.iter().map(within).collect();
        let mut prefixes = prefixes.iter();
        let mut stemmer = Stemmer::new();
        let mut meant = Vec::new();
        for wanted in &reading.wanted {
            let mut read_as = wanted.text.clone();
            let forms = match &wanted.by {
                By::Stem(stem) => {
                    let documents = stems.next().copied().unwrap_or(0);
                    let exact = Form { text: stem.clone(), kind: FormKind::Stem, documents, edits: 0 };
                    let similar = asked.similar.iter().position(|(word, _)| *word == wanted.text);
                    let similar = similar.and_then(|place| spelling.similar.get(place)).map_or(&[][..], Vec::as_slice);
                    let similar = nearest(similar, stem, &mut stemmer);
                    if let Some((best, of)) = similar.best
                        && of >= documents.saturating_mul(MEANT_MORE)
                    {
                        read_as = best;
                    }
                    // A word that documents contain is taken at its word; one that none has may come before the page is looked for.
                    let others = if documents > 0 { Vec::new() } else { similar.forms };
                    [exact].into_iter().chain(others).collect()
                }
                By::Pair => {
                    let documents = pairs.next().copied().unwrap_or(0);
                    vec![Form { text: wanted.text.clone(), kind: FormKind::Pair, documents, edits: 0 }]
                }
                By::Prefix => {
                    read_as.push('*');
                    match prefixes.next() {
                        Some((words, more)) => {
                            if *more {
                                plan.left_out.push(format!("{}*", wanted.text));
                            }
                            let form = |(word, documents): &(String, u64)| Form {
                                text: word.clone(),
                                kind: FormKind::Word,
                                documents: *documents,
                                edits: 0,
                            };
                            words.iter().map(form).collect()
                        }
                        None => {
                            plan.left_out.push(format!("{}*", wanted.text));
                            Vec::new()
                        }
                    }
                }
            };
            meant.push(read_as);
            plan.forms.push(forms);
        }
        plan.lesser = stems.copied().chain(std::iter::repeat(0)).take(reading.lesser.len()).collect();
        let mut excluded_postings = 0;
        for excluded in &reading.excluded {
            if let Excluded::Prefix(prefix) = excluded {
                let (words, more) = prefixes.next().map_or((&[][..], true), |(words, more)| (words.as_slice(), *more));
                let fits = words.iter().take_while(|(_, documents)| {
                    excluded_postings += documents;
                    excluded_postings <= EXCLUDED_MAX
                });
                let kept: Vec<String> = fits.map(|(word, _)| word.clone()).collect();
                if more || kept.len() < words.len() {
                    plan.left_out.push(format!("-{prefix}*"));
                }
                plan.excluded.push(kept);
            }
        }
        let as_typed = |wanted: &super::reading::Wanted| match wanted.by {
            By::Prefix => format!("{}*", wanted.text),
            _ => wanted.text.clone(),
        };
        if reading.phrases.is_empty() && reading.wanted.iter().map(as_typed).ne(meant.iter().cloned()) {
            plan.meant = Some(meant.join(" "));
        }
        plan.cut(reading);
        plan
    }

    /// Leaves out what is too dear.
    fn cut(&mut self, reading: &Reading) {
        let cost = |forms: &[Vec<Form>]| forms.iter().flatten().map(|form| form.documents).sum::<u64>();
        let is_prefix = |place: usize| reading.wanted[place].by == By::Prefix;
        if cost(&self.forms) <= POSTINGS_MAX {
            return;
        }
        for place in 0..self.forms.len() {
            if self.forms[place].iter().any(|form| form.edits > 0) {
                self.forms[place].clear();
                self.left_out.push(reading.wanted[place].text.clone());
            }
        }
        let prefixes: Vec<usize> = (0..self.forms.len()).filter(|place| is_prefix(*place)).collect();
        let plain: u64 = cost(&self.forms) - prefixes.iter().map(|place| cost(&self.forms[*place..=*place])).sum::<u64>();
        let share = POSTINGS_MAX.saturating_sub(plain) / prefixes.len().max(1) as u64;
        for place in prefixes {
            let mut left = share;
            let before = self.forms[place].len();
            self.forms[place].retain(|form| {
                let fits = form.documents <= left;
                left = left.saturating_sub(form.documents);
                fits
            });
            if self.forms[place].len() < before {
                self.left_out.push(format!("{}*", reading.wanted[place].text));
            }
        }
        let mut words: Vec<(u64, usize)> = (0..self.forms.len())
            .filter(|place| !is_prefix(*place) && !self.forms[*place].is_empty())
            .map(|place| (cost(&self.forms[place..=place]), place))
            .collect();
        words.sort_unstable();
        while cost(&self.forms) > POSTINGS_MAX && words.len() > WORDS_KEPT {
            let Some((_, place)) = words.pop() else { break };
            self.forms[place].clear();
            self.left_out.push(reading.wanted[place].text.clone());
        }
        self.left_out.dedup();
    }
}

/// What a misspelt word may have meant.
struct Nearest {
    forms: Vec<Form>,
    /// The word that most documents have, of the nearest.
    best: Option<(String, u64)>,
}

/// The nearest of these words, by their stems; those two edits away only where nothing is nearer.
fn nearest(similar: &[(String, u64, u8)], own_stem: &str, stemmer: &mut Stemmer) -> Nearest {
    let edits = similar.iter().map(|(_, _, edits)| *edits).min().unwrap_or(0);
    let mut near: Vec<&(String, u64, u8)> = similar.iter().filter(|(_, _, away)| *away == edits).collect();
    near.sort_by(|a, b| (Reverse(a.1), &a.0).cmp(&(Reverse(b.1), &b.0)));
    near.truncate(MEANT_MAX);
    let best = near.first().map(|(word, documents, _)| (word.clone(), *documents));
    let mut stems: BTreeMap<String, u64> = BTreeMap::new();
    for (word, documents, _) in near {
        let stem = stemmer.stem(word);
        if stem != own_stem {
            let known = stems.entry(stem).or_default();
            *known = (*known).max(*documents);
        }
    }
    let forms = stems.into_iter().map(|(text, documents)| Form { text, kind: FormKind::Stem, documents, edits }).collect();
    Nearest { forms, best }
}

/// How many edits a misspelling may be away: short words are too near to each other, and numbers are never meant
/// otherwise.
pub(super) fn edits_max(word: &str) -> u8 {
    if word.chars().any(|c| c.is_numeric()) {
        return 0;
    }
    match word.chars().count() {
        0..=3 => 0,
        4..=6 => 1,
        _ => 2,
    }
}
