//! Pure. What clients did and saw: the record of a run, sorted by entity, and its check.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use uuid::Uuid;

use super::{
    linearizable::{self, Call, Model, Verdict},
    models::{Bounds, End, LikeModel, LikeOp, PostModel, PostOp, ThreadModel, ThreadOp},
};

/// Everything that the clients of a run did, with times of one clock in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct History {
    posts: BTreeMap<Uuid, Vec<Call<PostOp>>>,
    threads: BTreeMap<Uuid, Vec<Call<ThreadOp>>>,
    /// Texts of posts whose creation is open: nobody knows their ids, if they have any.
    unplaced: BTreeSet<Arc<str>>,
}

/// What is wrong with one entity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which: `post <id>`, `thread <id>`.
    pub entity: String,
    /// What cannot have happened, and why.
    pub explanation: String,
    /// Whether it is proved; otherwise the search was given up.
    pub proved: bool,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.entity, self.explanation)
    }
}

impl History {
    /// Notes an operation on a post. What was refused for another reason than the model knows is not worth noting.
    pub fn post(&mut self, id: Uuid, call: Call<PostOp>) {
        if let PostOp::Delete { end: End::Done(()) | End::Open, .. } = call.op {
            // The news goes its own way to the thread.
            let close = Call { client: call.client, op: ThreadOp::Close, invoked: call.invoked, returned: None };
            self.threads.entry(id).or_default().push(close);
        }
        self.posts.entry(id).or_default().push(call);
    }

    /// Notes an operation on the thread of a post.
    pub fn thread(&mut self, post: Uuid, call: Call<ThreadOp>) {
        self.threads.entry(post).or_default().push(call);
    }

    /// Notes that a post with this text may exist or not.
    pub fn unplaced(&mut self, text: Arc<str>) {
        self.unplaced.insert(text);
    }

    /// Texts of posts of which nobody knows whether they exist.
    pub fn unplaced_texts(&self) -> &BTreeSet<Arc<str>> {
        &self.unplaced
    }

    /// How many operations there are, and how many of them are open.
    pub fn count(&self) -> (usize, usize) {
        let posts = self.posts.values().flatten().map(|call| call.returned.is_some());
        let threads = self.threads.values().flatten().filter(|call| call.op != ThreadOp::Close);
        let known = posts.chain(threads.map(|call| call.returned.is_some()));
        let (all, closed) = known.fold((0, 0), |(all, closed), known| (all + 1, closed + usize::from(known)));
        (all + self.unplaced.len(), all - closed + self.unplaced.len())
    }

    /// The posts whose creation was acknowledged, and whether their deletion was acknowledged, refused or never tried (true:
    /// it must be there; false: it must not; none: either).
    pub fn acknowledged_posts(&self) -> impl Iterator<Item = (Uuid, Option<bool>)> {
        self.posts.iter().map(|(id, calls)| {
            let deletions =
                || calls.iter().filter_map(|call| if let PostOp::Delete { end, .. } = &call.op { Some(end) } else { None });
            let there = if deletions().any(|end| *end == End::Done(())) {
                Some(false)
            } else if deletions().any(|end| *end == End::Open) {
                None
            } else {
                Some(true)
            };
            (*id, there)
        })
    }

    /// Operations on a post, as they were noted.
    pub fn of_post(&self, id: Uuid) -> &[Call<PostOp>] {
        self.posts.get(&id).map_or(&[], Vec::as_slice)
    }

    /// The longest time between two answers of a kind that counts, over all entities: how long nobody got through.
    pub fn worst_pause_ns(&self) -> u64 {
        let mut moments: Vec<u64> = self.writes().collect();
        moments.sort_unstable();
        moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
    }

    /// When writes were acknowledged.
    fn writes(&self) -> impl Iterator<Item = u64> {
        let posts = self.posts.values().flatten().filter(|call| !matches!(call.op, PostOp::Read(_) | PostOp::Liked { .. }));
        let threads = self.threads.values().flatten().filter(|call| !matches!(call.op, ThreadOp::List(_)));
        posts.filter_map(|call| call.returned).chain(threads.filter_map(|call| call.returned))
    }

    /// Checks every entity by itself.
    pub fn check(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        for (id, calls) in &self.posts {
            found.extend(violation(format!("post {id}"), &PostModel, calls));
            let likes = likes(calls);
            for (user, calls) in &likes {
                found.extend(violation(format!("the like of user {user} for post {id}"), &LikeModel, calls));
            }
            found.extend(miscounted(id, calls, &likes));
        }
        for id in self.threads.keys() {
            found.extend(violation(format!("thread {id}"), &ThreadModel, &self.thread_calls(*id)));
        }
        found
    }

    /// What is known of a thread, without what says nothing.
    fn thread_calls(&self, post: Uuid) -> Vec<Call<ThreadOp>> {
        let all = self.threads.get(&post).map_or(&[][..], Vec::as_slice);
        let doomed = all.iter().filter(|call| call.op == ThreadOp::Close).map(|call| call.invoked).min();
        let listed: BTreeSet<&Arc<str>> = all.iter().filter_map(listed).flatten().collect();
        let says_nothing = |call: &Call<ThreadOp>| match &call.op {
            // The post is asked first, and may have said it before the thread heard.
            ThreadOp::List(None) | ThreadOp::Add { end: End::Gone, .. } => {
                doomed.is_some_and(|since| call.returned.is_none_or(|returned| since <= returned))
            }
            // What nobody ever saw might as well not have happened, and there may be many of these.
            ThreadOp::Add { comment, end: End::Open } => !listed.contains(comment),
            _ => false,
        };
        all.iter().filter(|call| !says_nothing(call)).cloned().collect()
    }
}

fn listed(call: &Call<ThreadOp>) -> Option<&Vec<Arc<str>>> {
    match &call.op {
        ThreadOp::List(listed) => listed.as_ref(),
        _ => None,
    }
}

/// What each user did about liking a post, and was told.
fn likes(calls: &[Call<PostOp>]) -> BTreeMap<usize, Vec<Call<LikeOp>>> {
    let mut users: BTreeMap<usize, Vec<Call<LikeOp>>> = BTreeMap::new();
    for Call { client, op, invoked, returned } in calls {
        let (user, op) = match op {
            PostOp::Like { user, on, end } => (*user, LikeOp::Set(*on, end.clone())),
            PostOp::Liked { user, liked } => (*user, LikeOp::Told(*liked)),
            _ => continue,
        };
        let call = Call { client: *client, op, invoked: *invoked, returned: *returned };
        users.entry(user).or_default().push(call);
    }
    users
}

/// Counts that nobody can have seen.
fn miscounted<'a>(
    post: &'a Uuid,
    calls: &'a [Call<PostOp>],
    likes: &'a BTreeMap<usize, Vec<Call<LikeOp>>>,
) -> impl Iterator<Item = Violation> + 'a {
    calls.iter().filter_map(move |call| {
        let (seen, returned) = call.op.seen().zip(call.returned)?;
        let bounds = Bounds::within(likes.values().map(Vec::as_slice), call.invoked, returned);
        (!bounds.contain(seen.likes)).then(|| Violation {
            entity: format!("the likes of post {post}"),
            explanation: format!("client {} saw {} at {} ns, where {bounds:?}", call.client, seen.likes, call.invoked),
            proved: true,
        })
    })
}

fn violation<M: Model>(entity: String, model: &M, calls: &[Call<M::Op>]) -> Option<Violation> {
    match linearizable::check(model, calls) {
        Verdict::Linearizable(_) => None,
        Verdict::Violation(why) => Some(Violation { entity, explanation: why.to_string(), proved: true }),
        Verdict::Undecided { steps } => {
            let explanation = format!("gave up after {steps} steps over {} operations", calls.len());
            Some(Violation { entity, explanation, proved: false })
        }
    }
}

#[cfg(test)]
mod tests;
