//! Lists in pages and their filters.

use std::collections::BTreeSet;

use hooklane::api::proto::*;
use hooklane::cli::listen::Behaviour;
use http::StatusCode;
use tonic::Code;

use super::{Service, endpoint, event, fields, reason, receiver, service, told};

async fn deliveries(service: &Service, request: ListDeliveriesRequest) -> ListDeliveriesResponse {
    service.client.clone().list_deliveries(request).await.expect("listed").into_inner()
}

async fn endpoints(service: &Service, request: ListEndpointsRequest) -> ListEndpointsResponse {
    service.client.clone().list_endpoints(request).await.expect("listed").into_inner()
}

#[tokio::test]
async fn deliveries_are_listed_in_pages_newest_first_each_once() {
    let service = service().await;
    service.register(endpoint("http://127.0.0.1:9/")).await;
    let mut expected = Vec::new();
    for _ in 0..25 {
        expected.push(service.publish_one("a").await);
    }
    expected.reverse();
    for page_size in [1, 7, 24, 25, 26, 500, 501, i32::MAX, 0] {
        let (mut listed, mut page_token) = (Vec::new(), String::new());
        loop {
            let page =
                deliveries(&service, ListDeliveriesRequest { page_size, page_token, ..Default::default() }).await;
            assert!(page_size == 0 || page.deliveries.len() <= usize::try_from(page_size).expect("positive"));
            listed.extend(page.deliveries.into_iter().map(|delivery| delivery.id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(listed, expected, "{page_size}");
    }
}

#[tokio::test]
async fn a_page_has_fifty_entries_by_default_and_five_hundred_at_most() {
    let service = service().await;
    service.register(endpoint("http://127.0.0.1:9/")).await;
    let request = PublishBatchRequest { requests: vec![event("a"); 510] };
    service.client.clone().publish_batch(request).await.expect("published");
    for (page_size, length) in [(0, 50), (499, 499), (500, 500), (501, 500), (1_000_000, 500)] {
        let page = deliveries(&service, ListDeliveriesRequest { page_size, ..Default::default() }).await;
        assert_eq!((page.deliveries.len(), page.next_page_token.is_empty()), (length, false), "{page_size}");
    }
}

#[tokio::test]
async fn pages_stay_whole_while_deliveries_settle_between_them() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    service.register(endpoint(&receiver.url())).await;
    let mut expected = BTreeSet::new();
    for _ in 0..60 {
        expected.insert(service.publish_one("a").await);
    }
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = deliveries(&service, ListDeliveriesRequest { page_size: 5, page_token, ..Default::default() }).await;
        listed.extend(page.deliveries.into_iter().map(|delivery| delivery.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed.len(), 60);
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[tokio::test]
async fn tokens_continue_their_own_list_alone_and_sizes_are_checked() {
    let service = service().await;
    let mut client = service.client.clone();
    for _ in 0..2 {
        service.register(endpoint("http://127.0.0.1:9/")).await;
    }
    service.publish(event("a")).await;
    let bad = told(Code::InvalidArgument, "INVALID_FIELD");

    let list = ListDeliveriesRequest { page_size: 1, ..Default::default() };
    let page_token = deliveries(&service, list.clone()).await.next_page_token;
    let next = ListDeliveriesRequest { page_token: page_token.clone(), ..list };
    // Another size is the same list; the default tenant by its name, too.
    for same in [
        next.clone(),
        ListDeliveriesRequest { page_size: 9, ..next.clone() },
        ListDeliveriesRequest { tenant: "default".to_owned(), ..next.clone() },
    ] {
        assert_eq!(deliveries(&service, same).await.deliveries.len(), 1);
    }
    for other in [
        ListDeliveriesRequest { tenant: "acme".to_owned(), ..next.clone() },
        ListDeliveriesRequest { tenant: "*".to_owned(), ..next.clone() },
        ListDeliveriesRequest { event_types: vec!["a".to_owned()], ..next.clone() },
        ListDeliveriesRequest { states: vec![DeliveryState::Failed.into()], ..next.clone() },
        ListDeliveriesRequest { page_token: "AAAA".to_owned(), ..next.clone() },
        ListDeliveriesRequest { page_token: format!("{page_token}A"), ..next.clone() },
    ] {
        let refusal = client.list_deliveries(other).await.expect_err("another list");
        assert_eq!((reason(&refusal), fields(&refusal)), (bad.clone(), vec!["page_token".to_owned()]));
    }
    let list = ListEndpointsRequest { page_size: 1, ..Default::default() };
    let endpoint_token = endpoints(&service, list.clone()).await.next_page_token;
    for other in [
        ListEndpointsRequest { tenant: "acme".to_owned(), page_token: endpoint_token.clone(), ..list.clone() },
        ListEndpointsRequest { event_type: "a".to_owned(), page_token: endpoint_token, ..list.clone() },
        ListEndpointsRequest { page_token, ..list },
    ] {
        let refusal = client.list_endpoints(other).await.expect_err("another list");
        assert_eq!((reason(&refusal), fields(&refusal)), (bad.clone(), vec!["page_token".to_owned()]));
    }
    let request = ListDeliveriesRequest { page_size: -1, ..Default::default() };
    let refusal = client.list_deliveries(request).await.expect_err("negative");
    assert_eq!((reason(&refusal), fields(&refusal)), (bad.clone(), vec!["page_size".to_owned()]));
    let request = ListEndpointsRequest { page_size: i32::MIN, states: vec![0], ..Default::default() };
    let refusal = client.list_endpoints(request).await.expect_err("negative");
    assert_eq!(fields(&refusal), ["page_size", "states[0]"]);
}

#[tokio::test]
async fn deliveries_are_filtered_by_what_the_request_names() {
    let service = service().await;
    let healthy = receiver(Behaviour::default()).await;
    let refusing = receiver(Behaviour { status: Some(StatusCode::NOT_FOUND), ..Behaviour::default() }).await;
    let orders = Endpoint { event_types: vec!["order.*".to_owned()], ..endpoint(&healthy.url()) };
    let orders = service.register(orders).await.id;
    let all = service.register(endpoint(&refusing.url())).await.id;
    let order = service.publish(event("order.created")).await;
    let user = service.publish(event("user.created")).await;
    for delivery in order.deliveries.iter().chain(&user.deliveries) {
        let state = if delivery.endpoint_id == orders { DeliveryState::Succeeded } else { DeliveryState::Failed };
        service.in_state(&delivery.delivery_id, state).await;
    }
    let created = |id: &str| {
        let time = id.parse::<hooklane::domain::id::DeliveryId>().expect("an id").time();
        Some(prost_types::Timestamp { seconds: time.seconds() + 3_600, nanos: 0 })
    };
    let later = created(&user.deliveries[0].delivery_id);
    let none = ListDeliveriesRequest::default();
    for (request, count) in [
        (none.clone(), 3),
        (ListDeliveriesRequest { endpoint_id: orders.clone(), ..none.clone() }, 1),
        (ListDeliveriesRequest { endpoint_id: all.clone(), ..none.clone() }, 2),
        (ListDeliveriesRequest { event_id: order.event_id.clone(), ..none.clone() }, 2),
        (ListDeliveriesRequest { event_types: vec!["order.*".to_owned()], ..none.clone() }, 2),
        (ListDeliveriesRequest { event_types: vec!["user.created".to_owned(), "x".to_owned()], ..none.clone() }, 1),
        (ListDeliveriesRequest { states: vec![DeliveryState::Failed.into()], ..none.clone() }, 2),
        (ListDeliveriesRequest { states: vec![4, 5], ..none.clone() }, 3),
        (ListDeliveriesRequest { states: vec![DeliveryState::Pending.into()], ..none.clone() }, 0),
        (ListDeliveriesRequest { create_after: later, ..none.clone() }, 0),
        (ListDeliveriesRequest { create_before: later, ..none.clone() }, 3),
        (
            ListDeliveriesRequest {
                endpoint_id: all,
                event_id: order.event_id.clone(),
                states: vec![DeliveryState::Failed.into()],
                ..none.clone()
            },
            1,
        ),
    ] {
        assert_eq!(deliveries(&service, request.clone()).await.deliveries.len(), count, "{request:?}");
    }
}

#[tokio::test]
async fn endpoints_are_listed_in_pages_and_filtered() {
    let service = service().await;
    let mut expected = Vec::new();
    for n in 0..12 {
        let given = Endpoint {
            event_types: if n % 2 == 0 { vec!["order.*".to_owned()] } else { Vec::new() },
            labels: [("team".to_owned(), format!("t{}", n % 3))].into(),
            ..endpoint("http://127.0.0.1:9/")
        };
        expected.push(service.register(given).await.id);
    }
    expected.reverse();
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = endpoints(&service, ListEndpointsRequest { page_size: 5, page_token, ..Default::default() }).await;
        listed.extend(page.endpoints.into_iter().map(|endpoint| endpoint.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, expected);
    let labels = [("team".to_owned(), "t1".to_owned())];
    let none = ListEndpointsRequest::default();
    for (request, count) in [
        (ListEndpointsRequest { event_type: "order.created".to_owned(), ..none.clone() }, 12),
        (ListEndpointsRequest { event_type: "user.created".to_owned(), ..none.clone() }, 6),
        (ListEndpointsRequest { labels: labels.into(), ..none.clone() }, 4),
        (ListEndpointsRequest { states: vec![EndpointState::Active.into()], ..none.clone() }, 12),
        (ListEndpointsRequest { states: vec![EndpointState::Paused.into()], ..none.clone() }, 0),
    ] {
        assert_eq!(endpoints(&service, request.clone()).await.endpoints.len(), count, "{request:?}");
    }
}
