//! Issues access tokens under the key that signs at the moment.

use arc_swap::ArcSwap;
use rookery_actors::ids::SessionId;
use rookery_actors::users::Account;

use crate::auth::{Claims, KeyError, SigningKey};
use crate::config::GatewayConfig;

/// Signs access tokens; the key is replaced when it rotates.
pub struct Issuer {
    key: ArcSwap<SigningKey>,
    issuer: String,
    audience: String,
    life_s: u32,
}

impl Issuer {
    /// An issuer that signs with `key`, as the configured issuer for the configured audience.
    pub fn new(key: SigningKey, config: &GatewayConfig) -> Self {
        Self {
            key: ArcSwap::from_pointee(key),
            issuer: config.token_issuer.clone(),
            audience: config.token_audience.clone(),
            life_s: config.token_life_s,
        }
    }

    /// How long an access token is valid, in seconds.
    pub fn life_s(&self) -> u32 {
        self.life_s
    }

    /// Signs with another key from now on. Its public half must be known to every verifier already.
    pub fn set_key(&self, key: SigningKey) {
        self.key.store(std::sync::Arc::new(key));
    }

    /// An access token for a user's session at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// If the key cannot sign.
    pub fn issue(&self, account: &Account, session: SessionId, now: i64) -> Result<String, KeyError> {
        self.key.load().issue(&Claims {
            sub: account.profile.id.0,
            sid: session.0,
            name: account.profile.username.as_str().to_owned(),
            roles: account.roles.iter().map(|role| role.as_str().to_owned()).collect(),
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            iat: now,
            nbf: now,
            exp: now + i64::from(self.life_s),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use rookery_actors::ids::UserId;
    use rookery_actors::users::names::{Bio, DisplayName, Username};
    use rookery_actors::users::{Profile, Role};
    use uuid::Uuid;

    use super::*;
    use crate::auth::Verifier;

    fn account() -> Account {
        let profile = Profile {
            id: UserId(Uuid::from_u128(1)),
            username: Username::parse("ada").unwrap(),
            display_name: DisplayName::default(),
            bio: Bio::default(),
            avatar_url: None,
            version: 1,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
            post_count: 0,
            comment_count: 0,
            follower_count: 0,
            following_count: 0,
        };
        Account { profile, email: None, roles: [Role::Admin].into() }
    }

    fn key(name: &str, seed: u8) -> SigningKey {
        SigningKey::from_seed(name, &[seed; 32]).unwrap()
    }

    #[test]
    fn a_token_names_user_session_and_roles_before_and_after_a_rotation() {
        let config = GatewayConfig::default();
        let issuer = Issuer::new(key("k1", 1), &config);
        let verifier = Verifier::new(&config.token_issuer, &config.token_audience, 10, Arc::default());
        verifier.set_keys(vec![key("k1", 1).public(), key("k2", 2).public()]);
        let now = crate::auth::now_s();
        let session = SessionId(Uuid::from_u128(7));
        for rotated in [false, true] {
            if rotated {
                issuer.set_key(key("k2", 2));
            }
            let token = issuer.issue(&account(), session, now).unwrap();
            let claims = verifier.verify(token.as_bytes(), now).unwrap();
            assert_eq!((claims.sub, claims.sid), (Uuid::from_u128(1), session.0));
            assert!(claims.has_role("admin") && claims.exp == now + 900);
        }
    }

    #[test]
    fn a_token_lives_as_long_as_is_configured() {
        let config = GatewayConfig { token_life_s: 45, ..GatewayConfig::default() };
        let verifier = Verifier::new(&config.token_issuer, &config.token_audience, 10, Arc::default());
        verifier.set_keys(vec![key("k1", 1).public()]);
        let now = crate::auth::now_s();
        let token = Issuer::new(key("k1", 1), &config).issue(&account(), SessionId(Uuid::nil()), now).unwrap();
        assert_eq!(verifier.verify(token.as_bytes(), now).unwrap().exp, now + 45);
    }
}
