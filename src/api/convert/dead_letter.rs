//! Dead letters as callers see them.

use super::time::to_timestamp;
use crate::api::proto;
use crate::store::DeadLetter;

/// A dead letter for an answer.
pub(in crate::api) fn to_proto(letter: DeadLetter) -> proto::DeadLetter {
    proto::DeadLetter {
        delivery_id: letter.delivery.to_string(),
        event_id: letter.event.to_string(),
        endpoint_id: letter.endpoint.to_string(),
        tenant: letter.tenant.to_string(),
        event_type: letter.event_type,
        payload: letter.payload,
        endpoint_url: letter.endpoint_url,
        failure_reason: letter.reason,
        attempts: letter.attempts,
        create_time: Some(to_timestamp(letter.delivery.time())),
        dead_time: Some(to_timestamp(letter.dead_time)),
        expire_time: Some(to_timestamp(letter.expire_time)),
        last_attempt_time: letter.last_attempt_time.map(to_timestamp),
    }
}
