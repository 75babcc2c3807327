//! What is asked of an index and what it answers; pure, so that answers of several partitions can be merged anywhere.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::document::Kind;
use super::query::Query;
use super::reader::SearchError;

/// The most hits that one search returns, and the most suggestions.
pub const LIMIT_MAX: usize = 100;

/// A search: the query, what may match at all, and which page of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Search {
    /// What was typed.
    pub query: Query,
    /// Only these kinds; all if empty.
    pub kinds: Vec<Kind>,
    /// Only by this author.
    pub author: Option<Uuid>,
    /// Only with this tag.
    pub tag: Option<String>,
    /// Only created at this time or later.
    pub from: Option<Timestamp>,
    /// Only created before this time.
    pub to: Option<Timestamp>,
    /// What comes first. A query that ranks nothing is always [`Sort::New`].
    pub sort: Sort,
    /// How many hits; at most [`LIMIT_MAX`].
    pub limit: usize,
    /// Only what comes after this hit.
    pub after: Option<Cursor>,
}

impl Default for Search {
    fn default() -> Search {
        Search {
            query: Query::default(),
            kinds: Vec::new(),
            author: None,
            tag: None,
            from: None,
            to: None,
            sort: Sort::Relevance,
            limit: 20,
            after: None,
        }
    }
}

impl Search {
    /// The order that the answer has: by relevance only if something was asked for.
    pub fn effective_sort(&self) -> Sort {
        if self.query.is_ranked() { self.sort } else { Sort::New }
    }

    /// Whether its cursor is one of its own order.
    ///
    /// # Errors
    /// [`SearchError::Cursor`].
    pub(crate) fn check(&self) -> Result<(), SearchError> {
        match self.after {
            Some(after) if after.sort != self.effective_sort() => Err(SearchError::Cursor),
            _ => Ok(()),
        }
    }
}

/// What comes first. Ties go to the greater id, which is the younger one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// The best match.
    #[default]
    Relevance,
    /// The youngest.
    New,
}

/// The place of a hit in the order of its search: pages go on behind it, on any replica.
///
/// A page after a cursor neither repeats nor leaves out a hit as long as the index stands still. When it moves,
/// relevance moves a little with it, as everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cursor {
    /// The order in which this is a place.
    pub sort: Sort,
    /// Score or time, mapped to an integer of the same order: exact, also after JSON.
    pub key: u64,
    /// Decides between equal keys.
    pub id: Uuid,
}

impl Cursor {
    /// What to sort by, best first.
    pub(super) fn place(&self) -> Reverse<(u64, Uuid)> {
        Reverse((self.key, self.id))
    }
}

/// Maps a score to an integer of the same order.
pub(super) fn score_key(score: f32) -> u64 {
    let bits = score.to_bits();
    // Negative floats order backwards; BM25 has none, but a boost could make one.
    u64::from(if bits >> 31 == 0 { bits | 1 << 31 } else { !bits })
}

/// The score of such an integer.
pub(super) fn key_score(key: u64) -> f32 {
    let bits = key as u32;
    f32::from_bits(if bits >> 31 == 1 { bits & !(1 << 31) } else { !bits })
}

/// Maps a time in microseconds to an integer of the same order.
pub(super) fn time_key(micros: i64) -> u64 {
    (micros as u64) ^ (1 << 63)
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// What it is.
    pub kind: Kind,
    /// Its id.
    pub id: Uuid,
    /// Its version as indexed.
    pub version: u64,
    /// How well it matches: comparable within one search only; 0 when sorted by time.
    pub score: f32,
    /// When the thing was created.
    pub created_at: Timestamp,
    /// Where the query matched.
    pub highlight: Highlight,
    /// Enough to show it in a list.
    pub summary: Summary,
    /// Its place in the order: the next page begins after the last hit's.
    pub cursor: Cursor,
}

/// Fragments as safe HTML, matches in `<mark>`; a field without a match has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Highlight {
    /// Of the title; of a user, the names.
    pub title: Option<String>,
    /// Of the body; of a user, the bio.
    pub body: Option<String>,
}

/// What a list shows of a thing, as plain text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The title; of a user, the names.
    pub title: Option<String>,
    /// How the body begins: at most 200 characters.
    pub excerpt: String,
    /// Who wrote it.
    pub author: Option<Uuid>,
    /// A post's tags.
    pub tags: Vec<String>,
    /// Which post a comment belongs to.
    pub post_id: Option<Uuid>,
}

/// One page of an answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Hits {
    /// How many match on all pages together; exact.
    pub total: u64,
    /// Best first.
    pub items: Vec<Hit>,
    /// Whether there is another page.
    pub more: bool,
}

/// A completion of what is being typed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suggestion {
    /// What to put into the search box.
    pub text: String,
    /// What it names.
    pub kind: SuggestionKind,
    /// How many documents have it, roughly: what ranks it among its kind.
    pub documents: u64,
}

/// What a suggestion names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SuggestionKind {
    /// A username.
    User,
    /// A tag.
    Tag,
    /// A word of a title.
    Word,
}

/// Merges the suggestions of several partitions into the best `limit`.
///
/// The kinds take turns: a username occurs once and would never stand beside a word that a thousand titles have.
pub fn merge_suggestions(parts: Vec<Suggestion>, limit: usize) -> Vec<Suggestion> {
    let mut all = parts;
    all.sort_by(|a, b| (a.kind, &a.text).cmp(&(b.kind, &b.text)));
    all.dedup_by(|next, kept| {
        let same = (next.kind, &next.text) == (kept.kind, &kept.text);
        if same {
            kept.documents += next.documents;
        }
        same
    });
    // A word that is also a name says nothing more than the name does.
    let names: BTreeSet<String> = all.iter().filter(|one| one.kind != SuggestionKind::Word).map(|one| one.text.clone()).collect();
    all.retain(|one| one.kind != SuggestionKind::Word || !names.contains(&one.text));
    // Within its kind the most used first, the shortest of equals: it is closest to what was typed.
    all.sort_by_key(|suggestion| (suggestion.kind, Reverse(suggestion.documents), suggestion.text.len()));
    let mut turns = [0usize; 3];
    let mut ordered: Vec<(usize, Suggestion)> = Vec::with_capacity(all.len());
    for suggestion in all {
        let turn = &mut turns[suggestion.kind as usize];
        ordered.push((*turn, suggestion));
        *turn += 1;
    }
    ordered.sort_by_key(|(turn, suggestion)| (*turn, suggestion.kind));
    ordered.into_iter().take(limit).map(|(_, suggestion)| suggestion).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn suggestion(text: &str, kind: SuggestionKind, documents: u64) -> Suggestion {
        Suggestion { text: text.into(), kind, documents }
    }

    #[test]
    fn suggestions_of_all_kinds_take_turns_and_add_up() {
        let merged = merge_suggestions(
            vec![
                suggestion("rust", SuggestionKind::Word, 40),
                suggestion("rusty", SuggestionKind::Word, 50),
                suggestion("rust", SuggestionKind::Word, 20),
                suggestion("rustacean", SuggestionKind::User, 1),
            ],
            2,
        );
        assert_eq!(merged, [suggestion("rustacean", SuggestionKind::User, 1), suggestion("rust", SuggestionKind::Word, 60)]);
    }

    proptest! {
        #[test]
        fn keys_order_like_what_they_stand_for(a in -1e6f32..1e6, b in -1e6f32..1e6, t: i64, u: i64) {
            prop_assert_eq!(score_key(a).cmp(&score_key(b)), a.total_cmp(&b));
            prop_assert_eq!(key_score(score_key(a)).to_bits(), a.to_bits());
            prop_assert_eq!(time_key(t).cmp(&time_key(u)), t.cmp(&u));
        }
    }
}
