//! Pure. Checked texts: the newtype they share and the checks they are made of.

use std::ops::RangeInclusive;

use crate::invalid::{Invalid, Unit};

/// Declares a text that only its `parse` can make.
///
/// Cloning is cheap, for the same text is in an entity, its committed view and its events at once. It is
/// (de)serialised as a plain string; deserialising trusts what was stored, so that a rule made stricter
/// later does not lock out old data.
macro_rules! checked_text {
    ($(#[$about:meta])* $name:ident) => {
        $(#[$about])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

/// Shows a checked text in logs and messages; left out where the text is personal data.
macro_rules! show_text {
    ($name:ident) => {
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

pub(crate) use {checked_text, show_text};

/// Checks the number of characters, as people count them roughly: Unicode scalar values.
pub(crate) fn characters(text: &str, allowed: RangeInclusive<usize>) -> Result<(), Invalid> {
    length(text.chars().count(), allowed, Unit::Characters)
}

/// Checks the number of bytes.
pub(crate) fn bytes(text: &str, allowed: RangeInclusive<usize>) -> Result<(), Invalid> {
    length(text.len(), allowed, Unit::Bytes)
}

/// Refuses U+0000.
pub(crate) fn no_nul(text: &str) -> Result<(), Invalid> {
    if text.contains('\0') { Err(Invalid::Nul) } else { Ok(()) }
}

/// Refuses what a line of text has no use for, line breaks included.
///
/// Bidirectional overrides count too: with them one name can be made to look like another.
pub(crate) fn one_line(text: &str) -> Result<(), Invalid> {
    no_nul(text)?;
    let bidirectional = |c| matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    let line_break = |c| matches!(c, '\u{2028}' | '\u{2029}');
    if text.chars().any(|c| c.is_control() || bidirectional(c) || line_break(c)) {
        return Err(Invalid::ControlCharacter);
    }
    Ok(())
}

fn length(count: usize, allowed: RangeInclusive<usize>, unit: Unit) -> Result<(), Invalid> {
    if count < *allowed.start() {
        Err(Invalid::TooShort { minimum: *allowed.start(), unit })
    } else if count > *allowed.end() {
        Err(Invalid::TooLong { maximum: *allowed.end(), unit })
    } else {
        Ok(())
    }
}
