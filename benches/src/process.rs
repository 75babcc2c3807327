//! The CPU time of other processes, from `/proc`.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use nix::{
    time::{ClockId, clock_gettime},
    unistd::{SysconfVar, sysconf},
};

/// A process id.
pub type Pid = u32;

/// CPU time by the name of what spent it.
pub type CpuByName = BTreeMap<String, Duration>;

/// One line of `/proc/<pid>/stat`, as far as it concerns us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: Pid,
    /// Its parent's id.
    pub parent: Pid,
    /// The name of its program, at most 15 bytes.
    pub name: String,
    /// User and system time of all its threads, the ended ones included.
    pub cpu: Duration,
    /// The same of its children that ended and were waited for, and of theirs.
    pub cpu_of_ended_children: Duration,
}

impl Process {
    /// Reads a process.
    ///
    /// # Errors
    /// When there is none of this id (any more).
    pub fn read(pid: Pid) -> io::Result<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat"))?).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    fn parse(line: &str) -> Option<Self> {
        // The name may hold blanks and parentheses: it ends at the last one.
        let (start, fields) = line.rsplit_once(')')?;
        let (pid, name) = start.split_once(" (")?;
        // Fields count from 1 in proc(5), and the first after the name is the third.
        let fields: Vec<_> = fields.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            pid: pid.parse().ok()?,
            parent: field(4)?.try_into().ok()?,
            name: name.to_owned(),
            cpu: ticks(field(14)? + field(15)?),
            cpu_of_ended_children: ticks(field(16)? + field(17)?),
        })
    }
}

/// The `rookery` to measure: the one given, or the one beside this program.
///
/// # Errors
/// When there is none.
pub fn rookery(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let program = match given {
        Some(given) => given.to_owned(),
        None => std::env::current_exe()?.with_file_name("rookery"),
    };
    anyhow::ensure!(program.is_file(), "{} is missing: cargo build --release -p rookery", program.display());
    Ok(program)
}

/// All processes at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot(BTreeMap<Pid, Process>);

impl Snapshot {
    /// Reads `/proc`; what ends meanwhile is left out.
    pub fn take() -> Self {
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Self::of(pids.filter_map(|pid| Process::read(pid).ok()))
    }

    fn of(processes: impl IntoIterator<Item = Process>) -> Self {
        Self(processes.into_iter().map(|it| (it.pid, it)).collect())
    }

    /// A process, its children, their children and so on, but nothing from `except` down.
    pub fn tree(&self, root: Pid, except: Option<Pid>) -> Vec<&Process> {
        let mut found = Vec::new();
        let mut next = vec![root];
        while let Some(pid) = next.pop() {
            if Some(pid) == except {
                continue;
            }
            found.extend(self.0.get(&pid));
            next.extend(self.0.values().filter(|it| it.parent == pid).map(|it| it.pid));
        }
        found
    }

    /// CPU time of a tree, of its ended processes too.
    ///
    /// It never falls: a process that ends hands its time to the parent which waits for it.
    /// (When `except` ends, its time does too, so keep it alive.)
    pub fn cpu(&self, root: Pid, except: Option<Pid>) -> Duration {
        let tree = self.tree(root, except);
        tree.iter().map(|it| it.cpu + it.cpu_of_ended_children).sum()
    }
}

/// CPU time of a process alone: its threads, not its children.
pub fn cpu(pid: Pid) -> Duration {
    Process::read(pid).map(|it| it.cpu).unwrap_or_default()
}

/// The same to the nanosecond where the kernel tells it, for a process of one thread.
pub fn cpu_of_one_thread(pid: Pid) -> Duration {
    let told = fs::read_to_string(format!("/proc/{pid}/schedstat"));
    let nanos = told.ok().and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    // Without the statistics of the scheduler the first figure is 0, if there is one.
    nanos.filter(|nanos| *nanos > 0).map_or_else(|| cpu(pid), Duration::from_nanos)
}

/// CPU time of this process: of all its threads, to the nanosecond.
pub fn own_cpu() -> Duration {
    let spent = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("Linux counts the CPU time of a process");
    Duration::from(spent)
}

/// Memory of a process that is no file's, in bytes (`RssAnon`); none if it has ended.
pub fn anonymous_bytes(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or_default() << 10
}

/// Memory of a process that is in RAM, in bytes; none if it has ended.
pub fn resident_bytes(pid: Pid) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: u64 = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|bytes| u64::try_from(bytes).ok());
    pages * page.unwrap_or(4_096)
}

/// CPU time of a process by the names of its living threads, numbers at their end left off.
pub fn cpu_by_thread(pid: Pid) -> CpuByName {
    let mut by_name = CpuByName::new();
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    for thread in threads.into_iter().flatten().flatten() {
        let stat = fs::read_to_string(thread.path().join("stat"));
        if let Some(thread) = stat.ok().and_then(|line| Process::parse(&line)) {
            let name = thread.name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
            *by_name.entry(name.to_owned()).or_default() += thread.cpu;
        }
    }
    by_name
}

/// CPU time of a Postgres cluster by database, and by role for what serves none.
pub fn cpu_by_database(snapshot: &Snapshot, postmaster: Pid) -> CpuByName {
    let mut by_name = CpuByName::new();
    for process in snapshot.tree(postmaster, None) {
        let name = if process.pid == postmaster {
            "postmaster".to_owned()
        } else {
            fs::read_to_string(format!("/proc/{}/cmdline", process.pid))
                .map(|title| database_or_role(&title))
                .unwrap_or_else(|_| "ended".to_owned())
        };
        *by_name.entry(name).or_default() += process.cpu;
    }
    by_name
}

/// Reads the title that Postgres gives its processes, such as
/// `postgres: rookery posts [local] INSERT` or `postgres: walwriter `.
fn database_or_role(title: &str) -> String {
    let title = title.trim_end_matches(['\0', ' ']);
    let title = title.strip_prefix("postgres: ").unwrap_or(title);
    let words: Vec<_> = title.split_ascii_whitespace().collect();
    match words.iter().position(|word| *word == "[local]") {
        Some(at) if at > 0 => format!("database {}", words[at - 1]),
        _ => title.to_owned(),
    }
}

/// What was spent by each name between two readings; names that spent nothing are left out.
pub fn spent(before: &CpuByName, after: &CpuByName) -> CpuByName {
    let spent = after.iter().map(|(name, after)| {
        let before = before.get(name).copied().unwrap_or_default();
        (name.clone(), after.saturating_sub(before))
    });
    spent.filter(|(_, cpu)| !cpu.is_zero()).collect()
}

fn ticks(count: u64) -> Duration {
    static PER_SECOND: OnceLock<u64> = OnceLock::new();
    let per_second = *PER_SECOND.get_or_init(|| {
        let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten();
        ticks.and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100)
    });
    Duration::from_micros(count * 1_000_000 / per_second)
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Command, Stdio},
        time::Instant,
    };

    use super::*;

    fn process(pid: Pid, parent: Pid, cpu_ms: u64, ended_ms: u64) -> Process {
        Process {
            pid,
            parent,
            name: String::new(),
            cpu: Duration::from_millis(cpu_ms),
            cpu_of_ended_children: Duration::from_millis(ended_ms),
        }
    }

    #[test]
    fn a_name_with_blanks_and_parentheses_is_no_obstacle() {
        let line = "42 (tmux: (a) b) S 7 42 42 0 -1 4194304 1 2 3 4 150 50 20 10 20 0 1 0 9 9";
        let process = Process::parse(line).unwrap();
        assert_eq!((process.pid, process.parent), (42, 7));
        assert_eq!(process.name, "tmux: (a) b");
        assert_eq!(process.cpu, ticks(200));
        assert_eq!(process.cpu_of_ended_children, ticks(30));
    }

    #[test]
    fn a_tree_is_summed_with_its_ended_children_and_without_what_is_excepted() {
        let snapshot = Snapshot::of([
            process(1, 0, 1_000, 0),
            process(2, 1, 10, 5),
            process(3, 2, 20, 0),
            process(4, 3, 40, 0),
            process(5, 1, 500, 0),
        ]);
        assert_eq!(snapshot.cpu(2, None), Duration::from_millis(75));
        assert_eq!(snapshot.cpu(2, Some(3)), Duration::from_millis(15));
    }

    #[test]
    fn a_busy_child_costs_its_tree_and_still_does_after_its_end() {
        let own = std::process::id();
        let before = Snapshot::take().cpu(own, None);
        let mut busy = Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while cpu(busy.id()) < Duration::from_millis(50) {
            assert!(Instant::now() < deadline, "the child was never seen to spend 50 ms");
        }
        assert!(Snapshot::take().tree(own, None).iter().any(|it| it.pid == busy.id()));
        busy.kill().unwrap();
        busy.wait().unwrap();
        let after = Snapshot::take().cpu(own, None);
        assert!(after - before >= Duration::from_millis(50));
    }

    #[test]
    fn threads_are_summed_under_their_name_without_its_number() {
        let (ready, wait) = (std::sync::Barrier::new(3), std::sync::Barrier::new(3));
        std::thread::scope(|scope| {
            for number in 0..2 {
                let name = format!("indexer-{number}");
                let body = || {
                    ready.wait();
                    wait.wait();
                };
                std::thread::Builder::new().name(name).spawn_scoped(scope, body).unwrap();
            }
            ready.wait();
            let by_thread = cpu_by_thread(std::process::id());
            wait.wait();
            assert!(by_thread.contains_key("indexer"), "{by_thread:?}");
        });
    }

    #[test]
    fn a_backend_is_named_by_its_database_and_others_by_their_role() {
        assert_eq!(database_or_role("postgres: rookery posts [local] INSERT\0"), "database posts");
        assert_eq!(database_or_role("postgres: 15/main: rookery search [local] idle"), "database search");
        assert_eq!(database_or_role("postgres: walwriter \0\0"), "walwriter");
    }

    #[test]
    fn only_what_grew_was_spent() {
        let ms = Duration::from_millis;
        let before = CpuByName::from([("a".into(), ms(5)), ("b".into(), ms(5))]);
        let after = CpuByName::from([("a".into(), ms(5)), ("b".into(), ms(9)), ("c".into(), ms(1))]);
        let expected = CpuByName::from([("b".into(), ms(4)), ("c".into(), ms(1))]);
        assert_eq!(spent(&before, &after), expected);
    }
}
