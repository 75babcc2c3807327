//! Newline-delimited JSON, both ways: one value a line, so that a long answer can be read while it is made.

use std::{convert::Infallible, fmt::Display};

use axum::{body::Body, http::header, response::Response};
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, Stream, StreamExt, stream};
use serde::Serialize;
use tokio::sync::mpsc;

/// The longest line, in bytes: a post of 40,000 characters, four bytes each and escaped, fits.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// Values that wait for a slow reader; then the writer waits.
const QUEUE: usize = 1024;

/// The media type.
pub const CONTENT_TYPE: &str = "application/x-ndjson";

/// Splits a body into its lines.
pub struct Lines<S> {
    body: S,
    buffer: BytesMut,
    /// Up to here the buffer holds no line end.
    searched: usize,
    ended: bool,
}

/// Why no further line can be read.
#[derive(Debug, thiserror::Error)]
pub enum LinesError {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// A line is longer than [`LINE_BYTES_MAX`].
    #[error("a line is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
}

impl<S, E> Lines<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: Display,
{
    /// The lines of a body.
    pub fn new(body: S) -> Self {
        Self { body, buffer: BytesMut::new(), searched: 0, ended: false }
    }

    /// The next line, without its end; none: the body has ended. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// [`LinesError`]; nothing follows.
    pub async fn next(&mut self) -> Result<Option<Bytes>, LinesError> {
        loop {
            if let Some(line) = self.buffered() {
                return Ok(Some(line));
            }
            if self.ended {
                self.searched = 0;
                let rest = self.buffer.split().freeze();
                self.searched = 0;
                return Ok((!rest.is_empty()).then_some(rest));
            }
            let chunk = self.body.next().await;
            self.take(chunk)?;
        }
    }

    /// A few lines: at least one, and of the rest those that are here already.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn some(&mut self, max: usize) -> Result<Vec<Bytes>, LinesError> {
        let mut lines: Vec<Bytes> = self.next().await?.into_iter().collect();
        while !lines.is_empty() && lines.len() < max {
            if let Some(line) = self.buffered() {
                lines.push(line);
                continue;
            }
            if self.ended {
                break;
            }
            match self.body.next().now_or_never() {
                Some(chunk) => self.take(chunk)?,
                None => break,
            }
        }
        Ok(lines)
    }

    fn take(&mut self, chunk: Option<Result<Bytes, E>>) -> Result<(), LinesError> {
        // Only ever asked for more while no line end is in sight.
        if self.buffer.len() > LINE_BYTES_MAX {
            return Err(LinesError::TooLong);
        }
        match chunk {
            Some(Ok(chunk)) => self.buffer.extend_from_slice(&chunk),
            Some(Err(error)) => return Err(LinesError::Broken(error.to_string())),
            None => self.ended = true,
        }
        Ok(())
    }

    fn buffered(&mut self) -> Option<Bytes> {
        let end = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
        match end {
            Some(end) => {
                let mut line = self.buffer.split_to(self.searched + end + 1);
                line.truncate(line.len() - 1);
                self.searched = 0;
                Some(line.freeze())
            }
            None => {
                self.searched = self.buffer.len();
                None
            }
        }
    }
}

/// One value as a line.
pub fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("an answer is plain data");
    line.push(b'\n');
    line
}

/// An answer that is written while it is sent; it ends when the sender is dropped.
pub fn respond<T: Serialize + Send + 'static>() -> (mpsc::Sender<T>, Response) {
    let (values, receiver) = mpsc::channel::<T>(QUEUE);
    let lines = stream::unfold(receiver, |mut receiver| async move {
        let mut values = Vec::new();
        // As many as wait go in one chunk.
        if receiver.recv_many(&mut values, QUEUE).await == 0 {
            return None;
        }
        let chunk: Vec<u8> = values.iter().flat_map(line).collect();
        Some((Ok::<_, Infallible>(Bytes::from(chunk)), receiver))
    });
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(CONTENT_TYPE));
    (values, response)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Chunk = Result<Bytes, Infallible>;

    async fn all(chunks: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let chunks: Vec<Chunk> = chunks.into_iter().map(|chunk| Ok(chunk.into())).collect();
        let mut lines = Lines::new(stream::iter(chunks));
        let mut read = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            read.push(line.to_vec());
        }
        read
    }

    #[tokio::test]
    async fn the_last_line_needs_no_end() {
        assert_eq!(all(vec![b"a\nb".to_vec()]).await, [b"a", b"b"]);
    }

    #[tokio::test]
    async fn some_takes_what_is_there_and_waits_for_the_first_only() {
        let chunks: Vec<Chunk> = vec![Ok("a\nb\nc\nd".into()), Ok("\ne\n".into())];
        let mut lines = Lines::new(stream::iter(chunks));
        assert_eq!(lines.some(3).await.unwrap(), ["a", "b", "c"]);
        assert_eq!(lines.some(3).await.unwrap(), ["d", "e"]);
        assert!(lines.some(3).await.unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn however_a_body_is_cut_its_lines_are_the_same(text in "[ab\n]{0,40}", cuts in prop::collection::vec(0usize..8, 0..20)) {
            let mut rest = text.as_bytes();
            let mut chunks = Vec::new();
            for cut in cuts {
                let (chunk, left) = rest.split_at(cut.min(rest.len()));
                chunks.push(chunk.to_vec());
                rest = left;
            }
            chunks.push(rest.to_vec());
            let mut expected: Vec<Vec<u8>> = text.split('\n').map(|line| line.as_bytes().to_vec()).collect();
            if expected.last().is_some_and(Vec::is_empty) {
                expected.pop();
            }
            let read = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(all(chunks));
            prop_assert_eq!(read, expected);
        }
    }
}
