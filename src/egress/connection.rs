//! An HTTP/1.1 connection that is driven by the attempt that uses it.
//!
//! hyper's connections do nothing unless they are polled, and clients usually give each a task of its own. Here the
//! attempt polls its own connection: a request wakes no other task, and what an attempt holds ends with it. Dropped
//! midway, at the deadline, the connection is closed where it stands, whatever its receiver does or does not read.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_rustls::MaybeHttpsStream;
use hyper_util::rt::TokioIo;

use super::metered::{Meter, Metered};
use super::{HEAD_BYTES_MAX, TcpStream};

/// What a request carries.
pub(super) type Body = Full<Bytes>;
/// What the connector makes: TCP, with or without TLS.
pub(super) type Io = MaybeHttpsStream<TokioIo<TcpStream>>;
/// The same, as hyper reads from it.
type Stream = TokioIo<Metered<TokioIo<Io>>>;

/// One connection, with at most one request on it.
pub(super) struct Connection {
    sender: SendRequest<Body>,
    /// `None` once the connection has ended: what still waits for it then sees it closed.
    driver: Option<Box<http1::Connection<Stream, Body>>>,
    /// Of what has come since the last request.
    meter: Meter,
}

impl Connection {
    pub(super) async fn open(io: Io) -> hyper::Result<Self> {
        let (stream, meter) = Metered::new(TokioIo::new(io));
        let handshake = http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(TokioIo::new(stream));
        let (sender, driver) = handshake.await?;
        Ok(Self { sender, driver: Some(Box::new(driver)), meter })
    }

    /// Sends a request, at once, and reads the head of its answer. The error has the request where none of it was written.
    pub(super) fn send(
        &mut self,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Body>>>> {
        self.meter.reset();
        // Not `async`: the future would keep room for the request that hyper has by now.
        let response = self.sender.try_send_request(request);
        drive(&mut self.driver, response)
    }

    /// Does what needs the connection to go on meanwhile: reading an answer's body.
    pub(super) async fn while_reading<F: Future>(&mut self, read: F) -> F::Output {
        drive(&mut self.driver, read).await
    }

    /// Whether a request can be sent now: nothing of the last exchange is left in either direction, and the receiver has
    /// not closed.
    pub(super) async fn is_free(&mut self) -> bool {
        poll_fn(|context| {
            turn(&mut self.driver, context);
            Poll::Ready(self.driver.is_some() && self.sender.is_ready())
        })
        .await
    }
}

/// Drives the connection until `work`, which waits for it, is done.
async fn drive<F: Future>(driver: &mut Option<Box<http1::Connection<Stream, Body>>>, work: F) -> F::Output {
    let mut work = pin!(work);
    poll_fn(|context| {
        let done = work.as_mut().poll(context);
        if done.is_ready() {
            return done;
        }
        turn(driver, context);
        // What the connection has just read is there now; waiting to be woken for it would cost another turn.
        work.as_mut().poll(context)
    })
    .await
}

/// Lets the connection do what it can at once.
fn turn(driver: &mut Option<Box<http1::Connection<Stream, Body>>>, context: &mut Context<'_>) {
    // How it ended is told to the request that was on it, if there was one.
    if driver.as_mut().is_some_and(|driver| Pin::new(driver).poll(context).is_ready()) {
        *driver = None;
    }
}
