//! HTTP on accepted connections: a task for each, from its greeting until it has finished or is cut.
//!
//! Stands in for tonic's own loop, which bounds neither what may wait to be sent nor how long a connection that was asked
//! to finish may take.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::Either;
use futures::{Stream, StreamExt};
use http::header::{CONTENT_TYPE, ORIGIN};
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

use super::connection::Connection;

/// Calls under way on one connection. One client channel is one connection, and hundreds of concurrent publishers on it
/// are the normal case: 128 would make them queue in the client. What bounds memory is the message limit, and what
/// bounds the database is the publisher's queue.
const STREAMS_MAX: u32 = 1_024;
/// HPACK-decoded size of a request's headers.
const HEADER_LIST_BYTES_MAX: u32 = 8 * 1024;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Streams that clients reset before we took them up; more ends the connection (CVE-2023-44487).
const RESET_STREAMS_MAX: usize = 256;
/// Streams that we reset for a client's faults; more ends the connection.
const ERROR_RESETS_MAX: usize = 1_024;
/// One connection's unread bytes: 16 payloads of the default limit, and many more small ones.
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// What waits to be sent on one stream before no more is asked for: a caller's window may be of megabytes, and there may
/// be thousands of streams whose callers are slow to read.
const UNSENT_BYTES_MAX: usize = 16 * 1024;

/// How long a connection that was asked to finish may take; then it is cut, whatever is still open on it.
const AGE_GRACE: Duration = Duration::from_secs(60);

/// The way of a call: a service of tower's that is always ready.
pub(super) trait Calls:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

impl<S> Calls for S where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

/// Who answers what came how: gRPC is spared what is there for browsers alone.
#[derive(Debug, Clone)]
pub(super) struct Ways<P, B> {
    pub(super) plain: P,
    pub(super) browsers: B,
}

/// Serves until there are no more connections to come, and each has finished; dropped earlier, it cuts them.
pub(super) async fn serve<P: Calls, B: Calls>(incoming: impl Stream<Item = Connection>, ways: Ways<P, B>) {
    let protocol = Arc::new(protocol());
    let (connections, finish, cut) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
    let _cut = cut.clone().drop_guard();
    let mut incoming = pin!(incoming);
    while let Some(connection) = incoming.next().await {
        let served = serve_one(Arc::clone(&protocol), connection, ways.clone(), finish.clone());
        connections.spawn(cut.clone().run_until_cancelled_owned(served));
    }
    finish.cancel();
    connections.close();
    connections.wait().await;
}

/// Serves until the caller has gone; asks them to at the connection's age, or when all are to finish, and then waits for
/// what is open for a while only.
async fn serve_one<P: Calls, B: Calls>(
    protocol: Arc<Builder<TokioExecutor>>,
    connection: Connection,
    ways: Ways<P, B>,
    finish: CancellationToken,
) {
    let info = connection.info();
    let finish_at = info.finish_at;
    let calls = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(info.clone());
        match is_plain(&request) {
            true => Either::Left(ways.plain.clone().oneshot(request)),
            false => Either::Right(ways.browsers.clone().oneshot(request)),
        }
    });
    let mut http = pin!(protocol.serve_connection(TokioIo::new(connection), calls));
    let ended = tokio::select! {
        ended = &mut http => Ok(ended),
        _ = timeout_at(finish_at, finish.cancelled()) => {
            http.as_mut().graceful_shutdown();
            timeout(AGE_GRACE, http).await
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error, "a connection failed"),
        Err(_) => tracing::debug!("a connection that was asked to finish is cut"),
    }
}

fn protocol() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(ERROR_RESETS_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .max_send_buf_size(UNSENT_BYTES_MAX);
    // Without a timer its limit on reading a head is not kept.
    builder.http1().timer(TokioTimer::new());
    builder
}

/// Whether it is gRPC as clients other than browsers speak it.
fn is_plain<T>(request: &Request<T>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE).map(http::HeaderValue::as_bytes);
    let is_grpc =
        kind.and_then(|kind| kind.strip_prefix(b"application/grpc")).is_some_and(|rest| !rest.starts_with(b"-"));
    is_grpc && request.version() == Version::HTTP_2 && !request.headers().contains_key(ORIGIN)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use tokio::net::{TcpListener, TcpStream};
    use tonic::Status;
    use tower::service_fn as calls;

    use super::super::connection::incoming;
    use super::*;

    /// Every call is answered without end, in pieces of a kilobyte that are counted.
    fn endless(asked_for: &Arc<AtomicUsize>) -> impl Calls<Future: Send> {
        const PIECE: Bytes = Bytes::from_static(&[0; 1_024]);
        let asked_for = Arc::clone(asked_for);
        calls(move |_| {
            let asked_for = Arc::clone(&asked_for);
            let pieces = futures::stream::repeat_with(move || {
                asked_for.fetch_add(PIECE.len(), Ordering::Relaxed);
                Ok::<_, Status>(Frame::data(PIECE))
            });
            std::future::ready(Ok(Response::new(Body::new(StreamBody::new(pieces)))))
        })
    }

    /// Serves it, and opens so many streams of one connection, with room for everything and nobody who reads.
    async fn unread(
        asked_for: &Arc<AtomicUsize>,
        streams: usize,
    ) -> (tokio::task::JoinHandle<()>, CancellationToken, impl Sized) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        let ways = Ways { plain: endless(asked_for), browsers: endless(asked_for) };
        let serving = tokio::spawn(serve(incoming(listener, None, 1_000, shutdown.clone()), ways));
        let stream = TcpStream::connect(address).await.expect("connected");
        let (mut sender, connection) = h2::client::Builder::new()
            .initial_window_size(1 << 30)
            .initial_connection_window_size(1 << 30)
            .handshake::<_, Bytes>(stream)
            .await
            .expect("HTTP/2");
        let mut connection = Box::pin(connection);
        let mut answers = Vec::new();
        for _ in 0..streams {
            tokio::select! {
                ready = std::future::poll_fn(|cx| sender.poll_ready(cx)) => ready.expect("open"),
                _ = &mut connection => panic!("the connection ended"),
            }
            let request = Request::post("http://localhost/").body(()).expect("a request");
            answers.push(sender.send_request(request, true).expect("sent"));
        }
        // What was asked is on its way; after that nobody looks at the connection.
        let _ = timeout(Duration::from_millis(100), &mut connection).await;
        (serving, shutdown, (sender, connection, answers))
    }

    #[tokio::test]
    async fn what_nobody_reads_is_not_asked_for() {
        const STREAMS: usize = 200;
        // What the kernel takes in on the way, at most.
        const KERNEL_BYTES_MAX: usize = 16 << 20;
        let asked_for = Arc::default();
        let (serving, _shutdown, _unread) = unread(&asked_for, STREAMS).await;
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = asked_for.load(Ordering::Relaxed);
            if now == before && now > 0 {
                break;
            }
            before = now;
        }
        let bound = STREAMS * (UNSENT_BYTES_MAX + 1_024) + KERNEL_BYTES_MAX;
        assert!(before <= bound, "{before} bytes wait, {bound} may");
        serving.abort();
    }

    #[tokio::test]
    async fn a_connection_that_does_not_finish_is_cut() {
        let asked_for = Arc::default();
        let (serving, shutdown, _unread) = unread(&asked_for, 1).await;
        shutdown.cancel();
        tokio::time::pause();
        let since = tokio::time::Instant::now();
        serving.await.expect("it ends");
        assert!((AGE_GRACE..AGE_GRACE * 2).contains(&since.elapsed()), "{:?}", since.elapsed());
    }

    #[test]
    fn only_what_no_browser_sends_goes_the_plain_way() {
        for (kind, version, origin, expected) in [
            ("application/grpc", Version::HTTP_2, None, true),
            ("application/grpc+proto", Version::HTTP_2, None, true),
            ("application/grpc", Version::HTTP_11, None, false),
            ("application/grpc", Version::HTTP_2, Some("http://localhost"), false),
            ("application/grpc-web", Version::HTTP_2, None, false),
            ("application/grpc-web-text+proto", Version::HTTP_2, None, false),
            ("text/plain", Version::HTTP_2, None, false),
        ] {
            let request = Request::builder().version(version).header(CONTENT_TYPE, kind);
            let request = origin.into_iter().fold(request, |request, origin| request.header(ORIGIN, origin));
            assert_eq!(is_plain(&request.body(()).expect("a request")), expected, "{kind} {version:?} {origin:?}");
        }
    }
}
