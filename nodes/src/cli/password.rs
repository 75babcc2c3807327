//! A password from whoever types it, or from a pipe; never from the command line, which others can see.

use std::io::{self, BufRead, IsTerminal};

use anyhow::{Context, anyhow, ensure};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use rookery_actors::users::password::Password;
use secrecy::{ExposeSecret, SecretString};

use crate::terminal;

/// A shell's exit code for what Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// A new password for a user: typed twice without being shown, or the first line of what is piped in.
///
/// # Errors
/// When it is none, or too short or too long to be one.
pub(super) async fn ask(user: &str) -> anyhow::Result<SecretString> {
    let password = if io::stdin().is_terminal() {
        let password = typed(&format!("New password of {user}: ")).await?;
        let again = typed("Once more: ").await?;
        ensure!(password.expose_secret() == again.expose_secret(), "these are two different passwords; nothing was changed");
        password
    } else {
        read(&mut io::stdin().lock())?
    };
    Password::parse(password.clone()).map_err(|invalid| anyhow!("the password {invalid}; nothing was changed"))?;
    Ok(password)
}

async fn typed(prompt: &str) -> anyhow::Result<SecretString> {
    let unseen = Unseen::begin().context("the terminal cannot be told not to show what is typed")?;
    terminal::note(prompt);
    let line = tokio::task::spawn_blocking(|| read(&mut io::stdin().lock()));
    tokio::select! {
        line = line => {
            terminal::note("\n");
            line?
        }
        // The terminal shows again what is typed, and nobody waits for a line that does not come.
        _ = tokio::signal::ctrl_c() => {
            drop(unseen);
            terminal::note("\n");
            std::process::exit(INTERRUPTED);
        }
    }
}

/// The next line, without its end.
fn read(from: &mut impl BufRead) -> anyhow::Result<SecretString> {
    let mut line = String::new();
    from.read_line(&mut line).context("the password cannot be read")?;
    let end = line.trim_end_matches('\n').trim_end_matches('\r').len();
    line.truncate(end);
    // A file or a shell that marks what it pipes: nobody could type that at a login.
    if line.starts_with('\u{FEFF}') {
        line.remove(0);
    }
    Ok(line.into())
}

/// The terminal, as long as it does not show what is typed.
struct Unseen(Termios);

impl Unseen {
    fn begin() -> nix::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut unseen = before.clone();
        unseen.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &unseen)?;
        Ok(Self(before))
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        // What else could be done: the shell's `reset` does.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_the_first_line_as_it_is() {
        for (piped, password) in [
            ("  two words \n", "  two words "),
            ("one\r\ntwo\n", "one"),
            ("no end", "no end"),
            ("", ""),
            ("\u{FEFF}marked\n", "marked"),
        ] {
            assert_eq!(read(&mut piped.as_bytes()).unwrap().expose_secret(), password);
        }
    }
}
