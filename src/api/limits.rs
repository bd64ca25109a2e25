//! How large a message may be, by method, judged from its length prefix before its body is read; and our error details
//! on what tonic refuses by itself.
//!
//! tonic knows one limit for a whole service and says OUT_OF_RANGE; the contract has one for each method and says
//! RESOURCE_EXHAUSTED. Stands inside the gRPC-Web layer, where every body has gRPC's framing.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::TryFutureExt;
use futures::future::MapOk;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::status;

/// What a message may have beyond its payload.
const PUBLISH_OVERHEAD_BYTES: usize = 64 * 1024;
const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;
const OTHER_BYTES_MAX: usize = 1024 * 1024;
/// A flag byte and the message's length, big-endian. Source: gRPC over HTTP/2, "Length-Prefixed-Message".
const PREFIX_BYTES: usize = 5;

/// The limits as a layer around the services.
#[derive(Debug, Clone, Copy)]
pub(super) struct MessageLimits {
    /// The largest payload.
    pub(super) payload_bytes_max: usize,
}

impl MessageLimits {
    /// The largest message any method takes: tonic's own limit, which therefore never shows.
    pub(super) const fn largest(self) -> usize {
        let publish = self.payload_bytes_max + PUBLISH_OVERHEAD_BYTES;
        if publish > BATCH_BYTES_MAX { publish } else { BATCH_BYTES_MAX }
    }

    fn of_method(self, path: &str) -> usize {
        match path.rsplit_once('/').map(|(_, method)| method) {
            Some("Publish") => self.payload_bytes_max + PUBLISH_OVERHEAD_BYTES,
            Some("PublishBatch") => BATCH_BYTES_MAX,
            _ => OTHER_BYTES_MAX,
        }
    }
}

impl<S> Layer<S> for MessageLimits {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited { inner, limits: *self }
    }
}

/// A service whose messages are limited.
#[derive(Debug, Clone)]
pub(super) struct Limited<S> {
    inner: S,
    limits: MessageLimits,
}

impl<S> Service<Request<Body>> for Limited<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = MapOk<S::Future, fn(Response<Body>) -> Response<Body>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let bytes_max = self.limits.of_method(request.uri().path());
        let request = request.map(|body| Body::new(LimitedBody { body, bytes_max, prefix: Prefix::default() }));
        self.inner.call(request).map_ok(status::with_details)
    }
}

/// A request body that fails as soon as the prefix of its message announces too much.
struct LimitedBody {
    body: Body,
    bytes_max: usize,
    prefix: Prefix,
}

/// What has come of the length prefix; it may be split over frames.
#[derive(Default)]
struct Prefix {
    bytes: [u8; PREFIX_BYTES],
    seen: usize,
}

impl Prefix {
    /// Takes in the next data; answers the message's length once, when the prefix is complete.
    fn take_in(&mut self, data: &[u8]) -> Option<usize> {
        if self.seen == PREFIX_BYTES {
            return None;
        }
        let fresh = data.len().min(PREFIX_BYTES - self.seen);
        self.bytes[self.seen..self.seen + fresh].copy_from_slice(&data[..fresh]);
        self.seen += fresh;
        let [_, length @ ..] = self.bytes;
        (self.seen == PREFIX_BYTES).then(|| u32::from_be_bytes(length) as usize)
    }
}

impl http_body::Body for LimitedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Some(announced) = self.prefix.take_in(data)
            && announced > self.bytes_max
        {
            return Poll::Ready(Some(Err(status::message_too_large(announced, self.bytes_max))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};
    use tonic::Code;

    use super::*;

    #[test]
    fn each_method_has_its_own_limit() {
        let limits = MessageLimits { payload_bytes_max: 1_000 };
        assert_eq!(limits.of_method("/hooklane.v1.WebhookService/Publish"), 1_000 + 65_536);
        assert_eq!(limits.of_method("/hooklane.v1.WebhookService/PublishBatch"), 16 << 20);
        assert_eq!(limits.of_method("/hooklane.v1.WebhookService/GetEvent"), 1 << 20);
        assert_eq!(limits.largest(), 16 << 20);
        assert_eq!(MessageLimits { payload_bytes_max: 32 << 20 }.largest(), (32 << 20) + 65_536);
    }

    #[test]
    fn a_prefix_split_over_frames_is_read_once() {
        let mut prefix = Prefix::default();
        assert_eq!(prefix.take_in(&[0, 0]), None);
        assert_eq!(prefix.take_in(&[]), None);
        assert_eq!(prefix.take_in(&[0, 1, 2, 9, 9]), Some(258));
        assert_eq!(prefix.take_in(&[0, 1, 2, 9, 9]), None);
    }

    #[tokio::test]
    async fn a_message_is_refused_from_its_prefix_alone() {
        let body = |length: u32| LimitedBody {
            body: Body::new(Full::new(Bytes::from([&[0][..], &length.to_be_bytes()].concat()))),
            bytes_max: 100,
            prefix: Prefix::default(),
        };
        assert!(body(100).collect().await.is_ok());
        let refusal = body(101).collect().await.expect_err("too large");
        assert_eq!(refusal.code(), Code::ResourceExhausted);
    }
}
