//! Filters as callers set and see them.

use hooklane::api::proto::*;
use hooklane::cli::listen::Behaviour;
use tonic::Code;

use super::{endpoint, event_of, fields, reason, receiver, service, told};
use crate::support::eventually;

#[tokio::test]
async fn a_filter_is_set_shown_changed_and_taken_away() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    let filter = "event.data.amount > 100".to_owned();
    let registered = service.register(Endpoint { filter: filter.clone(), ..endpoint(&receiver.url()) }).await;
    assert_eq!((&registered.filter, registered.filter_error_count), (&filter, 0));
    let deliveries = async |payload: &'static str| service.publish(event_of(payload)).await.deliveries.len();
    assert_eq!((deliveries("{\"amount\":1}").await, deliveries("{\"amount\":101}").await), (0, 1));
    assert_eq!(receiver.next().await.expect("a request").event_type.as_deref(), Some("order.created"));

    let update = async |filter: &str, paths: &[&str]| {
        let patch = Endpoint { id: registered.id.clone(), filter: filter.to_owned(), ..Endpoint::default() };
        let update_mask = Some(prost_types::FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() });
        let request = UpdateEndpointRequest { endpoint: Some(patch), update_mask };
        service.client.clone().update_endpoint(request).await.map(|answer| answer.into_inner().endpoint.expect("it"))
    };
    assert_eq!(
        update("event.data.amount < 100", &["filter"]).await.expect("updated").filter,
        "event.data.amount < 100"
    );
    assert_eq!((deliveries("{\"amount\":1}").await, deliveries("{\"amount\":101}").await), (1, 0));
    let refusal = update("event.data.amount <", &["filter"]).await.expect_err("no expression");
    assert_eq!(fields(&refusal), ["endpoint.filter"]);
    assert_eq!((deliveries("{\"amount\":1}").await, deliveries("{\"amount\":101}").await), (1, 0));
    assert_eq!(update("", &["filter"]).await.expect("updated").filter, "");
    assert_eq!((deliveries("{\"amount\":1}").await, deliveries("{\"amount\":101}").await), (1, 1));
}

#[tokio::test]
async fn a_filter_that_cannot_be_is_refused_with_its_place() {
    let service = service().await;
    for (filter, words) in [
        ("event.data.amount >", "line 1, column 20"),
        ("event.kind == 'a'", "event has no kind"),
        (&"true || ".repeat(300), "allowed are 2048"),
    ] {
        let given = Endpoint { filter: filter.to_owned(), ..endpoint("http://127.0.0.1:9/") };
        let request = RegisterEndpointRequest { endpoint: Some(given), secret: String::new() };
        let refusal = service.client.clone().register_endpoint(request).await.expect_err("no filter");
        assert_eq!(
            (reason(&refusal), fields(&refusal)),
            (told(Code::InvalidArgument, "INVALID_FIELD"), vec!["endpoint.filter".to_owned()])
        );
        assert!(refusal.message().contains(words), "{}", refusal.message());
    }
}

#[tokio::test]
async fn failures_of_a_filter_show_on_its_endpoint_by_themselves() {
    let service = service().await;
    let id = service
        .register(Endpoint { filter: "event.data.a.b == 1".to_owned(), ..endpoint("http://127.0.0.1:9/") })
        .await
        .id;
    for _ in 0..3 {
        assert!(service.publish(event_of("{}")).await.deliveries.is_empty());
    }
    let shown = eventually("three failures are on record", || async {
        let request = GetEndpointRequest { endpoint_id: id.clone() };
        let read = service.client.clone().get_endpoint(request).await.expect("read").into_inner().endpoint.expect("it");
        (read.filter_error_count == 3).then_some(read)
    })
    .await;
    assert_eq!((shown.etag.as_str(), shown.health_score), ("1", 1.0));
}
