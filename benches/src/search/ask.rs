//! A question as a person puts it, before any engine has seen it.

use jiff::Timestamp;
use rookery_actors::search::index::Kind;
use uuid::Uuid;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ask {
    /// As typed into the search box.
    pub text: String,
    /// The same in parts, for engines that have no such language; empty if the text is asked of ours only.
    pub clauses: Vec<Clause>,
    /// Only of this kind.
    pub kind: Option<Kind>,
    /// Only by this author.
    pub author: Option<Uuid>,
    /// Only with this tag.
    pub tag: Option<String>,
    /// Only created at this time or later.
    pub from: Option<Timestamp>,
    /// Only created before this time.
    pub to: Option<Timestamp>,
    /// The youngest first, not the best.
    pub new: bool,
    /// How many hits.
    pub limit: usize,
    /// Behind how many better ones.
    pub behind: usize,
}

/// A part of a question.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Clause {
    /// A word in any of its forms.
    Word(String),
    /// Words in this order.
    Phrase(String),
    /// Words that begin so.
    Prefix(String),
    /// Nothing with this word.
    Not(String),
}

impl Ask {
    /// A question of these parts: the first page of the best.
    pub fn of(clauses: impl IntoIterator<Item = Clause>) -> Self {
        let clauses: Vec<Clause> = clauses.into_iter().collect();
        let typed = clauses.iter().map(|clause| match clause {
            Clause::Word(word) => word.clone(),
            Clause::Phrase(phrase) => format!("\"{phrase}\""),
            Clause::Prefix(prefix) => format!("{prefix}*"),
            Clause::Not(word) => format!("-{word}"),
        });
        let text = typed.collect::<Vec<_>>().join(" ");
        Self { clauses, ..Self::typed(text) }
    }

    /// Any of these words.
    pub fn words<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        Self::of(words.into_iter().map(|word| Clause::Word(word.to_owned())))
    }

    /// A text for our engine only.
    pub fn typed(text: String) -> Self {
        Self {
            text,
            clauses: Vec::new(),
            kind: None,
            author: None,
            tag: None,
            from: None,
            to: None,
            new: false,
            limit: 20,
            behind: 0,
        }
    }

    /// Whether the order is that of time: asked for, or because nothing is ranked.
    pub fn is_by_time(&self) -> bool {
        self.new || self.clauses.iter().all(|clause| matches!(clause, Clause::Not(_)))
    }
}
