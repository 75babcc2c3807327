//! Pure. How long a session lives and what a presented refresh token does to it.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::token::{Presented, TokenHash};

/// A place where a user is logged in.
///
/// Its size does not depend on how often it was refreshed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The `sid` of its access tokens.
    pub id: Uuid,
    /// The one refresh token that counts.
    pub refresh_hash: TokenHash,
    /// How often it was refreshed; every genuine token of an earlier generation is spent.
    pub generation: u32,
    /// The login.
    pub created_at: Timestamp,
    /// The last refresh, or the login.
    pub last_used_at: Timestamp,
    /// From here on it needs a new login.
    pub expires_at: Timestamp,
    /// What the client called itself at the login, for its owner to recognise.
    pub user_agent: Option<String>,
}

/// How long sessions live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifetime {
    /// Without being refreshed.
    pub idle: SignedDuration,
    /// At most, from the login on.
    pub total: SignedDuration,
}

/// What comes of a presented token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rotation {
    /// It counted and is spent now; this is the session from here on.
    Rotated(Session),
    /// It had been spent or replaced before: its owner or a thief holds a copy, so the whole session must go.
    Reused,
    /// The session had ended.
    Expired,
    /// It is not of this session, or was never handed out. No reason to revoke anything.
    Unknown,
}

impl Session {
    /// Starts a session at a login, with the hash of its token of generation 0.
    pub fn start(id: Uuid, refresh_hash: TokenHash, user_agent: Option<&str>, now: Timestamp, lifetime: Lifetime) -> Self {
        Self {
            id,
            refresh_hash,
            generation: 0,
            created_at: now,
            last_used_at: now,
            expires_at: lifetime.end(now, now),
            user_agent: user_agent.map(readable).filter(|name| !name.is_empty()),
        }
    }

    /// Decides what a genuine token does; `next` is the hash of the token of the generation after it.
    pub fn rotate(&self, presented: &Presented, next: TokenHash, now: Timestamp, lifetime: Lifetime) -> Rotation {
        if presented.session != self.id {
            return Rotation::Unknown;
        }
        if self.is_expired(now) {
            return Rotation::Expired;
        }
        if presented.generation < self.generation || self.is_replaced(presented) {
            return Rotation::Reused;
        }
        // A later generation, or another token of the login, was made for what never was committed.
        if presented.generation != self.generation || presented.hash != self.refresh_hash {
            return Rotation::Unknown;
        }
        let Some(generation) = self.generation.checked_add(1) else {
            return Rotation::Expired;
        };
        Rotation::Rotated(Self {
            refresh_hash: next,
            generation,
            last_used_at: now.max(self.last_used_at),
            expires_at: lifetime.end(self.created_at, now),
            ..self.clone()
        })
    }

    /// Whether it is a token that [`Session::reissue`] has replaced. A token is handed out when its commit is known, so another
    /// one of this generation than the current was handed out before it. The token of a login has none before it.
    fn is_replaced(&self, presented: &Presented) -> bool {
        presented.generation == self.generation && self.generation > 0 && presented.hash != self.refresh_hash
    }

    /// Replaces the token that a rotation reached, because its answer may never have arrived.
    ///
    /// Only while nobody has used that token: later on the session belongs to whoever did. Nothing is revoked then,
    /// for a request that was repeated late is no theft. But if the answer did arrive, two now hold tokens of the session, and
    /// one of them may be a thief who repeated the request: the replaced token counts as spent.
    pub fn reissue(&self, generation: u32, next: TokenHash, now: Timestamp) -> Rotation {
        if self.is_expired(now) {
            return Rotation::Expired;
        }
        if generation == 0 || generation != self.generation {
            return Rotation::Unknown;
        }
        Rotation::Rotated(Self { refresh_hash: next, last_used_at: now.max(self.last_used_at), ..self.clone() })
    }

    /// Whether it needs a new login.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now >= self.expires_at
    }
}

impl Lifetime {
    fn end(self, created_at: Timestamp, now: Timestamp) -> Timestamp {
        let after = |from: Timestamp, span| from.saturating_add(span).unwrap_or(Timestamp::MAX);
        after(now, self.idle).min(after(created_at, self.total))
    }
}

impl Default for Lifetime {
    /// 30 days without a visit, a year in all.
    fn default() -> Self {
        Self { idle: SignedDuration::from_hours(30 * 24), total: SignedDuration::from_hours(365 * 24) }
    }
}

/// The header is the client's to choose: it is cut, and cleaned of what could disturb a terminal or Postgres.
fn readable(user_agent: &str) -> String {
    user_agent.trim().chars().filter(|c| !c.is_control()).take(USER_AGENT_CHARACTERS).collect()
}

/// Real ones have 80 to 200.
const USER_AGENT_CHARACTERS: usize = 256;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::secret::ClusterSecret;
    use crate::users::token::RefreshTokens;

    const ADA: Uuid = Uuid::from_u128(1);
    const PHONE: Uuid = Uuid::from_u128(2);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn lifetime() -> Lifetime {
        Lifetime { idle: SignedDuration::from_secs(100), total: SignedDuration::from_secs(250) }
    }

    /// A genuine token of this generation, as the session sees it.
    fn token(session: Uuid, generation: u32) -> Presented {
        let tokens = RefreshTokens::new(&ClusterSecret::from_bytes(&[7; 32]).unwrap().into());
        let (token, _) = tokens.mint(ADA, session, generation).unwrap();
        tokens.parse(token.expose()).unwrap()
    }

    fn session(first: &Presented) -> Session {
        Session::start(PHONE, first.hash, Some("Firefox"), at(0), lifetime())
    }

    fn rotated(session: &Session, presented: &Presented, next: &Presented, now: Timestamp) -> Session {
        match session.rotate(presented, next.hash, now, lifetime()) {
            Rotation::Rotated(session) => session,
            other => panic!("expected a rotation, not {other:?}"),
        }
    }

    #[test]
    fn the_current_token_is_spent_for_the_next_one() {
        let (first, second) = (token(PHONE, 0), token(PHONE, 1));
        let refreshed = rotated(&session(&first), &first, &second, at(10));
        assert_eq!((refreshed.generation, refreshed.refresh_hash), (1, second.hash));
        assert_eq!((refreshed.created_at, refreshed.last_used_at), (at(0), at(10)));
        rotated(&refreshed, &second, &token(PHONE, 2), at(20));
    }

    #[test]
    fn a_spent_token_is_reuse_however_long_ago_it_was_spent() {
        let chain: Vec<_> = (0..6).map(|generation| token(PHONE, generation)).collect();
        let mut now = session(&chain[0]);
        for pair in chain.windows(2) {
            now = rotated(&now, &pair[0], &pair[1], at(1));
        }
        for spent in &chain[..5] {
            assert_eq!(now.rotate(spent, token(PHONE, 1).hash, at(2), lifetime()), Rotation::Reused);
        }
    }

    #[test]
    fn a_token_of_a_refresh_that_never_was_committed_revokes_nothing() {
        let first = token(PHONE, 0);
        for stray in [token(PHONE, 0), token(PHONE, 1), token(PHONE, u32::MAX)] {
            assert_eq!(session(&first).rotate(&stray, stray.hash, at(1), lifetime()), Rotation::Unknown);
        }
    }

    #[test]
    fn a_lost_answer_is_repeated_with_another_token_as_often_as_needed() {
        let (first, lost, again) = (token(PHONE, 0), token(PHONE, 1), token(PHONE, 1));
        let refreshed = rotated(&session(&first), &first, &lost, at(1));
        for reissued in [&again, &token(PHONE, 1)] {
            let Rotation::Rotated(session) = refreshed.reissue(1, reissued.hash, at(2)) else { panic!("not reissued") };
            rotated(&session, reissued, &token(PHONE, 2), at(3));
        }
    }

    /// What was broken: whoever repeated a refresh under its key had a session beside its owner's, and nobody noticed.
    #[test]
    fn a_token_that_was_replaced_is_reuse_since_two_hold_the_session() {
        let (first, arrived, again) = (token(PHONE, 0), token(PHONE, 1), token(PHONE, 1));
        let refreshed = rotated(&session(&first), &first, &arrived, at(1));
        let Rotation::Rotated(replaced) = refreshed.reissue(1, again.hash, at(2)) else { panic!("not reissued") };
        assert_eq!(replaced.rotate(&arrived, token(PHONE, 2).hash, at(3), lifetime()), Rotation::Reused);
        let used = rotated(&replaced, &again, &token(PHONE, 2), at(3));
        assert_eq!(used.rotate(&arrived, token(PHONE, 3).hash, at(4), lifetime()), Rotation::Reused);
    }

    #[test]
    fn an_answer_that_was_used_is_not_repeated() {
        let (first, second) = (token(PHONE, 0), token(PHONE, 1));
        let once = rotated(&session(&first), &first, &second, at(1));
        let twice = rotated(&once, &second, &token(PHONE, 2), at(2));
        assert_eq!(twice.reissue(1, token(PHONE, 1).hash, at(3)), Rotation::Unknown);
    }

    #[test]
    fn a_token_of_another_session_is_unknown() {
        let other = token(Uuid::from_u128(3), 0);
        assert_eq!(session(&token(PHONE, 0)).rotate(&other, other.hash, at(1), lifetime()), Rotation::Unknown);
    }

    #[test]
    fn a_session_expires_when_it_is_not_used() {
        let first = token(PHONE, 0);
        assert!(!session(&first).is_expired(at(99)));
        assert_eq!(session(&first).rotate(&first, first.hash, at(100), lifetime()), Rotation::Expired);
    }

    #[test]
    fn a_refresh_prolongs_a_session_but_not_for_ever() {
        let chain: Vec<_> = (0..4).map(|generation| token(PHONE, generation)).collect();
        let once = rotated(&session(&chain[0]), &chain[0], &chain[1], at(90));
        assert_eq!(once.expires_at, at(190));
        let twice = rotated(&once, &chain[1], &chain[2], at(180));
        assert_eq!(twice.expires_at, at(250));
        assert_eq!(twice.rotate(&chain[2], chain[3].hash, at(250), lifetime()), Rotation::Expired);
    }

    #[test]
    fn a_user_agent_is_cut_and_cleaned() {
        let named = |name: &str| Session::start(PHONE, token(PHONE, 0).hash, Some(name), at(0), lifetime()).user_agent;
        assert_eq!(named("Fire\u{1b}[31mfox\0"), Some("Fire[31mfox".into()));
        assert_eq!(named(&"x".repeat(9_000)).map(|name| name.len()), Some(USER_AGENT_CHARACTERS));
        assert_eq!(named(" \r\n"), None);
    }

    #[test]
    fn a_session_is_stored_and_read_back() {
        let stored = serde_json::to_string(&session(&token(PHONE, 0))).unwrap();
        let read: Session = serde_json::from_str(&stored).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), stored);
    }

    proptest! {
        /// Whatever is presented in whatever order, only the current token rotates and only spent ones revoke.
        #[test]
        fn each_token_counts_once(presented in prop::collection::vec(0..8_u32, 1..30)) {
            let chain: Vec<_> = (0..40).map(|generation| token(PHONE, generation)).collect();
            let mut now = session(&chain[0]);
            for generation in presented {
                let next = chain[generation as usize + 1].hash;
                let expected = now.generation;
                match now.rotate(&chain[generation as usize], next, at(1), lifetime()) {
                    Rotation::Rotated(next) => {
                        prop_assert_eq!(generation, expected);
                        prop_assert_eq!(next.generation, generation + 1);
                        now = next;
                    }
                    Rotation::Reused => prop_assert!(generation < expected),
                    Rotation::Unknown => prop_assert!(generation > expected),
                    Rotation::Expired => prop_assert!(false, "nothing expires here"),
                }
            }
        }
    }
}
