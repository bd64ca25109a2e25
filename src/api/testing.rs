//! TestEndpoint: one request, sent now, past queue and lanes, with everything that the endpoint's own requests have.
//!
//! The api's one use of the egress. Nothing of it is kept: no delivery, no event, no health.

use bytes::Bytes;
use tonic::Status;

use super::auth::Caller;
use super::convert::delivery::attempt_to_proto;
use super::convert::endpoint::REDACTED;
use super::convert::event::check_json;
use super::convert::{Violations, optional_event_type};
use super::service::Webhooks;
use super::{proto, status, under_way};
use crate::domain::Problem;
use crate::domain::attempt::{Attempt, AttemptTrigger};
use crate::domain::endpoint::Endpoint;
use crate::domain::event::Event;
use crate::domain::fields::ContentType;
use crate::domain::id::{DeliveryId, EndpointId, EventId};
use crate::domain::pattern::EventType;
use crate::domain::signature::Signer;
use crate::egress::{Outgoing, Target};
use crate::store::LaneEndpoint;

/// Test requests under way at once: each may take as long as its endpoint's timeout.
pub(super) const TESTS_MAX: usize = 64;
/// The type of the request where the caller names none. Nobody can publish it.
const EVENT_TYPE_DEFAULT: &str = "hooklane.test";

impl Webhooks {
    /// Sends one request to an endpoint, whatever its state, and answers with what came of it.
    pub(super) async fn test(
        &self,
        caller: &Caller,
        request: proto::TestEndpointRequest,
    ) -> Result<proto::TestEndpointResponse, Status> {
        let mut v = Violations::new();
        let id = v.take("endpoint_id", request.endpoint_id.parse::<EndpointId>());
        let event_type = v.take("event_type", optional_event_type(&request.event_type));
        let payload = if request.payload.is_empty() { Bytes::from_static(b"{}") } else { request.payload };
        if payload.len() > self.config.payload_bytes_max {
            return Err(status::payload_too_large(payload.len(), self.config.payload_bytes_max));
        }
        v.take("payload", check_json(&payload));
        let (id, event_type) = match (id, event_type) {
            (Some(id), Some(event_type)) if v.is_empty() => (id, event_type),
            _ => return Err(v.into_status()),
        };
        let endpoint = self.stored_endpoint(caller, id).await?;
        let lane = self.services.store.lane_endpoints(&[id]).await?.pop();
        let (_, lane) = lane.ok_or_else(|| status::endpoint_not_found(id))?;
        let lane = lane?;
        let _room = self.tests.try_acquire().map_err(|_| status::too_many_tests())?;
        let event_type = event_type.unwrap_or_else(|| EVENT_TYPE_DEFAULT.to_owned());
        let event = self.test_event(&endpoint, event_type, payload);
        let attempt = self.send_test(caller, &endpoint, &lane, &event).await.map_err(|problem| unsendable(&problem))?;
        Ok(proto::TestEndpointResponse { attempt: Some(attempt) })
    }

    /// The event that the request tells; drawn like any other, and kept nowhere.
    fn test_event(&self, endpoint: &Endpoint, event_type: String, payload: Bytes) -> Event {
        Event {
            schedule: Default::default(),
            trace: None,
            id: EventId::from_uuid(self.services.store.clock().new_uuid()),
            tenant: endpoint.tenant.clone(),
            event_type: EventType::from_stored(event_type),
            payload,
            content_type: ContentType::default(),
            idempotency_key: None,
            metadata: Default::default(),
            source: self.config.cloudevents_source.source(&endpoint.tenant),
        }
    }

    async fn send_test(
        &self,
        caller: &Caller,
        endpoint: &Endpoint,
        lane: &LaneEndpoint,
        event: &Event,
    ) -> Result<proto::Attempt, Problem> {
        let store = &self.services.store;
        let target = Target::new(&lane.url, Signer::of(&lane.secrets), lane.timeout)?;
        let target = target.with_headers(&lane.headers).with_tls(&lane.tls);
        let now = store.clock().now();
        let delivery_id = DeliveryId::from_uuid(store.clock().new_uuid());
        let outgoing = Outgoing {
            target: &target,
            event,
            delivery_id,
            format: endpoint.spec.payload_format,
            attempt: 1,
            now,
            trace: event.trace_of_attempt(delivery_id, 1),
        };
        let sent = self.services.egress.headers(&outgoing);
        let result = self.services.egress.send(outgoing).await;
        let attempt = Attempt {
            number: 1,
            trigger: AttemptTrigger::Test,
            outcome: Some(result.outcome),
            start_time: now,
            duration: result.duration,
            url: target.shown_url().to_owned(),
            status: result.status,
            response_headers: result.response_headers,
            response_body: result.response_body,
            response_truncated: result.response_truncated,
            error: result.error,
            next_attempt_time: None,
            replica_id: store.replica().to_owned(),
        };
        let shown = |(name, value): (String, String)| match lane.headers.has(&name) && !caller.sees_secrets() {
            true => proto::Header { name, value: REDACTED.to_owned() },
            false => proto::Header { name, value },
        };
        let request_headers = sent.into_iter().map(shown).collect();
        Ok(proto::Attempt { request_headers, ..attempt_to_proto(attempt) })
    }
}

/// A stored address that nothing can be sent to, which no checked one is.
fn unsendable(problem: &Problem) -> Status {
    tracing::error!(%problem, call = under_way::call(), trace_id = under_way::trace_id(), "a test request could not be made");
    status::internal()
}
