//! The machine goes down: of a folder is left what was synced.

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::OsString,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::search::index::checkpoint::BOOT;

/// What else is left.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Left {
    /// Nothing.
    OnlySynced,
    /// The names of all files, and of what was never synced its first half.
    NamesAndHalves,
}

/// What has reached the disk.
#[derive(Default)]
struct Disk {
    /// By inode; the files are kept open, so that no other gets their number.
    files: HashMap<u64, (File, Vec<u8>)>,
    folders: HashMap<PathBuf, Vec<(OsString, u64)>>,
}

thread_local! {
    static DISK: RefCell<Disk> = RefCell::default();
}

/// A file or a folder was synced on this thread.
pub(in super::super) fn synced(path: &Path) {
    DISK.with_borrow_mut(|disk| {
        if path.is_dir() {
            disk.folders.insert(path.to_owned(), entries(path));
        } else {
            let file = File::open(path).unwrap();
            disk.files.insert(file.metadata().unwrap().ino(), (file, fs::read(path).unwrap()));
        }
    });
}

/// A new disk: nothing was ever synced.
pub(super) fn new_disk() {
    DISK.take();
}

/// The machine goes down, and starts again with this left of a folder.
pub(super) fn strike(folder: &Path, left: Left) {
    let disk = DISK.take();
    strike_folder(&disk, folder, left);
    if folder.join(BOOT).exists() {
        fs::write(folder.join(BOOT), "the boot before").unwrap();
    }
    on_disk(folder);
}

/// What a machine finds when it starts is on its disk.
fn on_disk(folder: &Path) {
    synced(folder);
    for (name, _) in entries(folder) {
        let path = folder.join(name);
        if path.is_dir() { on_disk(&path) } else { synced(&path) }
    }
}

fn strike_folder(disk: &Disk, folder: &Path, left: Left) {
    let listed = match left {
        Left::OnlySynced => disk.folders.get(folder).cloned().unwrap_or_default(),
        Left::NamesAndHalves => entries(folder),
    };
    let now: HashMap<u64, Vec<u8>> = listed
        .iter()
        .filter(|(name, _)| !folder.join(name).is_dir())
        .map(|(name, inode)| {
            let half = || fs::read(folder.join(name)).map(|content| content[..content.len() / 2].to_vec()).unwrap_or_default();
            let unsynced = || if let Left::NamesAndHalves = left { half() } else { Vec::new() };
            (*inode, disk.files.get(inode).map_or_else(unsynced, |(_, content)| content.clone()))
        })
        .collect();
    for (name, inode) in entries(folder) {
        let path = folder.join(&name);
        if !path.is_dir() {
            fs::remove_file(path).unwrap();
        } else if listed.contains(&(name, inode)) {
            strike_folder(disk, &path, left);
        } else {
            fs::remove_dir_all(path).unwrap();
        }
    }
    for (name, inode) in listed {
        if let Some(content) = now.get(&inode) {
            fs::write(folder.join(name), content).unwrap();
        }
    }
}

fn entries(folder: &Path) -> Vec<(OsString, u64)> {
    let entry = |entry: fs::DirEntry| (entry.file_name(), entry.metadata().unwrap().ino());
    fs::read_dir(folder).unwrap().map(|found| entry(found.unwrap())).collect()
}
