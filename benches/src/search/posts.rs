//! The input: posts as people wrote them, or, where those are missing, posts that are made up.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use anyhow::Context;
use flate2::read::MultiGzDecoder;
use serde::Deserialize;

use super::words::coined;
use crate::draw::Draw;

/// Where the posts of people are looked for: in this folder of the one that holds the repository, or of one above that.
const FILE: &str = "shared/data/posts.jsonl.gz";

/// What a post says.
#[derive(Clone, Debug, Deserialize)]
pub struct Post {
    /// Its one tag.
    pub tag: String,
    /// Its title.
    pub title: String,
    /// Its text; often a link, sometimes nothing.
    pub body: String,
    /// Seconds since 1970.
    pub created_at: i64,
}

impl Post {
    /// Whether its body is nothing but a link.
    pub fn is_link(&self) -> bool {
        self.body.starts_with("http") && !self.body.trim().contains(char::is_whitespace)
    }
}

/// Where posts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// People wrote them.
    People,
    /// They are made up, of words that do not exist.
    MadeUp,
}

/// All posts there are, oldest first.
#[derive(Clone, Debug)]
pub struct Posts {
    /// Where they come from.
    pub origin: Origin,
    /// The posts.
    pub posts: Vec<Post>,
}

impl Posts {
    /// Those in a file of JSON Lines (gzip or not), or, without one, those of people if they are found, or else made-up ones.
    ///
    /// # Errors
    /// When the file is not readable, or a line of it is no post.
    pub fn read(file: Option<&Path>) -> anyhow::Result<Self> {
        match file.map(Path::to_owned).or_else(find) {
            Some(file) => Self::read_file(&file).with_context(|| format!("cannot read posts from {}", file.display())),
            None => Ok(Self::made_up()),
        }
    }

    fn read_file(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path)?;
        let plain: Box<dyn Read> =
            if path.extension().is_some_and(|it| it == "gz") { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
        let lines = BufReader::new(plain).lines();
        let posts: Vec<Post> = lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect::<anyhow::Result<_>>()?;
        anyhow::ensure!(!posts.is_empty(), "there is no post in it");
        Ok(Self { origin: Origin::People, posts })
    }

    /// Posts of twenty tags with words of their own and words that all have, common ones more often.
    pub fn made_up() -> Self {
        Self { origin: Origin::MadeUp, posts: (0..MADE_UP).map(made_up).collect() }
    }

    /// About so many of them, spread evenly, all if there are no more.
    pub fn sample(&self, count: usize) -> Self {
        let step = (self.posts.len() / count.max(1)).max(1);
        Self { origin: self.origin, posts: self.posts.iter().step_by(step).take(count).cloned().collect() }
    }
}

fn find() -> Option<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    repository.ancestors().skip(1).map(|folder| folder.join(FILE)).find(|file| file.is_file())
}

const MADE_UP: u64 = 4_000;
const TAGS: u64 = 20;
/// Between two posts, in seconds.
const PAUSE: i64 = 40_000;

fn made_up(n: u64) -> Post {
    let mut draw = Draw::of_two(0x705, n);
    let tag = n % TAGS;
    let title = {
        let words = 4 + draw.below(10);
        sentence(tag, words, &mut draw)
    };
    let body = match draw.below(10) {
        0 => String::new(),
        1..=3 => format!("http://{}.example/{n}", coined(n % 300).to_lowercase()),
        // Short ones more often.
        _ => {
            let sentences = 1 + (draw.uniform().powi(3) * 20.0) as usize;
            let mut all = Vec::new();
            for _ in 0..sentences {
                let words = 6 + draw.below(16);
                all.push(format!("{}.", sentence(tag, words, &mut draw)));
            }
            all.join(" ")
        }
    };
    Post { tag: coined(1_000_000 + tag).to_lowercase(), title, body, created_at: 1_200_000_000 + n as i64 * PAUSE }
}

fn sentence(tag: u64, words: usize, draw: &mut Draw) -> String {
    const LITTLE: [&str; 16] =
        ["the", "a", "of", "to", "and", "in", "is", "that", "for", "it", "with", "on", "was", "this", "how", "you"];
    let mut word = || match draw.below(10) {
        0..4 => (*draw.pick(&LITTLE)).to_owned(),
        4..7 => coined(10_000_000 * (tag + 1) + draw.rank(40.0, 0.6)),
        _ => coined(draw.rank(150.0, 0.6)),
    };
    (0..words).map(|_| word()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_posts_have_twenty_tags_and_are_the_same_every_time() {
        let posts = Posts::made_up().posts;
        let tags: std::collections::HashSet<_> = posts.iter().map(|post| &post.tag).collect();
        assert_eq!((posts.len(), tags.len()), (4_000, 20));
        assert_eq!(posts[17].title, made_up(17).title);
    }

    #[test]
    fn a_sample_spreads_over_all_posts() {
        let sample = Posts::made_up().sample(100).posts;
        assert_eq!(sample.len(), 100);
        assert!(sample[99].created_at > 1_200_000_000 + 3_900 * PAUSE);
    }
}
