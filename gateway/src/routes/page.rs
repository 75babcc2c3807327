//! The page of a list that a client asks for.

use std::fmt::Display;

use rookery_actors::invalid::Invalid;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::cursor::Cursors;
use crate::problem::{self, Problem};

/// Items on a page unless asked otherwise.
const SIZE_DEFAULT: u32 = 20;

/// A page of a list that has no other parameters.
#[derive(Debug, Deserialize, garde::Validate, utoipa::IntoParams)]
#[garde(allow_unvalidated)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// Items on the page, 20 unless asked otherwise.
    #[garde(custom(within(1, 100)))]
    #[param(minimum = 1, maximum = 100)]
    pub(crate) limit: Option<u32>,
    /// `next_cursor` of the page before.
    pub(crate) cursor: Option<String>,
}

impl PageQuery {
    /// Items on the page.
    pub(crate) fn size(&self) -> usize {
        page_size(self.limit)
    }

    /// Where the page begins, in the list of this scope.
    pub(crate) fn after<T: DeserializeOwned>(&self, cursors: &Cursors, scope: &str) -> Result<Option<T>, Problem> {
        self.cursor.as_deref().map(|cursor| cursors.open(scope, cursor)).transpose()
    }
}

/// Checks that a number, if there is one, is within bounds; garde's own rule says only that it is below one of them.
pub(crate) fn within<T: PartialOrd + Display>(min: T, max: T) -> impl FnOnce(&Option<T>, &()) -> garde::Result {
    move |asked, ()| match asked {
        Some(number) if *number < min || *number > max => Err(garde::Error::new(format!("may be {min} to {max}"))),
        _ => Ok(()),
    }
}

/// Items on a page; the limit was validated.
pub(crate) fn page_size(asked: Option<u32>) -> usize {
    asked.unwrap_or(SIZE_DEFAULT) as usize
}

/// What is wrong with a query parameter.
pub(crate) fn bad_query(parameter: &str, invalid: Invalid) -> Problem {
    Problem::new(&problem::INVALID_QUERY, format!("{parameter} {}", invalid.message()))
}
