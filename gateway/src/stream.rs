//! The connection under a server's HTTP.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// A connection that, before it ends for being idle, asks the kernel itself whether it is: the runtime knows of a request only
/// when it has looked once more, and a close with one unread resets it.
pub(crate) struct Stream<P> {
    stream: TcpStream,
    phase: watch::Receiver<P>,
}

impl<P> Stream<P> {
    /// `phase`: changes when the server begins to drain, and has not been looked at since it was made.
    pub(crate) fn new(stream: TcpStream, phase: watch::Receiver<P>) -> Self {
        Self { stream, phase }
    }
}

impl<P> AsyncRead for Stream<P> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if polled.is_ready() || matches!(self.phase.has_changed(), Ok(false)) {
            return polled;
        }
        match io::Read::read(&mut &*socket2::SockRef::from(&self.stream), buffer.initialize_unfilled()) {
            Ok(length) => {
                buffer.advance(length);
                Poll::Ready(Ok(()))
            }
            // The runtime was asked a moment ago, and wakes us.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl<P> AsyncWrite for Stream<P> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
