//! The receiver itself: an HTTP/1.1 server that hands on what it got and answers as it was told.
//!
//! Every request passes the same way: read, judge, decide, hand on, wait, answer. It is handed on before its answer
//! leaves, so that a test can act while the sender still waits.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, request};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::behaviour::Seen;
use super::verdict::judge;
use super::{Behaviour, Verdict};
use crate::domain::endpoint::SignatureScheme;
use crate::domain::verification::Verifier;

/// The largest body that is read; a larger one is answered 413.
pub const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How many requests may wait for [`Receiver::next`] unless the options say otherwise.
pub const BACKLOG_DEFAULT: usize = 10_000;
/// How many connections are served at once; further ones wait in the listener's queue.
const CONNECTIONS_MAX: usize = 4_096;
/// How long [`Receiver::stop`] waits for answers to leave, beyond their delay.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// How a receiver starts.
#[derive(Debug, Clone)]
pub struct ReceiverOptions {
    /// Where to listen; port 0 picks a free one.
    pub addr: SocketAddr,
    /// What verifies signatures; with none, they are not checked.
    pub secrets: Vec<Verifier>,
    /// How requests are signed; `None` goes by the headers that are there.
    pub scheme: Option<SignatureScheme>,
    /// How requests are answered.
    pub behaviour: Behaviour,
    /// How many requests are taken; later ones find their connection closed. `None` is no limit.
    pub limit: Option<u64>,
    /// How many requests may wait for [`Receiver::next`]: when full, the next one is answered only once there is room.
    /// 0 hands none on and only counts.
    pub backlog: usize,
}

impl Default for ReceiverOptions {
    /// A free port on loopback, no secrets, 200 to everything.
    fn default() -> Self {
        Self {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            secrets: Vec::new(),
            scheme: None,
            behaviour: Behaviour::default(),
            limit: None,
            backlog: BACKLOG_DEFAULT,
        }
    }
}

/// A request as it arrived, and what became of it.
#[derive(Debug, Clone)]
pub struct Received {
    /// When its last byte had arrived, by this machine's clock.
    pub time: jiff::Timestamp,
    /// The method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The body; empty when `oversized`.
    pub body: Bytes,
    /// Whether the body was over [`BODY_BYTES_MAX`], thus not read, and answered 413.
    pub oversized: bool,
    /// What its signature is worth.
    pub verdict: Verdict,
    /// The status it is answered with, after the delay; `None` for never.
    pub status: Option<StatusCode>,
    /// `X-Webhook-Delivery`, else `X-Webhook-ID`, else `webhook-id`.
    pub delivery_id: Option<String>,
    /// `X-Webhook-Attempt`.
    pub attempt: Option<u32>,
    /// `X-Webhook-Event`.
    pub event_type: Option<String>,
}

/// A webhook receiver that runs in the background until stopped or dropped.
///
/// ```no_run
/// # use hooklane::cli::listen::{Behaviour, Receiver, ReceiverOptions};
/// # async fn example() -> std::io::Result<()> {
/// let receiver = Receiver::start(ReceiverOptions::default()).await?;
/// receiver.set_behaviour(Behaviour { fail_first: 2, ..Behaviour::default() });
/// // … register receiver.url() as an endpoint and publish …
/// let first = receiver.next().await;
/// # Ok(())
/// # }
/// ```
pub struct Receiver {
    addr: SocketAddr,
    shared: Arc<Shared>,
    arrivals: tokio::sync::Mutex<mpsc::Receiver<Received>>,
}

struct Shared {
    secrets: Vec<Verifier>,
    scheme: Option<SignatureScheme>,
    behaviour: watch::Sender<Arc<Behaviour>>,
    seen: Mutex<Seen>,
    count: AtomicU64,
    limit: u64,
    /// `None` when nobody is to be told.
    arrivals: Option<mpsc::Sender<Received>>,
    /// No new requests; those under way are answered.
    stopping: CancellationToken,
    /// Everything ends where it stands.
    aborted: CancellationToken,
    tasks: TaskTracker,
}

impl Receiver {
    /// Binds the address and starts to serve.
    pub async fn start(options: ReceiverOptions) -> io::Result<Self> {
        let listener = TcpListener::bind(options.addr).await?;
        let addr = listener.local_addr()?;
        let (sender, arrivals) = mpsc::channel(options.backlog.clamp(1, Semaphore::MAX_PERMITS));
        let shared = Arc::new(Shared {
            secrets: options.secrets,
            scheme: options.scheme,
            behaviour: watch::Sender::new(Arc::new(options.behaviour)),
            seen: Mutex::new(Seen::new()),
            count: AtomicU64::new(0),
            limit: options.limit.unwrap_or(u64::MAX),
            arrivals: (options.backlog > 0).then_some(sender),
            stopping: CancellationToken::new(),
            aborted: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        shared.tasks.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { addr, shared, arrivals: tokio::sync::Mutex::new(arrivals) })
    }

    /// The address it listens on, with the port that was picked.
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// That address as a URL without a path: `http://127.0.0.1:8080`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The next request, in the order of arrival; `None` once stopped and all were handed on.
    pub async fn next(&self) -> Option<Received> {
        let mut arrivals = self.arrivals.lock().await;
        tokio::select! {
            biased;
            received = arrivals.recv(), if self.shared.arrivals.is_some() => received,
            () = self.shared.stopping.cancelled() => None,
        }
    }

    /// How many requests there were so far, handed on or not.
    pub fn count(&self) -> u64 {
        self.shared.count.load(Ordering::Acquire).min(self.shared.limit)
    }

    /// How requests are answered now.
    pub fn behaviour(&self) -> Behaviour {
        Behaviour::clone(&self.shared.behaviour.borrow())
    }

    /// Answers in another way from the next request on. What `fail_first` counted starts anew.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        self.shared.seen().forget();
        self.shared.behaviour.send_replace(Arc::new(behaviour));
    }

    /// Takes no more requests, waits until those under way are answered (silent ones never are), and ends.
    pub async fn stop(&self) {
        self.shared.stopping.cancel();
        self.shared.tasks.close();
        let delay = self.shared.behaviour.borrow().delay;
        let _ = tokio::time::timeout(delay.saturating_add(STOP_GRACE), self.shared.tasks.wait()).await;
        self.abort();
    }

    /// Ends at once: connections are closed where they stand.
    pub fn abort(&self) {
        self.shared.stopping.cancel();
        self.shared.aborted.cancel();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let next = async || match Arc::clone(&slots).acquire_owned().await {
        Ok(slot) => listener.accept().await.map(|(stream, _)| (stream, slot)),
        Err(closed) => Err(io::Error::other(closed)),
    };
    while let Some(accepted) = shared.stopping.run_until_cancelled(next()).await {
        match accepted {
            Ok((stream, slot)) => {
                let connection = serve(stream, Arc::clone(&shared));
                let aborted = shared.aborted.clone();
                shared.tasks.spawn(async move {
                    aborted.run_until_cancelled(connection).await;
                    drop(slot);
                });
            }
            // Out of file descriptors, most likely: they come back.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    // Answers are small and wanted now. Without it they are only later.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| shared.receive(request));
    let mut connection = std::pin::pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shared.stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// The connection is closed without an answer.
#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error("the receiver takes no more requests")]
    Stopped,
    #[error("the request broke off")]
    Broken,
}

impl Shared {
    async fn receive(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Unanswered> {
        let (head, body) = request.into_parts();
        let body = self.stopping.run_until_cancelled(read(body)).await.ok_or(Unanswered::Stopped)??;
        let room = match &self.arrivals {
            Some(arrivals) => self.stopping.run_until_cancelled(arrivals.reserve()).await.and_then(Result::ok),
            None => None,
        };
        if self.arrivals.is_some() && room.is_none() {
            return Err(Unanswered::Stopped);
        }
        // From here to the hand-over nothing waits: a request is counted exactly when it is handed on.
        if self.count.fetch_add(1, Ordering::AcqRel) >= self.limit {
            return Err(Unanswered::Stopped);
        }
        let behaviour = Arc::clone(&self.behaviour.borrow());
        let received = self.judge(head, body, &behaviour);
        let status = received.status;
        if let Some(room) = room {
            room.send(received);
        }
        let Some(status) = status else {
            self.stopping.cancelled().await;
            return Err(Unanswered::Stopped);
        };
        if !behaviour.delay.is_zero() {
            tokio::time::sleep(behaviour.delay).await;
        }
        Ok(behaviour.answer(status))
    }

    /// `body` is `None` when it was too large to read.
    fn judge(&self, head: request::Parts, body: Option<Bytes>, behaviour: &Behaviour) -> Received {
        let time = jiff::Timestamp::now();
        let text = |name: &str| head.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let delivery_id = text("x-webhook-delivery").or_else(|| text("x-webhook-id")).or_else(|| text("webhook-id"));
        let (verdict, status) = match &body {
            None => (Verdict::Unchecked, Some(StatusCode::PAYLOAD_TOO_LARGE)),
            Some(body) => {
                let verdict = judge(&self.secrets, self.scheme, &head.headers, body, time.as_second());
                let earlier = || self.seen().count(delivery_id.as_deref());
                (verdict, behaviour.decide(verdict, earlier, rand::random()))
            }
        };
        Received {
            time,
            path: head.uri.path_and_query().map_or_else(|| head.uri.to_string(), ToString::to_string),
            delivery_id: delivery_id.map(Into::into),
            attempt: text("x-webhook-attempt").and_then(|attempt| attempt.parse().ok()),
            event_type: text("x-webhook-event").map(Into::into),
            oversized: body.is_none(),
            body: body.unwrap_or_default(),
            verdict,
            status,
            method: head.method,
            headers: head.headers,
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a body; `None` when it is over the limit.
async fn read(body: Incoming) -> Result<Option<Bytes>, Unanswered> {
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Ok(None);
    }
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(Some(collected.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Ok(None),
        Err(_) => Err(Unanswered::Broken),
    }
}
