//! Large responses on their way out: together they hold so many bytes, and whoever does not read loses theirs.
//!
//! A request's place is free again when its response begins, and then the response waits in memory for as long as its
//! reader likes. TCP's own timeout ends a connection that takes nothing; it does not know of one HTTP/2 stream among others.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

/// A smaller response is not worth the account: what the kernel buffers for a connection is more.
const LARGE_BYTES: u64 = 64 * 1024;
/// What is handed on at once; the rest can still be taken back.
const PIECE_BYTES: usize = 64 * 1024;
/// All large responses together, in bytes.
const TOTAL_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How long a reader may take for the next piece, and for what TCP has in flight.
pub(crate) const READ_WITHIN: Duration = Duration::from_secs(30);

/// The large responses of a gateway.
#[derive(Default)]
pub(crate) struct Outgoing {
    total_bytes: AtomicU64,
    bodies: Mutex<Vec<Weak<Held>>>,
}

impl Outgoing {
    /// The body as it may leave; nothing if there are too many bytes on their way already.
    pub(crate) fn admit(self: &Arc<Self>, body: Body) -> Option<Body> {
        let Some(bytes) = body.size_hint().exact().filter(|bytes| *bytes > LARGE_BYTES) else {
            return Some(body);
        };
        // Before the comparison, or two could find the last room at once.
        let held = Arc::new(Held { bytes, outgoing: self.clone(), rest: Mutex::new(Rest::new(body)) });
        if self.total_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > TOTAL_BYTES_MAX {
            return None;
        }
        self.bodies().push(Arc::downgrade(&held));
        Some(Body::new(Leaving { held, left_bytes: bytes }))
    }

    /// Drops what nobody has read for so long. To be called every second or so.
    pub(crate) fn sweep(&self, now: Instant) {
        self.bodies().retain(|body| body.upgrade().is_some_and(|held| held.is_read(now)));
    }

    fn bodies(&self) -> MutexGuard<'_, Vec<Weak<Held>>> {
        self.bodies.lock().expect("no panic under this lock")
    }
}

/// A response that counts until it is sent, or given up.
struct Held {
    bytes: u64,
    outgoing: Arc<Outgoing>,
    rest: Mutex<Rest>,
}

struct Rest {
    body: Option<Body>,
    piece: Bytes,
    moved: Instant,
}

impl Rest {
    fn new(body: Body) -> Self {
        Self { body: Some(body), piece: Bytes::new(), moved: Instant::now() }
    }
}

impl Held {
    fn rest(&self) -> MutexGuard<'_, Rest> {
        self.rest.lock().expect("no panic under this lock")
    }

    /// Whether its reader keeps up; if not, it is let go.
    fn is_read(&self, now: Instant) -> bool {
        let mut rest = self.rest();
        if now.saturating_duration_since(rest.moved) < READ_WITHIN {
            return true;
        }
        (rest.body, rest.piece) = (None, Bytes::new());
        self.outgoing.total_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        false
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Otherwise it has been given back.
        if self.rest.get_mut().is_ok_and(|rest| rest.body.is_some()) {
            self.outgoing.total_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// A large response as its connection sees it.
struct Leaving {
    held: Arc<Held>,
    left_bytes: u64,
}

impl HttpBody for Leaving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let held = self.held.clone();
        let mut rest = held.rest();
        let Rest { body, piece, moved } = &mut *rest;
        let Some(body) = body else {
            return Poll::Ready(Some(Err(axum::Error::new("the client does not read"))));
        };
        *moved = Instant::now();
        if piece.is_empty() {
            match ready!(Pin::new(body).poll_frame(cx)?) {
                None => return Poll::Ready(None),
                Some(frame) => match frame.into_data() {
                    Ok(data) => *piece = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
            }
        }
        let data = piece.split_to(piece.len().min(PIECE_BYTES));
        self.left_bytes = self.left_bytes.saturating_sub(data.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left_bytes)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    const MB: usize = 1024 * 1024;

    fn body(bytes: usize) -> Body {
        Body::from(vec![7; bytes])
    }

    fn total(outgoing: &Outgoing) -> u64 {
        outgoing.total_bytes.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn a_large_response_arrives_whole_and_in_pieces_and_counts_until_then() {
        let outgoing = Arc::new(Outgoing::default());
        let mut leaving = outgoing.admit(body(MB)).unwrap();
        assert_eq!((leaving.size_hint().exact(), total(&outgoing)), (Some(MB as u64), MB as u64));
        let first = leaving.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first.len(), PIECE_BYTES);
        assert_eq!(leaving.collect().await.unwrap().to_bytes().len(), MB - PIECE_BYTES);
        assert_eq!(total(&outgoing), 0);
    }

    #[test]
    fn small_ones_are_not_counted() {
        let outgoing = Arc::new(Outgoing::default());
        let _kept = outgoing.admit(body(1024)).unwrap();
        assert_eq!(total(&outgoing), 0);
    }

    #[test]
    fn no_more_than_so_many_bytes_are_on_their_way() {
        let outgoing = Arc::new(Outgoing::default());
        let kept: Vec<_> = std::iter::from_fn(|| outgoing.admit(body(32 * MB))).collect();
        assert_eq!(kept.len(), 8);
        assert_eq!(total(&outgoing), TOTAL_BYTES_MAX, "the refused one does not count");
        drop(kept);
        assert!(outgoing.admit(body(32 * MB)).is_some());
    }

    #[tokio::test]
    async fn what_nobody_reads_is_let_go() {
        let outgoing = Arc::new(Outgoing::default());
        let mut unread = outgoing.admit(body(MB)).unwrap();
        unread.frame().await.unwrap().unwrap();
        outgoing.sweep(Instant::now() + READ_WITHIN / 2);
        assert_eq!(total(&outgoing), MB as u64);
        outgoing.sweep(Instant::now() + READ_WITHIN);
        assert_eq!(total(&outgoing), 0);
        assert!(unread.frame().await.unwrap().is_err());
        drop(unread);
        assert_eq!(total(&outgoing), 0, "not given back twice");
    }
}
