//! A small disk for one cluster, which nobody else sees: a file system in memory, in a mount namespace of its own.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
};

/// The disk. Dropped, it goes with all that is on it, once nobody uses it any more.
pub(super) struct SmallDisk {
    place: PathBuf,
    // Held: the namespace lives as long as a process lives in it, and this one until its input ends.
    keeper: Child,
}

/// Takes all space that is left.
#[derive(Debug)]
pub struct Balloon(PathBuf);

impl SmallDisk {
    /// Mounts one at a folder. Needs root.
    pub(super) async fn mount(place: &Path, bytes: u64) -> anyhow::Result<Self> {
        let script = format!("mount -t tmpfs -o size={bytes},mode=0700 tmpfs \"$0\" && echo mounted && exec cat >/dev/null");
        let mut command = tokio::process::Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]).arg(place);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut keeper = command.spawn().context("cannot make a mount namespace")?;
        let mut said = String::new();
        let stdout = keeper.stdout.take().context("its output is a pipe")?;
        BufReader::new(stdout).read_line(&mut said).await?;
        if said.trim() != "mounted" {
            let output = keeper.wait_with_output().await?;
            bail!("cannot mount a small disk: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(Self { place: place.to_owned(), keeper })
    }

    /// A program that finds the disk in its place.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount={}", self.namespace().display())).arg("--").arg(program);
        command
    }

    /// Where we, outside, see what is at `path` inside.
    pub(super) fn inside(&self, path: &Path) -> PathBuf {
        let root = format!("/proc/{}/root", self.pid());
        Path::new(&root).join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Fills it to the last byte.
    pub(super) fn fill(&self) -> io::Result<Balloon> {
        let path = self.inside(&self.place.join("balloon"));
        let mut file = File::create(&path)?;
        let balloon = Balloon(path);
        for size in [1 << 20, 4 << 10, 1] {
            let block = vec![0; size];
            loop {
                match file.write_all(&block) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(balloon)
    }

    fn namespace(&self) -> PathBuf {
        format!("/proc/{}/ns/mnt", self.pid()).into()
    }

    fn pid(&self) -> u32 {
        self.keeper.id().unwrap_or_default()
    }
}

impl Drop for Balloon {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
