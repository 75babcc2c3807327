//! How many files and connections this process may have open at once (`ulimit -n`), and what that allows.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What a node opens beside the connections of its clients: the pools of four databases, segments of the index, links,
/// Kafka. An idle node with everything in one process has about 50 open.
const RESERVED: u64 = 512;

/// Raises the limit of this process as far as `clients` connections need and may have, and says so if it does not reach.
///
/// Returns how many of them fit: those beyond wait for their turn, while a process that has no descriptor left can no longer
/// open what its databases and its index need.
pub(crate) fn make_room_for(clients: usize) -> usize {
    let needed = RESERVED + clients as u64;
    let limit = match raised_to(needed) {
        Ok(limit) => limit,
        Err(error) => {
            tracing::debug!(%error, "the limit of open files is not known");
            return clients;
        }
    };
    let room = room_in(limit);
    if room >= clients as u64 {
        return clients;
    }
    tracing::warn!(
        open_files_max = limit,
        "only {limit} files and connections may be open at once (ulimit -n): that allows {room} clients at the same time, further \
         ones wait; `connections_max` in [gateway] is {clients}, which needs {needed}"
    );
    usize::try_from(room).unwrap_or(clients)
}

/// Clients that fit under a limit. Under a very low one, some do all the same: most of the reserve is seldom used.
fn room_in(limit: u64) -> u64 {
    limit.saturating_sub(RESERVED).max(limit / 4).max(1)
}

/// The limit that holds from now on: what was there, or more if that is needed and allowed.
fn raised_to(needed: u64) -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = needed.min(hard);
    if soft >= wanted {
        return Ok(soft);
    }
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_leaves_room_for_what_is_no_client() {
        assert_eq!([16_896, 1_024, 600, 256, 2].map(room_in), [16_384, 512, 150, 64, 1]);
    }
}
