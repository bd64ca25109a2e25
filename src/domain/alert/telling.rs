//! Operational events: what tells an alert's tenant of it, and of deliveries that failed for good.
//!
//! Each is made of what does not change any more and has a key of its own, so that telling twice is publishing the same
//! event twice.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};

use super::AlertKind;
use crate::domain::event::NewEvent;
use crate::domain::fields::{ContentType, Tenant};
use crate::domain::id::{AlertId, DeliveryId, EndpointId, EventId};
use crate::domain::pattern::EventType;
use crate::domain::schedule::Schedule;
use crate::domain::time::Timestamp;

/// What tells that an endpoint answers again, or is enabled again.
const RECOVERED: &str = "hooklane.endpoint.recovered";
/// What tells of a delivery that failed for good.
const DELIVERY_FAILED: &str = "hooklane.delivery.failed";

/// An alert as the database holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Alert {
    /// Its id.
    pub id: AlertId,
    /// Whose endpoint it is.
    pub tenant: Tenant,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// What it is about.
    pub kind: AlertKind,
    /// In words.
    pub message: String,
    /// The figures behind it.
    pub details: BTreeMap<String, Value>,
    /// When it was opened.
    pub open_time: Timestamp,
    /// When its condition had ceased to hold; `None` while it is open.
    pub close_time: Option<Timestamp>,
    /// When somebody acknowledged it, and who.
    pub acknowledged: Option<(Timestamp, String)>,
}

impl Alert {
    /// The operational event of a level, where its kind has one.
    pub fn opening(&self, level: u32) -> Option<NewEvent> {
        let mut data = json!({ "alert_id": self.id.to_string(), "endpoint_id": self.endpoint.to_string() });
        data["open_time"] = json!(self.open_time.to_string());
        if self.kind == AlertKind::EndpointFailing {
            data["consecutive_failures"] = json!(level);
        } else {
            for (name, value) in &self.details {
                data[name] = value.clone();
            }
        }
        let key = format!("{}/{level}", self.id);
        Some(operational(&self.tenant, self.kind.event_type()?, &data, key))
    }

    /// The operational event of its end, where its kind has one and it has ended.
    pub fn recovery(&self) -> Option<NewEvent> {
        let close_time = self.close_time.filter(|_| self.kind.tells_recovery())?;
        let data = json!({
            "alert_id": self.id.to_string(), "alert_kind": self.kind.name(), "endpoint_id": self.endpoint.to_string(),
            "open_time": self.open_time.to_string(), "close_time": close_time.to_string(),
        });
        Some(operational(&self.tenant, RECOVERED, &data, format!("{}/recovered", self.id)))
    }
}

/// A delivery that failed for good, as the timeline tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedDelivery {
    /// When.
    pub time: Timestamp,
    /// Which.
    pub delivery: DeliveryId,
    /// Of which event.
    pub event: EventId,
    /// Where it was to go.
    pub endpoint: EndpointId,
    /// Whose it is.
    pub tenant: Tenant,
    /// The event's type.
    pub event_type: String,
    /// Why.
    pub reason: String,
    /// Attempts made by then.
    pub attempts: u32,
    /// The last response's status, 0 where none came.
    pub last_status: u32,
}

impl FailedDelivery {
    /// The operational event that tells of it. One that is retried by hand may fail again, at another time.
    pub fn told(&self) -> NewEvent {
        let data = json!({
            "delivery_id": self.delivery.to_string(), "event_id": self.event.to_string(),
            "endpoint_id": self.endpoint.to_string(), "event_type": self.event_type, "reason": self.reason,
            "attempts": self.attempts, "last_status": self.last_status, "fail_time": self.time.to_string(),
        });
        operational(&self.tenant, DELIVERY_FAILED, &data, format!("{}/failed/{}", self.delivery, self.time.micros()))
    }
}

fn operational(tenant: &Tenant, event_type: &str, data: &Value, key: String) -> NewEvent {
    NewEvent {
        tenant: tenant.clone(),
        event_type: EventType::from_stored(event_type.to_owned()),
        payload: Bytes::from(data.to_string()),
        content_type: ContentType::default(),
        idempotency_key: Some(format!("hooklane/{key}")),
        metadata: BTreeMap::new(),
        source: None,
        schedule: Schedule::default(),
        endpoint_ids: Vec::new(),
        inline_endpoint: None,
        trace: None,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn alert(kind: AlertKind, details: Value) -> Alert {
        let Value::Object(details) = details else { panic!("an object") };
        Alert {
            id: AlertId::from_uuid(Uuid::from_u128(1)),
            tenant: Tenant::default_tenant(),
            endpoint: EndpointId::from_uuid(Uuid::from_u128(7)),
            kind,
            message: String::new(),
            details: details.into_iter().collect(),
            open_time: Timestamp::from_micros(1_768_996_800_000_000),
            close_time: None,
            acknowledged: None,
        }
    }

    fn payload(event: &NewEvent) -> Value {
        serde_json::from_slice(&event.payload).expect("JSON")
    }

    #[test]
    fn each_level_and_the_end_are_events_of_their_own() {
        let failing = alert(AlertKind::EndpointFailing, json!({ "consecutive_failures": 12, "threshold": 10 }));
        let events = [3, 5].map(|level| failing.opening(level).expect("an event"));
        assert_ne!(events[0].idempotency_key, events[1].idempotency_key);
        assert_eq!(events[0].event_type.as_str(), "hooklane.endpoint.failing");
        assert_eq!(
            payload(&events[0]),
            json!({
                "alert_id": "alr_00000000000000000000000001", "endpoint_id": "ep_00000000000000000000000007",
                "consecutive_failures": 3, "open_time": "2026-01-21T12:00:00Z",
            })
        );
        assert_eq!(failing.recovery().map(|event| event.event_type), None, "it is open");
        let closed = Alert { close_time: Some(Timestamp::from_micros(1_768_996_801_000_000)), ..failing };
        let recovery = closed.recovery().expect("an event");
        assert_eq!(recovery.event_type.as_str(), "hooklane.endpoint.recovered");
        assert_eq!(payload(&recovery)["close_time"], "2026-01-21T12:00:01Z");
        assert_eq!(alert(AlertKind::FilterError, json!({})).opening(1).map(|event| event.event_type), None);
    }
}
