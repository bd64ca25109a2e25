//! PauseEndpoint and ResumeEndpoint: what waits is kept and seen, and goes on as it was.

use hooklane::api::proto::*;
use hooklane::cli::listen::Behaviour;
use tonic::{Code, Status};

use super::{Service, endpoint, event, fields, reason, receiver, service, told};

async fn pause(service: &Service, id: &str) -> Result<Endpoint, Status> {
    let request = PauseEndpointRequest { endpoint_id: id.to_owned() };
    service
        .client
        .clone()
        .pause_endpoint(request)
        .await
        .map(|answer| answer.into_inner().endpoint.expect("an endpoint"))
}

async fn resume(service: &Service, id: &str) -> Result<Endpoint, Status> {
    let request = ResumeEndpointRequest { endpoint_id: id.to_owned() };
    service
        .client
        .clone()
        .resume_endpoint(request)
        .await
        .map(|answer| answer.into_inner().endpoint.expect("an endpoint"))
}

#[tokio::test]
async fn deliveries_to_a_paused_endpoint_wait_in_sight_and_go_on_once_it_is_resumed() {
    let service = service().await;
    let (paused, other) = (receiver(Behaviour::default()).await, receiver(Behaviour::default()).await);
    let registered = service.register(endpoint(&paused.url())).await;
    service.register(endpoint(&other.url())).await;
    let after = pause(&service, &registered.id).await.expect("paused");
    assert_eq!(after.state(), EndpointState::Paused);
    assert_ne!(after.etag, registered.etag);
    let mut ids = Vec::new();
    for _ in 0..3 {
        let answer = service.publish(event("a")).await;
        let waiting = answer.deliveries.iter().find(|one| one.endpoint_id == registered.id).expect("it is matched");
        ids.push(waiting.delivery_id.clone());
        // What would go to the paused one has had every occasion once the other has its own.
        other.next().await.expect("a request");
    }
    for id in &ids {
        let delivery = service.in_state(id, DeliveryState::Pending).await;
        assert!(delivery.attempts.is_empty(), "{delivery:?}");
    }
    assert_eq!(paused.count(), 0);
    let listed = ListEndpointsRequest { states: vec![EndpointState::Paused.into()], ..Default::default() };
    let listed = service.client.clone().list_endpoints(listed).await.expect("listed").into_inner().endpoints;
    assert_eq!(listed.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), [registered.id.as_str()]);

    assert_eq!(resume(&service, &registered.id).await.expect("resumed").state(), EndpointState::Active);
    for id in &ids {
        assert_eq!(service.in_state(id, DeliveryState::Succeeded).await.attempts.len(), 1);
    }
    assert_eq!(paused.count(), 3);
}

#[tokio::test]
async fn pausing_and_resuming_again_changes_nothing() {
    let service = service().await;
    let registered = service.register(endpoint("http://127.0.0.1:9/")).await;
    let active = resume(&service, &registered.id).await.expect("active already");
    assert_eq!((active.state(), &active.etag), (EndpointState::Active, &registered.etag));
    let first = pause(&service, &registered.id).await.expect("paused");
    let second = pause(&service, &registered.id).await.expect("paused already");
    assert_eq!((second.state(), second.etag), (EndpointState::Paused, first.etag));
}

#[tokio::test]
async fn an_unknown_or_malformed_id_is_refused() {
    let service = service().await;
    let unknown = "ep_01h455vb4pex5vsknk084sn02q";
    for refused in [pause(&service, unknown).await, resume(&service, unknown).await] {
        let refusal = refused.expect_err("unknown");
        assert_eq!(reason(&refusal), told(Code::NotFound, "ENDPOINT_NOT_FOUND"));
    }
    for refused in [pause(&service, "x").await, resume(&service, "").await] {
        let refusal = refused.expect_err("malformed");
        assert_eq!(reason(&refusal), told(Code::InvalidArgument, "INVALID_FIELD"));
        assert_eq!(fields(&refusal), ["endpoint_id"]);
    }
}
