//! Pure. Checked texts: the newtype they share and the checks they are made of.

use std::ops::RangeInclusive;

use icu_properties::{
    CodePointMapData, CodePointSetData,
    props::{DefaultIgnorableCodePoint, GeneralCategory, GeneralCategoryGroup},
};

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

/// Refuses a text that shows nothing: a reader would see an empty place, or take one name for another.
pub(crate) fn not_blank(text: &str) -> Result<(), Invalid> {
    if text.chars().any(is_visible) { Ok(()) } else { Err(Invalid::Blank) }
}

/// Whether a character shows something by itself. Marks and joiners do so only beside another, and none is ever taken away:
/// emoji and many scripts need them.
fn is_visible(c: char) -> bool {
    /// Looks like a space, and is none to Unicode.
    const BRAILLE_PATTERN_BLANK: char = '\u{2800}';
    const UNSEEN: GeneralCategoryGroup =
        GeneralCategoryGroup::Mark.union(GeneralCategoryGroup::Control).union(GeneralCategoryGroup::Format);
    if c.is_ascii() {
        return c.is_ascii_graphic();
    }
    !c.is_whitespace()
        && c != BRAILLE_PATTERN_BLANK
        && !CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
        && !UNSEEN.contains(CodePointMapData::<GeneralCategory>::new().get(c))
}

/// Refuses the marks that change the direction of what follows: in a name they let one person pass for another. Texts in
/// which people write several scripts keep them.
pub(crate) fn no_direction_marks(text: &str) -> Result<(), Invalid> {
    match text.contains(['\u{200E}', '\u{200F}', '\u{061C}']) {
        true => Err(Invalid::ControlCharacter),
        false => Ok(()),
    }
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Texts that show nothing, each of another kind.
    pub(crate) const BLANK: [&str; 18] = [
        " ",
        "\u{A0}",
        "\u{3000}",
        "\u{200B}",
        "\u{FEFF}",
        "\u{200D}",
        "\u{200C}",
        "\u{2060}",
        "\u{3164}",
        "\u{FFA0}",
        "\u{115F}",
        "\u{2800}",
        "\u{AD}",
        "\u{34F}",
        "\u{FE0F}",
        "\u{301}",
        "\u{E0041}",
        "\u{200B} \u{2800}\u{FEFF}\t\u{301}",
    ];

    /// Texts that need what shows nothing by itself.
    pub(crate) const SEEN: [&str; 10] = [
        "👩\u{200D}👩\u{200D}👧",
        "👁\u{FE0F}",
        "1\u{FE0F}\u{20E3}",
        "🏴\u{E0067}\u{E0062}\u{E0065}\u{E006E}\u{E0067}\u{E007F}",
        "क\u{94D}\u{200D}ष",
        "می\u{200C}خواهم",
        "e\u{301}",
        "한",
        "\u{200B}x",
        "⠁",
    ];

    #[test]
    fn a_text_that_shows_nothing_is_blank() {
        for text in BLANK {
            assert_eq!(not_blank(text), Err(Invalid::Blank), "{text:?}");
        }
        assert_eq!(not_blank(""), Err(Invalid::Blank));
    }

    #[test]
    fn a_text_may_hold_what_shows_nothing_beside_what_does() {
        for text in SEEN {
            assert_eq!(not_blank(text), Ok(()), "{text:?}");
        }
    }
}
