//! The connection that the tests' egress dials: a real one, or a simulated one inside of a simulation.
//!
//! The program itself is built with tokio's `TcpStream` alone.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[derive(Debug)]
pub(in crate::egress) enum TcpStream {
    Real(tokio::net::TcpStream),
    Simulated(turmoil::net::TcpStream, Open),
}

thread_local! {
    static OPEN: Cell<usize> = const { Cell::new(0) };
}

/// How many simulated connections are open: a simulation is one thread, and its own count keeps those that never came
/// about.
pub(super) fn open() -> usize {
    OPEN.get()
}

thread_local! {
    /// Every address that is dialled while a test watches.
    static DIALLED: RefCell<Option<Vec<SocketAddr>>> = const { RefCell::new(None) };
}

/// Remembers every address that is dialled on this thread. Only loopback is dialled in truth meanwhile: everybody else
/// refuses.
pub(super) struct Watch(());

impl Watch {
    pub(super) fn begin() -> Self {
        DIALLED.set(Some(Vec::new()));
        Self(())
    }

    pub(super) fn dialled(&self) -> Vec<SocketAddr> {
        DIALLED.with_borrow(|dialled| dialled.clone().unwrap_or_default())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        DIALLED.set(None);
    }
}

/// Whether the address may be dialled, for a test that watches.
fn note(address: SocketAddr) -> io::Result<()> {
    DIALLED.with_borrow_mut(|dialled| {
        let Some(dialled) = dialled else { return Ok(()) };
        dialled.push(address);
        if address.ip().is_loopback() { Ok(()) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
    })
}

/// An open connection, counted.
#[derive(Debug)]
pub(in crate::egress) struct Open(());

impl Open {
    fn counted() -> Self {
        OPEN.set(OPEN.get() + 1);
        Self(())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        OPEN.set(OPEN.get() - 1);
    }
}

impl TcpStream {
    pub(in crate::egress) async fn connect(address: SocketAddr) -> io::Result<Self> {
        if turmoil::in_simulation() {
            turmoil::net::TcpStream::connect(address).await.map(|stream| Self::Simulated(stream, Open::counted()))
        } else {
            note(address)?;
            tokio::net::TcpStream::connect(address).await.map(Self::Real)
        }
    }

    pub(in crate::egress) fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        match self {
            Self::Real(stream) => stream.set_nodelay(nodelay),
            Self::Simulated(stream, _) => stream.set_nodelay(nodelay),
        }
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, read: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Real(stream) => Pin::new(stream).poll_read(context, read),
            Self::Simulated(stream, _) => Pin::new(stream).poll_read(context, read),
        }
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Real(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Simulated(stream, _) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Real(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Simulated(stream, _) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Real(stream) => stream.is_write_vectored(),
            Self::Simulated(stream, _) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Real(stream) => Pin::new(stream).poll_flush(context),
            Self::Simulated(stream, _) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Real(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Simulated(stream, _) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

impl Connection for TcpStream {
    fn connected(&self) -> Connected {
        match self {
            Self::Real(stream) => stream.connected(),
            Self::Simulated(..) => Connected::new(),
        }
    }
}
