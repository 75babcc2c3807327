//! What can be wrong with a configuration, said so that it can be put right.

use std::{
    borrow::Cow,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rookery_gateway::limits::CidrError;
use thiserror::Error;

/// Everything that is wrong with a configuration, at once: nobody likes to be told one mistake per start.
#[derive(Debug, Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration is wrong in {} place(s)", self.0.len())?;
        self.0.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

/// One mistake in a configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file named by `--config` could not be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The configuration file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{origin}: {message}")]
    Syntax {
        /// The file and line.
        origin: Origin,
        /// What the parser expected. The line itself is not quoted: it may hold a secret.
        message: String,
    },
    /// There is no such key.
    #[error("{origin}: there is no key `{key}`{}{}", given(.value.as_deref()), hint(.nearest.as_deref()))]
    UnknownKey {
        /// Where it was given.
        origin: Origin,
        /// The key as given, sections included.
        key: String,
        /// What it was set to; absent when that could be a secret.
        value: Option<String>,
        /// The key that was probably meant, spelled for where it was given.
        nearest: Option<String>,
    },
    /// The key exists, its value is none that it takes.
    #[error("{origin}: `{key}` cannot be {value}: expected {wanted}{}", hint(.nearest.as_deref()))]
    BadValue {
        /// Where it was given.
        origin: Origin,
        /// The key, sections included.
        key: String,
        /// The value as given, `<hidden>` if it is a secret.
        value: String,
        /// What the key takes.
        wanted: Cow<'static, str>,
        /// The closest value that it takes.
        nearest: Option<String>,
    },
    /// A secret was given both as a value and as a file.
    #[error("{origin}: `{key}` and `{key}_file` are both set; set one of them")]
    GivenTwice {
        /// Where the value was given.
        origin: Origin,
        /// The key, sections included.
        key: String,
    },
    /// What a single node does without, and one of several needs.
    #[error("`{key}` is not set: {reason}. Set it, or {variables}")]
    Missing {
        /// The key, sections included.
        key: String,
        /// The environment variables that set it.
        variables: String,
        /// Why it is needed.
        reason: &'static str,
    },
    /// Roles that no node of `rookery up` has.
    #[error(
        "`node.roles` leaves out {roles}, and `rookery up` starts nobody else who has them: one node of several is `rookery node`"
    )]
    LeftOut {
        /// The roles, by their words.
        roles: String,
    },
    /// The file of a secret could not be read.
    #[error("{origin}: the secret file {} of `{key}` cannot be read: {source}", path.display())]
    SecretUnreadable {
        /// Where the file was named.
        origin: Origin,
        /// The key, sections included.
        key: String,
        /// The file of the secret.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn given(value: Option<&str>) -> String {
    value.map(|value| format!(" (set to {value})")).unwrap_or_default()
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map(|nearest| format!("; did you mean `{nearest}`?")).unwrap_or_default()
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A line of the configuration file, counted from 1.
    File {
        /// The file as it was named.
        path: Arc<Path>,
        /// The line.
        line: usize,
    },
    /// An environment variable.
    Env {
        /// Its name.
        name: String,
    },
    /// Nobody has set it.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env { name } => f.write_str(name),
            Self::Default => f.write_str("default"),
        }
    }
}

/// Why a value does not fit its key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("expected {wanted}{}", hint(.nearest.as_deref()))]
pub struct Mismatch {
    /// What the key takes.
    pub wanted: Cow<'static, str>,
    /// The closest value that it takes.
    pub nearest: Option<String>,
}

impl Mismatch {
    pub(super) fn wanted(wanted: impl Into<Cow<'static, str>>) -> Self {
        Self { wanted: wanted.into(), nearest: None }
    }

    /// None of the words that the key knows.
    pub(super) fn none_of(words: &[&str], given: &str) -> Self {
        Self {
            wanted: format!("one of {}", words.join(", ")).into(),
            nearest: nearest_word(given, words.iter().copied()).map(str::to_owned),
        }
    }
}

impl From<CidrError> for Mismatch {
    fn from(_: CidrError) -> Self {
        Self::wanted("an address or a network, such as 10.0.0.0/8")
    }
}

/// The word that was probably meant, if any is close enough to be helpful rather than puzzling.
pub(super) fn nearest_word<'a>(given: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const SIMILAR: f64 = 0.5;
    let given = given.to_lowercase();
    words
        .into_iter()
        .map(|word| (strsim::normalized_damerau_levenshtein(&given, word), word))
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, word)| word)
}
