//! The files of the database: made once, given our settings at every start.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::binaries::{Binaries, version_of};
use super::server_user::ServerUser;
use super::{PostgresError, leftover, quoted, settings};
use crate::files::{self, not_through_links};

/// Makes the cluster, with `databases` in it, if there is none.
///
/// A half-made one is never taken for a whole one: it gets its name when all of it is on disk. So nothing before that
/// needs to be forced to disk, which is most of what making a database takes.
pub(super) async fn initialise(
    cluster: &Path,
    databases: &[&str],
    binaries: &Binaries,
    user: &ServerUser,
) -> Result<(), PostgresError> {
    let failed = |source| PostgresError::io(cluster, source);
    remove_unfinished(cluster).await?;
    if version_of(cluster).map_err(failed)?.is_some() {
        return Ok(());
    }
    // initdb would not touch it either, but would not say what to do.
    if cluster.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(PostgresError::NotACluster(cluster.to_owned()));
    }

    // Each attempt in a folder of its own: a start that is killed here leaves a child of initdb behind, which goes on writing
    // for a moment, and one that has only just begun enters its folder by name.
    let making = tempfile::Builder::new()
        .prefix(&unfinished_prefix(cluster))
        .tempdir_in(cluster.parent().expect("the cluster lies in the data folder"))
        .map_err(failed)?;
    user.own(making.path())?;
    fill(making.path(), cluster, databases, binaries, user).await?;
    // It has another name by now.
    let _ = making.keep();
    Ok(())
}

/// Makes the database in the folder `making` and gives it the name `cluster`.
async fn fill(
    making: &Path,
    cluster: &Path,
    databases: &[&str],
    binaries: &Binaries,
    user: &ServerUser,
) -> Result<(), PostgresError> {
    let failed = |source| PostgresError::io(cluster, source);
    succeed("initdb", run(initdb(binaries, making), Vec::new(), user), &binaries.bin).await?;
    let statements: String = databases.iter().map(|database| create_database(database) + "\n").collect();
    succeed("postgres", run(single_user(binaries, making), statements.into_bytes(), user), &binaries.bin).await?;

    // One sync of the file system in place of initdb's thousand of single files: 0.02 s for 1.3 s here.
    let on_disk = File::open(making).map_err(failed)?;
    nix::unistd::syncfs(&on_disk).map_err(|error| failed(error.into()))?;
    fs::rename(making, cluster).map_err(failed)?;
    let parent = cluster.parent().expect("the cluster lies in the data folder");
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)
}

/// How the names of the folders begin in which databases are made.
fn unfinished_prefix(cluster: &Path) -> String {
    let name = cluster.file_name().expect("the cluster is a folder").to_string_lossy();
    format!("{name}.making-")
}

/// Takes away what attempts have left that were cut short, and ends the programs that still work on it.
async fn remove_unfinished(cluster: &Path) -> Result<(), PostgresError> {
    let failed = |source| PostgresError::io(cluster, source);
    let parent = cluster.parent().expect("the cluster lies in the data folder");
    // Without the hyphen, it is the one folder of an older version.
    let prefix = unfinished_prefix(cluster);
    let older = prefix.trim_end_matches('-');
    for entry in parent.read_dir().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with(&prefix) && name != older {
            continue;
        }
        let path = entry.path();
        // It is in nobody's way: the next start tries again.
        if let Err(error) = remove_while_written_to(&path).await {
            tracing::warn!(%error, "cannot remove {}, a database that was never finished", path.display());
        }
    }
    Ok(())
}

/// A program that writes makes a folder non-empty again behind the one who empties it.
async fn remove_while_written_to(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + REMOVE_PATIENCE;
    loop {
        leftover::kill(path)?;
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            outcome => return outcome,
        }
    }
}

/// How long programs may go on writing into what is to be removed.
const REMOVE_PATIENCE: Duration = Duration::from_secs(5);

/// The statement that makes `database`, on one line.
pub(super) fn create_database(database: &str) -> String {
    format!("CREATE DATABASE {};", quoted(database))
}

fn initdb(binaries: &Binaries, cluster: &Path) -> Command {
    let mut command = Command::new(binaries.bin.join("initdb"));
    command
        .arg("-D")
        .arg(cluster)
        // Byte order: the same on every machine, and indexes that survive an upgrade of the C library.
        .args(["--no-locale", "-E", "UTF8", "--no-sync"])
        // The file that this makes is never used (settings::access is). Started by hand, the server lets nobody in.
        .args(["-U", settings::ROLE, "--auth=reject"]);
    command
}

/// A Postgres that does what its input says, and ends; `-F`: without syncing.
fn single_user(binaries: &Binaries, cluster: &Path) -> Command {
    let mut command = Command::new(binaries.bin.join("postgres"));
    // The first failed statement ends it, and so fails the whole.
    command.args(["--single", "-F", "-c", "exit_on_error=on", "-D"]).arg(cluster).arg("postgres");
    command
}

async fn run(mut command: Command, input: Vec<u8>, user: &ServerUser) -> io::Result<Output> {
    command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    user.run(&mut command, Signal::SIGKILL);
    // One thread spawns and waits: our death signal hangs on it.
    tokio::task::spawn_blocking(move || {
        let mut child = command.spawn()?;
        // A few lines, less than a pipe holds; one who does not read them says why on stderr.
        let _ = child.stdin.take().expect("stdin is a pipe").write_all(&input);
        child.wait_with_output()
    })
    .await
    .map_err(io::Error::other)?
}

async fn succeed(program: &'static str, run: impl Future<Output = io::Result<Output>>, bin: &Path) -> Result<(), PostgresError> {
    let output = run.await.map_err(|source| PostgresError::io(&bin.join(program), source))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(PostgresError::Initialise { program, status: output.status, said })
}

/// Writes the settings of this build into the cluster.
pub(super) fn configure(cluster: &Path, socket_dir: &Path, user: &ServerUser) -> Result<(), PostgresError> {
    for (name, text) in [
        ("rookery.conf", settings::server(socket_dir)),
        ("rookery_hba.conf", settings::access(user.dropped).to_owned()),
        ("rookery_ident.conf", settings::identities()),
    ] {
        let file = cluster.join(name);
        // The folder is the server's user's, and root may write here: by no link, and into no file, that this user has made.
        files::replace(&file, text.as_bytes(), |new| user.own_file(new)).map_err(|source| PostgresError::io(&file, source))?;
    }
    Ok(())
}

/// The server's log, in the data folder.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    /// Where this start began.
    begin: u64,
}

/// A log that is longer begins anew; the old one is kept once.
const LOG_BYTES_MAX: u64 = 10 << 20;

/// What an error quotes of the log.
const LINES_QUOTED: usize = 15;

impl Log {
    /// Opens the log for appending.
    pub(super) fn open(data: &Path) -> io::Result<(Log, File)> {
        let path = data.join("postgres.log");
        if fs::symlink_metadata(&path).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
            fs::rename(&path, data.join("postgres.log.1"))?;
        }
        let file = not_through_links().create(true).append(true).open(&path)?;
        let begin = file.metadata()?.len();
        Ok((Log { path, begin }, file))
    }

    /// Begins the log of a running server anew when it has grown too long; the old one is kept once. The server goes on writing
    /// into the same file, at its end.
    pub(super) fn shorten(data: &Path) -> io::Result<()> {
        let path = data.join("postgres.log");
        if !fs::symlink_metadata(&path).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
            return Ok(());
        }
        let mut log = not_through_links().read(true).write(true).open(&path)?;
        // On a full disk there is no room for the old one, and the more reason to let it go.
        let kept = not_through_links().write(true).create(true).truncate(true).open(data.join("postgres.log.1"));
        let kept = kept.and_then(|mut kept| io::copy(&mut log, &mut kept));
        log.set_len(0)?;
        kept.map(drop)
    }

    /// The last lines that the server wrote since this start.
    pub(super) fn last_lines(&self) -> String {
        let mut text = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.begin))?;
            file.read_to_end(&mut text)
        });
        if let Err(error) = read {
            return format!("({} cannot be read: {error})", self.path.display());
        }
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES_QUOTED)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_log_that_has_grown_too_long_begins_anew_and_the_running_server_goes_on_at_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let (log, mut server) = Log::open(folder.path()).unwrap();
        server.write_all(b"short").unwrap();
        Log::shorten(folder.path()).unwrap();
        assert_eq!(fs::read(&log.path).unwrap(), b"short");
        server.write_all(&vec![b'x'; usize::try_from(LOG_BYTES_MAX).unwrap()]).unwrap();
        Log::shorten(folder.path()).unwrap();
        server.write_all(b"after").unwrap();
        assert_eq!(fs::read(&log.path).unwrap(), b"after");
        assert_eq!(fs::metadata(folder.path().join("postgres.log.1")).unwrap().len(), LOG_BYTES_MAX + 5);
    }
}
