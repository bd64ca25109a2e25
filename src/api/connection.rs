//! Accepted connections: how many there may be, and how old one may become.
//!
//! tonic asks a connection at its age to finish (GOAWAY), but then waits for its streams without end; with a grace time
//! it never asks and only cuts. So the asking is tonic's, and the cut is made here.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tonic::transport::server::Connected;

/// When a connection is asked to finish, so that callers spread anew over replicas.
pub(super) const AGE_MAX: Duration = Duration::from_secs(30 * 60);
/// How long after that it is cut, whatever is still open on it.
const AGE_GRACE: Duration = Duration::from_secs(60);
/// Connections at once; beyond it they wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 8_192;
/// How long accepting pauses where the process has run out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A caller's connection, which ends itself at its age.
pub(super) struct Connection {
    stream: TcpStream,
    since: Instant,
    cut: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

/// What a call may know of its connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionInfo {
    /// When it is asked to finish: streams end themselves by then.
    pub(super) finish_at: Instant,
}

/// Connections as they come, without end.
pub(super) fn incoming(listener: TcpListener) -> impl Stream<Item = io::Result<Connection>> {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    futures::stream::unfold((listener, places), |(listener, places)| async {
        let place = Arc::clone(&places).acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Connection::new(stream, place), (listener, places))),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

impl Connection {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let since = Instant::now();
        Ok(Self { stream, since, cut: Box::pin(sleep_until(since + AGE_MAX + AGE_GRACE)), _place: place })
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        ConnectionInfo { finish_at: self.since + AGE_MAX }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            // Only a connection that is waiting looks at the clock.
            Poll::Pending if self.cut.as_mut().poll(cx).is_ready() => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the connection has reached its age")))
            }
            other => other,
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
