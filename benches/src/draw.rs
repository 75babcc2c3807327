//! Chance that is the same in every run.

/// SplitMix64 (Steele, Lea & Flood, 2014).
#[derive(Clone, Debug)]
pub struct Draw(u64);

impl Draw {
    /// Draws that depend on this number only.
    pub fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// Draws that depend on both numbers; neighbouring ones have nothing in common.
    pub fn of_two(seed: u64, number: u64) -> Self {
        Self(Self(seed ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93)).number())
    }

    /// A number with all its bits by chance.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number below another one, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.uniform() * end as f64) as usize
    }

    /// Whether something happens that happens with this probability.
    pub fn happens(&mut self, probability: f64) -> bool {
        self.uniform() < probability
    }

    /// One of several; there is at least one.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Puts them into any order (Fisher & Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }

    /// A rank from 0 on by a power law without end: the first `flat` are about equally likely, and beyond, a rank is drawn
    /// with a probability of about `rank.powf(-1.0 / beta)`. So the number of different ranks in n draws grows like
    /// `n.powf(beta)`, as the vocabulary of natural texts does (Heaps, 1978).
    pub fn rank(&mut self, flat: f64, beta: f64) -> u64 {
        let exponent = 1.0 / beta - 1.0;
        let stretch = (1.0 - self.uniform()).powf(-1.0 / exponent) - 1.0;
        // Ranks beyond this one are never drawn twice anyway.
        (flat * stretch).min(1e15) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn different_ranks_grow_as_heaps_says() {
        let mut draw = Draw::of(1);
        let mut seen = HashSet::new();
        let mut grown = |draws: usize| {
            seen.extend((0..draws).map(|_| draw.rank(100.0, 0.6)));
            seen.len() as f64
        };
        let (few, many) = (grown(100_000), grown(900_000));
        let beta = (many / few).log10();
        assert!((0.55..0.65).contains(&beta), "{beta}");
    }

    #[test]
    fn a_shuffle_loses_nothing() {
        let mut items: Vec<_> = (0..100).collect();
        Draw::of(7).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
