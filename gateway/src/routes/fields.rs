//! The fields of a body, read into types that cannot be wrong; all that is wrong is told at once.

use rookery_actors::invalid::Invalid;

use serde::Deserialize;

use crate::problem::{FieldError, Problem};

/// Collects what is wrong with the fields of one body.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    errors: Vec<FieldError>,
}

impl Fields {
    /// Takes note of a field: its value, if it was right.
    pub(crate) fn take<T>(&mut self, field: &str, parsed: Result<T, Invalid>) -> Option<T> {
        parsed.map_err(|invalid| self.refuse(field, invalid.code(), invalid.message())).ok()
    }

    /// Takes note of a field that may be absent.
    pub(crate) fn take_if<T>(&mut self, field: &str, parsed: Option<Result<T, Invalid>>) -> Option<T> {
        parsed.and_then(|parsed| self.take(field, parsed))
    }

    /// Takes note of what is wrong with a field.
    pub(crate) fn refuse(&mut self, field: &str, code: &'static str, message: String) {
        self.errors.push(FieldError { field: field.to_owned(), code: code.into(), message });
    }

    /// # Errors
    /// A 422 that names every field that was wrong.
    pub(crate) fn check(self) -> Result<(), Problem> {
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::fields(self.errors)) }
    }
}

/// A field that may be absent but not null: what was meant by that, nobody can tell.
pub(crate) fn given<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    T::deserialize(deserializer).map(Some)
}

/// A field that may be absent, null or a value: where null takes the value away.
pub(crate) fn nullable<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use rookery_actors::posts::rules::{Tags, Title};

    use super::*;

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let mut fields = Fields::default();
        fields.take("title", Title::parse(""));
        fields.take("tags", Tags::parse(&["NO"]));
        let problem = fields.check().unwrap_err();
        let named: Vec<_> = problem.errors.iter().map(|error| (error.field.as_str(), &*error.code)).collect();
        assert_eq!(named, [("title", "too_short"), ("tags", "invalid_characters")]);
    }
}
