//! Pure. Why a value from outside was refused: what becomes `{field, code, message}` in a 422.

/// One broken rule of one field. The field's name belongs to whoever knows the request.
///
/// It never holds the refused value itself, so it can be logged even when that was a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Shorter than the rule asks.
    #[error("must have at least {minimum} {unit}")]
    TooShort {
        /// The least that is accepted.
        minimum: usize,
        /// What was counted.
        unit: Unit,
    },
    /// Longer than the rule allows.
    #[error("must have at most {maximum} {unit}")]
    TooLong {
        /// The most that is accepted.
        maximum: usize,
        /// What was counted.
        unit: Unit,
    },
    /// Holds a character outside the accepted alphabet.
    #[error("may only contain {allowed}")]
    Alphabet {
        /// The alphabet, in words.
        allowed: &'static str,
    },
    /// Holds a control character.
    #[error("must not contain control characters")]
    ControlCharacter,
    /// Shows nothing.
    #[error("must have a character that can be seen")]
    Blank,
    /// Holds U+0000, which Postgres cannot store in a text.
    #[error("must not contain the NUL character")]
    Nul,
    /// Is not of the expected form.
    #[error("must be {expected}")]
    Format {
        /// The form, in words.
        expected: &'static str,
    },
}

/// What a length counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Unicode scalar values.
    Characters,
    /// Bytes of UTF-8.
    Bytes,
    /// Elements of a list.
    Items,
}

impl Invalid {
    /// The stable, machine-readable name of the rule.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooShort { .. } => "too_short",
            Self::TooLong { .. } => "too_long",
            Self::Alphabet { .. } => "invalid_characters",
            Self::ControlCharacter => "control_characters",
            Self::Blank => "blank",
            Self::Nul => "nul",
            Self::Format { .. } => "invalid_format",
        }
    }

    /// The rule in words, for a person; it reads after the field's name.
    pub fn message(&self) -> String {
        self.to_string()
    }
}

impl std::fmt::Display for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Characters => "characters",
            Self::Bytes => "bytes",
            Self::Items => "items",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reads_after_the_name_of_its_field() {
        let broken = Invalid::TooLong { maximum: 200, unit: Unit::Characters };
        assert_eq!(format!("title {}", broken.message()), "title must have at most 200 characters");
        assert_eq!(broken.code(), "too_long");
    }
}
