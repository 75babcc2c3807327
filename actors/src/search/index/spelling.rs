//! All words of a node's partitions in one dictionary, for words that are spelt similarly.
//!
//! Every segment has a dictionary, and to look for similar words is a walk over it, which costs nearly as much in a small one.
//! So their words are gathered in one, from time to time: what came since is looked up where it is, as long as that is little.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tantivy::index::SegmentId;
use tantivy::query::FuzzyTermQuery;
use tantivy::schema::IndexRecordOption;
use tantivy::termdict::TermStreamer;
use tantivy::{SegmentReader, TantivyError, Term};
use tantivy_fst::{IntoStreamer, Map, MapBuilder, Streamer};

use super::plan::{MEANT_MAX, edits_max, most_frequent};
use super::reader::{View, living};
use crate::episodes;

/// Documents of segments that are not gathered yet whose words are looked up all the same.
const APART_MAX: u64 = 10_000;
/// And so many of those segments; more before the first are gathered.
const APART_SEGMENTS_MAX: usize = 8;
const APART_SEGMENTS_FIRST: usize = 64;
/// Before it is tried again after a failure.
const PAUSE: Duration = Duration::from_secs(60);
/// Words are gathered anew when so many documents came, or one in so many of those before.
const NEW_MIN: u64 = 1_000;
const NEW_PART: u64 = 10;
/// Longer words are nobody's spelling.
const WORD_BYTES_MAX: usize = 40;
/// Where there are so many documents, a word that only one of them has is as likely a misspelling itself.
const ONCE_UNTIL: u64 = 100_000;

/// The dictionary of a node; clones share it.
#[derive(Clone, Default)]
pub struct Spelling(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    gathered: Option<Arc<Gathered>>,
    is_gathering: bool,
    failed_at: Option<Instant>,
}

/// The words of some segments, and in how many documents each is.
struct Gathered {
    of: HashSet<SegmentId>,
    documents: u64,
    words: Map<Vec<u8>>,
}

/// Words that are similar to one: how many documents have them, and how many edits they are away.
pub(super) type Similar = Vec<(String, u64, u8)>;

impl Spelling {
    /// Words that are spelt like this one, the nearest and of those the most frequent: a swap of neighbours is one edit. What is
    /// two edits away is only looked for where nothing is nearer, and where `edits` allows it.
    ///
    /// # Errors
    /// Only when an index cannot be read.
    pub(super) fn similar(&self, views: &[View], word: &str, edits: u8) -> tantivy::Result<Similar> {
        let gathered = self.gathered(views);
        let segments = views.iter().flat_map(|view| view.searcher.segment_readers().iter().map(move |segment| (view, segment)));
        let mut apart: Vec<(&View, &SegmentReader)> = segments
            .filter(|(_, segment)| gathered.as_ref().is_none_or(|gathered| !gathered.of.contains(&segment.segment_id())))
            .collect();
        // The smallest are the youngest; the others are being gathered.
        apart.sort_by_key(|(_, segment)| segment.max_doc());
        let mut documents = 0;
        apart.retain(|(_, segment)| {
            documents += u64::from(segment.max_doc());
            documents <= APART_MAX
        });
        apart.truncate(if gathered.is_some() { APART_SEGMENTS_MAX } else { APART_SEGMENTS_FIRST });
        let Some(view) = views.first() else { return Ok(Vec::new()) };
        for edits in 1..=edits.min(edits_max(word)) {
            // An automaton is of a word alone, whatever field its term names.
            let automaton = FuzzyTermQuery::new(Term::from_field_text(view.layout.words[0], word), edits, true).automaton()?;
            let mut found = BTreeMap::<String, u64>::new();
            let mut add = |term: &[u8], documents: u64| {
                if let Ok(term) = std::str::from_utf8(term)
                    && term != word
                {
                    *found.entry(term.to_owned()).or_default() += documents;
                }
            };
            if let Some(gathered) = &gathered {
                let mut words = gathered.words.search(&automaton).into_stream();
                while let Some((term, documents)) = words.next() {
                    add(term, documents);
                }
            }
            for (view, segment) in &apart {
                for field in &view.layout.words {
                    let inverted = segment.inverted_index(*field)?;
                    let mut terms = inverted.terms().search(&automaton).into_stream()?;
                    while let Some((term, info)) = terms.next() {
                        add(term, u64::from(info.doc_freq));
                    }
                }
            }
            let mut living = Vec::new();
            for (word, documents) in most_frequent(found, 2 * MEANT_MAX) {
                // Whoever deleted an account must not appear here.
                if living.len() < MEANT_MAX && lives(views, &word)? {
                    living.push((word, documents, edits));
                }
            }
            if !living.is_empty() {
                return Ok(living);
            }
        }
        Ok(Vec::new())
    }

    /// What was gathered last; begins to gather anew where much came since. The first few documents are not waited for.
    fn gathered(&self, views: &[View]) -> Option<Arc<Gathered>> {
        let mut state = self.0.lock().expect("no panic under this lock");
        let segments = || views.iter().flat_map(|view| view.searcher.segment_readers());
        let known =
            |segment: &SegmentReader| state.gathered.as_ref().is_some_and(|known| known.of.contains(&segment.segment_id()));
        let new: u64 = segments().filter(|segment| !known(segment)).map(|segment| u64::from(segment.max_doc())).sum();
        let before = state.gathered.as_ref().map_or(0, |gathered| gathered.documents);
        let may = !state.is_gathering && state.failed_at.is_none_or(|failed| failed.elapsed() >= PAUSE);
        if new >= NEW_MIN.max(before / NEW_PART) && may {
            state.is_gathering = true;
            let (shared, views) = (self.clone(), views.to_vec());
            // Once in a while, and longer than a search may take.
            let spawned = thread::Builder::new().name("spelling".to_owned()).spawn(move || {
                let gathered = catch_unwind(AssertUnwindSafe(|| gather(&views)));
                let mut state = shared.0.lock().expect("no panic under this lock");
                state.is_gathering = false;
                match gathered {
                    Ok(Ok(gathered)) => state.gathered = Some(Arc::new(gathered)),
                    failed => {
                        state.failed_at = Some(Instant::now());
                        if let Ok(Err(error)) = failed {
                            episodes::warn("the words of the indexes cannot be gathered", "search", &error);
                        }
                    }
                }
            });
            state.is_gathering = spawned.is_ok();
        }
        state.gathered.clone()
    }

    /// Gathers now, and waits for it: for whoever measures what comes then.
    ///
    /// # Errors
    /// When an index cannot be read.
    pub fn gather_now(&self, views: &[View]) -> tantivy::Result<()> {
        let gathered = gather(views)?;
        self.0.lock().expect("no panic under this lock").gathered = Some(Arc::new(gathered));
        Ok(())
    }
}

/// Whether a document that is still there has a word.
fn lives(views: &[View], word: &str) -> tantivy::Result<bool> {
    for view in views {
        for segment in view.searcher.segment_readers() {
            for field in &view.layout.words {
                let term = Term::from_field_text(*field, word);
                let postings = segment.inverted_index(*field)?.read_postings(&term, IndexRecordOption::Basic)?;
                if postings.and_then(|postings| living(segment, postings)).is_some() {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

fn unmapped(error: tantivy_fst::Error) -> TantivyError {
    TantivyError::InternalError(error.to_string())
}

/// Merges the dictionaries of all segments, which are sorted.
fn gather(views: &[View]) -> tantivy::Result<Gathered> {
    let (mut of, mut documents, mut dictionaries) = (HashSet::new(), 0, Vec::new());
    for view in views {
        for segment in view.searcher.segment_readers() {
            of.insert(segment.segment_id());
            documents += u64::from(segment.max_doc());
            for field in &view.layout.words {
                dictionaries.push(segment.inverted_index(*field)?);
            }
        }
    }
    let mut streams: Vec<TermStreamer<'_>> =
        dictionaries.iter().map(|dictionary| dictionary.terms().stream()).collect::<std::io::Result<_>>()?;
    let mut next: BinaryHeap<Reverse<(Vec<u8>, usize)>> = BinaryHeap::new();
    for (place, stream) in streams.iter_mut().enumerate() {
        if stream.advance() {
            next.push(Reverse((stream.key().to_vec(), place)));
        }
    }
    let fewest = if documents > ONCE_UNTIL { 2 } else { 1 };
    let mut words = MapBuilder::memory();
    while let Some(Reverse((word, place))) = next.pop() {
        let mut having = u64::from(streams[place].value().doc_freq);
        let mut advance = vec![place];
        while let Some(Reverse((other, place))) = next.peek()
            && *other == word
        {
            having += u64::from(streams[*place].value().doc_freq);
            advance.push(*place);
            next.pop();
        }
        for place in advance {
            if streams[place].advance() {
                next.push(Reverse((streams[place].key().to_vec(), place)));
            }
        }
        let is_spelling = word.len() > 2 && word.len() <= WORD_BYTES_MAX && !word.iter().any(u8::is_ascii_digit);
        if is_spelling && having >= fewest {
            words.insert(&word, having).map_err(unmapped)?;
        }
    }
    let words = Map::from_bytes(words.into_inner().map_err(unmapped)?).map_err(unmapped)?;
    Ok(Gathered { of, documents, words })
}
