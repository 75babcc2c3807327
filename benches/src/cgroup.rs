//! A share of the processor for a process: a cgroup of its own, of either version.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;

/// Short, so that a node is slowed down evenly rather than stopped for long.
const PERIOD_US: u32 = 20_000;

/// A cgroup that is taken away when dropped; its processes must have ended or left by then.
#[derive(Debug)]
pub struct Quota {
    folder: PathBuf,
}

impl Quota {
    /// Holds a process, its threads and what it starts from now on, to so many percent of one core.
    ///
    /// # Errors
    /// Without root, or without the cpu controller.
    pub fn hold(pid: u32, name: &str, percent: u32) -> anyhow::Result<Self> {
        let (root, v1) = parent()?;
        let folder = root.join(format!("rookery-scale-{}-{name}", std::process::id()));
        let quota = Self { folder };
        quota.set(pid, percent, v1).with_context(|| {
            format!("cannot hold a node to its share in {}: this bench needs root and the cpu controller", quota.folder.display())
        })?;
        Ok(quota)
    }

    fn set(&self, pid: u32, percent: u32, v1: bool) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let quota = PERIOD_US * percent / 100;
        if v1 {
            fs::write(self.folder.join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
            fs::write(self.folder.join("cpu.cfs_quota_us"), quota.to_string())?;
        } else {
            fs::write(self.folder.join("cpu.max"), format!("{quota} {PERIOD_US}"))?;
        }
        fs::write(self.folder.join("cgroup.procs"), pid.to_string())
    }
}

/// Where the groups of the nodes go, and whether it is version 1.
///
/// Under version 1 that is this program's own group, so that a share which was given to the bench is the nodes' too;
/// version 2 allows no group below one that has processes.
fn parent() -> io::Result<(PathBuf, bool)> {
    let v1 = Path::new("/sys/fs/cgroup/cpu");
    if !v1.is_dir() {
        return Ok((PathBuf::from("/sys/fs/cgroup"), false));
    }
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let own = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        parts.next()?.split(',').any(|controller| controller == "cpu").then(|| parts.next())?
    });
    Ok((v1.join(own.unwrap_or("/").trim_start_matches('/')), true))
}

impl Drop for Quota {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.folder) {
            eprintln!("{} stays behind: {error}", self.folder.display());
        }
    }
}
