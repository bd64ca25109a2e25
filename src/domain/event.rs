//! An event: what a caller publishes, and what is kept of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::cloudevents::Source;
use super::endpoint::EndpointSpec;
use super::fields::{ContentType, Tenant};
use super::id::{DeliveryId, EndpointId, EventId};
use super::pattern::EventType;
use super::schedule::Schedule;
use super::secret::Secret;
use super::trace::{TraceContext, TraceId};

/// A published event as the database holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Drawn at publish; tells the create time.
    pub id: EventId,
    /// Who published it.
    pub tenant: Tenant,
    /// What happened.
    pub event_type: EventType,
    /// The bytes as published; valid JSON where the content type says so.
    pub payload: Bytes,
    /// The payload's media type.
    pub content_type: ContentType,
    /// The publisher's key, 1–255 visible ASCII characters.
    pub idempotency_key: Option<String>,
    /// The publisher's notes; kept, never sent.
    pub metadata: BTreeMap<String, String>,
    /// Where CloudEvents bodies say it comes from; `None` means `/hooklane/<tenant>`.
    pub source: Option<Source>,
    /// When and in what order it is delivered.
    pub schedule: Schedule,
    /// The trace it belongs to, and the span that published it.
    pub trace: Option<TraceContext>,
}

impl Event {
    /// The id by which everything that belongs to it is found in logs and traces, as receivers are told it. Where no
    /// trace came with it, it is its own.
    pub fn trace_id(&self) -> TraceId {
        self.trace.as_ref().map_or_else(|| TraceId::of_event(self.id), TraceContext::trace_id)
    }

    /// The place in that trace that the receiver of an attempt is told of where the attempt is not recorded: the
    /// publisher's.
    pub fn trace_of_attempt(&self, delivery: DeliveryId, attempt: u32) -> TraceContext {
        self.trace.clone().unwrap_or_else(|| TraceContext::of_attempt(self.id, delivery, attempt))
    }
}

/// An event that a caller wants published: checked, not yet committed.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// Who publishes it.
    pub tenant: Tenant,
    /// What happened.
    pub event_type: EventType,
    /// The bytes to deliver.
    pub payload: Bytes,
    /// The payload's media type.
    pub content_type: ContentType,
    /// Makes a repeat return the first deliveries.
    pub idempotency_key: Option<String>,
    /// The publisher's notes.
    pub metadata: BTreeMap<String, String>,
    /// Where CloudEvents bodies say it comes from; `None` means `/hooklane/<tenant>`.
    pub source: Option<Source>,
    /// The endpoints to deliver to; empty means every one that matches. No duplicates.
    pub endpoint_ids: Vec<EndpointId>,
    /// An endpoint that comes with the event; `endpoint_ids` is empty then.
    pub inline_endpoint: Option<Arc<InlineEndpoint>>,
    /// When and in what order it is delivered.
    pub schedule: Schedule,
    /// The trace it belongs to, and the span that publishes it.
    pub trace: Option<TraceContext>,
}

/// An address to deliver to that nobody registered. It is kept as an unlisted endpoint, one for each tenant, URL and
/// secret.
#[derive(Debug, PartialEq)]
pub struct InlineEndpoint {
    /// What the caller decides about it.
    pub spec: EndpointSpec,
    /// Signs its requests.
    pub secret: Secret,
}

impl InlineEndpoint {
    /// What tells it from others: SHA-256 over tenant, URL and secret. None of them can hold a NUL.
    pub fn digest(&self, tenant: &Tenant) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in [tenant.as_str(), self.spec.url.as_str(), self.secret.expose()] {
            hash.update(part);
            hash.update([0]);
        }
        hash.finalize().into()
    }
}

impl NewEvent {
    /// Its trace, where it came with one or one is recorded. It has no id of its own yet.
    pub fn trace_id(&self) -> Option<TraceId> {
        self.trace.as_ref().map(TraceContext::trace_id)
    }

    /// Whether it goes to whoever wants it.
    pub const fn is_fan_out(&self) -> bool {
        self.endpoint_ids.is_empty() && self.inline_endpoint.is_none()
    }

    /// The event it became.
    pub fn into_event(self, id: EventId) -> Event {
        Event {
            id,
            tenant: self.tenant,
            event_type: self.event_type,
            payload: self.payload,
            content_type: self.content_type,
            idempotency_key: self.idempotency_key,
            metadata: self.metadata,
            source: self.source,
            schedule: self.schedule,
            trace: self.trace,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::domain) fn event(event_type: &str, payload: &str, content_type: &str) -> Event {
        Event {
            id: "evt_01h455vb4pex5vsknk084sn02q".parse().expect("id"),
            tenant: Tenant::default_tenant(),
            event_type: EventType::parse(event_type).expect("type"),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            content_type: ContentType::parse(content_type).expect("content type"),
            idempotency_key: None,
            metadata: BTreeMap::new(),
            source: None,
            schedule: Schedule::default(),
            trace: None,
        }
    }
}
