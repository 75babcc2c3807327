//! The keys that sign access tokens: made here, kept sealed, used by the gateways.
//!
//! A new key is published before it signs, so that every gateway knows it by the time of its first token; an old
//! one stays published until its last token has expired. The table is the cluster's, not a shard's: it is written
//! a few times a year, under an advisory lock.

use std::{fmt, time::Duration};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    signature::{Ed25519KeyPair, KeyPair},
};
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretBox};
use uuid::Uuid;

use crate::{
    entity::Failure,
    runtime::{Connection, Database, Transaction, now},
    secret::{KeyRing, SecretError},
};

/// How keys follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlap {
    /// From its publication to a key's first signature: longer than a gateway goes without looking for new keys.
    pub publish: SignedDuration,
    /// From its last signature to the end of its publication: longer than an access token lives.
    pub retire: SignedDuration,
}

/// How much longer than a token lives a key is published after its last signature: gateways that look for keys only now and
/// then sign a little longer, and clocks differ.
const RETIRE_LATER: SignedDuration = SignedDuration::from_mins(15);

impl Overlap {
    /// For access tokens that live so long.
    pub fn of_tokens(life: Duration) -> Self {
        let life = SignedDuration::try_from(life).unwrap_or(SignedDuration::MAX);
        Self { publish: SignedDuration::from_mins(10), retire: life.saturating_add(RETIRE_LATER) }
    }
}

impl Default for Overlap {
    /// Ten minutes before, half an hour after, for access tokens that live for a quarter of an hour.
    fn default() -> Self {
        Self::of_tokens(Duration::from_secs(900))
    }
}

/// One Ed25519 key.
pub struct SigningKey {
    /// Its name in the headers of tokens.
    pub kid: String,
    /// What verifies.
    pub public: [u8; 32],
    /// What signs: PKCS #8.
    pub pkcs8: SecretBox<Vec<u8>>,
    /// When it was made, and published.
    pub created_at: Timestamp,
    /// From here on it signs.
    pub not_before: Timestamp,
    /// From here on it is not published any more.
    pub retired_at: Option<Timestamp>,
}

/// The keys of a cluster, the oldest first; at least one of them signs.
#[derive(Debug)]
pub struct SigningKeys {
    keys: Vec<SigningKey>,
}

/// Why there are no keys to sign with.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The database did not answer.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// A stored key does not open: it was sealed with another cluster secret.
    #[error(
        "the signing key {kid} in the users database was sealed with another secret than this node has. Give all nodes the \
         secret that made it; if that one is being replaced, give it as `secret_previous` (ROOKERY__SECRET_PREVIOUS_FILE) beside \
         the new one"
    )]
    Sealed {
        /// Which key.
        kid: String,
        /// What unsealing says.
        source: SecretError,
    },
    /// No key could be made.
    #[error("no signing key could be made")]
    NotMade,
}

impl From<tokio_postgres::Error> for KeyError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl SigningKeys {
    /// The keys that are stored; makes the first one if there is none. Safe on many nodes at once.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn load_or_create(database: &Database, secrets: &KeyRing) -> Result<Self, KeyError> {
        let mut client = database.get().await?;
        let transaction = lock(&mut client).await?;
        let (mut keys, foreign) = load(&transaction, secrets).await?;
        if secrets.is_settled() {
            // Every node can open them then; and only then can the secret before be taken away.
            reseal(&transaction, secrets, &keys, &foreign).await?;
        }
        let at = now();
        if keys.signing(at).is_none() {
            let first = SigningKey::generate(at, at)?;
            store(&transaction, secrets, &first).await?;
            keys.keys.push(first);
        }
        transaction.commit().await?;
        Ok(keys)
    }

    /// Makes a new key that follows the one that signs now. While one is waiting for its time already, it stays with that.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn rotate(database: &Database, secrets: &KeyRing, overlap: Overlap) -> Result<Self, KeyError> {
        let mut client = database.get().await?;
        let transaction = lock(&mut client).await?;
        let (mut keys, _) = load(&transaction, secrets).await?;
        if let Some(next) = keys.follow(now(), overlap)? {
            store(&transaction, secrets, &next).await?;
            for key in &keys.keys {
                transaction
                    .execute("UPDATE signing_key SET retired_at = $2 WHERE kid = $1", &[&key.kid, &key.retired_at])
                    .await?;
            }
            keys.keys.push(next);
        }
        transaction.commit().await?;
        Ok(keys)
    }

    /// The key to sign with: the newest whose time has come.
    pub fn signing(&self, at: Timestamp) -> Option<&SigningKey> {
        self.keys.iter().rev().find(|key| key.not_before <= at && !key.is_retired(at))
    }

    /// The keys to publish, those that are yet to sign included.
    pub fn published(&self, at: Timestamp) -> impl Iterator<Item = &SigningKey> {
        self.keys.iter().filter(move |key| !key.is_retired(at))
    }

    /// Makes the key after those that there are, and says when they end. None: one is waiting already.
    fn follow(&mut self, at: Timestamp, overlap: Overlap) -> Result<Option<SigningKey>, KeyError> {
        if self.keys.iter().any(|key| key.not_before > at) {
            return Ok(None);
        }
        let later = |from: Timestamp, span| from.saturating_add(span).unwrap_or(Timestamp::MAX);
        // The first of all keys need not wait: nobody has gone without it.
        let not_before = if self.keys.is_empty() { at } else { later(at, overlap.publish) };
        for key in &mut self.keys {
            key.retired_at.get_or_insert(later(not_before, overlap.retire));
        }
        SigningKey::generate(at, not_before).map(Some)
    }
}

impl SigningKey {
    fn generate(created_at: Timestamp, not_before: Timestamp) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::NotMade)?;
        let pkcs8: Pkcs8V1Der<'static> = pair.as_der().map_err(|_| KeyError::NotMade)?;
        Ok(Self {
            kid: Uuid::now_v7().to_string(),
            public: pair.public_key().as_ref().try_into().map_err(|_| KeyError::NotMade)?,
            pkcs8: SecretBox::new(Box::new(pkcs8.as_ref().to_vec())),
            created_at,
            not_before,
            retired_at: None,
        })
    }

    fn is_retired(&self, at: Timestamp) -> bool {
        self.retired_at.is_some_and(|end| end <= at)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).field("not_before", &self.not_before).finish_non_exhaustive()
    }
}

/// A transaction that is the only one to read and write keys, on any node.
async fn lock(client: &mut Connection) -> Result<Transaction<'_>, KeyError> {
    let transaction = client.transaction().await?;
    transaction
        .batch_execute("SET LOCAL lock_timeout = '5s'; SELECT pg_advisory_xact_lock(hashtext('rookery signing keys'))")
        .await?;
    Ok(transaction)
}

/// The stored keys, and the names of those that another secret than the configured one sealed.
async fn load(transaction: &Transaction<'_>, secrets: &KeyRing) -> Result<(SigningKeys, Vec<String>), KeyError> {
    let rows = transaction
        .query("SELECT kid, sealed, public, created_at, not_before, retired_at FROM signing_key ORDER BY not_before, kid", &[])
        .await?;
    let (mut keys, mut foreign) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in &rows {
        let kid: String = row.get(0);
        let opened = secrets.unseal(row.get(1), &place(&kid)).map_err(|source| KeyError::Sealed { kid: kid.clone(), source })?;
        if !opened.by_first {
            foreign.push(kid.clone());
        }
        let public = <&[u8; 32]>::try_from(row.get::<_, &[u8]>(2));
        let public = *public.map_err(|_| Failure::Unavailable(format!("the public key {kid} has another length")))?;
        let (created_at, not_before, retired_at) = (row.get(3), row.get(4), row.get(5));
        keys.push(SigningKey { kid, public, pkcs8: opened.plain, created_at, not_before, retired_at });
    }
    Ok((SigningKeys { keys }, foreign))
}

/// Seals the keys of these names with the secret that makes now.
async fn reseal(transaction: &Transaction<'_>, secrets: &KeyRing, keys: &SigningKeys, kids: &[String]) -> Result<(), KeyError> {
    for key in keys.keys.iter().filter(|key| kids.contains(&key.kid)) {
        let sealed = seal(secrets, key)?;
        transaction.execute("UPDATE signing_key SET sealed = $2 WHERE kid = $1", &[&key.kid, &sealed]).await?;
        tracing::info!(key.id = %key.kid, "sealed the signing key {} with the configured secret", key.kid);
    }
    Ok(())
}

async fn store(transaction: &Transaction<'_>, secrets: &KeyRing, key: &SigningKey) -> Result<(), KeyError> {
    let sealed = seal(secrets, key)?;
    transaction
        .execute(
            "INSERT INTO signing_key (kid, sealed, public, created_at, not_before) VALUES ($1, $2, $3, $4, $5)",
            &[&key.kid, &sealed, &key.public.as_slice(), &key.created_at, &key.not_before],
        )
        .await?;
    Ok(())
}

fn seal(secrets: &KeyRing, key: &SigningKey) -> Result<Vec<u8>, KeyError> {
    secrets.seal(key.pkcs8.expose_secret(), &place(&key.kid)).map_err(|_| KeyError::NotMade)
}

/// A sealed key opens under its own name only.
fn place(kid: &str) -> Vec<u8> {
    format!("signing_key/{kid}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + 60 * minute).unwrap()
    }

    /// One key that signs from minute 0, and one that was made at minute 100.
    fn rotated() -> SigningKeys {
        let mut keys = SigningKeys { keys: vec![SigningKey::generate(at(0), at(0)).unwrap()] };
        let next = keys.follow(at(100), Overlap::default()).unwrap().unwrap();
        keys.keys.push(next);
        keys
    }

    fn signs(keys: &SigningKeys, minute: i64) -> &str {
        &keys.signing(at(minute)).unwrap().kid
    }

    #[test]
    fn a_new_key_is_published_before_it_signs() {
        let keys = rotated();
        assert_eq!(keys.published(at(100)).count(), 2);
        assert_eq!(signs(&keys, 109), keys.keys[0].kid);
        assert_eq!(signs(&keys, 110), keys.keys[1].kid);
    }

    #[test]
    fn an_old_key_is_published_until_its_last_token_has_expired() {
        let keys = rotated();
        let published = |minute| keys.published(at(minute)).count();
        assert_eq!((published(139), published(140)), (2, 1));
    }

    #[test]
    fn the_longer_tokens_live_the_longer_an_old_key_is_published() {
        let overlap = Overlap::of_tokens(Duration::from_secs(86_400));
        let mut keys = SigningKeys { keys: vec![SigningKey::generate(at(0), at(0)).unwrap()] };
        keys.follow(at(100), overlap).unwrap().unwrap();
        assert_eq!(keys.keys[0].retired_at, Some(at(110 + 24 * 60 + 15)));
    }

    #[test]
    fn a_second_rotation_waits_for_the_first() {
        let mut keys = rotated();
        assert!(keys.follow(at(105), Overlap::default()).unwrap().is_none());
        assert!(keys.follow(at(110), Overlap::default()).unwrap().is_some());
    }

    #[test]
    fn a_rotation_does_not_prolong_a_key_that_is_on_its_way_out() {
        let mut keys = rotated();
        keys.follow(at(120), Overlap::default()).unwrap();
        assert_eq!(keys.keys[0].retired_at, Some(at(140)));
    }

    #[test]
    fn a_key_can_be_read_by_whoever_signs() {
        let key = SigningKey::generate(at(0), at(0)).unwrap();
        let read = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.pkcs8.expose_secret()).unwrap();
        assert_eq!(read.public_key().as_ref(), key.public);
    }

    #[test]
    fn a_private_key_does_not_show_in_a_debug_line() {
        let shown = format!("{:?}", rotated());
        assert!(!shown.contains("pkcs8"), "{shown}");
    }
}
