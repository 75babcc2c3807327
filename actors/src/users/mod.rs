//! Users: who they are, how they prove it, the sessions they keep, and whom they follow.

mod auth;
mod edges;
pub mod entity;
pub mod erased;
pub mod keys;
pub mod names;
pub mod password;
mod rebuild;
pub mod service;
pub mod session;
pub mod token;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;
use serde::Serialize;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};
use uuid::Uuid;

pub(crate) use self::rebuild::{AUTHORS, FOLLOWS};
pub use self::{
    auth::{LoggedIn, NewUser},
    edges::{Edge, Edges},
    entity::{Account, Command, Profile, Rejection, Role, UnknownRole, User},
    service::{Answer, Query, Reply, UserService},
};
use self::{
    erased::NameHasher,
    names::{AvatarUrl, Bio, DisplayName, Email, Username},
    password::{Hasher, HasherError},
    session::{Lifetime, Session},
    token::{NoRandomness, RefreshTokens},
};
use crate::{
    authors::Author,
    entity::{AskError, Failure},
    ids::{SessionId, UserId},
    records::UserRecord,
    runtime::{Accepted, AskResult, Context, Runtime, in_time_to_answer, now, strange_answer},
};

/// The public face of the users service.
#[derive(Clone)]
pub struct Users {
    runtime: Runtime<UserService>,
    hasher: Hasher,
    tokens: RefreshTokens,
    names: NameHasher,
    lifetime: Lifetime,
    /// Two sweeps at once would tell of the same edge twice.
    sweeping: Arc<Mutex<()>>,
}

/// How something asked of a user ends.
pub type Asked<T> = Result<Accepted<T>, AskError<Rejection>>;

/// What an edit of a profile changes.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// A new name to show.
    pub display_name: Option<DisplayName>,
    /// New words about themselves.
    pub bio: Option<Bio>,
    /// A new picture, or none any more.
    pub avatar_url: Option<Option<AvatarUrl>>,
    /// The version that the editor saw.
    pub if_version: Option<i64>,
}

/// An account after an edit.
#[derive(Clone, Debug)]
pub struct Edited {
    /// The account.
    pub account: Account,
    /// Whether it was read after the edit. Else it could not be, and is what was read before with the changes: its version,
    /// its time and its counts are those of before.
    pub is_current: bool,
}

/// A copy of what is stored about a user, for the user.
#[derive(Clone, Debug, Serialize)]
pub struct PersonalData {
    /// Profile, e-mail address, roles.
    pub account: Account,
    /// Where they are logged in.
    pub sessions: Vec<SessionData>,
    /// Whom they follow, the first [`PersonalData::FOLLOWING_MAX`] of them; the list of `following` has all.
    pub following: Vec<Edge>,
}

/// What is stored about a session, without its secret.
#[derive(Clone, Debug, Serialize)]
pub struct SessionData {
    /// The session.
    pub id: SessionId,
    /// The login.
    pub created_at: Timestamp,
    /// The last refresh, or the login.
    pub last_used_at: Timestamp,
    /// From here on it needs a new login.
    pub expires_at: Timestamp,
    /// What the client called itself.
    pub user_agent: Option<String>,
}

impl PersonalData {
    /// Edges in one copy at most.
    pub const FOLLOWING_MAX: usize = 10_000;
}

impl Changes {
    fn made_to(self, mut account: Account) -> Account {
        let profile = &mut account.profile;
        if let Some(display_name) = self.display_name {
            profile.display_name = display_name;
        }
        if let Some(bio) = self.bio {
            profile.bio = bio;
        }
        if let Some(avatar_url) = self.avatar_url {
            profile.avatar_url = avatar_url;
        }
        account
    }
}

impl From<&Session> for SessionData {
    fn from(session: &Session) -> Self {
        Self {
            id: SessionId(session.id),
            created_at: session.created_at,
            last_used_at: session.last_used_at,
            expires_at: session.expires_at,
            user_agent: session.user_agent.clone(),
        }
    }
}

impl Users {
    /// The face of a runtime.
    pub fn new(
        runtime: Runtime<UserService>,
        hasher: Hasher,
        tokens: RefreshTokens,
        names: NameHasher,
        lifetime: Lifetime,
    ) -> Self {
        Self { runtime, hasher, tokens, names, lifetime, sweeping: Arc::default() }
    }

    /// The runtime behind it.
    pub fn runtime(&self) -> &Runtime<UserService> {
        &self.runtime
    }

    /// What everybody may see of a user, from memory.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn get(&self, id: UserId, deadline: Instant) -> Result<Option<Profile>, Failure> {
        self.view(id, deadline, |user| user.profile.clone()).await
    }

    /// What everybody may see of these users, in that order; those that are gone are left out. Asks each node once.
    ///
    /// # Errors
    /// When one of them cannot be read now.
    pub async fn get_many(&self, ids: Vec<UserId>, deadline: Instant) -> Result<Vec<Profile>, Failure> {
        self.profiles(ids, false, deadline).await
    }

    async fn profiles(&self, ids: Vec<UserId>, seen: bool, deadline: Instant) -> Result<Vec<Profile>, Failure> {
        let query = |users| Query::Profiles { users, seen };
        let answers = self.runtime.query_each(ids.clone(), |id| id.0, query, deadline).await?;
        let mut profiles: HashMap<UserId, Profile> = HashMap::new();
        for answer in answers {
            match answer {
                Answer::Profiles(found) => profiles.extend(found.into_iter().map(|profile| (profile.id, profile))),
                Answer::User(_) => return Err(strange_answer()),
            }
        }
        Ok(ids.iter().filter_map(|id| profiles.remove(id)).collect())
    }

    /// What users see of themselves.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn account(&self, id: UserId, deadline: Instant) -> Result<Option<Account>, Failure> {
        self.view(id, deadline, User::account).await
    }

    /// The user who has a name.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn by_username(&self, username: &Username, deadline: Instant) -> Result<Option<Profile>, Failure> {
        let names = &self.runtime.service().names;
        if let Some(id) = names.get(username) {
            let profile = self.get(id, deadline).await?;
            if profile.as_ref().is_some_and(|profile| profile.username == *username) {
                return Ok(profile);
            }
            // Deleted elsewhere; by now the name may be another's.
            names.invalidate(username);
        }
        let row = {
            let client = self.runtime.database().get().await?;
            client.query_opt("SELECT id FROM app_user WHERE username = $1", &[username]).await?
        };
        let Some(id) = row.map(|row| UserId(row.get(0))) else {
            return Ok(None);
        };
        let profile = self.seen(id, deadline).await?.filter(|profile| profile.username == *username);
        if profile.is_some() {
            names.insert(username.clone(), id);
        }
        Ok(profile)
    }

    /// The user who has an e-mail address. Asked of SQL every time: addresses are in no cache, so that none outlives its user.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn by_email(&self, email: &Email, deadline: Instant) -> Result<Option<Profile>, Failure> {
        let row = {
            let client = self.runtime.database().get().await?;
            client.query_opt("SELECT id FROM app_user WHERE email = $1", &[email]).await?
        };
        match row {
            Some(row) => self.seen(UserId(row.get(0)), deadline).await,
            None => Ok(None),
        }
    }

    /// What is shown of an author, for whoever does not know them yet.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn author(&self, id: UserId, deadline: Instant) -> Result<Option<Author>, Failure> {
        let profile = self.get(id, deadline).await?;
        Ok(profile.map(|Profile { version, username, display_name, avatar_url, .. }| Author {
            id,
            version,
            username: username.as_str().to_owned(),
            display_name: display_name.as_str().to_owned(),
            avatar_url: avatar_url.map(|url| url.as_str().to_owned()),
            deleted: false,
        }))
    }

    /// Edits a profile; the account after it.
    ///
    /// # Errors
    /// The user's rejection.
    pub async fn edit(&self, id: UserId, changes: Changes, context: Context) -> Asked<Edited> {
        let deadline = context.deadline;
        // For an answer if the edit is committed and nothing can be read any more.
        let before = self.account(id, deadline).await?.ok_or(AskError::Rejected(Rejection::NotFound))?;
        let Changes { display_name, bio, avatar_url, if_version } = changes.clone();
        let edit = Command::EditProfile { display_name, bio, avatar_url, if_version, at: now() };
        let Accepted { shard, seq, .. } = self.ask(id, edit, context).await?;
        let until = in_time_to_answer(deadline);
        let reply = match timeout_at(until, self.account(id, until)).await {
            Ok(Ok(Some(account))) => Edited { account, is_current: true },
            _ => Edited { account: changes.made_to(before), is_current: false },
        };
        Ok(Accepted { reply, shard, seq })
    }

    /// Gives a role or takes it back; without it all sessions end, for their access tokens still name it.
    ///
    /// # Errors
    /// The user's rejection.
    pub async fn set_role(&self, username: &Username, role: Role, on: bool, context: Context) -> Asked<()> {
        let user = self.named(username, context.deadline).await?;
        self.ask(user.id, Command::SetRole { role, on }, context).await.map(done)
    }

    /// A copy of what is stored about a user, for the user.
    ///
    /// # Errors
    /// [`Rejection::NotFound`]; when it cannot be read now.
    pub async fn personal_data(&self, id: UserId, deadline: Instant) -> Result<PersonalData, AskError<Rejection>> {
        let seen =
            self.view(id, deadline, |user| (user.account(), user.sessions.values().map(SessionData::from).collect())).await?;
        let (account, sessions) = seen.ok_or(AskError::Rejected(Rejection::NotFound))?;
        let following = self.edges(Edges::Following, id, None, PersonalData::FOLLOWING_MAX).await?;
        Ok(PersonalData { account, sessions, following })
    }

    /// Every account there is or was, page by page in the order of ids: for whoever rebuilds a projection.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn export(&self, after: Option<UserId>, limit: usize, deadline: Instant) -> Result<Vec<UserRecord>, Failure> {
        let after = after.map_or(Uuid::nil(), |after| after.0);
        let count = i64::try_from(limit).expect("a page is short");
        let rows = {
            let client = self.runtime.database().get().await?;
            client
                .query(
                    "SELECT id, deleted, version, created_at FROM app_user WHERE id > $1 ORDER BY id LIMIT $2",
                    &[&after, &count],
                )
                .await?
        };
        let living: Vec<UserId> = rows.iter().filter(|row| !row.get::<_, bool>(1)).map(|row| UserId(row.get(0))).collect();
        let mut profiles = self.profiles(living, true, deadline).await?.into_iter().peekable();
        let mut records = Vec::with_capacity(rows.len());
        for row in &rows {
            records.push(match profiles.next_if(|profile| profile.id.0 == row.get::<_, Uuid>(0)) {
                Some(profile) => UserRecord::of(&profile),
                // Deleted, if only just now: then newer than what SQL saw.
                None => {
                    let version: i64 = row.get(2);
                    let version = if row.get(1) { version } else { version + 1 };
                    UserRecord::gone(UserId(row.get(0)), version, row.get(3))
                }
            });
        }
        Ok(records)
    }

    /// Which of these accounts exist: in one question, without loading them.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn which_exist(&self, ids: &[UserId]) -> Result<HashSet<UserId>, Failure> {
        let wanted: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let client = self.runtime.database().get().await?;
        let rows = client.query("SELECT id FROM app_user WHERE id = ANY($1) AND NOT deleted", &[&wanted]).await?;
        Ok(rows.iter().map(|row| UserId(row.get(0))).collect())
    }

    /// Makes the account of an imported author: without a password, so nobody can log in to it until it gets one. Doing so
    /// again changes nothing. Returns whether the account is there: one that was deleted stays so.
    ///
    /// # Errors
    /// [`Rejection::UsernameTaken`] when another has the name.
    pub async fn ensure_author(
        &self,
        id: UserId,
        username: Username,
        at: Timestamp,
        context: Context,
    ) -> Result<bool, AskError<Rejection>> {
        let deadline = context.deadline;
        if self.get(id, deadline).await?.is_some() {
            return Ok(true);
        }
        let register = Command::Register { id, username, email: None, password_hash: None, session: None, at };
        match self.ask(id, register, context).await {
            Ok(_) => Ok(true),
            // Deleted, or made by another import since we looked.
            Err(AskError::Rejected(Rejection::Exists)) => Ok(self.get(id, deadline).await?.is_some()),
            Err(error) => Err(error),
        }
    }

    async fn ask(&self, id: UserId, command: Command, context: Context) -> AskResult<UserService> {
        self.runtime.ask(id.0, command, context).await
    }

    async fn view<T>(&self, id: UserId, deadline: Instant, view: impl Fn(&User) -> T) -> Result<Option<T>, Failure> {
        match view_here(&self.runtime, id, deadline, &view).await {
            Err(Failure::Moved(_)) => {}
            seen => return seen,
        }
        match self.runtime.query(self.runtime.shard_of(id.0), &Query::User(id), deadline).await? {
            Answer::User(user) => Ok(user.as_deref().map(view)),
            Answer::Profiles(_) => Err(strange_answer()),
        }
    }

    /// A user whom SQL has shown: memory must have what SQL saw committed (rule 9).
    async fn seen(&self, id: UserId, deadline: Instant) -> Result<Option<Profile>, Failure> {
        self.runtime.settled(self.runtime.shard_of(id.0)).await;
        self.get(id, deadline).await
    }

    async fn named(&self, username: &Username, deadline: Instant) -> Result<Profile, AskError<Rejection>> {
        self.by_username(username, deadline).await?.ok_or(AskError::Rejected(Rejection::NotFound))
    }
}

/// What is to be seen of a user who is served here, from memory.
async fn view_here<T>(
    runtime: &Runtime<UserService>,
    id: UserId,
    deadline: Instant,
    view: impl Fn(&User) -> T,
) -> Result<Option<T>, Failure> {
    match runtime.read_loaded(id.0, |user| user.map(&view)) {
        Some(seen) => seen,
        None => runtime.read(id.0, deadline, |user| user.map(&view)).await,
    }
}

/// A write without an answer of its own.
fn done<T>(accepted: Accepted<T>) -> Accepted<()> {
    Accepted { reply: (), shard: accepted.shard, seq: accepted.seq }
}

/// For a second ask within one request: the retry key belongs to the first.
fn keyless(context: &Context) -> Context {
    Context { idempotency: None, ..context.clone() }
}

impl From<HasherError> for Failure {
    fn from(error: HasherError) -> Self {
        match error {
            HasherError::Overloaded => Self::Overloaded(error.to_string()),
            HasherError::Malformed(_) | HasherError::Failed => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<NoRandomness> for Failure {
    fn from(error: NoRandomness) -> Self {
        Self::Unavailable(error.to_string())
    }
}
