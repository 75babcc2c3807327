//! Asking a service: behind its breaker, repeated only where that is safe, with every failure a problem.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use futures_util::{FutureExt, TryFutureExt};
use rookery_actors::caller::on_behalf_of;
use rookery_actors::entity::{AskError, Failure};
use rookery_actors::runtime;
use tokio::time::Instant;

use super::Api;
use super::rejection::failed;
use crate::call::Service;
use crate::context::Context;
use crate::problem::Problem;

/// Whether a write may be asked twice although its first outcome is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Twice {
    /// Once more changes nothing: a like, or a write with an idempotency key.
    Safe,
    /// Once more could be answered otherwise, or do it again.
    Unsafe,
}

impl Twice {
    /// A write that begins something is safe only under a key.
    pub(crate) fn keyed(context: &runtime::Context) -> Self {
        if context.idempotency.is_some() { Self::Safe } else { Self::Unsafe }
    }

    /// A failure before which nothing happened never forbids another try.
    fn allows(self, failure: &Failure) -> bool {
        match failure {
            Failure::Unavailable(_) | Failure::Moved(_) => true,
            Failure::Unknown(_) => self == Self::Safe,
            _ => false,
        }
    }
}

impl Api {
    /// Reads from a service. In a box: what is at hand is not asked for, and has no need of the room.
    pub(crate) async fn read<T, F>(
        &self,
        service: Service,
        context: &Context,
        mut ask: impl FnMut(Instant) -> F,
    ) -> Result<T, Problem>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let ask = || ask(context.deadline.into()).map_err(AskError::<Infallible>::Failed);
        match Box::pin(self.ask(service, context, Twice::Safe, ask)).await? {
            Ok(value) => Ok(value),
            Err(never) => match never {},
        }
    }

    /// Asks a service to change something; a rejection is the problem that it is everywhere.
    pub(crate) async fn write<T, R, F>(
        &self,
        service: Service,
        context: &Context,
        twice: Twice,
        ask: impl FnMut() -> F,
    ) -> Result<T, Problem>
    where
        F: Future<Output = Result<T, AskError<R>>>,
        R: Into<Problem>,
    {
        self.ask(service, context, twice, ask).await?.map_err(Into::into)
    }

    /// Asks a service; the rejection is left to the caller.
    pub(crate) async fn ask<T, R, F>(
        &self,
        service: Service,
        context: &Context,
        twice: Twice,
        mut ask: impl FnMut() -> F,
    ) -> Result<Result<T, R>, Problem>
    where
        F: Future<Output = Result<T, AskError<R>>>,
    {
        // A combinator, for an `async` block would have room for the future twice.
        let guarded = || {
            ask().map(|answer| match answer {
                Err(AskError::Failed(failure)) if is_outage(&failure) => Err(failure),
                answer => Ok(answer),
            })
        };
        let repeatable = |failure: &Failure| twice.allows(failure);
        let called = self.services.call(service, context.deadline, repeatable, guarded);
        match on_behalf_of(context.caller(), called).await {
            Ok(Ok(value)) => Ok(Ok(value)),
            Ok(Err(AskError::Rejected(rejection))) => Ok(Err(rejection)),
            Ok(Err(AskError::Failed(failure))) => Err(failed(service, &failure)),
            Err(error) => Err(error.into_problem(|failure| failed(service, &failure))),
        }
    }
}

/// What travels with a command of this request.
pub(crate) fn along(context: &Context, key: Option<runtime::IdempotencyKey>) -> runtime::Context {
    runtime::Context {
        deadline: context.deadline.into(),
        traceparent: Some(Arc::from(context.trace.parent().to_string())),
        idempotency: key,
    }
}

/// Whether a failure says something about the service rather than about one entity or one moment: only these may open
/// its breaker. One post that crashes, or a full queue that says so, is an answer.
fn is_outage(failure: &Failure) -> bool {
    matches!(failure, Failure::Unavailable(_) | Failure::Moved(_) | Failure::Unknown(_) | Failure::Expired)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_began_may_be_asked_again_whatever_it_is() {
        assert!(Twice::Unsafe.allows(&Failure::Unavailable("moving".into())));
    }

    #[test]
    fn an_open_outcome_is_repeated_only_where_twice_is_once() {
        let open = Failure::Unknown("the link broke".into());
        assert!(Twice::Safe.allows(&open) && !Twice::Unsafe.allows(&open));
    }

    #[test]
    fn an_overloaded_service_is_not_asked_again_at_once() {
        assert!(!Twice::Safe.allows(&Failure::Overloaded("full".into())));
    }

    #[test]
    fn one_crashing_entity_cuts_nobody_off() {
        assert!(!is_outage(&Failure::Crashed) && !is_outage(&Failure::Isolated));
    }

    /// What was broken: a text that cannot be stored was an outage, and half of the good writes of others failed.
    #[test]
    fn one_text_that_cannot_be_stored_cuts_nobody_off_and_is_not_tried_again() {
        let refused = Failure::Refused("22P05".into());
        assert!(!is_outage(&refused) && !Twice::Safe.allows(&refused));
    }
}
