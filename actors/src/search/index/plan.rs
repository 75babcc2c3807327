//! From what was typed to what tantivy executes, and to what will be highlighted.
//!
//! The work is bounded whatever is typed: a query has at most [`TOKENS_MAX`] tokens, a misspelling or prefix expands to
//! at most a few dozen words, and only [`FUZZY_WORDS_MAX`] words are tried for misspellings at all.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use tantivy::query::{
    AllQuery, BooleanQuery, BoostQuery, ConstScoreQuery, EmptyQuery, FuzzyTermQuery, Occur, PhraseQuery, Query as Execute,
    RangeQuery, TermQuery, TermSetQuery,
};
use tantivy::schema::{Field, IndexRecordOption, Schema};
use tantivy::{Searcher, Term};

use super::highlight::Marks;
use super::hits::Search;
use super::query::{Clause, Pattern};
use super::schema::{CREATED, Fields, label, labelled};
use super::text::{Shape, Stemmer, Token, is_stop_word, tokens};

/// Words and pairs of a query beyond these are ignored.
const TOKENS_MAX: usize = 64;

/// Of so many words of a query the misspellings are looked for; each costs a walk over the dictionary.
const FUZZY_WORDS_MAX: usize = 8;

/// The words that a misspelt one may have meant, at most: the most frequent ones.
const FUZZY_EXPANSIONS_MAX: usize = 16;

/// A word that this many documents contain is taken at its word, and nothing else is looked for.
///
/// Most words of most queries are spelt right; for them this saves the walk over the dictionary, and their results the
/// noise of `trust` and `dust` below `rust`. A word with fewer hits is either rare or wrong, so it gets company, ranked
/// below it.
const FUZZY_BELOW_DOCUMENTS: u64 = 5;

/// Prefixes of up to so many words are scored word by word; beyond, all words count the same.
const PREFIX_EXPANSIONS_MAX: usize = 64;

/// Of so many prefixes of a query the words are looked up; the shortest ones read a good part of the index.
const PREFIXES_MAX: usize = 8;

/// A match in the title counts for this many in the body, besides that titles are short, which BM25 rewards too.
const TITLE: f32 = 2.5;
/// What the exact form of a word adds to its stem.
const EXACT: f32 = 0.5;
/// A phrase says more than its words.
const PHRASE: f32 = 2.0;
/// A similar word, where the exact one exists: low enough that the exact one, being rare when we get here, stays above.
const FUZZY_BESIDE_EXACT: f32 = 0.25;
/// A similar word, where the exact one does not exist: it was meant, so it must hold its own beside the other words of
/// the query. Still below an exact match, which another partition may have.
const FUZZY: f32 = 0.4;

type Clauses = Vec<(Occur, Box<dyn Execute>)>;

/// What to execute and what to highlight.
pub(super) struct Plan {
    pub query: Box<dyn Execute>,
    pub marks: Marks,
}

/// Plans a search against the words that the index knows.
///
/// # Errors
/// When the dictionary cannot be read.
pub(super) fn plan(search: &Search, searcher: &Searcher, fields: &Fields) -> tantivy::Result<Plan> {
    let planner = Planner {
        searcher,
        fields,
        stemmer: Stemmer::new(),
        marks: Marks::default(),
        tokens_left: TOKENS_MAX,
        fuzzy_left: FUZZY_WORDS_MAX,
        prefixes_left: PREFIXES_MAX,
    };
    planner.plan(search)
}

struct Planner<'a> {
    searcher: &'a Searcher,
    fields: &'a Fields,
    stemmer: Stemmer,
    marks: Marks,
    tokens_left: usize,
    fuzzy_left: usize,
    prefixes_left: usize,
}

impl Planner<'_> {
    fn plan(mut self, search: &Search) -> tantivy::Result<Plan> {
        let mut clauses = filters(search, self.searcher.schema(), self.fields);
        if search.query.is_ranked() {
            clauses.push((Occur::Must, self.wanted(&search.query.clauses)?));
        }
        for clause in search.query.clauses.iter().filter(|clause| clause.negated) {
            clauses.extend(self.unwanted(&clause.pattern)?.map(|query| (Occur::MustNot, query)));
        }
        if !clauses.iter().any(|(occur, _)| *occur == Occur::Must) {
            clauses.push((Occur::Must, Box::new(AllQuery)));
        }
        Ok(Plan { query: Box::new(BooleanQuery::new(clauses)), marks: self.marks })
    }

    /// Everything that is asked for: all of the phrases, and any of the words, which only rank where there is a phrase.
    fn wanted(&mut self, clauses: &[Clause]) -> tantivy::Result<Box<dyn Execute>> {
        let wanted: Vec<&Pattern> = clauses.iter().filter(|clause| !clause.negated).map(|clause| &clause.pattern).collect();
        let only_stop_words = wanted.iter().all(|pattern| match pattern {
            Pattern::Word(word) => tokens(word).all(|token| is_stop_word(&token.text)),
            Pattern::Prefix(_) | Pattern::Phrase(_) => false,
        });
        let mut seen = BTreeSet::new();
        let mut queries = Clauses::new();
        for pattern in wanted {
            match pattern {
                Pattern::Phrase(phrase) => {
                    let tokens = self.tokens(phrase);
                    if let Some(query) = self.phrase(&tokens) {
                        self.mark_phrase(&tokens);
                        queries.push((Occur::Must, query));
                    }
                }
                Pattern::Word(word) => {
                    let tokens = self.tokens(word);
                    // The parts of `lock-free` may match alone, but together they are meant.
                    if tokens.len() > 1 {
                        queries.extend(self.phrase(&tokens).map(|query| (Occur::Should, query)));
                    }
                    for token in tokens {
                        let ignored = is_stop_word(&token.text) && !only_stop_words;
                        if !ignored && seen.insert(token.text.clone()) {
                            self.word(&token, &mut queries)?;
                        }
                    }
                }
                Pattern::Prefix(prefix) => {
                    let mut tokens = self.tokens(prefix);
                    let last = tokens.pop();
                    for token in &tokens {
                        self.word(token, &mut queries)?;
                    }
                    match last {
                        // A pair of a dense script begins whatever follows it.
                        Some(token) if token.shape == Shape::Pair => self.word(&token, &mut queries)?,
                        Some(token) => self.prefix(&token.text, &mut queries)?,
                        None => {}
                    }
                }
            }
        }
        if queries.is_empty() {
            // Something was asked for, but nothing that is ever indexed: an emoji, say.
            return Ok(Box::new(EmptyQuery));
        }
        Ok(Box::new(BooleanQuery::new(queries)))
    }

    /// What a pattern rules out: all forms of a word, but not what it may be a misspelling of.
    fn unwanted(&mut self, pattern: &Pattern) -> tantivy::Result<Option<Box<dyn Execute>>> {
        let (Pattern::Word(text) | Pattern::Prefix(text) | Pattern::Phrase(text)) = pattern;
        let tokens = self.tokens(text);
        if let (Pattern::Word(_), [token]) = (pattern, tokens.as_slice())
            && token.shape == Shape::Word
        {
            let stem = self.stemmer.stem(&token.text);
            let terms = [self.fields.title_stems, self.fields.body_stems].map(|field| Term::from_field_text(field, &stem));
            return Ok(Some(Box::new(TermSetQuery::new(terms))));
        }
        if let (Pattern::Prefix(_), [token]) = (pattern, tokens.as_slice()) {
            return Ok(self.any_with_prefix(&token.text));
        }
        Ok(self.phrase(&tokens))
    }

    /// The tokens of a clause as far as the budget goes, without the last characters that pairs contain already.
    fn tokens(&mut self, text: &str) -> Vec<Token> {
        let tokens: Vec<Token> = tokens(text).filter(|token| token.shape != Shape::Tail).take(self.tokens_left).collect();
        self.tokens_left -= tokens.len();
        tokens
    }

    /// One word in all its forms, and in other spellings if hardly anything has it.
    fn word(&mut self, token: &Token, queries: &mut Clauses) -> tantivy::Result<()> {
        match token.shape {
            Shape::Single => return self.prefix(&token.text, queries),
            Shape::Pair | Shape::Tail => {
                queries.push(should(self.fields.title, &token.text, TITLE));
                queries.push(should(self.fields.body, &token.text, 1.0));
                self.marks.words.insert(token.text.clone());
                return Ok(());
            }
            Shape::Word => {}
        }
        let stem = self.stemmer.stem(&token.text);
        queries.push(should(self.fields.title, &token.text, EXACT * TITLE));
        queries.push(should(self.fields.body, &token.text, EXACT));
        self.stem(&stem, 1.0, queries);
        self.marks.words.insert(token.text.clone());
        match self.documents_with(&stem)? {
            0 => self.misspelt(&token.text, &stem, FUZZY, queries),
            1..FUZZY_BELOW_DOCUMENTS => self.misspelt(&token.text, &stem, FUZZY_BESIDE_EXACT, queries),
            FUZZY_BELOW_DOCUMENTS.. => Ok(()),
        }
    }

    fn stem(&mut self, stem: &str, boost: f32, queries: &mut Clauses) {
        queries.push(should(self.fields.title_stems, stem, boost * TITLE));
        queries.push(should(self.fields.body_stems, stem, boost));
        self.marks.stems.insert(stem.to_owned());
    }

    fn documents_with(&self, stem: &str) -> tantivy::Result<u64> {
        let in_titles = self.searcher.doc_freq(&Term::from_field_text(self.fields.title_stems, stem))?;
        let in_bodies = self.searcher.doc_freq(&Term::from_field_text(self.fields.body_stems, stem))?;
        Ok(in_titles + in_bodies)
    }

    /// Adds the words that this one may be a misspelling of, in all their forms; those two edits away at half the boost.
    fn misspelt(&mut self, word: &str, own_stem: &str, boost: f32, queries: &mut Clauses) -> tantivy::Result<()> {
        if self.fuzzy_left == 0 {
            return Ok(());
        }
        for edits in 1..=edits_max(word) {
            self.fuzzy_left = self.fuzzy_left.saturating_sub(1);
            let similar = self.similar(word, edits)?;
            let mut stems: BTreeSet<String> = similar.iter().map(|word| self.stemmer.stem(word)).collect();
            stems.remove(own_stem);
            for stem in &stems {
                self.stem(stem, boost / f32::from(edits), queries);
            }
            // What is two edits away is only worth a look if nothing is nearer.
            if !stems.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// The most frequent words of titles and bodies within so many edits; a swap of neighbours is one.
    fn similar(&self, word: &str, edits: u8) -> tantivy::Result<Vec<String>> {
        let automaton = FuzzyTermQuery::new(Term::from_field_text(self.fields.body, word), edits, true).automaton()?;
        let mut found: BTreeMap<String, u32> = BTreeMap::new();
        for segment in self.searcher.segment_readers() {
            for field in [self.fields.title, self.fields.body] {
                let inverted = segment.inverted_index(field)?;
                let mut terms = inverted.terms().search(&automaton).into_stream()?;
                while let Some((term, info)) = terms.next() {
                    if let Ok(term) = std::str::from_utf8(term) {
                        *found.entry(term.to_owned()).or_default() += info.doc_freq;
                    }
                }
            }
        }
        let mut found: Vec<(String, u32)> = found.into_iter().collect();
        found.sort_by_key(|(_, documents)| std::cmp::Reverse(*documents));
        Ok(found.into_iter().take(FUZZY_EXPANSIONS_MAX).map(|(word, _)| word).collect())
    }

    /// Words that begin so: scored like words if they are few, all alike if they are many.
    fn prefix(&mut self, prefix: &str, queries: &mut Clauses) -> tantivy::Result<()> {
        if self.marks.prefixes.len() == PREFIXES_MAX || self.marks.prefixes.iter().any(|known| known == prefix) {
            return Ok(());
        }
        match self.expand(prefix)? {
            Some(words) => {
                for word in words {
                    queries.push(should(self.fields.title, &word, TITLE));
                    queries.push(should(self.fields.body, &word, 1.0));
                }
            }
            None => queries.extend(self.any_with_prefix(prefix).map(|query| (Occur::Should, query))),
        }
        self.marks.prefixes.push(prefix.to_owned());
        Ok(())
    }

    /// All words that begin so, or none if they are too many.
    fn expand(&self, prefix: &str) -> tantivy::Result<Option<BTreeSet<String>>> {
        let mut words = BTreeSet::new();
        for segment in self.searcher.segment_readers() {
            for field in [self.fields.title, self.fields.body] {
                let inverted = segment.inverted_index(field)?;
                let mut terms = inverted.terms().range().ge(prefix).into_stream()?;
                while let Some((term, _)) = terms.next()
                    && term.starts_with(prefix.as_bytes())
                {
                    words.extend(std::str::from_utf8(term).map(str::to_owned));
                    if words.len() > PREFIX_EXPANSIONS_MAX {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(Some(words))
    }

    /// Any word that begins so, without a score of its own. Costs as much as there are such words in documents.
    ///
    /// None if the query has used up its prefixes.
    fn any_with_prefix(&mut self, prefix: &str) -> Option<Box<dyn Execute>> {
        self.prefixes_left = self.prefixes_left.checked_sub(1)?;
        let field = |field, boost| -> (Occur, Box<dyn Execute>) {
            // No edits and anything behind: the automaton of a prefix.
            let query = FuzzyTermQuery::new_prefix(Term::from_field_text(field, prefix), 0, true);
            (Occur::Should, Box::new(BoostQuery::new(Box::new(query), boost)))
        };
        Some(Box::new(BooleanQuery::new(vec![field(self.fields.title, TITLE), field(self.fields.body, 1.0)])))
    }

    /// The tokens in exactly this order, in the title or in the body; none if there are no tokens.
    fn phrase(&mut self, tokens: &[Token]) -> Option<Box<dyn Execute>> {
        let in_field = |field: Field, boost: f32| -> (Occur, Box<dyn Execute>) {
            let terms: Vec<(usize, Term)> =
                tokens.iter().map(|token| (token.position, Term::from_field_text(field, &token.text))).collect();
            match terms.as_slice() {
                [(_, term)] => should_term(term.clone(), boost),
                _ => (Occur::Should, Box::new(BoostQuery::new(Box::new(PhraseQuery::new_with_offset(terms)), boost))),
            }
        };
        match tokens {
            [] => None,
            [only] if only.shape == Shape::Single => self.any_with_prefix(&only.text),
            _ => Some(Box::new(BooleanQuery::new(vec![
                in_field(self.fields.title, PHRASE * TITLE),
                in_field(self.fields.body, PHRASE),
            ]))),
        }
    }

    fn mark_phrase(&mut self, tokens: &[Token]) {
        match tokens {
            [] => {}
            [only] if only.shape == Shape::Single => self.marks.prefixes.push(only.text.clone()),
            [first, ..] => self
                .marks
                .phrases
                .push(tokens.iter().map(|token| (token.position - first.position, token.text.clone())).collect()),
        }
    }
}

/// How many edits a misspelling may be away: short words are too near to each other, and numbers are never meant
/// otherwise.
fn edits_max(word: &str) -> u8 {
    if word.chars().any(|c| c.is_numeric()) {
        return 0;
    }
    match word.chars().count() {
        0..=3 => 0,
        4..=6 => 1,
        _ => 2,
    }
}

/// What may match at all. Filters score nothing.
fn filters(search: &Search, schema: &Schema, fields: &Fields) -> Clauses {
    let must =
        |query: Box<dyn Execute>| -> (Occur, Box<dyn Execute>) { (Occur::Must, Box::new(ConstScoreQuery::new(query, 0.0))) };
    let is = |label: String| must(Box::new(TermQuery::new(labelled(fields, &label), IndexRecordOption::Basic)));
    let mut clauses = Clauses::new();
    if !search.kinds.is_empty() {
        let kinds = search.kinds.iter().map(|kind| labelled(fields, &label::kind(*kind)));
        clauses.push(must(Box::new(TermSetQuery::new(kinds))));
    }
    clauses.extend(search.author.map(|author| is(label::author(author))));
    clauses.extend(search.tag.as_ref().map(|tag| is(label::tag(tag))));
    if search.from.is_some() || search.to.is_some() {
        let created = schema.get_field(CREATED).expect("the schema has its fast fields");
        let micros = |time: jiff::Timestamp| Term::from_field_i64(created, time.as_microsecond());
        let from = search.from.map_or(Bound::Unbounded, |from| Bound::Included(micros(from)));
        let to = search.to.map_or(Bound::Unbounded, |to| Bound::Excluded(micros(to)));
        clauses.push(must(Box::new(RangeQuery::new(from, to))));
    }
    clauses
}

fn should(field: Field, word: &str, boost: f32) -> (Occur, Box<dyn Execute>) {
    should_term(Term::from_field_text(field, word), boost)
}

fn should_term(term: Term, boost: f32) -> (Occur, Box<dyn Execute>) {
    let query = TermQuery::new(term, IndexRecordOption::WithFreqs);
    (Occur::Should, Box::new(BoostQuery::new(Box::new(query), boost)))
}
