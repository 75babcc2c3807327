//! What lasts for a while, told in few lines: one when it begins, one a minute while it goes on, with a count, and one when it
//! is over.
//!
//! A database that is away or a disk that is full fails as often as something is tried, thousands of times a minute. A line for
//! each of them would hide the one that says when it began, and write onto the disk that is full. So whatever may fail again
//! and again is said through [`warn`] or [`error`]; what is normal and comes in many parts, such as shards on their way, through
//! [`note`], which adds the parts up.
//!
//! An episode ends when it has not happened for a minute, or a few seconds after [`over`] was called.

use std::{
    collections::HashMap,
    fmt::Display,
    sync::{
        Mutex, MutexGuard, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Between two lines about the same episode.
const STILL_EVERY: Duration = Duration::from_secs(60);
/// What has not happened for so long is over; longer than any pause before something is tried again.
const QUIET: Duration = Duration::from_secs(60);
/// The same after it was said to be over: what comes and goes within it is one episode.
const CALM: Duration = Duration::from_secs(5);
/// Parts of something normal that come within this are said together.
const GATHER: Duration = Duration::from_secs(2);
/// Episodes at a time; what begins beyond is counted with the others of its kind.
const EPISODES_MAX: usize = 256;
/// Length of a reason that is remembered, in bytes.
const REASON_MAX: usize = 300;

/// How much attention an episode asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Normal: only its sum is told.
    Note,
    /// Something fails and is tried again.
    Warn,
    /// Something fails that should not.
    Error,
}

/// Something failed, and may fail again. `of` tells alike things apart, such as services; empty: there is only one.
pub fn warn(what: &'static str, of: &str, reason: impl Display) {
    if begins(Severity::Warn, what, of, &reason) {
        tracing::warn!(error = %reason, "{}", title(what, of));
    }
}

/// The same, where it should not have.
pub fn error(what: &'static str, of: &str, reason: impl Display) {
    if begins(Severity::Error, what, of, &reason) {
        tracing::error!(error = %reason, "{}", title(what, of));
    }
}

/// Counts something as [`warn`] and [`error`] do; whether it is the first of its episode, which the caller then tells.
pub fn begins(severity: Severity, what: &'static str, of: &str, reason: &dyn Display) -> bool {
    book().happened(severity, what, of, 1, reason, Instant::now())
}

/// So many parts of something normal; their sum is told when no more come.
pub fn note(what: &'static str, of: &str, parts: usize) {
    book().happened(Severity::Note, what, of, parts as u64, &"", Instant::now());
}

/// It works again. Cheap while nothing is wrong, so it can be said after every success.
pub fn over(what: &'static str, of: &str) {
    if ACTIVE.load(Ordering::Relaxed) > 0 {
        book().over(what, of);
    }
}

/// Tells what goes on and what is over; to be called every second or so.
pub fn sweep() {
    let lines = book().sweep(Instant::now());
    lines.iter().for_each(Line::tell);
}

/// Tells the sums that are still being gathered, before the process ends.
pub fn finish() {
    let lines = book().finish(Instant::now());
    lines.iter().for_each(Line::tell);
}

/// How many episodes there are, so that [`over`] need not look.
static ACTIVE: AtomicUsize = AtomicUsize::new(0);

fn book() -> MutexGuard<'static, Book> {
    static BOOK: OnceLock<Mutex<Book>> = OnceLock::new();
    BOOK.get_or_init(Mutex::default).lock().expect("no panic under this lock")
}

fn title(what: &str, of: &str) -> String {
    if of.is_empty() { what.to_owned() } else { format!("{of}: {what}") }
}

/// All episodes that go on. Times come from outside.
#[derive(Default)]
struct Book {
    episodes: HashMap<&'static str, HashMap<String, Episode>>,
    count: usize,
}

struct Episode {
    severity: Severity,
    began: Instant,
    last: Instant,
    told: Instant,
    count: u64,
    /// The latest.
    reason: String,
    is_over: bool,
}

/// What the log is told.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    severity: Severity,
    title: String,
    count: u64,
    lasted: Duration,
    reason: String,
    is_over: bool,
}

impl Book {
    /// Whether an episode begins.
    fn happened(
        &mut self,
        severity: Severity,
        what: &'static str,
        of: &str,
        count: u64,
        reason: &dyn Display,
        now: Instant,
    ) -> bool {
        let kind = self.episodes.entry(what).or_default();
        let of = if self.count >= EPISODES_MAX && !kind.contains_key(of) { "others" } else { of };
        if let Some(episode) = kind.get_mut(of) {
            // Without anybody who sweeps, it would never end.
            if now.duration_since(episode.last) < QUIET {
                // Not more often, for to write it costs more than to count it.
                if now.duration_since(episode.last) > Duration::from_millis(100) {
                    episode.reason = shortened(reason);
                }
                (episode.last, episode.is_over) = (now, false);
                episode.count += count;
                return false;
            }
            kind.remove(of);
            self.count -= 1;
        }
        let reason = shortened(reason);
        let episode = Episode { severity, began: now, last: now, told: now, count, reason, is_over: false };
        self.episodes.entry(what).or_default().insert(of.to_owned(), episode);
        self.count += 1;
        ACTIVE.store(self.count, Ordering::Relaxed);
        true
    }

    fn over(&mut self, what: &'static str, of: &str) {
        if let Some(episode) = self.episodes.get_mut(what).and_then(|kind| kind.get_mut(of)) {
            episode.is_over = true;
        }
    }

    fn sweep(&mut self, now: Instant) -> Vec<Line> {
        self.tell(|episode| episode.state(now), now)
    }

    fn finish(&mut self, now: Instant) -> Vec<Line> {
        self.tell(|episode| if episode.severity == Severity::Note { State::Over } else { State::Silent }, now)
    }

    fn tell(&mut self, state: impl Fn(&Episode) -> State, now: Instant) -> Vec<Line> {
        let mut lines = Vec::new();
        for (what, kind) in &mut self.episodes {
            kind.retain(|of, episode| {
                let state = state(episode);
                let is_over = state == State::Over;
                if state != State::Silent {
                    let lasted = if is_over { episode.last } else { now } - episode.began;
                    lines.push(Line {
                        severity: episode.severity,
                        title: title(what, of),
                        count: episode.count,
                        lasted,
                        reason: episode.reason.clone(),
                        is_over,
                    });
                    episode.told = now;
                }
                !is_over
            });
        }
        self.episodes.retain(|_, kind| !kind.is_empty());
        self.count = self.episodes.values().map(HashMap::len).sum();
        ACTIVE.store(self.count, Ordering::Relaxed);
        lines.sort_unstable_by(|a, b| a.title.cmp(&b.title));
        lines
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Silent,
    Still,
    Over,
}

impl Episode {
    fn state(&self, now: Instant) -> State {
        let quiet = now - self.last;
        match self.severity {
            // A sum is told once: what goes on for a minute is told as what it is by then.
            Severity::Note if quiet >= GATHER || now - self.began >= STILL_EVERY => State::Over,
            Severity::Note => State::Silent,
            _ if quiet >= QUIET || (self.is_over && quiet >= CALM) => State::Over,
            // Nothing new: the next line says that it is over.
            _ if now - self.told >= STILL_EVERY && self.last > self.told => State::Still,
            _ => State::Silent,
        }
    }
}

impl Line {
    fn tell(&self) {
        let Self { severity, title, count, lasted, reason, is_over } = self;
        let lasted_s = lasted.as_secs();
        match (severity, is_over) {
            (Severity::Note, _) => tracing::info!(count, "{title}: {count}"),
            // Once is no episode, and was told.
            (_, true) if *count == 1 => tracing::debug!(count, "over: {title}"),
            (_, true) => tracing::info!(count, lasted_s, "over: {title} ({count} times in {lasted_s} s)"),
            (Severity::Warn, false) => {
                tracing::warn!(count, lasted_s, error = reason, "still: {title} ({count} times in {lasted_s} s)");
            }
            (Severity::Error, false) => {
                tracing::error!(count, lasted_s, error = reason, "still: {title} ({count} times in {lasted_s} s)");
            }
        }
    }
}

/// An error with its causes, in one line.
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let said = source.to_string();
        // Some say their cause themselves.
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = source.source();
    }
    text
}

fn shortened(reason: &dyn Display) -> String {
    let mut reason = reason.to_string();
    if reason.len() > REASON_MAX {
        reason.truncate(reason.floor_char_boundary(REASON_MAX));
        reason.push('…');
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHAT: &str = "the database takes no writes";

    /// Happens so often within a second, every second, and is swept; what was told, with its second.
    fn told(book: &mut Book, began: Instant, seconds: std::ops::Range<u64>, times: u64) -> Vec<(u64, Line)> {
        let mut told = Vec::new();
        for second in seconds {
            let now = began + Duration::from_secs(second);
            for _ in 0..times {
                book.happened(Severity::Warn, WHAT, "posts", 1, &"no route", now);
            }
            told.extend(book.sweep(now).into_iter().map(|line| (second, line)));
        }
        told
    }

    #[test]
    fn an_outage_of_two_minutes_is_a_line_a_minute_and_one_when_it_is_over() {
        let (mut book, began) = (Book::default(), Instant::now());
        assert!(book.happened(Severity::Warn, WHAT, "posts", 1, &"no route", began), "its beginning is told at once");
        let mut lines = told(&mut book, began, 1..121, 70);
        lines.extend(told(&mut book, began, 121..300, 0));
        let seconds: Vec<_> = lines.iter().map(|(second, line)| (*second, line.is_over, line.count)).collect();
        assert_eq!(seconds, [(60, false, 1 + 60 * 70), (120, false, 1 + 120 * 70), (180, true, 1 + 120 * 70)]);
        assert_eq!((lines[2].1.lasted, book.count), (Duration::from_secs(120), 0));
    }

    #[test]
    fn what_is_said_to_be_over_is_so_after_a_moment_and_what_comes_and_goes_is_one_episode() {
        let (mut book, began) = (Book::default(), Instant::now());
        book.happened(Severity::Warn, WHAT, "posts", 1, &"", began);
        for second in 1..20 {
            book.over(WHAT, "posts");
            let now = began + Duration::from_secs(second);
            assert_eq!(book.sweep(now), []);
            assert!(!book.happened(Severity::Warn, WHAT, "posts", 1, &"", now));
        }
        book.over(WHAT, "posts");
        assert_eq!(told(&mut book, began, 20..60, 0).iter().map(|(second, _)| *second).collect::<Vec<_>>(), [24]);
        assert!(book.happened(Severity::Warn, WHAT, "posts", 1, &"", began + Duration::from_secs(60)), "the next one begins");
    }

    #[test]
    fn two_services_have_an_episode_each() {
        let (mut book, now) = (Book::default(), Instant::now());
        assert!(book.happened(Severity::Warn, WHAT, "posts", 1, &"", now));
        assert!(book.happened(Severity::Warn, WHAT, "users", 1, &"", now));
        assert!(!book.happened(Severity::Warn, WHAT, "users", 1, &"", now));
    }

    #[test]
    fn without_anybody_who_sweeps_the_next_outage_is_told_all_the_same() {
        let (mut book, now) = (Book::default(), Instant::now());
        assert!(book.happened(Severity::Warn, WHAT, "", 1, &"", now));
        assert!(!book.happened(Severity::Warn, WHAT, "", 1, &"", now + QUIET / 2));
        assert!(book.happened(Severity::Warn, WHAT, "", 1, &"", now + QUIET * 2));
    }

    #[test]
    fn the_parts_of_something_normal_are_one_sum() {
        let (mut book, began) = (Book::default(), Instant::now());
        for part in 0..16 {
            book.happened(Severity::Note, "shards taken up", "posts", 16, &"", began + Duration::from_millis(100 * part));
        }
        assert_eq!(book.sweep(began + GATHER), []);
        let lines = book.sweep(began + GATHER * 2);
        assert_eq!(
            lines.iter().map(|line| (line.title.as_str(), line.count)).collect::<Vec<_>>(),
            [("posts: shards taken up", 256)]
        );
        book.happened(Severity::Note, "shards taken up", "posts", 3, &"", began + GATHER * 2);
        assert_eq!(book.finish(began + GATHER * 2).len(), 1, "a process that ends tells what it has");
    }

    #[test]
    fn a_thousand_different_things_are_not_a_thousand_lines() {
        let (mut book, now) = (Book::default(), Instant::now());
        let begun = (0..1_000).filter(|n| book.happened(Severity::Warn, WHAT, &n.to_string(), 1, &"", now)).count();
        assert_eq!((begun, book.count), (EPISODES_MAX + 1, EPISODES_MAX + 1));
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let reason = shortened(&"ü".repeat(1_000));
        assert!(reason.len() <= REASON_MAX + '…'.len_utf8() && reason.ends_with("ü…"), "{reason}");
    }
}
