//! Passwords and the threads that hash them.
//!
//! Argon2id is slow and large by intent: one hash takes about 20 ms of a core and 19 MiB. On tokio's blocking
//! pool, logins grow the process without bound (measured: 1.48 GB in 3 s, for the allocator keeps what hundreds
//! of threads gave back). So a few threads of their own hash, each in memory that it keeps for good.

mod hash;
mod worker;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::{io, thread};

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::oneshot;

pub use self::hash::{MalformedHash, PasswordHash};
use self::worker::{Job, Work};
use crate::invalid::Invalid;

/// A password in the clear, for as short as possible: wiped when dropped, never shown.
pub struct Password(SecretString);

/// Hashes and verifies passwords on threads of its own.
///
/// Clones share the threads, which end with the last clone. There is no deadline to give: a caller that stops
/// waiting (`tokio::time::timeout_at` drops the future) is skipped when its turn comes.
#[derive(Clone)]
pub struct Hasher {
    jobs: SyncSender<Job>,
}

/// How much of the machine hashing may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HasherConfig {
    /// Threads; each keeps 19 MiB from its first hash on.
    pub workers: NonZeroUsize,
    /// Callers that may wait for a thread; one more is refused.
    pub queue: NonZeroUsize,
}

/// Why there is no answer about a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HasherError {
    /// Too many callers wait already. Try again later.
    #[error("too many passwords are waiting to be hashed")]
    Overloaded,
    /// What is stored is not an argon2 hash that this process is willing to compute.
    #[error("the stored password hash cannot be used")]
    Malformed(#[from] MalformedHash),
    /// The computation broke off.
    #[error("hashing a password failed")]
    Failed,
}

impl Password {
    /// The least and the most bytes of a password. The upper bound only keeps requests small.
    pub const BYTES: std::ops::RangeInclusive<usize> = 10..=128;

    /// Takes a password as it was typed: nothing is trimmed or normalised.
    ///
    /// # Errors
    /// If it is too short or too long; the text is wiped then, too.
    pub fn parse(text: impl Into<SecretString>) -> Result<Self, Invalid> {
        let text = text.into();
        crate::text::bytes(text.expose_secret(), Self::BYTES)?;
        Ok(Self(text))
    }

    /// Once more, for a password that is verified and then hashed anew.
    pub fn again(&self) -> Self {
        Self(self.0.expose_secret().into())
    }

    fn as_bytes(&self) -> &[u8] {
        self.0.expose_secret().as_bytes()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password([redacted])")
    }
}

impl Hasher {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the operating system gives no thread, or no random bytes.
    pub fn start(config: HasherConfig) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(config.queue.get());
        let queue = Arc::new(Mutex::new(queue));
        let nobody = PasswordHash::of_nobody().map_err(io::Error::other)?;
        for number in 0..config.workers.get() {
            let (queue, nobody) = (Arc::clone(&queue), nobody.clone());
            // Nobody joins them: they end when the last sender is gone.
            thread::Builder::new().name(format!("password-{number}")).spawn(move || worker::run(&queue, &nobody))?;
        }
        Ok(Self { jobs })
    }

    /// Hashes a new password with a new salt.
    ///
    /// # Errors
    /// [`HasherError::Overloaded`] at once when the queue is full; [`HasherError::Failed`] without randomness.
    pub async fn hash(&self, password: Password) -> Result<PasswordHash, HasherError> {
        self.ask(|reply| Job { password, work: Work::Hash(reply) }).await
    }

    /// Whether a password is the one that was hashed.
    ///
    /// Without a hash (no such user, or a user without a password) the answer is no, after the same work: the
    /// time that it takes does not tell who exists.
    ///
    /// # Errors
    /// [`HasherError::Overloaded`] at once when the queue is full; [`HasherError::Malformed`] for a broken hash.
    pub async fn verify(&self, password: Password, hash: Option<PasswordHash>) -> Result<bool, HasherError> {
        self.ask(|reply| Job { password, work: Work::Verify(hash, reply) }).await
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, HasherError>>) -> Job) -> Result<T, HasherError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.try_send(job(reply)).map_err(|refused| match refused {
            TrySendError::Full(_) => HasherError::Overloaded,
            TrySendError::Disconnected(_) => HasherError::Failed,
        })?;
        answer.await.unwrap_or(Err(HasherError::Failed))
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher").finish_non_exhaustive()
    }
}

impl Default for HasherConfig {
    /// A thread per core, but not more than 4: they hold 76 MiB, and leave a large machine to its readers.
    /// 256 callers in the queue wait for about 1.3 s behind 4 threads.
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            workers: NonZeroUsize::new(cores.min(4)).expect("there is at least one core"),
            queue: NonZeroUsize::new(256).expect("256 is not zero"),
        }
    }
}

#[cfg(test)]
mod tests;
