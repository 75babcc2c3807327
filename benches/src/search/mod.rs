//! What the search bench and the relevance bench share: texts, questions, and the engines that are asked.
//!
//! [`posts`] is the input, [`corpus`] makes more of it, [`ask`] is a question as a person puts it, [`engine`] is ours and
//! [`plain`] is tantivy as its documentation shows it. [`relevance`] judges the order of what they find.

pub mod ask;
pub mod corpus;
pub mod engine;
pub mod plain;
pub mod posts;
pub mod relevance;
pub mod words;
