//! How many requests a gateway takes at once, and what becomes of the others.
//!
//! What is beyond the limit is refused before anything is done for it. Even so a refusal costs a third of an answer, nearly
//! all of it in the kernel, and whoever is refused at once is back at once: so a refusal waits, the longer the more of them
//! wait already. That bounds the refusals of a second by a quarter of the limit, as long as [`PAUSE_MAX`] is not reached.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// How long a refusal waits when as many wait already as the limit is; more or less in proportion.
const PAUSE_PER_LIMIT: Duration = Duration::from_secs(4);
/// The longest wait of a refusal: below the patience of clients (30 s is usual), who should learn that they are not served.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Counts requests from their arrival to the head of their response.
#[derive(Debug)]
pub(crate) struct Admission {
    limit: usize,
    admitted: AtomicUsize,
    refused: AtomicUsize,
    /// Refusals since they were last reported.
    shed: AtomicU64,
}

impl Admission {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, admitted: AtomicUsize::new(0), refused: AtomicUsize::new(0), shed: AtomicU64::new(0) })
    }

    /// Takes a request in.
    ///
    /// # Errors
    /// When the limit is reached; how long the refusal is to wait comes with it.
    pub(crate) fn admit(self: &Arc<Self>) -> Result<Place, (Place, Duration)> {
        if self.admitted.fetch_add(1, Ordering::Relaxed) < self.limit {
            return Ok(Place { admission: Arc::clone(self), of: Queue::Admitted });
        }
        self.admitted.fetch_sub(1, Ordering::Relaxed);
        self.shed.fetch_add(1, Ordering::Relaxed);
        let before = self.refused.fetch_add(1, Ordering::Relaxed);
        let pause = PAUSE_PER_LIMIT.mul_f64(before as f64 / self.limit.max(1) as f64);
        Err((Place { admission: Arc::clone(self), of: Queue::Refused }, pause.min(PAUSE_MAX)))
    }

    /// Takes a request in whatever the limit says.
    pub(crate) fn admit_always(self: &Arc<Self>) -> Place {
        self.admitted.fetch_add(1, Ordering::Relaxed);
        Place { admission: Arc::clone(self), of: Queue::Admitted }
    }

    /// Whether requests are being refused.
    pub(crate) fn is_shedding(&self) -> bool {
        self.refused.load(Ordering::Relaxed) > 0
    }

    /// Requests whose response has not begun.
    pub(crate) fn in_flight(&self) -> usize {
        self.admitted.load(Ordering::Relaxed) + self.refused.load(Ordering::Relaxed)
    }

    /// How many were refused since this was last asked.
    pub(crate) fn take_shed(&self) -> u64 {
        self.shed.swap(0, Ordering::Relaxed)
    }
}

#[derive(Debug)]
enum Queue {
    Admitted,
    Refused,
}

/// The place of one request; free again when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    admission: Arc<Admission>,
    of: Queue,
}

impl Drop for Place {
    fn drop(&mut self) {
        let count = match self.of {
            Queue::Admitted => &self.admission.admitted,
            Queue::Refused => &self.admission.refused,
        };
        count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_limit_is_refused_until_a_place_is_free() {
        let admission = Admission::new(2);
        let first = admission.admit().unwrap();
        let _second = admission.admit().unwrap();
        assert!(admission.admit().is_err());
        drop(first);
        assert!(admission.admit().is_ok());
    }

    #[test]
    fn health_has_a_place_even_then() {
        let admission = Admission::new(0);
        let _place = admission.admit_always();
        assert_eq!(admission.in_flight(), 1);
    }

    #[test]
    fn a_refusal_waits_the_longer_the_more_wait() {
        let admission = Admission::new(2);
        let _taken = [admission.admit().unwrap(), admission.admit().unwrap()];
        let mut refused = Vec::new();
        let pauses: Vec<u64> = (0..5)
            .map(|_| {
                let (place, pause) = admission.admit().unwrap_err();
                refused.push(place);
                pause.as_millis() as u64
            })
            .collect();
        assert_eq!(pauses, [0, 2_000, 4_000, 6_000, 8_000]);
        assert!(admission.is_shedding());
        refused.clear();
        assert!(!admission.is_shedding());
    }

    #[test]
    fn no_refusal_waits_for_ever() {
        let admission = Admission::new(1);
        let _taken = admission.admit().unwrap();
        let refused: Vec<_> = (0..100).map(|_| admission.admit().unwrap_err()).collect();
        assert_eq!(refused.last().unwrap().1, PAUSE_MAX);
    }

    #[test]
    fn refusals_are_reported_once() {
        let admission = Admission::new(0);
        let _refused = (admission.admit(), admission.admit());
        assert_eq!((admission.take_shed(), admission.take_shed()), (2, 0));
    }
}
