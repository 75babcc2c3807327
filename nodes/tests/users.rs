//! The users service on a real Postgres: accounts, sessions, edges, and what is left when they go.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rookery::{
    bridge::{Bridge, RunningBridge},
    event_log::EmbeddedLog,
    migrate::Database,
    ownership::LeaseSettings,
    testing::{self, LEASE, TestPostgres, TestService},
};
use rookery_actors::{
    entity::AskError,
    event::{Record, Source, Topic},
    ids::{SessionId, ShardId, UserId},
    records::{SessionRecord, UserRecord},
    runtime::{Accepted, BootTime, Context, IdempotencyKey, Settings, Slice, SlicePart},
    secret::{ClusterSecret, KeyRing},
    users::{
        Asked, Changes, LoggedIn, NewUser, Rejection, Role, UserService, Users,
        erased::NameHasher,
        keys::{KeyError, Overlap, SigningKeys},
        names::{Bio, Email, Username},
        password::{Hasher, HasherConfig, Password},
        session::Lifetime,
        token::RefreshTokens,
    },
};
use tokio::time::Instant;
use tokio_postgres::{Client, Config};
use uuid::Uuid;

const PASSWORD: &str = "correct horse battery";

const HOUR: Duration = Duration::from_secs(3600);

fn soon() -> Context {
    Context::within(Duration::from_secs(20))
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn keyed(key: &str) -> Context {
    Context { idempotency: Some(IdempotencyKey::new(key, [1; 32])), ..soon() }
}

fn secret() -> KeyRing {
    ClusterSecret::from_bytes(&[7; 32]).unwrap().into()
}

fn password(text: &str) -> Password {
    Password::parse(text).unwrap()
}

fn named(name: &str) -> Username {
    Username::parse(name).unwrap()
}

/// A users service with nothing around it.
struct World {
    config: Config,
    service: TestService<UserService>,
    users: Users,
}

impl World {
    async fn new() -> Self {
        Self::on(TestPostgres::shared().fresh_database(Database::Users).await).await
    }

    /// One whose lease is renewed by nobody while a test lasts.
    async fn without_renewals() -> Self {
        let lease = LeaseSettings { ttl: HOUR, renew_every: HOUR };
        Self::with_lease(TestPostgres::shared().fresh_database(Database::Users).await, lease).await
    }

    async fn on(config: Config) -> Self {
        Self::with_lease(config, LEASE).await
    }

    async fn with_lease(config: Config, lease: LeaseSettings) -> Self {
        let settings = Settings::default();
        let service = TestService::start_with(UserService::default(), config.clone(), "n1", settings, lease).await;
        let hasher = Hasher::start(HasherConfig::default()).unwrap();
        let (tokens, names) = (RefreshTokens::new(&secret()), NameHasher::new("the cluster"));
        let users = Users::new(service.runtime.clone(), hasher, tokens, names, Lifetime::default());
        Self { config, service, users }
    }

    /// The same database, in a service that remembers nothing.
    async fn restarted(self) -> Self {
        let config = self.config.clone();
        self.service.stop().await;
        Self::on(config).await
    }

    async fn sql(&self) -> Client {
        let (client, connection) = self.config.connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    async fn try_sign_up(&self, name: &str, email: &str, context: Context) -> Asked<LoggedIn> {
        let new = NewUser {
            username: named(name),
            email: Email::parse(email).unwrap(),
            password: password(PASSWORD),
            user_agent: Some("test".into()),
        };
        self.users.register(new, context).await
    }

    async fn sign_up(&self, name: &str) -> LoggedIn {
        self.try_sign_up(name, &format!("{name}@example.org"), soon()).await.unwrap().reply
    }

    async fn log_in(&self, login: &str, with: &str) -> Result<LoggedIn, Rejection> {
        rejection(self.users.login(login, password(with), None, soon()).await)
    }

    async fn refresh(&self, token: &LoggedIn, context: Context) -> Result<LoggedIn, Rejection> {
        rejection(self.users.refresh(token.refresh_token.expose(), context).await)
    }

    /// What comes of a write that Postgres keeps waiting until the lease has ended: it is committed then, and nothing can be read
    /// any more before the answer. The lease is back afterwards.
    async fn past_its_lease<T>(&self, write: impl Future<Output = Asked<T>>) -> Result<T, AskError<Rejection>> {
        let (holder, looks) = (self.sql().await, self.sql().await);
        holder.batch_execute("BEGIN; LOCK TABLE outbox IN EXCLUSIVE MODE").await.unwrap();
        let ends = async {
            let waits = "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                         WHERE d.datname = current_database() AND l.relation = 'outbox'::regclass AND NOT l.granted)";
            eventually("the write waits", async || looks.query_one(waits, &[]).await.unwrap().get(0)).await;
            self.service.runtime.lease().revoke();
            holder.batch_execute("COMMIT").await.unwrap();
        };
        let (asked, ()) = tokio::join!(write, ends);
        assert!(!self.service.runtime.lease().is_valid(), "it had ended before the answer");
        self.service.runtime.lease().renewed(BootTime::now(), HOUR);
        asked.map(|Accepted { reply, .. }| reply)
    }

    /// Carries the users' own log to the users.
    fn bridged(&self) -> RunningBridge {
        let runtime = Arc::new(self.service.runtime.clone());
        let log = EmbeddedLog::new(runtime.clone(), runtime.clone(), runtime.clone());
        Bridge::start((*runtime).clone(), Arc::new(log), runtime, Topic::Users, Settings::default().shards)
    }

    async fn follower_count(&self, name: &str) -> i64 {
        self.users.by_username(&named(name), deadline()).await.unwrap().unwrap().follower_count
    }

    /// The log, as far as it is of one type.
    async fn log<T: serde::de::DeserializeOwned>(&self, kind: &str) -> Vec<T> {
        let rows = self.sql().await.query("SELECT payload FROM outbox WHERE type = $1 ORDER BY at, seq", &[&kind]).await.unwrap();
        rows.iter().map(|row| serde_json::from_str(row.get(0)).unwrap()).collect()
    }
}

fn rejection<T>(asked: Asked<T>) -> Result<T, Rejection> {
    match asked {
        Ok(Accepted { reply, .. }) => Ok(reply),
        Err(AskError::Rejected(rejection)) => Err(rejection),
        Err(AskError::Failed(failure)) => panic!("{failure}"),
    }
}

/// As everybody waits, for as long as a request may take.
async fn eventually(what: &str, holds: impl AsyncFnMut() -> bool) {
    testing::eventually(deadline() - Instant::now(), what, holds).await;
}

#[tokio::test]
async fn an_account_is_the_same_after_a_restart() {
    let world = World::new().await;
    let ada = world.sign_up("ada").await.account;
    let bio = Some(Bio::parse("Mathematician.").unwrap());
    let edited = world.users.edit(ada.profile.id, Changes { bio, ..Changes::default() }, soon()).await.unwrap().reply.account;
    world.users.set_role(&named("ada"), Role::Moderator, true, soon()).await.unwrap();
    let before = world.users.account(ada.profile.id, deadline()).await.unwrap().unwrap();
    assert_eq!((before.profile.bio.as_str(), before.profile.version), ("Mathematician.", edited.profile.version));
    let world = world.restarted().await;
    assert_eq!(world.users.account(ada.profile.id, deadline()).await.unwrap(), Some(before));
    world.service.stop().await;
}

#[tokio::test]
async fn a_name_and_an_address_are_given_once_even_to_two_at_once() {
    let world = World::new().await;
    let (one, two) =
        tokio::join!(world.try_sign_up("ada", "a@example.org", soon()), world.try_sign_up("ada", "b@example.org", soon()));
    let mut refused: Vec<_> = [one, two].into_iter().filter_map(|asked| rejection(asked).err()).collect();
    assert_eq!(refused.pop(), Some(Rejection::UsernameTaken));
    assert!(refused.is_empty());
    world.sign_up("bob").await;
    let taken = rejection(world.try_sign_up("eve", "bob@example.org", soon()).await).unwrap_err();
    assert_eq!(taken, Rejection::EmailTaken);
    world.service.stop().await;
}

#[tokio::test]
async fn one_logs_in_by_name_or_address_in_any_case_and_with_the_right_password_only() {
    let world = World::new().await;
    let ada = world.sign_up("ada").await.account.profile.id;
    for login in ["ada", "ADA", "Ada@Example.org"] {
        assert_eq!(world.log_in(login, PASSWORD).await.unwrap().account.profile.id, ada);
    }
    for login in ["ada", "eve", "eve@example.org", "not a name", ""] {
        assert_eq!(world.log_in(login, "another password").await.unwrap_err(), Rejection::WrongCredentials, "{login:?}");
    }
    world.service.stop().await;
}

#[tokio::test]
async fn a_retried_register_makes_one_account_and_a_session_that_works() {
    let world = World::new().await;
    let first = world.try_sign_up("ada", "ada@example.org", keyed("register")).await.unwrap().reply;
    let retried = world.try_sign_up("ada", "ada@example.org", keyed("register")).await.unwrap().reply;
    assert_eq!(first.account, retried.account);
    assert_ne!(first.refresh_token.expose(), retried.refresh_token.expose());
    world.refresh(&retried, soon()).await.unwrap();
    let kept: String = world.sql().await.query_one("SELECT reply FROM idempotency", &[]).await.unwrap().get(0);
    assert!(!kept.contains("example.org"), "{kept}");
    world.service.stop().await;
}

/// A register was answered from its key alone: whoever had once sent it got working tokens for a day.
#[tokio::test]
async fn a_retried_register_is_a_login_with_the_password_of_today() {
    let world = World::new().await;
    let first = world.try_sign_up("ada", "ada@example.org", keyed("register")).await.unwrap().reply;
    let ada = first.account.profile.id;
    world.users.change_password(ada, password(PASSWORD), password("a better password"), None, soon()).await.unwrap();
    world.users.logout_all(ada, soon()).await.unwrap();
    let again = async || rejection(world.try_sign_up("ada", "ada@example.org", keyed("register")).await).map(drop);
    assert_eq!(again().await, Err(Rejection::WrongCredentials));
    assert!(world.users.sessions(ada, deadline()).await.unwrap().is_empty());
    world.users.delete(ada, password("a better password"), soon()).await.unwrap();
    assert_eq!(again().await, Err(Rejection::WrongCredentials));
    world.service.stop().await;
}

#[tokio::test]
async fn a_spent_refresh_token_ends_its_session_for_good() {
    let world = World::new().await;
    let first = world.sign_up("ada").await;
    let second = world.refresh(&first, soon()).await.unwrap();
    assert_eq!(world.refresh(&first, soon()).await.unwrap_err(), Rejection::TokenReused);
    assert_eq!(world.refresh(&second, soon()).await.unwrap_err(), Rejection::NoSuchSession);
    let closed: Vec<SessionRecord> = world.log("session.closed").await;
    assert_eq!(closed.iter().map(|record| record.id).collect::<Vec<SessionId>>(), [first.session]);
    world.service.stop().await;
}

#[tokio::test]
async fn a_retried_refresh_is_no_reuse_however_often_it_is_retried() {
    let world = World::new().await;
    let first = world.sign_up("ada").await;
    for _ in 0..2 {
        world.refresh(&first, keyed("refresh")).await.unwrap();
    }
    let arrived = world.refresh(&first, keyed("refresh")).await.unwrap();
    world.refresh(&arrived, soon()).await.unwrap();
    // The session belongs to whoever used the answer: the old request gets no token of it any more.
    assert_eq!(world.refresh(&first, keyed("refresh")).await.unwrap_err(), Rejection::InvalidToken);
    world.service.stop().await;
}

/// What was broken: the rotation was committed, and the read after it failed as if nothing had happened. So the gateway, and the
/// client, sent the spent token again, and that ended the session.
#[tokio::test]
async fn a_refresh_that_is_committed_is_answered_although_the_lease_has_ended_meanwhile() {
    let world = World::without_renewals().await;
    let first = world.sign_up("ada").await;
    let second = world.past_its_lease(world.users.refresh(first.refresh_token.expose(), soon())).await.unwrap();
    assert_eq!(second.account, first.account);
    world.refresh(&second, soon()).await.unwrap();
    let third = world.sign_up("bob").await;
    let kept = world.past_its_lease(world.users.refresh(third.refresh_token.expose(), keyed("refresh"))).await.unwrap();
    let again = world.past_its_lease(world.users.refresh(third.refresh_token.expose(), keyed("refresh"))).await.unwrap();
    assert_ne!(kept.refresh_token.expose(), again.refresh_token.expose());
    world.refresh(&again, soon()).await.unwrap();
    world.service.stop().await;
}

/// What was broken: the same, and the retry was told that its own name is taken.
#[tokio::test]
async fn an_account_that_is_committed_is_answered_although_the_lease_has_ended_meanwhile() {
    let world = World::without_renewals().await;
    world.sign_up("bob").await;
    let ada = world.past_its_lease(world.try_sign_up("ada", "ada@example.org", soon())).await.unwrap();
    assert_eq!(world.users.account(ada.account.profile.id, deadline()).await.unwrap(), Some(ada.account.clone()));
    world.refresh(&ada, soon()).await.unwrap();
    world.service.stop().await;
}

/// What was broken: the same, and the retry opened another session beside the first.
#[tokio::test]
async fn a_login_that_is_committed_is_answered_although_the_lease_has_ended_meanwhile() {
    let world = World::without_renewals().await;
    let first = world.try_sign_up("ada", "ada@example.org", keyed("register")).await.unwrap().reply;
    let ada = first.account.profile.id;
    let login = world.past_its_lease(world.users.login("ada", password(PASSWORD), None, soon())).await.unwrap();
    let retry = world.past_its_lease(world.try_sign_up("ada", "ada@example.org", keyed("register"))).await.unwrap();
    assert_eq!((&login.account, &retry.account), (&first.account, &first.account));
    let mut open: Vec<_> = world.users.sessions(ada, deadline()).await.unwrap().into_iter().map(|session| session.id).collect();
    let mut known = [first.session, login.session, retry.session];
    open.sort_unstable();
    known.sort_unstable();
    assert_eq!(open, known);
    world.refresh(&login, soon()).await.unwrap();
    world.service.stop().await;
}

/// What was broken: the same, and the retry was told that somebody else had edited it meanwhile.
#[tokio::test]
async fn an_edit_that_is_committed_is_answered_although_the_lease_has_ended_meanwhile() {
    let world = World::without_renewals().await;
    let ada = world.sign_up("ada").await.account.profile.id;
    let edit = |bio: &str, if_version| {
        let changes = Changes { bio: Some(Bio::parse(bio).unwrap()), if_version, ..Changes::default() };
        world.users.edit(ada, changes, soon())
    };
    let edited = world.past_its_lease(edit("Mathematician.", Some(1))).await.unwrap();
    assert_eq!((edited.account.profile.bio.as_str(), edited.is_current), ("Mathematician.", false));
    let now = world.users.account(ada, deadline()).await.unwrap().unwrap();
    assert_eq!((now.profile.bio.as_str(), now.profile.version), ("Mathematician.", 2));
    let edited = edit("Countess.", Some(2)).await.unwrap().reply;
    assert_eq!((edited.account.profile.bio.as_str(), edited.account.profile.version, edited.is_current), ("Countess.", 3, true));
    world.service.stop().await;
}

/// These read nothing after their commit.
#[tokio::test]
async fn whatever_else_is_committed_is_answered_although_the_lease_has_ended_meanwhile() {
    let world = World::without_renewals().await;
    let (users, ada, bob) = (&world.users, world.sign_up("ada").await, world.sign_up("bob").await);
    let id = ada.account.profile.id;
    let better = || password("a better password");
    world.past_its_lease(users.follow(id, &named("bob"), true, soon())).await.unwrap();
    world.past_its_lease(users.follow(id, &named("bob"), false, soon())).await.unwrap();
    world.past_its_lease(users.set_role(&named("ada"), Role::Moderator, true, soon())).await.unwrap();
    let change = users.change_password(id, password(PASSWORD), better(), Some(ada.session), soon());
    world.past_its_lease(change).await.unwrap();
    world.past_its_lease(users.set_password(&named("bob"), better(), soon())).await.unwrap();
    world.past_its_lease(users.close_session(id, ada.session, soon())).await.unwrap();
    world.log_in("ada", "a better password").await.unwrap();
    world.past_its_lease(users.logout_all(id, soon())).await.unwrap();
    world.past_its_lease(users.delete(id, better(), soon())).await.unwrap();
    let deadline = deadline();
    assert_eq!(users.get(id, deadline).await.unwrap(), None);
    assert!(!users.has_session(bob.account.profile.id, bob.session, deadline).await.unwrap(), "a new password ends it");
    world.service.stop().await;
}

#[tokio::test]
async fn a_session_lives_through_a_restart() {
    let world = World::new().await;
    let first = world.sign_up("ada").await;
    let second = world.refresh(&first, soon()).await.unwrap();
    let world = world.restarted().await;
    world.refresh(&second, soon()).await.unwrap();
    world.service.stop().await;
}

/// What was broken: whoever had heard a refresh could repeat it under its key, and held the session beside its owner, whose token
/// was refused without a word.
#[tokio::test]
async fn two_who_hold_answers_to_one_refresh_are_noticed_by_the_first_who_uses_the_replaced_one() {
    let world = World::new().await;
    let first = world.sign_up("ada").await;
    let arrived = world.refresh(&first, keyed("refresh")).await.unwrap();
    let repeated = world.refresh(&first, keyed("refresh")).await.unwrap();
    assert_eq!(world.refresh(&arrived, soon()).await.unwrap_err(), Rejection::TokenReused);
    assert_eq!(world.refresh(&repeated, soon()).await.unwrap_err(), Rejection::NoSuchSession);
    world.service.stop().await;
}

#[tokio::test]
async fn a_new_password_ends_the_other_sessions_and_the_old_password() {
    let world = World::new().await;
    let (here, there) = (world.sign_up("ada").await, world.log_in("ada", PASSWORD).await.unwrap());
    let ada = here.account.profile.id;
    let change =
        |current| world.users.change_password(ada, password(current), password("a better password"), Some(here.session), soon());
    assert_eq!(rejection(change("not my password").await).unwrap_err(), Rejection::WrongCredentials);
    change(PASSWORD).await.unwrap();
    let left: Vec<_> = world.users.sessions(ada, deadline()).await.unwrap().into_iter().map(|session| session.id).collect();
    assert_eq!(left, [here.session]);
    assert_eq!(world.refresh(&there, soon()).await.unwrap_err(), Rejection::NoSuchSession);
    assert!(world.log_in("ada", PASSWORD).await.is_err());
    world.log_in("ada", "a better password").await.unwrap();
    world.service.stop().await;
}

#[tokio::test]
async fn a_retried_change_of_password_gets_the_first_answer_and_no_other_change_does() {
    let world = World::new().await;
    let ada = world.sign_up("ada").await.account.profile.id;
    let change = async |current, new, key| {
        rejection(world.users.change_password(ada, password(current), password(new), None, keyed(key)).await)
    };
    assert_eq!(change("not my password", "a better password", "guess").await, Err(Rejection::WrongCredentials));
    change(PASSWORD, "a better password", "change").await.unwrap();
    let later = world.log_in("ada", "a better password").await.unwrap();
    change(PASSWORD, "a better password", "change").await.unwrap();
    world.refresh(&later, soon()).await.unwrap();
    assert_eq!(change(PASSWORD, "the best password", "again").await, Err(Rejection::WrongCredentials));
    world.log_in("ada", "a better password").await.unwrap();
    world.service.stop().await;
}

#[tokio::test]
async fn a_login_replaces_a_hash_of_older_parameters() {
    // Of the password, with 8 MiB and one pass.
    const OLDER: &str = "$argon2id$v=19$m=8192,t=1,p=1$c29tZXNhbHRzb21lc2FsdA$HhdGxmsoo8pSkWu74EOdjWuyMCjKM2aof0XQCAMO4jU";
    let world = World::new().await;
    world.sign_up("ada").await;
    world.sql().await.execute("UPDATE app_user SET password_hash = $1", &[&OLDER]).await.unwrap();
    let world = world.restarted().await;
    world.log_in("ada", PASSWORD).await.unwrap();
    let now: String = world.sql().await.query_one("SELECT password_hash FROM app_user", &[]).await.unwrap().get(0);
    assert!(now.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{now}");
    world.log_in("ada", PASSWORD).await.unwrap();
    world.service.stop().await;
}

#[tokio::test]
async fn logging_out_twice_is_fine_and_ends_nobody_else() {
    let world = World::new().await;
    let (here, there) = (world.sign_up("ada").await, world.log_in("ada", PASSWORD).await.unwrap());
    let ada = here.account.profile.id;
    for _ in 0..2 {
        world.users.logout(ada, here.session, soon()).await.unwrap();
    }
    assert!(!world.users.has_session(ada, here.session, deadline()).await.unwrap());
    assert!(world.users.has_session(ada, there.session, deadline()).await.unwrap());
    world.service.stop().await;
}

#[tokio::test]
async fn followers_are_counted_once_each_and_listed_newest_first() {
    let world = World::new().await;
    world.sign_up("ada").await;
    let mut fans = Vec::new();
    for n in 0..5 {
        fans.push(world.sign_up(&format!("fan{n}")).await.account.profile.id);
    }
    let bridge = world.bridged();
    for (fan, on) in
        fans.iter().map(|fan| (fan, true)).chain([(&fans[0], true), (&fans[1], false), (&fans[1], true), (&fans[2], false)])
    {
        world.users.follow(*fan, &named("ada"), on, soon()).await.unwrap();
    }
    let ada = world.users.by_username(&named("ada"), deadline()).await.unwrap().unwrap().id;
    // Four of them there are on the way too, before the last ones are applied.
    eventually("ada has four followers, not the third", async || {
        let followers = world.users.followers(ada, None, 5, deadline()).await.unwrap();
        world.follower_count("ada").await == 4 && followers.items.iter().all(|fan| fan.id != fans[2])
    })
    .await;
    let first = world.users.followers(ada, None, 3, deadline()).await.unwrap();
    let rest = world.users.followers(ada, first.next, 3, deadline()).await.unwrap();
    let listed: Vec<UserId> = first.items.iter().chain(&rest.items).map(|fan| fan.id).collect();
    assert_eq!((listed, rest.next), (vec![fans[4], fans[3], fans[1], fans[0]], None));
    let following = world.users.following(fans[0], None, 3, deadline()).await.unwrap();
    assert_eq!(following.items.iter().map(|user| user.id).collect::<Vec<_>>(), [ada]);
    bridge.stop();
    let first = world.users.export_follows(None, 3).await.unwrap();
    let rest = world.users.export_follows(first.last().map(|edge| (edge.follower, edge.followee)), 3).await.unwrap();
    let exported: Vec<UserId> = first.iter().chain(&rest).map(|edge| edge.follower).collect();
    assert_eq!(exported, [fans[0], fans[1], fans[3], fans[4]]);
    let world = world.restarted().await;
    assert_eq!(world.follower_count("ada").await, 4);
    world.service.stop().await;
}

#[tokio::test]
async fn a_deleted_account_leaves_nothing_personal_and_frees_its_name() {
    let world = World::new().await;
    let ada = world.sign_up("ada").await;
    let id = ada.account.profile.id;
    let wrong = world.users.delete(id, password("not my password"), soon()).await;
    assert_eq!(rejection(wrong).unwrap_err(), Rejection::WrongCredentials);
    world.users.delete(id, password(PASSWORD), soon()).await.unwrap();
    assert_eq!(world.users.by_username(&named("ada"), deadline()).await.unwrap(), None);
    assert_eq!(world.users.by_email(&Email::parse("ada@example.org").unwrap(), deadline()).await.unwrap(), None);
    assert_eq!(world.log_in("ada", PASSWORD).await.unwrap_err(), Rejection::WrongCredentials);
    assert_eq!(world.refresh(&ada, soon()).await.unwrap_err(), Rejection::NoSuchSession);
    let row: String = world.sql().await.query_one("SELECT row_to_json(u)::text FROM app_user u", &[]).await.unwrap().get(0);
    assert!(!row.contains("ada") && !row.contains("argon2"), "{row}");
    let told: Vec<UserRecord> = world.log("user.deleted").await;
    assert_eq!(told.iter().map(|user| (user.id, user.version, user.deleted)).collect::<Vec<_>>(), [(id, 2, true)]);
    assert_eq!(world.users.export(None, 10, deadline()).await.unwrap(), told);

    let other = world.sign_up("ada").await.account.profile.id;
    assert_ne!(other, id);
    assert_eq!(world.users.by_username(&named("ada"), deadline()).await.unwrap().unwrap().id, other);
    world.service.stop().await;
}

/// What was broken: the version was compared before the command, and an edit in between was lost.
#[tokio::test]
async fn an_account_goes_only_at_the_version_that_was_seen() {
    let world = World::new().await;
    let ada = world.sign_up("ada").await.account.profile.id;
    let delete =
        async |version, with: &str| rejection(world.users.delete_version(ada, password(with), Some(version), soon()).await);
    assert_eq!(delete(2, PASSWORD).await, Err(Rejection::VersionMismatch { version: 1 }));
    assert_eq!(delete(2, "not my password").await, Err(Rejection::WrongCredentials));
    assert_eq!(delete(1, PASSWORD).await, Ok(()));
    assert_eq!(world.users.get(ada, deadline()).await.unwrap(), None);
    world.service.stop().await;
}

#[tokio::test]
async fn the_edges_of_a_deleted_account_go_and_the_others_counts_with_them() {
    let world = World::new().await;
    let (ada, bob, eve) = (world.sign_up("ada").await, world.sign_up("bob").await, world.sign_up("eve").await);
    let [ada, bob, eve] = [ada, bob, eve].map(|user| user.account.profile.id);
    let bridge = world.bridged();
    for (follower, followee) in [(ada, "bob"), (bob, "ada"), (eve, "ada"), (eve, "bob")] {
        world.users.follow(follower, &named(followee), true, soon()).await.unwrap();
    }
    eventually("bob has two followers", async || world.follower_count("bob").await == 2).await;
    eventually("ada has two followers", async || world.follower_count("ada").await == 2).await;
    world.users.delete(ada, password(PASSWORD), soon()).await.unwrap();
    assert_eq!(world.users.sweep_departed(deadline()).await.unwrap(), 1);
    assert_eq!(world.users.sweep_departed(deadline()).await.unwrap(), 0);
    eventually("bob has one follower", async || world.follower_count("bob").await == 1).await;
    let following = async |user| world.users.get(user, deadline()).await.unwrap().unwrap().following_count;
    assert_eq!((following(bob).await, following(eve).await), (0, 1));
    let client = world.sql().await;
    eventually("nobody follows ada any more", async || {
        let row = client.query_one("SELECT (SELECT count(*) FROM follow) + (SELECT count(*) FROM follower)", &[]).await.unwrap();
        row.get::<_, i64>(0) == 2
    })
    .await;
    bridge.stop();
    world.service.stop().await;
}

/// The log brings the follower only when the account is gone and nothing of it seems to be left.
#[tokio::test]
async fn a_follow_that_the_log_brings_after_the_account_went_is_taken_away_as_well() {
    let world = World::new().await;
    let ada = world.sign_up("ada").await.account.profile.id;
    let bob = world.sign_up("bob").await.account.profile.id;
    world.users.follow(bob, &named("ada"), true, soon()).await.unwrap();
    world.users.delete(ada, password(PASSWORD), soon()).await.unwrap();
    assert_eq!(world.users.sweep_departed(deadline()).await.unwrap(), 1, "as far as is known");
    let bridge = world.bridged();
    let client = world.sql().await;
    let count = async |of: &str| client.query_one(&format!("SELECT count(*) FROM {of}"), &[]).await.unwrap().get::<_, i64>(0);
    eventually("the log brings the follower", async || count("departed").await == 1).await;
    eventually("the edge goes", async || world.users.sweep_departed(deadline()).await.unwrap() == 1).await;
    assert_eq!((count("follow").await, count("follower").await, count("departed").await), (0, 0, 0));
    assert_eq!(world.users.get(bob, deadline()).await.unwrap().unwrap().following_count, 0);
    bridge.stop();
    world.service.stop().await;
}

#[tokio::test]
async fn one_who_leaves_with_thousands_of_edges_holds_up_nobody_and_all_of_them_go() {
    let world = World::new().await;
    let mut leaving = Vec::new();
    for name in ["ada", "bob", "cyd"] {
        leaving.push(world.sign_up(name).await.account.profile.id);
    }
    // In the order in which they are swept: the first has a crowd, the last a single follower.
    leaving.sort_unstable();
    let (crowded, lonely) = (leaving[0], leaving[2]);
    let client = world.sql().await;
    for sql in [
        "INSERT INTO app_user (id, username, display_name, bio, roles, version, created_at, updated_at)
         SELECT md5(n::text)::uuid, 'fan' || n, '', '', '{}', 1, now(), now() FROM generate_series(1, 2000) n",
        "INSERT INTO user_counter SELECT md5(n::text)::uuid, 0, 0, 1, 1 FROM generate_series(1, 2000) n",
    ] {
        client.execute(sql, &[]).await.unwrap();
    }
    for sql in [
        "INSERT INTO user_counter VALUES ($1, 0, 0, 2000, 2000)",
        "INSERT INTO follow SELECT md5(n::text)::uuid, $1, now() FROM generate_series(1, 2000) n",
        "INSERT INTO follower SELECT $1, md5(n::text)::uuid, now() FROM generate_series(1, 2000) n",
        "INSERT INTO follow SELECT $1, md5(n::text)::uuid, now() FROM generate_series(1, 2000) n",
        "INSERT INTO follower SELECT md5(n::text)::uuid, $1, now() FROM generate_series(1, 2000) n",
    ] {
        client.execute(sql, &[&crowded.0]).await.unwrap();
    }
    let bridge = world.bridged();
    let name = world.users.get(lonely, deadline()).await.unwrap().unwrap().username;
    world.users.follow(leaving[1], &name, true, soon()).await.unwrap();
    let edges = "SELECT (SELECT count(*) FROM follow) + (SELECT count(*) FROM follower)";
    eventually("the last edge", async || client.query_one(edges, &[]).await.unwrap().get::<_, i64>(0) == 8002).await;
    for user in [crowded, lonely] {
        world.users.delete(user, password(PASSWORD), soon()).await.unwrap();
    }
    let sweep = tokio::spawn({
        let users = world.users.clone();
        async move { users.sweep_departed(deadline() + Duration::from_secs(60)).await }
    });
    let departed = async || {
        let rows = client.query("SELECT user_id FROM departed", &[]).await.unwrap();
        rows.iter().map(|row| UserId(row.get(0))).collect::<Vec<_>>()
    };
    eventually("the lonely one is done with", async || departed().await == [crowded]).await;
    assert!(!sweep.is_finished(), "while the crowd is still being told");
    assert_eq!(sweep.await.unwrap().unwrap(), 2);
    eventually("no edge is left", async || client.query_one(edges, &[]).await.unwrap().get::<_, i64>(0) == 0).await;
    // Whoever is gone shows no counts.
    let counted = "SELECT count(*) FROM user_counter WHERE user_id <> $1 AND (follower_count <> 0 OR following_count <> 0)";
    eventually("nor counted", async || client.query_one(counted, &[&crowded.0]).await.unwrap().get::<_, i64>(0) == 0).await;
    bridge.stop();
    world.service.stop().await;
}

#[tokio::test]
async fn posts_and_comments_are_counted_for_their_author_exactly_once() {
    let world = World::new().await;
    let ada = world.sign_up("ada").await.account.profile.id;
    let record = |seq, kind: &str| {
        let payload = serde_json::json!({ "author": ada, "of": "no concern to users" }).to_string();
        Arc::new(Record {
            seq,
            epoch: 1,
            key: Uuid::nil(),
            kind: kind.into(),
            payload: Some(payload.into()),
            traceparent: None,
            at: Timestamp::UNIX_EPOCH,
        })
    };
    let part = |topic, kinds: [&str; 3]| SlicePart {
        source: Source { topic, shard: ShardId(3) },
        position: 3,
        records: kinds.iter().zip(1..).map(|(kind, seq)| record(seq, kind)).collect(),
    };
    let parts = vec![
        part(Topic::Posts, ["post.created", "post.created", "post.deleted"]),
        part(Topic::Comments, ["comment.created", "comment.updated", "comment.created"]),
    ];
    for _ in 0..2 {
        world.service.runtime.apply(world.service.runtime.shard_of(ada.0), &Slice { parts: parts.clone() }).await.unwrap();
    }
    let counts = async |world: &World| {
        let ada = world.users.get(ada, deadline()).await.unwrap().unwrap();
        (ada.post_count, ada.comment_count)
    };
    assert_eq!(counts(&world).await, (1, 2));
    let world = world.restarted().await;
    assert_eq!(counts(&world).await, (1, 2));
    world.service.stop().await;
}

#[tokio::test]
async fn an_imported_author_is_made_once_and_cannot_log_in_before_there_is_a_password() {
    let world = World::new().await;
    let id = UserId(Uuid::now_v7());
    let at = Timestamp::from_second(1_400_000_000).unwrap();
    for _ in 0..2 {
        world.users.ensure_author(id, named("old_author"), at, soon()).await.unwrap();
    }
    assert_eq!(world.users.get(id, deadline()).await.unwrap().unwrap().created_at, at);
    assert_eq!(world.log_in("old_author", PASSWORD).await.unwrap_err(), Rejection::WrongCredentials);
    let world = world.restarted().await;
    world.users.ensure_author(id, named("old_author"), at, soon()).await.unwrap();
    world.users.set_password(&named("old_author"), password(PASSWORD), soon()).await.unwrap();
    assert_eq!(world.log_in("old_author", PASSWORD).await.unwrap().account.profile.id, id);
    world.service.stop().await;
}

#[tokio::test]
async fn a_second_import_does_not_bring_a_deleted_author_back() {
    let world = World::new().await;
    let (id, at) = (UserId(Uuid::now_v7()), Timestamp::UNIX_EPOCH);
    let import = || world.users.ensure_author(id, named("old_author"), at, soon());
    assert!(import().await.unwrap());
    world.users.set_password(&named("old_author"), password(PASSWORD), soon()).await.unwrap();
    // An account that stays does not count as deleted.
    world.users.delete(id, password("another battery"), soon()).await.unwrap_err();
    assert!(!world.users.was_erased(&named("old_author")).await.unwrap());
    world.users.delete(id, password(PASSWORD), soon()).await.unwrap();
    assert!(world.users.was_erased(&named("old_author")).await.unwrap());
    assert!(!import().await.unwrap());
    assert_eq!(world.users.get(id, deadline()).await.unwrap(), None);
    assert_eq!(world.users.by_username(&named("old_author"), deadline()).await.unwrap(), None);
    world.service.stop().await;
}

#[tokio::test]
async fn the_copy_of_personal_data_has_everything_but_secrets() {
    let world = World::new().await;
    let ada = world.sign_up("ada").await.account.profile.id;
    let bob = world.sign_up("bob").await.account.profile.id;
    world.users.follow(ada, &named("bob"), true, soon()).await.unwrap();
    let data = world.users.personal_data(ada, deadline()).await.unwrap();
    assert_eq!((data.sessions.len(), data.following[0].user), (1, bob));
    let text = serde_json::to_string(&data).unwrap();
    assert!(text.contains("ada@example.org") && !text.contains("argon2") && !text.contains("hash"), "{text}");
    world.service.stop().await;
}

#[tokio::test]
async fn all_nodes_find_the_same_signing_keys_and_a_rotation_overlaps() {
    let world = World::new().await;
    let database = world.service.runtime.database();
    let secret = secret();
    let load = || SigningKeys::load_or_create(database, &secret);
    let (one, two) = tokio::join!(load(), load());
    let at = Timestamp::now() + SignedDuration::from_secs(1);
    let kid = |keys: &SigningKeys, at| keys.signing(at).unwrap().kid.clone();
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(kid(&one, at), kid(&two, at));
    SigningKeys::rotate(database, &secret, Overlap::default()).await.unwrap();
    let rotated = load().await.unwrap();
    assert_eq!((kid(&rotated, at), rotated.published(at).count()), (kid(&one, at), 2));
    assert_ne!(kid(&rotated, at + SignedDuration::from_mins(11)), kid(&one, at));
    let another = ClusterSecret::from_bytes(&[8; 32]).unwrap().into();
    assert!(matches!(SigningKeys::load_or_create(database, &another).await, Err(KeyError::Sealed { .. })));
    world.service.stop().await;
}
