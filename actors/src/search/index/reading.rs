//! What a query asks for, as far as that can be told without an index: pure, and the same on every node and page.

use std::collections::BTreeSet;

use super::query::{Clause, Pattern, Query};
use super::text::{Shape, Stemmer, Token, is_stop_word, tokens};

/// Words and pairs of a query beyond these are ignored: one bit each tells which of them a document has.
pub(super) const TOKENS_MAX: usize = 64;

/// What is excluded beyond these is ignored.
const EXCLUDED_MAX: usize = 32;
/// Words that say little are looked up this far.
const LESSER_MAX: usize = 8;

/// A query, read.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// What ranks: any of them may match, unless a phrase is required.
    pub wanted: Vec<Wanted>,
    /// Stems of words that say little: among those that match, they decide between what is nearly as good.
    pub lesser: Vec<String>,
    /// Words in a row that must be there, each with its distance from the first.
    pub phrases: Vec<Vec<(usize, String)>>,
    /// What must not be there.
    pub excluded: Vec<Excluded>,
    /// Something is asked for, but nothing that is ever indexed: an emoji, say.
    pub hopeless: bool,
}

/// One thing that is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Folded, as typed.
    pub text: String,
    /// How it is looked up.
    pub by: By,
}

/// How a word is looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// In all its forms.
    Stem(String),
    /// As it is: a pair of a dense script.
    Pair,
    /// As the beginning of words.
    Prefix,
}

/// What rules a document out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Excluded {
    /// A word in all its forms.
    Stem(String),
    /// Words that begin so.
    Prefix(String),
    /// Words in a row.
    Phrase(Vec<(usize, String)>),
}

impl Reading {
    /// Reads a query.
    pub(super) fn of(query: &Query) -> Reading {
        let mut reader = Reader { left: TOKENS_MAX, stemmer: Stemmer::new(), seen: BTreeSet::new(), reading: Reading::default() };
        let wanted = || query.clauses.iter().filter(|clause| !clause.negated);
        let only_stop_words = wanted().all(|clause| match &clause.pattern {
            Pattern::Word(word) => tokens(word).all(|token| is_stop_word(&token.text)),
            Pattern::Prefix(_) | Pattern::Phrase(_) => false,
        });
        for clause in wanted() {
            reader.want(clause, only_stop_words);
        }
        for clause in query.clauses.iter().filter(|clause| clause.negated) {
            reader.exclude(clause);
        }
        let mut reading = reader.reading;
        reading.hopeless = query.is_ranked() && reading.wanted.is_empty() && reading.phrases.is_empty();
        reading
    }
}

struct Reader {
    left: usize,
    stemmer: Stemmer,
    seen: BTreeSet<String>,
    reading: Reading,
}

impl Reader {
    fn want(&mut self, clause: &Clause, only_stop_words: bool) {
        match &clause.pattern {
            Pattern::Word(word) => {
                for token in self.tokens(word) {
                    if only_stop_words || !is_stop_word(&token.text) {
                        self.word(&token);
                    } else if self.reading.lesser.len() < LESSER_MAX {
                        let stem = self.stemmer.stem(&token.text);
                        if !self.reading.lesser.contains(&stem) {
                            self.reading.lesser.push(stem);
                        }
                    }
                }
            }
            Pattern::Phrase(phrase) => {
                let tokens = self.tokens(phrase);
                if let [only] = tokens.as_slice()
                    && only.shape == Shape::Single
                {
                    // One character of a dense script is no token of a longer run, but begins one.
                    return self.want_by(only.text.clone(), By::Prefix);
                }
                self.reading.phrases.extend(in_a_row(&tokens));
                for token in tokens.iter().filter(|token| !is_stop_word(&token.text)) {
                    self.word(token);
                }
            }
            Pattern::Prefix(prefix) => {
                let mut tokens = self.tokens(prefix);
                let last = tokens.pop();
                for token in &tokens {
                    self.word(token);
                }
                match last {
                    // A pair of a dense script begins whatever follows it.
                    Some(token) if token.shape == Shape::Pair => self.word(&token),
                    Some(token) => self.want_by(token.text, By::Prefix),
                    None => {}
                }
            }
        }
    }

    fn word(&mut self, token: &Token) {
        let by = match token.shape {
            Shape::Word => By::Stem(self.stemmer.stem(&token.text)),
            Shape::Pair | Shape::Tail => By::Pair,
            Shape::Single => By::Prefix,
        };
        self.want_by(token.text.clone(), by);
    }

    fn want_by(&mut self, text: String, by: By) {
        let name = if by == By::Prefix { format!("{text}*") } else { text.clone() };
        if self.reading.wanted.len() < TOKENS_MAX && self.seen.insert(name) {
            self.reading.wanted.push(Wanted { text, by });
        }
    }

    fn exclude(&mut self, clause: &Clause) {
        let (Pattern::Word(text) | Pattern::Prefix(text) | Pattern::Phrase(text)) = &clause.pattern;
        let tokens = self.tokens(text);
        let excluded = match (&clause.pattern, tokens.as_slice()) {
            (Pattern::Word(_), [token]) if token.shape == Shape::Word => Some(Excluded::Stem(self.stemmer.stem(&token.text))),
            (Pattern::Prefix(_), [token]) => Some(Excluded::Prefix(token.text.clone())),
            (_, [token]) if token.shape == Shape::Single => Some(Excluded::Prefix(token.text.clone())),
            _ => in_a_row(&tokens).map(Excluded::Phrase),
        };
        if self.reading.excluded.len() < EXCLUDED_MAX {
            self.reading.excluded.extend(excluded);
        }
    }

    /// The tokens of a clause as far as there is room, without the last characters that pairs contain already.
    fn tokens(&mut self, text: &str) -> Vec<Token> {
        let tokens: Vec<Token> = tokens(text).filter(|token| token.shape != Shape::Tail).take(self.left).collect();
        self.left -= tokens.len();
        tokens
    }
}

fn in_a_row(tokens: &[Token]) -> Option<Vec<(usize, String)>> {
    let first = tokens.first()?.position;
    Some(tokens.iter().map(|token| (token.position - first, token.text.clone())).collect())
}
