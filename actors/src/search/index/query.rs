//! The query language: what a person may type into the search box.
//!
//! ```text
//! rust "memory safety" -garbage tok*
//! ```
//!
//! Words, quoted phrases, exclusions and prefixes; no parentheses and no operators, so there is no depth that an
//! attacker could exhaust. Every text up to [`QUERY_BYTES_MAX`] is a valid query: people paste anything into a search
//! box, and a stray quote is no reason to refuse them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest query that is parsed, in bytes of UTF-8.
pub const QUERY_BYTES_MAX: usize = 512;

/// A parsed query. Its `Display` form parses to the same query again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// In the order in which they were typed.
    pub clauses: Vec<Clause>,
}

/// One thing asked for, or ruled out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clause {
    /// Written with a leading `-`: what matches is left out.
    pub negated: bool,
    /// What to look for.
    pub pattern: Pattern,
}

/// What a clause looks for, as typed: folding and splitting into tokens is the index's business.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pattern {
    /// A word in any of its forms.
    Word(String),
    /// `prefix*`, without the star.
    Prefix(String),
    /// `"some words"` in exactly this order, without the quotes.
    Phrase(String),
}

/// Why a text is no query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Longer than [`QUERY_BYTES_MAX`].
    #[error("a query has at most {QUERY_BYTES_MAX} bytes, this one has {bytes}")]
    TooLong {
        /// The length that was refused.
        bytes: usize,
    },
}

impl Query {
    /// Parses what was typed.
    ///
    /// A `"` without its partner quotes the rest; typographic quotes count as quotes, because phones write them.
    ///
    /// # Errors
    /// [`QueryError::TooLong`], and nothing else.
    pub fn parse(text: &str) -> Result<Query, QueryError> {
        if text.len() > QUERY_BYTES_MAX {
            return Err(QueryError::TooLong { bytes: text.len() });
        }
        let mut clauses = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let unsigned = rest.trim_start_matches('-');
            let negated = unsigned.len() < rest.len();
            let (pattern, after) = match unsigned.strip_prefix(is_quote) {
                Some(quoted) => phrase(quoted),
                None => word(unsigned),
            };
            clauses.extend(pattern.map(|pattern| Clause { negated, pattern }));
            rest = after.trim_start();
        }
        Ok(Query { clauses })
    }

    /// Whether nothing is asked for or ruled out: everything matches.
    pub fn is_empty(&self) -> bool {
        self.clauses.is_empty()
    }

    /// Whether something is asked for, so that one match can be better than another.
    ///
    /// A query of exclusions alone matches everything else, and everything equally well.
    pub fn is_ranked(&self) -> bool {
        self.clauses.iter().any(|clause| !clause.negated)
    }
}

impl FromStr for Query {
    type Err = QueryError;

    fn from_str(text: &str) -> Result<Query, QueryError> {
        Query::parse(text)
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, clause) in self.clauses.iter().enumerate() {
            let space = if index > 0 { " " } else { "" };
            let sign = if clause.negated { "-" } else { "" };
            match &clause.pattern {
                Pattern::Word(word) => write!(f, "{space}{sign}{word}")?,
                Pattern::Prefix(prefix) => write!(f, "{space}{sign}{prefix}*")?,
                Pattern::Phrase(phrase) => write!(f, "{space}{sign}\"{phrase}\"")?,
            }
        }
        Ok(())
    }
}

/// Reads a phrase whose opening quote is gone already; returns it and what follows.
fn phrase(text: &str) -> (Option<Pattern>, &str) {
    let (inside, after) = text.split_once(is_quote).unwrap_or((text, ""));
    let inside = inside.trim();
    let pattern = (!inside.is_empty()).then(|| Pattern::Phrase(inside.to_owned()));
    (pattern, after)
}

/// Reads a word up to white space or a quote; returns it and what follows.
fn word(text: &str) -> (Option<Pattern>, &str) {
    let end = text.find(|c: char| c.is_whitespace() || is_quote(c)).unwrap_or(text.len());
    let (word, after) = text.split_at(end);
    let stem = word.trim_end_matches('*');
    let pattern = match (stem.is_empty(), stem.len() < word.len()) {
        (true, _) => None,
        (false, true) => Some(Pattern::Prefix(stem.to_owned())),
        (false, false) => Some(Pattern::Word(stem.to_owned())),
    };
    (pattern, after)
}

fn is_quote(c: char) -> bool {
    matches!(c, '"' | '“' | '”' | '„' | '«' | '»')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Vec<Clause> {
        Query::parse(text).unwrap().clauses
    }

    fn want(pattern: Pattern) -> Clause {
        Clause { negated: false, pattern }
    }

    fn reject(pattern: Pattern) -> Clause {
        Clause { negated: true, pattern }
    }

    #[test]
    fn words_phrases_exclusions_and_prefixes_stand_side_by_side() {
        assert_eq!(
            parse(r#"rust "memory safety" -garbage tok*"#),
            [
                want(Pattern::Word("rust".into())),
                want(Pattern::Phrase("memory safety".into())),
                reject(Pattern::Word("garbage".into())),
                want(Pattern::Prefix("tok".into())),
            ]
        );
    }

    #[test]
    fn a_phrase_can_be_excluded() {
        assert_eq!(parse(r#"-"garbage collector""#), [reject(Pattern::Phrase("garbage collector".into()))]);
    }

    #[test]
    fn a_hyphen_inside_a_word_excludes_nothing() {
        assert_eq!(parse("lock-free"), [want(Pattern::Word("lock-free".into()))]);
    }

    #[test]
    fn a_quote_without_its_partner_quotes_the_rest() {
        assert_eq!(parse(r#"a "b c"#), [want(Pattern::Word("a".into())), want(Pattern::Phrase("b c".into()))]);
    }

    #[test]
    fn typographic_quotes_are_quotes() {
        assert_eq!(parse("“memory safety”"), [want(Pattern::Phrase("memory safety".into()))]);
    }

    #[test]
    fn lone_signs_and_empty_quotes_ask_for_nothing() {
        assert_eq!(parse(r#" - -- * -* "" -"  " "#), []);
    }

    #[test]
    fn exclusions_alone_rank_nothing() {
        assert!(!Query::parse("-rust").unwrap().is_ranked());
    }

    #[test]
    fn a_query_over_512_bytes_is_refused() {
        assert_eq!(Query::parse(&"é".repeat(257)), Err(QueryError::TooLong { bytes: 514 }));
        assert!(Query::parse(&"é".repeat(256)).is_ok());
    }

    proptest! {
        #[test]
        fn any_text_up_to_the_limit_is_a_query_whose_display_form_is_the_same_query(
            text in r#"(?s)([a-z*"“ -]|\PC|.){0,120}"#
        ) {
            prop_assume!(text.len() <= QUERY_BYTES_MAX);
            let query = Query::parse(&text).unwrap();
            let shown = query.to_string();
            prop_assume!(shown.len() <= QUERY_BYTES_MAX);
            prop_assert_eq!(Query::parse(&shown).unwrap(), query);
        }

        #[test]
        fn what_is_asked_for_was_typed(text in r#"[a-z*"“ -]{0,80}"#) {
            for clause in parse(&text) {
                let (Pattern::Word(part) | Pattern::Prefix(part) | Pattern::Phrase(part)) = clause.pattern;
                prop_assert!(!part.is_empty() && text.contains(&part));
            }
        }
    }
}
