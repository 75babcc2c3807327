//! The HTTP server: hyper with the limits that `axum::serve` leaves out.
//!
//! A connection may take only so long for a request's head and may idle only so long, heads and connections are capped,
//! so is how long a client may read nothing, and stopping finishes what is in flight.

use std::convert::Infallible;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rookery_actors::episodes;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tower::Service;

use crate::config::GatewayConfig;
use crate::context::Peer;
use crate::outgoing::READ_WITHIN;
use crate::stream::Stream;

/// Connections that wait in the kernel while we are busy or restarting.
const BACKLOG: u32 = 1024;
/// Headers of one request.
const HEADERS_MAX: usize = 100;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// hyper reads into a buffer of at least this size.
const BUFFER_BYTES_MIN: usize = 8 * 1024;
/// What every HTTP/2 connection begins with.
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long to wait for the rest of a preface that arrived in pieces, between two looks.
const PREFACE_PAUSE: Duration = Duration::from_millis(10);
/// How long a connection that was taken at the last moment may take to ask for something.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_millis(500);
/// How long to wait when the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Limits of a server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Time for a request's head, and idle time between two requests.
    pub header_timeout: Duration,
    /// Size of a request's head, in bytes.
    pub header_limit_bytes: usize,
    /// Open connections.
    pub connections_max: usize,
    /// Time for requests in flight when stopping.
    pub drain_timeout: Duration,
}

impl From<&GatewayConfig> for Limits {
    fn from(config: &GatewayConfig) -> Self {
        Self {
            header_timeout: Duration::from_millis(config.header_timeout_ms),
            header_limit_bytes: config.header_limit_bytes,
            connections_max: config.connections_max,
            drain_timeout: Duration::from_millis(config.drain_timeout_ms),
        }
    }
}

/// Binds a listening socket that can outlive the servers on it.
///
/// # Errors
/// What the system says, for instance that the address is in use.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restarted process must not wait for the old one's connections to leave TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// A bound socket that outlives the servers on it. Copies are the same socket.
#[derive(Debug, Clone)]
pub struct Socket(Arc<Mutex<Option<std::net::TcpListener>>>);

impl Socket {
    /// As [`bind`].
    ///
    /// # Errors
    /// What the system says, for instance that the address is in use.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        bind(address).map(|listener| Self(Arc::new(Mutex::new(Some(listener)))))
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When it was closed.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.with(std::net::TcpListener::local_addr)
    }

    /// For one server.
    ///
    /// # Errors
    /// When it was closed, or no file descriptor is left.
    pub fn listener(&self) -> io::Result<TcpListener> {
        let listener = self.with(std::net::TcpListener::try_clone)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    }

    /// Lets go of it: once the servers on it have been told to stop, whoever connects is refused and goes elsewhere,
    /// instead of waiting in the kernel for a server that does not come.
    pub fn close(&self) {
        self.0.lock().expect("no panic under this lock").take();
    }

    /// Whether nobody listens on it but the servers that do already.
    pub fn is_closed(&self) -> bool {
        self.0.lock().expect("no panic under this lock").is_none()
    }

    fn with<T>(&self, look: impl FnOnce(&std::net::TcpListener) -> io::Result<T>) -> io::Result<T> {
        match &*self.0.lock().expect("no panic under this lock") {
            Some(listener) => look(listener),
            None => Err(io::Error::new(io::ErrorKind::NotConnected, "the socket was closed")),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    Draining,
    Cut,
}

/// What becomes of a socket whose server stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Nobody listens on it any more: who connects is refused.
    Closed,
    /// Another server will: who connects waits for it.
    HandedOn,
}

/// Serves `router` on `listener` until `stop` resolves, then finishes what is in flight.
///
/// Dropping the future stops accepting; connections finish the request they are at.
///
/// # Errors
/// If the listener fails for good.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, stop: impl Future<Output = Ending>) -> io::Result<()> {
    let (phase, watched) = watch::channel(Phase::Serving);
    let permits = Arc::new(Semaphore::new(limits.connections_max));
    let server = Server { router, limits, permits: permits.clone(), phase: watched };
    let ending = tokio::select! {
        result = server.accept(&listener) => return result,
        ending = stop => ending,
    };
    if ending == Ending::Closed
        && let Err(error) = take_no_more(&listener)
    {
        tracing::debug!("a client that connects at this moment may be reset: {error}");
    }
    if let Err(error) = server.accept_pending(listener) {
        tracing::warn!("connections that had just been made are lost: {error}");
    }
    phase.send_replace(Phase::Draining);
    let all = u32::try_from(limits.connections_max).unwrap_or(u32::MAX);
    if tokio::time::timeout(limits.drain_timeout, permits.acquire_many(all)).await.is_err() {
        let open = limits.connections_max - permits.available_permits();
        tracing::warn!(connections = open, "cut off connections that did not finish in time");
        phase.send_replace(Phase::Cut);
    }
    Ok(())
}

struct Server {
    router: Router,
    limits: Limits,
    permits: Arc<Semaphore>,
    phase: watch::Receiver<Phase>,
}

impl Server {
    async fn accept(&self, listener: &TcpListener) -> io::Result<()> {
        loop {
            let permit = self.permits.clone().acquire_owned().await.map_err(io::Error::other)?;
            match listener.accept().await {
                Ok((stream, peer)) => self.spawn(stream, peer, permit),
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) if is_shortage(&error) => {
                    episodes::warn("connections cannot be accepted for the moment", "", &error);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes whom the kernel has connected already, then closes: they believe to have been accepted, and would be reset.
    fn accept_pending(&self, listener: TcpListener) -> io::Result<()> {
        // The kernel itself is asked: tokio knows of a connection only when it has polled once more.
        let listener = listener.into_std()?;
        while let Ok(permit) = self.permits.clone().try_acquire_owned() {
            match listener.accept() {
                Ok((stream, peer)) => {
                    stream.set_nonblocking(true)?;
                    self.spawn(TcpStream::from_std(stream)?, peer, permit);
                }
                Err(error) if is_of_the_connection(&error) => {}
                // None is left, or no file descriptor.
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn spawn(&self, stream: TcpStream, peer: SocketAddr, permit: OwnedSemaphorePermit) {
        let handler = Handler { router: self.router.clone(), peer: Peer(peer.ip()) };
        let (limits, phase) = (self.limits, self.phase.clone());
        tokio::spawn(async move {
            if let Err(error) = connection(stream, handler, limits, phase).await {
                tracing::debug!(client.address = %peer, "closed a connection: {error}");
            }
            drop(permit);
        });
    }
}

/// Makes the kernel ignore who wants to connect, so that nobody gets in between the last look and the close, which
/// resets them. They try again within a second, and are refused then.
#[cfg(target_os = "linux")]
fn take_no_more(listener: &TcpListener) -> io::Result<()> {
    /// `BPF_RET | BPF_K`: keep so many bytes of the packet.
    const RETURN: u16 = 0x06;
    socket2::SockRef::from(listener).attach_filter(&[socket2::SockFilter::new(RETURN, 0, 0, 0)])
}

#[cfg(not(target_os = "linux"))]
fn take_no_more(_: &TcpListener) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The client went away before we took it.
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// EMFILE, ENFILE, ENOBUFS, ENOMEM: passes when other connections close.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(24 | 23 | 105 | 12))
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn connection(
    stream: TcpStream,
    handler: Handler,
    limits: Limits,
    mut phase: watch::Receiver<Phase>,
) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(READ_WITHIN))?;
    let unseen = phase.clone();
    let is_http2 = async || tokio::time::timeout(limits.header_timeout, is_http2(&stream)).await?;
    let is_http2 = tokio::select! {
        found = is_http2() => found?,
        () = drained(&mut phase) => match socket2::SockRef::from(&stream).peek(&mut [MaybeUninit::uninit()]) {
            Ok(1) => is_http2().await?,
            // It has asked for nothing yet, and has had a moment to.
            _ => return Ok(()),
        },
    };
    let io = TokioIo::new(Stream::new(stream, unseen));
    if is_http2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(u32::try_from(limits.header_limit_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(limits.header_timeout)
            .keep_alive_timeout(limits.header_timeout)
            .serve_connection(io, handler);
        finish(connection, |connection| connection.graceful_shutdown(), phase).await
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // A client may say that it will ask for nothing more, and wait for its answer. One that has hung up looks the same, so its
            // request goes on until it is answered or its time is over.
            .half_close(true)
            .header_read_timeout(limits.header_timeout)
            .max_buf_size(limits.header_limit_bytes.max(BUFFER_BYTES_MIN))
            .max_headers(HEADERS_MAX)
            .serve_connection(io, handler);
        finish(connection, |connection| connection.graceful_shutdown(), phase).await
    }
}

/// Ends a moment after the server has begun to drain.
async fn drained(phase: &mut watch::Receiver<Phase>) {
    // An error means that the server is gone.
    let _ = phase.wait_for(|phase| *phase != Phase::Serving).await;
    tokio::time::sleep(FIRST_REQUEST_WITHIN).await;
}

/// Drives a connection to its end; graceful once the server drains, at once when it is cut.
async fn finish<C>(
    connection: C,
    shut_down: impl FnOnce(std::pin::Pin<&mut C>),
    mut phase: watch::Receiver<Phase>,
) -> Result<(), BoxError>
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        biased;
        result = connection.as_mut() => return Ok(result?),
        // An error means that the server is gone: no reason to be less polite.
        _ = phase.wait_for(|phase| *phase != Phase::Serving) => {}
    }
    // What has been asked by now is answered, and only who has asked nothing is idle.
    if let Poll::Ready(result) = futures_util::poll!(connection.as_mut()) {
        return Ok(result?);
    }
    shut_down(connection.as_mut());
    let cut = async {
        if phase.wait_for(|phase| *phase == Phase::Cut).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        result = connection => Ok(result?),
        () = cut => Ok(()),
    }
}

/// Looks at the first bytes without taking them. hyper-util's own detection has no time limit.
async fn is_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut start = [0; HTTP2_PREFACE.len()];
    loop {
        let length = stream.peek(&mut start).await?;
        if length == HTTP2_PREFACE.len() || length == 0 || !HTTP2_PREFACE.starts_with(&start[..length]) {
            return Ok(start == *HTTP2_PREFACE);
        }
        tokio::time::sleep(PREFACE_PAUSE).await;
    }
}

/// Hands a request of one connection to the router.
#[derive(Clone)]
struct Handler {
    router: Router,
    peer: Peer,
}

impl hyper::service::Service<Request<Incoming>> for Handler {
    type Response = axum::response::Response;
    type Error = Infallible;
    type Future = axum::routing::future::RouteFuture<Infallible>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.peer);
        // A router is always ready.
        self.router.clone().call(request)
    }
}
