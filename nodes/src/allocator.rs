//! The memory of the process: mimalloc, told not to trade pages with the kernel all the time.
//!
//! An index makes a segment twice a second on a thread of its own, and a segment begins with megabytes of empty tables. Given
//! huge pages, the kernel cleared 88 MB for each of them, a quarter of the CPU of a node that creates posts; and what was given
//! back in between it had to clear again.

use std::ffi::{c_int, c_long};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc 3: how long memory that is free stays ours, in milliseconds.
const PURGE_DELAY: c_int = 15;
/// Over the seconds from one commit of an index to the next, and from one wave of requests to the next.
const KEPT_FREE_MS: c_long = 10_000;

// SAFETY: as mimalloc.h declares it. A number is noted, at whatever time; an option that it does not know it ignores.
#[expect(unsafe_code, reason = "the crate has only the name of the option of another version")]
unsafe extern "C" {
    safe fn mi_option_set(option: c_int, value: c_long);
}

/// To be called once, first of all.
pub(crate) fn settle() {
    mi_option_set(PURGE_DELAY, KEPT_FREE_MS);
    // A hint: where the kernel has no huge pages to give, it gives none.
    let _ = nix::sys::prctl::set_thp_disable(true);
}

#[cfg(test)]
mod tests {
    use super::*;

    // SAFETY: as mimalloc.h declares it; a number is read.
    #[expect(unsafe_code, reason = "as above")]
    unsafe extern "C" {
        safe fn mi_option_get(option: c_int) -> c_long;
    }

    /// In another mimalloc the number might mean something else.
    #[test]
    fn the_option_is_the_one_that_is_a_second_unless_it_is_set() {
        assert_eq!(mi_option_get(PURGE_DELAY), 1_000);
        settle();
        assert_eq!(mi_option_get(PURGE_DELAY), KEPT_FREE_MS);
        assert!(nix::sys::prctl::get_thp_disable().unwrap());
    }
}
