//! Publish and PublishBatch: answered once the events are committed.

use prost::Message as _;
use tonic::Status;

use super::auth::Caller;
use super::convert::{Violations, event};
use super::proto;
use super::proto::publish_batch_result::Result as BatchResult;
use super::service::Webhooks;
use crate::domain::Problem;
use crate::domain::event::NewEvent;
use crate::domain::trace::TraceContext;
use crate::store::{PublishError, Published};

/// Events in one batch.
const BATCH_MAX: usize = 1_000;

impl Webhooks {
    /// Publishes one event.
    pub(super) async fn publish_one(
        &self,
        caller: &Caller,
        request: proto::PublishRequest,
        trace: Option<TraceContext>,
    ) -> Result<proto::PublishResponse, Status> {
        let event = NewEvent { trace, ..self.checked(caller, request, Violations::new())? };
        to_response(self.services.publisher.publish(event).await, Violations::new())
    }

    /// Publishes many; one that is refused does not hinder the others.
    pub(super) async fn publish_many(
        &self,
        caller: &Caller,
        request: proto::PublishBatchRequest,
        trace: Option<TraceContext>,
    ) -> Result<proto::PublishBatchResponse, Status> {
        let count = request.requests.len();
        if !(1..=BATCH_MAX).contains(&count) {
            let mut violations = Violations::new();
            let problem = Problem::new(format!("has {count} entries; allowed are 1 to {BATCH_MAX}"));
            violations.invalid("requests", problem);
            return Err(violations.into_status());
        }
        // All of them are submitted before any is waited for, so that they share commits; in their order, for those
        // that are ordered.
        let mut events = Vec::with_capacity(count);
        let checked: Vec<Result<(), Status>> = (request.requests.into_iter().enumerate())
            .map(|(place, request)| {
                let event = self.checked(caller, request, Violations::of_request(place))?;
                events.push(NewEvent { trace: trace.clone(), ..event });
                Ok(())
            })
            .collect();
        let mut answers = self.services.publisher.publish_in_order(events).await.into_iter();
        let answered = checked.into_iter().enumerate().map(|(place, checked)| {
            checked?;
            to_response(answers.next().unwrap_or(Err(PublishError::Internal)), Violations::of_request(place))
        });
        Ok(proto::PublishBatchResponse { results: answered.map(batch_result).collect() })
    }

    fn checked(
        &self,
        caller: &Caller,
        request: proto::PublishRequest,
        violations: Violations,
    ) -> Result<NewEvent, Status> {
        event::from_proto(caller, request, &self.config, self.services.store.clock().now(), violations)
    }
}

/// The answer for an event; `v` takes what only its endpoints know to be wrong with it.
fn to_response(outcome: Result<Published, PublishError>, mut v: Violations) -> Result<proto::PublishResponse, Status> {
    let (field, problem) = match outcome {
        Ok(published) => return Ok(published_to_proto(published)),
        Err(PublishError::DeliverTimeInOrder(id)) => (
            "deliver_time",
            format!("is set, but {id} delivers in publish order; leave it unset, or do not name that endpoint"),
        ),
        Err(PublishError::OrderingKeyMissing(id)) => (
            "ordering_key",
            format!("is unset, but {id} orders by it; give the event a key, or do not name that endpoint"),
        ),
        Err(error) => return Err(error.into()),
    };
    v.invalid(field, Problem::new(problem));
    Err(v.into_status())
}

fn published_to_proto(published: Published) -> proto::PublishResponse {
    let deliveries = published
        .deliveries
        .into_iter()
        .map(|delivery| proto::PublishedDelivery {
            delivery_id: delivery.delivery_id.to_string(),
            endpoint_id: delivery.endpoint_id.to_string(),
            duplicate: delivery.duplicate,
        })
        .collect();
    proto::PublishResponse { event_id: published.event_id.to_string(), deliveries, duplicate: published.duplicate }
}

fn batch_result(outcome: Result<proto::PublishResponse, Status>) -> proto::PublishBatchResult {
    let result = match outcome {
        Ok(response) => BatchResult::Response(response),
        Err(refusal) => BatchResult::Error(to_rpc_status(&refusal)),
    };
    proto::PublishBatchResult { result: Some(result) }
}

/// A refusal as a message: its details are one already.
fn to_rpc_status(refusal: &Status) -> tonic_types::Status {
    tonic_types::Status::decode(refusal.details()).unwrap_or_else(|_| tonic_types::Status {
        code: refusal.code().into(),
        message: refusal.message().to_owned(),
        details: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::status;
    use super::*;

    #[test]
    fn a_refusal_in_a_batch_keeps_its_code_and_details() {
        let carried = to_rpc_status(&status::payload_too_large(2, 1));
        assert_eq!((carried.code, carried.details.len()), (tonic::Code::ResourceExhausted.into(), 1));
    }
}
