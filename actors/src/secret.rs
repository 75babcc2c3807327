//! The secret that all nodes of a cluster share, and the keys derived from it.

mod ring;

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::{hkdf, rand};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret, SecretBox, SecretString};

pub use self::ring::{FormerReading, KeyRing, SecretId, Tagger, Unsealed};

/// What a derived key is for; keys for different purposes say nothing about each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Cursors of lists, which clients carry and must not change.
    Cursor,
    /// The tokens of `x-search-token`.
    SearchToken,
    /// Refresh tokens of sessions.
    RefreshToken,
    /// Hashes of requests, kept with idempotency keys: a request may hold a password, and a bare hash of it could be guessed.
    RequestHash,
    /// Signing keys at rest.
    Sealing,
    /// The handshake between nodes.
    Link,
    /// The name of the secret itself.
    Name,
}

/// The cluster's secret. It cannot be shown, only used.
#[derive(Clone)]
pub struct ClusterSecret {
    key: hkdf::Prk,
}

/// Why a secret was not accepted, or something sealed could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Fewer bytes than a secret needs.
    #[error("the secret has {bytes} bytes, at least {} are needed (try `openssl rand -base64 32`)", ClusterSecret::MIN_BYTES)]
    TooShort {
        /// How many it has.
        bytes: usize,
    },
    /// It was sealed with another secret, for another place, or was changed since.
    #[error("the sealed bytes do not open with this cluster's secret")]
    NotOurs,
    /// The operating system gave no random bytes.
    #[error("the system's random source failed")]
    NoRandomness,
}

impl ClusterSecret {
    /// The least length of a secret, in bytes.
    pub const MIN_BYTES: usize = 32;

    /// Reads a secret: hex digits, base64 of either alphabet, or any other text as it stands.
    ///
    /// Spaces and line ends around it do not count, since secrets come from files.
    ///
    /// # Errors
    /// [`SecretError::TooShort`], also for hex digits that spell fewer than 32 bytes.
    pub fn parse(text: &SecretString) -> Result<Self, SecretError> {
        Self::from_bytes(bytes_of(text).expose_secret())
    }

    /// Takes the bytes of a secret as they are.
    ///
    /// # Errors
    /// [`SecretError::TooShort`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SecretError> {
        if bytes.len() < Self::MIN_BYTES {
            return Err(SecretError::TooShort { bytes: bytes.len() });
        }
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"rookery cluster secret v1");
        Ok(Self { key: salt.extract(bytes) })
    }

    /// Makes a new secret of 256 random bits, as the text that [`ClusterSecret::parse`] reads and a file keeps.
    ///
    /// # Errors
    /// [`SecretError::NoRandomness`].
    pub fn generate() -> Result<SecretString, SecretError> {
        let mut bytes = SecretBox::new(Box::new([0; Self::MIN_BYTES]));
        rand::fill(secrecy::ExposeSecretMut::expose_secret_mut(&mut bytes)).map_err(|_| SecretError::NoRandomness)?;
        Ok(STANDARD.encode(bytes.expose_secret()).into())
    }

    /// The key for one purpose, by HKDF-SHA256 (RFC 5869).
    pub fn derive(&self, purpose: Purpose) -> [u8; 32] {
        let mut key = [0; 32];
        self.key
            .expand(&[purpose.label().as_bytes()], hkdf::HKDF_SHA256)
            .and_then(|material| material.fill(&mut key))
            .expect("HKDF-SHA256 gives up to 8,160 bytes");
        key
    }

    /// Its name, which tells nothing of it.
    fn id(&self) -> SecretId {
        self.derive(Purpose::Name)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Encrypts bytes for storage (AES-256-GCM, random nonce): one byte of version, nonce, ciphertext, tag.
    ///
    /// `place` says where they belong, such as a key's id, and must be given again to open them: so nobody who
    /// can write to the store can pass one sealed value off as another.
    ///
    /// # Errors
    /// [`SecretError::NoRandomness`].
    pub fn seal(&self, plain: &[u8], place: &[u8]) -> Result<Vec<u8>, SecretError> {
        let mut body = plain.to_vec();
        let nonce =
            self.sealing_key().seal_in_place_append_tag(Aad::from(place), &mut body).map_err(|_| SecretError::NoRandomness)?;
        Ok([&[SEALED_V1], nonce.as_ref().as_slice(), &body].concat())
    }

    /// Opens what [`ClusterSecret::seal`] made for the same place.
    ///
    /// # Errors
    /// [`SecretError::NotOurs`], which does not tell why.
    pub fn unseal(&self, sealed: &[u8], place: &[u8]) -> Result<SecretBox<Vec<u8>>, SecretError> {
        let (nonce, body) =
            sealed.strip_prefix(&[SEALED_V1]).and_then(|rest| rest.split_at_checked(NONCE_LEN)).ok_or(SecretError::NotOurs)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).expect("it was split off at a nonce's length");
        let mut body = body.to_vec();
        let length =
            self.sealing_key().open_in_place(nonce, Aad::from(place), &mut body).map_err(|_| SecretError::NotOurs)?.len();
        body.truncate(length);
        Ok(SecretBox::new(Box::new(body)))
    }

    fn sealing_key(&self) -> RandomizedNonceKey {
        RandomizedNonceKey::new(&AES_256_GCM, &self.derive(Purpose::Sealing)).expect("AES-256 takes keys of 32 bytes")
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret([redacted])")
    }
}

/// HMAC-SHA256, truncated to 128 bits as RFC 2104 allows: short in a URL, out of reach for a guess.
pub type Tag = [u8; TAG_BYTES];

/// The length of a [`Tag`].
pub const TAG_BYTES: usize = 16;

impl Purpose {
    /// Fixed for ever: another label is another key.
    fn label(self) -> &'static str {
        match self {
            Self::Cursor => "rookery/cursor/v1",
            Self::SearchToken => "rookery/search-token/v1",
            Self::RefreshToken => "rookery/refresh-token/v1",
            Self::RequestHash => "rookery/request-hash/v1",
            Self::Sealing => "rookery/sealing/v1",
            Self::Link => "rookery/link/v1",
            Self::Name => "rookery/name/v1",
        }
    }
}

const SEALED_V1: u8 = 1;

/// The bytes that a text spells.
fn bytes_of(text: &SecretString) -> SecretBox<Vec<u8>> {
    let text = text.expose_secret().trim();
    // Hex wins even where it spells too little: 32 digits are 16 bytes, not a text of 32.
    let bytes = decode_hex(text)
        .or_else(|| {
            [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD]
                .iter()
                .filter_map(|alphabet| alphabet.decode(text).ok())
                // A pass phrase may look like base64 by chance; it is not held against it.
                .find(|bytes| bytes.len() >= ClusterSecret::MIN_BYTES)
        })
        .unwrap_or_else(|| text.as_bytes().to_vec());
    SecretBox::new(Box::new(bytes))
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    digits.len().is_multiple_of(2).then(|| digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secret(text: &str) -> Result<ClusterSecret, SecretError> {
        ClusterSecret::parse(&text.into())
    }

    fn ours() -> ClusterSecret {
        ClusterSecret::from_bytes(&[7; 32]).unwrap()
    }

    #[test]
    fn the_same_bytes_are_the_same_secret_in_every_notation() {
        let bytes: Vec<u8> = (0xE0..=0xFF).collect();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let notations = [hex.to_uppercase(), hex, STANDARD.encode(&bytes), format!("{}\n", URL_SAFE_NO_PAD.encode(&bytes))];
        let expected = ClusterSecret::from_bytes(&bytes).unwrap().derive(Purpose::Cursor);
        for notation in notations {
            assert_eq!(secret(&notation).unwrap().derive(Purpose::Cursor), expected, "{notation}");
        }
    }

    #[test]
    fn a_pass_phrase_is_taken_as_it_stands() {
        let phrase = "correct horse battery staple, and then some";
        let expected = ClusterSecret::from_bytes(phrase.as_bytes()).unwrap();
        assert_eq!(secret(phrase).unwrap().derive(Purpose::Link), expected.derive(Purpose::Link));
    }

    #[test]
    fn a_short_secret_is_refused() {
        assert_eq!(secret("changeme").unwrap_err(), SecretError::TooShort { bytes: 8 });
        assert_eq!(secret(&"ab".repeat(16)).unwrap_err(), SecretError::TooShort { bytes: 16 });
    }

    #[test]
    fn a_generated_secret_is_read_back_and_new_every_time() {
        let (one, two) = (ClusterSecret::generate().unwrap(), ClusterSecret::generate().unwrap());
        let key = |text| ClusterSecret::parse(text).unwrap().derive(Purpose::Cursor);
        assert_eq!(key(&one), key(&one));
        assert_ne!(key(&one), key(&two));
    }

    #[test]
    fn every_purpose_has_its_own_key() {
        let purposes = [
            Purpose::Cursor,
            Purpose::SearchToken,
            Purpose::RefreshToken,
            Purpose::RequestHash,
            Purpose::Sealing,
            Purpose::Link,
            Purpose::Name,
        ];
        let keys: std::collections::HashSet<_> = purposes.map(|purpose| ours().derive(purpose)).into();
        assert_eq!(keys.len(), purposes.len());
    }

    #[test]
    fn nothing_shows_in_a_debug_line() {
        assert_eq!(format!("{:?}", ours()), "ClusterSecret([redacted])");
    }

    #[test]
    fn what_was_sealed_opens_in_its_place_only() {
        let sealed = ours().seal(b"signing key", b"key/1").unwrap();
        assert_eq!(ours().unseal(&sealed, b"key/1").unwrap().expose_secret(), b"signing key");
        assert_eq!(ours().unseal(&sealed, b"key/2").unwrap_err(), SecretError::NotOurs);
    }

    #[test]
    fn another_secret_does_not_open_it() {
        let sealed = ours().seal(b"signing key", b"").unwrap();
        let other = ClusterSecret::from_bytes(&[8; 32]).unwrap();
        assert_eq!(other.unseal(&sealed, b"").unwrap_err(), SecretError::NotOurs);
    }

    #[test]
    fn sealing_twice_gives_different_bytes() {
        assert_ne!(ours().seal(b"x", b"").unwrap(), ours().seal(b"x", b"").unwrap());
    }

    proptest! {
        #[test]
        fn a_changed_seal_never_opens(plain in prop::collection::vec(any::<u8>(), 0..64), at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
            let mut sealed = ours().seal(&plain, b"place").unwrap();
            let opened = ours().unseal(&sealed, b"place").unwrap();
            prop_assert_eq!(opened.expose_secret(), &plain);
            let at = at.index(sealed.len());
            sealed[at] ^= flip;
            prop_assert!(ours().unseal(&sealed, b"place").is_err());
        }

        #[test]
        fn no_bytes_make_unsealing_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(ours().unseal(&bytes, b"").is_err());
        }

        #[test]
        fn no_text_makes_parsing_panic(text in "(?s).{0,80}|[0-9a-fA-F]{0,80}|[A-Za-z0-9+/=_-]{0,80}") {
            let _ = secret(&text);
        }

        #[test]
        fn a_tag_fits_its_own_bytes_only(bytes in prop::collection::vec(any::<u8>(), 1..64), at in any::<prop::sample::Index>()) {
            let ring = KeyRing::from(ours());
            let tagger = ring.tagger(Purpose::Cursor);
            let tag = tagger.tag(&bytes);
            prop_assert!(tagger.verify(&bytes, &tag));
            prop_assert!(!tagger.verify(&bytes, &tag[..15]));
            prop_assert!(!ring.tagger(Purpose::SearchToken).verify(&bytes, &tag));
            let mut changed = bytes.clone();
            changed[at.index(bytes.len())] ^= 1;
            prop_assert!(!tagger.verify(&changed, &tag));
        }
    }
}
