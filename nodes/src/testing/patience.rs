//! Patience on a machine that has other things to do: where six want two processors, a second counts as a third of one.

use std::{
    fs,
    time::{Duration, Instant},
};

/// How often the machine is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// However busy a machine is, nobody waits longer than so many times as long.
const STRETCH_MAX: u32 = 10;

/// How long a condition is waited for: time in which the machine could have brought it about.
#[derive(Debug)]
pub struct Patience {
    within: Duration,
    left: Duration,
    began: Instant,
    looked: Instant,
}

impl Patience {
    /// So long on a machine that has nothing else to do.
    pub fn of(within: Duration) -> Self {
        let now = Instant::now();
        Self { within, left: within, began: now, looked: now }
    }

    /// Whether it is over; to be asked again and again while one waits.
    pub fn is_over(&mut self) -> bool {
        let passed = self.looked.elapsed();
        if passed >= LOOK_EVERY {
            self.looked += passed;
            self.spend(passed, crowding());
        }
        self.left.is_zero() || self.began.elapsed() >= self.within * STRETCH_MAX
    }

    /// How long it has been waited for.
    pub fn spent(&self) -> Duration {
        self.began.elapsed()
    }

    fn spend(&mut self, passed: Duration, crowding: f64) {
        self.left = self.left.saturating_sub(passed.div_f64(crowding));
    }
}

/// How many want to run for each processor: threads now, or threads and those that wait for a disk over the last minute.
fn crowding() -> f64 {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
    (wanting(&load).unwrap_or_default() / processors).max(1.0)
}

/// Of a line as `1.37 0.90 0.41 3/512 4711`.
fn wanting(load: &str) -> Option<f64> {
    let mut fields = load.split_whitespace();
    let over_a_minute: f64 = fields.next()?.parse().ok()?;
    let now: f64 = fields.nth(2)?.split('/').next()?.parse().ok()?;
    Some(now.max(over_a_minute))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_among_three_is_a_third_of_one() {
        let mut patience = Patience::of(Duration::from_secs(2));
        patience.spend(Duration::from_secs(3), 3.0);
        assert!(!patience.is_over());
        assert_eq!(patience.left, Duration::from_secs(1));
        patience.spend(Duration::from_secs(1), 1.0);
        assert!(patience.is_over());
    }

    #[test]
    fn it_ends_on_a_machine_that_never_has_time() {
        let mut patience = Patience::of(Duration::from_millis(10));
        patience.left = Duration::MAX;
        assert!(!Patience::of(Duration::from_secs(1)).is_over());
        std::thread::sleep(Duration::from_millis(10) * STRETCH_MAX);
        assert!(patience.is_over());
    }

    #[test]
    fn who_wants_to_run_is_read_from_the_kernels_line() {
        assert_eq!(wanting("1.37 0.90 0.41 3/512 4711\n"), Some(3.0));
        assert_eq!(wanting("19.02 9.90 0.41 3/512 4711\n"), Some(19.02));
        assert_eq!(wanting(""), None);
        assert!(crowding() >= 1.0);
    }
}
