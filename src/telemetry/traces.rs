//! Traces: spans of what is done for an event, sent to a collector by OTLP.
//!
//! A trace begins where a call comes in, or goes on with its caller's, and stands with the event in the database. What is
//! done in batches (commits, claims) is one span for each event in it that is recorded, with the batch's times. There is
//! none of this unless the settings name a collector: then each place that could record asks once, and goes on.

mod export;

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use prometheus::IntCounter;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::export::SetupError;
use crate::domain::id::{DeliveryId, EndpointId, EventId};
use crate::domain::time::Timestamp;
use crate::domain::trace::{Sampler, TraceContext, attempt_span};

/// Where spans go, and which.
#[derive(Clone, PartialEq)]
pub struct Config {
    /// How the collector is spoken to.
    pub protocol: Protocol,
    /// Its whole address.
    pub endpoint: String,
    /// Sent with every export.
    pub headers: Vec<(String, String)>,
    /// How long an export may take.
    pub timeout: Duration,
    /// Which traces are recorded.
    pub sampler: Sampler,
    /// What is said of this process, beside what it says by itself.
    pub resource: Vec<(String, String)>,
    /// How spans are gathered.
    pub batch: Batch,
}

/// Without the headers, which may have a credential among them, and without what an address may have before its `@`.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("protocol", &self.protocol)
            .field("endpoint", &self.endpoint.rsplit('@').next())
            .field("timeout", &self.timeout)
            .field("sampler", &self.sampler)
            .field("resource", &self.resource)
            .field("batch", &self.batch)
            .finish_non_exhaustive()
    }
}

/// How the collector is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    Grpc,
    /// Protobuf over HTTP.
    Http,
}

/// How spans are gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Spans of one export.
    pub size_max: usize,
    /// Spans that wait for one; beyond it they are dropped and counted.
    pub queue_max: usize,
    /// How long the first of a batch waits for others.
    pub delay: Duration,
}

/// Records spans. Clones record into the same queue.
#[derive(Clone)]
pub struct Traces {
    sampler: Sampler,
    spans: mpsc::Sender<SpanData>,
    dropped: IntCounter,
    scope: InstrumentationScope,
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").field("sampler", &self.sampler).finish_non_exhaustive()
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A call that came in.
    Server,
    /// A request that went out.
    Client,
    /// Something between them.
    Internal,
}

/// Something that is being measured.
#[derive(Debug)]
pub struct Span {
    context: TraceContext,
    parent: Option<u64>,
    is_parent_remote: bool,
    kind: Kind,
    name: Cow<'static, str>,
    start: Timestamp,
    attributes: Vec<KeyValue>,
    status: Status,
}

impl Span {
    /// Its place in the trace: what follows from it is its child.
    pub const fn context(&self) -> &TraceContext {
        &self.context
    }

    /// Says more of it.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.attributes.push(KeyValue::new(name, value));
        self
    }

    /// Says which delivery it is about.
    #[must_use]
    pub fn of_delivery(self, event: EventId, delivery: DeliveryId, endpoint: EndpointId) -> Self {
        self.with("webhook.event.id", event.to_string())
            .with("webhook.delivery.id", delivery.to_string())
            .with("webhook.endpoint.id", endpoint.to_string())
    }

    /// Says that it is a delivery's attempt, whose span everybody knows by the same id.
    #[must_use]
    pub fn of_attempt(mut self, delivery: DeliveryId, attempt: u32, event_type: &str, url: Option<&str>) -> Self {
        self.context = self.context.with_span(attempt_span(delivery, attempt));
        let span = self
            .with("webhook.event.type", event_type.to_owned())
            .with("webhook.attempt", i64::from(attempt))
            .with("http.request.method", "POST");
        match url {
            Some(url) => span.with("url.full", url.to_owned()),
            None => span,
        }
    }

    /// Says that it failed, and of what.
    #[must_use]
    pub fn failed(mut self, words: impl Into<Cow<'static, str>>) -> Self {
        self.status = Status::error(words);
        self
    }
}

impl Traces {
    /// Starts sending to the collector, whether it answers or not; `end` sends what is left, for two seconds at most.
    pub fn start(
        config: &Config,
        replica: &str,
        dropped: IntCounter,
        end: CancellationToken,
    ) -> Result<(Self, JoinHandle<()>), SetupError> {
        let exporter = export::exporter(config, replica)?;
        let (spans, queue) = mpsc::channel(config.batch.queue_max);
        let sending = tokio::spawn(export::send_all(exporter, queue, config.batch, dropped.clone(), end));
        let scope = InstrumentationScope::builder("hooklane").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok((Self { sampler: config.sampler, spans, dropped, scope }, sending))
    }

    /// Begins the span of a call that came with `parent`, where its trace is to be recorded.
    pub fn begin_call(&self, name: &'static str, parent: Option<&TraceContext>, now: Timestamp) -> Option<Span> {
        let trace_id = parent.map_or_else(rand::random, |parent| parent.trace_id().number());
        if !self.sampler.samples(trace_id, parent) {
            return None;
        }
        let context = match parent {
            Some(parent) => parent.clone().with_span(span_id()).into_recorded(),
            None => TraceContext::recorded(trace_id, span_id())?,
        };
        Some(Span {
            context,
            parent: parent.map(TraceContext::span_id),
            is_parent_remote: true,
            kind: Kind::Server,
            name: name.into(),
            start: now,
            attributes: Vec::new(),
            status: Status::Unset,
        })
    }

    /// Begins a span below `parent`, where that is recorded.
    pub fn begin(
        &self,
        kind: Kind,
        name: &'static str,
        parent: Option<&TraceContext>,
        start: Timestamp,
    ) -> Option<Span> {
        let parent = parent.filter(|parent| parent.is_recorded())?;
        Some(Span {
            context: parent.clone().with_span(span_id()),
            parent: Some(parent.span_id()),
            is_parent_remote: false,
            kind,
            name: name.into(),
            start,
            attributes: Vec::new(),
            status: Status::Unset,
        })
    }

    /// Records what has ended. Nobody waits for the collector: what finds the queue full is dropped, and counted.
    pub fn end(&self, span: Span, now: Timestamp) {
        let data = SpanData {
            span_context: SpanContext::new(
                TraceId::from(span.context.trace_id().number()),
                SpanId::from(span.context.span_id()),
                TraceFlags::SAMPLED,
                false,
                span.context.state().and_then(|state| state.as_str().parse().ok()).unwrap_or(TraceState::NONE),
            ),
            parent_span_id: span.parent.map_or(SpanId::INVALID, SpanId::from),
            parent_span_is_remote: span.is_parent_remote,
            span_kind: match span.kind {
                Kind::Server => SpanKind::Server,
                Kind::Client => SpanKind::Client,
                Kind::Internal => SpanKind::Internal,
            },
            name: span.name,
            start_time: system_time(span.start),
            end_time: system_time(now.max(span.start)),
            attributes: span.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: span.status,
            instrumentation_scope: self.scope.clone(),
        };
        if self.spans.try_send(data).is_err() {
            self.dropped.inc();
        }
    }
}

/// All zeros is none.
fn span_id() -> u64 {
    rand::random::<u64>().max(1)
}

/// By the database's clock, as all of our times: spans of several replicas are in order.
fn system_time(time: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(time.micros()).unwrap_or_default())
}
