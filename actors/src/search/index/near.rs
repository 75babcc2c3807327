//! What the positions of words tell: whether they stand in a row, as typed, and near each other.

use tantivy::postings::{Postings as _, SegmentPostings};
use tantivy::schema::{Field, IndexRecordOption};
use tantivy::{DocId, DocSet, SegmentReader, Term};

use super::reading::{By, Reading};

/// Words that stand farther apart than this have nothing to do with each other.
const APART_MAX: u32 = 8;

/// A word with its positions.
struct Word {
    postings: SegmentPostings,
    positions: Vec<u32>,
}

impl Word {
    fn open(segment: &SegmentReader, field: Field, word: &str) -> tantivy::Result<Option<Word>> {
        let term = Term::from_field_text(field, word);
        let postings = segment.inverted_index(field)?.read_postings(&term, IndexRecordOption::WithFreqsAndPositions)?;
        Ok(postings.map(|postings| Word { postings, positions: Vec::new() }))
    }

    /// Goes to a document, which is no earlier than that of the last call; whether the word is there.
    fn is_in(&mut self, doc: DocId) -> bool {
        if self.postings.doc() < doc {
            self.postings.seek(doc);
        }
        self.postings.doc() == doc
    }

    fn read(&mut self) {
        self.postings.positions(&mut self.positions);
    }
}

/// Words in a row, in any of the fields.
pub(super) struct InARow {
    fields: Vec<Vec<(u32, Word)>>,
}

impl InARow {
    pub(super) fn of(segment: &SegmentReader, fields: &[Field], phrase: &[(usize, String)]) -> tantivy::Result<InARow> {
        let mut all = Vec::new();
        'fields: for field in fields {
            let mut words = Vec::new();
            for (distance, word) in phrase {
                match Word::open(segment, *field, word)? {
                    Some(word) => words.push((u32::try_from(*distance).unwrap_or(u32::MAX), word)),
                    None => continue 'fields,
                }
            }
            all.push(words);
        }
        Ok(InARow { fields: all })
    }

    /// Whether they are in a document, which is no earlier than that of the last call.
    pub(super) fn is_at(&mut self, doc: DocId) -> bool {
        self.fields.iter_mut().any(|words| is_at(words, doc))
    }
}

fn is_at(words: &mut [(u32, Word)], doc: DocId) -> bool {
    let mut there = true;
    for (_, word) in words.iter_mut() {
        there &= word.is_in(doc);
    }
    if !there {
        return false;
    }
    if words.len() < 2 {
        return true;
    }
    words.iter_mut().for_each(|(_, word)| word.read());
    let Some(((_, first), rest)) = words.split_first() else { return false };
    first
        .positions
        .iter()
        .any(|start| rest.iter().all(|(distance, word)| word.positions.binary_search(&(start + distance)).is_ok()))
}

/// The words of a query as typed, at work in a segment; opened when a document is first asked for.
pub(super) struct Typed<'a> {
    segment: &'a SegmentReader,
    fields: &'a [Field],
    reading: &'a Reading,
    as_typed: &'a [u64],
    near: &'a [u64],
    /// By field and group.
    words: Option<Vec<Vec<Option<Word>>>>,
}

impl<'a> Typed<'a> {
    pub(super) fn of(
        segment: &'a SegmentReader,
        fields: &'a [Field],
        reading: &'a Reading,
        as_typed: &'a [u64],
        near: &'a [u64],
    ) -> Self {
        Self { segment, fields, reading, as_typed, near, words: None }
    }

    /// What a document gains, which is no earlier than that of the last call and has these groups.
    pub(super) fn bonus(&mut self, doc: DocId, has: u64) -> tantivy::Result<u64> {
        if self.words.is_none() {
            self.words = Some(self.open()?);
        }
        let mut best = 0;
        for words in self.words.iter_mut().flatten() {
            let mut bonus = 0;
            let mut last: Option<usize> = None;
            for group in 0..words.len() {
                let there = has & (1 << (group % 64)) != 0 && words[group].as_mut().is_some_and(|word| word.is_in(doc));
                if !there {
                    last = None;
                    continue;
                }
                bonus += self.as_typed[group];
                let wanted = self.near[group] > 0 || last.is_some_and(|last| self.near[last] > 0);
                if wanted && let Some(word) = &mut words[group] {
                    word.read();
                }
                if let Some(last) = last.filter(|last| self.near[*last] > 0)
                    && let (Some(left), Some(right)) = (&words[last], &words[group])
                {
                    bonus += nearness(&left.positions, &right.positions, self.near[last]);
                }
                last = Some(group);
            }
            best = best.max(bonus);
        }
        Ok(best)
    }

    fn open(&self) -> tantivy::Result<Vec<Vec<Option<Word>>>> {
        let mut fields = Vec::with_capacity(self.fields.len());
        for field in self.fields {
            let word = |(group, wanted): (usize, &super::reading::Wanted)| match wanted.by {
                By::Stem(_) if self.as_typed[group] > 0 => Word::open(self.segment, *field, &wanted.text),
                _ => Ok(None),
            };
            fields.push(self.reading.wanted.iter().enumerate().map(word).collect::<tantivy::Result<Vec<_>>>()?);
        }
        Ok(fields)
    }
}

/// All of it for neighbours in the order of the query, half for the other order, less the farther they are apart.
fn nearness(left: &[u32], right: &[u32], most: u64) -> u64 {
    let (mut best, mut from) = (0, 0);
    for place in left {
        while from < right.len() && right[from] + APART_MAX < *place {
            from += 1;
        }
        for other in right[from..].iter().take_while(|other| **other <= place + APART_MAX) {
            let apart = u64::from(place.abs_diff(*other));
            if apart == 0 {
                continue;
            }
            let worth = most / apart;
            best = best.max(if other > place { worth } else { worth / 2 });
        }
        if best == most {
            break;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_order_are_nearest() {
        assert_eq!(nearness(&[1, 40], &[9, 41], 100), 100);
        assert_eq!(nearness(&[41], &[40], 100), 50);
        assert_eq!(nearness(&[10], &[14], 100), 25);
        assert_eq!(nearness(&[10], &[90], 100), 0);
    }
}
