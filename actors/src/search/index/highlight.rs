//! Shows where a text matches: a fragment of it as safe HTML, the matches in `<mark>`.
//!
//! It works on the tokens of [`text`](super::text), so what the index finds (folded, stemmed, misspelt) is what is
//! marked, in the spelling of the source.

use std::collections::BTreeSet;
use std::ops::Range;

use super::text::{KnownStems, Shape, Token, tokens};

/// The longest fragment, in characters of the source.
pub(super) const FRAGMENT_CHARS_MAX: usize = 200;

/// How many characters of context stand before the first match of a fragment.
const LEAD_CHARS: usize = 40;

/// Matches beyond these are not considered in the choice of the best fragment.
const MATCHES_MAX: usize = 1_000;

/// What to mark: the query as the index resolved it.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    /// Folded words and pairs.
    pub words: BTreeSet<String>,
    /// Stems, those of the words that a misspelling may have meant included.
    pub stems: BTreeSet<String>,
    /// Beginnings of words.
    pub prefixes: Vec<String>,
    /// Words in a row, each with its distance from the first.
    pub phrases: Vec<Vec<(usize, String)>>,
    /// First letters of all of it; empty: not known.
    pub beginnings: BTreeSet<char>,
}

impl Marks {
    /// The best fragment of a text, or none if nothing in it is to be marked.
    pub(super) fn fragment(&self, text: &str, stemmer: &mut KnownStems) -> Option<String> {
        let matches = self.matches(text, stemmer);
        let window = window(text, &matches)?;
        Some(render(text, window, &matches))
    }

    /// Where the text matches, in order, without overlaps.
    fn matches(&self, text: &str, stemmer: &mut KnownStems) -> Vec<Range<usize>> {
        let mut marked: Vec<Range<usize>> = Vec::new();
        let mut of_phrases: Vec<Token> = Vec::new();
        let mut tokens = tokens(text);
        let mut folded = String::new();
        while let Some(place) = tokens.next_into(&mut folded) {
            // Most words begin like nothing that is looked for, and a stem begins like its word.
            if !self.begins_like(&folded) {
                continue;
            }
            if self.is_marked(&folded, place.shape, stemmer) {
                marked.push(place.start..place.end);
            }
            if self.phrases.iter().flatten().any(|(_, word)| *word == folded) {
                of_phrases.push(place.with(folded.clone()));
            }
            if marked.len() + of_phrases.len() >= MATCHES_MAX {
                break;
            }
        }
        for first in 0..of_phrases.len() {
            marked.extend(self.phrases.iter().filter_map(|phrase| phrase_at(phrase, &of_phrases[first..])));
        }
        marked.sort_by_key(|range| (range.start, range.end));
        marked.dedup_by(|next, kept| {
            let overlaps = next.start < kept.end;
            if overlaps {
                kept.end = kept.end.max(next.end);
            }
            overlaps
        });
        marked
    }

    fn begins_like(&self, word: &str) -> bool {
        let Some(first) = word.chars().next() else { return false };
        self.beginnings.is_empty() || self.beginnings.contains(&first)
    }

    /// To be called when everything is in: what texts are compared with first.
    pub(super) fn ready(mut self) -> Self {
        let phrases = self.phrases.iter().flatten().map(|(_, word)| word);
        let all = self.words.iter().chain(&self.stems).chain(&self.prefixes).chain(phrases);
        self.beginnings = all.filter_map(|word| word.chars().next()).collect();
        self
    }

    fn is_marked(&self, word: &str, shape: Shape, stemmer: &mut KnownStems) -> bool {
        self.words.contains(word)
            || self.prefixes.iter().any(|prefix| word.starts_with(prefix.as_str()))
            || (shape == Shape::Word && !self.stems.is_empty() && self.stems.contains(stemmer.stem_of(word)))
    }
}

/// The range of a phrase if it begins with the first of these tokens.
fn phrase_at(phrase: &[(usize, String)], tokens: &[Token]) -> Option<Range<usize>> {
    let first = tokens.first()?;
    let mut end = 0;
    for (distance, word) in phrase {
        let position = first.position + distance;
        let token = tokens.iter().take_while(|token| token.position <= position).find(|token| token.position == position)?;
        if token.text != *word {
            return None;
        }
        end = token.end;
    }
    (end > 0).then_some(first.start..end)
}

/// Which part of the text to show: where the most different words match, and some context before.
fn window(text: &str, matches: &[Range<usize>]) -> Option<Range<usize>> {
    let first = matches.first()?;
    if text.char_indices().nth(FRAGMENT_CHARS_MAX).is_none() {
        return Some(0..text.len());
    }
    let worth = |from: &Range<usize>, index: usize| {
        let inside = matches[index..].iter().take_while(|range| range.end <= from.start + FRAGMENT_CHARS_MAX);
        let mut seen: Vec<&str> = inside.map(|range| &text[range.clone()]).collect();
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        (seen.len(), count)
    };
    let best = matches
        .iter()
        .enumerate()
        // The first of equals: `max_by_key` would take the last.
        .rev()
        .max_by_key(|(index, range)| worth(range, *index))
        .map_or(first, |(_, range)| range);
    let start = back(text, best.start, LEAD_CHARS);
    let end = forward(text, start, best, matches);
    Some(start..end)
}

/// At most `chars` characters back, then forward to the beginning of a word.
fn back(text: &str, from: usize, chars: usize) -> usize {
    let Some((earliest, _)) = text[..from].char_indices().rev().take(chars).last() else {
        return from;
    };
    if earliest == 0 {
        return 0;
    }
    text[earliest..from].find(char::is_whitespace).map_or(earliest, |space| {
        let start = earliest + space;
        start + text[start..from].len() - text[start..from].trim_start().len()
    })
}

/// As far as the fragment may reach, cut before the word or match that would not fit.
///
/// Only the match that it is about is rather cut in two than left out.
fn forward(text: &str, from: usize, best: &Range<usize>, matches: &[Range<usize>]) -> usize {
    let Some((offset, _)) = text[from..].char_indices().nth(FRAGMENT_CHARS_MAX) else {
        return text.len();
    };
    let limit = from + offset;
    let cut = text[from..limit].rfind(char::is_whitespace).map_or(limit, |space| from + space);
    if cut < best.end {
        return limit;
    }
    matches.iter().find(|range| range.start < cut && cut < range.end).map_or(cut, |range| range.start)
}

/// The window as HTML. A match that reaches over its end is marked as far as it is shown.
fn render(text: &str, window: Range<usize>, matches: &[Range<usize>]) -> String {
    let mut html = String::with_capacity(window.len() + 32);
    let mut at = window.start;
    for range in matches {
        let (start, end) = (range.start.max(window.start), range.end.min(window.end));
        if start >= end {
            continue;
        }
        escape(&text[at..start], &mut html);
        html.push_str("<mark>");
        escape(&text[start..end], &mut html);
        html.push_str("</mark>");
        at = end;
    }
    escape(&text[at..window.end], &mut html);
    html
}

fn escape(text: &str, html: &mut String) {
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c => html.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words<const N: usize>(words: [&str; N]) -> Marks {
        Marks { words: words.map(String::from).into(), ..Marks::default() }
    }

    fn fragment(marks: &Marks, text: &str) -> Option<String> {
        marks.fragment(text, &mut KnownStems::new())
    }

    #[test]
    fn the_sources_own_spelling_is_marked() {
        assert_eq!(fragment(&words(["cafe"]), "At the Café.").unwrap(), "At the <mark>Café</mark>.");
    }

    #[test]
    fn html_of_the_source_is_escaped() {
        assert_eq!(
            fragment(&words(["b"]), "<b onclick='x'>&\"").unwrap(),
            "&lt;<mark>b</mark> onclick=&#39;x&#39;&gt;&amp;&quot;"
        );
    }

    #[test]
    fn a_text_without_a_match_has_no_fragment() {
        assert_eq!(fragment(&words(["rust"]), "nothing here"), None);
    }

    #[test]
    fn words_of_the_same_stem_are_marked() {
        let marks = Marks { stems: ["run".into()].into(), ..Marks::default() };
        assert_eq!(fragment(&marks, "Running!").unwrap(), "<mark>Running</mark>!");
    }

    #[test]
    fn a_phrase_is_marked_only_where_its_words_are_neighbours() {
        let marks = Marks { phrases: vec![vec![(0, "memory".into()), (1, "safety".into())]], ..Marks::default() };
        assert_eq!(
            fragment(&marks, "memory, safety; memory and safety").unwrap(),
            "<mark>memory, safety</mark>; memory and safety"
        );
    }

    #[test]
    fn overlapping_pairs_are_one_mark() {
        assert_eq!(fragment(&words(["東京", "京都"]), "東京都だ").unwrap(), "<mark>東京都</mark>だ");
    }

    #[test]
    fn a_long_text_is_shown_where_most_words_match() {
        let text = format!("rust {} here rust and tokio meet {}", "filler ".repeat(80), "more ".repeat(80));
        let html = fragment(&words(["rust", "tokio"]), &text).unwrap();
        assert!(html.contains("<mark>rust</mark> and <mark>tokio</mark>"), "{html}");
    }

    fn plain(html: &str) -> String {
        html.replace("<mark>", "")
            .replace("</mark>", "")
            .replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&quot;", "\"")
            .replace("&#39;", "'")
            .replace("&amp;", "&")
    }

    proptest! {
        #[test]
        fn without_its_marks_a_fragment_is_a_piece_of_the_text(
            text in r#"([ab&<>"'é東京]{1,4}[ \n]{0,2}|\PC|<mark>|&lt;){0,150}"#,
            marked in prop::collection::btree_set("[abe東京]{1,2}", 1..4),
            prefix in "[ab]",
        ) {
            let marks = Marks { words: marked, prefixes: vec![prefix], ..Marks::default() };
            if let Some(html) = fragment(&marks, &text) {
                prop_assert!(text.contains(&plain(&html)), "{}", html);
                prop_assert!(html.contains("<mark>"), "{}", html);
                prop_assert!(plain(&html).chars().count() <= FRAGMENT_CHARS_MAX);
            }
        }
    }
}
