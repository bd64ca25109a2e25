//! A connection that ends once more has come than an exchange can have: a receiver that answers without end and says
//! nothing, in interim answers or zeros before a chunk's size, is cut off there and not at the deadline.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What may come in an exchange, in bytes: head and body as far as they are read, interim answers before, chunks' sizes
/// between, and what is buffered behind.
pub(super) const BYTES_MAX: usize = 256 * 1_024;

/// More came than an exchange can have.
#[derive(Debug, thiserror::Error)]
#[error("more came than is read")]
pub(super) struct TooMuch;

/// A stream that counts what comes.
pub(super) struct Metered<S> {
    stream: S,
    meter: Meter,
}

/// What may still come.
#[derive(Clone)]
pub(super) struct Meter(Arc<AtomicUsize>);

impl Meter {
    /// Begins another exchange.
    pub(super) fn reset(&self) {
        self.0.store(BYTES_MAX, Ordering::Relaxed);
    }
}

impl<S> Metered<S> {
    pub(super) fn new(stream: S) -> (Self, Meter) {
        let meter = Meter(Arc::new(AtomicUsize::new(BYTES_MAX)));
        (Self { stream, meter: meter.clone() }, meter)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, read: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let left = self.meter.0.load(Ordering::Relaxed);
        if left == 0 {
            return Poll::Ready(Err(io::Error::other(TooMuch)));
        }
        let before = read.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, read);
        // Read by one task at a time: nothing else changes it meanwhile.
        self.meter.0.store(left.saturating_sub(read.filled().len() - before), Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn it_ends_at_the_bound_of_each_exchange() {
        let (mut stream, meter) = Metered::new(tokio::io::repeat(b'x'));
        for _ in 0..2 {
            meter.reset();
            let (mut bytes, mut chunk) = (0, [0; 5_000]);
            let ended = loop {
                match stream.read(&mut chunk).await {
                    Ok(read) => bytes += read,
                    Err(error) => break error,
                }
            };
            assert!((BYTES_MAX..BYTES_MAX + chunk.len()).contains(&bytes), "{bytes}");
            assert!(ended.get_ref().is_some_and(|inner| inner.is::<TooMuch>()));
        }
    }
}
