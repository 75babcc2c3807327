//! The stream of a link on its way into ractor_cluster: buffered, and cut from outside.
//!
//! ractor_cluster reads a socket in pieces of 8 KiB, and a session that is stopped leaves its writer behind if that
//! waits for a peer that does not read. So it gets halves that read ahead and end when we say so.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use ractor_cluster::{BoxRead, BoxWrite, ClusterBidiStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader, ReadBuf},
    sync::OwnedSemaphorePermit,
};

use super::socket::Socket;

/// What is read ahead, in bytes: a batch of small envelopes, and a chunk in a few reads.
const READ_AHEAD: usize = 64 << 10;

/// Ends a wire.
#[derive(Clone, Default)]
pub(super) struct Cut(Arc<Scissors>);

#[derive(Default)]
struct Scissors {
    cut: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Cut {
    /// Ends both halves now: the reader sees the end of the stream, the writer an error.
    pub(super) fn now(&self) {
        self.0.cut.store(true, Ordering::SeqCst);
        self.0.reader.wake();
        self.0.writer.wake();
    }

    /// Whether it is cut; if not, the task is woken when it is.
    fn poll(&self, waker: &AtomicWaker, context: &Context<'_>) -> bool {
        waker.register(context.waker());
        self.0.cut.load(Ordering::SeqCst)
    }
}

/// A connected stream with the label by which its session is recognised.
pub(super) struct Wire {
    socket: Socket,
    label: String,
    cut: Cut,
    /// Its place among the connections that are allowed.
    permit: Option<OwnedSemaphorePermit>,
}

impl Wire {
    pub(super) fn new(socket: Socket, label: String, cut: Cut, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { socket, label, cut, permit }
    }
}

impl ClusterBidiStream for Wire {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        let Self { socket, cut, permit, .. } = *self;
        let (read, write) = socket.split();
        let reader = Half { half: BufReader::with_capacity(READ_AHEAD, read), cut: cut.clone(), _permit: permit };
        let writer = Half { half: write, cut, _permit: None };
        (Box::new(reader), Box::new(writer))
    }

    fn peer_label(&self) -> Option<String> {
        Some(self.label.clone())
    }
}

struct Half<H> {
    half: H,
    cut: Cut,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Half<R> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cut.poll(&self.cut.0.reader, context) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.half).poll_read(context, buffer)
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Half<W> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.cut.poll(&self.cut.0.writer, context) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.half).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.cut.poll(&self.cut.0.writer, context) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.half).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.half).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    async fn wire() -> (BoxRead, BoxWrite, Cut, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let cut = Cut::default();
        let wire = Wire::new(Socket::Plain(near), "label".into(), cut.clone(), None);
        let (read, write) = Box::new(wire).split();
        (read, write, cut, far)
    }

    #[tokio::test]
    async fn a_wire_carries_both_ways() {
        let (mut read, mut write, _cut, mut far) = wire().await;
        write.write_all(b"ping").await.unwrap();
        let mut four = [0; 4];
        far.read_exact(&mut four).await.unwrap();
        far.write_all(b"pong").await.unwrap();
        read.read_exact(&mut four).await.unwrap();
        assert_eq!(&four, b"pong");
    }

    #[tokio::test]
    async fn a_cut_wakes_a_reader_and_a_writer_that_wait() {
        let (mut read, mut write, cut, _far) = wire().await;
        let reading = tokio::spawn(async move { read.read_u8().await });
        // Nobody reads at the other end, so at some time this waits.
        let writing = tokio::spawn(async move {
            loop {
                if let Err(error) = write.write_all(&[0; 65_536]).await {
                    return error.kind();
                }
            }
        });
        cut.now();
        assert_eq!(reading.await.unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(writing.await.unwrap(), io::ErrorKind::BrokenPipe);
    }
}
