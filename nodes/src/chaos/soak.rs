//! Pure. A long run: which scenario comes next, and with which seed, is decided by one seed for all of it.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::scenario::Scenario;

/// The scenario of this number and the seed of its clients.
///
/// # Panics
/// If there is none to choose from.
pub fn draw(seed: u64, number: u64, possible: &[Scenario]) -> (Scenario, u64) {
    let throw = |what: u8| {
        let mut place = [what; 9];
        place[1..].copy_from_slice(&number.to_le_bytes());
        xxh3_64_with_seed(&place, seed)
    };
    let choice = throw(0) % possible.len() as u64;
    (possible[usize::try_from(choice).expect("less than the scenarios")], throw(1))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_seed_decides_a_soak_and_a_long_one_meets_everything() {
        let soak = |seed| (0..400).map(|number| draw(seed, number, Scenario::ALL)).collect::<Vec<_>>();
        assert_eq!(soak(7), soak(7));
        assert_ne!(soak(7), soak(8));
        let met: HashSet<Scenario> = soak(7).into_iter().map(|(scenario, _)| scenario).collect();
        assert_eq!(met.len(), Scenario::ALL.len());
    }
}
