//! The secrets that a node recognises, and the one by which it makes new things.
//!
//! A secret can be read in two ways: builds up to 0.1.0 took a configured one as the bytes of its text, and the one in a
//! data folder decoded. Both readings are in deployed data, so both are recognised, for every purpose; and so are those of
//! the secret before the last rotation. What is *made* must be recognised by every node that is running, so a ring makes
//! with the newest secret that all of them have, and while a build of before is among them, with what that one reads.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use aws_lc_rs::hmac;
use secrecy::{ExposeSecret, SecretBox, SecretString};

use super::{ClusterSecret, Purpose, SecretError, TAG_BYTES, Tag, bytes_of};

/// How builds up to 0.1.0 read the secret that a node has as its first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormerReading {
    /// From the data folder: decoded, as today.
    Decoded,
    /// From the configuration: the bytes of its text.
    Literal,
}

/// The name of a secret, by which nodes tell each other which ones they have. It tells nothing of the secret.
pub type SecretId = String;

/// The secrets of a cluster: one makes, all are recognised. Its clones change together.
#[derive(Clone)]
pub struct KeyRing {
    ring: Arc<Ring>,
}

struct Ring {
    /// In the order in which they are preferred; the first so many may make when all nodes have them.
    readings: Vec<ClusterSecret>,
    makers: usize,
    /// What builds of before make with and recognise.
    former: usize,
    current: AtomicUsize,
}

impl KeyRing {
    /// Reads the secret, and the one before it while it is being replaced.
    ///
    /// # Errors
    /// [`SecretError::TooShort`].
    pub fn read(secret: &SecretString, former: FormerReading, previous: Option<&SecretString>) -> Result<Self, SecretError> {
        let mut readings = vec![decoded(secret)?];
        readings.extend(previous.map(decoded).transpose()?);
        let makers = readings.len();
        // A node of before has the secret of before.
        let before = (previous.unwrap_or(secret), if previous.is_some() { FormerReading::Literal } else { former });
        let former = match before {
            (text, FormerReading::Decoded) => decoded(text)?,
            (text, FormerReading::Literal) => literal(text)?,
        };
        // A text whose bytes are too few as they stand was never taken so.
        readings.extend([Some(secret), previous].into_iter().flatten().filter_map(|text| literal(text).ok()));
        let id = former.id();
        let former = readings.iter().position(|reading| reading.id() == id).expect("it is one of the readings");
        let ring = Ring { readings, makers, former, current: AtomicUsize::new(0) };
        Ok(Self { ring: Arc::new(ring.without_repetitions()) })
    }

    /// The names of all that this node recognises, for [`KeyRing::settle`] on the others.
    pub fn ids(&self) -> Vec<SecretId> {
        self.ring.readings.iter().map(ClusterSecret::id).collect()
    }

    /// Chooses the secret that makes: the newest that every other running node recognises. A node that names none is of a
    /// build of before. Returns whether the choice changed.
    pub fn settle<'a>(&self, others: impl IntoIterator<Item = &'a [SecretId]>) -> bool {
        let Ring { readings, makers, former, .. } = &*self.ring;
        let others: Vec<_> = others.into_iter().collect();
        let known_by_all = |reading: &ClusterSecret| {
            let id = reading.id();
            others.iter().all(|ids| ids.contains(&id))
        };
        let chosen = match others.iter().any(|ids| ids.is_empty()) {
            true => *former,
            // Where no secret is common to all, no choice is right for all; the newest is right for the future.
            false => readings[..*makers].iter().position(known_by_all).unwrap_or(0),
        };
        self.ring.current.swap(chosen, Ordering::SeqCst) != chosen
    }

    /// The secret by which builds of before go.
    pub fn former(&self) -> &ClusterSecret {
        &self.ring.readings[self.ring.former]
    }

    /// Whether the configured secret makes everything now.
    pub fn is_settled(&self) -> bool {
        self.ring.current.load(Ordering::SeqCst) == 0
    }

    /// What signs and checks tags for one purpose. Keep it: making it costs two hashes a secret.
    pub fn tagger(&self, purpose: Purpose) -> Tagger {
        let key = |secret: &ClusterSecret| hmac::Key::new(hmac::HMAC_SHA256, &secret.derive(purpose));
        Tagger { ring: self.clone(), keys: self.ring.readings.iter().map(key).collect() }
    }

    /// Encrypts bytes for storage with the secret that makes; see [`ClusterSecret::seal`].
    ///
    /// # Errors
    /// [`SecretError::NoRandomness`].
    pub fn seal(&self, plain: &[u8], place: &[u8]) -> Result<Vec<u8>, SecretError> {
        self.ring.readings[self.current()].seal(plain, place)
    }

    /// Opens what any of the secrets sealed for this place.
    ///
    /// # Errors
    /// [`SecretError::NotOurs`], which does not tell why.
    pub fn unseal(&self, sealed: &[u8], place: &[u8]) -> Result<Unsealed, SecretError> {
        for index in self.in_order() {
            if let Ok(plain) = self.ring.readings[index].unseal(sealed, place) {
                return Ok(Unsealed { plain, by_first: index == 0 });
            }
        }
        Err(SecretError::NotOurs)
    }

    fn current(&self) -> usize {
        self.ring.current.load(Ordering::SeqCst)
    }

    /// The places of all secrets, that of the one that makes first.
    fn in_order(&self) -> impl Iterator<Item = usize> {
        let current = self.current();
        std::iter::once(current).chain((0..self.ring.readings.len()).filter(move |index| *index != current))
    }
}

impl From<ClusterSecret> for KeyRing {
    /// A ring with a single secret.
    fn from(secret: ClusterSecret) -> Self {
        Self { ring: Arc::new(Ring { readings: vec![secret], makers: 1, former: 0, current: AtomicUsize::new(0) }) }
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyRing([redacted])")
    }
}

/// Something that was sealed, open.
pub struct Unsealed {
    /// What it holds.
    pub plain: SecretBox<Vec<u8>>,
    /// Whether the configured secret sealed it; otherwise another reading, or the secret before.
    pub by_first: bool,
}

impl Ring {
    /// A text that reads the same both ways is one secret.
    fn without_repetitions(self) -> Self {
        let Self { readings, makers, former, current } = self;
        let first_of = |reading: &ClusterSecret| readings.iter().position(|other| other.id() == reading.id());
        let kept: Vec<_> = (0..readings.len()).filter(|index| first_of(&readings[*index]) == Some(*index)).collect();
        let place = |index: usize| kept.iter().position(|kept| *kept == index).expect("the first of its kind is kept");
        let former = place(first_of(&readings[former]).expect("it is among them"));
        let makers = kept.iter().filter(|index| **index < makers).count();
        Self { makers, former, current, readings: kept.iter().map(|index| readings[*index].clone()).collect() }
    }
}

/// What the text spells; a text that spells too few bytes and is long enough itself is taken as it stands, since builds of
/// before did so.
fn decoded(text: &SecretString) -> Result<ClusterSecret, SecretError> {
    ClusterSecret::parse(text).or_else(|_| literal(text))
}

fn literal(text: &SecretString) -> Result<ClusterSecret, SecretError> {
    ClusterSecret::from_bytes(text.expose_secret().as_bytes()).map_err(|_| {
        let bytes = bytes_of(text).expose_secret().len();
        SecretError::TooShort { bytes }
    })
}

/// Signs bytes that leave the cluster and come back, and recognises its own.
#[derive(Clone)]
pub struct Tagger {
    ring: KeyRing,
    keys: Arc<[hmac::Key]>,
}

impl Tagger {
    /// The tag of these bytes.
    pub fn tag(&self, bytes: &[u8]) -> Tag {
        self.tag_parts(&[bytes])
    }

    /// The tag of the parts, one after the other.
    pub fn tag_parts(&self, parts: &[&[u8]]) -> Tag {
        short(&self.keys[self.ring.current()], parts)
    }

    /// Whether a tag is that of these bytes, in constant time for each secret.
    pub fn verify(&self, bytes: &[u8], tag: &[u8]) -> bool {
        self.verify_parts(&[bytes], tag)
    }

    /// The same of parts, one after the other.
    pub fn verify_parts(&self, parts: &[&[u8]], tag: &[u8]) -> bool {
        let is_tag = |key| aws_lc_rs::constant_time::verify_slices_are_equal(&short(key, parts), tag).is_ok();
        self.ring.in_order().any(|index| is_tag(&self.keys[index]))
    }

    /// The whole HMAC-SHA256 of the parts with every secret, the one that makes first.
    pub fn hashes(&self, parts: &[&[u8]]) -> impl Iterator<Item = [u8; 32]> {
        self.ring.in_order().map(move |index| {
            let tag = sign(&self.keys[index], parts);
            tag.as_ref().try_into().expect("HMAC-SHA256 has 32 bytes")
        })
    }

    /// The keys themselves, and the place of the one that makes.
    pub fn keys(&self) -> (&[hmac::Key], usize) {
        (&self.keys, self.ring.current())
    }
}

impl fmt::Debug for Tagger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tagger([redacted])")
    }
}

fn sign(key: &hmac::Key, parts: &[&[u8]]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    parts.iter().for_each(|part| context.update(part));
    context.sign()
}

fn short(key: &hmac::Key, parts: &[&[u8]]) -> Tag {
    *sign(key, parts).as_ref().first_chunk::<TAG_BYTES>().expect("HMAC-SHA256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const OTHER: &str = "ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn ring(text: &str, previous: Option<&str>) -> KeyRing {
        let previous = previous.map(SecretString::from);
        KeyRing::read(&text.into(), FormerReading::Literal, previous.as_ref()).unwrap()
    }

    fn former(text: &str) -> KeyRing {
        ClusterSecret::from_bytes(text.as_bytes()).unwrap().into()
    }

    fn of_folder(text: &str) -> KeyRing {
        ClusterSecret::parse(&text.into()).unwrap().into()
    }

    const PURPOSES: [Purpose; 5] =
        [Purpose::Cursor, Purpose::SearchToken, Purpose::RefreshToken, Purpose::RequestHash, Purpose::Link];

    #[test]
    fn both_readings_of_a_secret_are_recognised_for_every_purpose() {
        for made in [former(HEX), of_folder(HEX)] {
            let new = ring(HEX, None);
            for purpose in PURPOSES {
                let tag = made.tagger(purpose).tag(b"said");
                assert!(new.tagger(purpose).verify(b"said", &tag), "{purpose:?}");
            }
            let sealed = made.seal(b"key", b"place").unwrap();
            assert_eq!(new.unseal(&sealed, b"place").unwrap().plain.expose_secret(), b"key");
            let hash = made.tagger(Purpose::RequestHash).hashes(&[b"body"]).next().unwrap();
            assert!(new.tagger(Purpose::RequestHash).hashes(&[b"body"]).any(|known| known == hash));
        }
    }

    #[test]
    fn a_node_beside_one_of_before_makes_what_that_one_recognises() {
        let new = ring(HEX, None);
        let tagger = new.tagger(Purpose::RefreshToken);
        let by = |ring: &KeyRing| ring.tagger(Purpose::RefreshToken).verify(b"said", &tagger.tag(b"said"));
        assert!(by(&of_folder(HEX)) && !by(&former(HEX)));
        let ids = new.ids();
        assert!(new.settle([ids.as_slice(), &[]]));
        assert!(by(&former(HEX)) && !by(&of_folder(HEX)));
        assert!(former(HEX).unseal(&new.seal(b"key", b"").unwrap(), b"").is_ok());
        assert!(new.settle([ids.as_slice()]));
        assert!(by(&of_folder(HEX)));
        assert!(!new.settle([ids.as_slice()]), "nothing changed");
    }

    #[test]
    fn a_single_process_went_by_what_its_file_spells() {
        let new = KeyRing::read(&HEX.into(), FormerReading::Decoded, None).unwrap();
        new.settle([[].as_slice()]);
        assert!(of_folder(HEX).unseal(&new.seal(b"key", b"").unwrap(), b"").is_ok());
    }

    #[test]
    fn while_a_secret_is_replaced_the_old_one_makes_until_all_nodes_have_the_new_one() {
        let (old, both) = (ring(HEX, None), ring(OTHER, Some(HEX)));
        let (old_ids, both_ids) = (old.ids(), both.ids());
        both.settle([old_ids.as_slice(), &both_ids]);
        let tag = both.tagger(Purpose::Cursor).tag(b"said");
        assert!(old.tagger(Purpose::Cursor).verify(b"said", &tag));
        both.settle([both_ids.as_slice(), &both_ids]);
        let new = ring(OTHER, None);
        let tag = both.tagger(Purpose::Cursor).tag(b"said");
        assert!(new.tagger(Purpose::Cursor).verify(b"said", &tag) && both.is_settled());
        // And what the old one made is still recognised.
        let tag = old.tagger(Purpose::Cursor).tag(b"said");
        assert!(both.tagger(Purpose::Cursor).verify(b"said", &tag) && !new.tagger(Purpose::Cursor).verify(b"said", &tag));
    }

    #[test]
    fn beside_a_node_of_before_the_secret_of_before_makes() {
        let both = ring(OTHER, Some(HEX));
        both.settle([[].as_slice()]);
        assert!(former(HEX).unseal(&both.seal(b"key", b"").unwrap(), b"").is_ok());
    }

    #[test]
    fn what_the_first_secret_did_not_seal_is_told() {
        let both = ring(OTHER, Some(HEX));
        let by_first = |sealed: Vec<u8>| both.unseal(&sealed, b"").unwrap().by_first;
        assert!(by_first(both.seal(b"key", b"").unwrap()));
        assert!(!by_first(ring(HEX, None).seal(b"key", b"").unwrap()));
        assert!(!by_first(former(OTHER).seal(b"key", b"").unwrap()));
    }

    #[test]
    fn a_pass_phrase_is_one_secret() {
        assert_eq!(ring("correct horse battery staple, and then some", None).ids().len(), 1);
        assert_eq!(ring(HEX, None).ids().len(), 2);
    }

    #[test]
    fn thirty_two_hex_digits_go_on_as_the_text_that_they_were_taken_for() {
        let digits = "ab".repeat(16);
        assert!(former(&digits).unseal(&ring(&digits, None).seal(b"key", b"").unwrap(), b"").is_ok());
        let short = KeyRing::read(&"changeme".into(), FormerReading::Literal, None);
        assert_eq!(short.unwrap_err(), SecretError::TooShort { bytes: 8 });
    }

    #[test]
    fn nothing_shows_in_a_debug_line() {
        assert_eq!(format!("{:?}", ring(HEX, None)), "KeyRing([redacted])");
        assert_eq!(format!("{:?}", ring(HEX, None).tagger(Purpose::Cursor)), "Tagger([redacted])");
    }
}
