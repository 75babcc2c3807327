//! From text to tokens: the one definition of a word that indexing, querying and highlighting share.
//!
//! - Letters are lower-cased and lose their accents: `Café` and `cafe` are the same word.
//! - Contractions stay whole: `don't` is `dont`, not `don` and `t`.
//! - Scripts that are written without spaces (Han, kana, Hangul, Thai, Lao, Khmer, Burmese) have no words that could be
//!   told apart without a dictionary. Each run of them becomes its overlapping pairs of characters, and its last
//!   character alone; so every character begins a token, and one character alone is found as a prefix.
//! - A run of more than [`TOKEN_CHARS_MAX`] characters is cut, so that a long link costs its reader no part of it.

use std::collections::HashMap;

use tantivy::tokenizer::{
    Language, RawTokenizer, Stemmer as StemFilter, TextAnalyzer, Token as IndexToken, TokenStream, Tokenizer,
};
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// Longer words are cut into pieces of this many characters.
pub(super) const TOKEN_CHARS_MAX: usize = 40;

/// The marks that a unit of a dense script carries at most; what follows is noise.
const UNIT_MARKS_MAX: usize = 6;

/// What kind of token stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A word between separators.
    Word,
    /// Two neighbouring characters of a dense script.
    Pair,
    /// A character of a dense script that stands alone.
    Single,
    /// The last character of a dense run, which its [`Shape::Pair`] contains already.
    Tail,
}

/// A folded piece of a text and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// Folded; never empty.
    pub text: String,
    /// Byte offset of its first byte in the source.
    pub start: usize,
    /// Byte offset behind its last byte in the source.
    pub end: usize,
    /// Neighbours in a phrase have neighbouring positions.
    pub position: usize,
    /// What it is.
    pub shape: Shape,
}

/// Splits a text into its tokens.
pub(super) fn tokens(text: &str) -> Tokens<'_> {
    Tokens { text, at: 0, position: 0, dense: None }
}

/// The tokens of one text, in order. See [`tokens`].
#[derive(Clone, Debug)]
pub(super) struct Tokens<'a> {
    text: &'a str,
    at: usize,
    position: usize,
    /// Within a dense run: the unit that the next token begins with, and whether it begins the run.
    dense: Option<(usize, usize, bool)>,
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        let mut text = String::new();
        let place = self.next_into(&mut text)?;
        Some(place.with(text))
    }
}

/// A [`Token`] without its text.
pub(super) struct Place {
    pub start: usize,
    pub end: usize,
    pub position: usize,
    pub shape: Shape,
}

impl Place {
    pub(super) fn with(&self, text: String) -> Token {
        Token { text, start: self.start, end: self.end, position: self.position, shape: self.shape }
    }
}

impl Tokens<'_> {
    /// The next token; its text goes into `folded`, which an index uses again for the one after it.
    pub(super) fn next_into(&mut self, folded: &mut String) -> Option<Place> {
        loop {
            let (start, end, shape) = match self.dense.take() {
                Some((start, end, first)) => self.dense_token(start, end, first),
                None => self.next_run()?,
            };
            fold_into(&self.text[start..end], folded);
            // A handful of letters fold to nothing, such as a lone modifier.
            if !folded.is_empty() {
                let position = self.position;
                self.position += 1;
                return Some(Place { start, end, position, shape });
            }
        }
    }

    /// Skips separators, then reads a word or the first token of a dense run.
    fn next_run(&mut self) -> Option<(usize, usize, Shape)> {
        let rest = &self.text[self.at..];
        let ascii = rest.bytes().take_while(|byte| byte.is_ascii() && !byte.is_ascii_alphanumeric()).count();
        let skipped = rest[ascii..].char_indices().map(|(offset, c)| (ascii + offset, class(c)));
        let (offset, class) = skipped.into_iter().find(|(_, class)| matches!(class, Class::Word | Class::Dense))?;
        let start = self.at + offset;
        Some(match class {
            Class::Dense => {
                let end = unit_end(self.text, start);
                self.dense_token(start, end, true)
            }
            _ => {
                self.at = word_end(self.text, start);
                (start, self.at, Shape::Word)
            }
        })
    }

    /// The token that begins with the unit `start..end`; remembers the next unit.
    fn dense_token(&mut self, start: usize, end: usize, first: bool) -> (usize, usize, Shape) {
        self.at = end;
        if self.text[end..].chars().next().is_some_and(|c| class(c) == Class::Dense) {
            let next_end = unit_end(self.text, end);
            self.dense = Some((end, next_end, false));
            (start, next_end, Shape::Pair)
        } else if first {
            (start, end, Shape::Single)
        } else {
            (start, end, Shape::Tail)
        }
    }
}

/// Folds case, accents and compatibility forms, so that a word has one spelling.
///
/// Only the accents of Latin, Greek and Cyrillic go; the vowel signs of other scripts are letters in all but name.
fn fold_into(word: &str, folded: &mut String) {
    folded.clear();
    if word.is_ascii() {
        folded.push_str(word);
        folded.make_ascii_lowercase();
        if folded.bytes().any(|byte| !byte.is_ascii_alphanumeric()) {
            folded.retain(|c| c.is_ascii_alphanumeric());
        }
    } else {
        folded.push_str(&fold_unicode(word));
    }
}

fn fold_unicode(word: &str) -> String {
    let lower = word.nfkd().filter(|c| !('\u{300}'..='\u{36f}').contains(c)).flat_map(char::to_lowercase);
    let mut folded = String::with_capacity(word.len());
    for c in lower {
        match c {
            'ß' => folded.push_str("ss"),
            'æ' => folded.push_str("ae"),
            'œ' => folded.push_str("oe"),
            'þ' => folded.push_str("th"),
            'ø' => folded.push('o'),
            'ł' => folded.push('l'),
            'đ' | 'ð' => folded.push('d'),
            'ħ' => folded.push('h'),
            'ı' => folded.push('i'),
            'ς' => folded.push('σ'),
            APOSTROPHE_LETTER => {}
            c if c.is_alphanumeric() || is_combining_mark(c) => folded.push(c),
            _ => {}
        }
    }
    folded.nfc().collect()
}

/// Whether a word says so little that it only counts in a query which has nothing else.
///
/// Otherwise `how to cook rice` would find every document with a `to`, and read through all of them.
pub(super) fn is_stop_word(word: &str) -> bool {
    const STOP_WORDS: [&str; 63] = [
        "a", "about", "all", "am", "an", "and", "are", "as", "at", "be", "been", "but", "by", "can", "do", "for", "from", "had",
        "has", "have", "he", "her", "his", "how", "i", "if", "in", "into", "is", "it", "its", "me", "my", "no", "not", "of",
        "on", "or", "our", "she", "should", "so", "some", "that", "the", "their", "there", "they", "this", "to", "was", "we",
        "were", "what", "when", "where", "which", "who", "why", "will", "with", "you", "your",
    ];
    STOP_WORDS.binary_search(&word).is_ok()
}

/// Reduces English words to their stems; leaves words of other scripts alone.
#[derive(Clone)]
pub(super) struct Stemmer(TextAnalyzer);

/// Stems that were needed before: looking one up costs a fraction of finding it.
#[derive(Clone)]
pub(super) struct KnownStems {
    stemmer: Stemmer,
    stems: HashMap<String, String>,
}

/// Different words that are remembered; a hundred posts have a few thousand.
const KNOWN_STEMS_MAX: usize = 8_192;

impl KnownStems {
    pub(super) fn new() -> Self {
        Self { stemmer: Stemmer::new(), stems: HashMap::new() }
    }

    /// The stem of a folded word.
    pub(super) fn stem_of(&mut self, word: &str) -> &str {
        if self.stems.len() >= KNOWN_STEMS_MAX {
            self.stems.clear();
        }
        if !self.stems.contains_key(word) {
            let stem = self.stemmer.stem(word);
            self.stems.insert(word.to_owned(), stem);
        }
        &self.stems[word]
    }

    /// Makes a word its stem.
    fn stem(&mut self, word: &mut String) {
        if let Some(stem) = self.stems.get(word.as_str()) {
            word.clone_from(stem);
            return;
        }
        let stem = self.stemmer.stem(word);
        if self.stems.len() < KNOWN_STEMS_MAX {
            self.stems.insert(word.clone(), stem.clone());
        }
        *word = stem;
    }
}

impl Stemmer {
    pub(super) fn new() -> Stemmer {
        Stemmer(TextAnalyzer::builder(RawTokenizer::default()).filter(StemFilter::new(Language::English)).build())
    }

    /// The stem of a folded word.
    pub(super) fn stem(&mut self, word: &str) -> String {
        let mut stream = self.0.token_stream(word);
        if stream.advance() { std::mem::take(&mut stream.token_mut().text) } else { String::new() }
    }
}

/// The analyzer of the fields that keep words as they are, folded.
pub(super) fn exact_analyzer() -> TextAnalyzer {
    TextAnalyzer::from(Folding { stems: None, dense: true })
}

/// The analyzer of the fields that keep stems. Dense scripts have none, so they are left out.
pub(super) fn stem_analyzer() -> TextAnalyzer {
    TextAnalyzer::from(Folding { stems: Some(KnownStems::new()), dense: false })
}

/// The same with the tokens of dense scripts, as they are.
pub(super) fn score_analyzer() -> TextAnalyzer {
    TextAnalyzer::from(Folding { stems: Some(KnownStems::new()), dense: true })
}

/// [`tokens`] for tantivy, which clones it for every segment that it writes.
#[derive(Clone)]
struct Folding {
    stems: Option<KnownStems>,
    /// Whether dense scripts are kept.
    dense: bool,
}

impl Tokenizer for Folding {
    type TokenStream<'a> = FoldingStream<'a>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> FoldingStream<'a> {
        FoldingStream { tokens: tokens(text), stems: self.stems.as_mut(), dense: self.dense, token: IndexToken::default() }
    }
}

struct FoldingStream<'a> {
    tokens: Tokens<'a>,
    stems: Option<&'a mut KnownStems>,
    dense: bool,
    token: IndexToken,
}

impl TokenStream for FoldingStream<'_> {
    fn advance(&mut self) -> bool {
        while let Some(Place { start, end, position, shape }) = self.tokens.next_into(&mut self.token.text) {
            match &mut self.stems {
                Some(stems) if shape == Shape::Word => stems.stem(&mut self.token.text),
                _ if shape != Shape::Word && !self.dense => continue,
                _ => {}
            }
            (self.token.offset_from, self.token.offset_to, self.token.position) = (start, end, position);
            return true;
        }
        false
    }

    fn token(&self) -> &IndexToken {
        &self.token
    }

    fn token_mut(&mut self) -> &mut IndexToken {
        &mut self.token
    }
}

/// U+02BC, which Unicode counts as a letter and some keyboards write for an apostrophe.
const APOSTROPHE_LETTER: char = '\u{2bc}';

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Separator,
    Word,
    Dense,
    /// Belongs to the character before it.
    Mark,
}

fn class(c: char) -> Class {
    if c.is_ascii() {
        return if c.is_ascii_alphanumeric() { Class::Word } else { Class::Separator };
    }
    // Conjoining vowels and finals of decomposed Hangul; soft hyphen and the joiners of Persian and Hindi.
    if matches!(c, '\u{1160}'..='\u{11ff}' | '\u{ad}' | '\u{200c}' | '\u{200d}') || is_combining_mark(c) {
        return Class::Mark;
    }
    match (c.is_alphanumeric(), is_dense(c)) {
        (false, _) => Class::Separator,
        (true, false) => Class::Word,
        (true, true) => Class::Dense,
    }
}

fn is_dense(c: char) -> bool {
    matches!(c,
        '\u{0e00}'..='\u{0eff}'       // Thai, Lao
        | '\u{1000}'..='\u{109f}'     // Burmese
        | '\u{1100}'..='\u{115f}'     // Hangul initials
        | '\u{1780}'..='\u{17ff}'     // Khmer
        | '\u{3005}'..='\u{3007}'     // iteration mark, closing mark, zero
        | '\u{3040}'..='\u{30ff}'     // kana
        | '\u{31f0}'..='\u{31ff}'     // small kana
        | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}' // Han
        | '\u{ac00}'..='\u{d7a3}'     // Hangul syllables
        | '\u{ff66}'..='\u{ff9f}'     // half-width kana
    )
}

/// Where the unit of a dense script that begins at `start` ends: the character and its marks.
fn unit_end(text: &str, start: usize) -> usize {
    let mut chars = text[start..].chars();
    let base = chars.next().map_or(0, char::len_utf8);
    let marks: usize = chars.take(UNIT_MARKS_MAX).take_while(|c| class(*c) == Class::Mark).map(char::len_utf8).sum();
    start + base + marks
}

/// Where the word that begins at `start` ends.
fn word_end(text: &str, start: usize) -> usize {
    let bytes = &text.as_bytes()[start..];
    let ascii = bytes.iter().take(TOKEN_CHARS_MAX).take_while(|byte| byte.is_ascii_alphanumeric()).count();
    // Most words are nothing else.
    if ascii == TOKEN_CHARS_MAX || bytes.get(ascii).is_none_or(|next| next.is_ascii() && *next != b'\'') {
        return start + ascii;
    }
    let mut end = start;
    for (count, (offset, c)) in text[start..].char_indices().enumerate() {
        let here = start + offset;
        if count == TOKEN_CHARS_MAX {
            return here;
        }
        match class(c) {
            Class::Word | Class::Mark => end = here + c.len_utf8(),
            _ if matches!(c, '\'' | '’') => {
                return contraction_end(text, here + c.len_utf8()).unwrap_or(end);
            }
            _ => return end,
        }
    }
    end
}

/// If an English contraction goes on at `start`, behind its apostrophe: where it ends.
fn contraction_end(text: &str, start: usize) -> Option<usize> {
    let rest = &text[start..];
    let length = rest.find(|c: char| class(c) == Class::Separator).unwrap_or(rest.len());
    let tail = &rest[..length];
    ["s", "t", "d", "m", "re", "ve", "ll"].iter().any(|known| tail.eq_ignore_ascii_case(known)).then_some(start + length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str) -> Vec<String> {
        tokens(text).map(|token| token.text).collect()
    }

    #[test]
    fn case_and_accents_are_folded() {
        assert_eq!(words("Café ÀÉÎ Straße Øl Łódź ΣΊΣΥΦΟΣ"), ["cafe", "aei", "strasse", "ol", "lodz", "σισυφοσ"]);
    }

    #[test]
    fn composed_and_decomposed_accents_are_the_same() {
        assert_eq!(words("caf\u{e9}"), words("cafe\u{301}"));
    }

    #[test]
    fn contractions_stay_whole_and_other_apostrophes_split() {
        assert_eq!(words("don't They’re l'homme 'quoted'"), ["dont", "theyre", "l", "homme", "quoted"]);
    }

    #[test]
    fn a_usernames_underscore_separates() {
        assert_eq!(words("ada_lovelace"), ["ada", "lovelace"]);
    }

    #[test]
    fn a_long_run_is_cut_and_not_lost() {
        let long = "x".repeat(95);
        assert_eq!(words(&long).iter().map(String::len).collect::<Vec<_>>(), [40, 40, 15]);
    }

    #[test]
    fn han_text_becomes_pairs_and_its_last_character() {
        assert_eq!(words("黒猫が rust"), ["黒猫", "猫が", "が", "rust"]);
    }

    #[test]
    fn a_lone_han_character_is_told_from_the_end_of_a_run() {
        assert_eq!(tokens("猫").next().unwrap().shape, Shape::Single);
        assert_eq!(tokens("黒猫").nth(1).unwrap().shape, Shape::Tail);
    }

    #[test]
    fn decomposed_hangul_and_kana_equal_the_composed_ones() {
        assert_eq!(words("\u{1112}\u{1161}\u{11ab}\u{1100}\u{1173}\u{11af}"), words("한글"));
        assert_eq!(words("か\u{3099}く"), words("がく"));
    }

    #[test]
    fn thai_keeps_its_vowel_signs() {
        assert_eq!(words("กินข้าว").first().unwrap(), "กิน");
    }

    #[test]
    fn english_words_are_stemmed_and_others_are_not() {
        let mut stemmer = Stemmer::new();
        assert_eq!(stemmer.stem("running"), "run");
        assert_eq!(stemmer.stem("databases"), stemmer.stem("database"));
        assert_eq!(stemmer.stem("москва"), "москва");
    }

    #[test]
    fn stop_words_are_found_from_the_first_to_the_last() {
        assert!(["a", "about", "the", "you", "your"].into_iter().all(is_stop_word));
        assert!(!is_stop_word("rust"));
    }

    proptest! {
        #[test]
        fn tokens_lie_in_the_text_in_order_and_are_never_empty(text in r"(?s)(\PC|.|[あ-ん가-힣]){0,80}") {
            let mut last = 0;
            for (index, token) in tokens(&text).enumerate() {
                prop_assert!(token.start >= last && token.end > token.start);
                prop_assert!(text.get(token.start..token.end).is_some());
                prop_assert!(!token.text.is_empty());
                prop_assert_eq!(token.position, index);
                last = token.start;
            }
        }

        #[test]
        fn folding_twice_changes_nothing(text in r"\w{0,20}") {
            let folded = |text: &str| {
                let mut folded = String::new();
                fold_into(text, &mut folded);
                folded
            };
            prop_assert_eq!(folded(&folded(&text)), folded(&text));
        }
    }
}
