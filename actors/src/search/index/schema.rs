//! The fields of the index, and how a [`Document`] becomes them.

use tantivy::schema::{FAST, Field, IndexRecordOption, NumericOptions, STORED, Schema, TextFieldIndexing, TextOptions};
use tantivy::{Index, TantivyDocument, Term};

use super::document::{Document, Kind};
use super::text;

/// Grows whenever the fields or the tokens change: an index of another format is rebuilt, never guessed at.
pub(super) const FORMAT: u32 = 3;

const EXACT: &str = "rookery_exact";
const STEMMED: &str = "rookery_stemmed";
/// tantivy's own name for "the whole value is the token".
const RAW: &str = "raw";

/// Handles of the fields.
///
/// Title and body are indexed twice: as written (folded), for phrases, prefixes, suggestions and to put the exact form
/// first; and as stems, for everything else.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields {
    /// Exact values of every sort, each with the name of its sort in front ([`label`]). In one field, for each one costs
    /// every segment a dictionary: a millisecond with every commit.
    pub label: Field,
    pub title: Field,
    pub title_stems: Field,
    pub body: Field,
    pub body_stems: Field,
    /// The document as JSON: summaries and highlights are made from it.
    pub source: Field,
}

/// The labels of documents.
pub(super) mod label {
    use uuid::Uuid;

    use super::Kind;

    /// Before a tag.
    pub(in super::super) const TAG: &str = "tag:";
    /// Before a user's own name, for suggestions.
    pub(in super::super) const USERNAME: &str = "username:";

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

/// The schema and its handles. Pure: two calls give equal schemas.
pub(super) fn schema() -> (Schema, Fields) {
    let mut builder = Schema::builder();
    let words = |builder: &mut tantivy::schema::SchemaBuilder, name, tokenizer, record| {
        let indexing = TextFieldIndexing::default().set_tokenizer(tokenizer).set_index_option(record);
        builder.add_text_field(name, TextOptions::default().set_indexing_options(indexing))
    };
    let exact = TextFieldIndexing::default().set_tokenizer(RAW).set_index_option(IndexRecordOption::Basic).set_fieldnorms(false);
    let fields = Fields {
        label: builder.add_text_field("label", TextOptions::default().set_indexing_options(exact)),
        title: words(&mut builder, "title", EXACT, IndexRecordOption::WithFreqsAndPositions),
        title_stems: words(&mut builder, "title_stems", STEMMED, IndexRecordOption::WithFreqs),
        body: words(&mut builder, "body", EXACT, IndexRecordOption::WithFreqsAndPositions),
        body_stems: words(&mut builder, "body_stems", STEMMED, IndexRecordOption::WithFreqs),
        source: builder.add_text_field("source", STORED),
    };
    builder.add_i64_field(CREATED, NumericOptions::from(FAST));
    builder.add_u64_field(ID_HIGH, FAST);
    builder.add_u64_field(ID_LOW, FAST);
    builder.add_u64_field(VERSION, FAST);
    (builder.build(), fields)
}

/// Every opened index needs its tokenizers again: tantivy stores only their names.
pub(super) fn register_tokenizers(index: &Index) {
    index.tokenizers().register(EXACT, text::exact_analyzer());
    index.tokenizers().register(STEMMED, text::stem_analyzer());
}

/// The term of a label.
pub(super) fn labelled(fields: &Fields, label: &str) -> Term {
    Term::from_field_text(fields.label, label)
}

/// A name as filters and suggestions compare it.
pub(super) fn name(text: &str) -> String {
    text.trim().to_lowercase()
}

/// What tantivy gets to index.
///
/// # Errors
/// Only if the document cannot be written as JSON.
pub(super) fn entry(schema: &Schema, fields: &Fields, document: &Document) -> Result<TantivyDocument, serde_json::Error> {
    let mut entry = TantivyDocument::new();
    let mut label = |label: String| entry.add_text(fields.label, label);
    label(label::key(document.kind, document.id));
    label(label::kind(document.kind));
    document.post_id.map(label::post).map(&mut label);
    document.author.map(label::author).map(&mut label);
    document.tags.iter().map(|tag| label::tag(tag)).for_each(&mut label);
    if let (Kind::User, Some(title)) = (document.kind, &document.title) {
        title.split_whitespace().next().map(label::username).map(&mut label);
    }
    if let Some(title) = &document.title {
        entry.add_text(fields.title, title);
        entry.add_text(fields.title_stems, title);
    }
    entry.add_text(fields.body, &document.body);
    entry.add_text(fields.body_stems, &document.body);
    entry.add_text(fields.source, serde_json::to_string(document)?);
    let fast = |name| schema.get_field(name).expect("the schema has its fast fields");
    let (high, low) = document.id.as_u64_pair();
    entry.add_i64(fast(CREATED), document.created_at.as_microsecond());
    entry.add_u64(fast(ID_HIGH), high);
    entry.add_u64(fast(ID_LOW), low);
    entry.add_u64(fast(VERSION), document.version);
    Ok(entry)
}
