//! A TCP connection that can be cut while a write of it is stuck.
//!
//! hyper closes the connection of a request that nobody waits for any more, but flushes first: against a receiver that
//! does not read, that never ends, and the connection and the request's body stay for good. So an attempt keeps a
//! [`Lever`] on its connection and pulls it when it ends before its request is through.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{CaptureConnection, Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The stream below TLS and HTTP.
pub(super) struct Stream {
    tcp: TokioIo<TcpStream>,
    lever: Lever,
}

/// A hold on a connection from outside.
#[derive(Clone, Default)]
struct Lever(Arc<State>);

#[derive(Default)]
struct State {
    /// Whether something was written since the layers above were last done writing.
    writing: AtomicBool,
    /// Whether a write that would have to wait fails instead.
    cut: AtomicBool,
    writer: AtomicWaker,
}

/// Cuts the connection of an attempt that ended with its answer read to the end (`finished`), or before; an attempt that
/// finished leaves its connection alone if the whole request is through, as it nearly always is.
pub(super) fn release(captured: &CaptureConnection, finished: bool) {
    let connected = captured.connection_metadata();
    let Some(connected) = connected.as_ref() else { return };
    let mut extras = http::Extensions::new();
    connected.get_extras(&mut extras);
    let Some(Lever(state)) = extras.get() else { return };
    if finished && !state.writing.load(Ordering::Acquire) {
        return;
    }
    connected.poison(); // the pool is not to hand it out again
    state.cut.store(true, Ordering::Release);
    state.writer.wake();
}

impl Stream {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self { tcp: TokioIo::new(tcp), lever: Lever::default() }
    }

    fn write(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TokioIo<TcpStream>>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let Lever(state) = &self.lever;
        state.writing.store(true, Ordering::Release);
        let written = write(Pin::new(&mut self.tcp), context);
        if written.is_pending() {
            // In this order, so that a cut between the two is not missed.
            state.writer.register(context.waker());
            if state.cut.load(Ordering::Acquire) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
        }
        written
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().extra(self.lever.clone())
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |tcp, cx| tcp.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |tcp, cx| tcp.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    /// The layers above flush when all they had is written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lever.0.writing.store(false, Ordering::Release);
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
