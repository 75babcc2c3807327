//! Who runs the server: Postgres refuses to run as root.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, User};

use crate::process;

/// The user whom the server runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerUser {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    /// Root started us, so the child has to become this user, and files have to be given to it.
    pub(super) dropped: bool,
    /// Whether it needs `CAP_DAC_READ_SEARCH` to get through folders above that are closed to it, `/root` for one.
    search: bool,
}

/// Why the server cannot run as anybody.
#[derive(Debug, thiserror::Error)]
pub enum ServerUserError {
    /// Root needs somebody to drop to.
    #[error(
        "Postgres does not run as root, and this machine has neither a user `postgres` nor `nobody`: start rookery as \
         another user"
    )]
    Nobody,
    /// The way to the data folder is closed, and we may not pass the key on.
    #[error(
        "user {uid}, as whom Postgres runs, may not enter {}, and rookery lacks CAP_DAC_READ_SEARCH to let it: choose a \
         folder elsewhere with ROOKERY__DATA_DIR, or start rookery as another user", .folder.display()
    )]
    Closed {
        /// The numeric id of the server's user.
        uid: u32,
        /// The first folder on the way that is closed to it.
        folder: PathBuf,
    },
    /// The files belong to somebody else.
    #[error(
        "{} belongs to user {owner}, not to you: start rookery as that user or as root, or choose another folder with \
         ROOKERY__DATA_DIR", .folder.display()
    )]
    NotOurs {
        /// The folder of the database cluster.
        folder: PathBuf,
        /// Its owner's numeric id.
        owner: u32,
    },
    /// A look at a file or a change of its owner failed.
    #[error("cannot give {} to the user of the server", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ServerUser {
    /// Chooses the user for the database cluster in `cluster`, which need not exist yet, below the data folder `data`,
    /// and opens the way there: as narrowly as it goes.
    pub(super) fn choose(data: &Path, cluster: &Path, binaries: &Path) -> Result<ServerUser, ServerUserError> {
        let owner = fs::metadata(cluster).ok();
        let me = Uid::effective();
        if !me.is_root() {
            return match owner {
                Some(owner) if owner.uid() != me.as_raw() => {
                    Err(ServerUserError::NotOurs { folder: cluster.to_owned(), owner: owner.uid() })
                }
                _ => Ok(ServerUser { uid: me, gid: Gid::effective(), dropped: false, search: false }),
            };
        }

        // Whoever made it keeps it: a folder that was begun without root stays usable without root.
        let (uid, gid) = match &owner {
            Some(owner) if owner.uid() != 0 => (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid())),
            _ => ["postgres", "nobody"]
                .into_iter()
                .find_map(|name| User::from_name(name).ok().flatten())
                .map(|user| (user.uid, user.gid))
                .ok_or(ServerUserError::Nobody)?,
        };
        let mut user = ServerUser { uid, gid, dropped: true, search: false };
        if owner.is_some_and(|owner| owner.uid() == 0) {
            user.own(cluster)?;
        }

        open_to_group(data, &user)?;
        if let Some(folder) = first_closed(data, &user)?.or(first_closed(binaries, &user)?) {
            if !may_pass_search_on() {
                return Err(ServerUserError::Closed { uid: uid.as_raw(), folder });
            }
            user.search = true;
        }
        Ok(user)
    }

    /// Gives `path` and all below it to this user: a folder after what it holds. In one that it owns already, the user could
    /// put a link in place of what is still to be given, and would get what that leads to.
    pub(super) fn own(&self, path: &Path) -> Result<(), ServerUserError> {
        if !self.dropped {
            return Ok(());
        }
        let failed = |source| ServerUserError::Io { path: path.to_owned(), source };
        if path.symlink_metadata().map_err(failed)?.is_dir() {
            for entry in path.read_dir().map_err(failed)? {
                self.own(&entry.map_err(failed)?.path())?;
            }
        }
        std::os::unix::fs::lchown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw())).map_err(failed)
    }

    /// Gives an open file to this user, whatever has its name by now.
    pub(super) fn own_file(&self, file: &File) -> io::Result<()> {
        match self.dropped {
            true => std::os::unix::fs::fchown(file, Some(self.uid.as_raw()), Some(self.gid.as_raw())),
            false => Ok(()),
        }
    }

    /// Makes `command` run as this user, and end by `at_our_death` with us; see [`process::tie`].
    pub(super) fn run(&self, command: &mut Command, at_our_death: Signal) {
        bare_environment(command);
        let user = self.clone();
        process::tie(command, at_our_death, move || user.become_it());
    }

    /// Called in the child. Gives up everything that root may do, except perhaps the search through closed folders.
    fn become_it(&self) -> io::Result<()> {
        if !self.dropped {
            return Ok(());
        }
        if self.search {
            nix::sys::prctl::set_keepcaps(true)?;
        }
        nix::unistd::setgroups(&[])?;
        nix::unistd::setgid(self.gid)?;
        nix::unistd::setuid(self.uid)?;
        if self.search {
            capability::keep_only_search()?;
        }
        Ok(())
    }
}

/// What the programs of Postgres get of our environment: nearly nothing. It holds the cluster's secret and the databases' URLs,
/// which are none of their user's business, and what somebody has set for their own psql.
pub(super) fn bare_environment(command: &mut Command) {
    command.env_clear();
    for name in PASSED_ON {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    // A fixed zone spares initdb a search.
    command.env("LC_ALL", "C").env("TZ", "UTC");
}

/// Where programs and their libraries are.
const PASSED_ON: [&str; 2] = ["PATH", "LD_LIBRARY_PATH"];

/// A data folder that we made for root alone is opened to the server's group, to pass through and no more.
fn open_to_group(data: &Path, user: &ServerUser) -> Result<(), ServerUserError> {
    let failed = |source| ServerUserError::Io { path: data.to_owned(), source };
    let metadata = data.metadata().map_err(failed)?;
    if metadata.uid() == 0 && metadata.mode() & 0o767 == 0o700 {
        chown(data, None, Some(user.gid.as_raw())).map_err(failed)?;
        fs::set_permissions(data, fs::Permissions::from_mode(0o710)).map_err(failed)?;
    }
    Ok(())
}

/// The outermost folder on the way to `path` that `user` may not pass.
fn first_closed(path: &Path, user: &ServerUser) -> Result<Option<PathBuf>, ServerUserError> {
    let mut way: Vec<_> = path.ancestors().collect();
    way.reverse();
    for folder in way {
        let metadata = folder.metadata().map_err(|source| ServerUserError::Io { path: folder.to_owned(), source })?;
        if !passable(metadata.mode(), metadata.uid(), metadata.gid(), user) {
            return Ok(Some(folder.to_owned()));
        }
    }
    Ok(None)
}

/// Whether the mode of a folder lets `user` through. Access control lists are not looked at: at worst the server holds a
/// capability that it does not need.
fn passable(mode: u32, owner: u32, group: u32, user: &ServerUser) -> bool {
    let bit = if owner == user.uid.as_raw() {
        0o100
    } else if group == user.gid.as_raw() {
        0o010
    } else {
        0o001
    };
    mode & bit != 0
}

/// Whether `CAP_DAC_READ_SEARCH` is among our permitted capabilities; containers often take it even from root.
fn may_pass_search_on() -> bool {
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let permitted = status.lines().find_map(|line| line.strip_prefix("CapPrm:"))?;
            u64::from_str_radix(permitted.trim(), 16).ok()
        })
        .is_some_and(|permitted| permitted & (1 << capability::DAC_READ_SEARCH) != 0)
}

/// Linux capabilities (capabilities(7)), as far as one needs to keep a single one over a change of user and an exec.
mod capability {
    use std::io;

    pub(super) const DAC_READ_SEARCH: u32 = 2;

    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Sets {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }

    /// `_LINUX_CAPABILITY_VERSION_3`: two words of 32 capabilities each.
    const VERSION_3: u32 = 0x2008_0522;

    #[expect(unsafe_code, reason = "neither std nor nix has capset or ambient capabilities")]
    pub(super) fn keep_only_search() -> io::Result<()> {
        let search = 1 << DAC_READ_SEARCH;
        let header = Header { version: VERSION_3, pid: 0 };
        let sets = [
            Sets { effective: search, permitted: search, inheritable: search },
            Sets { effective: 0, permitted: 0, inheritable: 0 },
        ];
        // SAFETY: both pointers are to values of the layout that the kernel expects for version 3, and outlive the call.
        if unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: takes integers only.
        let raised = unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong,
                libc::c_ulong::from(DAC_READ_SEARCH),
                0 as libc::c_ulong,
                0 as libc::c_ulong,
            )
        };
        if raised != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody() -> ServerUser {
        ServerUser { uid: Uid::from_raw(65534), gid: Gid::from_raw(65534), dropped: true, search: false }
    }

    #[test]
    fn a_folder_of_root_alone_is_closed_to_nobody() {
        assert!(!passable(0o700, 0, 0, &nobody()));
    }

    #[test]
    fn a_folder_opened_to_the_group_lets_the_server_through() {
        assert!(passable(0o710, 0, 65534, &nobody()));
    }

    #[test]
    fn the_owner_is_bound_by_the_owners_bits_even_where_others_may_pass() {
        assert!(!passable(0o077, 65534, 0, &nobody()));
    }
}
