//! Accepted connections: how many there may be, how long they may take to say something, and when they
//! are to finish.
//!
//! A listener that closes resets whatever the kernel holds for it, and hyper drops a connection that has yet to say what
//! it wants. Their callers could not tell whether a call was made. So a shutdown first lets in all that have come, and
//! they are asked to finish once each has been heard.
//!
//! The file is long because what a connection is counted by follows it from its first byte to its last.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::auth::CertificateName;
use super::tls::{Tls, names_of};

/// When a connection is asked to finish, so that callers spread anew over replicas.
pub(super) const AGE_MAX: Duration = Duration::from_secs(30 * 60);
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
/// How long a shutdown waits for connections to say what they want.
const HEARING_MAX: Duration = Duration::from_secs(1);

/// A caller's connection, which ends itself if it says nothing.
pub(super) struct Connection {
    stream: Transport,
    info: ConnectionInfo,
    /// What has been read of the preface.
    said: usize,
    /// Until that is clear.
    unheard: Option<Unheard>,
    /// Whether what is to be written has waited its turn.
    has_waited: bool,
    _place: Place,
}

enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// That a connection has yet to say what it wants, and until when it may.
struct Unheard {
    limit: Pin<Box<Sleep>>,
    _token: TaskTrackerToken,
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

/// Connections as they come, ready to speak HTTP. After `shutdown` none is accepted but those that the kernel has taken
/// in by then, and the end is when each has been heard, or had time to be.
pub(super) fn incoming(
    listener: TcpListener,
    tls: Option<Tls>,
    per_address_max: u32,
    shutdown: CancellationToken,
) -> impl Stream<Item = Connection> {
    // What is ready waits to be taken up, which is done at once.
    let (ready, taken) = mpsc::channel(64);
    let over = CancellationToken::new();
    let end = over.clone().drop_guard();
    let entrance = Entrance {
        tls,
        per_address_max,
        places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
        addresses: Arc::default(),
        unheard: TaskTracker::new(),
        ready,
    };
    tokio::spawn(async move {
        let _end = end;
        entrance.accept(&listener, &shutdown).await;
        entrance.accept_last(listener).await;
        entrance.unheard.close();
        if timeout(HEARING_MAX, entrance.unheard.wait()).await.is_err() {
            tracing::debug!("some connections have yet to say what they want; they are closed");
        }
    });
    ReceiverStream::new(taken).take_until(over.cancelled_owned())
}

/// Where connections come in.
struct Entrance {
    tls: Option<Tls>,
    per_address_max: u32,
    places: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    addresses: Arc<Addresses>,
    /// Holds a token of each connection that has not said what it wants.
    unheard: TaskTracker,
    ready: mpsc::Sender<Connection>,
}

impl Entrance {
    async fn accept(&self, listener: &TcpListener, shutdown: &CancellationToken) {
        let next = async || {
            // It is never closed.
            let any = Arc::clone(&self.places).acquire_owned().await.ok()?;
            Some((listener.accept().await, any))
        };
        while !self.ready.is_closed()
            && let Some(Some((accepted, any))) = shutdown.run_until_cancelled(next()).await
        {
            match accepted {
                Ok((stream, address)) => self.let_in(stream, address, any).await,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Lets in what the kernel has taken in, as far as there is room, and closes the listener at once after the last.
    async fn accept_last(&self, listener: TcpListener) {
        // The runtime might not know of the newest yet; the kernel does.
        let Ok(listener) = listener.into_std() else { return };
        let mut last = Vec::new();
        while let Ok(any) = Arc::clone(&self.places).try_acquire_owned()
            && let Ok((stream, address)) = listener.accept()
        {
            last.push((stream, address, any));
        }
        drop(listener);
        for (stream, address, any) in last {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            if let Ok(stream) = stream {
                self.let_in(stream, address, any).await;
            }
        }
    }

    async fn let_in(&self, stream: TcpStream, address: SocketAddr, any: OwnedSemaphorePermit) {
        let address = address.ip().to_canonical();
        let Some(place) = self.addresses.enter(address, self.per_address_max, any) else {
            tracing::debug!(%address, "a connection was refused: its address has as many as it may");
            return;
        };
        if stream.set_nodelay(true).is_err() {
            // It is closed already.
            return;
        }
        let unheard = self.unheard.token();
        match &self.tls {
            None => {
                let connection = Connection::new(Transport::Plain(stream), place, unheard);
                // Whoever receives is gone where serving has failed.
                let _ = self.ready.send(connection).await;
            }
            Some(tls) => {
                let handshake = Handshake {
                    tls: tls.clone(),
                    stream,
                    place,
                    unheard,
                    handshakes: Arc::clone(&self.handshakes),
                    ready: self.ready.clone(),
                };
                tokio::spawn(handshake.run());
            }
        }
    }
}

/// One TLS handshake, in a task of its own: one that never ends hinders nobody.
struct Handshake {
    tls: Tls,
    stream: TcpStream,
    place: Place,
    unheard: TaskTrackerToken,
    handshakes: Arc<Semaphore>,
    ready: mpsc::Sender<Connection>,
}

impl Handshake {
    async fn run(self) {
        let Self { tls, stream, place, unheard, handshakes, ready } = self;
        let address = place.address;
        let of_address = Arc::clone(&place.handshakes);
        let room = timeout(PREFACE_MAX, async { (of_address.acquire().await, handshakes.acquire().await) });
        let Ok(room) = room.await else { return };
        match timeout(HANDSHAKE_MAX, TlsAcceptor::from(tls.current()).accept(stream)).await {
            Ok(Ok(stream)) => {
                drop(room);
                let connection = Connection::new(Transport::Tls(Box::new(stream)), place, unheard);
                // Whoever receives is gone when the process drains.
                let _ = ready.send(connection).await;
            }
            Ok(Err(error)) => tracing::debug!(%address, %error, "a TLS handshake failed"),
            Err(_) => tracing::debug!(%address, "a TLS handshake took too long"),
        }
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
    fn new(stream: Transport, place: Place, unheard: TaskTrackerToken) -> Self {
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
            unheard: Some(Unheard { limit: Box::pin(sleep_until(since + PREFACE_MAX)), _token: unheard }),
            has_waited: false,
            _place: place,
        }
    }

    pub(super) fn info(&self) -> ConnectionInfo {
        self.info.clone()
    }

    /// Whether it has had time enough to say what it wants.
    fn is_too_late(&mut self, cx: &mut Context<'_>) -> bool {
        self.unheard.as_mut().is_some_and(|unheard| unheard.limit.as_mut().poll(cx).is_ready())
    }

    /// Counts what came until it is clear what is wanted.
    fn heard(&mut self, bytes: usize) {
        if self.said < PREFACE_BYTES {
            self.said += bytes;
            if self.said >= PREFACE_BYTES {
                self.unheard = None;
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match self.stream.reading().poll_read(cx, buf) {
            Poll::Pending if self.is_too_late(cx) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the caller has not said what it wants")))
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

impl Connection {
    /// Writes, but not at once: whatever else is ready to run goes first, and adds its answer. A commit answers its callers
    /// together, each by a task of its own, and without this each of those would have its answer written alone.
    fn poll_write_together(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut (dyn AsyncWrite + Send + Unpin)>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if !std::mem::replace(&mut self.has_waited, true) {
            // A task that wakes itself goes behind all that are woken by now.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let written = ready!(write(self.stream.writing(), cx));
        self.has_waited = false;
        Poll::Ready(written)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_together(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_together(cx, |stream, cx| stream.poll_write_vectored(cx, slices))
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const PREFACE: &[u8; PREFACE_BYTES] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        (listener, address)
    }

    #[tokio::test]
    async fn a_shutdown_lets_in_all_that_have_come_and_hears_them() {
        const COUNT: usize = 100;
        let (listener, address) = listener().await;
        let mut callers = Vec::new();
        for _ in 0..COUNT {
            callers.push(TcpStream::connect(address).await.expect("the kernel takes it in"));
        }
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let mut incoming = std::pin::pin!(incoming(listener, None, 1_000, shutdown));
        let mut connections = Vec::new();
        for _ in 0..COUNT {
            connections.push(incoming.next().await.expect("all are let in"));
        }
        assert!(TcpStream::connect(address).await.is_err(), "the listener is closed");
        for (caller, connection) in callers.iter_mut().zip(&mut connections) {
            let early = timeout(Duration::ZERO, incoming.next()).await;
            assert!(early.is_err(), "some have yet to be heard");
            caller.write_all(PREFACE).await.expect("written");
            connection.read_exact(&mut [0; PREFACE_BYTES]).await.expect("heard");
        }
        assert!(incoming.next().await.is_none());
    }

    /// A certificate of our own, and how a handshake with whoever shows it begins.
    fn tls() -> (Tls, Vec<u8>) {
        let provider = || Arc::new(rustls::crypto::ring::default_provider());
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let server = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a certificate");
        let client = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = "localhost".try_into().expect("a name");
        let mut client = rustls::ClientConnection::new(Arc::new(client), name).expect("a connection");
        let mut hello = Vec::new();
        client.write_tls(&mut hello).expect("written");
        (Tls::of(server), hello)
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_that_stops_anywhere_is_ended_at_its_limit() {
        let (tls, hello) = tls();
        let (listener, address) = listener().await;
        let _incoming = incoming(listener, Some(tls), 1_000, CancellationToken::new());
        for said in [&[][..], &hello[..1], &hello[..hello.len() / 2], &hello] {
            let since = Instant::now();
            let mut caller = TcpStream::connect(address).await.expect("the kernel takes it in");
            caller.write_all(said).await.expect("sent");
            let mut rest = Vec::new();
            let _ = caller.read_to_end(&mut rest).await;
            assert_eq!(since.elapsed().as_secs(), HANDSHAKE_MAX.as_secs(), "after {} bytes", said.len());
            assert_eq!(rest.is_empty(), said.len() < hello.len(), "it greets who has greeted");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_does_not_wait_for_those_that_say_nothing() {
        let (listener, address) = listener().await;
        let _caller = TcpStream::connect(address).await.expect("the kernel takes it in");
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let mut incoming = std::pin::pin!(incoming(listener, None, 1_000, shutdown));
        let since = Instant::now();
        let _connection = incoming.next().await.expect("it is let in");
        assert!(incoming.next().await.is_none());
        assert_eq!(since.elapsed(), HEARING_MAX);
    }

    #[tokio::test]
    async fn answers_of_one_moment_are_written_together() {
        let (listener, address) = listener().await;
        let mut caller = TcpStream::connect(address).await.expect("connected");
        let mut incoming = std::pin::pin!(incoming(listener, None, 1_000, CancellationToken::new()));
        let connection = incoming.next().await.expect("one");
        let (connection, answers) = (Mutex::new(connection), Mutex::new(Vec::new()));
        let mut writes = Vec::new();
        // As a server does: whoever has an answer adds it, and what there is by then is written.
        let write = std::future::poll_fn(|cx| {
            let mut connection = connection.lock().expect("alone");
            let mut bytes = answers.lock().expect("alone");
            while !bytes.is_empty() {
                let written = ready!(Pin::new(&mut *connection).poll_write(cx, &bytes)).expect("written");
                writes.push(written);
                bytes.drain(..written);
            }
            Poll::Ready(())
        });
        let answer = |answer: u8| {
            let answers = &answers;
            async move { answers.lock().expect("alone").push(answer) }
        };
        answer(1).await;
        tokio::join!(biased; write, answer(2), answer(3));
        assert_eq!(writes, [3]);
        let mut read = [0; 3];
        caller.read_exact(&mut read).await.expect("read");
        assert_eq!(read, [1, 2, 3]);
    }
}
