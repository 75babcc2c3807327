//! The layouts of an index: which fields it has, and how a [`Document`] becomes them.
//!
//! One layout is written; those of earlier releases are still read and followed, so that an index of theirs serves until
//! one of ours has been built beside it. What is to come needs no other layout: facets count the fast fields, stems of another
//! language than English are terms with the language in front.

use std::sync::Arc;

use tantivy::schema::{FAST, Field, IndexRecordOption, NumericOptions, STORED, Schema, TextFieldIndexing, TextOptions};
use tantivy::{Index, TantivyDocument, Term};

use super::document::{Document, Kind};
use super::text::{self, Shape};

/// The layout that is written. Grows whenever the fields or the tokens change: an index is never guessed at.
pub(super) const FORMAT: u32 = 4;
/// The layout of 0.1 and 0.2: title and body, each as written and as stems.
pub(super) const FORMER: u32 = 3;

const EXACT: &str = "rookery_exact";
/// Stems of words; dense scripts are left out.
const STEMMED: &str = "rookery_stemmed";
/// The same with the tokens of dense scripts.
const SCORED: &str = "rookery_scored";
/// tantivy's own name for "the whole value is the token".
const RAW: &str = "raw";

/// How often a title counts, in a text that is scored as a whole.
const TITLE_TIMES: usize = 3;
/// How much a match in a title weighs where titles are a field of their own.
const TITLE_BOOST: f32 = 2.5;

/// A layout, and handles of its fields.
#[derive(Debug)]
pub(super) struct Layout {
    pub format: u32,
    pub schema: Schema,
    /// Exact values of every sort, each with the name of its sort in front ([`label`]). In one field, for each one costs
    /// every segment a dictionary: a millisecond with every commit.
    pub label: Field,
    /// Words as written (folded), with their positions: for phrases, prefixes, spelling, and what stands near what.
    pub words: Vec<Field>,
    /// Stems, which are scored, and what a match in each field weighs.
    pub stems: Vec<(Field, f32)>,
    /// Where pairs of dense scripts are scored.
    pub pairs: Vec<(Field, f32)>,
    /// The document as JSON: summaries and highlights are made from it.
    pub source: Field,
    /// The words of titles, for suggestions: a field, or labels.
    pub title: Option<Field>,
}

/// The labels of documents.
pub(super) mod label {
    use uuid::Uuid;

    use super::Kind;

    /// Before a tag.
    pub(in super::super) const TAG: &str = "tag:";
    /// Before a user's own name, for suggestions.
    pub(in super::super) const USERNAME: &str = "username:";
    /// Before a word of a title, for suggestions.
    pub(in super::super) const WORD: &str = "word:";

    /// Which document it is: what an update replaces.
    pub(in super::super) fn key(kind: Kind, id: Uuid) -> String {
        format!("key:{kind}/{}", id.simple())
    }

    /// What it is about.
    pub(in super::super) fn kind(kind: Kind) -> String {
        format!("kind:{kind}")
    }

    /// Of a comment: whose it is.
    pub(in super::super) fn post(post: Uuid) -> String {
        format!("post:{}", post.simple())
    }

    /// Who wrote it.
    pub(in super::super) fn author(author: Uuid) -> String {
        format!("author:{}", author.simple())
    }

    /// A tag that it has.
    pub(in super::super) fn tag(tag: &str) -> String {
        format!("{TAG}{}", super::name(tag))
    }

    /// The name of the user that it is.
    pub(in super::super) fn username(username: &str) -> String {
        format!("{USERNAME}{}", super::name(username))
    }
}

/// Fast fields are opened by name.
pub(super) const CREATED: &str = "created_us";
pub(super) const ID_HIGH: &str = "id_high";
pub(super) const ID_LOW: &str = "id_low";
pub(super) const VERSION: &str = "version";
/// For facets: the kind, the author's id, tags, and the space that a post will be in. The day follows from [`CREATED`].
const FACETS: [&str; 4] = ["facet_kind", "facet_author", "facet_tag", "facet_space"];

/// The layout of a format; none: nobody knows it any more, or yet.
pub(super) fn layout(format: u32) -> Option<Arc<Layout>> {
    match format {
        FORMAT => Some(Arc::new(ours())),
        FORMER => Some(Arc::new(former())),
        _ => None,
    }
}

/// The layout that is written. Pure: two calls give equal schemas.
pub(super) fn present() -> Arc<Layout> {
    Arc::new(ours())
}

fn words(tokenizer: &str, record: IndexRecordOption, norms: bool) -> TextOptions {
    let indexing = TextFieldIndexing::default().set_tokenizer(tokenizer).set_index_option(record).set_fieldnorms(norms);
    TextOptions::default().set_indexing_options(indexing)
}

fn ours() -> Layout {
    let mut builder = Schema::builder();
    let label = builder.add_text_field("label", words(RAW, IndexRecordOption::Basic, false));
    let exact = builder.add_text_field("words", words(EXACT, IndexRecordOption::WithFreqsAndPositions, false));
    let stems = builder.add_text_field("stems", words(SCORED, IndexRecordOption::WithFreqs, true));
    let source = builder.add_text_field("source", STORED);
    add_numbers(&mut builder);
    for facet in FACETS {
        builder.add_text_field(facet, TextOptions::default().set_fast(RAW));
    }
    Layout {
        format: FORMAT,
        schema: builder.build(),
        label,
        words: vec![exact],
        stems: vec![(stems, 1.0)],
        pairs: vec![(stems, 1.0)],
        source,
        title: None,
    }
}

fn former() -> Layout {
    let mut builder = Schema::builder();
    let label = builder.add_text_field("label", words(RAW, IndexRecordOption::Basic, false));
    let title = builder.add_text_field("title", words(EXACT, IndexRecordOption::WithFreqsAndPositions, true));
    let title_stems = builder.add_text_field("title_stems", words(STEMMED, IndexRecordOption::WithFreqs, true));
    let body = builder.add_text_field("body", words(EXACT, IndexRecordOption::WithFreqsAndPositions, true));
    let body_stems = builder.add_text_field("body_stems", words(STEMMED, IndexRecordOption::WithFreqs, true));
    let source = builder.add_text_field("source", STORED);
    add_numbers(&mut builder);
    Layout {
        format: FORMER,
        schema: builder.build(),
        label,
        words: vec![title, body],
        stems: vec![(title_stems, TITLE_BOOST), (body_stems, 1.0)],
        pairs: vec![(title, TITLE_BOOST), (body, 1.0)],
        source,
        title: Some(title),
    }
}

fn add_numbers(builder: &mut tantivy::schema::SchemaBuilder) {
    builder.add_i64_field(CREATED, NumericOptions::from(FAST));
    builder.add_u64_field(ID_HIGH, FAST);
    builder.add_u64_field(ID_LOW, FAST);
    builder.add_u64_field(VERSION, FAST);
}

/// Every opened index needs its tokenizers again: tantivy stores only their names.
pub(super) fn register_tokenizers(index: &Index) {
    index.tokenizers().register(EXACT, text::exact_analyzer());
    index.tokenizers().register(STEMMED, text::stem_analyzer());
    index.tokenizers().register(SCORED, text::score_analyzer());
}

/// A name as filters and suggestions compare it.
pub(super) fn name(text: &str) -> String {
    text.trim().to_lowercase()
}

impl Layout {
    /// The fields of words as written, each with the field by whose lengths its matches are scored, and what one weighs: words keep
    /// no lengths of their own where the text is scored as a whole.
    pub(super) fn words_scored(&self) -> impl Iterator<Item = (Field, Field, f32)> {
        let scored = if self.format == FORMAT { &self.stems } else { &self.pairs };
        self.words.iter().zip(scored).map(|(field, (measured, boost))| (*field, *measured, *boost))
    }

    /// The term of a label.
    pub(super) fn labelled(&self, label: &str) -> Term {
        Term::from_field_text(self.label, label)
    }

    /// What tantivy gets to index.
    ///
    /// # Errors
    /// Only if the document cannot be written as JSON.
    pub(super) fn entry(&self, document: &Document) -> Result<TantivyDocument, serde_json::Error> {
        let mut entry = TantivyDocument::new();
        let mut label = |label: String| entry.add_text(self.label, label);
        label(label::key(document.kind, document.id));
        label(label::kind(document.kind));
        document.post_id.map(label::post).map(&mut label);
        document.author.map(label::author).map(&mut label);
        document.tags.iter().map(|tag| label::tag(tag)).for_each(&mut label);
        if let (Kind::User, Some(title)) = (document.kind, &document.title) {
            title.split_whitespace().next().map(label::username).map(&mut label);
        }
        match self.format {
            FORMER => self.add_former_texts(document, &mut entry),
            _ => self.add_texts(document, &mut entry),
        }
        entry.add_text(self.source, serde_json::to_string(document)?);
        let fast = |name| self.schema.get_field(name).expect("the schema has its fast fields");
        let (high, low) = document.id.as_u64_pair();
        entry.add_i64(fast(CREATED), document.created_at.as_microsecond());
        entry.add_u64(fast(ID_HIGH), high);
        entry.add_u64(fast(ID_LOW), low);
        entry.add_u64(fast(VERSION), document.version);
        Ok(entry)
    }

    fn add_texts(&self, document: &Document, entry: &mut TantivyDocument) {
        let (exact, (stems, _)) = (self.words[0], self.stems[0]);
        if let Some(title) = &document.title {
            let mut seen = std::collections::BTreeSet::new();
            for token in text::tokens(title).filter(|token| token.shape == Shape::Word) {
                if seen.insert(token.text.clone()) {
                    entry.add_text(self.label, format!("{}{}", label::WORD, token.text));
                }
            }
            entry.add_text(exact, title);
            for _ in 0..TITLE_TIMES {
                entry.add_text(stems, title);
            }
        }
        entry.add_text(exact, &document.body);
        entry.add_text(stems, &document.body);
        let facet = |name| self.schema.get_field(name).expect("the schema has its facets");
        let [kind, author, tag, _] = FACETS;
        entry.add_text(facet(kind), document.kind.as_str());
        if let Some(id) = document.author {
            entry.add_text(facet(author), id.simple().to_string());
        }
        for name in &document.tags {
            entry.add_text(facet(tag), name);
        }
    }

    fn add_former_texts(&self, document: &Document, entry: &mut TantivyDocument) {
        if let Some(title) = &document.title {
            entry.add_text(self.words[0], title);
            entry.add_text(self.stems[0].0, title);
        }
        entry.add_text(self.words[1], &document.body);
        entry.add_text(self.stems[1].0, &document.body);
    }
}
