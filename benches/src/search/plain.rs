//! tantivy as its documentation shows it: one index of one segment, English stems, and nothing of ours around it.
//!
//! Beside our engine it tells what a search costs that is tantivy's; and its BM25 is what our ranking is compared with.

use std::{fs, ops::Bound, path::Path};

use rookery_actors::search::index::{Document, Kind};
use serde::Serialize;
use tantivy::{
    DocAddress, Index, IndexReader, IndexWriter, Order, ReloadPolicy, Searcher, TantivyDocument, Term,
    collector::{Count, TopDocs},
    query::{
        AllQuery, BooleanQuery, BoostQuery, ConstScoreQuery, FuzzyTermQuery, Occur, PhraseQuery, Query, RangeQuery, RegexQuery,
        TermQuery,
    },
    schema::{FAST, Field, IndexRecordOption, STORED, STRING, Schema, TextFieldIndexing, TextOptions, Value},
    snippet::SnippetGenerator,
    tokenizer::TextAnalyzer,
};
use uuid::Uuid;

use super::ask::{Ask, Clause};

/// What the writer gathers before it writes a segment.
const WRITER_BYTES: usize = 100_000_000;
const CREATED: &str = "created_us";
/// What a summary quotes of a body, as ours does, in characters.
const EXCERPT_CHARS: usize = 200;

/// How texts are indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Title and body in a field each, the title weighing twice as much; a word that nothing has is taken for a misspelling.
    TitleAndBody,
    /// One field in which the title stands three times: the baseline of relevance. Words only.
    OneText,
}

/// An index.
pub struct Plain {
    layout: Layout,
    index: Index,
    writer: Option<IndexWriter>,
    reader: IndexReader,
    fields: Fields,
    analyzer: TextAnalyzer,
}

struct Fields {
    /// What is searched, and how much it weighs.
    texts: Vec<(Field, f32)>,
    id: Field,
    kind: Field,
    author: Field,
    tag: Field,
    created: Field,
    source: Field,
}

/// A page as JSON.
#[derive(Serialize)]
struct Page {
    total: u64,
    items: Vec<Hit>,
}

#[derive(Serialize)]
struct Hit {
    kind: Kind,
    id: Uuid,
    created_at: jiff::Timestamp,
    title: Option<String>,
    excerpt: String,
    author: Option<Uuid>,
    tags: Vec<String>,
    post_id: Option<Uuid>,
    /// The title and the body with what matches in bold.
    highlights: Vec<String>,
}

impl Plain {
    /// Makes an index in an empty folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(dir: &Path, layout: Layout) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)?;
        let mut schema = Schema::builder();
        let indexing =
            TextFieldIndexing::default().set_tokenizer("en_stem").set_index_option(IndexRecordOption::WithFreqsAndPositions);
        let text = TextOptions::default().set_indexing_options(indexing);
        let texts = match layout {
            Layout::TitleAndBody => vec![("title", 2.0), ("body", 1.0)],
            Layout::OneText => vec![("text", 1.0)],
        };
        let fields = Fields {
            texts: texts.into_iter().map(|(name, weight)| (schema.add_text_field(name, text.clone()), weight)).collect(),
            id: schema.add_text_field("id", STRING | STORED),
            kind: schema.add_text_field("kind", STRING),
            author: schema.add_text_field("author", STRING),
            tag: schema.add_text_field("tag", STRING),
            created: schema.add_i64_field(CREATED, FAST),
            source: schema.add_text_field("source", STORED),
        };
        let index = Index::create_in_dir(dir, schema.build())?;
        let writer = index.writer_with_num_threads(1, WRITER_BYTES)?;
        let analyzer = index.tokenizer_for_field(fields.texts[0].0)?;
        Ok(Self {
            layout,
            reader: index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?,
            index,
            writer: Some(writer),
            fields,
            analyzer,
        })
    }

    /// Adds documents.
    ///
    /// # Errors
    /// When they cannot be written.
    ///
    /// # Panics
    /// After [`finish`](Self::finish).
    pub fn add(&mut self, batch: &[(u64, Document)]) -> anyhow::Result<()> {
        let writer = self.writer.as_ref().expect("nothing is added to a finished index");
        for (_, document) in batch {
            writer.add_document(self.entry(document)?)?;
        }
        Ok(())
    }

    /// Commits and merges everything into one segment.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        let Some(mut writer) = self.writer.take() else { return Ok(()) };
        writer.commit()?;
        writer.wait_merging_threads()?;
        let mut writer: IndexWriter = self.index.writer_with_num_threads(1, WRITER_BYTES)?;
        let segments = self.index.searchable_segment_ids()?;
        if segments.len() > 1 {
            writer.merge(&segments).wait()?;
        }
        writer.garbage_collect_files().wait()?;
        writer.wait_merging_threads()?;
        Ok(self.reader.reload()?)
    }

    /// The answer as JSON, and how many match.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn search(&self, ask: &Ask) -> anyhow::Result<(Vec<u8>, u64)> {
        let searcher = self.reader.searcher();
        let query = self.query(ask, &searcher)?;
        let (places, total) = places(&searcher, &*query, ask)?;
        let snippets: Vec<SnippetGenerator> = self
            .fields
            .texts
            .iter()
            .map(|(field, _)| SnippetGenerator::create(&searcher, &*query, *field))
            .collect::<Result<_, _>>()?;
        let hits = places.iter().map(|place| self.hit(&searcher, *place, &snippets)).collect::<anyhow::Result<_>>()?;
        Ok((serde_json::to_vec(&Page { total, items: hits })?, total))
    }

    /// What was found, best first.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn best(&self, ask: &Ask) -> anyhow::Result<Vec<Uuid>> {
        let searcher = self.reader.searcher();
        let (places, _) = places(&searcher, &*self.query(ask, &searcher)?, ask)?;
        let id = |place: &DocAddress| {
            let stored: TantivyDocument = searcher.doc(*place)?;
            let id = stored.get_first(self.fields.id).and_then(|id| id.as_str().map(str::to_owned)).unwrap_or_default();
            Ok(id.parse()?)
        };
        places.iter().map(id).collect()
    }

    /// How many segments there are.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn segments(&self) -> anyhow::Result<usize> {
        Ok(self.index.searchable_segment_ids()?.len())
    }

    fn entry(&self, document: &Document) -> anyhow::Result<TantivyDocument> {
        let mut entry = TantivyDocument::new();
        let title = document.title.as_deref().unwrap_or_default();
        match self.layout {
            Layout::TitleAndBody => {
                entry.add_text(self.fields.texts[0].0, title);
                entry.add_text(self.fields.texts[1].0, &document.body);
            }
            Layout::OneText => entry.add_text(self.fields.texts[0].0, format!("{title}\n{title}\n{title}\n{}", document.body)),
        }
        entry.add_text(self.fields.id, document.id.to_string());
        entry.add_text(self.fields.kind, document.kind.as_str());
        if let Some(author) = document.author {
            entry.add_text(self.fields.author, author.to_string());
        }
        for tag in &document.tags {
            entry.add_text(self.fields.tag, tag);
        }
        entry.add_i64(self.fields.created, document.created_at.as_microsecond());
        entry.add_text(self.fields.source, serde_json::to_string(document)?);
        Ok(entry)
    }

    fn query(&self, ask: &Ask, searcher: &Searcher) -> anyhow::Result<Box<dyn Query>> {
        let mut wanted: Vec<Box<dyn Query>> = Vec::new();
        let mut clauses: Vec<(Occur, Box<dyn Query>)> = Vec::new();
        for clause in &ask.clauses {
            match clause {
                Clause::Word(word) => self.word(word, searcher, &mut wanted)?,
                Clause::Phrase(phrase) => wanted.extend(self.in_texts(|field| self.phrase(field, phrase))),
                Clause::Prefix(prefix) => {
                    for (field, _) in &self.fields.texts {
                        wanted.push(Box::new(RegexQuery::from_pattern(&format!("{prefix}.*"), *field)?));
                    }
                }
                Clause::Not(word) => {
                    let without = self.in_texts(|field| self.phrase(field, word));
                    clauses.extend(without.into_iter().map(|query| (Occur::MustNot, query)));
                }
            }
        }
        clauses.extend(self.filters(ask));
        if clauses.is_empty() && !wanted.is_empty() {
            // As flat as it can be: the form for which tantivy has a faster way.
            return Ok(Box::new(BooleanQuery::union(wanted)));
        }
        let ranked: Box<dyn Query> =
            if ask.clauses.is_empty() { Box::new(AllQuery) } else { Box::new(BooleanQuery::union(wanted)) };
        clauses.push((Occur::Must, ranked));
        Ok(Box::new(BooleanQuery::new(clauses)))
    }

    /// One word, in every field.
    fn word(&self, word: &str, searcher: &Searcher, wanted: &mut Vec<Box<dyn Query>>) -> anyhow::Result<()> {
        for stem in self.stems(word) {
            let terms = |(field, weight): &(Field, f32)| (Term::from_field_text(*field, &stem), *weight);
            let terms: Vec<(Term, f32)> = self.fields.texts.iter().map(terms).collect();
            let known = terms.iter().map(|(term, _)| searcher.doc_freq(term)).sum::<tantivy::Result<u64>>()? > 0;
            for (term, weight) in terms {
                let query: Box<dyn Query> = if known || self.layout == Layout::OneText {
                    Box::new(TermQuery::new(term, IndexRecordOption::WithFreqs))
                } else {
                    Box::new(FuzzyTermQuery::new(term, if stem.len() < 7 { 1 } else { 2 }, true))
                };
                wanted.push(weighted(query, weight));
            }
        }
        Ok(())
    }

    fn phrase(&self, field: Field, phrase: &str) -> Option<Box<dyn Query>> {
        let mut terms: Vec<Term> = self.stems(phrase).iter().map(|stem| Term::from_field_text(field, stem)).collect();
        match terms.len() {
            0 => None,
            1 => Some(Box::new(TermQuery::new(terms.remove(0), IndexRecordOption::WithFreqs))),
            _ => Some(Box::new(PhraseQuery::new(terms))),
        }
    }

    fn in_texts(&self, query: impl Fn(Field) -> Option<Box<dyn Query>>) -> Vec<Box<dyn Query>> {
        self.fields.texts.iter().filter_map(|(field, weight)| Some(weighted(query(*field)?, *weight))).collect()
    }

    fn stems(&self, text: &str) -> Vec<String> {
        let mut analyzer = self.analyzer.clone();
        let mut stream = analyzer.token_stream(text);
        let mut stems = Vec::new();
        stream.process(&mut |token| stems.push(token.text.clone()));
        stems
    }

    fn filters(&self, ask: &Ask) -> Vec<(Occur, Box<dyn Query>)> {
        let mut filters: Vec<Box<dyn Query>> = Vec::new();
        let exact = |field, value: &str| -> Box<dyn Query> {
            Box::new(TermQuery::new(Term::from_field_text(field, value), IndexRecordOption::Basic))
        };
        filters.extend(ask.kind.map(|kind| exact(self.fields.kind, kind.as_str())));
        filters.extend(ask.author.map(|author| exact(self.fields.author, &author.to_string())));
        filters.extend(ask.tag.as_deref().map(|tag| exact(self.fields.tag, tag)));
        if ask.from.is_some() || ask.to.is_some() {
            let bound = |time: jiff::Timestamp| Term::from_field_i64(self.fields.created, time.as_microsecond());
            let from = ask.from.map_or(Bound::Unbounded, |from| Bound::Included(bound(from)));
            let to = ask.to.map_or(Bound::Unbounded, |to| Bound::Excluded(bound(to)));
            filters.push(Box::new(RangeQuery::new(from, to)));
        }
        filters.into_iter().map(|filter| (Occur::Must, Box::new(ConstScoreQuery::new(filter, 0.0)) as Box<dyn Query>)).collect()
    }

    fn hit(&self, searcher: &Searcher, place: DocAddress, snippets: &[SnippetGenerator]) -> anyhow::Result<Hit> {
        let stored: TantivyDocument = searcher.doc(place)?;
        let source = stored.get_first(self.fields.source);
        let document: Document = serde_json::from_str(source.as_ref().and_then(|source| source.as_str()).unwrap_or_default())?;
        let texts = [document.title.as_deref().unwrap_or_default(), document.body.as_str()];
        let highlights = snippets.iter().zip(texts).map(|(snippets, text)| snippets.snippet(text).to_html()).collect();
        Ok(Hit {
            kind: document.kind,
            id: document.id,
            created_at: document.created_at,
            title: document.title,
            excerpt: document.body.chars().take(EXCERPT_CHARS).collect(),
            author: document.author,
            tags: document.tags,
            post_id: document.post_id,
            highlights,
        })
    }
}

/// The page that is asked for, and how many match.
fn places(searcher: &Searcher, query: &dyn Query, ask: &Ask) -> tantivy::Result<(Vec<DocAddress>, u64)> {
    let page = TopDocs::with_limit(ask.limit).and_offset(ask.behind);
    let (places, total): (Vec<DocAddress>, usize) = if ask.is_by_time() {
        let (found, total) = searcher.search(query, &(page.order_by_fast_field::<i64>(CREATED, Order::Desc), Count))?;
        (found.into_iter().map(|(_, place)| place).collect(), total)
    } else {
        let (found, total) = searcher.search(query, &(page.order_by_score(), Count))?;
        (found.into_iter().map(|(_, place)| place).collect(), total)
    };
    Ok((places, total as u64))
}

fn weighted(query: Box<dyn Query>, weight: f32) -> Box<dyn Query> {
    // A boost around a term hides it from tantivy's faster way.
    if (weight - 1.0).abs() < f32::EPSILON { query } else { Box::new(BoostQuery::new(query, weight)) }
}
