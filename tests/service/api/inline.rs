//! Endpoints that come with an event: kept, unlisted, one for each tenant, URL and secret.

use hooklane::api::proto::*;
use hooklane::cli::listen::{Behaviour, Verdict};
use tonic::Code;

use super::{SECRET, Service, endpoint, event, reason, receiver, service, service_with, told};
use crate::support;

fn inline(endpoint: Endpoint, secret: &str) -> PublishRequest {
    PublishRequest {
        tenant: endpoint.tenant.clone(),
        inline_endpoint: Some(Box::new(InlineEndpoint { endpoint: Some(endpoint), secret: secret.to_owned() })),
        ..event("order.created")
    }
}

/// The endpoint that an inline publish went to.
async fn target(service: &Service, request: PublishRequest) -> String {
    let published = service.publish(request).await;
    assert_eq!(published.deliveries.len(), 1, "{published:?}");
    published.deliveries[0].endpoint_id.clone()
}

async fn read(service: &Service, id: &str) -> Endpoint {
    let request = GetEndpointRequest { endpoint_id: id.to_owned() };
    service.client.clone().get_endpoint(request).await.expect("read").into_inner().endpoint.expect("it")
}

#[tokio::test]
async fn an_event_reaches_the_endpoint_it_brings_and_no_other_event_does() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    let mut given = Endpoint { headers: [("X-Own".to_owned(), "1".to_owned())].into(), ..endpoint(&receiver.url()) };
    given.set_payload_format(PayloadFormat::Raw);
    let id = target(&service, inline(given.clone(), SECRET)).await;
    let received = receiver.next().await.expect("a request");
    assert_eq!(
        (received.verdict, &received.body[..], &received.headers["x-own"]),
        (Verdict::Good, b"{}".as_slice(), &"1".parse().expect("a value"))
    );

    // It is the same one next time, with the policies of the later call from then on.
    let first = read(&service, &id).await;
    assert_eq!(target(&service, inline(given.clone(), SECRET)).await, id);
    receiver.next().await.expect("a request");
    assert_eq!(read(&service, &id).await.etag, first.etag, "nothing to change changes nothing");
    let headers = [("X-Own".to_owned(), "2".to_owned())].into();
    let changed = Endpoint { headers, max_in_flight: 7, ..given.clone() };
    assert_eq!(target(&service, inline(changed, SECRET)).await, id);
    assert_eq!(receiver.next().await.expect("a request").headers["x-own"], "2");
    assert_eq!(read(&service, &id).await.max_in_flight, 7);

    // Unlisted, and nothing matches it; but it is there by its id.
    assert!(service.publish(event("order.created")).await.deliveries.is_empty());
    let listed = service.client.clone().list_endpoints(ListEndpointsRequest::default()).await.expect("listed");
    assert!(listed.into_inner().endpoints.is_empty());
    let named = PublishRequest { endpoint_ids: vec![id.clone()], ..event("order.paid") };
    assert_eq!(target(&service, named).await, id);
    assert_eq!(receiver.next().await.expect("a request").event_type.as_deref(), Some("order.paid"));
    let elsewhere = PublishRequest { endpoint_ids: vec![id], tenant: "acme".to_owned(), ..event("order.paid") };
    let refusal = service.client.clone().publish(elsewhere).await.expect_err("another tenant's");
    assert_eq!(reason(&refusal), told(Code::NotFound, "ENDPOINT_NOT_FOUND"));
}

#[tokio::test]
async fn tenant_url_and_secret_each_make_another_endpoint() {
    let service = service().await;
    let base = endpoint("http://127.0.0.1:9/");
    let requests = [
        inline(base.clone(), SECRET),
        inline(base.clone(), "another-secret-of-ours"),
        inline(endpoint("http://127.0.0.1:9/other"), SECRET),
        inline(Endpoint { tenant: "acme".to_owned(), ..base.clone() }, SECRET),
    ];
    let mut ids = Vec::new();
    for request in &requests {
        ids.push(target(&service, request.clone()).await);
    }
    let mut distinct = ids.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), requests.len());
    for (request, id) in requests.into_iter().zip(&ids) {
        assert_eq!(target(&service, request).await, *id);
    }
}

#[tokio::test]
async fn publishes_at_once_on_two_replicas_make_one_endpoint() {
    let url = support::database().await;
    let services = [service_with(url.clone(), &[]).await, service_with(url, &[]).await];
    let request = inline(endpoint("http://127.0.0.1:9/"), SECRET);
    let calls = (0..64).map(|n| {
        let mut client = services[n % 2].client.clone();
        // They differ in a policy, and one of them has the last word.
        let mut request = request.clone();
        if let Some(endpoint) = request.inline_endpoint.as_mut().and_then(|inline| inline.endpoint.as_mut()) {
            endpoint.max_in_flight = 1 + n as u32 % 3;
        }
        async move { client.publish(request).await.map(|answer| answer.into_inner().deliveries[0].endpoint_id.clone()) }
    });
    let ids = futures::future::try_join_all(calls).await.expect("published");
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let requests = vec![request; 100];
    let batch = services[0].client.clone().publish_batch(PublishBatchRequest { requests }).await.expect("published");
    let results = batch.into_inner().results;
    let is_same = |result: &PublishBatchResult| match &result.result {
        Some(publish_batch_result::Result::Response(response)) => response.deliveries[0].endpoint_id == ids[0],
        _ => false,
    };
    assert!(results.len() == 100 && results.iter().all(is_same));
}

#[tokio::test]
async fn a_repeat_with_the_same_key_finds_the_first_delivery() {
    let service = service().await;
    let keyed = |body: &'static str| PublishRequest {
        idempotency_key: "k".to_owned(),
        body: Some(publish_request::Body::PayloadText(body.to_owned())),
        ..inline(endpoint("http://127.0.0.1:9/"), SECRET)
    };
    let first = service.publish(keyed("{}")).await;
    let repeat = service.publish(keyed("{}")).await;
    assert!(repeat.duplicate && repeat.deliveries[0].delivery_id == first.deliveries[0].delivery_id);
    let refusal = service.client.clone().publish(keyed("[]")).await.expect_err("another content");
    assert_eq!(reason(&refusal), told(Code::AlreadyExists, "IDEMPOTENCY_KEY_CONFLICT"));
}

#[tokio::test]
async fn one_that_was_deleted_comes_anew_and_its_secret_is_not_rotated() {
    let service = service().await;
    let request = inline(endpoint("http://127.0.0.1:9/"), SECRET);
    let id = target(&service, request.clone()).await;
    let rotate = RotateSecretRequest { endpoint_id: id.clone(), ..RotateSecretRequest::default() };
    let refusal = service.client.clone().rotate_secret(rotate).await.expect_err("its secret comes with events");
    assert_eq!(reason(&refusal), told(Code::InvalidArgument, "INVALID_FIELD"));
    let delete = DeleteEndpointRequest { endpoint_id: id.clone(), etag: String::new() };
    service.client.clone().delete_endpoint(delete).await.expect("deleted");
    assert_ne!(target(&service, request).await, id);
}
