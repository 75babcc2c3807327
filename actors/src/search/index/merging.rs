//! Which segments are merged, and when: few enough that a query is cheap, seldom enough that a write is.
//!
//! A query pays for each segment (a dictionary for each of its words), a merge writes its documents once more. So there are as
//! many as [`SEGMENTS_MAX`], and when there is one more, the smallest are merged until what they make is smaller than the
//! next one: sizes grow like the digits of a number. An index that has nothing to do is left with [`IDLE_MAX`].
//!
//! What is larger than [`LARGEST`] is left alone, but for what was deleted from it: a text that is gone stays in the files
//! until its segment is written anew (purging).

use std::fmt;

use tantivy::index::{SegmentId, SegmentMeta};
use tantivy::merge_policy::{MergeCandidate, MergePolicy};

/// There are no more segments for long.
const SEGMENTS_MAX: usize = 8;
/// Nor so many where nothing is written.
const IDLE_MAX: usize = 4;
/// Segments of more documents are not merged any more.
const LARGEST: u32 = 500_000;
/// A segment of which a larger part is deleted is written anew at once: a query pays for what is gone.
const GONE_MAX: f32 = 0.25;

/// See the module.
#[derive(Clone, Default)]
pub(super) struct Merging;

impl fmt::Debug for Merging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Merging")
    }
}

impl MergePolicy for Merging {
    fn compute_merge_candidates(&self, segments: &[SegmentMeta]) -> Vec<MergeCandidate> {
        let sizes: Vec<(u32, bool)> = segments.iter().map(|segment| (segment.num_docs(), is_hollow(segment))).collect();
        let merged = choose(&sizes);
        if merged.is_empty() {
            Vec::new()
        } else {
            vec![MergeCandidate(merged.into_iter().map(|place| segments[place].id()).collect())]
        }
    }
}

fn is_hollow(segment: &SegmentMeta) -> bool {
    segment.max_doc() > 0 && segment.num_deleted_docs() as f32 / segment.max_doc() as f32 > GONE_MAX
}

/// Which segments of these sizes are merged into one, by their places: documents, and whether too much of it is deleted.
fn choose(segments: &[(u32, bool)]) -> Vec<usize> {
    if let Some(hollow) = (0..segments.len()).find(|place| segments[*place].1) {
        return vec![hollow];
    }
    let mut places: Vec<usize> = (0..segments.len()).filter(|place| segments[*place].0 <= LARGEST).collect();
    if places.len() <= SEGMENTS_MAX {
        return Vec::new();
    }
    places.sort_by_key(|place| segments[*place].0);
    let size = |place: &usize| u64::from(segments[*place].0);
    let (mut merged, mut documents) = (Vec::new(), 0);
    for place in places {
        if merged.len() >= 2 && size(&place) > documents {
            break;
        }
        documents += size(&place);
        merged.push(place);
    }
    merged
}

/// The smallest segments of an index that has nothing to do, if it has more than it should.
pub(super) fn surplus(segments: &[SegmentMeta]) -> Vec<SegmentId> {
    let mut small: Vec<&SegmentMeta> = segments.iter().filter(|segment| segment.num_docs() <= LARGEST).collect();
    if small.len() <= IDLE_MAX {
        return Vec::new();
    }
    small.sort_by_key(|segment| segment.num_docs());
    small.truncate(small.len() + 1 - IDLE_MAX);
    small.into_iter().map(SegmentMeta::id).collect()
}

/// The segments from which something is deleted.
pub(super) fn deleted_from(segments: &[SegmentMeta]) -> Vec<SegmentId> {
    segments.iter().filter(|segment| segment.has_deletes()).map(SegmentMeta::id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commits of so many documents each, and what they cost: the most segments that there were, and how often a document was
    /// written once more on the average.
    fn after(commits: usize, size: u32) -> (usize, f64) {
        let (mut segments, mut most, mut copied) = (Vec::<(u32, bool)>::new(), 0, 0u64);
        for _ in 0..commits {
            segments.push((size, false));
            loop {
                let merged = choose(&segments);
                if merged.is_empty() {
                    break;
                }
                let documents: u32 = merged.iter().map(|place| segments[*place].0).sum();
                copied += u64::from(documents);
                let mut place = 0;
                segments.retain(|_| {
                    place += 1;
                    !merged.contains(&(place - 1))
                });
                segments.push((documents, false));
            }
            most = most.max(segments.len());
        }
        (most, copied as f64 / (commits as f64 * f64::from(size)))
    }

    #[test]
    fn segments_stay_few_and_documents_are_seldom_written_again() {
        for (commits, size, segments_max, copied_max) in
            // A minute and an hour of 50 writes a second on four partitions, and imports, of which one makes a segment that is
            // too large to count.
            [(120, 6, 8, 2.0), (7_200, 6, 8, 8.0), (60, 5_000, 8, 2.0), (200, 5_000, 9, 3.0)]
        {
            let (most, copied) = after(commits, size);
            assert!(
                most <= segments_max && copied <= copied_max,
                "{commits} x {size}: {most} segments, copied {copied:.1} times"
            );
        }
    }

    #[test]
    fn what_is_mostly_deleted_is_written_anew_and_the_largest_is_left_alone() {
        assert_eq!(choose(&[(10_000, false), (20_000, true)]), [1]);
        let nine = |largest: u32| [vec![(10, false); 8], vec![(largest, false)]].concat();
        assert_eq!(choose(&nine(10)).len(), 9);
        assert!(choose(&nine(900_000)).is_empty());
    }
}
