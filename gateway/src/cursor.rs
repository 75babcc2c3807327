//! Opaque, tamper-proof cursors.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::problem::{INVALID_CURSOR, Problem};

/// Bytes of the tag: 128 bits, against which guessing over HTTP is hopeless.
const TAG_BYTES: usize = 16;
/// Longest cursor that is looked at, in bytes: a place 50 levels deep in a thread takes about 5,000.
const TEXT_BYTES_MAX: usize = 8 * 1024;

/// Seals and opens cursors under one key; all gateways of a cluster share it.
#[derive(Clone)]
pub struct Cursors {
    key: hmac::Key,
}

impl Cursors {
    /// Cursors under a key that is derived from the cluster's secret.
    pub fn new(key: &[u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key) }
    }

    /// Seals a position of the list `scope`.
    ///
    /// The scope is part of the tag only, so that a cursor of one list opens in no other.
    pub fn seal<T: Serialize>(&self, scope: &str, position: &T) -> String {
        let mut sealed = serde_json::to_vec(position).expect("positions are plain data");
        let tag = self.tag(scope, &sealed);
        sealed.extend_from_slice(&tag.as_ref()[..TAG_BYTES]);
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
        let tag = self.tag(scope, position);
        aws_lc_rs::constant_time::verify_slices_are_equal(&tag.as_ref()[..TAG_BYTES], sent).ok()?;
        serde_json::from_slice(position).ok()
    }

    fn tag(&self, scope: &str, position: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        // The length keeps scope and position apart.
        context.update(&(scope.len() as u64).to_be_bytes());
        context.update(scope.as_bytes());
        context.update(position);
        context.sign()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_sealed_opens(position: (i64, String), scope: String) {
            let cursors = Cursors::new(&[7; 32]);
            let text = cursors.seal(&scope, &position);
            prop_assume!(text.len() <= TEXT_BYTES_MAX);
            prop_assert_eq!(cursors.open::<(i64, String)>(&scope, &text).unwrap(), position);
        }

        #[test]
        fn a_cursor_with_any_byte_changed_is_refused(position: i64, at: prop::sample::Index, flip in 1u8..) {
            let cursors = Cursors::new(&[7; 32]);
            let mut raw = BASE64_URL_SAFE_NO_PAD.decode(cursors.seal("posts", &position)).unwrap();
            let at = at.index(raw.len());
            raw[at] ^= flip;
            prop_assert!(cursors.open::<i64>("posts", &BASE64_URL_SAFE_NO_PAD.encode(raw)).is_err());
        }

        #[test]
        fn no_text_panics(text: String) {
            prop_assert!(Cursors::new(&[7; 32]).open::<i64>("posts", &text).is_err());
        }
    }

    #[test]
    fn a_cursor_of_one_list_opens_in_no_other() {
        let cursors = Cursors::new(&[7; 32]);
        let text = cursors.seal("posts", &1);
        assert!(cursors.open::<i64>("users", &text).is_err());
    }
}
