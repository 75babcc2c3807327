//! What a partition says of the words of a query, before anything is ranked.

use std::collections::BTreeMap;
use std::time::Instant;

use tantivy::Term;
use tantivy::schema::Field;

use super::plan::{PREFIX_WORDS_MAX, Statistics, Wishes, most_frequent};
use super::reader::View;

/// Words of the dictionaries of a partition that are looked at for all prefixes of a query: more only for what is typed in one or
/// two letters, which then stands for the first of them.
const PREFIX_TERMS_MAX: usize = 12_000;

impl View {
    /// Answers wishes, as of the last commit, but for similar words.
    ///
    /// # Errors
    /// Only when the index cannot be read.
    pub(super) fn statistics(&self, wishes: &Wishes, deadline: Option<Instant>) -> tantivy::Result<Statistics> {
        let documents: u64 = self.searcher.segment_readers().iter().map(|segment| u64::from(segment.max_doc())).sum();
        let mut tokens = 0;
        for segment in self.searcher.segment_readers() {
            for (field, _) in &self.layout.stems {
                tokens += segment.inverted_index(*field)?.total_num_tokens();
            }
        }
        let in_fields = |fields: &[Field], words: &[String]| -> tantivy::Result<Vec<u64>> {
            // A document that has a word in its title and its body counts twice where those are two fields: no more than all.
            let count = |word: &String| {
                let of = |field: &Field| self.searcher.doc_freq(&Term::from_field_text(*field, word));
                Ok(fields.iter().map(of).sum::<tantivy::Result<u64>>()?.min(documents))
            };
            words.iter().map(count).collect()
        };
        let stems: Vec<Field> = self.layout.stems.iter().map(|(field, _)| *field).collect();
        let pairs: Vec<Field> = self.layout.pairs.iter().map(|(field, _)| *field).collect();
        Ok(Statistics {
            documents,
            tokens,
            stems: in_fields(&stems, &wishes.stems)?,
            pairs: in_fields(&pairs, &wishes.pairs)?,
            prefixes: wishes
                .prefixes
                .iter()
                .map(|prefix| self.beginning_with(prefix, PREFIX_TERMS_MAX / wishes.prefixes.len(), deadline))
                .collect::<tantivy::Result<_>>()?,
            // Of all partitions of a node together.
            similar: Vec::new(),
        })
    }

    /// The words that begin so, the most frequent ones; and whether there are more.
    fn beginning_with(
        &self,
        prefix: &str,
        terms_max: usize,
        deadline: Option<Instant>,
    ) -> tantivy::Result<(Vec<(String, u64)>, bool)> {
        let mut words = BTreeMap::<String, u64>::new();
        let mut more = false;
        let (mut left, segments) = (terms_max, self.searcher.segment_readers());
        for (place, segment) in segments.iter().enumerate() {
            // What one does not need is there for the others.
            let share = left / (segments.len() - place);
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                more = true;
                break;
            }
            for field in &self.layout.words {
                let inverted = segment.inverted_index(*field)?;
                let mut terms = inverted.terms().range().ge(prefix).into_stream()?;
                let mut seen = 0;
                while let Some((term, info)) = terms.next()
                    && term.starts_with(prefix.as_bytes())
                {
                    seen += 1;
                    if seen > share {
                        more = true;
                        break;
                    }
                    let Ok(term) = std::str::from_utf8(term) else { continue };
                    match words.get_mut(term) {
                        Some(documents) => *documents += u64::from(info.doc_freq),
                        None => drop(words.insert(term.to_owned(), u64::from(info.doc_freq))),
                    }
                }
                left = left.saturating_sub(seen);
            }
        }
        more |= words.len() > PREFIX_WORDS_MAX;
        Ok((most_frequent(words, PREFIX_WORDS_MAX), more))
    }
}
