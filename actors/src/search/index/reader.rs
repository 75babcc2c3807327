//! Searching: a cheap handle that any number of threads share while the partition goes on writing.

use std::sync::{Arc, RwLock};

use tantivy::schema::Value;
use tantivy::{DocAddress, DocSet, IndexReader, Searcher, SegmentReader, TERMINATED, TantivyDocument};
use uuid::Uuid;

use super::collect::{Page, Place};
use super::document::{Document, Kind};
use super::highlight::Marks;
use super::hits::{
    Cursor, Highlight, Hit, Hits, LIMIT_MAX, Search, Sort, Suggestion, SuggestionKind, Summary, merge_suggestions,
};
use super::plan::{Plan, plan};
use super::schema::{Fields, ID_HIGH, VERSION, label, labelled, name};
use super::text::{Shape, Stemmer, is_stop_word, tokens};

/// How much of a body a summary quotes, in characters.
const EXCERPT_CHARS_MAX: usize = 200;

/// How many words of a dictionary one suggestion looks at, per segment and kind: it answers at every keystroke.
const SUGGEST_TERMS_MAX: usize = 4_096;

/// Why a search has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The cursor belongs to a search of another order.
    #[error("the cursor belongs to another search")]
    Cursor,
    /// No replica of any partition could be reached.
    #[error("no replica of the index answers")]
    Nobody,
    /// The index could not be read.
    #[error("cannot read the index")]
    Index(#[from] tantivy::TantivyError),
    /// The index holds a document that it should never have accepted.
    #[error("the index holds an unreadable document")]
    Document(#[from] serde_json::Error),
}

/// Searches the last commit of a partition.
#[derive(Clone)]
pub struct PartitionReader {
    /// Another one after the index was opened anew.
    reader: Arc<RwLock<IndexReader>>,
    pub(super) fields: Fields,
}

impl PartitionReader {
    pub(super) fn new(reader: IndexReader, fields: Fields) -> Self {
        Self { reader: Arc::new(RwLock::new(reader)), fields }
    }

    /// From now on searches the last commit of now.
    pub(super) fn reload(&self) -> tantivy::Result<()> {
        let reader = self.reader.read().expect("no panic under this lock").clone();
        reader.reload()
    }

    /// From now on searches another handle of the index.
    pub(super) fn replace(&self, reader: IndexReader) {
        *self.reader.write().expect("no panic under this lock") = reader;
    }

    fn searcher(&self) -> Searcher {
        self.reader.read().expect("no panic under this lock").searcher()
    }

    /// One page of what matches, best first.
    ///
    /// Blocks: milliseconds, tens of them for a query of many frequent words over a million documents.
    ///
    /// # Errors
    /// [`SearchError::Cursor`] for a cursor of another order; the others mean a broken index.
    pub fn search(&self, search: &Search) -> Result<Hits, SearchError> {
        search.check()?;
        let sort = search.effective_sort();
        let searcher = self.searcher();
        let Plan { query, marks } = plan(search, &searcher, &self.fields)?;
        let page = Page { sort, limit: search.limit.min(LIMIT_MAX), after: search.after };
        let collected = searcher.search(&query, &page)?;
        let mut stemmer = Stemmer::new();
        let items = collected
            .places
            .iter()
            .map(|place| self.hit(&searcher, place, sort, &marks, &mut stemmer))
            .collect::<Result<Vec<Hit>, SearchError>>()?;
        Ok(Hits { total: collected.total, more: collected.behind > items.len() as u64, items })
    }

    /// Completions of what is being typed, from usernames, tags and the words of titles; of several words, the last
    /// one is completed.
    ///
    /// Cheap enough for every keystroke.
    ///
    /// # Errors
    /// Only when the index cannot be read.
    pub fn suggest(&self, typed: &str, limit: usize) -> Result<Vec<Suggestion>, SearchError> {
        let limit = limit.min(LIMIT_MAX);
        let searcher = self.searcher();
        let typed = typed.trim();
        let mut found = Vec::new();
        if typed.is_empty() || typed.len() > super::query::QUERY_BYTES_MAX {
            return Ok(found);
        }
        let whole = name(typed);
        for (kind, sort) in [(SuggestionKind::User, label::USERNAME), (SuggestionKind::Tag, label::TAG)] {
            let completed = self.complete(&searcher, self.fields.label, &format!("{sort}{whole}"), limit)?;
            found.extend(completed.map(|(text, documents)| Suggestion { text: text[sort.len()..].to_owned(), kind, documents }));
        }
        if let Some(last) = tokens(typed).filter(|token| token.shape != Shape::Tail).last()
            && last.end == typed.len()
        {
            let head = typed[..last.start].to_lowercase();
            found.extend(
                // Twice as many as needed, because the most frequent words say the least.
                self.complete(&searcher, self.fields.title, &last.text, 2 * limit)?
                    .filter(|(word, _)| !is_stop_word(word))
                    .map(|(word, documents)| Suggestion { text: format!("{head}{word}"), kind: SuggestionKind::Word, documents }),
            );
        }
        Ok(merge_suggestions(found, limit))
    }

    /// How many documents can be found.
    pub fn document_count(&self) -> u64 {
        self.searcher().num_docs()
    }

    /// The greatest first half of an id, or more.
    pub(super) fn youngest(&self) -> tantivy::Result<u64> {
        let searcher = self.searcher();
        let older = |youngest: u64, segment: &SegmentReader| Ok(youngest.max(segment.fast_fields().u64(ID_HIGH)?.max_value()));
        searcher.segment_readers().iter().try_fold(0, older)
    }

    /// The version under which a document is committed, if it is.
    pub(super) fn version(&self, kind: Kind, id: Uuid) -> tantivy::Result<Option<u64>> {
        let term = labelled(&self.fields, &label::key(kind, id));
        for segment in self.searcher().segment_readers() {
            let inverted = segment.inverted_index(self.fields.label)?;
            let Some(mut postings) = inverted.read_postings(&term, tantivy::schema::IndexRecordOption::Basic)? else {
                continue;
            };
            while postings.doc() != TERMINATED {
                if segment.alive_bitset().is_none_or(|alive| alive.is_alive(postings.doc())) {
                    return Ok(segment.fast_fields().u64(VERSION)?.first(postings.doc()));
                }
                postings.advance();
            }
        }
        Ok(None)
    }

    fn hit(
        &self,
        searcher: &Searcher,
        place: &Place,
        sort: Sort,
        marks: &Marks,
        stemmer: &mut Stemmer,
    ) -> Result<Hit, SearchError> {
        let document = self.document(searcher, place.address)?;
        let highlight = Highlight {
            title: document.title.as_deref().and_then(|title| marks.fragment(title, stemmer)),
            body: marks.fragment(&document.body, stemmer),
        };
        Ok(Hit {
            kind: document.kind,
            id: document.id,
            version: document.version,
            score: place.score,
            created_at: document.created_at,
            highlight,
            cursor: Cursor { sort, key: place.key, id: document.id },
            summary: Summary {
                excerpt: excerpt(&document.body),
                title: document.title,
                author: document.author,
                tags: document.tags,
                post_id: document.post_id,
            },
        })
    }

    fn document(&self, searcher: &Searcher, address: DocAddress) -> Result<Document, SearchError> {
        let stored: TantivyDocument = searcher.doc(address)?;
        let source = stored.get_first(self.fields.source).and_then(|value| value.as_str()).unwrap_or_default();
        Ok(serde_json::from_str(source)?)
    }

    /// The most frequent terms of a field that begin so, with their number of documents.
    fn complete(
        &self,
        searcher: &Searcher,
        field: tantivy::schema::Field,
        prefix: &str,
        limit: usize,
    ) -> tantivy::Result<impl Iterator<Item = (String, u64)> + use<>> {
        let mut found = std::collections::BTreeMap::<String, u64>::new();
        for segment in searcher.segment_readers() {
            let inverted = segment.inverted_index(field)?;
            let mut terms = inverted.terms().range().ge(prefix).into_stream()?;
            let mut best = Vec::new();
            let mut seen = 0;
            while let Some((term, info)) = terms.next()
                && term.starts_with(prefix.as_bytes())
                && seen < SUGGEST_TERMS_MAX
            {
                seen += 1;
                best.push((term.to_vec(), info.clone()));
            }
            best.sort_by_key(|(term, info)| (std::cmp::Reverse(info.doc_freq), term.len()));
            // Some may be gone; a few more than are needed make up for them.
            for (term, info) in best.into_iter().take(2 * limit) {
                // A dictionary keeps its words until its segment is merged. Whoever deleted an account must not
                // appear here meanwhile.
                let mut postings = inverted.read_postings_from_terminfo(&info, tantivy::schema::IndexRecordOption::Basic)?;
                let alive = segment.alive_bitset();
                let mut lives = false;
                while !lives && postings.doc() != TERMINATED {
                    lives = alive.is_none_or(|alive| alive.is_alive(postings.doc()));
                    postings.advance();
                }
                if let (true, Ok(term)) = (lives, String::from_utf8(term)) {
                    *found.entry(term).or_default() += u64::from(info.doc_freq);
                }
            }
        }
        let mut found: Vec<(String, u64)> = found.into_iter().collect();
        found.sort_by_key(|(term, documents)| (std::cmp::Reverse(*documents), term.len()));
        Ok(found.into_iter().take(limit))
    }
}

/// How a body begins, cut between words where it has some.
fn excerpt(body: &str) -> String {
    let body = body.trim();
    match body.char_indices().nth(EXCERPT_CHARS_MAX) {
        None => body.to_owned(),
        Some((limit, _)) => {
            let cut = body[..limit].rfind(char::is_whitespace).unwrap_or(limit);
            body[..cut].trim_end().to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_ends_between_words_within_200_characters() {
        let excerpt = excerpt(&"wörd ".repeat(100));
        assert!(excerpt.ends_with("wörd") && excerpt.chars().count() <= EXCERPT_CHARS_MAX, "{excerpt}");
    }

    #[test]
    fn an_excerpt_of_one_endless_word_is_cut_inside_it() {
        assert_eq!(excerpt(&"語".repeat(300)).chars().count(), EXCERPT_CHARS_MAX);
    }
}
