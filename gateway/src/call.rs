//! Calls from the gateway to a service: behind its breaker, with its retry budget, under the request's deadline.

use std::future::Future;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::breaker::{Breaker, Outcome, Permit, Policy, Position, RetryBudget};
use crate::problem::{self, Problem};

/// What a failed call waits before its second try: a shard changes hands, a connection comes back in such a time.
const RETRY_PAUSE: Duration = Duration::from_millis(25);

/// When to come back to a service that no node serves: it takes a node that starts.
const UNSERVED_RETRY_AFTER_S: u32 = 5;

/// A service that the gateway asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// Accounts, sessions, follows.
    Users,
    /// Posts, feeds, tags.
    Posts,
    /// Comment threads.
    Comments,
    /// Search.
    Search,
}

impl Service {
    /// Every service.
    pub const ALL: [Self; 4] = [Self::Users, Self::Posts, Self::Comments, Self::Search];

    /// Its name in health, metrics and problems.
    pub fn name(self) -> &'static str {
        match self {
            Self::Users => "users",
            Self::Posts => "posts",
            Self::Comments => "comments",
            Self::Search => "search",
        }
    }
}

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError<E> {
    /// The breaker is open.
    #[error("the {} service is cut off for the moment", .service.name())]
    CutOff {
        /// Which service.
        service: Service,
        /// When the breaker lets the next call through.
        retry_after: Duration,
    },
    /// No node serves it.
    #[error("no node serves {} now", .0.name())]
    Unserved(Service),
    /// The request's deadline has passed; whether the service did its work is not known.
    #[error("the {} service did not answer in time", .0.name())]
    Deadline(Service),
    /// The service failed.
    #[error(transparent)]
    Failed(E),
}

impl<E> CallError<E> {
    /// As a 503; `failed` says what a failure of the service itself becomes.
    pub fn into_problem(self, failed: impl FnOnce(E) -> Problem) -> Problem {
        match self {
            Self::CutOff { service, retry_after } => Problem::unavailable(
                format!("the {} service is cut off for the moment", service.name()),
                u32::try_from(retry_after.as_secs()).unwrap_or(u32::MAX).saturating_add(1),
            ),
            Self::Unserved(service) => {
                Problem::unavailable(format!("no node serves {} now", service.name()), UNSERVED_RETRY_AFTER_S)
            }
            Self::Deadline(service) => {
                Problem::new(&problem::DEADLINE, format!("the {} service did not answer in time", service.name()))
            }
            Self::Failed(error) => failed(error),
        }
    }
}

/// The breakers and retry budgets of all services.
pub struct Services {
    start: Instant,
    guards: [Mutex<Guard>; 4],
    is_unserved: Box<dyn Fn(Service) -> bool + Send + Sync>,
}

struct Guard {
    breaker: Breaker,
    budget: RetryBudget,
}

impl Services {
    /// All breakers closed, all budgets full.
    pub fn new(policy: Policy) -> Self {
        let guard = |_| Mutex::new(Guard { breaker: Breaker::new(policy), budget: RetryBudget::new() });
        Self { start: Instant::now(), guards: Service::ALL.map(guard), is_unserved: Box::new(|_| false) }
    }

    /// The same, told by the node whether nobody serves a service: what is asked of it then fails before it is tried, lists
    /// and searches too, which would otherwise find nothing and look like an answer.
    #[must_use]
    pub fn unserved_if(self, is_unserved: impl Fn(Service) -> bool + Send + Sync + 'static) -> Self {
        Self { is_unserved: Box::new(is_unserved), ..self }
    }

    /// Where the breakers stand.
    pub fn positions(&self) -> [(Service, Position); 4] {
        Service::ALL.map(|service| (service, self.with(service, |guard, _| guard.breaker.position())))
    }

    /// Calls a service.
    ///
    /// `ask` returns `Err` only for failures of the service; a rejection is an answer. A call whose failure is
    /// `repeatable` is tried a second time, if the budget and the deadline allow it.
    ///
    /// # Errors
    /// [`CallError`]: unserved, cut off, too late, or the failure.
    pub async fn call<T, E, F>(
        &self,
        service: Service,
        deadline: Instant,
        repeatable: impl Fn(&E) -> bool,
        mut ask: impl FnMut() -> F,
    ) -> Result<T, CallError<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        // Before the breaker, which is closed when the first node is there again.
        if (self.is_unserved)(service) {
            return Err(CallError::Unserved(service));
        }
        self.with(service, |guard, _| guard.budget.deposit());
        let mut retried = false;
        loop {
            let admitted = self.with(service, |guard, now| guard.breaker.admit(now));
            let permit = admitted.map_err(|retry_after| CallError::CutOff { service, retry_after })?;
            let mut report = Report { services: self, service, permit, outcome: Outcome::Abandoned };
            match tokio::time::timeout_at(deadline.into(), ask()).await {
                Ok(Ok(answer)) => {
                    report.outcome = Outcome::Answered;
                    return Ok(answer);
                }
                Ok(Err(error)) => {
                    report.outcome = Outcome::Failed;
                    let again = !retried && repeatable(&error) && self.with(service, |guard, _| guard.budget.withdraw());
                    if !again {
                        return Err(CallError::Failed(error));
                    }
                    retried = true;
                    // The breaker hears of it now, not after the pause.
                    drop(report);
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(_) => {
                    report.outcome = Outcome::Failed;
                    return Err(CallError::Deadline(service));
                }
            }
        }
    }

    fn with<R>(&self, service: Service, act: impl FnOnce(&mut Guard, Duration) -> R) -> R {
        let mut guard = self.guards[service as usize].lock().expect("no panic while it is held");
        act(&mut guard, self.start.elapsed())
    }
}

/// Reports the outcome also when the client goes away and the call is dropped half way.
struct Report<'a> {
    services: &'a Services,
    service: Service,
    permit: Permit,
    outcome: Outcome,
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        self.services.with(self.service, |guard, now| guard.breaker.report(self.permit, self.outcome, now));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    async fn calls(repeatable: bool) -> u32 {
        let services = Services::new(Policy::default());
        let calls = Cell::new(0);
        let ask = || {
            calls.set(calls.get() + 1);
            async { Err::<(), _>("down") }
        };
        let _ = services.call(Service::Posts, soon(), |_| repeatable, ask).await;
        calls.get()
    }

    #[tokio::test]
    async fn a_read_that_fails_is_tried_once_more() {
        assert_eq!(calls(true).await, 2);
    }

    #[tokio::test]
    async fn a_write_that_fails_is_not_repeated() {
        assert_eq!(calls(false).await, 1);
    }

    #[tokio::test]
    async fn one_service_that_fails_does_not_cut_off_another() {
        let services = Services::new(Policy::default());
        for _ in 0..30 {
            let _ = services.call(Service::Posts, soon(), |_| false, || async { Err::<(), _>("down") }).await;
        }
        assert_eq!(services.positions()[Service::Posts as usize].1, Position::Open);
        let answer = services.call(Service::Users, soon(), |_: &&str| false, || async { Ok::<_, &str>(1) }).await;
        assert_eq!(answer.ok(), Some(1));
    }

    #[tokio::test]
    async fn what_nobody_serves_is_not_tried_and_does_not_open_the_breaker() {
        let services = Services::new(Policy::default()).unserved_if(|service| service == Service::Posts);
        for _ in 0..30 {
            let answer = services.call(Service::Posts, soon(), |_: &&str| true, || async { Ok::<_, &str>(()) }).await;
            let problem = answer.expect_err("nobody serves it").into_problem(|_| Problem::unavailable("", 1));
            assert_eq!((problem.detail.as_ref(), problem.retry_after_s), ("no node serves posts now", Some(5)));
        }
        assert!(services.positions().iter().all(|(_, position)| *position == Position::Closed));
        let answer = services.call(Service::Users, soon(), |_: &&str| false, || async { Ok::<_, &str>(1) }).await;
        assert_eq!(answer.ok(), Some(1));
    }

    #[tokio::test]
    async fn a_call_ends_at_the_deadline() {
        let services = Services::new(Policy::default());
        let answer = services
            .call(Service::Posts, Instant::now() + Duration::from_millis(10), |_| true, std::future::pending::<Result<(), &str>>)
            .await;
        assert!(matches!(answer, Err(CallError::Deadline(Service::Posts))));
    }
}
