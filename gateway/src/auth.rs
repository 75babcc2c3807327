//! Access tokens: who a request comes from.
//!
//! A token is verified once and remembered by its digest, because an Ed25519 verification costs 29 µs. What can change
//! in between is asked every time: its time, and whether its session was revoked.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How far the clocks of two nodes may differ, in seconds.
const LEEWAY_S: u64 = 5;
/// How much longer than the tokens of a session its end is remembered, in seconds: for clocks that differ by more, and for the
/// news of it, which takes its way.
const REMEMBERED_S: i64 = 120;
/// How long an access token lives unless configured otherwise, in seconds.
pub(crate) const TOKEN_LIFE_S: u64 = 15 * 60;
/// Longest token that is looked at, in bytes; ours have about 500.
const TOKEN_BYTES_MAX: usize = 4096;

/// What an access token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The user.
    pub sub: Uuid,
    /// The session it was issued in.
    pub sid: Uuid,
    /// The user's name at that time.
    pub name: String,
    /// The user's roles at that time.
    pub roles: Vec<String>,
    /// Who issued it.
    pub iss: String,
    /// For whom.
    pub aud: String,
    /// When it was issued, in seconds since 1970.
    pub iat: i64,
    /// From when it is valid, in seconds since 1970.
    pub nbf: i64,
    /// Until when it is valid, in seconds since 1970.
    pub exp: i64,
}

impl Claims {
    /// Whether the user has a role.
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|mine| mine == role)
    }
}

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Not `Bearer` and a token.
    #[error("the Authorization header is not a bearer token")]
    NotBearer,
    /// Not a token of ours: shape, algorithm, signature, issuer or audience.
    #[error("the access token is invalid")]
    Invalid,
    /// Signed with a key that is not, or no longer, ours.
    #[error("the access token is signed with an unknown key")]
    UnknownKey,
    /// Too old.
    #[error("the access token has expired")]
    Expired,
    /// Not valid yet.
    #[error("the access token is not valid yet")]
    NotYet,
    /// Its session was ended.
    #[error("the session has been ended")]
    Revoked,
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not an Ed25519 key.
    #[error("the key is not a valid Ed25519 key")]
    Rejected,
    /// The token could not be signed.
    #[error("the token could not be signed")]
    Signing(#[source] jsonwebtoken::errors::Error),
}

/// Signs access tokens.
pub struct SigningKey {
    kid: String,
    public: [u8; 32],
    key: EncodingKey,
}

impl SigningKey {
    /// A signing key from its 32-byte seed.
    ///
    /// # Errors
    /// [`KeyError::Rejected`] if the seed makes no key.
    pub fn from_seed(kid: impl Into<String>, seed: &[u8; 32]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| KeyError::Rejected)?;
        let document = pair.to_pkcs8v1().map_err(|_| KeyError::Rejected)?;
        Self::from_pkcs8(kid, document.as_ref())
    }

    /// A signing key from its PKCS #8 form.
    ///
    /// # Errors
    /// [`KeyError::Rejected`] if it is not one.
    pub fn from_pkcs8(kid: impl Into<String>, document: &[u8]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(document).map_err(|_| KeyError::Rejected)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| KeyError::Rejected)?;
        Ok(Self { kid: kid.into(), public, key: EncodingKey::from_ed_der(document) })
    }

    /// The key that verifies what this one signs.
    pub fn public(&self) -> PublicKey {
        PublicKey { kid: self.kid.clone(), key: self.public }
    }

    /// Signs a token.
    ///
    /// # Errors
    /// [`KeyError::Signing`] if the key cannot sign.
    pub fn issue(&self, claims: &Claims) -> Result<String, KeyError> {
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, claims, &self.key).map_err(KeyError::Signing)
    }
}

/// A key that verifies access tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// Its name in token headers.
    pub kid: String,
    /// The Ed25519 public key.
    pub key: [u8; 32],
}

/// Keys as a JSON Web Key Set (RFC 7517, 8037), for `/.well-known/jwks.json`.
pub fn jwks(keys: &[PublicKey]) -> serde_json::Value {
    let keys: Vec<_> = keys
        .iter()
        .map(|key| {
            serde_json::json!({
                "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA",
                "kid": key.kid, "x": BASE64_URL_SAFE_NO_PAD.encode(key.key),
            })
        })
        .collect();
    serde_json::json!({ "keys": keys })
}

/// Sessions that were ended before their last access token expires.
#[derive(Debug)]
pub struct RevokedSessions {
    token_life_s: i64,
    until: RwLock<HashMap<Uuid, i64>>,
}

impl Default for RevokedSessions {
    /// For tokens that live as long as they do unless configured otherwise.
    fn default() -> Self {
        Self::of_tokens(Duration::from_secs(TOKEN_LIFE_S))
    }
}

impl RevokedSessions {
    /// None yet; a token lives so long.
    pub fn of_tokens(life: Duration) -> Self {
        Self { token_life_s: i64::try_from(life.as_secs()).unwrap_or(i64::MAX / 2), until: RwLock::default() }
    }

    /// How long the end of a session is remembered, in seconds: a little longer than its last token lives.
    pub fn remembered_s(&self) -> i64 {
        self.token_life_s + REMEMBERED_S
    }

    /// Refuses the tokens of a session from now on: it ended at `at`, in seconds since 1970. Forgotten when all of them have
    /// expired.
    pub fn revoke(&self, session: Uuid, at: i64) {
        let until = at.saturating_add(self.remembered_s());
        let mut sessions = self.until.write().expect("no panic while it is held");
        let kept = sessions.entry(session).or_insert(until);
        *kept = (*kept).max(until);
    }

    /// Whether a session was revoked.
    pub fn contains(&self, session: Uuid) -> bool {
        self.until.read().expect("no panic while it is held").contains_key(&session)
    }

    /// Forgets the sessions whose tokens have all expired by `now`, in seconds since 1970.
    pub fn forget_expired(&self, now: i64) {
        // A verifier accepts a token this much longer.
        let horizon = now - LEEWAY_S as i64;
        self.until.write().expect("no panic while it is held").retain(|_, until| *until >= horizon);
    }

    /// Until when a token is accepted, in seconds since 1970. Where tokens live longer than here, since nodes are configured
    /// one after the other, that is no longer than the end of its session is remembered here.
    fn accepts_until(&self, claims: &Claims) -> i64 {
        claims.exp.min(claims.iat.saturating_add(self.token_life_s))
    }
}

/// Verifies access tokens under the current key set.
pub struct Verifier {
    keys: ArcSwap<Keys>,
    validation: Validation,
    revoked: Arc<RevokedSessions>,
    verified: moka::sync::Cache<[u8; 32], Arc<Verified>>,
}

#[derive(Default)]
struct Keys {
    published: Vec<PublicKey>,
    by_kid: HashMap<String, DecodingKey>,
}

struct Verified {
    kid: String,
    claims: Arc<Claims>,
}

impl Verifier {
    /// A verifier without keys yet, which remembers up to `cache_max` tokens. A token is accepted as long as the end of its session
    /// would be remembered.
    pub fn new(issuer: &str, audience: &str, cache_max: u64, revoked: Arc<RevokedSessions>) -> Self {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[issuer]);
        validation.set_audience(&[audience]);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY_S;
        Self { keys: ArcSwap::default(), validation, revoked, verified: moka::sync::Cache::new(cache_max) }
    }

    /// Replaces the key set: tokens of keys that are no longer in it are refused from now on.
    pub fn set_keys(&self, published: Vec<PublicKey>) {
        let by_kid = published.iter().map(|key| (key.kid.clone(), DecodingKey::from_ed_der(&key.key))).collect();
        self.keys.store(Arc::new(Keys { published, by_kid }));
    }

    /// The current key set.
    pub fn jwks(&self) -> serde_json::Value {
        jwks(&self.keys.load().published)
    }

    /// The sessions whose tokens this verifier refuses.
    pub fn revoked(&self) -> &RevokedSessions {
        &self.revoked
    }

    /// Verifies the value of an `Authorization` header at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// Why it is refused; see [`AuthError`].
    pub fn authenticate(&self, authorization: &[u8], now: i64) -> Result<Arc<Claims>, AuthError> {
        let (scheme, token) = authorization.split_at_checked(7).ok_or(AuthError::NotBearer)?;
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return Err(AuthError::NotBearer);
        }
        self.verify(token.trim_ascii(), now)
    }

    /// Verifies a token at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// Why it is refused; see [`AuthError`].
    pub fn verify(&self, token: &[u8], now: i64) -> Result<Arc<Claims>, AuthError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::Invalid);
        }
        let digest: [u8; 32] = digest::digest(&digest::SHA256, token).as_ref().try_into().expect("SHA-256 has 32 bytes");
        let keys = self.keys.load();
        let claims = match self.verified.get(&digest) {
            Some(seen) if keys.by_kid.contains_key(&seen.kid) => seen.claims.clone(),
            _ => {
                let (kid, claims) = self.verify_signature(&keys, token)?;
                let claims = Arc::new(claims);
                self.verified.insert(digest, Arc::new(Verified { kid, claims: claims.clone() }));
                claims
            }
        };
        if now > self.revoked.accepts_until(&claims).saturating_add(LEEWAY_S as i64) {
            self.verified.invalidate(&digest);
            return Err(AuthError::Expired);
        }
        if self.revoked.contains(claims.sid) {
            self.verified.invalidate(&digest);
            return Err(AuthError::Revoked);
        }
        Ok(claims)
    }

    fn verify_signature(&self, keys: &Keys, token: &[u8]) -> Result<(String, Claims), AuthError> {
        use jsonwebtoken::errors::ErrorKind;
        let header = jsonwebtoken::decode_header(token).map_err(|_| AuthError::Invalid)?;
        let kid = header.kid.ok_or(AuthError::UnknownKey)?;
        let key = keys.by_kid.get(&kid).ok_or(AuthError::UnknownKey)?;
        match jsonwebtoken::decode::<Claims>(token, key, &self.validation) {
            Ok(token) => Ok((kid, token.claims)),
            Err(error) => Err(match error.kind() {
                ErrorKind::ExpiredSignature => AuthError::Expired,
                ErrorKind::ImmatureSignature => AuthError::NotYet,
                _ => AuthError::Invalid,
            }),
        }
    }
}

/// Seconds since 1970.
pub(crate) fn now_s() -> i64 {
    jiff::Timestamp::now().as_second()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_seed("k1", &[1; 32]).unwrap()
    }

    fn verifier() -> Verifier {
        let verifier = Verifier::new("rookery", "rookery", 100, Arc::default());
        verifier.set_keys(vec![key().public()]);
        verifier
    }

    fn claims() -> Claims {
        let now = now_s();
        Claims {
            sub: Uuid::from_u128(1),
            sid: Uuid::from_u128(2),
            name: "ada".into(),
            roles: vec![],
            iss: "rookery".into(),
            aud: "rookery".into(),
            iat: now,
            nbf: now,
            exp: now + 900,
        }
    }

    fn verify(token: &str) -> Result<Arc<Claims>, AuthError> {
        verifier().verify(token.as_bytes(), now_s())
    }

    #[test]
    fn a_token_of_ours_is_accepted() {
        assert_eq!(*verify(&key().issue(&claims()).unwrap()).unwrap(), claims());
    }

    #[test]
    fn an_expired_token_is_refused() {
        let old = Claims { exp: now_s() - 60, ..claims() };
        assert_eq!(verify(&key().issue(&old).unwrap()), Err(AuthError::Expired));
    }

    #[test]
    fn a_remembered_token_is_refused_once_it_expires() {
        let verifier = verifier();
        let token = key().issue(&claims()).unwrap();
        verifier.verify(token.as_bytes(), now_s()).unwrap();
        assert_eq!(verifier.verify(token.as_bytes(), now_s() + 1000), Err(AuthError::Expired));
    }

    #[test]
    fn a_token_from_the_future_is_refused() {
        let early = Claims { nbf: now_s() + 60, ..claims() };
        assert_eq!(verify(&key().issue(&early).unwrap()), Err(AuthError::NotYet));
    }

    #[test]
    fn a_token_for_another_audience_is_refused() {
        let other = Claims { aud: "elsewhere".into(), ..claims() };
        assert_eq!(verify(&key().issue(&other).unwrap()), Err(AuthError::Invalid));
    }

    #[test]
    fn a_token_of_another_issuer_is_refused() {
        let other = Claims { iss: "elsewhere".into(), ..claims() };
        assert_eq!(verify(&key().issue(&other).unwrap()), Err(AuthError::Invalid));
    }

    #[test]
    fn a_token_signed_by_another_key_of_the_same_name_is_refused() {
        let forger = SigningKey::from_seed("k1", &[9; 32]).unwrap();
        assert_eq!(verify(&forger.issue(&claims()).unwrap()), Err(AuthError::Invalid));
    }

    #[test]
    fn an_unsigned_token_is_refused() {
        let header = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none","kid":"k1"}"#);
        let body = BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims()).unwrap());
        assert_eq!(verify(&format!("{header}.{body}.")), Err(AuthError::Invalid));
    }

    #[test]
    fn a_token_keyed_with_our_public_key_as_a_secret_is_refused() {
        let header = Header { kid: Some("k1".into()), ..Header::new(Algorithm::HS256) };
        let secret = EncodingKey::from_secret(&key().public().key);
        let token = jsonwebtoken::encode(&header, &claims(), &secret).unwrap();
        assert_eq!(verify(&token), Err(AuthError::Invalid));
    }

    #[test]
    fn a_revoked_session_is_refused_at_once() {
        let verifier = verifier();
        let token = key().issue(&claims()).unwrap();
        verifier.verify(token.as_bytes(), now_s()).unwrap();
        verifier.revoked().revoke(claims().sid, now_s());
        assert_eq!(verifier.verify(token.as_bytes(), now_s()), Err(AuthError::Revoked));
    }

    /// A node that was told so later, or not yet, forgets the end of a session earlier than such a token expires.
    #[test]
    fn a_token_that_lives_longer_than_here_is_accepted_as_long_as_ours() {
        let revoked = RevokedSessions::of_tokens(Duration::from_secs(60));
        let verifier = Verifier::new("rookery", "rookery", 100, Arc::new(revoked));
        verifier.set_keys(vec![key().public()]);
        let token = key().issue(&claims()).unwrap();
        let verify = |after: i64| verifier.verify(token.as_bytes(), claims().iat + after).map(drop);
        assert_eq!((verify(0), verify(60), verify(70)), (Ok(()), Ok(()), Err(AuthError::Expired)));
    }

    #[test]
    fn a_key_that_was_taken_away_verifies_nothing_not_even_from_memory() {
        let verifier = verifier();
        let token = key().issue(&claims()).unwrap();
        verifier.verify(token.as_bytes(), now_s()).unwrap();
        verifier.set_keys(vec![]);
        assert_eq!(verifier.verify(token.as_bytes(), now_s()), Err(AuthError::UnknownKey));
    }

    #[test]
    fn a_revocation_is_forgotten_only_after_every_token_of_it_expired() {
        for life in [30, TOKEN_LIFE_S, 86_400] {
            let revoked = RevokedSessions::of_tokens(Duration::from_secs(life));
            revoked.revoke(Uuid::nil(), 1000);
            let last = 1000 + life as i64 + REMEMBERED_S + LEEWAY_S as i64;
            revoked.forget_expired(last);
            assert!(revoked.contains(Uuid::nil()));
            revoked.forget_expired(last + 1);
            assert!(!revoked.contains(Uuid::nil()));
        }
    }
}
