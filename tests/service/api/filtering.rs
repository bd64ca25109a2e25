//! Patterns and filters as callers set and see them.

use hooklane::api::proto::*;
use hooklane::cli::listen::Behaviour;
use tonic::Code;

use super::{endpoint, event, event_of, fields, reason, receiver, service, told};
use crate::support::eventually;

#[tokio::test]
async fn patterns_and_filters_choose_together_and_a_named_endpoint_gets_all() {
    let service = service().await;
    let mut ids = Vec::new();
    for (patterns, filter) in [
        (&[][..], ""),
        (&["*"], ""),
        (&["order.*"], ""),
        (&["order.created", "invoice.*"], ""),
        (&["order.*"], "event.type.endsWith('created') && event.metadata.region == 'eu' && event.tenant == 'default'"),
        (&["nothing.*"], "false"),
    ] {
        let event_types = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        let given = Endpoint { event_types, filter: filter.to_owned(), ..endpoint("http://127.0.0.1:9/") };
        ids.push(service.register(given).await.id);
    }
    let recipients = async |event_type: &str, endpoint_ids: Vec<String>| {
        let metadata = [("region".to_owned(), "eu".to_owned())].into();
        let published = service.publish(PublishRequest { metadata, endpoint_ids, ..event(event_type) }).await;
        let mut places: Vec<_> = published
            .deliveries
            .iter()
            .map(|delivery| ids.iter().position(|id| *id == delivery.endpoint_id).expect("one of these"))
            .collect();
        places.sort_unstable();
        places
    };
    for (event_type, expected) in [
        ("order.created", &[0, 1, 2, 3, 4][..]),
        ("order.paid.late", &[0, 1, 2]),
        ("order", &[0, 1]),
        ("orders.created", &[0, 1]),
        ("invoice.sent", &[0, 1, 3]),
        ("Order.created", &[0, 1]),
    ] {
        assert_eq!(recipients(event_type, Vec::new()).await, expected, "{event_type}");
    }
    assert_eq!(recipients("anything", vec![ids[5].clone(), ids[4].clone()]).await, [4, 5]);
}

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
