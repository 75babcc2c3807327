//! What a run leaves: a line of JSON for each figure, so that runs can be compared later.

use std::fmt;

use rookery_benches::machine;
use serde::{Deserialize, Serialize};

use crate::measure::Figures;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Subject {
    /// Our engine.
    Rookery,
    /// tantivy, one segment.
    Tantivy,
    /// Postgres with GIN.
    Postgres,
    /// The same, which also looks up what a word may be a misspelling of.
    PostgresSpelling,
}

impl Subject {
    /// As the page calls it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Rookery => "Rookery",
            Self::Tantivy => "plain tantivy",
            Self::Postgres => "Postgres",
            Self::PostgresSpelling => "Postgres with pg_trgm",
        }
    }
}

/// A line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The state of our engine that was measured, in a word.
    pub label: String,
    /// How many documents there were.
    pub documents: u64,
    /// What it says.
    #[serde(flatten)]
    pub what: What,
}

/// What a line says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub(crate) enum What {
    /// Where it ran.
    Machine {
        /// In a sentence.
        machine: String,
        /// Of the minute before.
        load_average: f64,
    },
    /// An index.
    Built(Built),
    /// Questions of a kind.
    Figures {
        /// Who was asked.
        subject: Subject,
        /// What.
        kind: String,
        /// What it cost.
        #[serde(flatten)]
        figures: Figures,
    },
}

/// What it took to make an index.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Built {
    /// Whose.
    pub subject: Subject,
    /// Until everything could be found, in seconds.
    pub seconds: f64,
    /// CPU time, that of merges included.
    pub cpu_seconds: f64,
    /// On the disk.
    pub bytes: u64,
    /// Of each partition.
    pub segments: Vec<usize>,
    /// By how much the anonymous memory of the process has grown.
    pub anonymous_bytes: u64,
}

impl fmt::Display for Built {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subject, seconds, cpu_seconds, bytes, segments, anonymous_bytes } = self;
        write!(
            f,
            "{}: made in {seconds:.1} s ({cpu_seconds:.1} s of CPU), {} MB on the disk, segments {segments:?}, {} MB of anonymous \
             memory more",
            subject.as_str(),
            bytes >> 20,
            anonymous_bytes >> 20
        )
    }
}

impl Record {
    pub(crate) fn machine(label: &str, documents: u64) -> Self {
        let machine = format!(
            "{} cores of {}, {} GB, Linux {}, {}",
            machine::cores(),
            machine::processor(),
            machine::memory_bytes().div_ceil(1 << 30),
            machine::kernel(),
            env!("ROOKERY_BENCHES_RUSTC")
        );
        Self::of(label, documents, What::Machine { machine, load_average: machine::load_average() })
    }

    pub(crate) fn built(label: &str, documents: u64, built: Built) -> Self {
        Self::of(label, documents, What::Built(built))
    }

    pub(crate) fn figures(label: &str, documents: u64, subject: Subject, kind: &str, figures: Figures) -> Self {
        Self::of(label, documents, What::Figures { subject, kind: kind.to_owned(), figures })
    }

    fn of(label: &str, documents: u64, what: What) -> Self {
        Self { label: label.to_owned(), documents, what }
    }

    /// Whether this one takes the place of an older one.
    pub(crate) fn replaces(&self, older: &Self) -> bool {
        let same = match (&self.what, &older.what) {
            (What::Machine { .. }, What::Machine { .. }) => true,
            (What::Built(new), What::Built(old)) => new.subject == old.subject,
            (What::Figures { subject, kind, .. }, What::Figures { subject: of, kind: like, .. }) => (subject, kind) == (of, like),
            _ => false,
        };
        same && (&self.label, self.documents) == (&older.label, older.documents)
    }
}
