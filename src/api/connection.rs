//! Accepted connections: how many there may be, how long they may take to say something, and how old one may become.
//!
//! tonic asks a connection at its age to finish (GOAWAY), but then waits for its streams without end; with a grace time
//! it never asks and only cuts. So the asking is tonic's, and the cut is made here.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::auth::CertificateName;
use super::tls::{Tls, names_of};

/// When a connection is asked to finish, so that callers spread anew over replicas.
pub(super) const AGE_MAX: Duration = Duration::from_secs(30 * 60);
/// How long after that it is cut, whatever is still open on it.
const AGE_GRACE: Duration = Duration::from_secs(60);
/// Connections at once; beyond it they wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 8_192;
/// How long accepting pauses where the process has run out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a TLS handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// TLS handshakes at once, and of one address: one that opens connections and says nothing hinders itself alone.
const HANDSHAKES_MAX: usize = 1_024;
const HANDSHAKES_PER_ADDRESS_MAX: usize = 128;
/// How long a connection may take to say what it wants: its first bytes, and with HTTP/2 those are the preface. No
/// request of HTTP/1.1 is shorter.
const PREFACE_MAX: Duration = Duration::from_secs(10);
const PREFACE_BYTES: usize = 24;

/// A caller's connection, which ends itself at its age.
pub(super) struct Connection {
    stream: Transport,
    info: ConnectionInfo,
    /// What has been read of the preface.
    said: usize,
    cut: Pin<Box<Sleep>>,
    _place: Place,
}

enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What a call may know of its connection.
#[derive(Debug, Clone)]
pub(super) struct ConnectionInfo {
    /// When it is asked to finish: streams end themselves by then.
    pub(super) finish_at: Instant,
    /// Of the client's certificate, where there is one.
    pub(super) names: Arc<[CertificateName]>,
}

/// Room for one connection, in this process and of its address.
struct Place {
    _any: OwnedSemaphorePermit,
    address: IpAddr,
    /// Room for the address's handshakes.
    handshakes: Arc<Semaphore>,
    addresses: Arc<Addresses>,
}

/// What there is of each address that has a connection.
#[derive(Default)]
struct Addresses(Mutex<HashMap<IpAddr, Neighbours>>);

struct Neighbours {
    connections: u32,
    handshakes: Arc<Semaphore>,
}

/// Connections as they come, ready to speak HTTP, until `shutdown`.
pub(super) fn incoming(
    listener: TcpListener,
    tls: Option<Tls>,
    per_address_max: u32,
    shutdown: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> {
    // What is ready waits for tonic to take it up, which it does at once.
    let (ready, taken) = mpsc::channel(64);
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = accept(listener, tls, per_address_max, ready) => {}
        }
    });
    ReceiverStream::new(taken)
}

async fn accept(
    listener: TcpListener,
    tls: Option<Tls>,
    per_address_max: u32,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let addresses = Arc::new(Addresses::default());
    loop {
        // It is never closed.
        let Ok(any) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, address) = match listener.accept().await {
            Ok((stream, address)) => (stream, address.ip().to_canonical()),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = addresses.enter(address, per_address_max, any) else {
            tracing::debug!(%address, "a connection was refused: its address has as many as it may");
            continue;
        };
        if stream.set_nodelay(true).is_err() {
            // It is closed already.
            continue;
        }
        match &tls {
            None => {
                if ready.send(Ok(Connection::new(Transport::Plain(stream), place))).await.is_err() {
                    return;
                }
            }
            Some(tls) => {
                tokio::spawn(shake_hands(tls.clone(), stream, place, Arc::clone(&handshakes), ready.clone()));
            }
        }
    }
}

/// In a task of its own: one that never ends hinders nobody.
async fn shake_hands(
    tls: Tls,
    stream: TcpStream,
    place: Place,
    handshakes: Arc<Semaphore>,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let address = place.address;
    let of_address = Arc::clone(&place.handshakes);
    let room = timeout(PREFACE_MAX, async { (of_address.acquire().await, handshakes.acquire().await) });
    let Ok(room) = room.await else { return };
    match timeout(HANDSHAKE_MAX, TlsAcceptor::from(tls.current()).accept(stream)).await {
        Ok(Ok(stream)) => {
            drop(room);
            // Whoever receives is gone when the process drains.
            let _ = ready.send(Ok(Connection::new(Transport::Tls(Box::new(stream)), place))).await;
        }
        Ok(Err(error)) => tracing::debug!(%address, %error, "a TLS handshake failed"),
        Err(_) => tracing::debug!(%address, "a TLS handshake took too long"),
    }
}

impl Addresses {
    fn enter(self: &Arc<Self>, address: IpAddr, max: u32, any: OwnedSemaphorePermit) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let neighbours = counts.entry(address).or_insert_with(|| Neighbours {
            connections: 0,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_PER_ADDRESS_MAX)),
        });
        if neighbours.connections >= max {
            return None;
        }
        neighbours.connections += 1;
        let handshakes = Arc::clone(&neighbours.handshakes);
        Some(Place { _any: any, address, handshakes, addresses: Arc::clone(self) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.addresses.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(neighbours) = counts.get_mut(&self.address) {
            neighbours.connections -= 1;
            if neighbours.connections == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

impl Connection {
    fn new(stream: Transport, place: Place) -> Self {
        let since = Instant::now();
        let names = match &stream {
            Transport::Plain(_) => Vec::new(),
            Transport::Tls(stream) => {
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                chain.first().map(names_of).unwrap_or_default()
            }
        };
        Self {
            stream,
            info: ConnectionInfo { finish_at: since + AGE_MAX, names: names.into() },
            said: 0,
            cut: Box::pin(sleep_until(since + PREFACE_MAX)),
            _place: place,
        }
    }

    /// Counts what came until it is clear what is wanted.
    fn heard(&mut self, bytes: usize) {
        if self.said < PREFACE_BYTES {
            self.said += bytes;
            if self.said >= PREFACE_BYTES {
                self.cut.as_mut().reset(self.info.finish_at + AGE_GRACE);
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match self.stream.reading().poll_read(cx, buf) {
            // Only a connection that is waiting looks at the clock.
            Poll::Pending if self.cut.as_mut().poll(cx).is_ready() => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the connection has reached its age")))
            }
            Poll::Ready(Ok(())) => {
                self.heard(buf.filled().len() - before);
                Poll::Ready(Ok(()))
            }
            other => other,
        }
    }
}

impl Transport {
    fn reading(&mut self) -> Pin<&mut (dyn AsyncRead + Send + Unpin)> {
        match self {
            Self::Plain(stream) => Pin::new(stream as &mut (dyn AsyncRead + Send + Unpin)),
            Self::Tls(stream) => Pin::new(stream as &mut (dyn AsyncRead + Send + Unpin)),
        }
    }

    fn writing(&mut self) -> Pin<&mut (dyn AsyncWrite + Send + Unpin)> {
        match self {
            Self::Plain(stream) => Pin::new(stream as &mut (dyn AsyncWrite + Send + Unpin)),
            Self::Tls(stream) => Pin::new(stream as &mut (dyn AsyncWrite + Send + Unpin)),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.writing().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.writing().poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Transport::Plain(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.writing().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.writing().poll_shutdown(cx)
    }
}
