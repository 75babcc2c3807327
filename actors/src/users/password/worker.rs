//! One hashing thread: takes the next job, skips it if nobody waits any more, does it in its own memory.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, PoisonError};

use argon2::{Argon2, Block};
use tokio::sync::oneshot;
use tracing::error;

use super::hash::{self, Digest, PasswordHash};
use super::{HasherError, Password};

pub(super) struct Job {
    pub(super) password: Password,
    pub(super) work: Work,
}

pub(super) enum Work {
    Hash(oneshot::Sender<Result<PasswordHash, HasherError>>),
    Verify(Option<PasswordHash>, oneshot::Sender<Result<bool, HasherError>>),
}

/// Works until the last [`super::Hasher`] is gone. `nobody` is what absent hashes are replaced by.
pub(super) fn run(queue: &Mutex<Receiver<Job>>, nobody: &PasswordHash) {
    let mut memory = Memory::default();
    loop {
        // One worker waits in `recv` and the others for the lock, which it leaves with its job.
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        if job.is_abandoned() {
            continue;
        }
        // A worker that died would be missed by nobody but the queue behind it.
        if catch_unwind(AssertUnwindSafe(|| job.run(&mut memory, nobody))).is_err() {
            error!("a password hash panicked; its caller got an error");
            memory = Memory::default();
        }
    }
}

impl Job {
    fn is_abandoned(&self) -> bool {
        match &self.work {
            Work::Hash(reply) => reply.is_closed(),
            Work::Verify(_, reply) => reply.is_closed(),
        }
    }

    fn run(self, memory: &mut Memory, nobody: &PasswordHash) {
        // Whoever asked may have gone meanwhile: then nobody needs the answer.
        match self.work {
            Work::Hash(reply) => {
                let _ = reply.send(make(&self.password, memory));
            }
            Work::Verify(known, reply) => {
                let _ = reply.send(check(&self.password, known.as_ref(), nobody, memory));
            }
        }
    }
}

fn make(password: &Password, memory: &mut Memory) -> Result<PasswordHash, HasherError> {
    let salt = hash::new_salt().map_err(|_| HasherError::Failed)?;
    let mut digest = Digest::default();
    memory.compute(&hash::today(), password, &salt, &mut digest)?;
    Ok(PasswordHash::from_parts(&salt, &digest))
}

fn check(
    password: &Password,
    known: Option<&PasswordHash>,
    nobody: &PasswordHash,
    memory: &mut Memory,
) -> Result<bool, HasherError> {
    let recipe = known.unwrap_or(nobody).recipe()?;
    let mut digest = vec![0; recipe.digest_bytes()];
    memory.compute(&recipe.argon2, password, &recipe.salt, &mut digest)?;
    Ok(recipe.expects(&digest) & known.is_some())
}

/// The blocks that argon2 works in: taken at the first hash, kept for the life of the thread.
#[derive(Default)]
struct Memory(Vec<Block>);

impl Memory {
    fn compute(&mut self, argon2: &Argon2<'_>, password: &Password, salt: &[u8], digest: &mut [u8]) -> Result<(), HasherError> {
        let needed = argon2.params().block_count();
        let usual = hash::today().params().block_count();
        if self.0.len() < needed {
            // Exactly: doubling would round up to twice the memory.
            self.0.reserve_exact(needed.max(usual) - self.0.len());
            self.0.resize(needed.max(usual), Block::new());
        }
        let done = argon2.hash_password_into_with_memory(password.as_bytes(), salt, digest, &mut self.0);
        // Room taken for a hash made elsewhere, with larger parameters, is given back.
        self.0.truncate(usual);
        self.0.shrink_to(usual);
        done.map_err(|_| HasherError::Failed)
    }
}
