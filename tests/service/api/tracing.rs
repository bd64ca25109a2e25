//! Traces: one from the publish to the last result, over replicas and retries, at a collector that speaks the published
//! protocol; and what is passed on where nothing is recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hooklane::api::proto::*;
use hooklane::app::App;
use hooklane::cli::listen::{Behaviour, Receiver};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;

use super::metrics::ops;
use super::{Service, app_with, endpoint, event, receiver, service_with};
use crate::support::{self, eventually};

const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN_ID: &str = "b7ad6b7169203331";

/// What a collector was sent.
#[derive(Debug, Clone, Default)]
pub(super) struct Sink(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        if request.metadata().get("api-key").is_none_or(|key| key != "a secret") {
            return Err(tonic::Status::unauthenticated("no key"));
        }
        self.0.lock().expect("a lock").push(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Sink {
    /// Takes OTLP over gRPC.
    pub(super) async fn grpc() -> (Self, String) {
        let sink = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let service = TraceServiceServer::new(sink.clone());
        let incoming = TcpIncoming::from(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        (sink, format!("http://{address}"))
    }

    /// Takes OTLP as protobuf over HTTP.
    async fn http() -> (Self, String) {
        let sink = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address: SocketAddr = listener.local_addr().expect("an address");
        let taking = sink.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accepted");
                let sink = taking.clone();
                let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let sink = sink.clone();
                    async move {
                        assert_eq!((request.uri().path(), request.method()), ("/v1/traces", &http::Method::POST));
                        assert_eq!(request.headers()["content-type"], "application/x-protobuf");
                        assert_eq!(request.headers()["api-key"], "a secret");
                        let body = request.into_body().collect().await.expect("a body").to_bytes();
                        let export = ExportTraceServiceRequest::decode(body).expect("the published message");
                        sink.0.lock().expect("a lock").push(export);
                        let answer = ExportTraceServiceResponse::default().encode_to_vec();
                        Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from(answer))))
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        (sink, format!("http://{address}"))
    }

    /// Everything it was sent, as it came.
    pub(super) fn sent(&self) -> Vec<ExportTraceServiceRequest> {
        self.0.lock().expect("a lock").clone()
    }

    /// Everything it was sent, with the process each is of.
    pub(super) fn spans(&self) -> Vec<Seen> {
        let exports = self.0.lock().expect("a lock");
        let resources = exports.iter().flat_map(|export| &export.resource_spans);
        resources
            .flat_map(|resource| {
                let of = values(&resource.resource.as_ref().expect("a resource").attributes);
                let spans = resource.scope_spans.iter().flat_map(|scope| {
                    assert_eq!(scope.scope.as_ref().expect("a scope").name, "hooklane");
                    &scope.spans
                });
                spans.map(move |span| Seen { span: span.clone(), of: of.clone() }).collect::<Vec<_>>()
            })
            .collect()
    }

    /// The spans, once there are as many of these names.
    async fn come_to(&self, names: &[(&str, usize)]) -> Vec<Seen> {
        eventually(&format!("the spans {names:?}"), || async {
            let spans = self.spans();
            let is_whole =
                names.iter().all(|(name, count)| spans.iter().filter(|seen| seen.span.name == *name).count() >= *count);
            is_whole.then_some(spans)
        })
        .await
    }
}

/// A span and what is said of its process.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) span: Span,
    of: BTreeMap<String, String>,
}

impl Seen {
    fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    pub(super) fn value(&self, name: &str) -> String {
        values(&self.span.attributes).get(name).cloned().unwrap_or_default()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn values(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let shown = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    };
    attributes.iter().map(|one| (one.key.clone(), shown(&one.value))).collect()
}

fn named<'s>(spans: &'s [Seen], name: &str) -> Vec<&'s Seen> {
    let mut found: Vec<_> = spans.iter().filter(|seen| seen.span.name == name).collect();
    found.sort_by_key(|seen| seen.span.start_time_unix_nano);
    found
}

/// Settings that send spans soon.
pub(super) fn settings(endpoint: &str, protocol: &'static str) -> Vec<(&'static str, String)> {
    vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.to_owned()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20secret".to_owned()),
        ("OTEL_SERVICE_NAME", "hooks".to_owned()),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test".to_owned()),
        ("OTEL_BSP_SCHEDULE_DELAY", "20".to_owned()),
    ]
}

pub(super) fn borrowed<'s>(
    settings: &'s [(&'static str, String)],
    more: &[(&'static str, &'s str)],
) -> Vec<(&'static str, &'s str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).chain(more.iter().copied()).collect()
}

/// Publishes with a `traceparent`; answers the event's and the delivery's id.
async fn publish(service: &Service, traceparent: &str) -> (String, String) {
    publish_with(service, traceparent, &[]).await
}

/// The same, with what others say of the trace.
async fn publish_with(service: &Service, traceparent: &str, tracestates: &[&str]) -> (String, String) {
    let mut request = tonic::Request::new(event("order.created"));
    request.metadata_mut().insert("traceparent", traceparent.parse().expect("a value"));
    for state in tracestates {
        request.metadata_mut().append("tracestate", state.parse().expect("a value"));
    }
    let published = service.client.clone().publish(request).await.expect("published").into_inner();
    (published.event_id, published.deliveries[0].delivery_id.clone())
}

async fn traceparents(receiver: &Receiver, count: usize) -> Vec<String> {
    told(receiver, count).await.into_iter().map(|(traceparent, _)| traceparent).collect()
}

/// The `traceparent` and `tracestate` of so many requests.
async fn told(receiver: &Receiver, count: usize) -> Vec<(String, Option<String>)> {
    let mut received = Vec::new();
    for _ in 0..count {
        let headers = receiver.next().await.expect("a request").headers;
        let text = |name: &str| headers.get(name).map(|value| value.to_str().expect("text").to_owned());
        received.push((text("traceparent").expect("each has one"), text("tracestate")));
    }
    received
}

#[tokio::test]
async fn one_trace_goes_from_the_publish_over_replicas_and_retries_to_the_last_result() {
    let (sink, collector) = Sink::grpc().await;
    let settings = settings(&collector, "grpc");
    let url = support::database().await;
    let front = service_with(url.clone(), &borrowed(&settings, &[("HOOKLANE_ROLES", "api")])).await;
    let back = app_with(url, &borrowed(&settings, &[("HOOKLANE_ROLES", "worker")])).await;
    let receiver = receiver(Behaviour { fail_first: 1, ..Behaviour::default() }).await;
    let registered = front.register(endpoint(&receiver.url())).await;
    let states = ["rojo=00f067aa0ba902b7 , ", "congo=t61rcWkgMzE"];
    let (event_id, delivery_id) = publish_with(&front, &format!("00-{TRACE_ID}-{SPAN_ID}-01"), &states).await;
    front.in_state(&delivery_id, DeliveryState::Succeeded).await;
    let told = told(&receiver, 2).await;
    let names = [("Publish", 1), ("commit", 1), ("claim", 2), ("POST", 2), ("complete", 2)];
    let spans = sink.come_to(&names).await;
    let ours: Vec<Seen> = spans.into_iter().filter(|seen| seen.trace() == TRACE_ID).collect();
    for (name, count) in names {
        assert_eq!(named(&ours, name).len(), count, "{name}");
    }

    let call = named(&ours, "Publish")[0];
    assert_eq!((call.parent().as_str(), call.span.kind()), (SPAN_ID, SpanKind::Server));
    assert_eq!(call.value("rpc.grpc.status_code"), "0");
    let commit = named(&ours, "commit")[0];
    assert_eq!((commit.parent(), commit.value("webhook.event.id")), (call.id(), event_id));
    assert!(commit.span.end_time_unix_nano >= commit.span.start_time_unix_nano);
    let attempts = named(&ours, "POST");
    for (place, (status, attempt)) in [("503", "1"), ("200", "2")].into_iter().enumerate() {
        let span = attempts[place];
        assert_eq!((span.parent(), span.span.kind()), (call.id(), SpanKind::Client));
        let state = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE";
        let expected = (format!("00-{TRACE_ID}-{}-01", span.id()), Some(state.to_owned()));
        assert_eq!(told[place], expected, "the receiver is told of it");
        for (name, expected) in [
            ("http.response.status_code", status),
            ("webhook.attempt", attempt),
            ("webhook.delivery.id", &delivery_id),
            ("webhook.endpoint.id", &registered.id),
            ("http.request.method", "POST"),
        ] {
            assert_eq!(span.value(name), expected, "{name}");
        }
        assert!(span.value("url.full").starts_with("http://127.0.0.1:"));
        let is_error = span.span.status.as_ref().is_some_and(|status| status.code == 2);
        assert_eq!(is_error, status == "503");
        let claim = named(&ours, "claim")[place];
        assert_eq!(claim.parent(), call.id());
        assert!(claim.span.start_time_unix_nano <= span.span.start_time_unix_nano);
        let complete = named(&ours, "complete")[place];
        assert_eq!(complete.parent(), span.id(), "what follows from an attempt is below it");
    }
    assert!(ours.iter().all(|seen| seen.span.trace_state == "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"));
    let ids: BTreeSet<_> = ours.iter().map(Seen::id).collect();
    assert_eq!(ids.len(), ours.len(), "each has an id of its own");
    // Each replica says who it is.
    let replicas: BTreeSet<_> = ours.iter().map(|seen| seen.of["service.instance.id"].clone()).collect();
    assert_eq!(replicas.len(), 2);
    assert!(ours.iter().all(|seen| seen.of["service.name"] == "hooks"));
    assert!(ours.iter().all(|seen| seen.of["deployment.environment.name"] == "test"));
    let of =
        |name| named(&ours, name).iter().map(|seen| seen.of["service.instance.id"].clone()).collect::<BTreeSet<_>>();
    assert_eq!((of("Publish"), of("POST")), (of("commit"), of("claim")));
    back.stop().await;
}

#[tokio::test]
async fn a_lost_attempt_has_the_span_that_its_receiver_was_told_of_whoever_finds_it() {
    let (sink, collector) = Sink::grpc().await;
    let settings = settings(&collector, "grpc");
    let url = support::database().await;
    let front = service_with(url.clone(), &borrowed(&settings, &[("HOOKLANE_ROLES", "api")])).await;
    let working = borrowed(&settings, &[("HOOKLANE_ROLES", "worker"), ("HOOKLANE_SHUTDOWN_GRACE", "0s")]);
    let receiver = receiver(Behaviour { silent: true, ..Behaviour::default() }).await;
    // By the next claim; by whoever looks after endpoints that are paused; by who deletes an endpoint.
    for (place, finder) in ["claim", "pause", "delete"].into_iter().enumerate() {
        receiver.set_behaviour(Behaviour { silent: true, ..Behaviour::default() });
        let lane = front.register(endpoint(&format!("{}/{finder}", receiver.url()))).await;
        let worker = app_with(url.clone(), &working).await;
        let trace_id = format!("{:032x}", place + 1);
        let (event_id, delivery_id) = publish(&front, &format!("00-{trace_id}-{SPAN_ID}-01")).await;
        let told = traceparents(&receiver, 1).await;
        let lost_worker = front.delivery(&delivery_id).await.attempts[0].replica_id.clone();
        worker.stop().await;
        receiver.set_behaviour(Behaviour::default());
        if finder == "pause" {
            let pause = PauseEndpointRequest { endpoint_id: lane.id.clone() };
            front.client.clone().pause_endpoint(pause).await.expect("paused");
        }
        crate::queue::lapse(&url).await;
        match finder {
            "claim" => {
                let worker = app_with(url.clone(), &working).await;
                front.in_state(&delivery_id, DeliveryState::Succeeded).await;
                traceparents(&receiver, 1).await;
                worker.stop().await;
            }
            "pause" => {
                let worker = app_with(url.clone(), &working).await;
                front.in_state(&delivery_id, DeliveryState::Retrying).await;
                worker.stop().await;
            }
            _ => {}
        }
        // The next event is not for it.
        let delete = DeleteEndpointRequest { endpoint_id: lane.id.clone(), ..DeleteEndpointRequest::default() };
        front.client.clone().delete_endpoint(delete).await.expect("deleted");

        let lost = eventually("its span", || async {
            let spans = sink.spans();
            let is_it = |seen: &&Seen| seen.trace() == trace_id && seen.value("webhook.attempt.outcome") == "lost";
            spans.iter().find(is_it).cloned()
        })
        .await;
        assert_eq!(told, [format!("00-{trace_id}-{}-01", lost.id())], "{finder}");
        let call = sink.spans().into_iter().find(|seen| seen.trace() == trace_id && seen.span.name == "Publish");
        assert_eq!(lost.parent(), call.expect("the call's span").id());
        assert_eq!((lost.span.name.as_str(), lost.span.kind()), ("POST", SpanKind::Client));
        let status = lost.span.status.as_ref().expect("a status");
        assert!(status.code == 2 && status.message.contains("lost"), "{status:?}");
        assert!(lost.span.end_time_unix_nano >= lost.span.start_time_unix_nano);
        for (name, expected) in [
            ("webhook.event.id", event_id.as_str()),
            ("webhook.delivery.id", &delivery_id),
            ("webhook.endpoint.id", &lane.id),
            ("webhook.event.type", "order.created"),
            ("webhook.attempt", "1"),
            ("webhook.attempt.replica", &lost_worker),
            ("http.request.method", "POST"),
        ] {
            assert_eq!(lost.value(name), expected, "{name} by {finder}");
        }
        // Where it was sent is not known any more once the endpoint is gone.
        assert_eq!(lost.value("url.full").ends_with(finder), finder != "delete", "{finder}");
    }
}

#[tokio::test]
async fn a_publish_without_a_trace_begins_one_and_one_that_is_not_recorded_is_passed_on() {
    let (sink, collector) = Sink::http().await;
    let settings = settings(&collector, "http/protobuf");
    let service = service_with(support::database().await, &borrowed(&settings, &[])).await;
    let receiver = receiver(Behaviour::default()).await;
    service.register(endpoint(&receiver.url())).await;
    let unrecorded = format!("00-{TRACE_ID}-{SPAN_ID}-00");
    let (_, id) = publish(&service, &unrecorded).await;
    service.in_state(&id, DeliveryState::Succeeded).await;
    assert_eq!(traceparents(&receiver, 1).await, [unrecorded]);

    let id = service.publish_one("order.created").await;
    service.in_state(&id, DeliveryState::Succeeded).await;
    let told = traceparents(&receiver, 1).await;
    let spans = sink.come_to(&[("complete", 1)]).await;
    let call = named(&spans, "Publish")[0];
    assert_eq!(call.parent(), "", "it is the first of its trace");
    let attempt = named(&spans, "POST")[0];
    assert_eq!(told, [format!("00-{}-{}-01", call.trace(), attempt.id())]);
    assert!(spans.iter().all(|seen| seen.trace() != TRACE_ID), "its caller records nothing of the other");
    // Other calls have traces of their own.
    assert_ne!(named(&spans, "RegisterEndpoint")[0].trace(), call.trace());
}

#[tokio::test]
async fn samplers_leave_out_what_they_should() {
    let (sink, collector) = Sink::grpc().await;
    let settings = settings(&collector, "grpc");
    let off = borrowed(&settings, &[("OTEL_TRACES_SAMPLER", "always_off")]);
    let service = service_with(support::database().await, &off).await;
    let receiver = receiver(Behaviour::default()).await;
    service.register(endpoint(&receiver.url())).await;
    let id = service.publish_one("order.created").await;
    service.in_state(&id, DeliveryState::Succeeded).await;
    assert!(traceparents(&receiver, 1).await[0].ends_with("-00"));
    let (_, id) = publish(&service, &format!("00-{TRACE_ID}-{SPAN_ID}-01")).await;
    service.in_state(&id, DeliveryState::Succeeded).await;
    assert_eq!(traceparents(&receiver, 1).await, [format!("00-{TRACE_ID}-{SPAN_ID}-00")]);
    // What there is is sent at the end at the latest.
    service.app.stop().await;
    assert_eq!(sink.spans().len(), 0);
}

#[tokio::test]
async fn without_a_collector_the_publishers_trace_reaches_the_receiver_as_it_came() {
    let url = support::database().await;
    let front = service_with(url.clone(), &[("HOOKLANE_ROLES", "api")]).await;
    let receiver = receiver(Behaviour { fail_first: 1, ..Behaviour::default() }).await;
    front.register(endpoint(&receiver.url())).await;
    let traceparent = format!("00-{TRACE_ID}-{SPAN_ID}-01");
    let (_, id) = publish_with(&front, &traceparent, &["congo=t61rcWkgMzE"]).await;
    // It waits in the database for a replica that has not been there.
    let back = app_with(url, &[("HOOKLANE_ROLES", "worker")]).await;
    front.in_state(&id, DeliveryState::Succeeded).await;
    let as_it_came = (traceparent.clone(), Some("congo=t61rcWkgMzE".to_owned()));
    assert_eq!(told(&receiver, 2).await, [as_it_came.clone(), as_it_came]);
    // What others say is left out where it breaks the rules, or where no trace came with it.
    for (traceparent, state) in [(traceparent.as_str(), "Congo=t61rcWkgMzE"), ("none", "congo=t61rcWkgMzE")] {
        let (_, id) = publish_with(&front, traceparent, &[state]).await;
        front.in_state(&id, DeliveryState::Succeeded).await;
        let told = told(&receiver, 1).await;
        assert_eq!((told[0].0 == traceparent, &told[0].1), (traceparent != "none", &None), "{state}");
    }
    // One that breaks the rules counts as none.
    let (event_id, id) = publish(&front, &format!("00-{TRACE_ID}-0000000000000000-01")).await;
    front.in_state(&id, DeliveryState::Succeeded).await;
    let told = traceparents(&receiver, 1).await;
    assert!(told.iter().all(|told| !told.contains(TRACE_ID) && told.ends_with("-00")), "{told:?} of {event_id}");
    back.stop().await;
}

#[tokio::test]
async fn a_collector_that_is_not_there_costs_spans_and_nothing_else() {
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let settings = settings(&format!("http://{gone}"), "http/protobuf");
    let service = service_with(support::database().await, &borrowed(&settings, &[])).await;
    let receiver = receiver(Behaviour::default()).await;
    service.register(endpoint(&receiver.url())).await;
    let id = service.publish_one("order.created").await;
    service.in_state(&id, DeliveryState::Succeeded).await;
    eventually("they are counted as dropped", || async {
        let dropped = dropped(&service.app).await;
        (dropped > 0.0).then_some(())
    })
    .await;
    service.app.stop().await;
}

async fn dropped(app: &App) -> f64 {
    let (_, _, text) = ops(app, "GET", "/metrics", "").await;
    let line = text.lines().find_map(|line| line.strip_prefix("webhook_spans_dropped_total "));
    line.expect("a series").parse().expect("a number")
}
