//! The fields of the index, and how a [`Document`] becomes them.

use tantivy::schema::{FAST, Field, IndexRecordOption, NumericOptions, STORED, Schema, TextFieldIndexing, TextOptions};
use tantivy::{Index, TantivyDocument, Term};
use uuid::Uuid;

use super::document::{Document, Kind};
use super::text;

/// Grows whenever the fields or the tokens change: an index of another format is rebuilt, never guessed at.
pub(super) const FORMAT: u32 = 2;

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
    /// Kind and id: what an update replaces.
    pub key: Field,
    pub kind: Field,
    /// Of a comment: whose it is.
    pub post: Field,
    pub author: Field,
    pub author_name: Field,
    pub tag: Field,
    /// A user's own name, for suggestions.
    pub username: Field,
    pub title: Field,
    pub title_stems: Field,
    pub body: Field,
    pub body_stems: Field,
    /// The document as JSON: summaries and highlights are made from it.
    pub source: Field,
}

/// Fast fields are opened by name.
pub(super) const CREATED: &str = "created_us";
pub(super) const ID_HIGH: &str = "id_high";
pub(super) const ID_LOW: &str = "id_low";
pub(super) const VERSION: &str = "version";

/// The schema and its handles. Pure: two calls give equal schemas.
pub(super) fn schema() -> (Schema, Fields) {
    let mut builder = Schema::builder();
    let raw = |builder: &mut tantivy::schema::SchemaBuilder, name| {
        let indexing =
            TextFieldIndexing::default().set_tokenizer(RAW).set_index_option(IndexRecordOption::Basic).set_fieldnorms(false);
        builder.add_text_field(name, TextOptions::default().set_indexing_options(indexing))
    };
    let words = |builder: &mut tantivy::schema::SchemaBuilder, name, tokenizer, record| {
        let indexing = TextFieldIndexing::default().set_tokenizer(tokenizer).set_index_option(record);
        builder.add_text_field(name, TextOptions::default().set_indexing_options(indexing))
    };
    let fields = Fields {
        key: raw(&mut builder, "key"),
        kind: raw(&mut builder, "kind"),
        post: raw(&mut builder, "post"),
        author: raw(&mut builder, "author"),
        author_name: raw(&mut builder, "author_name"),
        tag: raw(&mut builder, "tag"),
        username: raw(&mut builder, "username"),
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

/// The term that says which document it is.
pub(super) fn key(fields: &Fields, kind: Kind, id: Uuid) -> Term {
    Term::from_field_text(fields.key, &format!("{kind}/{}", id.simple()))
}

/// The term of a post's comments.
pub(super) fn comments_of(fields: &Fields, post: Uuid) -> Term {
    Term::from_field_text(fields.post, &post.simple().to_string())
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
    entry.add_text(fields.key, format!("{}/{}", document.kind, document.id.simple()));
    entry.add_text(fields.kind, document.kind.as_str());
    if let Some(post) = document.post_id {
        entry.add_text(fields.post, post.simple().to_string());
    }
    if let Some(author) = document.author {
        entry.add_text(fields.author, author.simple().to_string());
    }
    if let Some(author_name) = &document.author_name {
        entry.add_text(fields.author_name, name(author_name));
    }
    for tag in &document.tags {
        entry.add_text(fields.tag, name(tag));
    }
    if let Some(title) = &document.title {
        if let (Kind::User, Some(username)) = (document.kind, title.split_whitespace().next()) {
            entry.add_text(fields.username, name(username));
        }
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
