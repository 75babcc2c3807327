//! Refresh tokens: what a client keeps to get a new access token, used once each.
//!
//! A token says whose it is, so that any gateway finds the user's entity, and which *generation* of its
//! session, and is tagged with the cluster's secret. So a session stores the hash of its current token and
//! the generation's number, however often it was refreshed: a genuine token of an older generation has been
//! spent, and one that nobody here made is not worth a look at the session.

use std::fmt;

use aws_lc_rs::{constant_time, digest, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::secret::{KeyRing, Purpose, TAG_BYTES, Tagger};

/// A refresh token as a client holds it: `rt_` and base64url. Never logged, never stored.
#[derive(Debug, Clone)]
pub struct RefreshToken(SecretString);

/// What a genuine token says. It is no proof yet that the token still counts: the session knows that.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Presented {
    /// Whose session it is.
    pub user: Uuid,
    /// The session.
    pub session: Uuid,
    /// How often the session had been refreshed when this token was made.
    pub generation: u32,
    /// What the session compares.
    pub hash: TokenHash,
}

/// The SHA-256 of a token: what is stored of it. A token has 256 random bits, so no salt is needed.
///
/// It is (de)serialised as base64url, and compared in constant time.
#[derive(Clone, Copy)]
pub struct TokenHash([u8; 32]);

/// Not a token of this cluster; deliberately no word about why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid refresh token")]
pub struct InvalidToken;

/// The operating system gave no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system's random source failed")]
pub struct NoRandomness;

/// Makes refresh tokens and recognises genuine ones.
#[derive(Debug, Clone)]
pub struct RefreshTokens {
    tagger: Tagger,
}

impl RefreshTokens {
    /// Every node with the same secret recognises the same tokens; a secret that nobody has any more takes its tokens along.
    pub fn new(secrets: &KeyRing) -> Self {
        Self { tagger: secrets.tagger(Purpose::RefreshToken) }
    }

    /// Makes the token of one generation of a session (0 at login, one more at each refresh), and its hash to keep.
    ///
    /// # Errors
    /// If there is no randomness.
    pub fn mint(&self, user: Uuid, session: Uuid, generation: u32) -> Result<(RefreshToken, TokenHash), NoRandomness> {
        let mut random = [0; RANDOM_BYTES];
        rand::fill(&mut random).map_err(|_| NoRandomness)?;
        let mut bytes = Vec::with_capacity(TOKEN_BYTES);
        bytes.extend_from_slice(user.as_bytes());
        bytes.extend_from_slice(session.as_bytes());
        bytes.extend_from_slice(&generation.to_be_bytes());
        bytes.extend_from_slice(&random);
        bytes.extend_from_slice(&self.tagger.tag(&bytes));
        let token = RefreshToken(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes)).into());
        Ok((token, TokenHash::of(&bytes)))
    }

    /// Reads a token and checks that it was made here.
    ///
    /// # Errors
    /// [`InvalidToken`], whatever is wrong with it.
    pub fn parse(&self, text: &str) -> Result<Presented, InvalidToken> {
        let encoded = text.strip_prefix(PREFIX).filter(|encoded| encoded.len() == ENCODED_LEN).ok_or(InvalidToken)?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| InvalidToken)?;
        let (said, tag) = bytes.split_last_chunk::<TAG_BYTES>().ok_or(InvalidToken)?;
        if !self.tagger.verify(said, tag) {
            return Err(InvalidToken);
        }
        let (user, said) = said.split_first_chunk().ok_or(InvalidToken)?;
        let (session, said) = said.split_first_chunk().ok_or(InvalidToken)?;
        let (generation, _random) = said.split_first_chunk().ok_or(InvalidToken)?;
        Ok(Presented {
            user: Uuid::from_bytes(*user),
            session: Uuid::from_bytes(*session),
            generation: u32::from_be_bytes(*generation),
            hash: TokenHash::of(&bytes),
        })
    }
}

impl RefreshToken {
    /// The text for the client, and for nobody else.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl TokenHash {
    fn of(token: &[u8]) -> Self {
        let hash = digest::digest(&digest::SHA256, token);
        Self(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// As it is stored.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As it was stored; none: these are not the bytes of a hash.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl PartialEq for TokenHash {
    fn eq(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl Eq for TokenHash {}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash([redacted])")
    }
}

impl Serialize for TokenHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for TokenHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        URL_SAFE_NO_PAD
            .decode(text)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("a token's hash is 32 bytes in base64url"))
    }
}

/// Lets secret scanners recognise a token that got into a repository or a log.
const PREFIX: &str = "rt_";
const RANDOM_BYTES: usize = 32;
/// User, session, generation, randomness, tag.
const TOKEN_BYTES: usize = 16 + 16 + 4 + RANDOM_BYTES + TAG_BYTES;
const ENCODED_LEN: usize = (TOKEN_BYTES * 4).div_ceil(3);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::secret::ClusterSecret;

    fn tokens() -> RefreshTokens {
        RefreshTokens::new(&ClusterSecret::from_bytes(&[7; 32]).unwrap().into())
    }

    const ADA: Uuid = Uuid::from_u128(1);
    const PHONE: Uuid = Uuid::from_u128(2);

    #[test]
    fn a_token_says_whose_session_it_is() {
        let (token, hash) = tokens().mint(ADA, PHONE, 3).unwrap();
        let presented = tokens().parse(token.expose()).unwrap();
        assert_eq!(presented, Presented { user: ADA, session: PHONE, generation: 3, hash });
    }

    #[test]
    fn two_tokens_of_one_generation_differ() {
        let (_, one) = tokens().mint(ADA, PHONE, 0).unwrap();
        let (_, two) = tokens().mint(ADA, PHONE, 0).unwrap();
        assert_ne!(one, two);
    }

    #[test]
    fn a_token_of_another_cluster_is_invalid() {
        let theirs = RefreshTokens::new(&ClusterSecret::from_bytes(&[8; 32]).unwrap().into());
        let (token, _) = theirs.mint(ADA, PHONE, 0).unwrap();
        assert_eq!(tokens().parse(token.expose()), Err(InvalidToken));
    }

    #[test]
    fn a_hash_is_stored_as_text_and_read_back() {
        let (_, hash) = tokens().mint(ADA, PHONE, 0).unwrap();
        let stored = serde_json::to_string(&hash).unwrap();
        assert_eq!(serde_json::from_str::<TokenHash>(&stored).unwrap(), hash);
        assert!(serde_json::from_str::<TokenHash>("\"short\"").is_err());
    }

    #[test]
    fn nothing_shows_in_a_debug_line() {
        let (token, hash) = tokens().mint(ADA, PHONE, 0).unwrap();
        let shown = format!("{token:?} {hash:?} {:?}", tokens());
        assert!(!shown.contains(token.expose()) && !shown.contains(&serde_json::to_string(&hash).unwrap()));
    }

    proptest! {
        #[test]
        fn a_changed_token_is_invalid(at in any::<prop::sample::Index>(), other in "[A-Za-z0-9_-]") {
            let (token, _) = tokens().mint(ADA, PHONE, 1).unwrap();
            let at = at.index(token.expose().len());
            let mut changed = token.expose().to_owned();
            changed.replace_range(at..=at, &other);
            prop_assume!(changed != token.expose());
            prop_assert_eq!(tokens().parse(&changed), Err(InvalidToken));
        }

        #[test]
        fn no_text_makes_parsing_panic(text in "(?s).{0,130}|rt_[A-Za-z0-9_-]{110,114}") {
            prop_assert_eq!(tokens().parse(&text), Err(InvalidToken));
        }
    }
}
