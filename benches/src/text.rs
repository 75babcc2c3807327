//! Posts like those that people write: some 600 bytes of words, common ones more often.

use serde_json::json;

use crate::{draw::Draw, http::SERIAL};

/// A word in every post of the bench, by which search can count them.
pub const MARKER: &str = "quernstone";

const BODY_BYTES: usize = 600;

/// Common words first: a word is drawn the more often the further ahead it stands.
const WORDS: &str = "the a to of and in is that it for on with as this was be are have not we \
    you at but they from or an my if what all there one when can which so will has about would \
    more their how just some out who get like them up other me new time no people than into only \
    make because then use work could any think good even most see also way well after code want \
    first know years thing these really before program still should where language software over \
    very much does problem look need many go someone system write two down through actually few \
    computer read take company long another day better both company server data compiler memory \
    simple project user project test without library function different source point question \
    machine database network thread actor message failure cluster process supervisor mailbox \
    index query cache latency throughput partition replica consensus journal snapshot checkpoint \
    lecture manuscript harbour lantern orchard granite meadow falcon copper violin glacier quarry \
    ledger compass saffron walnut thimble archive beacon canyon drizzle ember fathom gazette hollow \
    ivory juniper kestrel lattice marble nectar obsidian parchment quiver ripple sandstone tundra";

const TAGS: [&str; 8] = ["programming", "rust", "databases", "linux", "web", "science", "books", "history"];

/// The JSON of a new post, number `n` of the kinds that there are; its serial makes it unique.
pub fn post(n: u64) -> String {
    let words: Vec<&str> = WORDS.split_ascii_whitespace().collect();
    let mut draw = Draw::of(n);
    let mut word = move || {
        let uniform = draw.uniform();
        words[(uniform * uniform * words.len() as f64) as usize]
    };
    let title = (0..6).map(|_| word()).collect::<Vec<_>>().join(" ");
    let mut body = format!("{MARKER} {SERIAL}");
    while body.len() < BODY_BYTES {
        body.push(' ');
        body += word();
    }
    let tag = |at: u64| TAGS[(at % TAGS.len() as u64) as usize];
    json!({
        "title": format!("{title} {SERIAL}"),
        "body": body,
        "tags": [tag(n), tag(n + 1 + n / 8 % 7)],
    })
    .to_string()
}

/// The text of comment number `n`, about a third as long.
pub fn comment(n: u64) -> String {
    let words: Vec<&str> = WORDS.split_ascii_whitespace().collect();
    let mut draw = Draw::of(!n);
    (0..35).map(|_| words[(draw.uniform() * words.len() as f64) as usize]).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_post_has_a_realistic_length_two_tags_and_two_serials() {
        for n in 0..500 {
            let text = post(n);
            let post: serde_json::Value = serde_json::from_str(&text).unwrap();
            let body = post["body"].as_str().unwrap();
            assert!((BODY_BYTES..BODY_BYTES + 20).contains(&body.len()));
            assert!(post["title"].as_str().unwrap().len() <= 200);
            assert_ne!(post["tags"][0], post["tags"][1], "post {n}");
            assert_eq!(text.matches(SERIAL).count(), 2);
        }
    }

    #[test]
    fn posts_differ() {
        assert_ne!(post(1), post(2));
    }
}
