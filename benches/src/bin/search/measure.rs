//! Asks the questions of a kind, each once.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use rookery_benches::{histogram::Histogram, search::ask::Ask};
use serde::{Deserialize, Serialize};

use crate::subjects::Searches;

/// What the questions of a kind cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// How many were asked.
    pub queries: usize,
    /// CPU time of a question, the mean, in microseconds.
    pub cpu_us: f64,
    /// Half of the answers came within this time, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 did.
    pub p99_us: f64,
    /// Documents that match, the mean.
    pub hits: f64,
    /// Bytes of an answer, the mean.
    pub bytes: f64,
}

/// Asks each of the questions once, after all of them were prepared.
pub(crate) fn measure<S: Searches>(subject: &mut S, asks: &[Ask]) -> anyhow::Result<Figures> {
    let prepared = asks.iter().map(|ask| subject.prepare(ask)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut times = Histogram::default();
    let (mut hits, mut bytes) = (0, 0);
    let before = subject.cpu();
    for question in &prepared {
        let began = Instant::now();
        let (json, total) = black_box(subject.search(question)?);
        times.record(began.elapsed());
        hits += total;
        bytes += json.len();
    }
    let cpu = subject.cpu() - before;
    // A tenth of a microsecond is more than any of this means.
    let tenths = |figure: f64| (figure * 10.0).round() / 10.0;
    let each = |sum: f64| tenths(sum / asks.len().max(1) as f64);
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    Ok(Figures {
        queries: asks.len(),
        cpu_us: each(us(cpu)),
        p50_us: tenths(us(times.quantile(0.5))),
        p99_us: tenths(us(times.quantile(0.99))),
        hits: each(hits as f64),
        bytes: each(bytes as f64),
    })
}
