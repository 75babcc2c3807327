//! How users are stored, published and told about other services' events.

use std::collections::HashMap;

use futures_util::future::{join_all, try_join};
use jiff::Timestamp;
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    entity::{Command, Counts, Event, Facts, Profile, Rejection, Role, User},
    names::{AvatarUrl, Bio, DisplayName, Email, Username},
    password::PasswordHash,
    session::Session,
    token::TokenHash,
};
use crate::{
    entity::Failure,
    event::Topic,
    ids::{SessionId, ShardId, UserId},
    records::{FollowRecord, SessionRecord, UserRecord, json},
    runtime::{Connection, NewRecord, Pooled, Runtime, Unit},
    service::{Foreign, LoadError, Poison, Service, stored},
    table::{table, tables, text_params},
};

/// Names that the node remembers; about 200 bytes each.
const NAMES_MAX: u64 = 50_000;

/// The users service: rules in [`User`], read models of this node here.
pub struct UserService {
    /// Who has a name. A hint: whoever uses it looks whether that user still has it.
    pub(crate) names: Cache<Username, UserId>,
}

impl Default for UserService {
    fn default() -> Self {
        Self { names: Cache::new(NAMES_MAX) }
    }
}

/// What a user answers a command with. It is kept with an idempotency key, so it holds no personal data and no token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// The account exists.
    Registered {
        /// Its id.
        user: UserId,
        /// Its first session.
        session: Option<SessionId>,
    },
    /// A refresh token was spent for the next one.
    Rotated {
        /// The session.
        session: SessionId,
        /// The generation that it has reached.
        generation: u32,
        /// The token that counts now.
        hash: TokenHash,
    },
    /// A spent refresh token was presented: its session has been ended.
    Reused,
    /// Done, or nothing had to be done.
    Done,
}

text_params!(Username, Email, DisplayName, Bio, AvatarUrl, PasswordHash);

table! {
    /// New users.
    pub(crate) struct UserRows of UserRow {
        id: Uuid => "uuid", username: Username => "text", email: Option<Email> => "text",
        password_hash: Option<PasswordHash> => "text", display_name: DisplayName => "text", bio: Bio => "text",
        avatar_url: Option<AvatarUrl> => "text", roles: String => "text", version: i64 => "int8", created_at: Timestamp => "timestamptz",
    }
    "INSERT INTO app_user (id, username, email, password_hash, display_name, bio, avatar_url, roles, version, created_at, updated_at) \
     SELECT id, username, email, password_hash, display_name, bio, avatar_url, string_to_array(roles, ','), version, created_at, \
     created_at FROM {rows}"
}

table! {
    /// Edits of profiles.
    pub(crate) struct EditRows of EditRow {
        id: Uuid => "uuid", display_name: DisplayName => "text", bio: Bio => "text", avatar_url: Option<AvatarUrl> => "text",
        version: i64 => "int8", updated_at: Timestamp => "timestamptz",
    }
    "UPDATE app_user u SET display_name = r.display_name, bio = r.bio, avatar_url = r.avatar_url, version = r.version, \
     updated_at = r.updated_at FROM {rows} WHERE u.id = r.id"
}

table! {
    /// Passwords.
    pub(crate) struct PasswordRows of PasswordRow { id: Uuid => "uuid", password_hash: PasswordHash => "text" }
    "UPDATE app_user u SET password_hash = r.password_hash FROM {rows} WHERE u.id = r.id"
}

table! {
    /// Roles.
    pub(crate) struct RoleRows of RoleRow { id: Uuid => "uuid", roles: String => "text" }
    "UPDATE app_user u SET roles = string_to_array(r.roles, ',') FROM {rows} WHERE u.id = r.id"
}

table! {
    /// Users who go: nothing about them stays.
    pub(crate) struct GoneRows of GoneRow { id: Uuid => "uuid", version: i64 => "int8", at: Timestamp => "timestamptz" }
    "UPDATE app_user u SET deleted = true, username = NULL, email = NULL, password_hash = NULL, display_name = '', bio = '', \
     avatar_url = NULL, roles = '{}', version = r.version, updated_at = r.at FROM {rows} WHERE u.id = r.id"
}

table! {
    /// Deleted users whose edges are to be taken away.
    pub(crate) struct DepartedRows of DepartedRow { user_id: Uuid => "uuid" }
    "INSERT INTO departed (user_id) SELECT user_id FROM {rows} ON CONFLICT DO NOTHING"
}

table! {
    /// Users whom others begin to follow, by the log. One who is gone by now was followed too late for the sweep of their
    /// edges: that begins again.
    pub(crate) struct FollowedRows of FollowedRow { followee: Uuid => "uuid" }
    "INSERT INTO departed (user_id) SELECT DISTINCT u.id FROM {rows} JOIN app_user u ON u.id = r.followee WHERE u.deleted \
     ON CONFLICT DO NOTHING"
}

table! {
    /// Deleted users whose edges are all gone.
    pub(crate) struct SweptRows of SweptRow { user_id: Uuid => "uuid" }
    "DELETE FROM departed d USING {rows} WHERE d.user_id = r.user_id"
}

table! {
    /// Sessions as they are now.
    pub(crate) struct SessionRows of SessionRow {
        user_id: Uuid => "uuid", id: Uuid => "uuid", refresh_hash: Vec<u8> => "bytea", generation: i64 => "int8",
        created_at: Timestamp => "timestamptz", last_used_at: Timestamp => "timestamptz", expires_at: Timestamp => "timestamptz",
        user_agent: Option<String> => "text",
    }
    "INSERT INTO session AS s (user_id, id, refresh_hash, generation, created_at, last_used_at, expires_at, user_agent) \
     SELECT user_id, id, refresh_hash, generation, created_at, last_used_at, expires_at, user_agent FROM {rows} ORDER BY user_id, id \
     ON CONFLICT (user_id, id) DO UPDATE SET refresh_hash = excluded.refresh_hash, generation = excluded.generation, \
     last_used_at = excluded.last_used_at, expires_at = excluded.expires_at"
}

table! {
    /// Sessions that ended.
    pub(crate) struct ClosedRows of ClosedRow { user_id: Uuid => "uuid", id: Uuid => "uuid" }
    "DELETE FROM session s USING {rows} WHERE s.user_id = r.user_id AND s.id = r.id"
}

table! {
    /// Whom users follow from now on.
    pub(crate) struct FollowRows of FollowRow { follower: Uuid => "uuid", followee: Uuid => "uuid", at: Timestamp => "timestamptz" }
    "INSERT INTO follow (follower, followee, at) SELECT follower, followee, at FROM {rows}"
}

table! {
    /// Whom users no longer follow.
    pub(crate) struct UnfollowRows of UnfollowRow { follower: Uuid => "uuid", followee: Uuid => "uuid" }
    "DELETE FROM follow f USING {rows} WHERE f.follower = r.follower AND f.followee = r.followee"
}

// A statement may not both add and delete a row, and a slice may hold both of one pair: each of the next two is given
// every record, and takes the pairs whose last one is its own. A record that comes late, out of the dead letters, may say what
// is no longer so: it gives way to the follower's own row. What that row knows from later records changes nothing but that it
// is known before they come.
table! {
    /// Who begins to follow a user, by the log.
    pub(crate) struct FollowerRows of FollowerRow {
        nr: i64 => "int8", followee: Uuid => "uuid", follower: Uuid => "uuid", at: Timestamp => "timestamptz", active: bool => "bool",
    }
    "INSERT INTO follower (followee, follower, at) SELECT followee, follower, at FROM (SELECT DISTINCT ON (followee, follower) \
     followee, follower, at, active FROM {rows} ORDER BY followee, follower, nr DESC) last WHERE active AND EXISTS (SELECT FROM follow f \
     WHERE f.follower = last.follower AND f.followee = last.followee) ON CONFLICT DO NOTHING"
}

table! {
    /// Who ends to follow a user, by the log.
    pub(crate) struct UnfollowerRows of UnfollowerRow {
        nr: i64 => "int8", followee: Uuid => "uuid", follower: Uuid => "uuid", active: bool => "bool",
    }
    "DELETE FROM follower f USING (SELECT DISTINCT ON (followee, follower) followee, follower, active FROM {rows} \
     ORDER BY followee, follower, nr DESC) last WHERE NOT last.active AND f.followee = last.followee AND f.follower = last.follower \
     AND NOT EXISTS (SELECT FROM follow o WHERE o.follower = last.follower AND o.followee = last.followee)"
}

table! {
    /// Changes of counts; summed, for a batch may hold several of one user.
    pub(crate) struct CountRows of CountRow {
        user_id: Uuid => "uuid", posts: i64 => "int8", comments: i64 => "int8", followers: i64 => "int8", following: i64 => "int8",
    }
    "INSERT INTO user_counter AS c (user_id, post_count, comment_count, follower_count, following_count) \
     SELECT user_id, sum(posts), sum(comments), sum(followers), sum(following) FROM {rows} GROUP BY user_id ORDER BY user_id \
     ON CONFLICT (user_id) DO UPDATE SET post_count = c.post_count + excluded.post_count, \
     comment_count = c.comment_count + excluded.comment_count, follower_count = c.follower_count + excluded.follower_count, \
     following_count = c.following_count + excluded.following_count"
}

tables! {
    /// What a batch of the users service writes.
    pub struct Writes {
        users: UserRows, edits: EditRows, passwords: PasswordRows, roles: RoleRows, gone: GoneRows, departed: DepartedRows,
        followed: FollowedRows, swept: SweptRows, sessions: SessionRows, closed: ClosedRows, follows: FollowRows, unfollows: UnfollowRows,
        followers: FollowerRows, unfollowers: UnfollowerRows, counts: CountRows,
    }
}

/// What the owners of users are asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Query {
    /// A user as a whole: for a node that serves others' requests and shows of it what its own users would be shown.
    User(UserId),
    /// What everybody may see of these users.
    Profiles {
        /// Whom.
        users: Vec<UserId>,
        /// SQL has shown them to who asks, so memory must have what SQL saw committed (rule 9).
        seen: bool,
    },
}

/// What they answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The user, if there is one.
    User(Option<Box<User>>),
    /// Those of the users that there are.
    Profiles(Vec<Profile>),
}

impl Service for UserService {
    const NAME: &'static str = "users";
    type Entity = User;
    type Writes = Writes;
    type Reply = Reply;
    /// Whether the edge to this user exists.
    type Need = UserId;
    type Note = ();
    type Query = Query;
    type Answer = Answer;

    async fn load(&self, client: &Connection, ids: &[Uuid]) -> Result<HashMap<Uuid, User>, LoadError> {
        // Two statements, sent together: a join would repeat the user for every session.
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&ids];
        let (users, sessions) = try_join(
            client.query(
                "SELECT u.id, u.username, u.email, u.password_hash, u.display_name, u.bio, u.avatar_url, u.roles, u.version,
                        u.created_at, u.updated_at, COALESCE(c.post_count, 0), COALESCE(c.comment_count, 0),
                        COALESCE(c.follower_count, 0), COALESCE(c.following_count, 0)
                 FROM app_user u LEFT JOIN user_counter c ON c.user_id = u.id WHERE u.id = ANY($1) AND NOT u.deleted",
                &params,
            ),
            client.query(
                "SELECT user_id, id, refresh_hash, generation, created_at, last_used_at, expires_at, user_agent
                 FROM session WHERE user_id = ANY($1)",
                &params,
            ),
        )
        .await?;
        let mut found: HashMap<Uuid, User> =
            users.iter().map(|row| user(row).map(|user| (user.profile.id.0, user))).collect::<Result<_, _>>()?;
        for row in &sessions {
            if let Some(user) = found.get_mut(&row.get::<_, Uuid>(0)) {
                let session = session(row)?;
                user.sessions.insert(SessionId(session.id), session);
            }
        }
        Ok(found)
    }

    fn need(&self, _: Uuid, state: Option<&User>, command: &Command) -> Option<UserId> {
        match command {
            // Who follows nobody does not follow this one either.
            Command::Follow { followee, .. } if state.is_some_and(|user| user.profile.following_count > 0) => Some(*followee),
            _ => None,
        }
    }

    async fn look_up(&self, client: Pooled, id: Uuid, followee: UserId) -> Result<Facts, LoadError> {
        let row = client.query_opt("SELECT 1 FROM follow WHERE follower = $1 AND followee = $2", &[&id, &followee.0]).await?;
        Ok(Facts { following: row.is_some() })
    }

    fn creates(command: &Command) -> bool {
        matches!(command, Command::Register { .. })
    }

    fn write(&self, _: ShardId, id: Uuid, _: Option<&User>, events: &[Event], unit: &mut Unit<Self>) {
        for event in events {
            write(id, event, unit);
        }
    }

    fn reply(id: Uuid, _: Option<&User>, events: &[Event]) -> Reply {
        for event in events {
            match event {
                Event::Registered(_) => {
                    let session = events.iter().find_map(|event| match event {
                        Event::SessionOpened(session) => Some(SessionId(session.id)),
                        _ => None,
                    });
                    return Reply::Registered { user: UserId(id), session };
                }
                Event::SessionRotated(Session { id, generation, refresh_hash, .. }) => {
                    return Reply::Rotated { session: SessionId(*id), generation: *generation, hash: *refresh_hash };
                }
                Event::TokenReused(_) => return Reply::Reused,
                _ => {}
            }
        }
        Reply::Done
    }

    fn refused(constraint: &str) -> Option<Rejection> {
        match constraint {
            "app_user_username_key" => Some(Rejection::UsernameTaken),
            "app_user_email_key" => Some(Rejection::EmailTaken),
            "app_user_pkey" => Some(Rejection::Exists),
            _ => None,
        }
    }

    fn weight(state: Option<&User>) -> usize {
        let Some(User { profile, sessions, .. }) = state else {
            return 0;
        };
        let agents: usize = sessions.values().map(|session| session.user_agent.as_ref().map_or(0, String::len)).sum();
        let texts = profile.bio.as_str().len() + profile.avatar_url.as_ref().map_or(0, |url| url.as_str().len());
        // 512: the short texts, their counters, and the password's hash.
        size_of::<User>() + texts + 512 + sessions.len() * (size_of::<Session>() + 64) + agents
    }

    fn committed(&self, _: ShardId, _: Uuid, _: Option<&User>, events: &[Event]) {
        for event in events {
            match event {
                Event::Registered(user) => self.names.insert(user.profile.username.clone(), user.profile.id),
                Event::Deleted(profile) => self.names.invalidate(&profile.username),
                _ => {}
            }
        }
    }

    fn concerns(&self, foreign: &Foreign<'_>) -> Result<Vec<Uuid>, Poison> {
        Ok(match (foreign.source.topic, &*foreign.record.kind) {
            (Topic::Posts, "post.created" | "post.deleted") | (Topic::Comments, "comment.created" | "comment.deleted") => {
                vec![foreign.parse::<Written>()?.author.0]
            }
            (Topic::Users, "user.followed" | "user.unfollowed") => {
                vec![foreign.parse::<FollowRecord>()?.followee.0]
            }
            _ => vec![],
        })
    }

    async fn answer(runtime: &Runtime<Self>, query: &Query, deadline: Instant) -> Result<Answer, Failure> {
        match query {
            Query::User(user) => runtime.read(user.0, deadline, |user| user.cloned().map(Box::new)).await.map(Answer::User),
            Query::Profiles { users, seen } => {
                for user in users.iter().filter(|_| *seen) {
                    runtime.settled(runtime.shard_of(user.0)).await;
                }
                // What is not in memory loads together: the loader takes what waits.
                let profile = |user: &User| user.profile.clone();
                let profiles = join_all(users.iter().map(|id| super::view_here(runtime, *id, deadline, profile))).await;
                let found = profiles.into_iter().filter_map(Result::transpose);
                Ok(Answer::Profiles(found.collect::<Result<_, _>>()?))
            }
        }
    }

    fn project(&self, foreign: &Foreign<'_>, id: Uuid, unit: &mut Unit<Self>) -> Result<(), Poison> {
        let counts = match &*foreign.record.kind {
            "post.created" => Counts { posts: 1, ..Counts::default() },
            "post.deleted" => Counts { posts: -1, ..Counts::default() },
            "comment.created" => Counts { comments: 1, ..Counts::default() },
            "comment.deleted" => Counts { comments: -1, ..Counts::default() },
            kind @ ("user.followed" | "user.unfollowed") => {
                let FollowRecord { follower, followee, at } = foreign.parse()?;
                let active = kind == "user.followed";
                let (nr, follower, followee) = (foreign.record.seq, follower.0, followee.0);
                unit.writes.followers.push(FollowerRow { nr, followee, follower, at, active });
                unit.writes.unfollowers.push(UnfollowerRow { nr, followee, follower, active });
                if active {
                    unit.writes.followed.push(FollowedRow { followee });
                }
                Counts { followers: if active { 1 } else { -1 }, ..Counts::default() }
            }
            _ => return Ok(()),
        };
        let Counts { posts, comments, followers } = counts;
        unit.writes.counts.push(CountRow { user_id: id, posts, comments, followers, following: 0 });
        unit.effects.push((id, Event::Counted(counts)));
        Ok(())
    }
}

/// What the counts need of a post's or a comment's record.
#[derive(Deserialize)]
struct Written {
    author: UserId,
}

fn write(id: Uuid, event: &Event, unit: &mut Unit<UserService>) {
    let writes = &mut unit.writes;
    let (kind, payload) = match event {
        Event::Registered(user) => {
            // A name may be another's: the unit stands by itself.
            unit.alone = true;
            writes.users.push(user_row(user));
            ("user.created", json(&UserRecord::of(&user.profile)))
        }
        Event::ProfileEdited(after) => {
            writes.edits.push(EditRow {
                id,
                display_name: after.display_name.clone(),
                bio: after.bio.clone(),
                avatar_url: after.avatar_url.clone(),
                version: after.version,
                updated_at: after.updated_at,
            });
            ("user.updated", json(&UserRecord::of(after)))
        }
        Event::SessionOpened(session) | Event::SessionRotated(session) => {
            return writes.sessions.push(session_row(id, session));
        }
        Event::TokenReused(_) => return,
        Event::SessionClosed(session) => {
            writes.closed.push(ClosedRow { user_id: id, id: session.0 });
            ("session.closed", json(&SessionRecord { id: *session, user: UserId(id) }))
        }
        Event::PasswordSet(hash) => {
            return writes.passwords.push(PasswordRow { id, password_hash: hash.clone() });
        }
        Event::RolesSet(roles) => {
            return writes.roles.push(RoleRow { id, roles: joined(roles) });
        }
        Event::Followed { followee, at } => {
            writes.follows.push(FollowRow { follower: id, followee: followee.0, at: *at });
            writes.counts.push(CountRow { user_id: id, posts: 0, comments: 0, followers: 0, following: 1 });
            ("user.followed", json(&FollowRecord { follower: UserId(id), followee: *followee, at: *at }))
        }
        Event::Unfollowed { followee, at } => {
            writes.counts.push(CountRow { user_id: id, posts: 0, comments: 0, followers: 0, following: -1 });
            return unfollow(unit, UserId(id), *followee, *at);
        }
        Event::Deleted(profile) => {
            let Profile { id: user, version, created_at, updated_at, .. } = *profile;
            writes.gone.push(GoneRow { id, version: version + 1, at: updated_at });
            writes.departed.push(DepartedRow { user_id: id });
            ("user.deleted", json(&UserRecord::gone(user, version + 1, created_at)))
        }
        // Comes from other logs, never from a command.
        Event::Counted(_) => return,
    };
    unit.records.push(NewRecord { key: id, kind, payload, traceparent: None });
}

/// Takes an edge away and tells the followee's shard.
pub(super) fn unfollow(unit: &mut Unit<UserService>, follower: UserId, followee: UserId, at: Timestamp) {
    unit.writes.unfollows.push(UnfollowRow { follower: follower.0, followee: followee.0 });
    let payload = json(&FollowRecord { follower, followee, at });
    unit.records.push(NewRecord { key: follower.0, kind: "user.unfollowed", payload, traceparent: None });
}

fn user_row(user: &User) -> UserRow {
    let Profile { id, username, display_name, bio, avatar_url, version, created_at, .. } = user.profile.clone();
    UserRow {
        id: id.0,
        username,
        email: user.email.clone(),
        password_hash: user.password_hash.clone(),
        display_name,
        bio,
        avatar_url,
        roles: joined(&user.roles),
        version,
        created_at,
    }
}

fn session_row(user_id: Uuid, session: &Session) -> SessionRow {
    SessionRow {
        user_id,
        id: session.id,
        refresh_hash: session.refresh_hash.as_bytes().to_vec(),
        generation: session.generation.into(),
        created_at: session.created_at,
        last_used_at: session.last_used_at,
        expires_at: session.expires_at,
        user_agent: session.user_agent.clone(),
    }
}

fn joined<'a>(roles: impl IntoIterator<Item = &'a Role>) -> String {
    let names: Vec<&str> = roles.into_iter().map(|role| role.as_str()).collect();
    names.join(",")
}

fn user(row: &Row) -> Result<User, LoadError> {
    let roles = row.get::<_, Vec<&str>>(7).into_iter().map(|name| name.parse());
    Ok(User {
        profile: Profile {
            id: UserId(row.get(0)),
            username: stored(row.get::<_, &str>(1))?,
            display_name: stored(row.get::<_, &str>(4))?,
            bio: stored(row.get::<_, &str>(5))?,
            avatar_url: row.get::<_, Option<&str>>(6).map(stored).transpose()?,
            version: row.get(8),
            created_at: row.get(9),
            updated_at: row.get(10),
            post_count: row.get(11),
            comment_count: row.get(12),
            follower_count: row.get(13),
            following_count: row.get(14),
        },
        email: row.get::<_, Option<&str>>(2).map(stored).transpose()?,
        password_hash: row.get::<_, Option<&str>>(3).map(stored).transpose()?,
        roles: roles.collect::<Result<_, _>>().map_err(|unknown: super::UnknownRole| LoadError::Corrupt(unknown.to_string()))?,
        sessions: Default::default(),
    })
}

fn session(row: &Row) -> Result<Session, LoadError> {
    let corrupt = |what: &str| LoadError::Corrupt(format!("a session's {what}"));
    Ok(Session {
        id: row.get(1),
        refresh_hash: TokenHash::from_bytes(row.get(2)).ok_or_else(|| corrupt("hash"))?,
        generation: u32::try_from(row.get::<_, i64>(3)).map_err(|_| corrupt("generation"))?,
        created_at: row.get(4),
        last_used_at: row.get(5),
        expires_at: row.get(6),
        user_agent: row.get(7),
    })
}
