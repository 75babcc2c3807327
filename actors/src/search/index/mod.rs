//! One partition of the search index, and the language in which it is asked.
//!
//! Plain blocking code over tantivy: it knows documents, queries and hits, but no actors, no SQL and no HTTP. An index is
//! disposable: everything in it comes from the `documents` table, and it knows how far of that it contains.
//!
//! A search goes `query` (parse) → `reading` (what is asked for) → `statistics` (what all partitions know of its words) →
//! `plan` (what to look up, and what it is worth) → `rank` (best places of all partitions) → `find` (what is shown of them,
//! with their `highlight`).

mod checkpoint;
mod cursor;
mod document;
mod find;
mod folder;
mod highlight;
mod hits;
mod merging;
mod near;
mod partition;
mod plan;
mod query;
mod rank;
mod reader;
mod reading;
mod recent;
mod schema;
mod segments;
mod spelling;
mod statistics;
#[cfg(test)]
mod tests;
mod text;

pub use checkpoint::{CheckpointError, Checkpoints};
pub use document::{Document, Kind};
pub use find::{Planning, Ranked, Views};
pub use hits::{Cursor, Highlight, Hit, Hits, LIMIT_MAX, Search, Sort, Suggestion, SuggestionKind, Summary, merge_suggestions};
pub use partition::{Partition, PartitionError, Position, Settings};
pub use plan::{Plan, Statistics, Wishes};
pub use query::{Clause, Pattern, QUERY_BYTES_MAX, Query, QueryError};
pub use reader::{PartitionReader, SearchError, View};
pub use segments::{Commit, Segments, Snapshot};
pub use spelling::Spelling;
