//! Searching: a cheap handle that any number of threads share while the partition goes on writing.

use std::sync::{Arc, RwLock};

use tantivy::postings::SegmentPostings;
use tantivy::schema::{Field, IndexRecordOption, Value};
use tantivy::{DocAddress, DocId, DocSet, IndexReader, Searcher, SegmentReader, TERMINATED, TantivyDocument};
use uuid::Uuid;

use super::document::{Document, Kind};
use super::find::Views;
use super::hits::{Hits, LIMIT_MAX, Search, Suggestion, SuggestionKind, merge_suggestions};
use super::plan::Plan;
use super::schema::{FORMAT, ID_HIGH, Layout, VERSION, label, name};
use super::text::{Shape, is_stop_word, tokens};

/// How many words of a dictionary one suggestion looks at, per segment and kind: it answers at every keystroke.
const SUGGEST_TERMS_MAX: usize = 4_096;

/// Why a search has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The cursor belongs to a search of another order.
    #[error("the cursor belongs to another search")]
    Cursor,
    /// Nobody waits for the answer any more.
    #[error("the time for the answer is over")]
    Late,
    /// More searches wait than may.
    #[error("too many searches are waiting")]
    Busy,
    /// No replica of any partition could be reached.
    #[error("no replica of the index answers")]
    Nobody,
    /// The index could not be read.
    #[error("cannot read the index")]
    Index(#[from] tantivy::TantivyError),
    /// The same, from below.
    #[error("cannot read the files of the index")]
    Files(#[from] std::io::Error),
    /// The index holds a document that it should never have accepted.
    #[error("the index holds an unreadable document")]
    Document(#[from] serde_json::Error),
}

/// Searches the last commit of a partition.
#[derive(Clone)]
pub struct PartitionReader {
    /// Another one after the index was opened anew.
    reader: Arc<RwLock<IndexReader>>,
    pub(super) layout: Arc<Layout>,
}

/// A partition as of one commit: what is found in it can be fetched from it.
#[derive(Clone)]
pub struct View {
    pub(super) searcher: Searcher,
    pub(super) layout: Arc<Layout>,
}

impl PartitionReader {
    pub(super) fn new(reader: IndexReader, layout: Arc<Layout>) -> Self {
        Self { reader: Arc::new(RwLock::new(reader)), layout }
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

    /// The last commit.
    pub fn view(&self) -> View {
        View { searcher: self.searcher(), layout: Arc::clone(&self.layout) }
    }

    /// Searches this partition alone.
    ///
    /// # Errors
    /// As [`Views::search`].
    pub fn search(&self, search: &Search) -> Result<Hits, SearchError> {
        let views = Views::of(vec![self.view()]);
        Ok(views.search(search, &views.plan(search), None)?.0)
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
            let completed = self.complete(&searcher, self.layout.label, &format!("{sort}{whole}"), limit)?;
            found.extend(completed.map(|(text, documents)| Suggestion { text: text[sort.len()..].to_owned(), kind, documents }));
        }
        if let Some(last) = tokens(typed).filter(|token| token.shape != Shape::Tail).last()
            && last.end == typed.len()
        {
            let head = typed[..last.start].to_lowercase();
            let (field, sort) = match self.layout.title {
                Some(title) => (title, ""),
                None => (self.layout.label, label::WORD),
            };
            found.extend(
                // Twice as many as needed, because the most frequent words say the least.
                self.complete(&searcher, field, &format!("{sort}{}", last.text), 2 * limit)?
                    .map(|(word, documents)| (word[sort.len()..].to_owned(), documents))
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
        let view = self.view();
        let Some(address) = view.address(kind, id)? else { return Ok(None) };
        let segment = view.searcher.segment_reader(address.segment_ord);
        Ok(segment.fast_fields().u64(VERSION)?.first(address.doc_id))
    }

    /// The most frequent terms of a field that begin so, with their number of documents.
    fn complete(
        &self,
        searcher: &Searcher,
        field: Field,
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
                let postings = inverted.read_postings_from_terminfo(&info, IndexRecordOption::Basic)?;
                if let (Some(_), Ok(term)) = (living(segment, postings), String::from_utf8(term)) {
                    *found.entry(term).or_default() += u64::from(info.doc_freq);
                }
            }
        }
        let mut found: Vec<(String, u64)> = found.into_iter().collect();
        found.sort_by_key(|(term, documents)| (std::cmp::Reverse(*documents), term.len()));
        Ok(found.into_iter().take(limit))
    }
}

/// The first document of these that is still there: a dictionary keeps its words until their segment is merged.
pub(super) fn living(segment: &SegmentReader, mut postings: SegmentPostings) -> Option<DocId> {
    while postings.doc() != TERMINATED {
        if segment.alive_bitset().is_none_or(|alive| alive.is_alive(postings.doc())) {
            return Some(postings.doc());
        }
        postings.advance();
    }
    None
}

impl View {
    /// Where a document is, if it is there.
    pub(super) fn address(&self, kind: Kind, id: Uuid) -> tantivy::Result<Option<DocAddress>> {
        let term = self.layout.labelled(&label::key(kind, id));
        for (ordinal, segment) in (0..).zip(self.searcher.segment_readers()) {
            let inverted = segment.inverted_index(self.layout.label)?;
            let postings = inverted.read_postings(&term, IndexRecordOption::Basic)?;
            if let Some(doc) = postings.and_then(|postings| living(segment, postings)) {
                return Ok(Some(DocAddress::new(ordinal, doc)));
            }
        }
        Ok(None)
    }

    /// Where the document of an id is, of whatever kind.
    pub(super) fn anywhere(&self, id: Uuid) -> tantivy::Result<Option<DocAddress>> {
        for kind in [Kind::Post, Kind::Comment, Kind::User] {
            if let Some(address) = self.address(kind, id)? {
                return Ok(Some(address));
            }
        }
        Ok(None)
    }

    pub(super) fn document(&self, address: DocAddress) -> Result<Document, SearchError> {
        let stored: TantivyDocument = self.searcher.doc(address)?;
        let source = stored.get_first(self.layout.source).and_then(|value| value.as_str()).unwrap_or_default();
        Ok(serde_json::from_str(source)?)
    }

    /// How long a text of a field is on the average: as the plan says, or, in an index of a former layout, as it is here.
    pub(super) fn average(&self, field: Field, plan: &Plan) -> tantivy::Result<f32> {
        let (mut tokens, mut documents) = (plan.tokens, plan.documents);
        if self.layout.format != FORMAT {
            (tokens, documents) = (0, 0);
            for segment in self.searcher.segment_readers() {
                tokens += segment.inverted_index(field)?.total_num_tokens();
                documents += u64::from(segment.max_doc());
            }
        }
        Ok((tokens as f32 / documents.max(1) as f32).max(1.0))
    }
}
