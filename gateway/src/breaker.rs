//! A circuit breaker and a retry budget: pure state machines, time is passed in.

use std::time::Duration;

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// Length of the sliding window.
    pub window: Duration,
    /// Below so many calls in the window, no ratio means anything.
    pub calls_min: u32,
    /// Share of failures at which it opens.
    pub failure_ratio: f64,
    /// How long it stays open before it lets probes through.
    pub open_for: Duration,
    /// So many probes must succeed to close it, and so many may be under way at once.
    pub probes: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self { window: Duration::from_secs(10), calls_min: 20, failure_ratio: 0.5, open_for: Duration::from_secs(2), probes: 3 }
    }
}

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Calls pass.
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls pass, to see whether the rest may.
    HalfOpen,
}

impl Position {
    /// Its name in reports of health.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Leave to make one call; its outcome is reported with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "the outcome of the call has to be reported"]
pub struct Permit {
    generation: u64,
}

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The service answered, a rejection included.
    Answered,
    /// It failed or timed out.
    Failed,
    /// Nobody waited for the answer.
    Abandoned,
}

/// Slices of the sliding window.
const SLICES: usize = 10;

/// A circuit breaker. Times are durations since any fixed moment and must not go back.
#[derive(Debug, Clone)]
pub struct Breaker {
    policy: Policy,
    state: State,
    /// Grows with every change of position, so that late outcomes of an earlier one count for nothing.
    generation: u64,
}

#[derive(Debug, Clone)]
enum State {
    Closed(Window),
    Open { until: Duration },
    HalfOpen { under_way: u32, succeeded: u32 },
}

impl Breaker {
    /// A closed breaker.
    pub fn new(policy: Policy) -> Self {
        Self { policy, state: State::Closed(Window::default()), generation: 0 }
    }

    /// Where it stands.
    pub fn position(&self) -> Position {
        match self.state {
            State::Closed(_) => Position::Closed,
            State::Open { .. } => Position::Open,
            State::HalfOpen { .. } => Position::HalfOpen,
        }
    }

    /// Asks for leave to call at `now`.
    ///
    /// # Errors
    /// How long to wait, while it is open.
    pub fn admit(&mut self, now: Duration) -> Result<Permit, Duration> {
        if let State::Open { until } = self.state {
            if now < until {
                return Err(until - now);
            }
            self.turn(State::HalfOpen { under_way: 0, succeeded: 0 });
        }
        if let State::HalfOpen { under_way, succeeded } = &mut self.state {
            if *under_way + *succeeded >= self.policy.probes {
                return Err(self.policy.open_for);
            }
            *under_way += 1;
        }
        Ok(Permit { generation: self.generation })
    }

    /// Reports what became of a call.
    pub fn report(&mut self, permit: Permit, outcome: Outcome, now: Duration) {
        if permit.generation != self.generation {
            return;
        }
        match (&mut self.state, outcome) {
            (State::Closed(_), Outcome::Abandoned) | (State::Open { .. }, _) => {}
            (State::Closed(window), outcome) => {
                window.add(now, self.policy.window, outcome == Outcome::Failed);
                let (calls, failures) = window.totals();
                let failing = f64::from(failures) >= f64::from(calls) * self.policy.failure_ratio;
                if calls >= self.policy.calls_min && failing {
                    self.open(now);
                }
            }
            (State::HalfOpen { .. }, Outcome::Failed) => self.open(now),
            (State::HalfOpen { under_way, .. }, Outcome::Abandoned) => *under_way -= 1,
            (State::HalfOpen { under_way, succeeded }, Outcome::Answered) => {
                *under_way -= 1;
                *succeeded += 1;
                if *succeeded >= self.policy.probes {
                    self.turn(State::Closed(Window::default()));
                }
            }
        }
    }

    fn open(&mut self, now: Duration) {
        self.turn(State::Open { until: now + self.policy.open_for });
    }

    fn turn(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
    }
}

/// Calls and failures of the last while, in slices that expire one by one.
#[derive(Debug, Clone, Default)]
struct Window {
    slices: [(u32, u32); SLICES],
    newest: u64,
}

impl Window {
    fn add(&mut self, now: Duration, window: Duration, failed: bool) {
        let slice = (now.as_nanos() * SLICES as u128 / window.as_nanos().max(1)) as u64;
        for expired in (self.newest + 1..=slice).rev().take(SLICES) {
            self.slices[(expired % SLICES as u64) as usize] = (0, 0);
        }
        self.newest = self.newest.max(slice);
        let (calls, failures) = &mut self.slices[(self.newest % SLICES as u64) as usize];
        *calls += 1;
        *failures += u32::from(failed);
    }

    fn totals(&self) -> (u32, u32) {
        self.slices.iter().fold((0, 0), |sum, slice| (sum.0 + slice.0, sum.1 + slice.1))
    }
}

/// A budget that keeps retries in proportion to requests, so that they cannot multiply an outage (as in Finagle).
#[derive(Debug, Clone)]
pub struct RetryBudget {
    /// In hundredths of a retry.
    balance: u32,
}

impl RetryBudget {
    /// What a request adds: one retry per five requests.
    const DEPOSIT: u32 = 20;
    /// What a retry costs.
    const COST: u32 = 100;
    /// Ten retries at most are saved up.
    const BALANCE_MAX: u32 = 1000;

    /// A full budget.
    pub fn new() -> Self {
        Self { balance: Self::BALANCE_MAX }
    }

    /// Counts a request.
    pub fn deposit(&mut self) {
        self.balance = (self.balance + Self::DEPOSIT).min(Self::BALANCE_MAX);
    }

    /// Takes one retry, if there is one.
    pub fn withdraw(&mut self) -> bool {
        let left = self.balance.checked_sub(Self::COST);
        self.balance = left.unwrap_or(self.balance);
        left.is_some()
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn opened() -> Breaker {
        let mut breaker = Breaker::new(Policy::default());
        for _ in 0..20 {
            let permit = breaker.admit(Duration::ZERO).unwrap();
            breaker.report(permit, Outcome::Failed, Duration::ZERO);
        }
        breaker
    }

    #[test]
    fn a_service_that_only_fails_is_cut_off() {
        assert_eq!(opened().admit(SECOND), Err(SECOND));
    }

    #[test]
    fn a_position_is_reported_as_the_contract_says() {
        let mut breaker = opened();
        assert_eq!(breaker.position().name(), "open");
        let _probe = breaker.admit(2 * SECOND).unwrap();
        assert_eq!(breaker.position().name(), "half_open");
        assert_eq!(Breaker::new(Policy::default()).position().name(), "closed");
    }

    #[test]
    fn a_few_failures_alone_open_nothing() {
        let mut breaker = Breaker::new(Policy::default());
        for _ in 0..19 {
            let permit = breaker.admit(Duration::ZERO).unwrap();
            breaker.report(permit, Outcome::Failed, Duration::ZERO);
        }
        assert_eq!(breaker.position(), Position::Closed);
    }

    #[test]
    fn after_a_while_a_few_probes_pass_and_no_more() {
        let mut breaker = opened();
        let passed = (0..10).filter(|_| breaker.admit(2 * SECOND).is_ok()).count();
        assert_eq!(passed, 3);
    }

    #[test]
    fn probes_that_succeed_close_it() {
        let mut breaker = opened();
        for _ in 0..3 {
            let permit = breaker.admit(2 * SECOND).unwrap();
            breaker.report(permit, Outcome::Answered, 2 * SECOND);
        }
        assert_eq!(breaker.position(), Position::Closed);
    }

    #[test]
    fn a_probe_that_fails_opens_it_again() {
        let mut breaker = opened();
        let permit = breaker.admit(2 * SECOND).unwrap();
        breaker.report(permit, Outcome::Failed, 2 * SECOND);
        assert_eq!(breaker.admit(3 * SECOND), Err(SECOND));
    }

    #[test]
    fn old_failures_are_forgotten() {
        let mut breaker = Breaker::new(Policy::default());
        for second in [0, 30] {
            for _ in 0..15 {
                let permit = breaker.admit(second * SECOND).unwrap();
                breaker.report(permit, Outcome::Failed, second * SECOND);
            }
        }
        assert_eq!(breaker.position(), Position::Closed);
    }

    proptest! {
        /// Whatever happens, the breaker never stays shut for good once its service answers again.
        #[test]
        fn it_always_recovers(steps in proptest::collection::vec((0u64..500, 0u8..3), 0..400)) {
            let mut breaker = Breaker::new(Policy::default());
            let mut now = Duration::ZERO;
            for (wait_ms, outcome) in steps {
                now += Duration::from_millis(wait_ms);
                let outcome = [Outcome::Answered, Outcome::Failed, Outcome::Abandoned][usize::from(outcome)];
                if let Ok(permit) = breaker.admit(now) {
                    breaker.report(permit, outcome, now);
                }
            }
            for _ in 0..20 {
                now += Duration::from_secs(1);
                if let Ok(permit) = breaker.admit(now) {
                    breaker.report(permit, Outcome::Answered, now);
                }
            }
            prop_assert_eq!(breaker.position(), Position::Closed);
        }

        #[test]
        fn retries_never_exceed_a_fifth_of_the_requests_and_ten(steps in proptest::collection::vec(any::<bool>(), 0..500)) {
            let mut budget = RetryBudget::new();
            let (mut requests, mut retries) = (0, 0);
            for retry in steps {
                if retry { retries += usize::from(budget.withdraw()); } else { requests += 1; budget.deposit(); }
                prop_assert!(retries * 5 <= requests + 50);
            }
        }
    }
}
