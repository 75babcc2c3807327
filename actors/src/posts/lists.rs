//! The heads of the lists that everybody asks for: ordered slices in memory, kept current by every commit.
//!
//! A slice holds *every* post of the shards that are served here whose key is at or above its floor; what lies below is
//! asked of SQL. So a page is answered from memory exactly when it lies above the floors of all nodes (`heads.rs`).

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    entity::{Event, Post},
    rules::hot,
};
use crate::{
    ids::{PostId, UserId},
    runtime::Served,
};

/// Entries that a slice keeps; it may grow to twice as many before it is cut.
pub(crate) const HEAD: usize = 1_000;
/// Slices kept; 20 to 50 KB each.
const SLICES_MAX: usize = 1_024;

/// The order of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    /// Newest first.
    #[default]
    New,
    /// Most likes first, then newest.
    Top,
    /// Likes against age.
    Hot,
}

/// Which posts a list shows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Filter {
    /// All of them.
    All,
    /// Those with a tag.
    Tag(String),
    /// Those of an author.
    Author(UserId),
}

/// A place in a list: what it is sorted by, then the id; a cursor that survives any move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// Likes, or the rank of `hot`; zero where the id alone is the order.
    pub rank: i64,
    /// UUIDv7: newer ids are greater.
    pub id: PostId,
}

/// `hot` as a whole number of millionths, so that memory, SQL and cursors agree on the order.
pub(crate) fn hot_rank(likes: i64, created_at: Timestamp) -> i64 {
    (hot(likes.max(0).unsigned_abs(), created_at) * 1e6).round() as i64
}

impl Sort {
    /// The key of a post under this order.
    pub fn key(self, post: &Post) -> Key {
        self.key_with(post, post.like_count)
    }

    fn key_with(self, post: &Post, likes: i64) -> Key {
        let rank = match self {
            Sort::New => 0,
            Sort::Top => likes,
            Sort::Hot => hot_rank(likes, post.created_at),
        };
        Key { rank, id: post.id }
    }
}

type SliceKey = (Sort, Filter);

/// The slices of this node.
#[derive(Default)]
pub struct Lists {
    slices: Mutex<HashMap<SliceKey, Slice>>,
    clock: AtomicU64,
    /// What is served here, as of the last look.
    served: Mutex<Option<Arc<Served>>>,
    /// Events that were committed, whether any list is of them or not.
    events: AtomicU64,
}

struct Slice {
    /// The shards whose posts it holds. Once others are served here it is of no use any more.
    served: Arc<Served>,
    state: State,
    used: u64,
}

enum State {
    /// Being read from SQL; what happens meanwhile is applied after it.
    Loading(Vec<Change>),
    Ready(Head),
}

#[derive(Clone, Copy)]
enum Change {
    Add(Key),
    Remove(Key),
}

struct Head {
    entries: BTreeSet<Key>,
    /// Everything at or above it is here; none: everything there is.
    floor: Option<Key>,
}

impl Head {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Add(key) if self.floor.is_none_or(|floor| key >= floor) => {
                self.entries.insert(key);
                if self.entries.len() > 2 * HEAD {
                    self.floor = self.entries.iter().rev().nth(HEAD - 1).copied();
                    let floor = self.floor.expect("there are more entries than that");
                    self.entries = self.entries.split_off(&floor);
                }
            }
            Change::Add(_) => {}
            Change::Remove(key) => drop(self.entries.remove(&key)),
        }
    }

    fn page(&self, after: Option<Key>, limit: usize) -> Vec<Key> {
        use std::ops::Bound::{Excluded, Unbounded};
        let range = (Unbounded, after.map_or(Unbounded, Excluded));
        self.entries.range(range).rev().take(limit).copied().collect()
    }
}

/// How a page was answered.
pub(crate) enum Paged {
    /// From memory.
    Here(HerePage),
    /// Ask SQL for this page alone.
    AskPage,
    /// Begin to load the head.
    AskHead,
}

/// The part of a page that memory has.
pub(crate) struct HerePage {
    /// In order; fewer than asked for if the slice has no more.
    pub(crate) keys: Vec<Key>,
    /// Down to where the slice knows everything; none: all the way.
    pub(crate) floor: Option<Key>,
    /// The shards whose posts it knows.
    pub(crate) served: Arc<Served>,
}

impl Lists {
    /// The shards that are served under this number; looks again only if it is another than the last time.
    pub(crate) fn served(&self, number: u64, look: impl FnOnce() -> Served) -> Arc<Served> {
        let mut served = self.served.lock().expect("no panic under this lock");
        match &*served {
            Some(served) if served.number == number => Arc::clone(served),
            _ => Arc::clone(served.insert(Arc::new(look()))),
        }
    }

    /// A page after a place, if memory has it for the shards that are served now.
    pub(crate) fn page(&self, sort: Sort, filter: &Filter, after: Option<Key>, limit: usize, served: &Served) -> Paged {
        let used = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut slices = self.slices.lock().expect("no panic under this lock");
        match slices.get_mut(&(sort, filter.clone())).filter(|slice| slice.served.number == served.number) {
            Some(slice) => {
                slice.used = used;
                match &slice.state {
                    State::Ready(head) if head.floor.is_none_or(|floor| after.is_none_or(|after| after > floor)) => {
                        let (keys, floor) = (head.page(after, limit), head.floor);
                        Paged::Here(HerePage { keys, floor, served: Arc::clone(&slice.served) })
                    }
                    _ => Paged::AskPage,
                }
            }
            None if after.is_none() => Paged::AskHead,
            None => Paged::AskPage,
        }
    }

    /// Begins to load a head for the shards that are served now: what is committed from here on is added to it. The caller
    /// asks SQL and tells [`Lists::loaded`]. False: somebody else has begun.
    pub(crate) fn begin(&self, sort: Sort, filter: &Filter, served: &Arc<Served>) -> bool {
        let mut slices = self.slices.lock().expect("no panic under this lock");
        let key = (sort, filter.clone());
        if slices.get(&key).is_some_and(|slice| slice.served.number >= served.number) {
            return false;
        }
        if slices.len() >= SLICES_MAX
            && let Some(oldest) = slices.iter().min_by_key(|(_, slice)| slice.used).map(|(key, _)| key.clone())
        {
            slices.remove(&oldest);
        }
        let used = self.clock.load(Ordering::Relaxed);
        slices.insert(key, Slice { served: Arc::clone(served), state: State::Loading(Vec::new()), used });
        true
    }

    /// Takes the head that SQL gave: at most [`HEAD`] keys of all shards; fewer mean that there are no more. `is_served`
    /// tells which of them are of the shards that the slice began with.
    pub(crate) fn loaded(
        &self,
        sort: Sort,
        filter: &Filter,
        served: &Arc<Served>,
        keys: &[Key],
        is_served: impl Fn(PostId) -> bool,
    ) {
        let mut slices = self.slices.lock().expect("no panic under this lock");
        let slice = slices.get_mut(&(sort, filter.clone())).filter(|slice| Arc::ptr_eq(&slice.served, served));
        let Some(slice) = slice else {
            return;
        };
        let State::Loading(changes) = &mut slice.state else {
            return;
        };
        let floor = if keys.len() < HEAD { None } else { keys.last().copied() };
        let mut head = Head { entries: keys.iter().filter(|key| is_served(key.id)).copied().collect(), floor };
        for change in std::mem::take(changes) {
            head.apply(change);
        }
        slice.state = State::Ready(head);
    }

    /// Forgets a head whose load failed.
    pub(crate) fn failed(&self, sort: Sort, filter: &Filter, served: &Arc<Served>) {
        let mut slices = self.slices.lock().expect("no panic under this lock");
        let key = (sort, filter.clone());
        if slices.get(&key).is_some_and(|slice| Arc::ptr_eq(&slice.served, served)) {
            slices.remove(&key);
        }
    }

    /// Forgets everything: shards came or went, so the heads are of other posts.
    pub fn clear(&self) {
        self.slices.lock().expect("no panic under this lock").clear();
    }

    /// Grows with every event that a post in memory has followed.
    pub(crate) fn events(&self) -> u64 {
        self.events.load(Ordering::Acquire)
    }

    /// Follows one committed event; `after` is the post's state after it.
    pub(crate) fn apply(&self, after: Option<&Post>, event: &Event) {
        self.follow(after, event);
        // After it: who reads the number first and a page then may keep too little, never too much.
        self.events.fetch_add(1, Ordering::AcqRel);
    }

    fn follow(&self, after: Option<&Post>, event: &Event) {
        match event {
            Event::Published(post) => self.change(post, |sort| vec![Change::Add(sort.key(post))]),
            Event::Deleted(post) => self.change(post, |sort| vec![Change::Remove(sort.key(post))]),
            Event::Edited { after, before } => {
                // Same keys under another set of tags.
                let moved = |from: &Post, to: &Post| -> Vec<Filter> {
                    let tags = from.tags.as_slice().iter();
                    tags.filter(|tag| !to.tags.contains(tag.as_str())).map(|tag| Filter::Tag(tag.as_str().to_owned())).collect()
                };
                self.change_in(moved(before, after), |sort| vec![Change::Remove(sort.key(after))]);
                self.change_in(moved(after, before), |sort| vec![Change::Add(sort.key(after))]);
            }
            Event::Liked(_) | Event::Unliked(_) => {
                let Some(post) = after else { return };
                let before = post.like_count + if matches!(event, Event::Liked(_)) { -1 } else { 1 };
                self.change(post, |sort| match sort {
                    Sort::New => vec![],
                    _ => vec![Change::Remove(sort.key_with(post, before)), Change::Add(sort.key(post))],
                });
            }
            Event::CommentsCounted(_) => {}
        }
    }

    fn change(&self, post: &Post, changes: impl Fn(Sort) -> Vec<Change>) {
        let tags = post.tags.as_slice().iter().map(|tag| Filter::Tag(tag.as_str().to_owned()));
        let filters = [Filter::All, Filter::Author(post.author)].into_iter().chain(tags);
        self.change_in(filters, changes);
    }

    fn change_in(&self, filters: impl IntoIterator<Item = Filter>, changes: impl Fn(Sort) -> Vec<Change>) {
        let mut slices = self.slices.lock().expect("no panic under this lock");
        for filter in filters {
            let mut key = (Sort::New, filter);
            for sort in [Sort::New, Sort::Top, Sort::Hot] {
                key.0 = sort;
                let Some(slice) = slices.get_mut(&key) else {
                    continue;
                };
                for change in changes(sort) {
                    match &mut slice.state {
                        State::Loading(pending) => pending.push(change),
                        State::Ready(head) => head.apply(change),
                    }
                }
            }
        }
    }
}

/// The SQL of a page: `$1` rank and `$2` id of the place after which it begins, `$3` the limit, `$4` tag or author.
pub(crate) fn page_sql(sort: Sort, filter: &Filter) -> String {
    let (from, condition) = match filter {
        Filter::All => ("post p", "TRUE"),
        Filter::Tag(_) => ("post_tag t JOIN post p ON p.id = t.post", "t.tag = $4"),
        Filter::Author(_) => ("post p", "p.author = $4"),
    };
    let (rank, below, order) = match sort {
        Sort::New => ("0::int8", "$1::int8 IS NOT NULL AND p.id < $2", "p.id DESC"),
        Sort::Top => ("p.like_count", "(p.like_count, p.id) < ($1, $2)", "p.like_count DESC, p.id DESC"),
        Sort::Hot => ("p.hot", "(p.hot, p.id) < ($1, $2)", "p.hot DESC, p.id DESC"),
    };
    match (sort, filter) {
        // The index on likes leaves out the posts without any; they follow by age.
        (Sort::Top, Filter::All) => format!(
            "(SELECT p.like_count, p.id FROM post p WHERE p.like_count > 0 AND {below} ORDER BY {order} LIMIT $3)
             UNION ALL
             (SELECT p.like_count, p.id FROM post p WHERE p.like_count = 0 AND {below} ORDER BY p.id DESC LIMIT $3)
             ORDER BY 1 DESC, 2 DESC LIMIT $3"
        ),
        _ => format!("SELECT {rank}, p.id FROM {from} WHERE {condition} AND {below} ORDER BY {order} LIMIT $3"),
    }
}

/// Above every key.
pub(crate) const TOP: Key = Key { rank: i64::MAX, id: PostId(Uuid::max()) };
