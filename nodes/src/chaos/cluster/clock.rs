//! A clock that can be set while processes go by it: Debian's libfaketime, told by a file.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;

/// The time of day of a cluster. How long something takes is not its business: that clock goes on as it is.
#[derive(Clone, Debug)]
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// A clock that goes right so far, kept in a folder.
    ///
    /// # Errors
    /// Without libfaketime.
    pub(super) fn new(folder: &Path) -> anyhow::Result<Self> {
        let library = Self::library().context("libfaketime is missing: apt-get install libfaketime")?;
        let clock = Self { library, file: folder.join("clock") };
        clock.set(0)?;
        Ok(clock)
    }

    /// Where Debian puts the library.
    pub fn library() -> Option<PathBuf> {
        let places = fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
        places.map(|place| place.join("faketime/libfaketimeMT.so.1")).find(|library| library.exists())
    }

    /// Jumps to so many seconds before or after the right time, or a second near it; processes notice within about a second.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set(&self, offset_s: i64) -> io::Result<()> {
        let new = self.file.with_extension("new");
        // An offset of zero is none for the library, and leaves the one before in force.
        let offset_s = if offset_s == 0 { 1 } else { offset_s };
        fs::write(&new, format!("{offset_s:+}\n"))?;
        fs::rename(new, &self.file)
    }

    pub(super) fn give_to(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_CACHE_DURATION", "1")
            // The time since boot is no time of day: it does not jump when somebody sets the clock.
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
}
