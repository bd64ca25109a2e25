//! An event: what a caller publishes, and what is kept of it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::cloudevents::Source;
use super::fields::{ContentType, Tenant};
use super::id::{EndpointId, EventId};
use super::pattern::EventType;

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
}

impl NewEvent {
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
        }
    }
}
