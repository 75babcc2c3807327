//! The fields of a body, read into types that cannot be wrong; all that is wrong is told at once.

use rookery_actors::invalid::Invalid;
use rookery_actors::posts::rules::{Tag, Tags};

use serde::Deserialize;

use crate::problem::{FieldError, Problem};

/// Wrong tags that are named: a body may hold a hundred thousand.
const TAGS_NAMED_MAX: usize = 10;

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

    /// Takes note of the tags of a post; a wrong one is named by its place.
    pub(crate) fn take_tags(&mut self, tags: &[String]) -> Option<Tags> {
        let wrong = tags.iter().enumerate().filter_map(|(place, tag)| Some((place, Tag::parse(tag).err()?)));
        let mut all_right = true;
        for (place, invalid) in wrong.take(TAGS_NAMED_MAX) {
            all_right = false;
            self.refuse(&format!("tags[{place}]"), invalid.code(), invalid.message());
        }
        if all_right { self.take("tags", Tags::parse(tags)) } else { None }
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
    use rookery_actors::posts::rules::Title;

    use super::*;

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let mut fields = Fields::default();
        fields.take("title", Title::parse(""));
        fields.take_tags(&["NO".to_owned()]);
        assert_eq!(named(fields), ["title: too_short", "tags[0]: invalid_characters"]);
    }

    fn named(fields: Fields) -> Vec<String> {
        let problem = fields.check().unwrap_err();
        problem.errors.iter().map(|error| format!("{}: {}", error.field, error.code)).collect()
    }

    #[test]
    fn a_wrong_tag_is_named_by_its_place_and_a_wrong_number_of_tags_by_the_list() {
        let tags = |tags: &[&str]| {
            let mut fields = Fields::default();
            fields.take_tags(&tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>());
            named(fields)
        };
        assert_eq!(tags(&["a", "B", "c", ""]), ["tags[1]: invalid_characters", "tags[3]: too_short"]);
        assert_eq!(tags(&["a", "b", "c", "d", "e", "f"]), ["tags: too_long"]);
        assert_eq!(tags(&["A"; 1_000]).len(), TAGS_NAMED_MAX);
    }
}
