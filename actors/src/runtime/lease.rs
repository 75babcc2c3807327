//! The right to serve, until a moment on the boot-time clock.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

/// A moment on the clock that runs on while the machine sleeps; a stopped process sees its lease gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(u64);

impl BootTime {
    /// The time since boot.
    pub fn since_boot(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// A moment so long after boot.
    pub const fn after_boot(time: Duration) -> Self {
        Self(time.as_nanos() as u64)
    }

    /// So much later.
    pub fn plus(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time.as_nanos() as u64))
    }

    /// How long ago `earlier` was; nothing, if it is yet to come.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Whole seconds since boot.
    pub fn as_secs(self) -> u64 {
        self.0 / 1_000_000_000
    }

    /// Now, in nanoseconds since boot.
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has a boot-time clock");
        Self(Duration::from(time).as_nanos() as u64)
    }
}

/// A service's lease on this node: valid until `t0 + 0.9 · ttl`, where `t0` was taken before the renewal was sent.
#[derive(Debug, Default)]
pub struct Lease {
    until_ns: AtomicU64,
}

impl Lease {
    /// Counts a renewal that succeeded and had been sent at `sent`.
    pub fn renewed(&self, sent: BootTime, ttl: Duration) {
        let until = sent.0 + (ttl.as_nanos() as u64 / 10) * 9;
        self.until_ns.fetch_max(until, Ordering::AcqRel);
    }

    /// Ends it at once.
    pub fn revoke(&self) {
        self.until_ns.store(0, Ordering::Release);
    }

    /// Whether this node may still serve.
    pub fn is_valid(&self) -> bool {
        BootTime::now() < self.until()
    }

    /// When it ends, unless it is renewed or revoked.
    pub(crate) fn until(&self) -> BootTime {
        BootTime(self.until_ns.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_before_the_renewal_was_sent() {
        let lease = Lease::default();
        let sent = BootTime(BootTime::now().0 - 950_000_000);
        lease.renewed(sent, Duration::from_secs(1));
        assert!(!lease.is_valid(), "0.95 s of a 1 s lease are gone, and a tenth is the margin");
        lease.renewed(BootTime::now(), Duration::from_secs(1));
        assert!(lease.is_valid());
    }

    #[test]
    fn a_late_answer_never_shortens_a_lease() {
        let lease = Lease::default();
        lease.renewed(BootTime::now(), Duration::from_secs(60));
        lease.renewed(BootTime(1), Duration::from_secs(1));
        assert!(lease.is_valid());
    }
}
