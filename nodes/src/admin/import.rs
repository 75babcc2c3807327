//! Importing on the node's side: items come in, answers go out, on one connection and with back-pressure both ways.

use std::{
    collections::{HashMap, HashSet},
    fmt::Display,
    sync::Arc,
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::State,
    response::Response,
};
use backon::{ExponentialBuilder, Retryable};
use futures_util::Stream;
use rookery_actors::{
    comments::{CommentBody, Imported},
    entity::{AskError, Failure},
    ids::UserId,
    posts::{
        self, Draft,
        rules::{Body as PostBody, Tags, Title},
    },
    runtime::Context,
    users::{
        Changes,
        names::{AvatarUrl, Bio, DisplayName, Username},
    },
};
use tokio::{
    sync::{Mutex, OnceCell, mpsc},
    task::JoinSet,
    time::Instant,
};

use super::{
    Admin,
    item::{Answer, Author, Comment, Item, Numbered, Outcome, Post, Thing, User},
    ndjson::{self, Lines},
};
use crate::node::Faces;

/// Items under way at once: enough to fill the committer's batches, few enough for one importer among clients.
const IN_FLIGHT: usize = 256;
/// For one try of one item.
const PATIENCE: Duration = Duration::from_secs(10);

/// `POST /import`
pub(super) async fn import(State(admin): State<Arc<Admin>>, body: Body) -> Response {
    let (answers, response) = ndjson::respond();
    let importer = Importer { faces: admin.faces.clone(), authors: Mutex::default() };
    tokio::spawn(run(Arc::new(importer), body.into_data_stream(), answers));
    response
}

async fn run<S, E>(importer: Arc<Importer>, body: S, answers: mpsc::Sender<Answer>)
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: Display,
{
    let mut lines = Lines::new(body);
    let mut under_way = UnderWay::default();
    let end = loop {
        let lines = match lines.some(IN_FLIGHT).await {
            Ok(lines) if lines.is_empty() => break None,
            Ok(lines) => lines,
            Err(error) => break Some(error.to_string()),
        };
        let parsed: Result<Vec<Numbered>, _> = lines.iter().map(|line| serde_json::from_slice(line)).collect();
        let items = match parsed {
            Ok(items) => items,
            Err(error) => {
                break Some(format!("this importer speaks another version's language: {error}"));
            }
        };
        let present = importer.present(&items).await;
        for Numbered { line, item } in items {
            if present.contains(&item.makes()) {
                if answers.send(Answer { line: Some(line), outcome: Outcome::Present }).await.is_err() {
                    return;
                }
                continue;
            }
            under_way.wait_for(&item).await;
            // The importer went away: what is under way ends by itself, what it sent after that is not begun.
            if answers.is_closed() {
                return;
            }
            under_way.begin(Arc::clone(&importer), line, item, answers.clone());
        }
    };
    under_way.all().await;
    if let Some(reason) = end {
        let _ = answers.send(Answer { line: None, outcome: Outcome::Failed { reason } }).await;
    }
}

/// What is being imported now. An item begins when what it needs is in, so a file only has to be in a sensible order.
#[derive(Default)]
struct UnderWay {
    tasks: JoinSet<Thing>,
    things: HashSet<Thing>,
}

impl UnderWay {
    async fn wait_for(&mut self, item: &Item) {
        let things = [item.needs(), vec![item.makes()]].concat();
        while self.tasks.len() >= IN_FLIGHT || things.iter().any(|thing| self.things.contains(thing)) {
            self.one().await;
        }
    }

    fn begin(&mut self, importer: Arc<Importer>, line: u64, item: Item, answers: mpsc::Sender<Answer>) {
        let makes = item.makes();
        self.things.insert(makes.clone());
        self.tasks.spawn(async move {
            let outcome = importer.import(&item).await;
            let _ = answers.send(Answer { line: Some(line), outcome }).await;
            makes
        });
    }

    async fn one(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok(made)) => drop(self.things.remove(&made)),
            // A panic says nothing about what it was; the end of all tasks settles it.
            Some(Err(error)) => tracing::error!(%error, "an import of one item panicked"),
            None => self.things.clear(),
        }
    }

    async fn all(&mut self) {
        while !self.tasks.is_empty() {
            self.one().await;
        }
    }
}

struct Importer {
    faces: Faces,
    /// Authors that were looked up or made, so that each is only once, and those whose own line came by: a line knows its user
    /// by where it comes from, a name may have changed hands since.
    authors: Mutex<HashMap<Author, Arc<OnceCell<Known>>>>,
}

/// What is known of an author.
#[derive(Clone, Copy)]
enum Known {
    There(UserId),
    /// The account was deleted here.
    Erased,
}

/// Why an item is not in.
enum No {
    Refused(String),
    Failed(Failure),
}

impl From<Failure> for No {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(reason) => Self::Refused(reason),
            failure => Self::Failed(failure),
        }
    }
}

impl<R: Display> From<AskError<R>> for No {
    fn from(error: AskError<R>) -> Self {
        match error {
            AskError::Rejected(rejection) => Self::Refused(rejection.to_string()),
            AskError::Failed(failure) => failure.into(),
        }
    }
}

fn refused(field: &str, error: impl Display) -> No {
    No::Refused(format!("{field}: {error}"))
}

/// How a failure passes: half a minute, which is longer than a restart of Postgres or a takeover.
fn patience() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_jitter()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .with_max_times(20)
}

/// Repeating is harmless, for the id is the same: also after an unknown outcome.
fn passes(failure: &Failure) -> bool {
    match failure {
        Failure::Unavailable(_) | Failure::Moved(_) | Failure::Overloaded(_) | Failure::Expired | Failure::Unknown(_) => true,
        Failure::Crashed | Failure::Isolated | Failure::KeyReused | Failure::Refused(_) => false,
    }
}

fn context() -> Context {
    Context::within(PATIENCE)
}

impl Importer {
    /// The posts and comments among these that are in already, or were until they were deleted; asked for together, for a
    /// repeated import is mostly this.
    async fn present(&self, items: &[Numbered]) -> HashSet<Thing> {
        let (mut posts, mut comments) = (Vec::new(), Vec::new());
        for Numbered { item, .. } in items {
            match item {
                Item::Post(post) => posts.push(post.id),
                Item::Comment(comment) => comments.push((comment.post, comment.id)),
                Item::User(_) => {}
            }
        }
        let mut present = HashSet::new();
        // Should it fail for good, each item finds out by itself.
        if !posts.is_empty() {
            let ask = || self.faces.posts.which_are_taken(&posts);
            present.extend(ask.retry(patience()).when(passes).await.unwrap_or_default().into_iter().map(Thing::Post));
        }
        if !comments.is_empty() {
            let ask = || self.faces.comments.which_are_taken(&comments);
            present.extend(ask.retry(patience()).when(passes).await.unwrap_or_default().into_iter().map(Thing::Comment));
        }
        present
    }

    async fn import(&self, item: &Item) -> Outcome {
        let try_once = || async {
            match item {
                Item::User(user) => self.user(user).await,
                Item::Post(post) => self.post(post).await,
                Item::Comment(comment) => self.comment(comment).await,
            }
        };
        let passes = |no: &No| matches!(no, No::Failed(failure) if passes(failure));
        match try_once.retry(patience()).when(passes).await {
            Ok(true) => Outcome::Imported,
            Ok(false) => Outcome::Present,
            Err(No::Refused(reason)) => Outcome::Refused { reason },
            Err(No::Failed(failure)) => Outcome::Failed { reason: failure.to_string() },
        }
    }

    /// Whether it was not there yet.
    async fn user(&self, user: &User) -> Result<bool, No> {
        let username = Username::parse(&user.username).map_err(|error| refused("username", error))?;
        let display_name = DisplayName::parse(&user.display_name).map_err(|error| refused("display_name", error))?;
        let bio = Bio::parse(&user.bio).map_err(|error| refused("bio", error))?;
        let avatar_url =
            user.avatar_url.as_deref().map(AvatarUrl::parse).transpose().map_err(|error| refused("avatar_url", error))?;
        let users = &self.faces.users;
        let there = users.get(user.id, Instant::now() + PATIENCE).await?;
        let author = Author::Named(username.to_string());
        if !users.ensure_author(user.id, username, user.created_at, context()).await? {
            self.authors.lock().await.insert(author, Arc::new(OnceCell::from(Known::Erased)));
            return Ok(false);
        }
        self.authors.lock().await.insert(author, Arc::new(OnceCell::from(Known::There(user.id))));
        let says_something = !display_name.as_str().is_empty() || !bio.as_str().is_empty() || avatar_url.is_some();
        // The first version has only a name. A later one is somebody's own edit, or ours from an import before.
        if says_something && there.as_ref().is_none_or(|profile| profile.version == 1) {
            let changes = Changes {
                display_name: Some(display_name),
                bio: Some(bio),
                avatar_url: avatar_url.map(Some),
                if_version: Some(1),
            };
            users.edit(user.id, changes, context()).await?;
        }
        Ok(there.is_none())
    }

    async fn post(&self, post: &Post) -> Result<bool, No> {
        let draft = Draft {
            title: Title::parse(&post.title).map_err(|error| refused("title", error))?,
            body: PostBody::parse(&post.body).map_err(|error| refused("body", error))?,
            tags: Tags::parse(&post.tags).map_err(|error| refused("tags", error))?,
            author: self.author(&post.author).await?,
            at: post.created_at,
        };
        match self.faces.posts.publish_as(post.id, draft, context()).await {
            Ok(_) => Ok(true),
            Err(AskError::Rejected(posts::Rejection::Exists | posts::Rejection::Deleted)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn comment(&self, comment: &Comment) -> Result<bool, No> {
        let deadline = Instant::now() + PATIENCE;
        let body = CommentBody::parse(comment.body.as_str()).map_err(|error| refused("body", error))?;
        let author = self.author(&comment.author).await?;
        // A thread does not know whether its post ever was.
        if self.faces.posts.get(comment.post, deadline).await?.is_none() {
            // It went with its post, as it was to.
            if self.faces.posts.which_are_taken(&[comment.post]).await?.contains(&comment.post) {
                return Ok(false);
            }
            return Err(No::Refused(format!("there is no post {}", comment.post)));
        }
        let comments = &self.faces.comments;
        if !comments.which_are_taken(&[(comment.post, comment.id)]).await?.is_empty() {
            return Ok(false);
        }
        let imported = Imported { id: comment.id, author, body, parent: comment.parent, at: comment.created_at };
        comments.import(comment.post, vec![imported], context()).await?;
        Ok(true)
    }

    async fn author(&self, author: &Author) -> Result<UserId, No> {
        let (Author::Named(name) | Author::Made { username: name, .. }) = author;
        let username = Username::parse(name).map_err(|error| refused("author", error))?;
        let key = match author {
            // However it is written.
            Author::Named(_) => Author::Named(username.to_string()),
            made @ Author::Made { .. } => made.clone(),
        };
        let cell = Arc::clone(self.authors.lock().await.entry(key).or_default());
        match cell.get_or_try_init(|| self.find_author(author, &username)).await? {
            Known::There(id) => Ok(*id),
            Known::Erased => Err(No::Refused(format!(
                "author: the account of {username} was deleted here, and nothing more of it is imported"
            ))),
        }
    }

    async fn find_author(&self, author: &Author, username: &Username) -> Result<Known, No> {
        let users = &self.faces.users;
        if let Author::Made { id, since, .. } = author {
            let there = users.ensure_author(*id, username.clone(), *since, context()).await?;
            return Ok(if there { Known::There(*id) } else { Known::Erased });
        }
        let line = "the line of a user comes before what they wrote";
        if users.was_erased(username).await? {
            return Err(No::Refused(format!(
                "author: an account {username} was deleted here, so the name alone does not say who is meant; {line}"
            )));
        }
        match users.by_username(username, Instant::now() + PATIENCE).await? {
            Some(profile) => Ok(Known::There(profile.id)),
            None => Err(No::Refused(format!("author: there is no user {username}; {line}"))),
        }
    }
}
