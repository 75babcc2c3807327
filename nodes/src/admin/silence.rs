//! What to wait for a long answer of a node by: how long that takes, nobody knows, but a node that lives answers a short question.
//!
//! A process that hangs, or is stopped, takes connections all the same, and no answer to anything ever comes.

use std::{error::Error, io, pin::pin, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::time::timeout;

/// As long as a node may say nothing before it is asked whether it lives.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// As long as a node may take for the short question; on a busy machine too.
pub(crate) const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// The node has fallen silent.
#[derive(Debug, thiserror::Error)]
#[error("the node takes connections and does not answer: it hangs, or was stopped")]
pub(crate) struct Silent;

/// Waits for `work` while the node lives, as `is_alive` finds out.
///
/// # Errors
/// [`Silent`], some seconds after the node's last sign of life.
pub(crate) async fn while_alive<T, A>(work: impl Future<Output = T>, is_alive: impl Fn() -> A) -> Result<T, Silent>
where
    A: Future<Output = bool>,
{
    let mut work = pin!(work);
    loop {
        if let Ok(done) = timeout(SILENCE_MAX, work.as_mut()).await {
            return Ok(done);
        }
        tokio::select! {
            done = work.as_mut() => return Ok(done),
            is_alive = is_alive() => if !is_alive { return Err(Silent) },
        }
    }
}

/// The same body, which breaks off when the node that sends it has fallen silent.
pub(crate) fn watched<S, E, A>(body: S, is_alive: impl Fn() -> A + Send + Sync) -> impl Stream<Item = io::Result<Bytes>> + Send
where
    S: Stream<Item = Result<Bytes, E>> + Unpin + Send,
    E: Into<Box<dyn Error + Send + Sync>> + Send,
    A: Future<Output = bool> + Send,
{
    stream::unfold(Some((body, is_alive)), |sending| async move {
        let (mut body, is_alive) = sending?;
        match while_alive(body.next(), &is_alive).await {
            Ok(None) => None,
            Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some((body, is_alive)))),
            Ok(Some(Err(error))) => Some((Err(io::Error::other(error)), None)),
            Err(silent) => Some((Err(io::Error::other(silent)), None)),
        }
    })
}
