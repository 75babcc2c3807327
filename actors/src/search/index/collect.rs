//! The collector: the best places after a cursor, and the exact number of matches, in one pass.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use tantivy::collector::{Collector, SegmentCollector};
use tantivy::columnar::Column;
use tantivy::{DocAddress, DocId, Score, SegmentOrdinal, SegmentReader};
use uuid::Uuid;

use super::hits::{Cursor, Sort, score_key, time_key};
use super::schema::{CREATED, ID_HIGH, ID_LOW};

/// Collects the first `limit` matches behind `after`.
pub(super) struct Page {
    pub sort: Sort,
    pub limit: usize,
    pub after: Option<Cursor>,
}

/// What a [`Page`] collects.
#[derive(Default)]
pub(super) struct Collected {
    /// All matches, those before the cursor too.
    pub total: u64,
    /// The matches behind the cursor, of which `places` are the first.
    pub behind: u64,
    /// Best first.
    pub places: Vec<Place>,
}

/// A match and its place in the order.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Place {
    pub key: u64,
    pub id: u128,
    pub score: Score,
    pub address: DocAddress,
}

impl Eq for Place {}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Place) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Place {
    fn cmp(&self, other: &Place) -> std::cmp::Ordering {
        (self.key, self.id, self.address).cmp(&(other.key, other.id, other.address))
    }
}

impl Collector for Page {
    type Fruit = Collected;
    type Child = SegmentPage;

    fn for_segment(&self, ordinal: SegmentOrdinal, segment: &SegmentReader) -> tantivy::Result<SegmentPage> {
        let fast = segment.fast_fields();
        Ok(SegmentPage {
            sort: self.sort,
            limit: self.limit,
            after: self.after.map(|cursor| (cursor.key, cursor.id.as_u128())),
            ordinal,
            created: fast.i64(CREATED)?,
            id_high: fast.u64(ID_HIGH)?,
            id_low: fast.u64(ID_LOW)?,
            total: 0,
            behind: 0,
            best: BinaryHeap::with_capacity(self.limit + 1),
        })
    }

    fn requires_scoring(&self) -> bool {
        self.sort == Sort::Relevance
    }

    fn merge_fruits(&self, segments: Vec<Collected>) -> tantivy::Result<Collected> {
        let mut merged = Collected::default();
        for segment in segments {
            merged.total += segment.total;
            merged.behind += segment.behind;
            merged.places.extend(segment.places);
        }
        merged.places.sort_unstable_by_key(|place| Reverse(*place));
        merged.places.truncate(self.limit);
        Ok(merged)
    }
}

/// [`Page`] within one segment.
pub(super) struct SegmentPage {
    sort: Sort,
    limit: usize,
    after: Option<(u64, u128)>,
    ordinal: SegmentOrdinal,
    created: Column<i64>,
    id_high: Column<u64>,
    id_low: Column<u64>,
    total: u64,
    behind: u64,
    /// The worst on top, so that a better one can take its place.
    best: BinaryHeap<Reverse<Place>>,
}

impl SegmentCollector for SegmentPage {
    type Fruit = Collected;

    fn collect(&mut self, doc: DocId, score: Score) {
        self.total += 1;
        let key = match self.sort {
            Sort::Relevance => score_key(score),
            Sort::New => time_key(self.created.first(doc).unwrap_or(0)),
        };
        // Ids cost two look-ups: only ties and candidates pay for them.
        if let Some((after_key, after_id)) = self.after
            && (key > after_key || (key == after_key && self.id(doc) >= after_id))
        {
            return;
        }
        self.behind += 1;
        if self.best.len() == self.limit && self.best.peek().is_none_or(|Reverse(worst)| key < worst.key) {
            return;
        }
        let address = DocAddress::new(self.ordinal, doc);
        self.best.push(Reverse(Place { key, id: self.id(doc), score, address }));
        if self.best.len() > self.limit {
            self.best.pop();
        }
    }

    fn harvest(self) -> Collected {
        let places = self.best.into_iter().map(|Reverse(place)| place).collect();
        Collected { total: self.total, behind: self.behind, places }
    }
}

impl SegmentPage {
    fn id(&self, doc: DocId) -> u128 {
        let half = |column: &Column<u64>| column.first(doc).unwrap_or(0);
        Uuid::from_u64_pair(half(&self.id_high), half(&self.id_low)).as_u128()
    }
}
