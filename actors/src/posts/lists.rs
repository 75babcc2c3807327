//! The heads of the lists that everybody asks for: ordered slices in memory, kept current by every commit.
//!
//! A slice holds *every* post of the shards that are served here whose key is at or above its floor; what lies below is
//! asked of SQL. So a page is answered from memory exactly when it lies above the floors of all nodes (`heads.rs`).

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
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
    /// The database has the posts of every tag by rank; known once it was seen.
    pub(super) tags_ranked: AtomicBool,
}

struct Slice {
    /// The shards whose posts it holds. Once others are served here it is of no use any more.
    served: Arc<Served>,
    state: State,
    used: u64,
}

enum State {
    /// Being read from SQL by the load of this number; what happens meanwhile is applied after it.
    Loading(u64, Vec<Change>),
    Ready(Head),
}

/// A head that is being read from SQL. Dropped before it was [taken in](Load::finish) it forgets the slice, which would collect
/// changes for ever and never be ready; the next reader begins anew.
pub(crate) struct Load<'a> {
    lists: &'a Lists,
    slice: SliceKey,
    number: u64,
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
    /// asks SQL. None: somebody else has begun.
    pub(crate) fn begin(&self, sort: Sort, filter: &Filter, served: &Arc<Served>) -> Option<Load<'_>> {
        let mut slices = self.slices.lock().expect("no panic under this lock");
        let key = (sort, filter.clone());
        if slices.get(&key).is_some_and(|slice| slice.served.number >= served.number) {
            return None;
        }
        if slices.len() >= SLICES_MAX
            && let Some(oldest) = slices.iter().min_by_key(|(_, slice)| slice.used).map(|(key, _)| key.clone())
        {
            slices.remove(&oldest);
        }
        let number = self.clock.fetch_add(1, Ordering::Relaxed);
        let state = State::Loading(number, Vec::new());
        slices.insert(key.clone(), Slice { served: Arc::clone(served), state, used: number });
        Some(Load { lists: self, slice: key, number })
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
                        State::Loading(_, pending) => pending.push(change),
                        State::Ready(head) => head.apply(change),
                    }
                }
            }
        }
    }
}

impl Load<'_> {
    /// Takes the head that SQL gave: at most [`HEAD`] keys of all shards; fewer mean that there are no more. `is_served`
    /// tells which of them are of the shards that the slice began with.
    pub(crate) fn finish(self, keys: &[Key], is_served: impl Fn(PostId) -> bool) {
        let mut slices = self.lists.slices.lock().expect("no panic under this lock");
        // Forgotten meanwhile, and perhaps begun anew: what that one reads knows more.
        let Some(Slice { state, .. }) = slices.get_mut(&self.slice).filter(|slice| self.is_of(slice)) else { return };
        let State::Loading(_, changes) = state else { return };
        let floor = if keys.len() < HEAD { None } else { keys.last().copied() };
        let mut head = Head { entries: keys.iter().filter(|key| is_served(key.id)).copied().collect(), floor };
        for change in std::mem::take(changes) {
            head.apply(change);
        }
        *state = State::Ready(head);
    }

    fn is_of(&self, slice: &Slice) -> bool {
        matches!(slice.state, State::Loading(number, _) if number == self.number)
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        let mut slices = self.lists.slices.lock().expect("no panic under this lock");
        if slices.get(&self.slice).is_some_and(|slice| self.is_of(slice)) {
            slices.remove(&self.slice);
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
        // A tag goes with its post, and is found in the order of their ids.
        (Sort::New, Filter::Tag(_)) => "SELECT 0::int8, post FROM post_tag
             WHERE tag = $4 AND $1::int8 IS NOT NULL AND post < $2 ORDER BY post DESC LIMIT $3"
            .to_owned(),
        _ => format!("SELECT {rank}, p.id FROM {from} WHERE {condition} AND {below} ORDER BY {order} LIMIT $3"),
    }
}

/// The same for a tag by likes or hotness, once all posts are ranked.
pub(crate) fn ranked_page_sql(rank: &str) -> String {
    format!(
        "SELECT {rank}, post FROM ranked_tag WHERE tag = $4 AND ({rank}, post) < ($1, $2) ORDER BY {rank} DESC, post DESC LIMIT $3"
    )
}

/// Above every key.
pub(crate) const TOP: Key = Key { rank: i64::MAX, id: PostId(Uuid::max()) };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ShardId;

    fn key(id: u128) -> Key {
        Key { rank: 0, id: PostId(Uuid::from_u128(id)) }
    }

    fn served() -> Arc<Served> {
        Arc::new(Served { number: 1, shards: vec![ShardId(0)] })
    }

    fn page(lists: &Lists, served: &Served) -> Paged {
        lists.page(Sort::New, &Filter::All, None, 9, served)
    }

    #[test]
    fn a_load_that_is_given_up_leaves_nothing_behind() {
        let (lists, served) = (Lists::default(), served());
        drop(lists.begin(Sort::New, &Filter::All, &served).expect("nobody has begun"));
        assert!(matches!(page(&lists, &served), Paged::AskHead));
    }

    /// What was broken: what was committed between the two looks was missing for as long as the list stayed in memory.
    #[test]
    fn a_load_that_was_overtaken_by_another_is_of_no_use() {
        let (lists, served) = (Lists::default(), served());
        let begin = || lists.begin(Sort::New, &Filter::All, &served).expect("nobody has begun");
        let slow = begin();
        let seen_by_slow = [key(1)];
        // It is told to one that is forgotten.
        lists.change_in([Filter::All], |_| vec![Change::Add(key(2))]);
        lists.clear();
        let next = begin();
        slow.finish(&seen_by_slow, |_| true);
        assert!(matches!(page(&lists, &served), Paged::AskPage), "it is still being loaded");
        next.finish(&[key(2), key(1)], |_| true);
        let Paged::Here(here) = page(&lists, &served) else { panic!("it was loaded") };
        assert_eq!(here.keys, [key(2), key(1)]);
    }
}
