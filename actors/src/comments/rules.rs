//! Pure. What may be written in a comment.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::text;

/// The longest body, in characters.
pub const BODY_CHARS_MAX: usize = 10_000;

/// The text of a comment: 1 to [`BODY_CHARS_MAX`] characters, none of them NUL, one of them visible. Cheap to clone.
///
/// Deserialising trusts what was stored, or parsed by another node: a rule made stricter later must neither lock out old
/// comments nor make their events poison.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommentBody(Arc<str>);

/// Why a text is no comment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyRejection {
    /// There is no text.
    #[error("a comment needs a body")]
    Empty,
    /// There is a text, and nothing of it can be seen.
    #[error("a comment needs a character that can be seen")]
    Blank,
    /// Longer than [`BODY_CHARS_MAX`].
    #[error("a comment has at most {BODY_CHARS_MAX} characters, not {chars}")]
    TooLong {
        /// The length of what was sent, in characters.
        chars: usize,
    },
    /// Postgres cannot store U+0000 in a text.
    #[error("a comment contains no NUL character")]
    Nul,
}

impl CommentBody {
    /// Takes the text as it is, white space included.
    ///
    /// # Errors
    /// When it is empty or blank, too long or contains NUL.
    pub fn parse(text: impl Into<Arc<str>>) -> Result<Self, BodyRejection> {
        let text = text.into();
        if text.is_empty() {
            return Err(BodyRejection::Empty);
        }
        // Few texts have more bytes than that, so most are never counted.
        if text.len() > BODY_CHARS_MAX {
            let chars = text.chars().count();
            if chars > BODY_CHARS_MAX {
                return Err(BodyRejection::TooLong { chars });
            }
        }
        if text.contains('\0') {
            return Err(BodyRejection::Nul);
        }
        text::not_blank(&text).map_err(|_| BodyRejection::Blank)?;
        Ok(Self(text))
    }

    /// Takes what was stored: a rule made stricter later does not lock out old comments.
    pub(crate) fn stored(text: &str) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_not_empty() {
        assert_eq!(CommentBody::parse(""), Err(BodyRejection::Empty));
    }

    #[test]
    fn a_body_is_measured_in_characters() {
        let longest = "ü".repeat(BODY_CHARS_MAX);
        assert_eq!(CommentBody::parse(longest.as_str()).as_ref().map(CommentBody::as_str), Ok(longest.as_str()));
    }

    #[test]
    fn one_character_more_is_too_long() {
        let text = "ü".repeat(BODY_CHARS_MAX + 1);
        assert_eq!(CommentBody::parse(text), Err(BodyRejection::TooLong { chars: 10_001 }));
    }

    #[test]
    fn a_body_contains_no_nul() {
        assert_eq!(CommentBody::parse("a\0b"), Err(BodyRejection::Nul));
    }

    #[test]
    fn a_body_shows_something() {
        for blank in text::tests::BLANK {
            assert_eq!(CommentBody::parse(blank), Err(BodyRejection::Blank), "{blank:?}");
        }
        for seen in text::tests::SEEN {
            assert_eq!(CommentBody::parse(seen).as_ref().map(CommentBody::as_str), Ok(seen), "nothing is taken away");
        }
    }

    /// An event of a comment that was accepted before a rule must not be poison, nor the command of an older gateway.
    #[test]
    fn what_was_accepted_once_is_read_for_ever_in_the_same_bytes() {
        for accepted in ["\u{200B}", " ", ""] {
            let body = CommentBody::stored(accepted);
            let json = serde_json::to_string(accepted).unwrap();
            assert_eq!(serde_json::to_string(&body).unwrap(), json);
            assert_eq!(serde_json::from_str::<CommentBody>(&json).unwrap(), body);
            let wire = postcard::to_allocvec(accepted).unwrap();
            assert_eq!(postcard::to_allocvec(&body).unwrap(), wire);
            assert_eq!(postcard::from_bytes::<CommentBody>(&wire).unwrap(), body);
        }
    }
}
