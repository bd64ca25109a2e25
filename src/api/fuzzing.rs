//! What `fuzz` asks of the edge: whatever bytes come, they are read or refused. Not for use by the program.

use bytes::Bytes;
use prost::Message as _;
use uuid::Uuid;

use super::auth::Caller;
use super::convert::endpoint::Patch;
use super::convert::mask::Mask;
use super::convert::{Violations, event};
use super::paging::Binding;
use super::server::{Config, Edge};
use super::{proto, status};
use crate::domain::address::EgressRules;
use crate::domain::cloudevents::SourceTemplate;
use crate::domain::time::Timestamp;

/// Takes `bytes` as one of the requests that callers write most of, and reads it to the end.
pub fn read_request(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 3 {
        0 => publish(bytes),
        1 => register(bytes),
        _ => update(bytes),
    }
}

/// Whether `token` leads on in a list with the filter `filter`. One that we make for it does, to where it says.
pub fn read_page_token(filter: &[u8], token: &str) -> bool {
    let binding = || Binding::of("Fuzzed").with(filter);
    let place = Uuid::from_u128(7);
    assert_eq!(binding().parse(&binding().token(place)).ok(), Some(Some(place)));
    binding().parse(token).is_ok()
}

fn publish(bytes: &[u8]) {
    let Ok(request) = proto::PublishRequest::decode(bytes) else { return };
    is_read_again(&request);
    let config = Config {
        grpc_addr: ([127, 0, 0, 1], 0).into(),
        payload_bytes_max: 1_000,
        egress_rules: EgressRules::default(),
        cloudevents_source: SourceTemplate::default(),
        reflection: false,
        edge: Edge::default(),
    };
    let now = Timestamp::from_micros(1_768_996_800_000_000);
    match event::from_proto(&Caller::anyone(), request, &config, now, Violations::new()) {
        Ok(event) => assert!(event.payload.len() <= config.payload_bytes_max),
        Err(refusal) => is_explained(&refusal),
    }
}

fn register(bytes: &[u8]) {
    let Ok(endpoint) = proto::Endpoint::decode(bytes) else { return };
    is_read_again(&endpoint);
    let mut violations = Violations::new();
    let patch = Patch::parse(&endpoint, &Mask::all(), &EgressRules::default(), &mut violations);
    let spec = patch.into_spec(&mut violations);
    // What is refused is named; what is not is whole.
    assert_eq!(spec.is_none(), !violations.is_empty());
    if spec.is_none() {
        is_explained(&violations.into_status());
    }
}

fn update(bytes: &[u8]) {
    let Ok(request) = proto::UpdateEndpointRequest::decode(bytes) else { return };
    is_read_again(&request);
    let endpoint = request.endpoint.unwrap_or_default();
    let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
    let mut violations = Violations::new();
    let mask = Mask::parse(&paths, &endpoint, &mut violations);
    let patch = Patch::parse(&endpoint, &mask, &EgressRules::default(), &mut violations);
    let base = proto::Endpoint { url: "https://example.com/".to_owned(), ..proto::Endpoint::default() };
    let base = Patch::parse(&base, &Mask::all(), &EgressRules::default(), &mut Violations::new());
    if let Some(base) = base.into_spec(&mut Violations::new()) {
        patch.apply(&base, &mut violations);
    }
    if !violations.is_empty() {
        is_explained(&violations.into_status());
    }
}

/// A message that was read is written such that it reads the same.
fn is_read_again<M: prost::Message + Default + PartialEq + std::fmt::Debug>(message: &M) {
    let written = Bytes::from(message.encode_to_vec());
    let again = M::decode(written).ok();
    // A number that is none equals nothing, itself included.
    let has_nan = format!("{message:?}").contains("NaN");
    assert!(has_nan || again.as_ref() == Some(message), "{message:?} {again:?}");
}

/// A refusal fits the header it travels in.
fn is_explained(refusal: &tonic::Status) {
    assert!(!refusal.message().is_empty() && refusal.message().len() <= 2 * status::MESSAGE_BYTES_MAX);
}
