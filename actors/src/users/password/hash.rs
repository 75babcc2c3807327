//! The hash of a password as it is stored: a PHC string.

use std::fmt;
use std::sync::Arc;

use argon2::password_hash::phc;
use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::{constant_time, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Serialize};

/// What is stored of a password: `$argon2id$v=19$m=19456,t=2,p=1$salt$hash`. Never shown in logs.
///
/// (De)serialised as that string; whether a stored one makes sense is found out when it is used.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PasswordHash(Arc<str>);

/// Not a PHC string of argon2, or one that asks for more memory or time than we give to one login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an argon2 hash within {} KiB and {MOST_PASSES} passes", MOST_KIB)]
pub struct MalformedHash;

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the system's random source failed")]
pub(super) struct NoRandomness;

/// A stored hash, taken apart.
pub(super) struct Recipe {
    pub(super) argon2: Argon2<'static>,
    pub(super) salt: phc::Salt,
    expected: phc::Output,
}

pub(super) type Salt = [u8; 16];
pub(super) type Digest = [u8; 32];

impl PasswordHash {
    /// Takes a hash that was made elsewhere.
    ///
    /// # Errors
    /// [`MalformedHash`].
    pub fn parse(text: &str) -> Result<Self, MalformedHash> {
        let hash = Self(text.into());
        hash.recipe()?;
        Ok(hash)
    }

    /// The PHC string.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it was made with other parameters than today's, so that the next login should replace it.
    pub fn needs_rehash(&self) -> bool {
        let today = today();
        let ours = format!("$argon2id$v=19${}$", parameters(today.params()));
        !self.0.starts_with(&ours)
    }

    /// A hash that no password has: its digest is random, and not one of its salt.
    pub(super) fn of_nobody() -> Result<Self, NoRandomness> {
        let mut digest = [0; size_of::<Digest>()];
        rand::fill(&mut digest).map_err(|_| NoRandomness)?;
        Ok(Self::from_parts(&new_salt()?, &digest))
    }

    /// Writes down what today's parameters made of a password.
    pub(super) fn from_parts(salt: &Salt, digest: &Digest) -> Self {
        let (salt, digest) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(digest));
        Self(format!("$argon2id$v=19${}${salt}${digest}", parameters(today().params())).into())
    }

    pub(super) fn recipe(&self) -> Result<Recipe, MalformedHash> {
        let parsed = phc::PasswordHash::new(&self.0).map_err(|_| MalformedHash)?;
        let algorithm = Algorithm::try_from(parsed.algorithm.as_str()).map_err(|_| MalformedHash)?;
        let version = parsed.version.map_or(Ok(Version::default()), Version::try_from).map_err(|_| MalformedHash)?;
        let params = Params::try_from(&parsed).map_err(|_| MalformedHash)?;
        if params.m_cost() > MOST_KIB || params.t_cost() > MOST_PASSES {
            return Err(MalformedHash);
        }
        let (salt, expected) = parsed.salt.zip(parsed.hash).ok_or(MalformedHash)?;
        Ok(Recipe { argon2: Argon2::new(algorithm, version, params), salt, expected })
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash([redacted])")
    }
}

impl Recipe {
    pub(super) fn digest_bytes(&self) -> usize {
        self.expected.len()
    }

    /// Compares in constant time.
    pub(super) fn expects(&self, digest: &[u8]) -> bool {
        constant_time::verify_slices_are_equal(self.expected.as_bytes(), digest).is_ok()
    }
}

/// Argon2id, 19 MiB, two passes, one lane: OWASP's first recommendation.
pub(super) fn today() -> Argon2<'static> {
    let params = Params::new(19 * 1024, 2, 1, Some(size_of::<Digest>())).expect("the parameters are within argon2's");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

pub(super) fn new_salt() -> Result<Salt, NoRandomness> {
    let mut salt = Salt::default();
    rand::fill(&mut salt).map_err(|_| NoRandomness)?;
    Ok(salt)
}

fn parameters(params: &Params) -> String {
    format!("m={},t={},p={}", params.m_cost(), params.t_cost(), params.p_cost())
}

/// Imported hashes may ask for more than ours, but one login must not take the machine.
const MOST_KIB: u32 = 64 * 1024;
const MOST_PASSES: u32 = 10;
