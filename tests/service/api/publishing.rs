//! PublishBatch, idempotency and tenants, as callers see them.

use hooklane::api::proto::publish_batch_result::Result as BatchResult;
use hooklane::api::proto::{
    Endpoint, ListDeliveriesRequest, ListEndpointsRequest, PublishBatchRequest, PublishRequest, PublishResponse,
};
use hooklane::cli::listen::Behaviour;
use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::{Service, endpoint, event, event_of, reason, receiver, service, told};
use crate::support::eventually;

async fn batch(service: &Service, requests: Vec<PublishRequest>) -> Vec<Result<PublishResponse, tonic_types::Status>> {
    let answer = service.client.clone().publish_batch(PublishBatchRequest { requests }).await.expect("answered");
    let results = answer.into_inner().results;
    results
        .into_iter()
        .map(|result| match result.result.expect("a result") {
            BatchResult::Response(response) => Ok(response),
            BatchResult::Error(refusal) => Err(refusal),
        })
        .collect()
}

/// A refusal inside a batch as one that a call of its own would have met.
fn as_status(refusal: &tonic_types::Status) -> Status {
    Status::with_details(Code::from_i32(refusal.code), refusal.message.clone(), refusal.encode_to_vec().into())
}

fn keyed(key: &str, payload: &str) -> PublishRequest {
    PublishRequest { idempotency_key: key.to_owned(), ..event_of(payload.to_owned()) }
}

#[tokio::test]
async fn a_batch_answers_each_request_in_order_and_one_refusal_hinders_no_other() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    let endpoint = service.register(endpoint(&receiver.url())).await;
    service.publish(keyed("taken", "1")).await;
    let requests = vec![
        keyed("a", "1"),
        PublishRequest { tenant: "a b".to_owned(), metadata: [(String::new(), String::new())].into(), ..event("b c") },
        keyed("taken", "2"),
        PublishRequest { endpoint_ids: vec!["ep_01h455vb4pex5vsknk084sn02q".to_owned()], ..event("a") },
        PublishRequest { ordering_key: "not a key".to_owned(), ..event("a") },
        keyed("taken", "1"),
        event("other"),
    ];
    let count = requests.len();
    let results = batch(&service, requests).await;
    assert_eq!(results.len(), count);
    for (place, expected) in [
        (1, told(Code::InvalidArgument, "INVALID_FIELD")),
        (2, told(Code::AlreadyExists, "IDEMPOTENCY_KEY_CONFLICT")),
        (3, told(Code::NotFound, "ENDPOINT_NOT_FOUND")),
        (4, told(Code::InvalidArgument, "INVALID_FIELD")),
    ] {
        let refusal = results[place].as_ref().expect_err("refused");
        assert_eq!(reason(&as_status(refusal)), expected, "{place}");
    }
    let details: ErrorDetails = as_status(results[1].as_ref().expect_err("refused")).get_error_details();
    let mut fields: Vec<_> =
        details.bad_request().expect("BadRequest").field_violations.iter().map(|one| one.field.as_str()).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["requests[1].event_type", "requests[1].metadata", "requests[1].tenant"]);
    for (place, duplicate) in [(0, false), (5, true), (6, false)] {
        let response = results[place].as_ref().expect("accepted");
        assert_eq!((response.duplicate, response.deliveries.len()), (duplicate, 1), "{place}");
        assert_eq!(response.deliveries[0].endpoint_id, endpoint.id);
    }
    // The one before, and the two new ones of the batch.
    for _ in 0..3 {
        receiver.next().await.expect("a request");
    }
}

#[tokio::test]
async fn a_batch_may_repeat_a_key_within_itself() {
    let service = service().await;
    service.register(endpoint("http://127.0.0.1:9/")).await;
    let results = batch(&service, vec![keyed("k", "1"), keyed("k", "1"), keyed("k", "2")]).await;
    // Which of the two contents is first is the publisher's to decide; one of them is, and the other conflicts.
    let (accepted, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    let accepted: Vec<_> = accepted.into_iter().flatten().collect();
    assert_eq!(accepted.iter().filter(|response| !response.duplicate).count(), 1);
    assert!(accepted.iter().all(|response| response.event_id == accepted[0].event_id));
    assert!(!refused.is_empty());
    for refusal in refused {
        let refusal = as_status(&refusal.expect_err("refused"));
        assert_eq!(reason(&refusal), told(Code::AlreadyExists, "IDEMPOTENCY_KEY_CONFLICT"));
    }
}

#[tokio::test]
async fn a_thousand_events_in_one_batch_arrive() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    service.register(endpoint(&receiver.url())).await;
    let results = batch(&service, vec![event("a"); 1_000]).await;
    assert!(results.len() == 1_000 && results.iter().all(Result::is_ok));
    eventually("all arrived", || async { (receiver.count() == 1_000).then_some(()) }).await;
}

#[tokio::test]
async fn a_repeat_answers_the_first_delivery_and_delivers_nothing() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    service.register(endpoint(&receiver.url())).await;
    let first = service.publish(keyed("k", "{}")).await;
    let repeat = service.publish(keyed("k", "{}")).await;
    assert!(!first.duplicate && repeat.duplicate && repeat.deliveries[0].duplicate);
    assert_eq!(repeat.event_id, first.event_id);
    assert_eq!(repeat.deliveries[0].delivery_id, first.deliveries[0].delivery_id);
    for other in [
        keyed("k", "[]"),
        PublishRequest { event_type: "order.paid".to_owned(), ..keyed("k", "{}") },
        PublishRequest { content_type: "text/plain".to_owned(), ..keyed("k", "{}") },
    ] {
        let refusal = service.client.clone().publish(other).await.expect_err("another content");
        assert_eq!(reason(&refusal), told(Code::AlreadyExists, "IDEMPOTENCY_KEY_CONFLICT"));
    }
    // After a later event has arrived, the repeat has had every occasion to.
    service.publish(event("later")).await;
    let arrived = [receiver.next().await, receiver.next().await].map(|one| one.expect("a request").event_type);
    assert!(arrived.contains(&Some("later".to_owned())), "{arrived:?}");
    assert_eq!(receiver.count(), 2);
}

#[tokio::test]
async fn an_endpoint_named_twice_gets_one_delivery() {
    let service = service().await;
    let id = service.register(endpoint("http://127.0.0.1:9/")).await.id;
    let request = PublishRequest { endpoint_ids: vec![id.clone(), id.clone()], ..event("a") };
    assert_eq!(service.publish(request).await.deliveries.len(), 1);
}

#[tokio::test]
async fn tenants_do_not_see_each_other() {
    let service = service().await;
    let mut client = service.client.clone();
    let mut ids = Vec::new();
    for tenant in ["", "acme", "globex"] {
        let given =
            Endpoint { tenant: tenant.to_owned(), external_id: "same".to_owned(), ..endpoint("http://127.0.0.1:9/") };
        ids.push(service.register(given).await.id);
    }
    let of = |tenant: &str| PublishRequest { tenant: tenant.to_owned(), ..keyed("same", "{}") };
    for (tenant, id) in ["", "acme", "globex"].into_iter().zip(&ids) {
        let published = service.publish(of(tenant)).await;
        let targets: Vec<_> = published.deliveries.iter().map(|delivery| &delivery.endpoint_id).collect();
        assert!(targets == [id] && !published.duplicate, "{tenant}");
        let named =
            PublishRequest { endpoint_ids: ids.clone(), ..PublishRequest { tenant: tenant.to_owned(), ..event("a") } };
        let refusal = client.publish(named).await.expect_err("others' endpoints");
        assert_eq!(reason(&refusal), told(Code::NotFound, "ENDPOINT_NOT_FOUND"));
    }
    for (tenant, expected) in [("default", 1), ("", 1), ("acme", 1), ("nobody", 0), ("*", 3)] {
        let request = ListEndpointsRequest { tenant: tenant.to_owned(), ..Default::default() };
        let endpoints = client.list_endpoints(request).await.expect("listed").into_inner().endpoints;
        assert_eq!(endpoints.len(), expected, "{tenant}");
        let request = ListDeliveriesRequest { tenant: tenant.to_owned(), ..Default::default() };
        let deliveries = client.list_deliveries(request).await.expect("listed").into_inner().deliveries;
        assert_eq!(deliveries.len(), expected, "{tenant}");
        let shown = if tenant.is_empty() { "default" } else { tenant };
        assert!(tenant == "*" || deliveries.iter().all(|delivery| delivery.tenant == shown));
    }
}
