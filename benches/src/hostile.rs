//! Searches that are meant to cost as much as they can: whoever answers them has to bound the work of each.
//!
//! They are as long as the two limits on texts allow, and each family aims at one thing that an engine does: look up
//! prefixes, try misspellings, walk phrases of frequent words, rule out, unite. The same number is always the same search.

use jiff::Timestamp;
use rookery_actors::search::index::Kind;

use crate::{
    draw::Draw,
    search::{ask::Ask, words::misspelt},
};

/// How many there are in a round.
pub const SEARCHES: usize = 10_000;

/// The longest texts: those of the attack that was seen, and what a query may have at most.
const BYTES: [usize; 2] = [199, 512];

const STOP_WORDS: [&str; 24] = [
    "the", "a", "of", "to", "and", "in", "is", "it", "for", "that", "on", "with", "as", "at", "be", "by", "or", "this", "you",
    "not", "are", "was", "have", "if",
];

/// What a search aims at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Prefixes of a letter each, then of two.
    Prefixes,
    /// Frequent words, each misspelt.
    Misspellings,
    /// Phrases of the most frequent words.
    Phrases,
    /// Scripts without spaces, whose characters are looked up as prefixes and pairs.
    Dense,
    /// One word, and all that may be ruled out.
    Exclusions,
    /// The most frequent words there are.
    Words,
    /// 26 prefixes of one letter, 8 misspellings and 2 phrases: the search that has stopped a node.
    Attack,
    /// A bit of everything.
    Mixture,
    /// Words joined by signs, each pair a phrase; and characters that are nothing.
    Joined,
    /// Long words of few letters, to which many are similar.
    Similar,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 10] = [
        Self::Prefixes,
        Self::Misspellings,
        Self::Phrases,
        Self::Dense,
        Self::Exclusions,
        Self::Words,
        Self::Attack,
        Self::Mixture,
        Self::Joined,
        Self::Similar,
    ];
}

/// Makes searches of the words that most documents have, the most frequent ones first.
#[derive(Clone, Debug)]
pub struct Hostile {
    frequent: Vec<String>,
}

impl Hostile {
    /// With these words; without any, with stop words alone.
    pub fn of(frequent: Vec<String>) -> Self {
        let none = frequent.is_empty();
        Self { frequent: if none { STOP_WORDS.map(str::to_owned).to_vec() } else { frequent } }
    }

    /// The first searches.
    pub fn searches(&self, count: usize) -> impl Iterator<Item = (Family, Ask)> {
        (0..count as u64).map(|n| self.search(n))
    }

    /// Search number `n`: its family and itself.
    pub fn search(&self, n: u64) -> (Family, Ask) {
        let mut draw = Draw::of_two(0x4057, n);
        let family = Family::ALL[(n % Family::ALL.len() as u64) as usize];
        let mut text = Text { text: String::new(), bytes_max: BYTES[draw.below(BYTES.len())] };
        self.write(family, &mut text, &mut draw);
        let mut ask = Ask::typed(text.text);
        if draw.happens(0.6) {
            ask.limit = 100;
        }
        ask.new = draw.happens(0.25);
        if draw.happens(0.2) {
            ask.kind = Some(*draw.pick(&Kind::ALL));
        }
        if draw.happens(0.1) {
            ask.from = Timestamp::from_second(1_200_000_000 + draw.below(200_000_000) as i64).ok();
        }
        if draw.happens(0.05) {
            ask.tag = Some(draw.pick(&self.frequent).clone());
        }
        (family, ask)
    }

    fn write(&self, family: Family, text: &mut Text, draw: &mut Draw) {
        match family {
            Family::Prefixes => {
                letters(text, draw);
                while text.add(&format!("{}{}*", letter(draw), letter(draw))) {}
            }
            Family::Misspellings => while text.add(&self.misspelling(draw)) {},
            Family::Phrases => while text.add(&self.phrase(draw)) {},
            Family::Dense => while text.add(&dense(draw)) {},
            Family::Exclusions => {
                text.add(self.word(draw));
                while text.add(&format!("-{}", self.anything(draw))) {}
            }
            Family::Words => while text.add(self.word(draw)) {},
            Family::Attack => {
                letters(text, draw);
                for _ in 0..8 {
                    text.add(&self.misspelling(draw));
                }
                for _ in 0..2 {
                    text.add(&self.phrase(draw));
                }
                while text.add(self.word(draw)) {}
            }
            Family::Mixture => while text.add(&self.anything(draw)) {},
            Family::Joined => {
                let sign = *draw.pick(&["-", "_", "/", "&", "\u{2bc}", "\u{301}", "\u{200d}", "🙂"]);
                while text.add(&(0..4).map(|_| self.word(draw)).collect::<Vec<_>>().join(sign)) {}
            }
            Family::Similar => {
                let few = [letter(draw), letter(draw)];
                while text.add(&(0..4 + draw.below(12)).map(|_| *draw.pick(&few)).collect::<String>()) {}
            }
        }
    }

    fn anything(&self, draw: &mut Draw) -> String {
        match draw.below(6) {
            0 => format!("{}*", letter(draw)),
            1 => self.misspelling(draw),
            2 => self.phrase(draw),
            3 => dense(draw),
            4 => format!("\"{}* {}\"", self.word(draw), letter(draw)),
            _ => self.word(draw).to_owned(),
        }
    }

    /// A frequent word; the most frequent ones more often.
    fn word(&self, draw: &mut Draw) -> &str {
        &self.frequent[(draw.uniform().powi(2) * self.frequent.len() as f64) as usize]
    }

    /// Of words of at least seven letters more mistakes are tried.
    fn misspelling(&self, draw: &mut Draw) -> String {
        let long = (0..20).map(|_| self.word(draw).to_owned()).find(|word| word.len() > 6);
        let word = long.unwrap_or_else(|| "information".to_owned());
        let once = misspelt(&word, draw);
        if draw.happens(0.5) { misspelt(&once, draw) } else { once }
    }

    fn phrase(&self, draw: &mut Draw) -> String {
        let mut words = || if draw.happens(0.5) { *draw.pick(&STOP_WORDS) } else { self.word(draw) };
        let words = [words(), words(), words()];
        format!("\"{}\"", words.join(" "))
    }
}

/// Grows up to a length.
struct Text {
    text: String,
    bytes_max: usize,
}

impl Text {
    /// Adds a part, if there is room.
    fn add(&mut self, part: &str) -> bool {
        let space = usize::from(!self.text.is_empty());
        let fits = self.text.len() + space + part.len() <= self.bytes_max;
        if fits {
            if space == 1 {
                self.text.push(' ');
            }
            self.text.push_str(part);
        }
        fits
    }
}

fn letters(text: &mut Text, draw: &mut Draw) {
    let mut all: Vec<char> = ('a'..='z').collect();
    draw.shuffle(&mut all);
    for letter in all {
        text.add(&format!("{letter}*"));
    }
}

fn letter(draw: &mut Draw) -> char {
    char::from(b'a' + draw.below(26) as u8)
}

/// Characters of one script: alone, or in a run.
fn dense(draw: &mut Draw) -> String {
    const FIRST: [(u32, u32); 6] = [(0x4e00, 500), (0x3042, 80), (0x30a2, 80), (0xac00, 2_000), (0x0e01, 46), (0x1780, 34)];
    let (first, count) = *draw.pick(&FIRST);
    let length = if draw.happens(0.4) { 1 } else { 2 + draw.below(6) };
    let mut character = || char::from_u32(first + draw.below(count as usize) as u32).unwrap_or('一');
    (0..length).map(|_| character()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use super::*;

    fn hostile() -> Hostile {
        Hostile::of(
            ["people", "something", "different", "because", "linux", "question", "http", "imgur"].map(str::to_owned).to_vec(),
        )
    }

    #[test]
    fn searches_are_as_long_as_they_may_be_and_differ() {
        let mut seen = HashSet::new();
        for (family, ask) in hostile().searches(2_000) {
            let bytes = ask.text.len();
            assert!((120..=199).contains(&bytes) || (430..=512).contains(&bytes), "{family:?}: {bytes} bytes: {}", ask.text);
            seen.insert(ask);
        }
        assert!(seen.len() > 1_990, "{}", seen.len());
    }

    #[test]
    fn every_family_has_its_turn_and_a_number_is_always_the_same_search() {
        let families: BTreeSet<_> = hostile().searches(10).map(|(family, _)| family).collect();
        assert_eq!(families, BTreeSet::from(Family::ALL));
        assert_eq!(hostile().search(4_711), hostile().search(4_711));
    }
}
