//! Sockets between nodes: made, accepted, encrypted.

use std::{io, net::SocketAddr, time::Duration};

use ractor_cluster::{BoxRead, BoxWrite};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{client, server};

use super::tls::{Tls, TlsError};

/// A connected socket.
pub(super) enum Socket {
    Plain(TcpStream),
    Dialled(Box<client::TlsStream<TcpStream>>),
    Accepted(Box<server::TlsStream<TcpStream>>),
}

/// Why a connection did not come about.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("cannot set up the connection")]
    Options(#[source] io::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Connects to `address`, a host and a port; the name is resolved anew each time.
///
/// `silence_max`: how long what was sent may stay unacknowledged by the other kernel.
pub(super) async fn dial(address: &str, tls: Option<&Tls>, silence_max: Duration) -> Result<Socket, ConnectError> {
    let stream = TcpStream::connect(address).await.map_err(ConnectError::Connect)?;
    tune(&stream, silence_max).map_err(ConnectError::Options)?;
    match tls {
        None => Ok(Socket::Plain(stream)),
        Some(tls) => Ok(Socket::Dialled(Box::new(tls.dial(address, stream).await?))),
    }
}

/// Makes a socket of ours out of one that was accepted.
pub(super) async fn accepted(stream: TcpStream, tls: Option<&Tls>, silence_max: Duration) -> Result<Socket, ConnectError> {
    tune(&stream, silence_max).map_err(ConnectError::Options)?;
    match tls {
        None => Ok(Socket::Plain(stream)),
        Some(tls) => Ok(Socket::Accepted(Box::new(tls.accept(stream).await?))),
    }
}

/// Batches are gathered above: the kernel must not gather again. And it should notice a black hole by itself.
fn tune(stream: &TcpStream, silence_max: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_user_timeout(Some(silence_max))
}

impl Socket {
    /// For the greeting.
    pub(super) fn stream(&mut self) -> &mut (dyn Stream + '_) {
        match self {
            Self::Plain(stream) => stream,
            Self::Dialled(stream) => &mut **stream,
            Self::Accepted(stream) => &mut **stream,
        }
    }

    pub(super) fn peer(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Plain(stream) => stream.peer_addr(),
            Self::Dialled(stream) => stream.get_ref().0.peer_addr(),
            Self::Accepted(stream) => stream.get_ref().0.peer_addr(),
        }
    }

    pub(super) fn split(self) -> (BoxRead, BoxWrite) {
        fn boxed<S: Stream + 'static>(stream: S) -> (BoxRead, BoxWrite) {
            let (read, write) = tokio::io::split(stream);
            (Box::new(read), Box::new(write))
        }
        match self {
            // Its halves share no lock.
            Self::Plain(stream) => {
                let (read, write) = stream.into_split();
                (Box::new(read), Box::new(write))
            }
            Self::Dialled(stream) => boxed(stream),
            Self::Accepted(stream) => boxed(stream),
        }
    }
}

/// What a greeting needs.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}
