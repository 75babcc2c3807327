//! Pure. A page of a thread: comments in tree order, and a cursor that survives what happens in between.
//!
//! The cursor names the last comment of a page and the comments above it, each with its sort key at that time. So the
//! next page begins behind that place even if the comment has gone or its likes have changed: a comment that stays, as
//! do its likes and those of the comments above it, comes exactly once. The keys along a cursor only grow, so a walk in
//! which nothing more is written ends.

use super::sequence::Position;
use super::{Info, Node, TOP, Tree};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;
use uuid::Uuid;

/// How the replies to one comment are ordered. A comment always comes right before what stands below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// The newest first.
    #[default]
    New,
    /// The oldest first.
    Old,
    /// The most liked first, the newest first among equals.
    Top,
}

/// Which page of a thread.
#[derive(Clone, Debug)]
pub struct Query {
    /// The order of siblings.
    pub order: Order,
    /// Only what stands below this comment, itself not included; `None` for the whole thread.
    pub root: Option<Uuid>,
    /// How many levels below the root: with 1 its direct replies, or without a root the top level. `None` for all.
    pub levels: Option<u16>,
    /// Where the previous page of the same order, root and levels ended.
    pub after: Option<Cursor>,
    /// The length of the page.
    pub limit: NonZeroUsize,
}

/// A part of a thread, flat in tree order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The comments and tombstones.
    pub comments: Vec<Info>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<Cursor>,
}

/// The place of a comment: itself and the comments between it and the root, from the outside in.
///
/// At most 51 steps, 20 bytes each; three or four in most threads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor(Vec<Step>);

/// A comment among its siblings, as it stood when it was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Step {
    id: Uuid,
    /// Read in the order `Top` only.
    likes: u32,
}

impl From<&Node> for Step {
    fn from(node: &Node) -> Self {
        Self { id: node.id, likes: node.likes }
    }
}

impl Tree {
    /// A page of the thread, in O((limit + depth) · log n).
    ///
    /// Never fails: below a root that is not (or no longer) there, nothing stands. Who owes a 404 asks [`Tree::get`].
    pub fn page(&self, query: &Query) -> Page {
        let mut walk = Walk::resume(self, query);
        let mut comments = Vec::with_capacity(query.limit.get().min(self.total()));
        while comments.len() < query.limit.get() {
            match walk.next() {
                Some(index) => comments.push(self.info(index)),
                None => {
                    return Page { comments, next: None };
                }
            }
        }
        let here = walk.cursor();
        Page { comments, next: walk.next().map(|_| here) }
    }

    /// The gap among the replies to `parent` from which a walk goes on: behind `after` or, without it, at the start.
    fn gap(&self, order: Order, parent: u32, after: Option<Step>) -> Position {
        // `New` and `Top` walk backwards, so for them "behind" is in front.
        match (order, after) {
            (Order::Old, None) => self.by_age.seek(|index| self.node(index).parent < parent),
            (Order::Old, Some(step)) => self.by_age.seek(|index| self.node(index).by_age() <= (parent, step.id)),
            (Order::New, None) => self.by_age.seek(|index| self.node(index).parent <= parent),
            (Order::New, Some(step)) => self.by_age.seek(|index| self.node(index).by_age() < (parent, step.id)),
            (Order::Top, None) => self.by_likes.seek(|index| self.node(index).parent <= parent),
            (Order::Top, Some(step)) => self.by_likes.seek(|index| self.node(index).by_likes() < (parent, step.likes, step.id)),
        }
    }

    /// The reply to `parent` that follows `gap` in this order, and the gap behind it.
    fn sibling(&self, order: Order, parent: u32, gap: Position) -> Option<(u32, Position)> {
        let sibling = match order {
            Order::Old => self.by_age.forward(gap),
            Order::New => self.by_age.backward(gap),
            Order::Top => self.by_likes.backward(gap),
        };
        sibling.filter(|&(index, _)| self.node(index).parent == parent)
    }
}

/// A walk through a part of the tree: parents before children.
struct Walk<'a> {
    tree: &'a Tree,
    order: Order,
    levels: usize,
    /// From the root inwards.
    frames: Vec<Frame>,
}

/// A group of siblings that is being walked through.
struct Frame {
    parent: u32,
    gap: Position,
    /// The sibling in front of `gap`; `None` before the first.
    last: Option<Step>,
}

impl<'a> Walk<'a> {
    /// A walk that stands behind the cursor of the query.
    fn resume(tree: &'a Tree, query: &Query) -> Self {
        let levels = query.levels.map_or(usize::MAX, usize::from);
        let mut walk = Self { tree, order: query.order, levels, frames: Vec::new() };
        let mut inside = match query.root {
            None => Some(TOP),
            Some(root) => tree.find(root),
        };
        for &step in query.after.iter().flat_map(|cursor| &cursor.0) {
            let Some(parent) = inside else { break };
            walk.enter(parent, Some(step));
            // Found by id, whatever its likes are by now: a reader in the middle of its replies sees the rest of them.
            // One that has gone took all below it along, and the walk goes on behind the place where it stood.
            inside = tree.find(step.id).filter(|&index| tree.node(index).parent == parent);
        }
        if let Some(parent) = inside {
            walk.enter(parent, None);
        }
        walk
    }

    /// Goes in among the replies to `parent`, unless they are below the last level that was asked for.
    fn enter(&mut self, parent: u32, after: Option<Step>) {
        if self.frames.len() < self.levels {
            let gap = self.tree.gap(self.order, parent, after);
            self.frames.push(Frame { parent, gap, last: after });
        }
    }

    /// The place of the comment that [`Walk::next`] gave last.
    ///
    /// A step that came with the query's cursor keeps its old key. With the present one a walk could be sent back by
    /// every like, and go round for ever.
    fn cursor(&self) -> Cursor {
        Cursor(self.frames.iter().filter_map(|frame| frame.last).collect())
    }

    fn next(&mut self) -> Option<u32> {
        loop {
            let frame = self.frames.last_mut()?;
            if let Some((index, gap)) = self.tree.sibling(self.order, frame.parent, frame.gap) {
                let node = self.tree.node(index);
                frame.gap = gap;
                frame.last = Some(Step::from(node));
                if node.children > 0 {
                    self.enter(index, None);
                }
                return Some(index);
            }
            self.frames.pop();
        }
    }
}
