//! Pure. The skeleton of one comment thread: who answers whom, how liked, in which order.
//!
//! Bodies and authors are not here: a page is a list of ids, and the thread fetches the rest of just those by key. So a
//! thread of 100,000 comments weighs about 6 MB in memory and a page of it costs microseconds, wherever it begins.
//!
//! A deleted comment with replies stays as a tombstone. It goes when the last comment below it has gone.

mod page;
mod sequence;
#[cfg(test)]
mod tests;

pub use self::page::{Cursor, Order, Page, Query};

use self::sequence::Sequence;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The depth of the deepest comment; a top-level one has depth 0.
pub const DEPTH_MAX: u8 = 50;

/// All comments of one post, without what is written in them.
///
/// Every operation on a comment costs O(log n) comparisons, however many siblings it has.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// Addressed by index; those in `free` are unused.
    nodes: Vec<Node>,
    free: Vec<u32>,
    by_id: Sequence,
    /// Sorted by (parent, id): the replies to one comment stand side by side, the oldest first.
    by_age: Sequence,
    /// Sorted by (parent, likes, id): the replies to one comment stand side by side, the most liked last.
    by_likes: Sequence,
    tombstones: usize,
}

/// What a tree is loaded from: the row of a comment without its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// UUIDv7, so ids sort by creation.
    pub id: Uuid,
    /// The comment that it answers; `None` at the top level.
    pub parent: Option<Uuid>,
    /// How many users like it.
    pub like_count: u32,
    /// Which edit of it is the last one, from 1.
    pub version: u32,
    /// Whether it is a tombstone.
    pub deleted: bool,
}

/// A tree, and the rows that have no place in one.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The thread.
    pub tree: Tree,
    /// Rows whose chain of parents does not lead to the top within [`DEPTH_MAX`], and the second of two with one id.
    pub left_out: Vec<Uuid>,
}

/// What the skeleton knows of a comment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// The comment.
    pub id: Uuid,
    /// The comment that it answers; `None` at the top level.
    pub parent: Option<Uuid>,
    /// 0 at the top level, [`DEPTH_MAX`] at most.
    pub depth: u8,
    /// How many users like it. A tombstone keeps its last count, so that what stands below it keeps its place.
    pub like_count: u32,
    /// Its direct replies, tombstones not counted.
    pub reply_count: u32,
    /// Grows with every edit, from 1, and once more when a tombstone is left. With the id it names one text for ever.
    pub version: u32,
    /// Whether it is a tombstone.
    pub deleted: bool,
}

/// What a deletion leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// The comment has replies and stays as a tombstone.
    Tombstone,
    /// These are gone: the comment, then the tombstones above it that held nothing else, from the inside out.
    Removed(Vec<Uuid>),
}

/// Why a change does not fit the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Never written, or gone without a trace.
    #[error("comment {id} is not in this thread")]
    Absent {
        /// The comment asked for.
        id: Uuid,
    },
    /// A tombstone is neither answered nor liked nor deleted again.
    #[error("comment {id} is deleted")]
    Deleted {
        /// The tombstone.
        id: Uuid,
    },
    /// A reply would be deeper than [`DEPTH_MAX`].
    #[error("comment {parent} is at the greatest depth and takes no replies")]
    TooDeep {
        /// The comment that was to be answered.
        parent: Uuid,
    },
    /// The id is taken.
    #[error("comment {id} is in this thread already")]
    Taken {
        /// The id.
        id: Uuid,
    },
}

/// The parent of a top-level comment. Greater than any index, so new top-level comments come last in `by_age`.
const TOP: u32 = u32::MAX;

/// 40 bytes; with its place in three sequences and room to grow, a comment takes 52 to 68 in all.
#[derive(Clone, Copy, Debug)]
struct Node {
    id: Uuid,
    parent: u32,
    likes: u32,
    /// Direct replies in the tree, tombstones included.
    children: u32,
    /// Direct replies that are not deleted.
    replies: u32,
    version: u32,
    depth: u8,
    deleted: bool,
}

impl Node {
    fn by_age(&self) -> (u32, Uuid) {
        (self.parent, self.id)
    }

    fn by_likes(&self) -> (u32, u32, Uuid) {
        (self.parent, self.likes, self.id)
    }
}

impl Tree {
    /// Builds the tree from the rows of a thread, in any order.
    ///
    /// A tombstone that nothing stands below is dropped, as [`Tree::delete`] would have done. A row that no chain of
    /// parents joins to the top is left out and reported rather than shown at the top level: the thread's own rules
    /// rule it out, so it is damage, and an answer torn from its question would be a wrong page.
    pub fn load(rows: impl IntoIterator<Item = Row>) -> Loaded {
        let mut rows: Vec<Row> = rows.into_iter().collect();
        rows.sort_by_key(|row| row.id);
        let mut left_out = Vec::new();
        rows.dedup_by(|second, first| {
            let same = second.id == first.id;
            if same {
                left_out.push(second.id);
            }
            same
        });

        let depths = depths(&rows);
        let mut nodes: Vec<Node> = Vec::with_capacity(rows.len());
        // From here on a row's place is its rank by id, and so is a node's until those without a place are taken out.
        let mut descent = Vec::with_capacity(rows.len());
        for (index, (row, place)) in rows.iter().zip(&depths).enumerate() {
            match place {
                Some(_) => descent.push(index),
                None => left_out.push(row.id),
            }
            let (parent, depth) = place.unwrap_or((TOP, 0));
            let (likes, deleted) = (row.like_count, row.deleted);
            nodes.push(Node { id: row.id, parent, likes, children: 0, replies: 0, version: row.version, depth, deleted });
        }

        // The deepest first: whether a tombstone stays is known when all below it have been seen.
        descent.sort_by_key(|&index| std::cmp::Reverse(nodes[index].depth));
        let mut kept = vec![false; nodes.len()];
        for &index in &descent {
            let node = nodes[index];
            if node.deleted && node.children == 0 {
                continue;
            }
            kept[index] = true;
            if let Some(parent) = nodes.get_mut(node.parent as usize) {
                parent.children += 1;
                parent.replies += u32::from(!node.deleted);
            }
        }
        Loaded { tree: Self::from_nodes(nodes, &kept), left_out }
    }

    /// Takes the nodes that are `kept`, all of them sorted by id.
    fn from_nodes(nodes: Vec<Node>, kept: &[bool]) -> Self {
        let mut ranks = Vec::with_capacity(nodes.len());
        let mut rank = 0;
        for &kept in kept {
            ranks.push(rank);
            rank += u32::from(kept);
        }
        let mut compact = Vec::with_capacity(rank as usize);
        compact.extend(
            nodes
                .into_iter()
                .zip(kept)
                .filter(|&(_, &kept)| kept)
                .map(|(node, _)| Node { parent: ranks.get(node.parent as usize).copied().unwrap_or(TOP), ..node }),
        );
        let nodes: Vec<Node> = compact;

        let mut indices: Vec<u32> = (0..rank).collect();
        let by_id = Sequence::from_sorted(&indices);
        indices.sort_by_key(|&index| nodes[index as usize].parent);
        let by_age = Sequence::from_sorted(&indices);
        indices.sort_by_key(|&index| (nodes[index as usize].parent, nodes[index as usize].likes));
        let by_likes = Sequence::from_sorted(&indices);
        let tombstones = nodes.iter().filter(|node| node.deleted).count();
        Self { nodes, free: Vec::new(), by_id, by_age, by_likes, tombstones }
    }

    /// The depth that a new comment would have, when it may be written.
    ///
    /// # Errors
    /// [`Rejection::Taken`], or when `parent` is absent, deleted or too deep.
    pub fn place(&self, id: Uuid, parent: Option<Uuid>) -> Result<u8, Rejection> {
        self.seat(id, parent).map(|(_, depth)| depth)
    }

    /// Adds a comment without likes or replies; says its depth.
    ///
    /// # Errors
    /// As [`Tree::place`]; then nothing has changed.
    pub fn insert(&mut self, id: Uuid, parent: Option<Uuid>) -> Result<u8, Rejection> {
        let (parent, depth) = self.seat(id, parent)?;
        let node = Node { id, parent, likes: 0, children: 0, replies: 0, version: 1, depth, deleted: false };
        let index = match self.free.pop() {
            Some(index) => {
                self.nodes[index as usize] = node;
                index
            }
            None => {
                if self.nodes.len() == self.nodes.capacity() {
                    // By a quarter, not by doubling: what a node keeps in memory is capped by bytes.
                    self.nodes.reserve_exact((self.nodes.len() / 4).max(4));
                }
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).expect("a thread holds under four billion comments")
            }
        };
        if let Some(parent) = self.nodes.get_mut(parent as usize) {
            parent.children += 1;
            parent.replies += 1;
        }
        let nodes = &self.nodes;
        self.by_id.insert(index, |other| nodes[other as usize].id < id);
        self.by_age.insert(index, |other| nodes[other as usize].by_age() < node.by_age());
        self.by_likes.insert(index, |other| nodes[other as usize].by_likes() < node.by_likes());
        Ok(depth)
    }

    /// Counts an edit; says the comment's version after it.
    ///
    /// # Errors
    /// When the comment is absent or deleted; then nothing has changed.
    pub fn edit(&mut self, id: Uuid) -> Result<u32, Rejection> {
        let index = self.find_live(id)?;
        let node = &mut self.nodes[index as usize];
        node.version += 1;
        Ok(node.version)
    }

    /// What deleting a comment would leave behind.
    ///
    /// # Errors
    /// When it is absent or deleted already.
    pub fn deletion(&self, id: Uuid) -> Result<Deletion, Rejection> {
        let mut node = self.node(self.find_live(id)?);
        if node.children > 0 {
            return Ok(Deletion::Tombstone);
        }
        let mut removed = vec![id];
        while let Some(parent) = self.nodes.get(node.parent as usize)
            && parent.deleted
            && parent.children == 1
        {
            removed.push(parent.id);
            node = parent;
        }
        Ok(Deletion::Removed(removed))
    }

    /// Deletes a comment; says what that left behind.
    ///
    /// # Errors
    /// As [`Tree::deletion`]; then nothing has changed.
    pub fn delete(&mut self, id: Uuid) -> Result<Deletion, Rejection> {
        let deletion = self.deletion(id)?;
        let index = self.find_live(id)?;
        let parent = self.node(index).parent;
        let node = &mut self.nodes[index as usize];
        node.deleted = true;
        node.version += 1;
        self.tombstones += 1;
        if let Some(parent) = self.nodes.get_mut(parent as usize) {
            parent.replies -= 1;
        }
        if let Deletion::Removed(removed) = &deletion {
            for &id in removed {
                self.remove_tombstone(id);
            }
        }
        Ok(deletion)
    }

    /// Counts likes given (1) or withdrawn (−1); says how many there are now.
    ///
    /// # Errors
    /// When the comment is absent or deleted; then nothing has changed.
    pub fn like(&mut self, id: Uuid, change: i32) -> Result<u32, Rejection> {
        let index = self.find_live(id)?;
        let before = *self.node(index);
        let after = Node { likes: before.likes.saturating_add_signed(change), ..before };
        let nodes = &self.nodes;
        self.by_likes.remove(index, |other| nodes[other as usize].by_likes() < before.by_likes());
        self.by_likes.insert(index, |other| nodes[other as usize].by_likes() < after.by_likes());
        self.nodes[index as usize] = after;
        Ok(after.likes)
    }

    /// What is known of a comment; `None` when it is not in the thread.
    pub fn get(&self, id: Uuid) -> Option<Info> {
        self.find(id).map(|index| self.info(index))
    }

    /// How many comments are not deleted.
    pub fn comment_count(&self) -> usize {
        self.total() - self.tombstones
    }

    /// How many comments and tombstones there are.
    pub fn total(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Bytes in memory, allocated room for more comments included.
    pub fn weight_bytes(&self) -> usize {
        size_of::<Self>()
            + self.nodes.capacity() * size_of::<Node>()
            + self.free.capacity() * size_of::<u32>()
            + self.by_id.weight_bytes()
            + self.by_age.weight_bytes()
            + self.by_likes.weight_bytes()
    }

    /// Where a new comment goes: the index of its parent, and its depth.
    fn seat(&self, id: Uuid, parent: Option<Uuid>) -> Result<(u32, u8), Rejection> {
        if self.find(id).is_some() {
            return Err(Rejection::Taken { id });
        }
        let Some(parent) = parent else {
            return Ok((TOP, 0));
        };
        let index = self.find_live(parent)?;
        match self.node(index).depth {
            DEPTH_MAX.. => Err(Rejection::TooDeep { parent }),
            depth => Ok((index, depth + 1)),
        }
    }

    fn find_live(&self, id: Uuid) -> Result<u32, Rejection> {
        match self.find(id) {
            None => Err(Rejection::Absent { id }),
            Some(index) if self.node(index).deleted => Err(Rejection::Deleted { id }),
            Some(index) => Ok(index),
        }
    }

    fn find(&self, id: Uuid) -> Option<u32> {
        let at = self.by_id.seek(|other| self.node(other).id < id);
        let (index, _) = self.by_id.forward(at)?;
        (self.node(index).id == id).then_some(index)
    }

    fn remove_tombstone(&mut self, id: Uuid) {
        let index = self.find(id).expect("a tombstone is in the tree until it is removed");
        let node = *self.node(index);
        let nodes = &self.nodes;
        self.by_id.remove(index, |other| nodes[other as usize].id < id);
        self.by_age.remove(index, |other| nodes[other as usize].by_age() < node.by_age());
        self.by_likes.remove(index, |other| nodes[other as usize].by_likes() < node.by_likes());
        if let Some(parent) = self.nodes.get_mut(node.parent as usize) {
            parent.children -= 1;
        }
        self.free.push(index);
        self.tombstones -= 1;
    }

    fn info(&self, index: u32) -> Info {
        let node = self.node(index);
        Info {
            id: node.id,
            parent: self.nodes.get(node.parent as usize).map(|parent| parent.id),
            depth: node.depth,
            like_count: node.likes,
            reply_count: node.replies,
            version: node.version,
            deleted: node.deleted,
        }
    }

    fn node(&self, index: u32) -> &Node {
        &self.nodes[index as usize]
    }
}

/// For each of the rows, sorted by id: the index of its parent and its depth, unless it has no place in a tree.
fn depths(rows: &[Row]) -> Vec<Option<(u32, u8)>> {
    #[derive(Clone, Copy)]
    enum Parent {
        Top,
        At(u32),
        Missing,
    }

    assert!(u32::try_from(rows.len()).is_ok_and(|len| len < TOP), "a thread holds under four billion comments");
    let parents: Vec<Parent> = rows
        .iter()
        .map(|row| match row.parent {
            None => Parent::Top,
            Some(parent) => {
                rows.binary_search_by_key(&parent, |row| row.id).map_or(Parent::Missing, |index| Parent::At(index as u32))
            }
        })
        .collect();

    // Climbs at most one step beyond the limit, so a circle ends as a row that is too deep. Without a memory of what
    // was climbed before: threads are shallow, and 50 steps for each of 100,000 rows are a few milliseconds.
    let place = |index: usize| {
        let (mut depth, mut at) = (0, parents[index]);
        loop {
            match at {
                Parent::Top => break,
                Parent::At(parent) if depth < DEPTH_MAX => (depth, at) = (depth + 1, parents[parent as usize]),
                Parent::At(_) | Parent::Missing => return None,
            }
        }
        match parents[index] {
            Parent::At(parent) => Some((parent, depth)),
            Parent::Top | Parent::Missing => Some((TOP, depth)),
        }
    };
    (0..rows.len()).map(place).collect()
}
