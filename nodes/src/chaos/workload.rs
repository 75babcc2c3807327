//! Clients at work on a few posts, all of them at once, while somebody breaks things; what they did and saw is recorded.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::bail;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::{
    client::{Answer, Client, Counters, Gateways, Request, User},
    history::History,
    linearizable::Call,
    models::{End, PostOp, Seen, ThreadOp},
    plan::{self, Checked, Shape, Under, Wish},
};
use crate::testing::Patience;

/// In every post and comment of a run: what finds all of them.
pub const WORD: &str = "rookchaos";
/// The tag of every post.
pub const TAG: &str = "chaos";
/// Comments under one post: fewer than fit on a page, for a page is read at one moment.
const COMMENTS_MAX: usize = 90;
/// After something that did not work.
const RECOVER: Duration = Duration::from_millis(50);
/// How long a creation is repeated until its outcome is known.
const RETRY_FOR: Duration = Duration::from_secs(20);
/// How long the last look is tried: an entity that was isolated comes back after 30 s.
const LOOK_FOR: Duration = Duration::from_secs(45);
/// A client number that no client has: who looks at everything in the end.
const INSPECTOR: usize = 999;

/// What a run of clients is like.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decides every wish.
    pub seed: u64,
    /// How many clients, users, posts.
    pub shape: Shape,
    /// How long a client waits for an answer.
    pub answer_max: Duration,
}

/// Clients at work.
pub struct Workload {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

struct Shared {
    options: Options,
    began: Instant,
    users: Vec<User>,
    gateways: Arc<Gateways>,
    counters: Arc<Counters>,
    history: Mutex<History>,
    slots: Mutex<Vec<Slot>>,
    stop: AtomicBool,
}

/// A post that everybody works on.
#[derive(Clone, Debug)]
struct Slot {
    post: Uuid,
    /// Comments that were tried.
    tried: usize,
    /// Those that are there, as far as is known: id, text, for whom.
    comments: Vec<(Uuid, Arc<str>, usize)>,
}

impl Workload {
    /// Makes users and posts, and sets the clients to work.
    ///
    /// # Errors
    /// When the cluster does not take the first writes: nothing should be broken yet.
    pub async fn start(options: Options, gateways: Arc<Gateways>) -> anyhow::Result<Self> {
        let users: Vec<User> = (0..options.shape.users).map(|n| User::new(&format!("chaos_{n}"))).collect();
        let shared = Arc::new(Shared {
            options,
            began: Instant::now(),
            users,
            gateways,
            counters: Arc::default(),
            history: Mutex::default(),
            slots: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        for (n, user) in shared.users.iter().enumerate() {
            shared.client(n, user).enter(LOOK_FOR).await?;
        }
        for slot in 0..options.shape.slots {
            let author = options.shape.author_of(slot);
            let worker = Worker::new(&shared, INSPECTOR, author);
            let Some(post) = worker.publish(format!("s{slot}").into()).await else {
                bail!("the first posts cannot be published");
            };
            shared.slots().push(Slot { post, tried: 0, comments: Vec::new() });
        }
        let clients = (0..options.shape.clients).map(|client| {
            let user = options.shape.user_of(client);
            tokio::spawn(Worker::new(&shared, client, user).run())
        });
        let clients = clients.collect();
        Ok(Self { shared, clients })
    }

    /// Acknowledged writes so far.
    pub fn writes(&self) -> u64 {
        self.shared.counters.writes.load(Ordering::Relaxed)
    }

    /// The posts that everybody works on.
    pub fn posts(&self) -> Vec<Uuid> {
        self.shared.slots().iter().map(|slot| slot.post).collect()
    }

    /// One of them.
    pub fn some_post(&self) -> Uuid {
        self.shared.slots()[0].post
    }

    /// Whether every gateway goes by a time of day that is off by so many seconds, a minute more or less.
    pub async fn is_off_by(&self, offset_s: i64) -> bool {
        for gateway in self.shared.gateways.each() {
            let user = User::new(&self.shared.users[0].name);
            let client = Client::new(&gateway, 0, user, &Arc::default(), self.shared.options.answer_max);
            let now = jiff::Timestamp::now().as_second();
            if client.time_of_day().await.is_none_or(|told| (told - now - offset_s).abs() > 60) {
                return false;
            }
        }
        true
    }

    /// Waits until this many more writes were acknowledged.
    ///
    /// # Errors
    /// When they are not in time.
    pub async fn progress(&self, writes: u64, patience: Duration) -> anyhow::Result<()> {
        let mut seen = self.writes();
        let (wanted, mut left) = (seen + writes, Patience::of(patience));
        while seen < wanted {
            let now = self.writes();
            if now > seen {
                (seen, left) = (now, Patience::of(patience));
            }
            if left.is_over() {
                bail!("the clients get nothing done: {seen} of {wanted} writes, and none for {} s", left.spent().as_secs());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Lets the clients end, and looks at everything that they have made: those looks are part of the history, so that what
    /// was acknowledged must be there.
    ///
    /// # Errors
    /// When it cannot be read, although everything is healed.
    pub async fn finish(self) -> anyhow::Result<Finished> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await?;
        }
        let inspector = Worker::new(&self.shared, INSPECTOR, 0);
        let posts: Vec<Uuid> = self.shared.history().acknowledged_posts().map(|(id, _)| id).collect();
        for post in posts {
            insist("a post", || inspector.read(post)).await?;
            insist("a thread", || inspector.list(post)).await?;
        }
        let history = self.shared.history().clone();
        Ok(Finished { history, counters: Arc::clone(&self.shared.counters) })
    }
}

/// What a run has left.
pub struct Finished {
    /// What clients did and saw.
    pub history: History,
    /// What clients met.
    pub counters: Arc<Counters>,
}

async fn insist<T>(what: &str, mut read: impl AsyncFnMut() -> Option<T>) -> anyhow::Result<T> {
    let mut patience = Patience::of(LOOK_FOR);
    loop {
        if let Some(value) = read().await {
            return Ok(value);
        }
        if patience.is_over() {
            bail!("{what} cannot be read, although nothing is broken any more");
        }
        tokio::time::sleep(RECOVER).await;
    }
}

impl Shared {
    fn client(&self, at: usize, user: &User) -> Client {
        Client::new(&self.gateways, at, user.clone(), &self.counters, self.options.answer_max)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).expect("a run takes less than centuries")
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().expect("no panic under this lock")
    }

    fn slots(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.slots.lock().expect("no panic under this lock")
    }
}

/// One client and for whom it acts.
struct Worker {
    shared: Arc<Shared>,
    client: usize,
    user: usize,
    http: Client,
}

impl Worker {
    fn new(shared: &Arc<Shared>, client: usize, user: usize) -> Self {
        let http = shared.client(client, &shared.users[user]);
        Self { shared: Arc::clone(shared), client, user, http }
    }

    async fn run(self) {
        let Options { seed, shape, .. } = self.shared.options;
        let mut versions = HashMap::new();
        for step in 0.. {
            let turn = plan::turn(seed, shape, self.client, step);
            tokio::time::sleep(Duration::from_millis(turn.pause_ms)).await;
            if self.shared.stop.load(Ordering::Relaxed) {
                return;
            }
            let text: Arc<str> = format!("c{}-{step}", self.client).into();
            if !self.fulfil(turn.wish, text, &mut versions).await {
                tokio::time::sleep(RECOVER).await;
            }
        }
    }

    /// False: it did not work, whatever the reason.
    async fn fulfil(&self, wish: Wish, text: Arc<str>, versions: &mut HashMap<Uuid, i64>) -> bool {
        let post_in = |slot: usize| self.shared.slots()[slot].post;
        match wish {
            Wish::Read(slot) => {
                let post = post_in(slot);
                let seen = self.read(post).await;
                versions.extend(seen.iter().flatten().map(|seen| (post, seen.version)));
                seen.is_some()
            }
            Wish::List(slot) => self.list(post_in(slot)).await.is_some(),
            Wish::Like(slot, on) => self.like(post_in(slot), on).await,
            Wish::Edit(slot, checked) => self.edit(post_in(slot), checked, text, versions).await,
            Wish::Publish(slot) => {
                let Some(post) = self.publish(text).await else { return false };
                self.shared.slots()[slot] = Slot { post, tried: 0, comments: Vec::new() };
                true
            }
            Wish::Delete(slot) => self.delete(post_in(slot)).await,
            Wish::Comment(slot, under) => self.comment(slot, under, text).await,
            Wish::Uncomment(slot) => self.uncomment(slot).await,
            Wish::Follow(user, on) => {
                let name = &self.shared.users[user].name;
                let request = Request::new(if on { Method::PUT } else { Method::DELETE }, format!("/api/v1/users/{name}/follow"));
                !matches!(self.http.send(&request).await, Answer::Open(_) | Answer::Unsent)
            }
        }
    }

    fn noted(&self, post: Uuid, op: PostOp, invoked: u64, open: bool) {
        let returned = (!open).then(|| self.shared.now());
        self.shared.history().post(post, Call { client: self.client, op, invoked, returned });
    }

    fn noted_thread(&self, post: Uuid, op: ThreadOp, invoked: u64, open: bool) {
        let returned = (!open).then(|| self.shared.now());
        self.shared.history().thread(post, Call { client: self.client, op, invoked, returned });
    }

    /// The new post's id, if it is known to be there.
    async fn publish(&self, text: Arc<str>) -> Option<Uuid> {
        let body = json!({"title": &*text, "body": format!("{WORD} {text}"), "tags": [TAG]});
        let invoked = self.shared.now();
        match self.create("/api/v1/posts", body, &text).await {
            Answer::Done(post) => {
                let id = id(&post)?;
                self.noted(id, PostOp::Publish { text, end: End::Done(()) }, invoked, false);
                Some(id)
            }
            Answer::Open(_) => {
                self.shared.history().unplaced(text);
                None
            }
            Answer::Refused(_) | Answer::Unsent => None,
        }
    }

    /// Sends until the outcome is known: with the key, all tries are one operation.
    async fn create(&self, path: &str, body: Value, key: &str) -> Answer {
        let key = format!("{:016x}-{key}", self.shared.options.seed);
        let request = Request::new(Method::POST, path).json(body).header("idempotency-key", key);
        let began = Instant::now();
        let mut open = None;
        loop {
            match self.http.send(&request).await {
                Answer::Open(why) => open = Some(Answer::Open(why)),
                // An earlier try may have been done.
                Answer::Unsent if open.is_some() => {}
                // And what is refused now, because the post is gone, say, may have been taken then.
                Answer::Refused(_) if open.is_some() => return open.expect("just seen"),
                answer => return answer,
            }
            if began.elapsed() > RETRY_FOR {
                return open.expect("only an open outcome is waited for");
            }
            tokio::time::sleep(RECOVER).await;
        }
    }

    /// What was seen, and that nothing was; none: no answer.
    async fn read(&self, post: Uuid) -> Option<Option<Seen>> {
        let invoked = self.shared.now();
        let answer = self.http.send(&Request::get(format!("/api/v1/posts/{post}"))).await;
        let seen = match &answer {
            Answer::Done(body) => {
                if let Some(liked) = body["liked"].as_bool() {
                    self.noted(post, PostOp::Liked { user: self.user, liked }, invoked, false);
                }
                Some(seen(body)?)
            }
            Answer::Refused(StatusCode::NOT_FOUND) => None,
            _ => return None,
        };
        self.noted(post, PostOp::Read(seen.clone()), invoked, false);
        Some(seen)
    }

    async fn like(&self, post: Uuid, on: bool) -> bool {
        let request = Request::new(if on { Method::PUT } else { Method::DELETE }, format!("/api/v1/posts/{post}/like"));
        let invoked = self.shared.now();
        let answer = self.http.send(&request).await;
        let Some(end) = end(&answer, |_| Some(())) else { return false };
        let open = end == End::Open;
        self.noted(post, PostOp::Like { user: self.user, on, end }, invoked, open);
        !open
    }

    async fn edit(&self, post: Uuid, checked: Checked, text: Arc<str>, versions: &mut HashMap<Uuid, i64>) -> bool {
        let if_version = match checked {
            Checked::No => None,
            Checked::Yes => match versions.get(&post) {
                Some(version) => Some(*version),
                None => match self.read(post).await {
                    Some(Some(seen)) => Some(seen.version),
                    Some(None) => return true,
                    None => return false,
                },
            },
        };
        let mut request = Request::new(Method::PATCH, format!("/api/v1/posts/{post}")).json(json!({"title": &*text}));
        if let Some(version) = if_version {
            request = request.header("if-match", format!("\"{version}\""));
        }
        let invoked = self.shared.now();
        let answer = self.http.send(&request).await;
        versions.remove(&post);
        let Some(end) = end(&answer, seen) else { return false };
        if let End::Done(seen) = &end {
            versions.insert(post, seen.version);
        }
        let open = end == End::Open;
        self.noted(post, PostOp::Edit { if_version, text, end }, invoked, open);
        !open
    }

    async fn delete(&self, post: Uuid) -> bool {
        let invoked = self.shared.now();
        let answer = self.http.send(&Request::new(Method::DELETE, format!("/api/v1/posts/{post}"))).await;
        let Some(end) = end(&answer, |_| Some(())) else { return false };
        let open = end == End::Open;
        self.noted(post, PostOp::Delete { if_version: None, end }, invoked, open);
        !open
    }

    /// How many comments are listed; none: no answer.
    async fn list(&self, post: Uuid) -> Option<usize> {
        let invoked = self.shared.now();
        let answer = self.http.send(&Request::get(format!("/api/v1/posts/{post}/comments?limit=100&sort=old"))).await;
        let listed = match &answer {
            Answer::Done(body) => {
                let items = body["items"].as_array()?.iter().filter(|item| item["deleted"] == json!(false));
                let mut listed: Vec<Arc<str>> = items.filter_map(comment_text).collect();
                listed.sort_unstable();
                Some(listed)
            }
            Answer::Refused(StatusCode::NOT_FOUND) => None,
            _ => return None,
        };
        let count = listed.as_ref().map_or(0, Vec::len);
        self.noted_thread(post, ThreadOp::List(listed), invoked, false);
        Some(count)
    }

    async fn comment(&self, slot: usize, under: Under, text: Arc<str>) -> bool {
        let (post, parent) = {
            let mut slots = self.shared.slots();
            let slot = &mut slots[slot];
            if slot.tried >= COMMENTS_MAX {
                return true;
            }
            slot.tried += 1;
            (slot.post, slot.comments.last().filter(|_| under == Under::Comment).map(|(id, ..)| *id))
        };
        let body = json!({"body": format!("{text} {WORD}"), "parent_id": parent});
        let invoked = self.shared.now();
        let answer = self.create(&format!("/api/v1/posts/{post}/comments"), body, &text).await;
        let Some(end) = end(&answer, |_| Some(())) else { return false };
        let open = end == End::Open;
        if let (End::Done(()), Answer::Done(comment)) = (&end, &answer)
            && let Some(id) = id(comment)
        {
            let mut slots = self.shared.slots();
            if slots[slot].post == post {
                slots[slot].comments.push((id, text.clone(), self.user));
            }
        }
        self.noted_thread(post, ThreadOp::Add { comment: text, end }, invoked, open);
        !open
    }

    async fn uncomment(&self, slot: usize) -> bool {
        let (post, id, comment) = {
            let mut slots = self.shared.slots();
            let slot = &mut slots[slot];
            let Some(mine) = slot.comments.iter().position(|(.., user)| *user == self.user) else { return true };
            let (id, comment, _) = slot.comments.remove(mine);
            (slot.post, id, comment)
        };
        let invoked = self.shared.now();
        let answer = self.http.send(&Request::new(Method::DELETE, format!("/api/v1/posts/{post}/comments/{id}"))).await;
        let Some(end) = end(&answer, |_| Some(())) else { return false };
        let open = end == End::Open;
        self.noted_thread(post, ThreadOp::Delete { comment, end }, invoked, open);
        !open
    }
}

/// How a write ended; none: nothing was done, and that says nothing about the entity either.
fn end<T>(answer: &Answer, done: impl FnOnce(&Value) -> Option<T>) -> Option<End<T>> {
    match answer {
        Answer::Done(body) => Some(done(body).map_or(End::Open, End::Done)),
        Answer::Refused(StatusCode::NOT_FOUND) => Some(End::Gone),
        Answer::Refused(StatusCode::PRECONDITION_FAILED) => Some(End::Changed),
        Answer::Open(_) => Some(End::Open),
        Answer::Refused(_) | Answer::Unsent => None,
    }
}

fn id(body: &Value) -> Option<Uuid> {
    body["id"].as_str()?.parse().ok()
}

fn seen(body: &Value) -> Option<Seen> {
    let (version, likes) = (body["version"].as_i64()?, body["like_count"].as_i64()?);
    Some(Seen { version, text: body["title"].as_str()?.into(), likes })
}

fn comment_text(item: &Value) -> Option<Arc<str>> {
    item["body"].as_str()?.split(' ').next().map(Arc::from)
}
