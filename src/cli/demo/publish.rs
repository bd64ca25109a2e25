//! The events of act 3, and what a publish answers.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Client, refused};
use crate::api::proto::publish_request::Body;
use crate::api::proto::{PublishRequest, PublishResponse};
use crate::cli::Failure;

/// An event to publish.
pub(super) struct Event {
    pub(super) event_type: &'static str,
    payload: &'static str,
    /// Makes a repeated publish harmless; empty for none.
    idempotency_key: &'static str,
}

/// The first three are wanted by one or both receivers, the fourth repeats the second as a caller does that got no
/// answer, the fifth nobody wants.
pub(super) const EVENTS: &[Event] = &[
    event("order.created", r#"{"order": "A-1001", "total": "49.90"}"#, ""),
    event("order.paid", r#"{"order": "A-1001", "method": "card"}"#, "payment-A-1001"),
    event("customer.created", r#"{"customer": "C-7", "name": "Ada"}"#, ""),
    event("order.paid", r#"{"order": "A-1001", "method": "card"}"#, "payment-A-1001"),
    event("invoice.drafted", r#"{"invoice": "I-1"}"#, ""),
    event("order.shipped", r#"{"order": "A-1001", "parcels": 2}"#, ""),
];

const fn event(event_type: &'static str, payload: &'static str, idempotency_key: &'static str) -> Event {
    Event { event_type, payload, idempotency_key }
}

/// Publishes the event; answers also how long it took until it was acknowledged, which is to say committed.
pub(super) async fn publish(event: &Event, client: &mut Client) -> Result<(PublishResponse, Duration), Failure> {
    let request = PublishRequest {
        event_type: event.event_type.to_owned(),
        body: Some(Body::Payload(Bytes::from_static(event.payload.as_bytes()))),
        idempotency_key: event.idempotency_key.to_owned(),
        ..PublishRequest::default()
    };
    let began = Instant::now();
    let response = client.publish(request).await.map_err(refused("Publish"))?;
    Ok((response.into_inner(), began.elapsed()))
}
