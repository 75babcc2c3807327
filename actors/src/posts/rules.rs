//! Pure. What a post may hold, and how hot it is.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::invalid::{Invalid, Unit};
use crate::text::{self, checked_text, show_text};

checked_text! {
    /// The heading of a post: 1–200 characters on one line.
    Title
}
show_text!(Title);

checked_text! {
    /// The Markdown of a post: up to 40,000 characters, possibly none.
    Body
}

checked_text! {
    /// A word to find posts by: 1–30 of `[a-z0-9-]`.
    Tag
}
show_text!(Tag);

/// The tags of a post: up to 5, each once, in their author's order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tags(Arc<[Tag]>);

impl Title {
    /// Reads a title, without its surrounding spaces.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        text::characters(text, 1..=200)?;
        text::one_line(text)?;
        text::not_blank(text)?;
        Ok(Self(text.into()))
    }
}

impl Body {
    /// Reads a body as it is: leading spaces mean something in Markdown.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        text::characters(text, 0..=40_000)?;
        text::no_nul(text)?;
        Ok(Self(text.into()))
    }
}

/// Bodies stay out of logs; their length is enough there.
impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.0.len())
    }
}

impl Tag {
    /// Reads a tag as it is: capitals are refused rather than changed, so that what was sent is what is found.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            return Err(Invalid::Alphabet { allowed: "letters a-z, digits and hyphens" });
        }
        text::characters(text, 1..=30)?;
        Ok(Self(text.into()))
    }
}

impl Tags {
    /// The most tags of one post.
    pub const MAX: usize = 5;

    /// Reads a list of tags; one that comes again is dropped.
    ///
    /// # Errors
    /// The first rule that one of them, or their number, breaks.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, Invalid> {
        let mut tags: Vec<Tag> = Vec::new();
        for text in texts {
            let tag = Tag::parse(text.as_ref())?;
            if tags.contains(&tag) {
                continue;
            }
            // At once, not at the end: the search for duplicates stays short however long the list is.
            if tags.len() == Self::MAX {
                return Err(Invalid::TooLong { maximum: Self::MAX, unit: Unit::Items });
            }
            tags.push(tag);
        }
        Ok(Self(tags.into()))
    }

    /// The tags in their author's order.
    pub fn as_slice(&self) -> &[Tag] {
        &self.0
    }

    /// Whether the post carries this tag.
    pub fn contains(&self, tag: &str) -> bool {
        self.0.iter().any(|own| own.as_str() == tag)
    }
}

/// How hot a post is: ten times the likes are worth 45,000 seconds (12.5 hours) of youth.
///
/// It depends on nothing that passes with time, so a sorted list stays sorted by itself.
pub fn hot(likes: u64, created_at: Timestamp) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "likes and seconds are far below 2^53")]
    let (likes, created_at_seconds) = (likes.max(1) as f64, created_at.as_second() as f64);
    likes.log10() + created_at_seconds / 45_000.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_title_is_1_to_200_characters_without_its_margins() {
        assert_eq!(Title::parse("  Hello \n").unwrap().as_str(), "Hello");
        assert_eq!(Title::parse(" \t ").unwrap_err().code(), "too_short");
        assert!(Title::parse(&"ß".repeat(200)).is_ok());
        assert_eq!(Title::parse(&"ß".repeat(201)).unwrap_err().code(), "too_long");
    }

    #[test]
    fn a_title_shows_something() {
        for blank in text::tests::BLANK {
            assert!(Title::parse(blank).is_err(), "{blank:?}");
        }
        assert_eq!(Title::parse("\u{200B}").unwrap_err().code(), "blank");
        for seen in text::tests::SEEN {
            assert_eq!(Title::parse(seen).unwrap().as_str(), seen, "nothing is taken away");
        }
        // What was stored before that rule is still a title.
        assert!(serde_json::from_str::<Title>("\"\u{200B}\"").is_ok());
    }

    #[test]
    fn a_title_is_one_line() {
        assert_eq!(Title::parse("a\nb"), Err(Invalid::ControlCharacter));
        assert_eq!(Title::parse("a\0b"), Err(Invalid::Nul));
    }

    #[test]
    fn a_body_keeps_its_margins_and_its_lines() {
        assert_eq!(Body::parse("    code\n\n").unwrap().as_str(), "    code\n\n");
    }

    #[test]
    fn a_body_has_at_most_40_000_characters_and_no_nul() {
        assert!(Body::parse("").is_ok());
        assert!(Body::parse(&"界".repeat(40_000)).is_ok());
        assert_eq!(Body::parse(&"x".repeat(40_001)).unwrap_err().code(), "too_long");
        assert_eq!(Body::parse("a\0"), Err(Invalid::Nul));
    }

    #[test]
    fn a_body_does_not_show_in_a_debug_line() {
        assert_eq!(format!("{:?}", Body::parse("secret").unwrap()), "Body(6 bytes)");
    }

    #[test]
    fn tags_are_kept_once_and_in_order() {
        let tags = Tags::parse(&["rust", "actors", "rust", "a-1"]).unwrap();
        let words: Vec<_> = tags.as_slice().iter().map(Tag::as_str).collect();
        assert_eq!(words, ["rust", "actors", "a-1"]);
    }

    #[test]
    fn a_sixth_tag_is_refused_but_not_a_repeated_fifth() {
        assert!(Tags::parse(&["a", "b", "c", "d", "e", "e"]).is_ok());
        let too_many = Invalid::TooLong { maximum: 5, unit: Unit::Items };
        assert_eq!(Tags::parse(&["a", "b", "c", "d", "e", "f"]), Err(too_many));
    }

    #[test]
    fn a_tag_holds_nothing_but_small_letters_digits_and_hyphens() {
        for tag in ["Rust", "c++", "a b", "é", "a\0"] {
            assert_eq!(Tag::parse(tag).unwrap_err().code(), "invalid_characters", "{tag:?}");
        }
        assert_eq!(Tag::parse("").unwrap_err().code(), "too_short");
        assert_eq!(Tag::parse(&"a".repeat(31)).unwrap_err().code(), "too_long");
    }

    #[test]
    fn stored_tags_are_a_list_of_strings() {
        let tags = Tags::parse(&["rust", "actors"]).unwrap();
        let stored = serde_json::to_string(&tags).unwrap();
        assert_eq!(stored, r#"["rust","actors"]"#);
        assert_eq!(serde_json::from_str::<Tags>(&stored).unwrap(), tags);
    }

    #[test]
    fn ten_times_the_likes_outweigh_twelve_and_a_half_hours() {
        let then = Timestamp::from_second(1_700_000_000).unwrap();
        let later = Timestamp::from_second(1_700_045_000).unwrap();
        assert!((hot(100, then) - hot(10, later)).abs() < 1e-6);
        assert_eq!(hot(0, then), hot(1, then));
    }

    proptest! {
        #[test]
        fn parsing_again_changes_nothing(text in "(?s).{0,250}", words in prop::collection::vec("[a-z0-9-]{0,32}|.{0,3}", 0..8)) {
            if let Ok(title) = Title::parse(&text) {
                prop_assert_eq!(Title::parse(title.as_str()), Ok(title));
            }
            if let Ok(body) = Body::parse(&text) {
                prop_assert_eq!(body.as_str(), text);
            }
            if let Ok(tags) = Tags::parse(&words) {
                prop_assert!(tags.as_slice().len() <= Tags::MAX);
                prop_assert_eq!(Tags::parse(tags.as_slice()), Ok(tags));
            }
        }

        #[test]
        fn more_likes_never_make_a_post_cooler(likes in 0..u64::MAX / 2, more in 0..u64::MAX / 2, second in -300_000_000_000_i64..200_000_000_000) {
            let at = Timestamp::from_second(second).unwrap();
            prop_assert!(hot(likes, at).is_finite());
            prop_assert!(hot(likes + more, at) >= hot(likes, at));
        }
    }
}
