use jiff::SignedDuration;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::{secret::ClusterSecret, users::token::RefreshTokens};

const ADA: UserId = UserId(Uuid::from_u128(1));
const BOB: UserId = UserId(Uuid::from_u128(2));
const LIFETIME: Lifetime = Lifetime { idle: SignedDuration::from_secs(1_000), total: SignedDuration::from_secs(10_000) };

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn hash(of: &str) -> PasswordHash {
    serde_json::from_value(format!("$argon2id${of}").into()).unwrap()
}

/// A genuine token of a session of Ada's.
fn token(session: u128, generation: u32) -> Presented {
    let tokens = RefreshTokens::new(&ClusterSecret::from_bytes(&[7; 32]).unwrap().into());
    let (token, _) = tokens.mint(ADA.0, Uuid::from_u128(session), generation).unwrap();
    tokens.parse(token.expose()).unwrap()
}

fn sid(session: u128) -> SessionId {
    SessionId(Uuid::from_u128(session))
}

fn session(id: u128, second: i64) -> (Session, Presented) {
    let token = token(id, 0);
    (Session::start(token.session, token.hash, None, at(second), LIFETIME), token)
}

fn register() -> Command {
    Command::Register {
        id: ADA,
        username: Username::parse("ada").unwrap(),
        email: Some(Email::parse("ada@example.org").unwrap()),
        password_hash: Some(hash("old")),
        session: None,
        at: at(0),
    }
}

fn open(id: u128, second: i64) -> Command {
    Command::OpenSession { session: session(id, second).0, proof: hash("old") }
}

fn edit(name: &str, if_version: Option<i64>) -> Command {
    let display_name = Some(DisplayName::parse(name).unwrap());
    Command::EditProfile { display_name, bio: None, avatar_url: None, if_version, at: at(9) }
}

fn rotate(presented: &Presented, next: &Presented, second: i64) -> Command {
    Command::Rotate { presented: presented.clone(), next: next.hash, at: at(second), lifetime: LIFETIME }
}

/// Decides and applies; the events.
fn run(state: &mut Option<User>, command: &Command, facts: &Facts) -> Result<Vec<Event>, Rejection> {
    let events = User::decide(state.as_ref(), command, facts)?;
    for event in &events {
        User::evolve(state, event);
    }
    Ok(events)
}

/// Ada, after these commands.
fn given(commands: &[Command]) -> Option<User> {
    let mut state = None;
    for command in std::iter::once(&register()).chain(commands) {
        run(&mut state, command, &Facts::default()).unwrap();
    }
    state
}

fn decide(state: &Option<User>, command: &Command) -> Result<Vec<Event>, Rejection> {
    User::decide(state.as_ref(), command, &Facts::default())
}

fn after(mut state: Option<User>, command: &Command) -> User {
    run(&mut state, command, &Facts::default()).unwrap();
    state.unwrap()
}

#[test]
fn whoever_registers_is_logged_in() {
    let Command::Register { id, username, email, password_hash, at, .. } = register() else { unreachable!() };
    let first = session(1, 0).0;
    let ada = after(None, &Command::Register { id, username, email, password_hash, session: Some(first.clone()), at });
    assert_eq!(ada.sessions.into_values().collect::<Vec<_>>(), [first]);
}

#[test]
fn an_account_is_made_once() {
    assert_eq!(decide(&given(&[]), &register()), Err(Rejection::Exists));
}

#[test]
fn an_edit_changes_what_is_given_and_nothing_else() {
    let ada = after(given(&[]), &edit("Ada", None));
    let expected = Profile {
        display_name: DisplayName::parse("Ada").unwrap(),
        version: 2,
        updated_at: at(9),
        ..given(&[]).unwrap().profile
    };
    assert_eq!(ada.profile, expected);
}

#[test]
fn an_edit_that_changes_nothing_is_no_event() {
    assert_eq!(decide(&given(&[edit("Ada", None)]), &edit("Ada", None)), Ok(vec![]));
}

#[test]
fn an_edit_of_what_has_changed_meanwhile_is_refused() {
    assert_eq!(decide(&given(&[edit("Ada", None)]), &edit("Lady Ada", Some(1))), Err(Rejection::VersionMismatch { version: 2 }));
}

#[test]
fn a_picture_can_be_taken_away() {
    let picture = |url: Option<&str>| Command::EditProfile {
        display_name: None,
        bio: None,
        avatar_url: Some(url.map(|url| AvatarUrl::parse(url).unwrap())),
        if_version: None,
        at: at(9),
    };
    let with = given(&[picture(Some("https://x.example/a.png"))]);
    assert!(with.as_ref().unwrap().profile.avatar_url.is_some());
    assert_eq!(after(with, &picture(None)).profile.avatar_url, None);
}

#[test]
fn a_login_with_a_password_that_has_changed_meanwhile_is_refused() {
    let changed = given(&[Command::SetPassword { new: hash("new") }]);
    assert_eq!(decide(&changed, &open(1, 0)), Err(Rejection::WrongCredentials));
}

#[test]
fn the_session_that_was_unused_for_longest_makes_room_for_a_new_one() {
    let logins: Vec<Command> = (1..=SESSIONS_MAX as u128).map(|n| open(n, n as i64)).collect();
    let mut full = given(&logins);
    // The oldest login is used again, so the second oldest is the idlest.
    let current = session_token(&full, 1);
    run(&mut full, &rotate(&current, &token(1, 1), 100), &Facts::default()).unwrap();
    let ada = after(full, &open(1_000, 101));
    assert_eq!(ada.sessions.len(), SESSIONS_MAX);
    assert!(ada.sessions.contains_key(&sid(1)) && !ada.sessions.contains_key(&sid(2)));
}

/// The token that counts, as its owner would present it.
fn session_token(state: &Option<User>, id: u128) -> Presented {
    let session = &state.as_ref().unwrap().sessions[&sid(id)];
    Presented { user: ADA.0, session: session.id, generation: session.generation, hash: session.refresh_hash }
}

#[test]
fn a_login_clears_away_what_has_expired() {
    let ada = after(given(&[open(1, 0)]), &open(2, 1_000));
    assert_eq!(ada.sessions.into_keys().collect::<Vec<_>>(), [sid(2)]);
}

#[test]
fn a_spent_token_ends_its_session_and_no_other() {
    let ada = given(&[open(1, 0), open(2, 0)]);
    let first = session_token(&ada, 1);
    let rotated = Some(after(ada, &rotate(&first, &token(1, 1), 1)));
    let events = decide(&rotated, &rotate(&first, &token(1, 2), 2));
    assert_eq!(events, Ok(vec![Event::TokenReused(sid(1)), Event::SessionClosed(sid(1))]));
}

#[test]
fn a_token_of_a_session_that_ended_counts_nothing() {
    let mut ada = given(&[open(1, 0)]);
    let presented = session_token(&ada, 1);
    run(&mut ada, &Command::CloseSession { id: sid(1) }, &Facts::default()).unwrap();
    assert_eq!(decide(&ada, &rotate(&presented, &token(1, 1), 1)), Err(Rejection::NoSuchSession));
}

#[test]
fn a_retried_rotation_is_answered_with_another_token_and_ends_nothing() {
    let ada = given(&[open(1, 0)]);
    let first = session_token(&ada, 1);
    let rotated = Some(after(ada, &rotate(&first, &token(1, 1), 1)));
    let again = token(1, 1);
    let retried = after(rotated, &Command::Reissue { session: sid(1), generation: 1, next: again.hash, at: at(2) });
    assert_eq!((retried.sessions[&sid(1)].refresh_hash, retried.sessions[&sid(1)].generation), (again.hash, 1));
}

#[test]
fn a_new_password_ends_the_other_sessions() {
    let change = Command::ChangePassword { current: hash("old"), new: hash("new"), keep: Some(sid(2)) };
    let ada = after(given(&[open(1, 0), open(2, 0), open(3, 0)]), &change);
    assert_eq!((ada.sessions.into_keys().collect(), ada.password_hash), (vec![sid(2)], Some(hash("new"))));
}

#[test]
fn a_password_that_was_changed_meanwhile_proves_nothing() {
    let changed = given(&[Command::SetPassword { new: hash("new") }]);
    let change = Command::ChangePassword { current: hash("old"), new: hash("newer"), keep: None };
    assert_eq!(decide(&changed, &change), Err(Rejection::WrongCredentials));
    assert_eq!(decide(&changed, &Command::Delete { proof: Some(hash("old")), at: at(1) }), Err(Rejection::WrongCredentials));
}

#[test]
fn a_late_rehash_does_not_bring_the_old_password_back() {
    let changed = given(&[Command::SetPassword { new: hash("new") }]);
    assert_eq!(decide(&changed, &Command::Rehash { current: hash("old"), new: hash("old, stronger") }), Ok(vec![]));
}

#[test]
fn a_role_that_is_taken_back_ends_the_sessions_whose_tokens_name_it() {
    let role = |on| Command::SetRole { role: Role::Admin, on };
    let admin = given(&[role(true), open(1, 0)]);
    assert!(admin.as_ref().unwrap().roles.contains(&Role::Admin));
    let ada = after(admin, &role(false));
    assert!(ada.roles.is_empty() && ada.sessions.is_empty());
}

#[test]
fn a_role_is_given_once() {
    let role = |on| Command::SetRole { role: Role::Moderator, on };
    assert_eq!(decide(&given(&[role(true)]), &role(true)), Ok(vec![]));
    assert_eq!(decide(&given(&[open(1, 0)]), &role(false)), Ok(vec![]));
}

#[test]
fn nobody_follows_themselves() {
    let follow = Command::Follow { followee: ADA, on: true, at: at(1) };
    assert_eq!(decide(&given(&[]), &follow), Err(Rejection::CannotFollowSelf));
}

#[test]
fn a_second_follow_counts_nothing() {
    let follow = Command::Follow { followee: BOB, on: true, at: at(1) };
    let ada = given(std::slice::from_ref(&follow));
    assert_eq!(ada.as_ref().unwrap().profile.following_count, 1);
    assert_eq!(User::decide(ada.as_ref(), &follow, &Facts { following: true }), Ok(vec![]));
}

#[test]
fn an_edit_keeps_the_counts_of_other_logs() {
    let mut ada = given(&[]);
    let edited = decide(&ada, &edit("Ada", None)).unwrap();
    User::evolve(&mut ada, &Event::Counted(Counts { posts: 3, comments: 2, followers: 1 }));
    for event in &edited {
        User::evolve(&mut ada, event);
    }
    let Profile { post_count, comment_count, follower_count, version, .. } = ada.unwrap().profile;
    assert_eq!((post_count, comment_count, follower_count, version), (3, 2, 1, 2));
}

#[test]
fn a_deleted_user_takes_no_commands_and_leaves_no_session() {
    let mut ada = given(&[open(1, 0)]);
    let events = run(&mut ada, &Command::Delete { proof: Some(hash("old")), at: at(1) }, &Facts::default()).unwrap();
    assert_eq!(events[0], Event::SessionClosed(sid(1)));
    assert_eq!(decide(&ada, &edit("Ada", None)), Err(Rejection::NotFound));
}

#[test]
fn an_account_that_was_edited_since_it_was_seen_is_not_deleted() {
    let ada = given(&[edit("Ada", None)]);
    let delete = |version| Command::DeleteVersion { proof: Some(hash("old")), at: at(1), version };
    assert_eq!(decide(&ada, &delete(1)), Err(Rejection::VersionMismatch { version: 2 }));
    assert_eq!(decide(&ada, &delete(2)), decide(&ada, &Command::Delete { proof: Some(hash("old")), at: at(1) }));
}

#[test]
fn a_count_that_arrives_after_the_end_brings_nobody_back() {
    let mut nobody = None;
    User::evolve(&mut nobody, &Event::Counted(Counts { posts: 1, ..Counts::default() }));
    assert_eq!(nobody, None);
}

#[test]
fn a_role_is_read_by_its_name() {
    for role in Role::ALL {
        assert_eq!(role.as_str().parse::<Role>().unwrap(), role);
    }
    assert!("root".parse::<Role>().is_err());
}

/// One step of a random history; sessions and followees are few, so that steps meet.
#[derive(Clone, Debug)]
enum Step {
    Open(u128),
    Rotate(u128, bool),
    Close(u128),
    CloseBut(u128),
    ChangePassword(u128),
    Role(bool),
    Follow(u128, bool),
    Edit(u8),
    Counted(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let session = || 0..60_u128;
    let step = prop_oneof![
        8 => session().prop_map(Step::Open),
        4 => (session(), any::<bool>()).prop_map(|(session, spent)| Step::Rotate(session, spent)),
        1 => session().prop_map(Step::Close),
        1 => session().prop_map(Step::CloseBut),
        1 => session().prop_map(Step::ChangePassword),
        1 => any::<bool>().prop_map(Step::Role),
        3 => (10..14_u128, any::<bool>()).prop_map(|(followee, on)| Step::Follow(followee, on)),
        1 => any::<u8>().prop_map(Step::Edit),
        1 => (0..3_i64).prop_map(Step::Counted),
    ];
    prop::collection::vec(step, 0..150)
}

/// What a history must come to, kept the simple way beside the entity.
#[derive(Debug, Default)]
struct Expected {
    open: BTreeSet<SessionId>,
    follows: BTreeSet<UserId>,
    admin: bool,
    posts: i64,
    passwords: u32,
}

proptest! {
    #[test]
    fn any_history_keeps_sessions_roles_and_counts_right(steps in steps()) {
        let mut ada = given(&[]);
        let mut expected = Expected::default();
        for (second, step) in steps.into_iter().enumerate() {
            let second = second as i64;
            let user = ada.as_ref().unwrap();
            let proof = user.password_hash.clone().unwrap();
            let versions = user.profile.version;
            let mut facts = Facts::default();
            let command = match step {
                Step::Open(id) if user.sessions.contains_key(&sid(id)) => continue,
                Step::Open(id) => Command::OpenSession { session: session(id, second).0, proof },
                Step::Rotate(id, spent) => {
                    let Some(session) = user.sessions.get(&sid(id)) else { continue };
                    let generation = if spent { session.generation.saturating_sub(1) } else { session.generation };
                    let hash = session.refresh_hash;
                    let presented = Presented { user: ADA.0, session: session.id, generation, hash };
                    rotate(&presented, &token(id, generation + 1), second)
                }
                Step::Close(id) => Command::CloseSession { id: sid(id) },
                Step::CloseBut(id) => Command::CloseSessions { except: Some(sid(id)) },
                Step::ChangePassword(id) => {
                    expected.passwords += 1;
                    Command::ChangePassword { current: proof, new: hash(&expected.passwords.to_string()), keep: Some(sid(id)) }
                }
                Step::Role(on) => Command::SetRole { role: Role::Admin, on },
                Step::Follow(followee, on) => {
                    let followee = UserId(Uuid::from_u128(followee));
                    facts.following = expected.follows.contains(&followee);
                    if on { expected.follows.insert(followee) } else { expected.follows.remove(&followee) };
                    Command::Follow { followee, on, at: at(second) }
                }
                Step::Edit(name) => edit(&format!("Ada {}", name % 2), None),
                Step::Counted(posts) => {
                    expected.posts += posts;
                    User::evolve(&mut ada, &Event::Counted(Counts { posts, ..Counts::default() }));
                    continue;
                }
            };
            let events = match run(&mut ada, &command, &facts) {
                Ok(events) => events,
                Err(Rejection::NoSuchSession) => continue,
                Err(other) => return Err(TestCaseError::fail(format!("{command:?} was refused: {other}"))),
            };
            for event in &events {
                match event {
                    Event::SessionOpened(session) => prop_assert!(expected.open.insert(SessionId(session.id))),
                    Event::SessionClosed(id) => prop_assert!(expected.open.remove(id), "ended twice"),
                    Event::SessionRotated(session) => prop_assert!(expected.open.contains(&SessionId(session.id))),
                    Event::RolesSet(roles) => expected.admin = roles.contains(&Role::Admin),
                    _ => {}
                }
            }
            let user = ada.as_ref().unwrap();
            let edited = events.iter().any(|event| matches!(event, Event::ProfileEdited(_)));
            prop_assert_eq!(user.profile.version, versions + i64::from(edited));
            prop_assert!(user.sessions.len() <= SESSIONS_MAX);
            prop_assert!(user.sessions.keys().eq(expected.open.iter()));
            prop_assert!(user.sessions.iter().all(|(id, session)| id.0 == session.id));
            prop_assert_eq!(user.roles.contains(&Role::Admin), expected.admin);
            prop_assert_eq!(user.profile.following_count, expected.follows.len() as i64);
            prop_assert_eq!(user.profile.post_count, expected.posts);
        }
    }

    /// Deciding changes nothing, and asks nothing but what it is given: the same question has the same answer.
    #[test]
    fn the_same_question_has_the_same_answer(ids in prop::collection::vec(0..9_u128, 0..30)) {
        let mut ada = given(&[]);
        for id in ids {
            let is_open = ada.as_ref().unwrap().sessions.contains_key(&sid(id));
            let command = if is_open { Command::CloseSession { id: sid(id) } } else { open(id, 1) };
            let before = ada.clone();
            let decided = decide(&ada, &command);
            prop_assert_eq!(&decided, &decide(&ada, &command));
            prop_assert_eq!(&ada, &before);
            run(&mut ada, &command, &Facts::default()).unwrap();
        }
    }
}
