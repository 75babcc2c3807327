//! Pure. When a failed child comes back, and when it no longer does.
//!
//! Restart intensity as in OTP (`MaxR` restarts within `MaxT`), with exponential back-off and jitter before each
//! restart. Time and jitter arrive from outside, so every decision can be replayed.

use std::{collections::VecDeque, time::Duration};

/// How often and how fast a child is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartPolicy {
    /// Restarts allowed within [`window`](Self::window); the next failure in it exhausts the intensity.
    pub intensity: u32,
    /// The sliding window of the intensity. A child that outlives it counts as healthy again.
    pub window: Duration,
    /// Delay before the first restart.
    pub backoff_min: Duration,
    /// Upper bound of the delay, which doubles with every failure in a row.
    pub backoff_max: Duration,
}

impl Default for RestartPolicy {
    /// OTP's customary 3 in 5 s; 50 ms doubling to 5 s.
    fn default() -> Self {
        Self {
            intensity: 3,
            window: Duration::from_secs(5),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
        }
    }
}

/// When a child that is gone is wanted back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lifetime {
    /// Only after a failure: a clean stop means that its work is done.
    #[default]
    Transient,
    /// Always: a clean stop is as unexpected as a failure.
    Permanent,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It stopped of its own accord, or because it was asked to.
    Stopped,
    /// It panicked, returned an error, was killed, or did not start.
    Failed,
}

/// What to do about a child that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Start it again once this time has passed.
    Restart {
        /// Back-off including jitter.
        after: Duration,
    },
    /// The restart intensity is exhausted.
    GiveUp,
    /// It is done; nothing to do.
    Leave,
}

/// The restart history of one child.
#[derive(Debug, Clone)]
pub struct Restarts {
    policy: RestartPolicy,
    lifetime: Lifetime,
    /// When the restarts inside the current window were decided; never more than the intensity.
    recent: VecDeque<Duration>,
    /// Failures in a row, each less than a window after the restart before it was due.
    streak: u32,
    /// When the latest restart was due.
    due: Duration,
    total: u64,
}

impl Restarts {
    /// An empty history under `policy`.
    #[must_use]
    pub fn new(policy: RestartPolicy, lifetime: Lifetime) -> Self {
        Self { policy, lifetime, recent: VecDeque::new(), streak: 0, due: Duration::ZERO, total: 0 }
    }

    /// Decides about a child that ended at `now`.
    ///
    /// `now` is a reading of any monotonic clock, the same one in every call. `jitter` in `0.0..=1.0` spreads the
    /// delay over its upper half, so that children that failed together do not come back together.
    pub fn decide(&mut self, now: Duration, cause: Cause, jitter: f64) -> Verdict {
        if cause == Cause::Stopped && self.lifetime == Lifetime::Transient {
            return Verdict::Leave;
        }
        while self.recent.front().is_some_and(|&at| now.saturating_sub(at) >= self.policy.window) {
            self.recent.pop_front();
        }
        if self.recent.len() >= self.policy.intensity as usize {
            return Verdict::GiveUp;
        }
        if now.saturating_sub(self.due) >= self.policy.window {
            self.streak = 0;
        }
        let after = self.backoff(jitter);
        self.recent.push_back(now);
        self.streak = self.streak.saturating_add(1);
        self.due = now.saturating_add(after);
        self.total += 1;
        Verdict::Restart { after }
    }

    /// Forgets the failures so far, as after a cool-down; the total stays.
    pub fn forgive(&mut self) {
        self.recent.clear();
        self.streak = 0;
    }

    /// Restarts decided since the beginning.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    fn backoff(&self, jitter: f64) -> Duration {
        let doubled = 2u32
            .checked_pow(self.streak)
            .and_then(|factor| self.policy.backoff_min.checked_mul(factor))
            .map_or(self.policy.backoff_max, |delay| delay.min(self.policy.backoff_max));
        doubled.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NO_JITTER: f64 = 1.0;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn transient() -> Restarts {
        Restarts::new(RestartPolicy::default(), Lifetime::Transient)
    }

    #[test]
    fn a_clean_stop_is_left_alone() {
        assert_eq!(transient().decide(ms(10), Cause::Stopped, NO_JITTER), Verdict::Leave);
    }

    #[test]
    fn a_permanent_child_comes_back_after_a_clean_stop() {
        let mut restarts = Restarts::new(RestartPolicy::default(), Lifetime::Permanent);
        assert_eq!(restarts.decide(ms(10), Cause::Stopped, NO_JITTER), Verdict::Restart { after: ms(50) });
    }

    #[test]
    fn the_delay_doubles_with_failures_in_a_row() {
        let mut restarts = transient();
        let delays = [0, 60, 170].map(|at| restarts.decide(ms(at), Cause::Failed, NO_JITTER));
        assert_eq!(delays, [50, 100, 200].map(|after| Verdict::Restart { after: ms(after) }));
    }

    #[test]
    fn the_fourth_failure_in_five_seconds_exhausts_the_intensity() {
        let mut restarts = transient();
        for at in [0, 1_000, 2_000] {
            restarts.decide(ms(at), Cause::Failed, NO_JITTER);
        }
        assert_eq!(restarts.decide(ms(4_999), Cause::Failed, NO_JITTER), Verdict::GiveUp);
    }

    #[test]
    fn a_restart_leaves_the_window_after_its_length() {
        let mut restarts = transient();
        for at in [0, 1_000, 2_000] {
            restarts.decide(ms(at), Cause::Failed, NO_JITTER);
        }
        assert!(matches!(restarts.decide(ms(5_000), Cause::Failed, NO_JITTER), Verdict::Restart { .. }));
    }

    #[test]
    fn a_child_that_outlives_the_window_starts_from_the_shortest_delay() {
        let mut restarts = transient();
        restarts.decide(ms(0), Cause::Failed, NO_JITTER);
        restarts.decide(ms(100), Cause::Failed, NO_JITTER);
        assert_eq!(restarts.decide(ms(5_200), Cause::Failed, NO_JITTER), Verdict::Restart { after: ms(50) });
    }

    #[test]
    fn forgiveness_restores_the_full_intensity_and_keeps_the_total() {
        let mut restarts = transient();
        for at in 0..4 {
            restarts.decide(ms(at), Cause::Failed, NO_JITTER);
        }
        restarts.forgive();
        assert_eq!(restarts.decide(ms(5), Cause::Failed, NO_JITTER), Verdict::Restart { after: ms(50) });
        assert_eq!(restarts.total(), 4);
    }

    fn policies() -> impl Strategy<Value = RestartPolicy> {
        (0u32..6, 1u64..10_000, 1u64..500, 0u64..10_000).prop_map(|(intensity, window, min, extra)| RestartPolicy {
            intensity,
            window: ms(window),
            backoff_min: ms(min),
            backoff_max: ms(min + extra),
        })
    }

    proptest! {
        #[test]
        fn no_window_holds_more_restarts_than_the_intensity(
            policy in policies(),
            failures in prop::collection::vec((0u64..3_000, 0.0..=1.0), 1..200),
        ) {
            let mut restarts = Restarts::new(policy, Lifetime::Transient);
            let mut now = Duration::ZERO;
            let mut restarted = Vec::new();
            for (gap, jitter) in failures {
                now += ms(gap);
                match restarts.decide(now, Cause::Failed, jitter) {
                    Verdict::Restart { .. } => restarted.push(now),
                    Verdict::GiveUp => {
                        // It may only give up when the window is really full.
                        let in_window = restarted.iter().filter(|&&at| now - at < policy.window).count();
                        prop_assert_eq!(in_window, policy.intensity as usize);
                    }
                    Verdict::Leave => prop_assert!(false, "a failure is never left alone"),
                }
                let in_window = restarted.iter().filter(|&&at| now - at < policy.window).count();
                prop_assert!(in_window <= policy.intensity as usize);
            }
            prop_assert_eq!(restarts.total(), restarted.len() as u64);
        }

        #[test]
        fn a_delay_keeps_its_bounds(
            policy in policies(),
            failures in prop::collection::vec((0u64..20_000, 0.0..=1.0), 1..100),
        ) {
            let mut restarts = Restarts::new(policy, Lifetime::Transient);
            let mut now = Duration::ZERO;
            for (gap, jitter) in failures {
                now += ms(gap);
                if let Verdict::Restart { after } = restarts.decide(now, Cause::Failed, jitter) {
                    prop_assert!(after >= policy.backoff_min / 2);
                    prop_assert!(after <= policy.backoff_max);
                }
            }
        }
    }
}
