//! Counts calls by method and code, refused ones too, measures how long they took, and begins their traces.
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
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::auth::Method;
use super::under_way::UnderWay;
use crate::domain::trace::{TraceContext, TraceState};
use crate::store::Store;
use crate::telemetry::metrics::{Call, Metrics};
use crate::telemetry::traces::{Span, Traces};

/// The layer.
#[derive(Debug, Clone)]
pub(super) struct Measured(pub(super) Arc<Store>);

impl<S> Layer<S> for Measured {
    type Service = MeasuredCalls<S>;

    fn layer(&self, inner: S) -> MeasuredCalls<S> {
        MeasuredCalls { inner, store: Arc::clone(&self.0) }
    }
}

/// A service whose calls are measured.
#[derive(Debug, Clone)]
pub(super) struct MeasuredCalls<S> {
    inner: S,
    store: Arc<Store>,
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Named { name, is_stream, is_call } = name(request.uri().path());
        let parent = parent(request.headers());
        let (mut trace, mut context) = (None, None);
        if let Some(traces) = self.store.traces().filter(|_| is_call)
            && let Some(span) = traces.begin_call(name, parent.as_ref(), self.store.clock().now())
        {
            context = Some(span.context().clone());
            trace = Some(Box::new((traces.clone(), Arc::clone(&self.store), span)));
        } else if let Some(parent) = parent {
            // Where we could record and do not, nothing of what follows is recorded.
            let is_left_out = is_call && self.store.traces().is_some();
            context = Some(if is_left_out { parent.into_unrecorded() } else { parent });
        }
        let under_way = UnderWay { name, trace_id: context.as_ref().map(TraceContext::trace_id) };
        let running = Running::of(self.store.metrics(), under_way, is_stream, trace);
        if let Some(context) = context {
            request.extensions_mut().insert(context);
        }
        let answered = under_way.answering(self.inner.call(request));
        Box::pin(answered.map_ok(|response| measured(response, running)))
    }
}

/// The trace that a call came with.
fn parent(headers: &HeaderMap) -> Option<TraceContext> {
    let context = TraceContext::parse(headers.get(TRACEPARENT)?.to_str().ok()?)?;
    let states = headers.get_all(TRACESTATE).iter().map(HeaderValue::to_str);
    // A list that breaks the rules counts as none.
    let state = states.collect::<Result<Vec<_>, _>>().ok().and_then(TraceState::parse);
    Some(context.with_state(state))
}

/// An answer whose end is counted.
fn measured(response: Response<Body>, mut running: Running) -> Response<Body> {
    match code(response.headers()) {
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
    }
}

/// The trace that a call belongs to: one that is recorded here, or its caller's.
pub(super) fn trace_of<T>(request: &tonic::Request<T>) -> Option<TraceContext> {
    request.extensions().get().cloned()
}

/// A span of a call, and where it is to be recorded.
type Traced = (Traces, Arc<Store>, Span);

/// A call under way. One that is dropped was given up by its caller.
struct Running {
    under_way: UnderWay,
    call: Arc<Call>,
    trace: Option<Box<Traced>>,
    /// `None` of a stream.
    began: Option<Instant>,
    has_ended: bool,
}

impl Running {
    fn of(metrics: &Metrics, under_way: UnderWay, is_stream: bool, trace: Option<Box<Traced>>) -> Self {
        let (call, began) = (metrics.calls.of(under_way.name), (!is_stream).then(Instant::now));
        Self { under_way, call, trace, began, has_ended: false }
    }

    fn end(&mut self, code: Code) {
        if !std::mem::replace(&mut self.has_ended, true) {
            self.call.end(code as usize, self.began.map(|began| began.elapsed()));
            if let Some((traces, store, span)) = self.trace.take().map(|traced| *traced) {
                let span = span.with("rpc.system", "grpc").with("rpc.grpc.status_code", i64::from(code as i32));
                let is_ours = matches!(code, Code::Unknown | Code::Internal | Code::Unavailable | Code::DataLoss);
                let span = if is_ours { span.failed(code.description()) } else { span };
                traces.end(span, store.clock().now());
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// What a path is counted as.
struct Named {
    name: &'static str,
    is_stream: bool,
    /// Whether it is a call of the contract: those are traced.
    is_call: bool,
}

/// Callers make paths up: those of no call are all one.
fn name(path: &str) -> Named {
    let other = |name, is_stream| Named { name, is_stream, is_call: false };
    match path.strip_prefix('/').and_then(|path| path.split_once('/')) {
        Some(("hooklane.v1.WebhookService", name)) => Method::named(name).map_or(other(OTHER, false), |method| Named {
            name: method.name(),
            is_stream: method.is_streaming(),
            is_call: true,
        }),
        Some(("grpc.health.v1.Health", "Check")) => other("Health/Check", false),
        Some(("grpc.health.v1.Health", "Watch")) => other("Health/Watch", true),
        Some((service, _)) if service.starts_with("grpc.reflection.") => other("ServerReflection", true),
        _ => other(OTHER, false),
    }
}

/// Of W3C's trace context.
const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
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
        let under_way = self.running.under_way;
        let frame = ready!(under_way.going_on(|| Pin::new(&mut self.body).poll_frame(cx)));
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

    use super::*;

    const PUBLISH: &str = "/hooklane.v1.WebhookService/Publish";

    /// What a call to `path` that is answered so is counted as.
    async fn counted(path: &str, answer: Response<Body>, reads: bool) -> String {
        let metrics = Metrics::new(0).expect("metrics");
        let Named { name, is_stream, .. } = name(path);
        let body =
            measured(answer, Running::of(&metrics, UnderWay { name, trace_id: None }, is_stream, None)).into_body();
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
