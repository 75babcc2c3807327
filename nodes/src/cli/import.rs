//! `rookery import FILE`: lines in, items out, answers counted.

use std::{
    convert::Infallible,
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use flate2::read::MultiGzDecoder;
use futures_util::{Stream, stream};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::mpsc;

use super::{Exit, client::Client, lines::Reader};
use crate::{
    admin::{
        item::{Answer, Numbered, Outcome},
        ndjson::{self, LINE_BYTES_MAX},
    },
    files,
    terminal::{answer_line, note_line},
};

/// Bad lines that are shown; the rest is in the file.
const SHOWN: u64 = 20;
/// Lines that wait between the file, the connection and the tally.
const QUEUE: usize = 1_024;
/// Between two lines of progress where there is no terminal.
const REPORT_EVERY: Duration = Duration::from_secs(2);

/// What to import, and what to do about bad lines.
#[derive(Debug, Args)]
pub(super) struct Import {
    /// The file, plain or gzip; - is standard input.
    file: PathBuf,
    /// Fail (exit code 1) if there was a bad line.
    #[arg(long)]
    strict: bool,
    /// Write the bad lines to this file, as JSON lines of `line` and `reason`. Without it, when there are more than are
    /// shown, they go into NAME.errors in the working folder, if it can be written there.
    #[arg(long, value_name = "FILE")]
    errors: Option<PathBuf>,
}

impl Import {
    pub(super) async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        let began = Instant::now();
        let read = Arc::new(AtomicU64::new(0));
        let (input, size) = open(&self.file)?;
        // Before the first byte, which whoever pipes it in may take long to write.
        client.reach().await?;
        let mut tally = Tally::new(&self, size, Arc::clone(&read))?;
        let (items, to_send) = mpsc::channel(QUEUE);
        let (bad, bad_lines) = mpsc::channel(QUEUE);
        let path = self.file.clone();
        let reader = tokio::task::spawn_blocking(move || {
            anyhow::Ok(read_lines(unpacked(&path, BufReader::with_capacity(1 << 16, Counted { input, read }))?, &items, &bad))
        });

        let (answered, answers) = mpsc::channel(QUEUE);
        let (unread, (), ()) = tokio::try_join!(
            async { reader.await? },
            receive(client, body(to_send), answered),
            tally.count(answers, bad_lines),
        )?;
        tally.finish(began.elapsed(), self.strict, unread)
    }
}

/// Sends the items and takes the answers: by itself, for bad lines must be taken too while a proxy keeps all that is sent until
/// it has the last of it.
async fn receive(
    client: &Client,
    items: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static,
    answered: mpsc::Sender<Answer>,
) -> anyhow::Result<()> {
    let mut answers = client.stream("/import", items).await?;
    while let Some(answer) = answers.next::<Answer>().await? {
        // It counts for as long as we send.
        let _ = answered.send(answer).await;
    }
    Ok(())
}

/// The file, and its size in bytes.
fn open(path: &Path) -> anyhow::Result<(Box<dyn Read + Send>, Option<u64>)> {
    if path == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let metadata = file.metadata()?;
    anyhow::ensure!(!metadata.is_dir(), "{} is a folder", path.display());
    Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
}

/// What a file says, unpacked if it is gzip.
fn unpacked(path: &Path, input: impl BufRead + Send + 'static) -> anyhow::Result<Box<dyn BufRead + Send>> {
    let cannot = || format!("cannot read {}", path.display());
    // The first two bytes say it; a name may lie.
    let (begin, input) = peek(input).with_context(cannot)?;
    let unpacked: Box<dyn BufRead + Send> = match begin == GZIP {
        true => Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(input))),
        false => Box::new(input),
    };
    let (begin, unpacked) = peek(unpacked).with_context(cannot)?;
    let is_utf_16 = UTF_16_MARKS.contains(&begin.as_slice());
    anyhow::ensure!(!is_utf_16, "{} is UTF-16: save it as UTF-8, as with `iconv -f UTF-16 -t UTF-8`", path.display());
    Ok(Box::new(unpacked))
}

/// The first two bytes, if there are so many, and all of it: what one read brings may be a single byte.
fn peek<R: BufRead>(mut input: R) -> io::Result<(Vec<u8>, impl BufRead + use<R>)> {
    let mut begin = Vec::new();
    input.by_ref().take(2).read_to_end(&mut begin)?;
    Ok((begin.clone(), io::Cursor::new(begin).chain(input)))
}

const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The byte order marks of UTF-16, little and big end first. That of UTF-8 is passed over in every line.
const UTF_16_MARKS: [&[u8]; 2] = [b"\xFF\xFE", b"\xFE\xFF"];

struct Counted<R> {
    input: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

type Bad = (u64, String);

/// Reads to the end of the file, or of whoever listens. The error, if the file could not be read to its end.
fn read_lines(mut source: Box<dyn BufRead + Send>, items: &mpsc::Sender<Numbered>, bad: &mpsc::Sender<Bad>) -> Option<Bad> {
    let mut reader = Reader::default();
    let mut buffer = Vec::new();
    for line in 1.. {
        let parsed = match next_line(&mut source, &mut buffer) {
            Ok(None) => return None,
            Ok(Some(())) => reader.read(&buffer),
            Err(LineError::TooLong) => Err(format!("longer than {LINE_BYTES_MAX} bytes")),
            Err(LineError::Io(error)) => return Some((line, error.to_string())),
        };
        let listened = match parsed {
            Ok(None) => true,
            Ok(Some(item)) => items.blocking_send(Numbered { line, item }).is_ok(),
            Err(reason) => bad.blocking_send((line, reason)).is_ok(),
        };
        if !listened {
            return None;
        }
    }
    None
}

enum LineError {
    TooLong,
    Io(io::Error),
}

/// The next line, in bounded memory: of one that is too long only the end is looked for.
fn next_line(source: &mut impl BufRead, buffer: &mut Vec<u8>) -> Result<Option<()>, LineError> {
    buffer.clear();
    let max = LINE_BYTES_MAX as u64;
    let count = source.by_ref().take(max).read_until(b'\n', buffer).map_err(LineError::Io)?;
    if count == 0 {
        return Ok(None);
    }
    if buffer.last() == Some(&b'\n') || (count as u64) < max {
        return Ok(Some(()));
    }
    loop {
        buffer.clear();
        let count = source.by_ref().take(max).read_until(b'\n', buffer).map_err(LineError::Io)?;
        if count == 0 || buffer.last() == Some(&b'\n') {
            return Err(LineError::TooLong);
        }
    }
}

/// What waits goes in one chunk.
fn body(items: mpsc::Receiver<Numbered>) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
    stream::unfold(items, |mut items| async move {
        let mut waiting = Vec::new();
        if items.recv_many(&mut waiting, QUEUE).await == 0 {
            return None;
        }
        let chunk: Vec<u8> = waiting.iter().flat_map(ndjson::line).collect();
        Some((Ok(Bytes::from(chunk)), items))
    })
}

/// What became of the lines so far.
struct Tally {
    imported: u64,
    present: u64,
    bad: u64,
    failed: u64,
    /// Why the node ended the import, if it did.
    ended: Option<String>,
    errors: Errors,
    progress: Progress,
}

impl Tally {
    fn new(import: &Import, size: Option<u64>, read: Arc<AtomicU64>) -> anyhow::Result<Self> {
        let errors = Errors::new(import.errors.as_deref(), &import.file)?;
        Ok(Self { imported: 0, present: 0, bad: 0, failed: 0, ended: None, errors, progress: Progress::new(size, read) })
    }

    /// Counts until there is nothing more to come of either.
    async fn count(&mut self, mut answers: mpsc::Receiver<Answer>, mut bad_lines: mpsc::Receiver<Bad>) -> anyhow::Result<()> {
        let (mut answered, mut all_read) = (false, false);
        while !(answered && all_read) {
            tokio::select! {
                answer = answers.recv(), if !answered => match answer {
                    Some(answer) => self.answer(answer),
                    None => answered = true,
                },
                line = bad_lines.recv(), if !all_read => match line {
                    Some((line, reason)) => self.bad(line, &reason),
                    None => all_read = true,
                },
            }
        }
        Ok(())
    }

    fn answer(&mut self, answer: Answer) {
        match (answer.line, answer.outcome) {
            (_, Outcome::Imported) => self.imported += 1,
            (_, Outcome::Present) => self.present += 1,
            (Some(line), Outcome::Refused { reason }) => self.bad(line, &reason),
            (Some(line), Outcome::Failed { reason }) => {
                self.failed += 1;
                self.report(line, &format!("not imported, though it could be: {reason}"));
            }
            (None, Outcome::Refused { reason } | Outcome::Failed { reason }) => self.ended = Some(reason),
        }
        self.progress.show(self.imported, self.present, self.bad + self.failed);
    }

    fn bad(&mut self, line: u64, reason: &str) {
        self.bad += 1;
        self.report(line, reason);
    }

    fn report(&mut self, line: u64, reason: &str) {
        if self.bad + self.failed <= SHOWN {
            self.progress.say(&format!("line {line}: {reason}"));
        }
        self.errors.add(line, reason);
    }

    fn finish(mut self, took: Duration, strict: bool, unread: Option<Bad>) -> anyhow::Result<Exit> {
        self.progress.end();
        let Self { imported, present, bad, failed, .. } = self;
        let seconds = took.as_secs_f64();
        let rate = (imported + present) as f64 / seconds.max(0.001);
        answer_line!("imported       {}", grouped(imported));
        answer_line!("already there  {}", grouped(present));
        answer_line!("bad lines      {}", grouped(bad));
        if failed > 0 {
            answer_line!("failed         {}", grouped(failed));
        }
        answer_line!("in {seconds:.1} s, {}/s", grouped(rate.round() as u64));
        let unwritten = match self.errors.finish() {
            Written::Nowhere => None,
            Written::To(path) => {
                answer_line!("all bad lines and their reasons: {}", path.display());
                None
            }
            Written::Not { reason, was_wanted: true } => Some(reason),
            Written::Not { reason, was_wanted: false } => {
                note_line!("the bad lines after the first {SHOWN} were counted and are written nowhere: {reason}");
                None
            }
        };
        if let Some((line, reason)) = unread {
            anyhow::bail!("the file cannot be read from line {line} on: {reason}; what stands before it is imported");
        }
        if let Some(reason) = self.ended {
            anyhow::bail!("the node ended the import: {reason}");
        }
        if failed > 0 {
            anyhow::bail!("{} lines could not be imported now: run the same command again", grouped(failed));
        }
        if let Some(reason) = unwritten {
            anyhow::bail!("everything else was done, but {reason}");
        }
        Ok(if strict && bad > 0 { Exit::Failed } else { Exit::Done })
    }
}

/// The bad lines. Not to be able to write them ends no import: what the file says of them, the next import says again.
struct Errors {
    path: PathBuf,
    /// Somebody named the file.
    is_wanted: bool,
    state: ErrorFile,
}

enum ErrorFile {
    /// No file yet: it is begun when there are more lines than are shown.
    Kept {
        lines: u64,
        bytes: Vec<u8>,
    },
    Open(BufWriter<File>),
    /// It cannot be written.
    Lost(String),
}

/// Where the bad lines are at the end.
enum Written {
    /// All of them were shown.
    Nowhere,
    To(PathBuf),
    Not {
        reason: String,
        was_wanted: bool,
    },
}

impl Errors {
    /// Begins the file that somebody named: that it cannot be written is said before anything is imported.
    fn new(wanted: Option<&Path>, import: &Path) -> anyhow::Result<Self> {
        let kept = ErrorFile::Kept { lines: 0, bytes: Vec::new() };
        let mut errors =
            Self { path: wanted.map_or_else(|| beside(import), Path::to_owned), is_wanted: wanted.is_some(), state: kept };
        if errors.is_wanted {
            let file = File::create(&errors.path).with_context(|| errors.cannot())?;
            errors.state = ErrorFile::Open(BufWriter::new(file));
        }
        Ok(errors)
    }

    fn add(&mut self, line: u64, reason: &str) {
        let entry = ndjson::line(&serde_json::json!({ "line": line, "reason": reason }));
        let written = match &mut self.state {
            ErrorFile::Open(file) => file.write_all(&entry),
            ErrorFile::Lost(_) => Ok(()),
            ErrorFile::Kept { lines, bytes } => {
                *lines += 1;
                bytes.extend(entry);
                if *lines > SHOWN { self.begin() } else { Ok(()) }
            }
        };
        if let Err(error) = written {
            self.state = ErrorFile::Lost(format!("{}: {error}", self.cannot()));
        }
    }

    /// Begins a file that nobody named: in the place of one of an import before, and not of what a link leads to.
    fn begin(&mut self) -> io::Result<()> {
        let file = files::not_through_links().write(true).create(true).truncate(true).open(&self.path)?;
        let mut file = BufWriter::new(file);
        if let ErrorFile::Kept { bytes, .. } = &self.state {
            file.write_all(bytes)?;
        }
        self.state = ErrorFile::Open(file);
        Ok(())
    }

    fn finish(&mut self) -> Written {
        if let ErrorFile::Open(file) = &mut self.state
            && let Err(error) = file.flush()
        {
            self.state = ErrorFile::Lost(format!("{}: {error}", self.cannot()));
        }
        match &self.state {
            ErrorFile::Kept { .. } => Written::Nowhere,
            ErrorFile::Open(_) => Written::To(self.path.clone()),
            ErrorFile::Lost(reason) => Written::Not { reason: reason.clone(), was_wanted: self.is_wanted },
        }
    }

    fn cannot(&self) -> String {
        match self.is_wanted {
            true => format!("the bad lines cannot be written to {}", self.path.display()),
            false => format!("the bad lines cannot be written to {}, name a file with --errors", self.path.display()),
        }
    }
}

/// `posts.jsonl.gz` → `posts.jsonl.gz.errors` in the working folder: that of the file may be read-only.
fn beside(file: &Path) -> PathBuf {
    let name = file.file_name().filter(|name| *name != "-").unwrap_or("import".as_ref());
    let mut name = name.to_owned();
    name.push(".errors");
    name.into()
}

/// A bar in a terminal, a line now and then elsewhere.
struct Progress {
    bar: ProgressBar,
    terminal: bool,
    read: Arc<AtomicU64>,
    size: Option<u64>,
    began: Instant,
    reported: Instant,
}

impl Progress {
    fn new(size: Option<u64>, read: Arc<AtomicU64>) -> Self {
        let terminal = io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let (bar, template) = match size {
            Some(size) => (ProgressBar::with_draw_target(Some(size), target), "{bar:30} {percent:>3}%  {msg}  {eta} left"),
            None => (ProgressBar::with_draw_target(None, target), "{spinner} {msg}"),
        };
        bar.set_style(ProgressStyle::with_template(template).expect("the template is well-formed"));
        Self { bar, terminal, read, size, began: Instant::now(), reported: Instant::now() }
    }

    fn show(&mut self, imported: u64, present: u64, bad: u64) {
        let due = self.reported.elapsed() >= REPORT_EVERY;
        if !self.terminal && !due {
            return;
        }
        let rate = (imported + present) as f64 / self.began.elapsed().as_secs_f64().max(0.001);
        let state = format!(
            "{} imported, {} there already, {} bad, {}/s",
            grouped(imported),
            grouped(present),
            grouped(bad),
            grouped(rate.round() as u64)
        );
        let read = self.read.load(Ordering::Relaxed);
        if self.terminal {
            self.bar.set_position(read);
            self.bar.set_message(state);
        } else {
            let share = self.size.filter(|size| *size > 0).map(|size| format!("{:>3}%  ", 100 * read / size)).unwrap_or_default();
            note_line!("{share}{state}");
        }
        if due {
            self.reported = Instant::now();
        }
    }

    fn say(&self, line: &str) {
        self.bar.suspend(|| note_line!("{line}"));
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// 19940 → 19,940
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let (head, tail) = digits.split_at(first);
    let groups = tail.as_bytes().chunks(3).map(|group| str::from_utf8(group).expect("digits are ASCII"));
    std::iter::once(head).filter(|head| !head.is_empty()).chain(groups).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> Vec<Result<Vec<u8>, ()>> {
        let mut source = text;
        let (mut buffer, mut lines) = (Vec::new(), Vec::new());
        loop {
            match next_line(&mut source, &mut buffer) {
                Ok(None) => return lines,
                Ok(Some(())) => lines.push(Ok(buffer.clone())),
                Err(LineError::TooLong) => lines.push(Err(())),
                Err(LineError::Io(error)) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn a_line_that_is_too_long_costs_only_itself() {
        let long = vec![b'x'; 3 * LINE_BYTES_MAX + 7];
        let text = [b"a\n".as_slice(), &long, b"\nb"].concat();
        assert_eq!(lines(&text), [Ok(b"a\n".to_vec()), Err(()), Ok(b"b".to_vec())]);
    }

    #[test]
    fn a_gzip_file_is_known_by_its_first_bytes() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packer.write_all(b"hello").unwrap();
        let packed = packer.finish().unwrap();
        file.write_all(&packed).unwrap();
        let read = Arc::new(AtomicU64::new(0));
        let (input, size) = open(file.path()).unwrap();
        let counted = BufReader::new(Counted { input, read: Arc::clone(&read) });
        let text = io::read_to_string(unpacked(file.path(), counted).unwrap()).unwrap();
        assert_eq!((text.as_str(), size), ("hello", Some(packed.len() as u64)));
        assert_eq!(read.load(Ordering::Relaxed), packed.len() as u64);
    }

    /// Gives a byte at a time, as a pipe may.
    struct Trickle(io::Cursor<Vec<u8>>);

    impl Read for Trickle {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let most = buffer.len().min(1);
            self.0.read(&mut buffer[..most])
        }
    }

    /// What was broken: a gzip file whose first read gave one byte was taken for text, and nothing was imported.
    #[test]
    fn a_file_is_what_it_is_however_little_the_first_read_brings() {
        let trickle = |bytes: &[u8]| unpacked(Path::new("-"), BufReader::new(Trickle(io::Cursor::new(bytes.to_vec()))));
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packer.write_all(b"hello").unwrap();
        let packed = packer.finish().unwrap();
        for (bytes, text) in [(packed.as_slice(), "hello"), (b"hello", "hello"), (b"h", "h"), (b"", "")] {
            assert_eq!(io::read_to_string(trickle(bytes).unwrap()).unwrap(), text);
        }
        let refused = trickle(b"\xFF\xFE{\0").err().expect("it is refused").to_string();
        assert!(refused.contains("is UTF-16"), "{refused}");
    }

    #[test]
    fn a_file_in_utf_16_is_named_as_such() {
        for text in [b"\xFF\xFE{\0".as_slice(), b"\xFE\xFF\0{"] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(text).unwrap();
            let (input, _) = open(file.path()).unwrap();
            let refused = unpacked(file.path(), BufReader::new(input)).err().expect("it is refused").to_string();
            assert!(refused.contains("is UTF-16"), "{refused}");
        }
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([0, 12, 999, 1_000, 19_940, 1_234_567].map(grouped), ["0", "12", "999", "1,000", "19,940", "1,234,567"]);
    }

    #[test]
    fn the_file_of_bad_lines_is_named_after_the_import() {
        assert_eq!(beside(Path::new("/data/posts.jsonl.gz")), Path::new("posts.jsonl.gz.errors"));
        assert_eq!(beside(Path::new("-")), Path::new("import.errors"));
    }
}
