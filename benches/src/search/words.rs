//! Words: those of a text, wrong ones, and new ones.

use crate::draw::Draw;

/// Words that say too little to be asked for alone.
const STOP_WORDS: &[&str] = &[
    "about", "after", "all", "also", "amp", "and", "any", "are", "because", "been", "but", "can", "com", "could", "did", "does",
    "even", "for", "from", "get", "had", "has", "have", "her", "his", "how", "http", "https", "into", "its", "just", "like",
    "more", "not", "now", "one", "only", "other", "our", "out", "over", "she", "should", "some", "such", "than", "that", "the",
    "their", "them", "then", "there", "these", "they", "this", "very", "was", "were", "what", "when", "where", "which", "who",
    "why", "will", "with", "would", "www", "you", "your",
];

/// Whether a word says too little to be asked for alone. All of less than three letters do.
pub fn is_stop_word(word: &str) -> bool {
    word.len() < 3 || STOP_WORDS.binary_search(&word).is_ok()
}

/// The words of a text in lower case, one after another: runs of letters and digits, as all engines split it.
pub fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

/// Those of them that one would search for: ASCII letters, no stop words.
pub fn telling_words(text: &str) -> impl Iterator<Item = String> {
    words(text).filter(|word| word.len() <= 20 && word.bytes().all(|byte| byte.is_ascii_lowercase()) && !is_stop_word(word))
}

/// A word with one mistake as fingers make it: neighbours swapped, one left out, doubled, or another in its place. The first
/// letter is right, as it mostly is (Pollock & Zamora, 1984).
pub fn misspelt(word: &str, draw: &mut Draw) -> String {
    let mut letters: Vec<char> = word.chars().collect();
    if letters.len() < 3 {
        letters.push('e');
        return letters.into_iter().collect();
    }
    let at = 1 + draw.below(letters.len() - 2);
    match draw.below(4) {
        0 if letters[at] != letters[at + 1] => letters.swap(at, at + 1),
        1 => {
            letters.remove(at);
        }
        2 => letters.insert(at, letters[at]),
        _ => {
            let other = *draw.pick(&LETTERS);
            letters[at] = if other == letters[at] { 'q' } else { other };
        }
    }
    letters.into_iter().collect()
}

const LETTERS: [char; 12] = ['a', 'e', 'i', 'o', 'u', 'r', 's', 't', 'n', 'l', 'd', 'm'];

/// A word, name or number that nobody has written before; the same one for the same number.
pub fn coined(number: u64) -> String {
    let mut draw = Draw::of_two(COINED, number);
    let kind = draw.below(10);
    if kind == 0 {
        return (1_000 + number % 900_000).to_string();
    }
    let syllables = 2 + draw.below(2);
    let mut word: String = (0..syllables).map(|_| syllable(&mut draw)).collect();
    if kind < 4 {
        // A name.
        word[..1].make_ascii_uppercase();
    }
    word
}

const COINED: u64 = 0x0c01_4ed0;

fn syllable(draw: &mut Draw) -> String {
    const ONSETS: [&str; 26] = [
        "b", "br", "c", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "pr", "qu", "r", "s", "st",
        "t", "tr", "v", "w",
    ];
    const VOWELS: [&str; 8] = ["a", "e", "i", "o", "u", "ai", "ea", "oo"];
    const CODAS: [&str; 12] = ["", "", "", "n", "r", "l", "s", "t", "m", "nd", "ck", "x"];
    [draw.pick(&ONSETS), draw.pick(&VOWELS), draw.pick(&CODAS)].into_iter().copied().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn stop_words_are_found_from_the_first_to_the_last() {
        assert!(STOP_WORDS.is_sorted() && STOP_WORDS.iter().all(|word| is_stop_word(word)));
        assert!(!is_stop_word("loom"));
    }

    #[test]
    fn a_misspelt_word_is_another_one() {
        let mut draw = Draw::of(3);
        for word in ["science", "a", "of", "tree", "committee", "aaaa"] {
            for _ in 0..100 {
                assert_ne!(misspelt(word, &mut draw), word);
            }
        }
    }

    #[test]
    fn coined_words_hardly_repeat() {
        let words: HashSet<_> = (0..100_000).map(coined).collect();
        assert!(words.len() > 90_000, "{}", words.len());
    }
}
