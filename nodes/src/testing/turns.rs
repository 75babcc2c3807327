//! Heavy stories take turns, in this process and in all others of this user: a dozen nodes and a broker on two processors
//! prove nothing about any of them.
//!
//! What is shared is a folder of lock files, of which the kernel lets go when a process ends, however it ends.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::unistd::Uid;

/// Before it is looked again whether somebody has gone.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A part of the machine, until it is dropped. One at a time for a story: two that each wait for the other's would wait for
/// ever.
#[derive(Debug)]
pub struct Turn {
    // Held: the locks.
    _slots: Vec<File>,
}

impl Turn {
    /// Waits until a part of the machine is free; blocks its thread. `weight`: about as many as the processes that the story
    /// starts and keeps busy; more than there is means everything.
    ///
    /// # Panics
    /// If no file can be made in the folder for temporary ones.
    pub fn wait(weight: usize) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let folder = std::env::temp_dir().join(format!("rookery-turns-{}", Uid::current()));
        Slots { folder, count: (2 * processors).max(4) }.take(weight)
    }

    /// The same for the whole machine.
    ///
    /// # Panics
    /// As [`Turn::wait`].
    pub fn alone() -> Self {
        Self::wait(usize::MAX)
    }
}

struct Slots {
    folder: PathBuf,
    count: usize,
}

impl Slots {
    fn take(&self, weight: usize) -> Turn {
        fs::create_dir_all(&self.folder).expect("a folder can be made among the temporary ones");
        // One after the other, in the order in which they came: no two collect at once and wait for each other, and nobody
        // heavy is overtaken for ever by those who are light.
        let queue = open(&self.folder.join("queue"));
        queue.lock().expect("a file can be locked");
        let mut taken: Vec<(usize, File)> = Vec::new();
        loop {
            for n in 0..self.count {
                if taken.iter().all(|(slot, _)| *slot != n) {
                    let file = open(&self.folder.join(n.to_string()));
                    taken.extend(file.try_lock().is_ok().then_some((n, file)));
                }
                if taken.len() >= weight.clamp(1, self.count) {
                    return Turn { _slots: taken.into_iter().map(|(_, file)| file).collect() };
                }
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

fn open(path: &Path) -> File {
    File::options().create(true).write(true).truncate(false).open(path).expect("a lock file can be made")
}

#[cfg(test)]
mod tests {
    use std::{
        process::Command,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    fn slots(count: usize) -> (tempfile::TempDir, Slots) {
        let folder = tempfile::tempdir().unwrap();
        let slots = Slots { folder: folder.path().join("turns"), count };
        (folder, slots)
    }

    #[test]
    fn stories_run_at_once_as_far_as_there_is_room() {
        let (_folder, slots) = slots(3);
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let together = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            for weight in [2, 2, 3, 9, 2] {
                let (slots, running, most) = (&slots, &running, &most);
                scope.spawn(move || {
                    let _turn = slots.take(weight);
                    let now = running.fetch_add(weight.min(3), Ordering::SeqCst) + weight.min(3);
                    most.fetch_max(now, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(30));
                    running.fetch_sub(weight.min(3), Ordering::SeqCst);
                });
            }
        });
        assert_eq!(most.load(Ordering::SeqCst), 3, "the heavy ones one after the other");
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let (slots, together) = (&slots, &together);
                scope.spawn(move || {
                    let _turn = slots.take(1);
                    // Comes to an end only if all three are here.
                    together.wait();
                });
            }
        });
    }

    #[test]
    fn the_turn_of_a_process_that_was_killed_is_free() {
        let (_folder, slots) = slots(1);
        drop(slots.take(1));
        let mut other = Command::new("flock");
        let slot = slots.folder.join("0");
        let Ok(mut other) = other.arg("--no-fork").arg(&slot).args(["sleep", "600"]).spawn() else {
            crate::terminal::note_line!("SKIPPED: there is no flock on this machine");
            return;
        };
        while open(&slot).try_lock().is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
        other.kill().unwrap();
        other.wait().unwrap();
        drop(slots.take(1));
    }
}
