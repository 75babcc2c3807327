//! Pure. A sorted list of small numbers whose order its owner knows.
//!
//! It is a B-tree of two levels: chunks of up to [`CHUNK`] items, and the list of the chunks. An item costs 4 to 8 bytes,
//! a search reads about log2(n) items, an insertion moves 2 KB at most; a plain `Vec` would move 400 KB in a thread of
//! 100,000, and a `BTreeSet` cannot compare by a key that lies elsewhere.

/// Items in a chunk at most: 2 KB, so that moving half of them is cheaper than finding the place.
const CHUNK: usize = 512;

/// Items sorted by a key that only the caller knows: every search takes a predicate that holds for a prefix of the order.
#[derive(Clone, Debug, Default)]
pub(super) struct Sequence {
    /// Never an empty chunk.
    chunks: Vec<Vec<u32>>,
}

/// A gap between two items: in front of the one at `offset` in `chunk`, or behind all of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    chunk: usize,
    offset: usize,
}

impl Sequence {
    /// Takes over what is sorted already.
    pub(super) fn from_sorted(items: &[u32]) -> Self {
        // Three quarters full: the first insertions after a load need no split.
        Self { chunks: items.chunks(CHUNK / 4 * 3).map(<[u32]>::to_vec).collect() }
    }

    /// The gap behind the items for which `precedes` holds.
    pub(super) fn seek(&self, precedes: impl Fn(u32) -> bool) -> Position {
        let chunk = self.chunks.partition_point(|chunk| chunk.last().is_some_and(|&last| precedes(last)));
        let offset = self.chunks.get(chunk).map_or(0, |chunk| chunk.partition_point(|&item| precedes(item)));
        Position { chunk, offset }
    }

    /// The item behind `position`, and the gap behind that item.
    pub(super) fn forward(&self, position: Position) -> Option<(u32, Position)> {
        let Position { chunk, offset } = position;
        let items = self.chunks.get(chunk)?;
        let behind = if offset + 1 < items.len() {
            Position { chunk, offset: offset + 1 }
        } else {
            Position { chunk: chunk + 1, offset: 0 }
        };
        Some((items[offset], behind))
    }

    /// The item in front of `position`, and the gap in front of that item.
    pub(super) fn backward(&self, position: Position) -> Option<(u32, Position)> {
        let Position { chunk, offset } = position;
        let (chunk, offset) = match offset.checked_sub(1) {
            Some(offset) => (chunk, offset),
            None => {
                let chunk = chunk.checked_sub(1)?;
                (chunk, self.chunks[chunk].len() - 1)
            }
        };
        Some((self.chunks[chunk][offset], Position { chunk, offset }))
    }

    /// Puts `item` behind the items for which `precedes` holds.
    pub(super) fn insert(&mut self, item: u32, precedes: impl Fn(u32) -> bool) {
        let Position { mut chunk, mut offset } = self.seek(precedes);
        if chunk == self.chunks.len() {
            // Behind everything: fill the last chunk, and begin a new one rather than split it. Comments mostly arrive
            // in the order of their ids, and splits would leave every chunk half empty.
            match self.chunks.last() {
                Some(last) if last.len() < CHUNK => {
                    chunk -= 1;
                    offset = last.len();
                }
                _ => self.chunks.push(Vec::new()),
            }
        } else if self.chunks[chunk].len() == CHUNK {
            let upper = self.chunks[chunk].split_off(CHUNK / 2);
            self.chunks.insert(chunk + 1, upper);
            if offset > CHUNK / 2 {
                (chunk, offset) = (chunk + 1, offset - CHUNK / 2);
            }
        }
        let items = &mut self.chunks[chunk];
        if items.len() == items.capacity() {
            // Doubles like any `Vec`, but never beyond a chunk.
            items.reserve_exact(items.len().max(4).min(CHUNK - items.len()));
        }
        items.insert(offset, item);
    }

    /// Takes out `item`, which stands behind the items for which `precedes` holds.
    pub(super) fn remove(&mut self, item: u32, precedes: impl Fn(u32) -> bool) {
        let Position { chunk, offset } = self.seek(precedes);
        let removed = self.chunks[chunk].remove(offset);
        assert_eq!(removed, item, "a key leads to its own item");

        let left = self.chunks[chunk].len();
        let next = self.chunks.get(chunk + 1).map(Vec::len);
        if left == 0 {
            self.chunks.remove(chunk);
        } else if left < CHUNK / 4 && next.is_some_and(|next| left + next <= CHUNK / 2) {
            // Without merging, a thread that shrank would keep a nearly empty chunk per comment left.
            let next = self.chunks.remove(chunk + 1);
            self.chunks[chunk].extend(next);
        }
    }

    /// Bytes on the heap.
    pub(super) fn weight_bytes(&self) -> usize {
        let items: usize = self.chunks.iter().map(Vec::capacity).sum();
        items * size_of::<u32>() + self.chunks.capacity() * size_of::<Vec<u32>>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn forwards(sequence: &Sequence, mut at: Position) -> Vec<u32> {
        let mut items = Vec::new();
        while let Some((item, next)) = sequence.forward(at) {
            items.push(item);
            at = next;
        }
        items
    }

    fn backwards(sequence: &Sequence, mut at: Position) -> Vec<u32> {
        let mut items = Vec::new();
        while let Some((item, next)) = sequence.backward(at) {
            items.push(item);
            at = next;
        }
        items
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Enough insertions to split chunks and enough removals to merge them.
        #[test]
        fn a_sequence_is_a_sorted_set(
            loaded in 0..2_000_u32,
            changes in prop::collection::vec((any::<bool>(), 0..4_000_u32), 0..6_000),
            from in 0..4_000_u32,
        ) {
            let mut model: BTreeSet<u32> = (0..loaded).map(|item| item * 2).collect();
            let mut sequence = Sequence::from_sorted(&model.iter().copied().collect::<Vec<_>>());
            for (insert, item) in changes {
                if insert {
                    if model.insert(item) {
                        sequence.insert(item, |other| other < item);
                    }
                } else if model.remove(&item) {
                    sequence.remove(item, |other| other < item);
                }
            }
            let at = sequence.seek(|item| item < from);
            prop_assert_eq!(forwards(&sequence, at), model.range(from..).copied().collect::<Vec<_>>());
            prop_assert_eq!(backwards(&sequence, at), model.range(..from).rev().copied().collect::<Vec<_>>());
            prop_assert!(sequence.chunks.iter().all(|chunk| (1..=CHUNK).contains(&chunk.len())));
        }
    }
}
