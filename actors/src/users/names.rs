//! Pure. What a person is called and says about themselves, checked once at the edge.

use std::fmt;

use url::Url;

use crate::invalid::Invalid;
use crate::text::{self, checked_text, show_text};

checked_text! {
    /// The unique name of a user: 3–30 of `[a-z0-9_]`, whatever case it was typed in.
    Username
}
show_text!(Username);

checked_text! {
    /// An address to reach a user, lower-case so that it is unique. Personal data: it is never shown in logs.
    Email
}

checked_text! {
    /// The name shown beside what a user wrote: up to 50 characters on one line, possibly none, but never blank ones alone.
    DisplayName
}
show_text!(DisplayName);

checked_text! {
    /// What users say about themselves: up to 500 characters, possibly none.
    Bio
}
show_text!(Bio);

checked_text! {
    /// Where a user's picture is: an `http` or `https` URL of up to 500 characters, normalised.
    AvatarUrl
}
show_text!(AvatarUrl);

impl Username {
    /// Reads a user name; letters of either case are the same name.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        // The alphabet first: within it a character is a byte.
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(Invalid::Alphabet { allowed: "letters a-z, digits and underscores" });
        }
        text::characters(text, 3..=30)?;
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

impl Email {
    /// Reads an address such as `ada@example.org`, without its surrounding spaces.
    ///
    /// Pragmatic: it refuses what cannot be delivered to over the internet (no dot in the domain, characters
    /// outside ASCII, quoted local parts) and leaves the rest to the confirmation mail. Domains with other
    /// letters are accepted in their `xn--` form.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        text::no_nul(text)?;
        text::bytes(text, 0..=254)?;
        let (local, domain) = text.rsplit_once('@').ok_or(NOT_AN_EMAIL)?;
        if !is_local_part(local) || !is_domain(domain) {
            return Err(NOT_AN_EMAIL);
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

impl fmt::Debug for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Email([redacted])")
    }
}

impl DisplayName {
    /// Reads a name, without its surrounding spaces.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        text::characters(text, 0..=50)?;
        text::one_line(text)?;
        text::no_direction_marks(text)?;
        if !text.is_empty() {
            text::not_blank(text)?;
        }
        Ok(Self(text.into()))
    }
}

impl Bio {
    /// Reads a text of any number of lines, without its surrounding spaces.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        text::characters(text, 0..=500)?;
        text::no_nul(text)?;
        Ok(Self(text.into()))
    }
}

/// Nothing said.
impl Default for DisplayName {
    fn default() -> Self {
        Self("".into())
    }
}

/// Nothing said.
impl Default for Bio {
    fn default() -> Self {
        Self("".into())
    }
}

impl AvatarUrl {
    /// Reads an absolute URL. It is only ever handed to browsers, never fetched from here.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        text::characters(text, 1..=500)?;
        text::one_line(text)?;
        let url = Url::parse(text).map_err(|_| NOT_A_WEB_ADDRESS)?;
        // Credentials in a public URL are a mistake or a trick: `https://rookery.example@evil.example`.
        let with_credentials = !url.username().is_empty() || url.password().is_some();
        if !matches!(url.scheme(), "http" | "https") || with_credentials {
            return Err(NOT_A_WEB_ADDRESS);
        }
        // Once more: percent-encoding and punycode make it longer.
        text::characters(url.as_str(), 1..=500)?;
        Ok(Self(url.as_str().into()))
    }
}

const NOT_AN_EMAIL: Invalid = Invalid::Format { expected: "an e-mail address such as ada@example.org" };
const NOT_A_WEB_ADDRESS: Invalid = Invalid::Format { expected: "an http or https URL without user name and password" };

/// RFC 5321's dot-string: atoms of `atext`, separated by single dots, 64 bytes at most.
fn is_local_part(local: &str) -> bool {
    let is_atext = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&b);
    local.len() <= 64 && local.split('.').all(|atom| !atom.is_empty() && atom.bytes().all(is_atext))
}

/// At least two labels of letters, digits and inner hyphens, the last one not a number (an IPv4 address).
fn is_domain(domain: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_top_level = |label: &str| !label.bytes().all(|b| b.is_ascii_digit());
    domain.rsplit_once('.').is_some_and(|(_, last)| is_top_level(last)) && domain.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::invalid::Unit;

    #[test]
    fn a_username_is_the_same_in_either_case() {
        assert_eq!(Username::parse("Ada_Lovelace").unwrap(), Username::parse("ada_lovelace").unwrap());
    }

    #[test]
    fn a_username_has_3_to_30_characters() {
        assert_eq!(Username::parse("ad"), Err(Invalid::TooShort { minimum: 3, unit: Unit::Characters }));
        assert!(Username::parse("ada").is_ok());
        assert!(Username::parse(&"a".repeat(30)).is_ok());
        assert_eq!(Username::parse(&"a".repeat(31)), Err(Invalid::TooLong { maximum: 30, unit: Unit::Characters }));
    }

    #[test]
    fn a_username_holds_nothing_but_letters_digits_and_underscores() {
        for name in ["ada lovelace", "ada-l", "adä", "ada\0", "ada@x", "аda"] {
            assert_eq!(Username::parse(name).unwrap_err().code(), "invalid_characters", "{name:?}");
        }
    }

    #[test]
    fn an_email_is_unique_whatever_its_case() {
        assert_eq!(Email::parse(" Ada@Example.ORG ").unwrap().as_str(), "ada@example.org");
    }

    #[test]
    fn usual_emails_are_accepted() {
        for email in ["a@b.co", "ada.l+news@mail.example.co.uk", "o'hara@xn--bcher-kva.example", "1@2.museum"] {
            assert!(Email::parse(email).is_ok(), "{email}");
        }
    }

    #[test]
    fn undeliverable_emails_are_refused() {
        for email in [
            "",
            "@",
            "ada",
            "ada@",
            "@b.co",
            "ada@localhost",
            "a..b@c.de",
            ".a@c.de",
            "a b@c.de",
            "a@b@c.de",
            "a@-b.de",
            "a@b..de",
            "a@127.0.0.1",
            "a@b.de\nBcc: all@b.de",
            "adä@b.de",
        ] {
            assert!(Email::parse(email).is_err(), "{email:?}");
        }
        let long = format!("{}@{}.de", "a".repeat(64), "b.".repeat(94));
        assert_eq!(Email::parse(&long).unwrap_err().code(), "too_long");
    }

    #[test]
    fn an_email_does_not_show_in_a_debug_line() {
        let shown = format!("{:?}", Some(Email::parse("ada@example.org").unwrap()));
        assert!(!shown.contains("ada"), "{shown}");
    }

    #[test]
    fn a_display_name_is_one_line_of_50_characters() {
        assert_eq!(DisplayName::parse("  Ada Lovelace 🦜 ").unwrap().as_str(), "Ada Lovelace 🦜");
        assert!(DisplayName::parse(&"é".repeat(50)).is_ok());
        assert_eq!(DisplayName::parse(&"é".repeat(51)).unwrap_err().code(), "too_long");
        assert_eq!(DisplayName::parse("Ada\nLovelace").unwrap_err(), Invalid::ControlCharacter);
        assert_eq!(DisplayName::parse("Ada\u{202E}ecalevoL").unwrap_err(), Invalid::ControlCharacter);
    }

    #[test]
    fn a_display_name_shows_something_or_is_none() {
        for blank in text::tests::BLANK.iter().filter(|blank| !blank.trim().is_empty()) {
            assert!(DisplayName::parse(blank).is_err(), "{blank:?}");
        }
        for seen in text::tests::SEEN {
            assert_eq!(DisplayName::parse(seen).unwrap().as_str(), seen, "nothing is taken away");
        }
        assert_eq!(DisplayName::parse(" \u{3000} ").unwrap(), DisplayName::default());
        assert!(serde_json::from_str::<DisplayName>("\"\u{200B}\"").is_ok(), "what was stored is trusted");
    }

    #[test]
    fn a_display_name_has_no_mark_that_turns_the_direction() {
        for mark in ['\u{200E}', '\u{200F}', '\u{61C}'] {
            assert_eq!(DisplayName::parse(&format!("Ada{mark}L")), Err(Invalid::ControlCharacter), "{mark:?}");
        }
        assert!(DisplayName::parse("עדה").is_ok());
    }

    #[test]
    fn a_bio_has_lines_but_no_nul() {
        assert!(Bio::parse("Mathematician.\nPoet.").is_ok());
        assert_eq!(Bio::parse("a\0b"), Err(Invalid::Nul));
        assert_eq!(Bio::parse(&"x".repeat(501)).unwrap_err().code(), "too_long");
    }

    #[test]
    fn an_avatar_is_a_web_address() {
        assert_eq!(AvatarUrl::parse("https://x.example/a.png").unwrap().as_str(), "https://x.example/a.png");
        for url in [
            "javascript:alert(1)",
            "data:image/png;base64,AA",
            "//x.example/a",
            "/a.png",
            "https://",
            "https://rookery.example@evil.example/a",
            "https://x.example/\0",
        ] {
            assert!(AvatarUrl::parse(url).is_err(), "{url:?}");
        }
    }

    #[test]
    fn stored_names_are_plain_strings_that_are_trusted() {
        let older: Username = serde_json::from_str("\"x\"").unwrap();
        assert_eq!(serde_json::to_string(&older).unwrap(), "\"x\"");
    }

    proptest! {
        #[test]
        fn parsing_again_changes_nothing(text in ".{0,80}|[A-Za-z0-9_]{1,40}|[a-zA-Z.+]{1,9}@[a-zA-Z.-]{1,12}|https?://.{0,40}") {
            if let Ok(name) = Username::parse(&text) {
                prop_assert_eq!(Username::parse(name.as_str()), Ok(name));
            }
            if let Ok(email) = Email::parse(&text) {
                prop_assert_eq!(Email::parse(email.as_str()), Ok(email));
            }
            if let Ok(name) = DisplayName::parse(&text) {
                prop_assert_eq!(DisplayName::parse(name.as_str()), Ok(name));
            }
            if let Ok(bio) = Bio::parse(&text) {
                prop_assert_eq!(Bio::parse(bio.as_str()), Ok(bio));
            }
            if let Ok(url) = AvatarUrl::parse(&text) {
                prop_assert_eq!(AvatarUrl::parse(url.as_str()), Ok(url));
            }
        }
    }
}
