//! How users come in, stay in and go.

use tokio::time::{Instant, timeout_at};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    Account, Asked, Command, Rejection, Reply, SessionData, User, Users, done, keyless,
    names::{Email, Username},
    password::{HasherError, Password, PasswordHash},
    session::Session,
    token::RefreshToken,
};
use crate::{
    entity::{AskError, Failure},
    ids::{SessionId, UserId, mint},
    runtime::{Accepted, Context, in_time_to_answer, now},
    service::stored,
};

/// Who registers.
#[derive(Debug)]
pub struct NewUser {
    /// The handle.
    pub username: Username,
    /// Where to reach them.
    pub email: Email,
    /// How they will prove themselves.
    pub password: Password,
    /// What their client calls itself.
    pub user_agent: Option<String>,
}

/// Somebody who has just proved who they are.
#[derive(Debug, Clone)]
pub struct LoggedIn {
    /// Who.
    pub account: Account,
    /// The session that their access tokens name.
    pub session: SessionId,
    /// What keeps the session alive; for the client, and for nobody else.
    pub refresh_token: RefreshToken,
}

impl Users {
    /// Makes an account, and logs it in.
    ///
    /// With an idempotency key the id falls into the shard of the key (rule 15). Tokens are kept nowhere, so a retry is a
    /// login: it is given a session of its own, if its password still is the right one; the session of the first answer
    /// stays, and expires when nobody uses it.
    ///
    /// # Errors
    /// [`Rejection::UsernameTaken`], [`Rejection::EmailTaken`]; [`Rejection::WrongCredentials`] for a retry after the
    /// password was changed or the account deleted.
    pub async fn register(&self, new: NewUser, context: Context) -> Asked<LoggedIn> {
        let NewUser { username, email, password, user_agent } = new;
        let deadline = context.deadline;
        let password_hash = within(deadline, self.hasher.hash(password.again())).await?;
        let at = now();
        let shard = context.idempotency.as_ref().map(|key| key.shard(self.runtime.shards()));
        let minted = UserId(mint(at, self.runtime.shards(), shard));
        let (session, refresh_token) = self.start(minted, user_agent.as_deref())?;
        // The answer tells what the command says: once it is committed, no read may fail any more.
        let account = Account::registered(minted, &username, &email, at);
        let register = Command::Register {
            id: minted,
            username,
            email: Some(email),
            password_hash: Some(password_hash),
            session: Some(session.clone()),
            at,
        };
        let again = keyless(&context);
        let accepted = self.ask(minted, register, context).await?;
        match accepted.reply {
            // A kept answer: the account is there, and its first session's token is stored nowhere.
            Reply::Registered { user, .. } if user != minted => {
                // The key may be as old as it is kept: what counts is the password of today.
                let hash = self.view(user, deadline, |user| user.password_hash.clone()).await?.flatten();
                self.enter(Some(user), hash, password, user_agent.as_deref(), again).await
            }
            _ => {
                let Accepted { shard, seq, .. } = accepted;
                Ok(Accepted { reply: LoggedIn { account, session: SessionId(session.id), refresh_token }, shard, seq })
            }
        }
    }

    /// Logs in by username or e-mail address.
    ///
    /// Takes the same way and the same time whether or not there is such a user: one look into an index, one hash.
    ///
    /// # Errors
    /// [`Rejection::WrongCredentials`], whatever is wrong with them.
    pub async fn login(&self, login: &str, password: Password, user_agent: Option<&str>, context: Context) -> Asked<LoggedIn> {
        let (user, hash) = self.credentials(login).await?.unzip();
        self.enter(user, hash.flatten(), password, user_agent, keyless(&context)).await
    }

    /// Spends a refresh token for a new one.
    ///
    /// A retry with the same idempotency key is no reuse: it is given another token of the same generation, as long as
    /// nobody has used the one that was answered first. That one is spent then.
    ///
    /// # Errors
    /// [`Rejection::InvalidToken`], [`Rejection::NoSuchSession`], [`Rejection::SessionExpired`]; [`Rejection::TokenReused`]
    /// when it was spent before, which ends the session.
    pub async fn refresh(&self, token: &str, context: Context) -> Asked<LoggedIn> {
        let rejected = |rejection| Err(AskError::Rejected(rejection));
        let Ok(presented) = self.tokens.parse(token) else {
            return rejected(Rejection::InvalidToken);
        };
        let (user, session) = (UserId(presented.user), SessionId(presented.session));
        let Some(generation) = presented.generation.checked_add(1) else {
            return rejected(Rejection::SessionExpired);
        };
        let (refresh_token, next) = self.tokens.mint(user.0, session.0, generation).map_err(Failure::from)?;
        // Read first: a read that fails after the token was spent would say that nothing happened, and its retry be a reuse.
        let account = self.account(user, context.deadline).await?.ok_or(AskError::Rejected(Rejection::NoSuchSession))?;
        let again = keyless(&context);
        let at = now();
        let asked = self.ask(user, Command::Rotate { presented, next, at, lifetime: self.lifetime }, context).await;
        let mut accepted = asked.map_err(|error| match error {
            AskError::Rejected(Rejection::NotFound) => AskError::Rejected(Rejection::NoSuchSession),
            error => error,
        })?;
        match accepted.reply {
            Reply::Rotated { hash, .. } if hash == next => {}
            // A kept answer: its token was the first request's, and is stored nowhere.
            Reply::Rotated { generation, .. } => {
                accepted = self.ask(user, Command::Reissue { session, generation, next, at }, again).await?;
            }
            _ => return rejected(Rejection::TokenReused),
        }
        let Accepted { shard, seq, .. } = accepted;
        Ok(Accepted { reply: LoggedIn { account, session, refresh_token }, shard, seq })
    }

    /// The session of a refresh token; none: it is not one of ours. It may be spent, and the session may have ended.
    pub fn session_of(&self, token: &str) -> Option<SessionId> {
        self.tokens.parse(token).ok().map(|presented| SessionId(presented.session))
    }

    /// Ends a session; one that has ended already is fine.
    ///
    /// # Errors
    /// When it could not be asked.
    pub async fn logout(&self, user: UserId, session: SessionId, context: Context) -> Result<(), AskError<Rejection>> {
        match self.close_session(user, session, context).await {
            Ok(_) | Err(AskError::Rejected(Rejection::NoSuchSession | Rejection::NotFound)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends all sessions.
    ///
    /// # Errors
    /// The user's rejection.
    pub async fn logout_all(&self, user: UserId, context: Context) -> Asked<()> {
        self.ask(user, Command::CloseSessions { except: None }, context).await.map(done)
    }

    /// Ends one of the user's sessions.
    ///
    /// # Errors
    /// [`Rejection::NoSuchSession`].
    pub async fn close_session(&self, user: UserId, session: SessionId, context: Context) -> Asked<()> {
        self.ask(user, Command::CloseSession { id: session }, context).await.map(done)
    }

    /// Where a user is logged in, the last used first.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn sessions(&self, user: UserId, deadline: Instant) -> Result<Vec<SessionData>, Failure> {
        let at = now();
        let live = |user: &User| {
            let live = user.sessions.values().filter(|session| !session.is_expired(at));
            live.map(SessionData::from).collect::<Vec<_>>()
        };
        let mut sessions = self.view(user, deadline, live).await?.unwrap_or_default();
        sessions.sort_by_key(|session| std::cmp::Reverse(session.last_used_at));
        Ok(sessions)
    }

    /// Whether a session still counts: for a gateway that wants to know better than its token says.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn has_session(&self, user: UserId, session: SessionId, deadline: Instant) -> Result<bool, Failure> {
        let at = now();
        let live = |user: &User| user.sessions.get(&session).is_some_and(|session| !session.is_expired(at));
        Ok(self.view(user, deadline, live).await?.unwrap_or(false))
    }

    /// Sets a new password and ends the other sessions.
    ///
    /// A retry with the same idempotency key gets the first answer, although its current password no longer is.
    ///
    /// # Errors
    /// [`Rejection::WrongCredentials`] if the current one is wrong.
    pub async fn change_password(
        &self,
        user: UserId,
        current: Password,
        new: Password,
        keep: Option<SessionId>,
        context: Context,
    ) -> Asked<()> {
        let proof = self.prove(user, current, context.deadline).await;
        let new = within(context.deadline, self.hasher.hash(new)).await?;
        let current = match proof {
            Ok(proof) => proof,
            // A hash that nobody has proves nothing; but the answer that is kept under the key needs no proof.
            Err(AskError::Rejected(Rejection::WrongCredentials)) if context.idempotency.is_some() => new.clone(),
            Err(error) => return Err(error),
        };
        self.ask(user, Command::ChangePassword { current, new, keep }, context).await.map(done)
    }

    /// Sets a password without knowing the old one, and ends all sessions: an administrator's doing.
    ///
    /// # Errors
    /// The user's rejection.
    pub async fn set_password(&self, username: &Username, new: Password, context: Context) -> Asked<()> {
        let user = self.named(username, context.deadline).await?;
        let new = within(context.deadline, self.hasher.hash(new)).await?;
        self.ask(user.id, Command::SetPassword { new }, context).await.map(done)
    }

    /// Deletes an account and everything personal about it. Its edges follow by and by: see [`Users::sweep_departed`].
    ///
    /// # Errors
    /// [`Rejection::WrongCredentials`] if the password is wrong.
    pub async fn delete(&self, user: UserId, password: Password, context: Context) -> Asked<()> {
        self.delete_version(user, password, None, context).await
    }

    /// The same as long as the profile is at a version, if one is given.
    ///
    /// # Errors
    /// [`Rejection::WrongCredentials`], [`Rejection::VersionMismatch`]. [`Failure::Unavailable`] with a version, if the user is
    /// served by a node of 0.1.0.
    pub async fn delete_version(&self, user: UserId, password: Password, if_version: Option<i64>, context: Context) -> Asked<()> {
        let (proof, at) = (Some(self.prove(user, password, context.deadline).await?), now());
        if let Some(profile) = self.get(user, context.deadline).await? {
            self.remember_name(user, &profile.username).await?;
        }
        let delete = match if_version {
            None => Command::Delete { proof, at },
            Some(version) => Command::DeleteVersion { proof, at, version },
        };
        self.ask(user, delete, context).await.map(done)
    }

    /// The hash that a password has proved itself against.
    async fn prove(&self, user: UserId, password: Password, deadline: Instant) -> Result<PasswordHash, AskError<Rejection>> {
        let hash = self.view(user, deadline, |user| user.password_hash.clone()).await?;
        let hash = hash.ok_or(AskError::Rejected(Rejection::NotFound))?;
        let right = within(deadline, self.hasher.verify(password, hash.clone())).await?;
        hash.filter(|_| right).ok_or(AskError::Rejected(Rejection::WrongCredentials))
    }

    /// Who could log in under a name, and the hash of their password.
    async fn credentials(&self, login: &str) -> Result<Option<(UserId, Option<PasswordHash>)>, Failure> {
        // An address has an @ and a name has none, so no name can be another's address.
        let (email, username) = (Email::parse(login).ok(), Username::parse(login).ok());
        let (sql, name): (_, &(dyn ToSql + Sync)) = match (&email, &username) {
            (Some(email), _) => ("SELECT id, password_hash FROM app_user WHERE email = $1", email),
            // Not a name either: the null finds nobody, in the time that it takes.
            (None, username) => ("SELECT id, password_hash FROM app_user WHERE username = $1", username),
        };
        let client = self.runtime.database().get().await?;
        let Some(row) = client.query_opt(sql, &[name]).await? else {
            return Ok(None);
        };
        let hash = row.get::<_, Option<&str>>(1).map(stored).transpose()?;
        Ok(Some((UserId(row.get(0)), hash)))
    }

    fn start(&self, user: UserId, user_agent: Option<&str>) -> Result<(Session, RefreshToken), Failure> {
        let id = Uuid::now_v7();
        let (token, hash) = self.tokens.mint(user.0, id, 0)?;
        Ok((Session::start(id, hash, user_agent, now(), self.lifetime), token))
    }

    /// Opens a session for whoever knows the password, after one hash whatever comes of it.
    async fn enter(
        &self,
        user: Option<UserId>,
        hash: Option<PasswordHash>,
        password: Password,
        user_agent: Option<&str>,
        context: Context,
    ) -> Asked<LoggedIn> {
        let deadline = context.deadline;
        let outdated = hash.as_ref().filter(|hash| hash.needs_rehash()).map(|hash| (hash.clone(), password.again()));
        let right = within(deadline, self.hasher.verify(password, hash.clone())).await?;
        let (Some(user), Some(hash), true) = (user, hash, right) else {
            return Err(AskError::Rejected(Rejection::WrongCredentials));
        };
        // Read first: a read that fails after the session was opened would say that nothing happened, and its retry open another.
        // SQL has shown the user, so memory must have what SQL saw (rule 9). None: deleted since.
        let mut account = self.account(user, deadline).await?;
        if account.is_none() {
            self.profiles(vec![user], true, deadline).await?;
            account = self.account(user, deadline).await?;
        }
        let account = account.ok_or(AskError::Rejected(Rejection::WrongCredentials))?;
        let (session, refresh_token) = self.start(user, user_agent)?;
        let reply = LoggedIn { account, session: SessionId(session.id), refresh_token };
        let open = Command::OpenSession { session, proof: hash };
        let Accepted { shard, seq, .. } = self.ask(user, open, context.clone()).await.map_err(|error| match error {
            // Deleted since the hash was read.
            AskError::Rejected(Rejection::NotFound) => AskError::Rejected(Rejection::WrongCredentials),
            error => error,
        })?;
        if let Some((current, password)) = outdated {
            self.rehash(user, current, password, Context { deadline: in_time_to_answer(deadline), ..context }).await;
        }
        Ok(Accepted { reply, shard, seq })
    }

    /// Never the end of a login, and never its delay for long: the next one tries again.
    async fn rehash(&self, user: UserId, current: PasswordHash, password: Password, context: Context) {
        let rehashed = async {
            let new = within(context.deadline, self.hasher.hash(password)).await?;
            self.ask(user, Command::Rehash { current, new }, context).await
        };
        if let Err(error) = rehashed.await {
            tracing::debug!(user.id = %user, %error, "the password keeps its old parameters for now");
        }
    }
}

/// Waits for the hashing threads no longer than the caller does.
async fn within<T>(deadline: Instant, hashed: impl Future<Output = Result<T, HasherError>>) -> Result<T, Failure> {
    match timeout_at(deadline, hashed).await {
        Ok(hashed) => Ok(hashed?),
        Err(_) => Err(Failure::Expired),
    }
}
