//! How large a payload and a message may be, to the byte.

use hooklane::api::proto::publish_batch_result::Result as BatchResult;
use hooklane::api::proto::{GetEventRequest, PublishBatchRequest, PublishRequest};
use tonic::Code;

use super::{event, event_of, reason, service, service_with, told};
use crate::support;

/// A JSON text of exactly that many bytes.
fn json(bytes: usize) -> String {
    format!("\"{}\"", "x".repeat(bytes - 2))
}

#[tokio::test]
async fn a_payload_may_have_the_limit_and_not_a_byte_more() {
    let service = service().await;
    let mut client = service.client.clone();
    const LIMIT: usize = 256 * 1024;
    client.publish(event_of(json(LIMIT))).await.expect("at the limit");
    // Over the payload's limit alone, at the message's own, and over that one too.
    for bytes in [LIMIT + 1, LIMIT + 32 * 1024, LIMIT + 64 * 1024 + 1, 4 * LIMIT, 20 * 1024 * 1024] {
        let refusal = client.publish(event_of(json(bytes))).await.expect_err("too large");
        assert_eq!(reason(&refusal), told(Code::ResourceExhausted, "PAYLOAD_TOO_LARGE"), "{bytes}");
    }
    client.publish(event("a")).await.expect("the connection still serves");
}

#[tokio::test]
async fn the_payload_limit_is_a_setting() {
    let service = service_with(support::database().await, &[("HOOKLANE_LIMITS_PAYLOAD_BYTES", "100")]).await;
    let mut client = service.client.clone();
    client.publish(event_of(json(100))).await.expect("at the limit");
    for bytes in [101, 70_000] {
        let refusal = client.publish(event_of(json(bytes))).await.expect_err("too large");
        assert_eq!(reason(&refusal), told(Code::ResourceExhausted, "PAYLOAD_TOO_LARGE"));
    }
}

#[tokio::test]
async fn a_batch_has_a_limit_for_each_payload_and_one_for_all() {
    let service = service().await;
    let mut client = service.client.clone();
    const LIMIT: usize = 256 * 1024;
    let requests = vec![event_of(json(LIMIT)), event_of(json(LIMIT + 1)), event("a")];
    let results = client.publish_batch(PublishBatchRequest { requests }).await.expect("mixed").into_inner().results;
    let codes: Vec<_> = results
        .iter()
        .map(|result| match result.result.as_ref().expect("a result") {
            BatchResult::Response(_) => Code::Ok,
            BatchResult::Error(refusal) => Code::from_i32(refusal.code),
        })
        .collect();
    assert_eq!(codes, [Code::Ok, Code::ResourceExhausted, Code::Ok]);

    // 60 payloads at their limit are under 16 MiB, 65 are over.
    let batch = |count| PublishBatchRequest { requests: vec![event_of(json(LIMIT)); count] };
    client.publish_batch(batch(60)).await.expect("under the limit");
    let refusal = client.publish_batch(batch(65)).await.expect_err("over it");
    assert_eq!(reason(&refusal), told(Code::ResourceExhausted, "PAYLOAD_TOO_LARGE"));
}

#[tokio::test]
async fn every_other_message_has_a_limit_too() {
    let service = service().await;
    let mut client = service.client.clone();
    let request = |bytes: usize| GetEventRequest { event_id: "x".repeat(bytes) };
    let refusal = client.get_event(request(1024 * 1024)).await.expect_err("over 1 MiB with its field's prefix");
    assert_eq!(reason(&refusal), told(Code::ResourceExhausted, "PAYLOAD_TOO_LARGE"));
    let refusal = client.get_event(request(1024 * 1024 - 4)).await.expect_err("read, and no id");
    assert_eq!(reason(&refusal), told(Code::InvalidArgument, "INVALID_FIELD"));
    assert!(refusal.message().len() < 2_048 && refusal.details().len() < 6_000, "what was sent is not sent back");
}

#[tokio::test]
async fn a_request_with_more_bad_fields_than_a_header_holds_is_refused_all_the_same() {
    let service = service().await;
    let request = PublishRequest { endpoint_ids: vec!["x".repeat(500); 1_000], ..event("a b") };
    let refusal = service.client.clone().publish(request).await.expect_err("bad");
    assert_eq!(reason(&refusal), told(Code::ResourceExhausted, "PAYLOAD_TOO_LARGE"), "half a megabyte of ids");
    let request = PublishRequest { endpoint_ids: vec!["x".repeat(100); 1_000], ..event("a b") };
    let refusal = service.client.clone().publish(request).await.expect_err("bad");
    assert_eq!(reason(&refusal), told(Code::InvalidArgument, "INVALID_FIELD"));
    let request = PublishRequest { endpoint_ids: vec!["x".to_owned(); 1_001], ..event("a") };
    let refusal = service.client.clone().publish(request).await.expect_err("too many");
    assert_eq!(super::fields(&refusal), ["endpoint_ids"]);
}
