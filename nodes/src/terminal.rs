//! What commands print: the one place that writes to stdout and stderr, the log aside.
//!
//! `println!` and `eprintln!` panic when nobody reads any more (`rookery import x | head`), so a closed pipe would stop the
//! work and not only the report of it. The lints `print_stdout` and `print_stderr` refuse them in every crate of the program.

use std::{
    fmt::{self, Display},
    io::{self, Write},
    sync::OnceLock,
};

/// Why an answer is not where it was to go: the first reason.
static UNWRITTEN: OnceLock<io::Error> = OnceLock::new();

/// Prints an answer, which ends its own lines.
pub(crate) fn answer(text: impl Display) {
    if let Err(error) = written(io::stdout().lock(), format_args!("{text}")) {
        let _ = UNWRITTEN.set(error);
    }
}

/// Prints one line of an answer, as `println!` would.
macro_rules! answer_line {
    ($($text:tt)*) => { $crate::terminal::answer(format_args!("{}\n", format_args!($($text)*))) };
}
pub(crate) use answer_line;

/// Tells a person something beside the answer, on stderr. A failure has nowhere to be told, and stops nothing.
pub(crate) fn note(text: impl Display) {
    let _ = written(io::stderr().lock(), format_args!("{text}"));
}

/// Tells it in a line, as `eprintln!` would.
macro_rules! note_line {
    ($($text:tt)*) => { $crate::terminal::note(format_args!("{}\n", format_args!($($text)*))) };
}
pub(crate) use note_line;

/// Whether all answers have been written.
///
/// # Errors
/// When one could not be, on a full disk for instance. A reader that has gone away has seen all it wanted to see.
pub(crate) fn delivered() -> io::Result<()> {
    match UNWRITTEN.get() {
        Some(error) => Err(io::Error::new(error.kind(), error.to_string())),
        None => Ok(()),
    }
}

fn written(mut to: impl Write, text: fmt::Arguments<'_>) -> io::Result<()> {
    // In one piece, so that lines of several processes do not mix.
    match to.write_all(text.to_string().as_bytes()).and_then(|()| to.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_has_gone_away_is_no_failure_and_a_full_disk_is_one() {
        assert!(written(Failing(io::ErrorKind::BrokenPipe), format_args!("x")).is_ok());
        assert!(written(Failing(io::ErrorKind::StorageFull), format_args!("x")).is_err());
    }
}
