//! Counts calls by method and code, refused ones too, and measures how long they took.
//!
//! Inside the gRPC-Web layer, where every answer has gRPC's trailers, and around all others.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use futures::TryFutureExt as _;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::auth::Method;
use super::under_way::answering;
use crate::telemetry::metrics::{Call, Metrics};

/// The layer.
#[derive(Debug, Clone)]
pub(super) struct Measured(pub(super) Arc<Metrics>);

impl<S> Layer<S> for Measured {
    type Service = MeasuredCalls<S>;

    fn layer(&self, inner: S) -> MeasuredCalls<S> {
        MeasuredCalls { inner, metrics: Arc::clone(&self.0) }
    }
}

/// A service whose calls are measured.
#[derive(Debug, Clone)]
pub(super) struct MeasuredCalls<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S> Service<Request<Body>> for MeasuredCalls<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (name, is_stream) = name(request.uri().path());
        let mut running = Running::of(&self.metrics, name, is_stream);
        let answered = answering(name, self.inner.call(request));
        Box::pin(answered.map_ok(|response| match code(response.headers()) {
            Some(code) => {
                running.end(code);
                response
            }
            // Not asked for frames any more.
            None if http_body::Body::is_end_stream(response.body()) => {
                running.end(Code::Unknown);
                response
            }
            None => response.map(|body| Body::new(MeasuredBody { body, running })),
        }))
    }
}

/// A call under way. One that is dropped was given up by its caller.
struct Running {
    call: Arc<Call>,
    /// `None` of a stream.
    began: Option<Instant>,
    has_ended: bool,
}

impl Running {
    fn of(metrics: &Metrics, name: &'static str, is_stream: bool) -> Self {
        Self { call: metrics.calls.of(name), began: (!is_stream).then(Instant::now), has_ended: false }
    }

    fn end(&mut self, code: Code) {
        if !std::mem::replace(&mut self.has_ended, true) {
            self.call.end(code as usize, self.began.map(|began| began.elapsed()));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// What a path is counted as, and whether it is a stream. Callers make paths up: those of no call are all one.
fn name(path: &str) -> (&'static str, bool) {
    match path.strip_prefix('/').and_then(|path| path.split_once('/')) {
        Some(("hooklane.v1.WebhookService", name)) => {
            Method::named(name).map_or((OTHER, false), |method| (method.name(), method.is_streaming()))
        }
        Some(("grpc.health.v1.Health", "Check")) => ("Health/Check", false),
        Some(("grpc.health.v1.Health", "Watch")) => ("Health/Watch", true),
        Some((service, _)) if service.starts_with("grpc.reflection.") => ("ServerReflection", true),
        _ => (OTHER, false),
    }
}

const OTHER: &str = "other";

fn code(headers: &HeaderMap) -> Option<Code> {
    Some(Code::from_bytes(headers.get(Status::GRPC_STATUS)?.as_bytes()))
}

/// The body of an answer, whose trailers have the code.
struct MeasuredBody {
    body: Body,
    running: Running,
}

impl http_body::Body for MeasuredBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(code) = frame.trailers_ref().and_then(code) {
                    self.running.end(code);
                }
            }
            Some(Err(status)) => self.running.end(status.code()),
            None => self.running.end(Code::Unknown),
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
    use futures::stream;
    use http_body_util::{BodyExt as _, StreamBody};
    use tower::service_fn;

    use super::*;

    const PUBLISH: &str = "/hooklane.v1.WebhookService/Publish";

    /// What a call to `path` that is answered so is counted as.
    async fn counted(path: &str, answer: Response<Body>, reads: bool) -> String {
        let metrics = Arc::new(Metrics::new(0).expect("metrics"));
        let mut answer = Some(answer);
        let inner = service_fn(move |_: Request<Body>| std::future::ready(Ok(answer.take().expect("one call"))));
        let mut service = Measured(Arc::clone(&metrics)).layer(inner);
        let response = service.call(Request::builder().uri(path).body(Body::empty()).expect("a request")).await;
        let body = response.expect("an answer").into_body();
        if reads {
            let _ = body.collect().await;
        } else {
            drop(body);
        }
        let text = metrics.to_text();
        let counts = text.lines().filter_map(|line| line.strip_prefix("webhook_grpc_requests_total"));
        let is_timed = text.contains("webhook_grpc_request_duration_seconds_count");
        format!("{}{}", counts.collect::<String>(), if is_timed { " timed" } else { "" })
    }

    fn with_trailers(code: &'static str) -> Response<Body> {
        let mut trailers = HeaderMap::new();
        trailers.insert(Status::GRPC_STATUS, code.parse().expect("a value"));
        let frames = [Frame::data(Bytes::from_static(b"x")), Frame::trailers(trailers)].map(Ok::<_, Status>);
        Response::new(Body::new(StreamBody::new(stream::iter(frames))))
    }

    #[tokio::test]
    async fn a_call_is_counted_once_by_how_it_ended() {
        let refused = Status::not_found("no").into_http();
        for (path, answer, reads, expected) in [
            (PUBLISH, with_trailers("0"), true, "{code=\"OK\",method=\"Publish\"} 1 timed"),
            (PUBLISH, with_trailers("5"), true, "{code=\"NOT_FOUND\",method=\"Publish\"} 1 timed"),
            (PUBLISH, with_trailers("0"), false, "{code=\"CANCELLED\",method=\"Publish\"} 1 timed"),
            (PUBLISH, refused, true, "{code=\"NOT_FOUND\",method=\"Publish\"} 1 timed"),
            (PUBLISH, Response::new(Body::empty()), true, "{code=\"UNKNOWN\",method=\"Publish\"} 1 timed"),
            ("/made.up/Call", with_trailers("12"), true, "{code=\"UNIMPLEMENTED\",method=\"other\"} 1 timed"),
            (
                "/hooklane.v1.WebhookService/StreamDeliveryEvents",
                with_trailers("14"),
                true,
                "{code=\"UNAVAILABLE\",method=\"StreamDeliveryEvents\"} 1",
            ),
            ("/grpc.health.v1.Health/Check", with_trailers("0"), true, "{code=\"OK\",method=\"Health/Check\"} 1 timed"),
        ] {
            assert_eq!(counted(path, answer, reads).await, expected);
        }
    }
}
