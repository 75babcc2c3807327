//! Pure. The rules of a user: a profile, the ways to prove to be them, and whom they follow.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    names::{AvatarUrl, Bio, DisplayName, Email, Username},
    password::PasswordHash,
    session::{Lifetime, Rotation, Session},
    token::{Presented, TokenHash},
};
use crate::{
    entity::Entity,
    ids::{SessionId, UserId},
};

/// Sessions that a user keeps; one more ends the one that was unused for longest.
pub const SESSIONS_MAX: usize = 50;

/// A user as they were last committed. It never leaves the service as a whole: see [`Profile`] and [`Account`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct User {
    /// What everybody may see.
    pub profile: Profile,
    /// Where to reach them.
    pub email: Option<Email>,
    /// How they prove themselves; imported authors cannot, until they get a password.
    pub password_hash: Option<PasswordHash>,
    /// What they may do beyond others.
    pub roles: BTreeSet<Role>,
    /// Where they are logged in; at most [`SESSIONS_MAX`].
    pub sessions: BTreeMap<SessionId, Session>,
}

/// What everybody may see of a user. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Their id.
    pub id: UserId,
    /// The handle.
    pub username: Username,
    /// The name to show.
    pub display_name: DisplayName,
    /// A few words.
    pub bio: Bio,
    /// The picture.
    pub avatar_url: Option<AvatarUrl>,
    /// Grows with every edit, from 1.
    pub version: i64,
    /// When the account was made.
    pub created_at: Timestamp,
    /// When the profile last changed.
    pub updated_at: Timestamp,
    /// Posts that are not deleted, as far as the posts' log has been applied.
    pub post_count: i64,
    /// Comments that are not deleted, as far as the comments' log has been applied.
    pub comment_count: i64,
    /// Users who follow them, as far as the users' log has been applied.
    pub follower_count: i64,
    /// Users whom they follow.
    pub following_count: i64,
}

/// What users see of themselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// What everybody sees.
    pub profile: Profile,
    /// Where to reach them.
    pub email: Option<Email>,
    /// What they may do beyond others.
    pub roles: BTreeSet<Role>,
}

impl Account {
    /// The account of one who has just registered.
    pub(super) fn registered(id: UserId, username: &Username, email: &Email, at: Timestamp) -> Self {
        User::new(id, username, Some(email.clone()), None, at).account()
    }
}

/// What a user may do beyond others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// May delete what others wrote.
    Moderator,
    /// May see the cluster and change it.
    Admin,
}

/// What a user can be asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Begins the life of an account.
    Register {
        /// The new id.
        id: UserId,
        /// The handle; unique.
        username: Username,
        /// Where to reach them; unique.
        email: Option<Email>,
        /// None: cannot log in.
        password_hash: Option<PasswordHash>,
        /// Whoever registers is logged in.
        session: Option<Session>,
        /// When.
        at: Timestamp,
    },
    /// Changes what is given.
    EditProfile {
        /// A new name to show.
        display_name: Option<DisplayName>,
        /// New words about themselves.
        bio: Option<Bio>,
        /// A new picture, or none any more.
        avatar_url: Option<Option<AvatarUrl>>,
        /// The version that the editor saw.
        if_version: Option<i64>,
        /// When.
        at: Timestamp,
    },
    /// Logs in: the password was the one of this hash.
    OpenSession {
        /// The new session.
        session: Session,
        /// What was proved; no longer good once the password has changed.
        proof: PasswordHash,
    },
    /// Spends a refresh token for the next one.
    Rotate {
        /// The token.
        presented: Presented,
        /// The hash of the one of the next generation.
        next: TokenHash,
        /// When.
        at: Timestamp,
        /// How long sessions live.
        lifetime: Lifetime,
    },
    /// Repeats the answer to a rotation whose token may never have arrived, with another token.
    Reissue {
        /// The session.
        session: SessionId,
        /// The generation that the rotation reached.
        generation: u32,
        /// The hash of the other token of that generation.
        next: TokenHash,
        /// When.
        at: Timestamp,
    },
    /// Ends a session.
    CloseSession {
        /// Which.
        id: SessionId,
    },
    /// Ends all sessions, or all others.
    CloseSessions {
        /// Stays.
        except: Option<SessionId>,
    },
    /// The user sets a new password; ends the other sessions.
    ChangePassword {
        /// What the old password was proved against.
        current: PasswordHash,
        /// The hash of the new one.
        new: PasswordHash,
        /// The session that asks.
        keep: Option<SessionId>,
    },
    /// Stores the same password under today's parameters.
    Rehash {
        /// As it was.
        current: PasswordHash,
        /// As it should be.
        new: PasswordHash,
    },
    /// An administrator sets a password; ends all sessions.
    SetPassword {
        /// The hash of the new one.
        new: PasswordHash,
    },
    /// Gives a role or takes it back.
    SetRole {
        /// Which.
        role: Role,
        /// Give, or take back.
        on: bool,
    },
    /// Begins or ends to follow somebody.
    Follow {
        /// Whom.
        followee: UserId,
        /// Begin, or end.
        on: bool,
        /// When.
        at: Timestamp,
    },
    /// Ends the account. Its personal data goes with it.
    Delete {
        /// What the password was proved against; none: an administrator's doing.
        proof: Option<PasswordHash>,
        /// When.
        at: Timestamp,
    },
    /// The same, if the profile still is what was seen. A command of its own: nodes of 0.1.0 read no field more.
    DeleteVersion {
        /// What the password was proved against; none: an administrator's doing.
        proof: Option<PasswordHash>,
        /// When.
        at: Timestamp,
        /// The version that was seen.
        version: i64,
    },
}

/// What happened to a user.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The account was made; its first session follows as an event of its own.
    Registered(Box<User>),
    /// The profile as it is now.
    ProfileEdited(Profile),
    /// A login.
    SessionOpened(Session),
    /// The session as it is now.
    SessionRotated(Session),
    /// A spent token was presented again; the session's end follows.
    TokenReused(SessionId),
    /// A session ended: its access tokens are no longer good.
    SessionClosed(SessionId),
    /// There is a new password, or the same one under new parameters.
    PasswordSet(PasswordHash),
    /// The roles as they are now.
    RolesSet(BTreeSet<Role>),
    /// The user began to follow somebody.
    Followed {
        /// Whom.
        followee: UserId,
        /// When.
        at: Timestamp,
    },
    /// The user no longer follows somebody.
    Unfollowed {
        /// Whom.
        followee: UserId,
        /// When.
        at: Timestamp,
    },
    /// The account is gone; the profile as it was.
    Deleted(Profile),
    /// Posts, comments or followers came or went, say the logs.
    Counted(Counts),
}

/// Changes of what is counted by other logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Of the posts.
    pub posts: i64,
    /// Of the comments.
    pub comments: i64,
    /// Of the followers.
    pub followers: i64,
}

/// A business no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    /// There is no such user (any more).
    #[error("no such user")]
    NotFound,
    /// The id is taken, possibly by an account that was deleted.
    #[error("the id is taken")]
    Exists,
    /// Another has the name.
    #[error("the username is taken")]
    UsernameTaken,
    /// Another has the address.
    #[error("the e-mail address is taken")]
    EmailTaken,
    /// It was edited since the caller read it.
    #[error("the profile is at version {version} by now")]
    VersionMismatch {
        /// The version now.
        version: i64,
    },
    /// No such user, no password, or another one: deliberately no word about which.
    #[error("wrong username, e-mail address or password")]
    WrongCredentials,
    /// Not a token that counts.
    #[error("the refresh token is invalid")]
    InvalidToken,
    /// The token had been spent: the session was ended.
    #[error("the refresh token was used before, its session has been ended")]
    TokenReused,
    /// The session was ended, or never was.
    #[error("no such session")]
    NoSuchSession,
    /// The session needs a new login.
    #[error("the session has expired")]
    SessionExpired,
    /// One does not follow oneself.
    #[error("one cannot follow oneself")]
    CannotFollowSelf,
}

/// What `decide` cannot know from memory: whether the user follows the command's followee.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The edge exists.
    pub following: bool,
}

impl Entity for User {
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;
    type Facts = Facts;

    fn decide(state: Option<&Self>, command: &Command, facts: &Facts) -> Result<Vec<Event>, Rejection> {
        let user = match (command, state) {
            (Command::Register { .. }, Some(_)) => return Err(Rejection::Exists),
            (Command::Register { id, username, email, password_hash, session, at }, None) => {
                let registered = User::new(*id, username, email.clone(), password_hash.clone(), *at);
                let opened = session.iter().cloned().map(Event::SessionOpened);
                return Ok(std::iter::once(Event::Registered(Box::new(registered))).chain(opened).collect());
            }
            (_, None) => return Err(Rejection::NotFound),
            (_, Some(user)) => user,
        };
        match command {
            Command::Register { .. } => unreachable!("answered above"),
            Command::EditProfile { display_name, bio, avatar_url, if_version, at } => {
                user.edited(display_name.as_ref(), bio.as_ref(), avatar_url.as_ref(), *if_version, *at)
            }
            Command::OpenSession { session, proof } => {
                user.prove(Some(proof))?;
                Ok(user.opened(session))
            }
            Command::Rotate { presented, next, at, lifetime } => {
                let session = user.session(SessionId(presented.session))?;
                rotated(session, session.rotate(presented, *next, *at, *lifetime))
            }
            Command::Reissue { session, generation, next, at } => {
                let session = user.session(*session)?;
                rotated(session, session.reissue(*generation, *next, *at))
            }
            Command::CloseSession { id } => {
                user.session(*id)?;
                Ok(vec![Event::SessionClosed(*id)])
            }
            Command::CloseSessions { except } => Ok(user.closed_but(*except)),
            Command::ChangePassword { current, new, keep } => {
                user.prove(Some(current))?;
                Ok(std::iter::once(Event::PasswordSet(new.clone())).chain(user.closed_but(*keep)).collect())
            }
            Command::Rehash { current, new } => {
                // Changed meanwhile: then it has today's parameters already.
                let same = user.password_hash.as_ref() == Some(current);
                Ok(if same { vec![Event::PasswordSet(new.clone())] } else { vec![] })
            }
            Command::SetPassword { new } => {
                Ok(std::iter::once(Event::PasswordSet(new.clone())).chain(user.closed_but(None)).collect())
            }
            Command::SetRole { role, on } => {
                let mut roles = user.roles.clone();
                let changed = if *on { roles.insert(*role) } else { roles.remove(role) };
                // Access tokens carry the roles: taken back, they must not live on in one.
                let ended = if changed && !on { user.closed_but(None) } else { vec![] };
                Ok(changed.then_some(Event::RolesSet(roles)).into_iter().chain(ended).collect())
            }
            Command::Follow { followee, .. } if *followee == user.profile.id => Err(Rejection::CannotFollowSelf),
            Command::Follow { followee, on, at } => Ok(match (on, facts.following) {
                (true, false) => vec![Event::Followed { followee: *followee, at: *at }],
                (false, true) => vec![Event::Unfollowed { followee: *followee, at: *at }],
                _ => vec![],
            }),
            Command::Delete { proof, at } => user.deleted(proof.as_ref(), *at),
            Command::DeleteVersion { proof, at, version } => {
                user.is_at(Some(*version))?;
                user.deleted(proof.as_ref(), *at)
            }
        }
    }

    fn evolve(state: &mut Option<Self>, event: &Event) {
        let Some(user) = state else {
            if let Event::Registered(user) = event {
                *state = Some((**user).clone());
            }
            return;
        };
        match event {
            Event::Registered(registered) => *user = (**registered).clone(),
            Event::ProfileEdited(after) => {
                // Counters are told by other logs and may be ahead of the edit; they survive it.
                let Profile { post_count, comment_count, follower_count, following_count, .. } = user.profile;
                user.profile = Profile { post_count, comment_count, follower_count, following_count, ..after.clone() };
            }
            Event::SessionOpened(session) | Event::SessionRotated(session) => {
                user.sessions.insert(SessionId(session.id), session.clone());
            }
            Event::TokenReused(_) => {}
            Event::SessionClosed(id) => drop(user.sessions.remove(id)),
            Event::PasswordSet(hash) => user.password_hash = Some(hash.clone()),
            Event::RolesSet(roles) => user.roles.clone_from(roles),
            Event::Followed { .. } => user.profile.following_count += 1,
            Event::Unfollowed { .. } => user.profile.following_count -= 1,
            Event::Deleted(_) => *state = None,
            Event::Counted(Counts { posts, comments, followers }) => {
                user.profile.post_count += posts;
                user.profile.comment_count += comments;
                user.profile.follower_count += followers;
            }
        }
    }
}

impl User {
    fn new(id: UserId, username: &Username, email: Option<Email>, password_hash: Option<PasswordHash>, at: Timestamp) -> Self {
        let profile = Profile {
            id,
            username: username.clone(),
            display_name: DisplayName::default(),
            bio: Bio::default(),
            avatar_url: None,
            version: 1,
            created_at: at,
            updated_at: at,
            post_count: 0,
            comment_count: 0,
            follower_count: 0,
            following_count: 0,
        };
        Self { profile, email, password_hash, roles: BTreeSet::new(), sessions: BTreeMap::new() }
    }

    /// What they see of themselves.
    pub fn account(&self) -> Account {
        Account { profile: self.profile.clone(), email: self.email.clone(), roles: self.roles.clone() }
    }

    fn session(&self, id: SessionId) -> Result<&Session, Rejection> {
        self.sessions.get(&id).ok_or(Rejection::NoSuchSession)
    }

    /// A password was verified before the command came here: it counts if its hash still is the one.
    fn prove(&self, proof: Option<&PasswordHash>) -> Result<(), Rejection> {
        match proof {
            Some(_) if proof != self.password_hash.as_ref() => Err(Rejection::WrongCredentials),
            _ => Ok(()),
        }
    }

    /// The version that was seen, if one was, still is the one.
    fn is_at(&self, seen: Option<i64>) -> Result<(), Rejection> {
        let version = self.profile.version;
        match seen {
            Some(seen) if seen != version => Err(Rejection::VersionMismatch { version }),
            _ => Ok(()),
        }
    }

    fn edited(
        &self,
        display_name: Option<&DisplayName>,
        bio: Option<&Bio>,
        avatar_url: Option<&Option<AvatarUrl>>,
        if_version: Option<i64>,
        at: Timestamp,
    ) -> Result<Vec<Event>, Rejection> {
        self.is_at(if_version)?;
        let before = &self.profile;
        let after = Profile {
            display_name: display_name.unwrap_or(&before.display_name).clone(),
            bio: bio.unwrap_or(&before.bio).clone(),
            avatar_url: avatar_url.unwrap_or(&before.avatar_url).clone(),
            updated_at: at,
            version: before.version + 1,
            ..before.clone()
        };
        let unchanged =
            (&after.display_name, &after.bio, &after.avatar_url) == (&before.display_name, &before.bio, &before.avatar_url);
        Ok(if unchanged { vec![] } else { vec![Event::ProfileEdited(after)] })
    }

    /// Ends what has expired by the time of the new session, and whatever is unused for longest, to make room for it.
    fn opened(&self, session: &Session) -> Vec<Event> {
        let now = session.created_at;
        let (expired, mut rest): (Vec<&Session>, Vec<&Session>) = self.sessions.values().partition(|kept| kept.is_expired(now));
        rest.sort_by_key(|kept| kept.last_used_at);
        let surplus = (rest.len() + 1).saturating_sub(SESSIONS_MAX);
        let ended = expired.into_iter().chain(rest.into_iter().take(surplus));
        ended.map(|ended| Event::SessionClosed(SessionId(ended.id))).chain([Event::SessionOpened(session.clone())]).collect()
    }

    fn deleted(&self, proof: Option<&PasswordHash>, at: Timestamp) -> Result<Vec<Event>, Rejection> {
        self.prove(proof)?;
        let gone = Profile { updated_at: at, ..self.profile.clone() };
        Ok(self.closed_but(None).into_iter().chain([Event::Deleted(gone)]).collect())
    }

    fn closed_but(&self, except: Option<SessionId>) -> Vec<Event> {
        self.sessions.keys().filter(|id| Some(**id) != except).map(|id| Event::SessionClosed(*id)).collect()
    }
}

fn rotated(session: &Session, rotation: Rotation) -> Result<Vec<Event>, Rejection> {
    match rotation {
        Rotation::Rotated(after) => Ok(vec![Event::SessionRotated(after)]),
        // No rejection: the end of the session must be committed.
        Rotation::Reused => {
            let id = SessionId(session.id);
            Ok(vec![Event::TokenReused(id), Event::SessionClosed(id)])
        }
        Rotation::Expired => Err(Rejection::SessionExpired),
        Rotation::Unknown => Err(Rejection::InvalidToken),
    }
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 2] = [Role::Moderator, Role::Admin];

    /// Its name, in tokens, in rows and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Moderator => "moderator",
            Role::Admin => "admin",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = UnknownRole;

    fn from_str(name: &str) -> Result<Self, UnknownRole> {
        Role::ALL.into_iter().find(|role| role.as_str() == name).ok_or_else(|| UnknownRole(name.to_owned()))
    }
}

/// There is no role of this name.
#[derive(Debug, thiserror::Error)]
#[error("no such role: {0:?} (there are moderator and admin)")]
pub struct UnknownRole(String);

#[cfg(test)]
#[path = "entity_tests.rs"]
mod tests;
