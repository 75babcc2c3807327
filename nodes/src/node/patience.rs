//! How long a start waits for a database that it reached a moment ago and that does not answer now: it may be starting anew, or
//! be slow on a busy machine. A database that cannot be reached at all ends the start at once, with its place (see
//! [`crate::databases::Databases::ready`]).

use std::time::Duration;

use rookery_actors::{entity::Failure, episodes, runtime::DirectoryError, users::keys::KeyError};
use tokio::time::Instant;

const WITHIN: Duration = Duration::from_secs(60);

/// Between two tries of a step.
const EVERY: Duration = Duration::from_millis(250);

/// As it is told.
const WAITS: &str = "a database does not answer; the start goes on when it does";

/// One for all steps of a start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    until: Instant,
}

impl Patience {
    /// It ends a minute from now.
    pub(super) fn begin() -> Self {
        Self { until: Instant::now() + WITHIN }
    }

    /// Does a step of the start, again and again while a database does not answer.
    ///
    /// # Errors
    /// What the step says, if it is anything else, or if it is still that when the patience ends.
    pub(super) async fn take<T, E>(self, step: impl AsyncFn() -> Result<T, E>) -> anyhow::Result<T>
    where
        anyhow::Error: From<E>,
    {
        loop {
            let error = match step().await {
                Ok(done) => {
                    episodes::over(WAITS, "");
                    return Ok(done);
                }
                Err(error) => anyhow::Error::from(error),
            };
            if !may_pass(&error) || Instant::now() >= self.until {
                return Err(error);
            }
            episodes::warn(WAITS, "", format_args!("{error:#}"));
            tokio::time::sleep(EVERY).await;
        }
    }
}

/// Whether it says that a database gave no answer.
fn may_pass(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let failure = match cause.downcast_ref::<KeyError>() {
            Some(KeyError::Failed(failure)) => Some(failure),
            _ => cause.downcast_ref::<Failure>(),
        };
        matches!(failure, Some(Failure::Unavailable(_)))
            || matches!(
                cause.downcast_ref::<DirectoryError>(),
                Some(DirectoryError::Database(_) | DirectoryError::Timeout(_) | DirectoryError::Sessions(_))
            )
    })
}
