//! One partition of the search index, and the language in which it is asked.
//!
//! Plain blocking code over tantivy: it knows documents, queries and hits, but no actors, no SQL and no HTTP. An index is
//! disposable: everything in it comes from the `documents` table, and it knows how far of that it contains.
//!
//! A search goes `query` (parse) → `plan` (resolve against the words that the index knows) → `collect` (best places) →
//! `highlight`; and [`merge`] makes one answer of those of several partitions.

mod checkpoint;
mod collect;
mod document;
mod folder;
mod highlight;
mod hits;
mod partition;
mod plan;
mod query;
mod reader;
mod recent;
mod schema;
mod segments;
#[cfg(test)]
mod tests;
mod text;

pub use checkpoint::{CheckpointError, Checkpoints};
pub use document::{Document, Kind};
pub use hits::{
    Cursor, Highlight, Hit, Hits, LIMIT_MAX, Search, Sort, Suggestion, SuggestionKind, Summary, merge, merge_suggestions,
};
pub use partition::{Partition, PartitionError, Position, Settings};
pub use query::{Clause, Pattern, QUERY_BYTES_MAX, Query, QueryError};
pub use reader::{PartitionReader, SearchError};
pub use segments::{Commit, Segments, Snapshot};
