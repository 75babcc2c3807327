//! Sockets between nodes: made, accepted, encrypted.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::stream::{FuturesUnordered, StreamExt};
use ractor_cluster::{BoxRead, BoxWrite};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::sleep,
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
    let addresses = lookup_host(address).await.map_err(ConnectError::Connect)?.collect();
    let stream = connect(addresses).await.map_err(ConnectError::Connect)?;
    tune(&stream, silence_max).map_err(ConnectError::Options)?;
    match tls {
        None => Ok(Socket::Plain(stream)),
        Some(tls) => Ok(Socket::Dialled(Box::new(tls.dial(address, stream).await?))),
    }
}

/// How long one address is waited for before the next one is tried as well (RFC 8305).
const NEXT_AFTER: Duration = Duration::from_millis(250);

/// Connects to whichever of these addresses answers first. One that is black-holed keeps nobody from the next: a name may have
/// an address of each family, and only one of the two may lead anywhere.
async fn connect(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut left = by_turns(addresses).into_iter();
    let mut trying = FuturesUnordered::new();
    let mut refused = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        match left.next() {
            Some(address) => trying.push(TcpStream::connect(address)),
            None if trying.is_empty() => return Err(refused),
            None => {}
        }
        let is_last = left.len() == 0;
        tokio::select! {
            Some(tried) = trying.next() => match tried {
                Ok(stream) => return Ok(stream),
                Err(error) => refused = error,
            },
            () = sleep(NEXT_AFTER), if !is_last => {}
        }
    }
}

/// The families by turns, beginning with that of the first: the resolver puts first what is likelier to lead somewhere.
fn by_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let count = addresses.len();
    let begins_with = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv6() == begins_with);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut turns = Vec::with_capacity(count);
    while turns.len() < count {
        turns.extend(first.next());
        turns.extend(second.next());
    }
    turns
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

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use socket2::{Domain, Socket as Raw, Type};
    use tokio::{net::TcpListener, time::timeout};

    use super::*;

    /// An address where nobody answers a SYN: the queue of its listener is full. Held, with what fills it.
    struct BlackHole {
        address: SocketAddr,
        _listener: Raw,
        _queued: Vec<TcpStream>,
    }

    impl BlackHole {
        async fn dig() -> Self {
            let listener = Raw::new(Domain::IPV4, Type::STREAM, None).unwrap();
            listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
            listener.listen(0).unwrap();
            let address = listener.local_addr().unwrap().as_socket().unwrap();
            let mut queued = Vec::new();
            while let Ok(connected) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
                queued.push(connected.unwrap());
            }
            Self { address, _listener: listener, _queued: queued }
        }
    }

    /// What was broken: the first address took all of the patience, and the second was never tried.
    #[tokio::test]
    async fn a_black_holed_address_keeps_nobody_from_the_next_one() {
        let (hole, deeper) = (BlackHole::dig().await, BlackHole::dig().await);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let there = listener.local_addr().unwrap();
        let dialled = timeout(Duration::from_secs(20), connect(vec![hole.address, deeper.address, there])).await;
        let stream = dialled.expect("the kernel tries for two minutes").unwrap();
        assert_eq!(stream.peer_addr().unwrap(), there);
    }

    #[tokio::test]
    async fn a_refused_address_is_followed_by_the_next_at_once_and_the_last_refusal_is_told() {
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let there = listener.local_addr().unwrap();
        assert_eq!(connect(vec![closed, there]).await.unwrap().peer_addr().unwrap(), there);
        assert_eq!(connect(vec![closed, closed]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(connect(vec![]).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn families_take_turns() {
        let address = |ip: &str| SocketAddr::new(ip.parse::<IpAddr>().unwrap(), 1);
        let [a, b, c, d] = ["::1", "::2", "::3", "127.0.0.1"].map(address);
        assert_eq!(by_turns(vec![a, b, c, d]), [a, d, b, c]);
        assert_eq!(by_turns(vec![d, a, b]), [d, a, b]);
    }
}
