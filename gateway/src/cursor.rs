//! Opaque, tamper-proof cursors.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rookery_actors::secret::{TAG_BYTES, Tagger};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::problem::{INVALID_CURSOR, Problem};

/// Longest cursor that is looked at, in bytes: a place 50 levels deep in a thread takes about 5,000.
const TEXT_BYTES_MAX: usize = 8 * 1024;

/// Seals and opens cursors under one key; all gateways of a cluster share it.
#[derive(Clone)]
pub struct Cursors {
    tagger: Tagger,
}

impl Cursors {
    /// Cursors under keys that are derived from the cluster's secrets.
    pub fn new(tagger: Tagger) -> Self {
        Self { tagger }
    }

    /// Seals a position of the list `scope`.
    ///
    /// The scope is part of the tag only, so that a cursor of one list opens in no other.
    pub fn seal<T: Serialize>(&self, scope: &str, position: &T) -> String {
        let mut sealed = serde_json::to_vec(position).expect("positions are plain data");
        // The length keeps scope and position apart.
        let tag = self.tagger.tag_parts(&[&(scope.len() as u64).to_be_bytes(), scope.as_bytes(), &sealed]);
        sealed.extend_from_slice(&tag);
        BASE64_URL_SAFE_NO_PAD.encode(sealed)
    }

    /// Opens a cursor of the list `scope`.
    ///
    /// # Errors
    /// A 400 if it was not sealed by [`Self::seal`] for this list.
    pub fn open<T: DeserializeOwned>(&self, scope: &str, text: &str) -> Result<T, Problem> {
        self.try_open(scope, text)
            .ok_or_else(|| Problem::new(&INVALID_CURSOR, "the cursor was not handed out by this list, or it has been altered"))
    }

    fn try_open<T: DeserializeOwned>(&self, scope: &str, text: &str) -> Option<T> {
        if text.len() > TEXT_BYTES_MAX {
            return None;
        }
        let sealed = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        let (position, sent) = sealed.split_at_checked(sealed.len().checked_sub(TAG_BYTES)?)?;
        let is_ours = self.tagger.verify_parts(&[&(scope.len() as u64).to_be_bytes(), scope.as_bytes(), position], sent);
        if is_ours { serde_json::from_slice(position).ok() } else { None }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use rookery_actors::secret::{ClusterSecret, KeyRing, Purpose};

    use super::*;

    pub(crate) fn cursors() -> Cursors {
        let secrets = KeyRing::from(ClusterSecret::from_bytes(&[7; 32]).unwrap());
        Cursors::new(secrets.tagger(Purpose::Cursor))
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens(position: (i64, String), scope: String) {
            let cursors = cursors();
            let text = cursors.seal(&scope, &position);
            prop_assume!(text.len() <= TEXT_BYTES_MAX);
            prop_assert_eq!(cursors.open::<(i64, String)>(&scope, &text).unwrap(), position);
        }

        #[test]
        fn a_cursor_with_any_byte_changed_is_refused(position: i64, at: prop::sample::Index, flip in 1u8..) {
            let cursors = cursors();
            let mut raw = BASE64_URL_SAFE_NO_PAD.decode(cursors.seal("posts", &position)).unwrap();
            let at = at.index(raw.len());
            raw[at] ^= flip;
            prop_assert!(cursors.open::<i64>("posts", &BASE64_URL_SAFE_NO_PAD.encode(raw)).is_err());
        }

        #[test]
        fn no_text_panics(text: String) {
            prop_assert!(cursors().open::<i64>("posts", &text).is_err());
        }
    }

    #[test]
    fn a_cursor_of_one_list_opens_in_no_other() {
        let cursors = cursors();
        let text = cursors.seal("posts", &1);
        assert!(cursors.open::<i64>("users", &text).is_err());
    }
}
