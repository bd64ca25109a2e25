//! The egress against real receivers on loopback: `requests` what they receive, `answers` and `abusive` what is made of what
//! they do,
//! `refusals` and `guarded` what never reaches them, `secured` with certificates of their own, `tunnels` through a proxy;
//! `storms` in a simulated network that breaks.

mod abusive;
mod answers;
mod guarded;
pub(super) mod receiver;
mod refusals;
mod requests;
pub(super) mod script;
mod secured;
mod storms;
pub(super) mod stream;
mod tunnels;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::domain::attempt::AttemptOutcome;
use crate::domain::endpoint::{PayloadFormat, SignatureScheme};
use crate::domain::event::Event;
use crate::domain::fields::{ContentType, Tenant};
use crate::domain::id::DeliveryId;
use crate::domain::pattern::EventType;
use crate::domain::secret::Secret;
use crate::domain::signature::Signer;
use crate::domain::url::EndpointUrl;

/// 2026-01-21T12:00:00Z.
const NOW: Timestamp = Timestamp::from_micros(1_768_996_800_000_000);

/// Enough for an answer on a busy machine, where the test does not wait for it to pass.
const PATIENT: Duration = Duration::from_secs(20);
/// The deadline of tests that wait for it to pass.
const SHORT: Duration = Duration::from_millis(500);

fn egress_with(rules: EgressRules) -> Egress {
    Egress::new(Config { rules, proxy: None, user_agent: "hooklane/1.2.3".to_owned() }).unwrap()
}

/// An egress that may reach the receivers of these tests.
pub(super) fn egress() -> Egress {
    egress_with(EgressRules {
        allow_http: true,
        allow_cidrs: vec!["127.0.0.0/8".parse().unwrap()],
        ..EgressRules::default()
    })
}

fn secret() -> Secret {
    Secret::from_random(&[7; 32])
}

fn target_of(url: &str, scheme: SignatureScheme, timeout: Duration) -> Target {
    let url = EndpointUrl::from_stored(url).unwrap();
    Target::new(&url, Signer::new(scheme, [&secret()]), timeout).unwrap()
}

fn target(url: &str, timeout: Duration) -> Target {
    target_of(url, SignatureScheme::Timestamped, timeout)
}

fn event(payload: impl Into<Bytes>) -> Event {
    Event {
        schedule: Default::default(),
        id: "evt_01h455vb4pex5vsknk084sn02q".parse().unwrap(),
        tenant: Tenant::default_tenant(),
        event_type: EventType::parse("order.created").unwrap(),
        payload: payload.into(),
        content_type: ContentType::parse("application/json; charset=utf-8").unwrap(),
        idempotency_key: None,
        metadata: BTreeMap::from([("never".to_owned(), "sent".to_owned())]),
        source: None,
        trace: None,
    }
}

fn outgoing<'a>(target: &'a Target, event: &'a Event) -> Outgoing<'a> {
    Outgoing {
        target,
        event,
        delivery_id: delivery_id(),
        format: PayloadFormat::Envelope,
        attempt: 3,
        now: NOW,
        trace: event.trace_of_attempt(delivery_id(), 3),
    }
}

fn delivery_id() -> DeliveryId {
    "dlv_01h455vb4pex5vsknk084sn02q".parse().unwrap()
}

pub(super) async fn send(egress: &Egress, url: &str, timeout: Duration) -> AttemptResult {
    egress.send(outgoing(&target(url, timeout), &event(r#"{"a":1}"#))).await
}

#[track_caller]
fn check(result: &AttemptResult, outcome: AttemptOutcome, status: u16, error: &str) {
    assert_eq!((result.outcome, result.status, result.error.as_str()), (outcome, status, error));
}
