//! Pure. The tree against a naive one: a list of comments, filtered and sorted anew for every question.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;

use proptest::prelude::*;
use proptest::sample::Index;
use uuid::Uuid;

use super::*;

/// Every comment that stands in the thread.
#[derive(Clone, Debug, Default)]
struct Model(BTreeMap<Uuid, Row>);

impl Model {
    fn depth(&self, id: Uuid) -> u8 {
        self.0[&id].parent.map_or(0, |parent| self.depth(parent) + 1)
    }

    fn children(&self, parent: Option<Uuid>) -> impl Iterator<Item = &Row> {
        self.0.values().filter(move |row| row.parent == parent)
    }

    fn info(&self, id: Uuid) -> Info {
        let Row { parent, like_count, version, deleted, .. } = self.0[&id];
        let replies = self.children(Some(id)).filter(|row| !row.deleted).count();
        Info { id, parent, depth: self.depth(id), like_count, reply_count: replies as u32, version, deleted }
    }

    fn rejects_parent(&self, parent: Option<Uuid>) -> bool {
        parent.is_some_and(|id| self.0.get(&id).is_none_or(|row| row.deleted || self.depth(id) == DEPTH_MAX))
    }

    /// Marks the comment and sweeps until no tombstone is left without something below it.
    fn delete(&mut self, id: Uuid) {
        let row = self.0.get_mut(&id).expect("only what is there is deleted");
        row.deleted = true;
        row.version += 1;
        while let Some(bare) = self.0.values().find(|row| row.deleted && self.children(Some(row.id)).next().is_none()) {
            let bare = bare.id;
            self.0.remove(&bare);
        }
    }

    fn in_order(&self, order: Order, root: Option<Uuid>, levels: usize) -> Vec<Uuid> {
        let mut below = Vec::new();
        if levels > 0 {
            let mut siblings: Vec<&Row> = self.children(root).collect();
            siblings.sort_by_key(|row| row.id);
            match order {
                Order::Old => {}
                Order::New => siblings.reverse(),
                Order::Top => siblings.sort_by_key(|row| std::cmp::Reverse((row.like_count, row.id))),
            }
            for row in siblings {
                below.push(row.id);
                below.extend(self.in_order(order, Some(row.id), levels - 1));
            }
        }
        below
    }

    /// The comment and all above it.
    fn line(&self, id: Uuid) -> Vec<Uuid> {
        std::iter::successors(Some(id), |id| self.0[id].parent).collect()
    }
}

/// A random change; what it concerns is drawn from what is there when it happens.
#[derive(Clone, Debug)]
enum Change {
    Insert { id: u16, parent: Option<Index> },
    Delete(Index),
    Like(Index, i32),
    Edit(Index),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (any::<u16>(), prop::option::weighted(0.85, any::<Index>()))
            .prop_map(|(id, parent)| Change::Insert { id, parent }),
        2 => any::<Index>().prop_map(Change::Delete),
        1 => any::<Index>().prop_map(Change::Edit),
        3 => (any::<Index>(), prop_oneof![Just(1), Just(-1)]).prop_map(|(comment, change)| Change::Like(comment, change)),
    ]
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![Just(Order::New), Just(Order::Old), Just(Order::Top)]
}

fn id(number: u16) -> Uuid {
    Uuid::from_u128(u128::from(number))
}

/// A tree and its model, changed in step.
#[derive(Clone, Debug, Default)]
struct Pair {
    tree: Tree,
    model: Model,
    /// Comments that were written, deleted or liked.
    touched: BTreeSet<Uuid>,
    /// Comments that have gone. As with UUIDv7, the id of one is never given again: a reader would meet it twice.
    gone: BTreeSet<Uuid>,
}

impl Pair {
    fn grown(changes: &[Change]) -> Self {
        let mut pair = Self::default();
        for change in changes {
            pair.apply(change);
        }
        pair
    }

    fn pick(&self, index: &Index) -> Option<Uuid> {
        (!self.model.0.is_empty()).then(|| *index.get(&self.model.0.keys().copied().collect::<Vec<_>>()))
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Insert { id: number, parent } => {
                let (id, parent) = (id(*number), parent.as_ref().and_then(|index| self.pick(index)));
                if self.gone.contains(&id) {
                    return;
                }
                let rejected = self.model.0.contains_key(&id) || self.model.rejects_parent(parent);
                let outcome = self.tree.insert(id, parent);
                assert_eq!(outcome.is_err(), rejected, "{outcome:?}");
                if let Ok(depth) = outcome {
                    self.model.0.insert(id, Row { id, parent, like_count: 0, version: 1, deleted: false });
                    assert_eq!(depth, self.model.depth(id));
                    self.touched.insert(id);
                }
            }
            Change::Delete(index) => {
                let Some(id) = self.pick(index) else { return };
                if self.model.0[&id].deleted {
                    assert_eq!(self.tree.delete(id), Err(Rejection::Deleted { id }));
                    return;
                }
                let before: BTreeSet<Uuid> = self.model.0.keys().copied().collect();
                self.model.delete(id);
                self.touched.insert(id);
                let gone: BTreeSet<Uuid> = before.into_iter().filter(|id| !self.model.0.contains_key(id)).collect();
                self.touched.extend(&gone);
                self.gone.extend(&gone);
                match self.tree.delete(id).expect("a live comment can be deleted") {
                    Deletion::Tombstone => assert!(gone.is_empty()),
                    Deletion::Removed(removed) => {
                        assert_eq!(removed.into_iter().collect::<BTreeSet<_>>(), gone)
                    }
                }
            }
            Change::Like(index, change) => {
                let Some(id) = self.pick(index) else { return };
                let row = self.model.0.get_mut(&id).expect("picked from what is there");
                if row.deleted {
                    assert_eq!(self.tree.like(id, *change), Err(Rejection::Deleted { id }));
                    return;
                }
                row.like_count = row.like_count.saturating_add_signed(*change);
                assert_eq!(self.tree.like(id, *change), Ok(row.like_count));
                self.touched.insert(id);
            }
            Change::Edit(index) => {
                let Some(id) = self.pick(index) else { return };
                let row = self.model.0.get_mut(&id).expect("picked from what is there");
                if row.deleted {
                    assert_eq!(self.tree.edit(id), Err(Rejection::Deleted { id }));
                    return;
                }
                row.version += 1;
                assert_eq!(self.tree.edit(id), Ok(row.version));
            }
        }
    }
}

/// As a client does it: the cursor travels as text.
fn through_text(cursor: Option<Cursor>) -> Option<Cursor> {
    let text = serde_json::to_string(&cursor).expect("a cursor can be written");
    serde_json::from_str(&text).expect("a cursor that was written can be read")
}

fn query(order: Order, limit: usize) -> Query {
    Query { order, root: None, levels: None, after: None, limit: NonZeroUsize::new(limit).expect("pages are not empty") }
}

fn all_pages(tree: &Tree, mut query: Query) -> Vec<Info> {
    let mut comments = Vec::new();
    loop {
        let page = tree.page(&query);
        assert!(page.next.is_none() || page.comments.len() == query.limit.get(), "only the last page is short");
        comments.extend(page.comments);
        query.after = through_text(page.next);
        if query.after.is_none() {
            return comments;
        }
    }
}

fn ids(comments: &[Info]) -> Vec<Uuid> {
    comments.iter().map(|info| info.id).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn pages_put_together_are_the_tree_in_order(
        changes in prop::collection::vec(change(), 0..160),
        order in order(),
        root in prop::option::of(any::<Index>()),
        levels in prop::option::of(0..6_u16),
        limit in 1..12_usize,
    ) {
        let pair = Pair::grown(&changes);
        let root = root.and_then(|index| pair.pick(&index));
        let pages = all_pages(&pair.tree, Query { root, levels, ..query(order, limit) });
        let naive = pair.model.in_order(order, root, levels.map_or(usize::MAX, usize::from));
        prop_assert_eq!(pages, naive.into_iter().map(|id| pair.model.info(id)).collect::<Vec<_>>());
    }

    #[test]
    fn what_stays_is_visited_once_and_in_order_whatever_else_happens(
        before in prop::collection::vec(change(), 0..120),
        between in prop::collection::vec(prop::collection::vec(change(), 0..6), 0..30),
        order in order(),
        root in prop::option::weighted(0.3, any::<Index>()),
        levels in prop::option::weighted(0.3, 1..6_u16),
        limit in 1..8_usize,
    ) {
        let mut pair = Pair::grown(&before);
        pair.touched.clear();
        let root = root.and_then(|index| pair.pick(&index));
        let start = pair.model.clone();
        let mut between = between.iter();
        let mut query = Query { root, levels, ..query(order, limit) };
        let mut visited = Vec::new();
        loop {
            let page = pair.tree.page(&query);
            visited.extend(ids(&page.comments));
            query.after = through_text(page.next);
            if query.after.is_none() {
                break;
            }
            between.next().into_iter().flatten().for_each(|change| pair.apply(change));
            prop_assert!(visited.len() < 10_000, "a walk ends");
        }

        let stayed = |id: &Uuid| match order {
            Order::New | Order::Old => pair.model.0.contains_key(id),
            Order::Top => pair.model.0.contains_key(id) && start.line(*id).iter().all(|id| !pair.touched.contains(id)),
        };
        let expected = start.in_order(order, root, levels.map_or(usize::MAX, usize::from));
        let expected: Vec<Uuid> = expected.into_iter().filter(stayed).collect();
        visited.retain(|id| start.0.contains_key(id) && stayed(id));
        prop_assert_eq!(visited, expected);
    }

    #[test]
    fn counts_equal_a_recount(changes in prop::collection::vec(change(), 0..200)) {
        let pair = Pair::grown(&changes);
        prop_assert_eq!(pair.tree.total(), pair.model.0.len());
        prop_assert_eq!(pair.tree.comment_count(), pair.model.0.values().filter(|row| !row.deleted).count());
        for &id in pair.model.0.keys() {
            prop_assert_eq!(pair.tree.get(id), Some(pair.model.info(id)));
        }
    }

    #[test]
    fn a_loaded_tree_is_the_one_that_grew(
        changes in prop::collection::vec(change(), 0..160),
        later in prop::collection::vec(change(), 0..40),
        order in order(),
        shuffle in any::<u64>(),
    ) {
        let mut pair = Pair::grown(&changes);
        let mut rows: Vec<Row> = pair.model.0.values().copied().collect();
        rows.sort_by_key(|row| (row.id.as_u128() as u64 ^ shuffle).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let loaded = Tree::load(rows);
        prop_assert!(loaded.left_out.is_empty());
        pair.tree = loaded.tree;
        later.iter().for_each(|change| pair.apply(change));
        let naive = pair.model.in_order(order, None, usize::MAX);
        prop_assert_eq!(ids(&all_pages(&pair.tree, query(order, 7))), naive);
    }
}

fn thread(comments: &[(u16, Option<u16>)]) -> Tree {
    let mut tree = Tree::default();
    for &(number, parent) in comments {
        tree.insert(id(number), parent.map(id)).expect("the thread of a test is sound");
    }
    tree
}

fn row(number: u16, parent: Option<u16>) -> Row {
    Row { id: id(number), parent: parent.map(id), like_count: 0, version: 1, deleted: false }
}

#[test]
fn the_last_comment_below_tombstones_takes_them_along() {
    let mut tree = thread(&[(1, None), (2, Some(1)), (3, Some(2))]);
    assert_eq!(tree.delete(id(1)), Ok(Deletion::Tombstone));
    assert_eq!(tree.delete(id(2)), Ok(Deletion::Tombstone));
    assert_eq!(tree.delete(id(3)), Ok(Deletion::Removed(vec![id(3), id(2), id(1)])));
    assert_eq!(tree.total(), 0);
}

#[test]
fn a_tombstone_with_another_reply_stays() {
    let mut tree = thread(&[(1, None), (2, Some(1)), (3, Some(1))]);
    tree.delete(id(1)).expect("it is there");
    assert_eq!(tree.delete(id(3)), Ok(Deletion::Removed(vec![id(3)])));
    assert!(tree.get(id(1)).is_some_and(|info| info.deleted && info.reply_count == 1));
}

#[test]
fn a_tombstone_is_no_reply() {
    let mut tree = thread(&[(1, None), (2, Some(1)), (3, Some(2))]);
    tree.delete(id(2)).expect("it is there");
    assert_eq!(tree.get(id(1)).map(|info| info.reply_count), Some(0));
}

#[test]
fn a_tombstone_takes_no_reply() {
    let mut tree = thread(&[(1, None), (2, Some(1))]);
    tree.delete(id(1)).expect("it is there");
    assert_eq!(tree.insert(id(3), Some(id(1))), Err(Rejection::Deleted { id: id(1) }));
}

#[test]
fn an_absent_comment_takes_no_reply() {
    assert_eq!(Tree::default().insert(id(2), Some(id(1))), Err(Rejection::Absent { id: id(1) }));
}

#[test]
fn the_deepest_comment_takes_no_reply() {
    let mut tree = thread(&[(0, None)]);
    for depth in 1..=DEPTH_MAX {
        assert_eq!(tree.insert(id(depth.into()), Some(id(u16::from(depth) - 1))), Ok(depth));
    }
    let parent = id(DEPTH_MAX.into());
    assert_eq!(tree.insert(id(51), Some(parent)), Err(Rejection::TooDeep { parent }));
}

#[test]
fn the_deepest_thread_pages_one_by_one() {
    let chain: Vec<(u16, Option<u16>)> = (0..=50).map(|number: u16| (number, number.checked_sub(1))).collect();
    let pages = all_pages(&thread(&chain), query(Order::Top, 1));
    assert_eq!(ids(&pages), (0..=50).map(id).collect::<Vec<_>>());
}

#[test]
fn rows_without_a_way_to_the_top_are_left_out() {
    let orphan = [row(2, Some(9)), row(3, Some(2))];
    let circle = [row(4, Some(5)), row(5, Some(4))];
    let loaded = Tree::load([vec![row(1, None), row(1, None)], orphan.to_vec(), circle.to_vec()].concat());
    assert_eq!(loaded.left_out, [1, 2, 3, 4, 5].map(id));
    assert_eq!(ids(&all_pages(&loaded.tree, query(Order::Old, 10))), [id(1)]);
}

#[test]
fn rows_deeper_than_the_limit_are_left_out() {
    let loaded = Tree::load((0..60).map(|number| row(number, number.checked_sub(1))));
    assert_eq!(loaded.left_out, (51..60).map(id).collect::<Vec<_>>());
}

#[test]
fn loading_drops_tombstones_with_nothing_below() {
    let deleted = |row| Row { deleted: true, ..row };
    let loaded = Tree::load([deleted(row(1, None)), deleted(row(2, Some(1))), deleted(row(3, None)), row(4, Some(3))]);
    assert_eq!(ids(&all_pages(&loaded.tree, query(Order::Old, 10))), [3, 4].map(id));
    assert_eq!((loaded.tree.comment_count(), loaded.left_out), (1, vec![]));
}

#[test]
fn a_comment_that_is_liked_while_its_replies_are_read_hides_none_of_them() {
    let mut tree = thread(&[(1, None), (2, Some(1)), (3, Some(1)), (4, None)]);
    tree.like(id(1), 5).expect("it is there");
    let first = tree.page(&query(Order::Top, 2));
    assert_eq!(ids(&first.comments), [1, 3].map(id));
    tree.like(id(1), 1).expect("it is there");
    let second = tree.page(&Query { after: first.next, ..query(Order::Top, 2) });
    assert_eq!(ids(&second.comments), [2, 4].map(id));
}

#[test]
fn a_page_goes_on_behind_a_comment_that_has_gone() {
    let mut tree = thread(&[(1, None), (2, Some(1)), (3, None)]);
    let first = tree.page(&query(Order::Old, 2));
    tree.delete(id(2)).expect("it is there");
    tree.delete(id(1)).expect("it is there");
    let second = tree.page(&Query { after: first.next, ..query(Order::Old, 2) });
    assert_eq!(ids(&second.comments), [id(3)]);
}

#[test]
fn nothing_stands_below_an_absent_root() {
    let tree = thread(&[(1, None)]);
    let page = tree.page(&Query { root: Some(id(9)), ..query(Order::New, 5) });
    assert_eq!(page, Page { comments: vec![], next: None });
}

#[test]
fn a_comment_costs_less_than_68_bytes() {
    let loaded = Tree::load((0..50_000).map(|number| row(number, (number >= 100).then_some(number % 100))));
    assert!(loaded.tree.weight_bytes() < 68 * 50_000, "{}", loaded.tree.weight_bytes());
}
