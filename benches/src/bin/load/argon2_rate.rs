//! How many passwords this machine can verify, with nothing around.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use argon2::{Algorithm, Argon2, Block, Params, Version};
use rookery_benches::{histogram::Histogram, process};
use serde::{Deserialize, Serialize};

const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// What the measuring process prints.
#[derive(Deserialize, Serialize)]
pub(crate) struct Rate {
    pub(crate) verified: u64,
    pub(crate) elapsed: Duration,
    pub(crate) cpu: Duration,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

/// Verifies on every core for so many milliseconds and prints the [`Rate`] as JSON.
pub(crate) fn measure(ms: u64) -> anyhow::Result<()> {
    let cores = thread::available_parallelism()?.get();
    let cpu_before = process::cpu(std::process::id());
    let started = Instant::now();
    let end = started + Duration::from_millis(ms);
    let workers: Vec<_> = (0..cores).map(|_| thread::spawn(move || verify_until(end))).collect();
    let mut latency = Histogram::default();
    for worker in workers {
        latency.merge(&worker.join().expect("a hash worker does not panic")?);
    }
    let rate = Rate {
        verified: latency.len(),
        elapsed: started.elapsed(),
        cpu: process::cpu(std::process::id()) - cpu_before,
        p50: latency.quantile(0.5),
        p99: latency.quantile(0.99),
    };
    println!("{}", serde_json::to_string(&rate)?);
    Ok(())
}

/// One worker, with memory of its own that it keeps.
fn verify_until(end: Instant) -> anyhow::Result<Histogram> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None)?;
    let mut memory = vec![Block::default(); params.block_count()];
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let mut hash = move || -> argon2::Result<[u8; 32]> {
        let mut out = [0; 32];
        let (password, salt) = (b"correct horse battery", b"sixteen bytes...");
        argon2.hash_password_into_with_memory(password, salt, &mut out, &mut memory)?;
        Ok(out)
    };
    let expected = hash().context("argon2 refuses its parameters")?;
    let mut latency = Histogram::default();
    while Instant::now() < end {
        let started = Instant::now();
        anyhow::ensure!(hash()? == expected, "argon2 gave two hashes of one password");
        latency.record(started.elapsed());
    }
    Ok(latency)
}
