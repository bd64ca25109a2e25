//! A stream's body that ends with its credential, whatever the stream is of: one place, which no call can forget.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;
use tonic::body::Body;

use super::quota::{Places, Usage};

/// The body of an open stream.
pub(super) struct Watched {
    body: Body,
    usage: Arc<Usage>,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    is_over: bool,
    _places: Places,
}

impl Watched {
    /// Holds the stream's places until it is dropped.
    pub(super) fn new(body: Body, usage: Arc<Usage>, places: Places) -> Self {
        let ended = Box::pin(usage.ended().clone().cancelled_owned());
        Self { body, usage, ended, is_over: false, _places: places }
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        if self.ended.as_mut().poll(cx).is_ready() {
            self.is_over = true;
            let mut trailers = HeaderMap::new();
            return match self.usage.farewell().add_header(&mut trailers) {
                Ok(()) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Err(status) => Poll::Ready(Some(Err(status))),
            };
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tonic::Code;

    use super::super::quota::{CallerLimits, Over};
    use super::*;

    #[tokio::test]
    async fn a_stream_ends_with_its_credential_and_gives_its_place_back() {
        let usage = Arc::new(Usage::new(CallerLimits { requests_per_second: 0, calls: 1, streams: 1 }));
        let endless = http_body_util::StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, Status>>());
        let places = usage.take(true).expect("a place");
        let mut body = Watched::new(Body::new(endless), Arc::clone(&usage), places);
        assert!(futures::poll!(std::pin::pin!(body.frame())).is_pending());
        usage.end(Over::Revoked);
        let trailers = body.frame().await.expect("a frame").expect("no error").into_trailers().expect("trailers");
        assert_eq!(Status::from_header_map(&trailers).expect("a status").code(), Code::Unauthenticated);
        assert!(body.frame().await.is_none());
        assert!(usage.take(true).is_err());
        drop(body);
        assert!(usage.take(true).is_ok());
    }
}
