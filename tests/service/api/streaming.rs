//! StreamDeliveryEvents: what happens, as it happens, to whom it concerns.

use hooklane::api::proto::stream_delivery_events_response::Item;
use hooklane::api::proto::*;
use hooklane::cli::listen::Behaviour;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use super::{Service, endpoint, event, fields, reason, receiver, service, soon, told};

/// A live stream: its first heartbeat has come.
async fn stream(service: &Service, request: StreamDeliveryEventsRequest) -> Stream {
    let mut messages = service.client.clone().stream_delivery_events(request).await.expect("opened").into_inner();
    let first = soon("the heartbeat", messages.message()).await.expect("a message").expect("not the end");
    assert!(matches!(first.item, Some(Item::Heartbeat(Heartbeat { time: Some(_) }))), "{first:?}");
    assert_ne!(first.resume_token, "");
    Stream(messages)
}

struct Stream(Streaming<StreamDeliveryEventsResponse>);

impl Stream {
    /// The next event, or how the stream ended.
    async fn next(&mut self) -> Result<DeliveryEvent, Status> {
        loop {
            match soon("a message", self.0.message()).await?.expect("it ends with a status").item {
                Some(Item::Event(event)) => return Ok(event),
                Some(Item::Heartbeat(_)) => {}
                None => panic!("an empty message"),
            }
        }
    }

    /// The next `count` kinds with their deliveries.
    async fn kinds(&mut self, count: usize) -> Vec<(DeliveryEventKind, String)> {
        let mut kinds = Vec::new();
        while kinds.len() < count {
            let event = self.next().await.expect("an event");
            let kind = event.kind();
            kinds.push((kind, event.delivery.expect("a delivery").id));
        }
        kinds
    }
}

#[tokio::test]
async fn a_delivery_is_seen_queued_failing_and_succeeding_in_order() {
    let service = service().await;
    let receiver = receiver(Behaviour { fail_first: 2, ..Behaviour::default() }).await;
    let endpoint = service.register(endpoint(&receiver.url())).await;
    let mut stream = stream(&service, StreamDeliveryEventsRequest::default()).await;
    let keyed = PublishRequest { idempotency_key: "order-1".to_owned(), ..event("order.created") };
    let published = service.publish(keyed).await;
    let id = &published.deliveries[0].delivery_id;
    use DeliveryEventKind::{AttemptFailed, Queued, Succeeded};
    let mut times = Vec::new();
    for (kind, attempts, state) in [
        (Queued, 0, DeliveryState::Pending),
        (AttemptFailed, 1, DeliveryState::Retrying),
        (AttemptFailed, 2, DeliveryState::Retrying),
        (Succeeded, 3, DeliveryState::Succeeded),
    ] {
        let event = stream.next().await.expect("an event");
        let delivery = event.delivery.as_ref().expect("a delivery");
        assert_eq!((event.kind(), delivery.attempt_count, delivery.state()), (kind, attempts, state));
        assert_eq!((&delivery.id, &delivery.event_id), (id, &published.event_id));
        assert_eq!((&delivery.endpoint_id, delivery.event_type.as_str()), (&endpoint.id, "order.created"));
        assert_eq!((delivery.tenant.as_str(), delivery.idempotency_key.as_str()), ("default", "order-1"));
        match (&event.attempt, kind) {
            (None, Queued) => {}
            (Some(attempt), AttemptFailed) => {
                assert_eq!((attempt.number, attempt.status_code), (attempts, 503));
                assert!(attempt.next_attempt_time.is_some() && delivery.next_attempt_time.is_some());
            }
            (Some(attempt), _) => assert_eq!((attempt.number, attempt.status_code), (attempts, 200)),
            (None, _) => panic!("no attempt in {event:?}"),
        }
        let time = event.occur_time.expect("a time");
        times.push((time.seconds, time.nanos));
    }
    assert!(times.is_sorted(), "{times:?}");
}

#[tokio::test]
async fn subscribers_see_what_their_own_filters_let_through() {
    let service = service().await;
    let receiver = receiver(Behaviour { fail_first: 1, ..Behaviour::default() }).await;
    let given = |types: &str| Endpoint { event_types: vec![types.to_owned()], ..endpoint(&receiver.url()) };
    let orders = service.register(given("order.*")).await.id;
    service.register(given("user.*")).await;
    let acme = Endpoint { tenant: "acme".to_owned(), ..given("order.*") };
    service.register(acme).await;

    let none = StreamDeliveryEventsRequest::default();
    let mut all = stream(&service, StreamDeliveryEventsRequest { tenant: "*".to_owned(), ..none.clone() }).await;
    let mut by_type =
        stream(&service, StreamDeliveryEventsRequest { event_types: vec!["user.*".to_owned()], ..none.clone() }).await;
    let mut by_endpoint =
        stream(&service, StreamDeliveryEventsRequest { endpoint_ids: vec![orders], ..none.clone() }).await;
    let mut by_tenant =
        stream(&service, StreamDeliveryEventsRequest { tenant: "acme".to_owned(), ..none.clone() }).await;
    let kinds = vec![DeliveryEventKind::Succeeded.into()];
    let mut by_kind = stream(&service, StreamDeliveryEventsRequest { kinds, ..none.clone() }).await;

    let order = service.publish_one("order.created").await;
    let user = service.publish_one("user.created").await;
    let other = service.publish(PublishRequest { tenant: "acme".to_owned(), ..event("order.created") }).await;
    let other = other.deliveries[0].delivery_id.clone();
    for id in [&order, &user, &other] {
        service.in_state(id, DeliveryState::Succeeded).await;
    }
    use DeliveryEventKind::{AttemptFailed, Queued, Succeeded};
    let whole = |id: &String| vec![(Queued, id.clone()), (AttemptFailed, id.clone()), (Succeeded, id.clone())];
    assert_eq!(by_type.kinds(3).await, whole(&user));
    assert_eq!(by_endpoint.kinds(3).await, whole(&order));
    assert_eq!(by_tenant.kinds(3).await, whole(&other));
    let mut ends = by_kind.kinds(2).await;
    ends.sort_by(|one, other| one.1.cmp(&other.1));
    let mut expected = vec![(Succeeded, order.clone()), (Succeeded, user.clone())];
    expected.sort_by(|one, other| one.1.cmp(&other.1));
    assert_eq!(ends, expected);
    let seen = all.kinds(9).await;
    for id in [&order, &user, &other] {
        let of_one: Vec<_> = seen.iter().filter(|(_, seen)| seen == id).cloned().collect();
        assert_eq!(of_one, whole(id));
    }

    // One delivery, one event. What happened before the stream is no part of it, so it has to be retried to be seen.
    let refused =
        super::receiver(Behaviour { status: Some(http::StatusCode::NOT_FOUND), ..Behaviour::default() }).await;
    service.register(Endpoint { event_types: vec!["late".to_owned()], ..endpoint(&refused.url()) }).await;
    let published = service.publish(event("late")).await;
    let id = published.deliveries[0].delivery_id.clone();
    service.in_state(&id, DeliveryState::Failed).await;
    let mut by_delivery =
        stream(&service, StreamDeliveryEventsRequest { delivery_id: id.clone(), ..none.clone() }).await;
    let mut by_event = stream(&service, StreamDeliveryEventsRequest { event_id: published.event_id, ..none }).await;
    let request = RetryDeliveryRequest { delivery_id: id.clone() };
    service.client.clone().retry_delivery(request).await.expect("retried");
    let expected = [(DeliveryEventKind::RetryRequested, id.clone()), (DeliveryEventKind::Failed, id)];
    assert_eq!(by_delivery.kinds(2).await, expected);
    assert_eq!(by_event.kinds(2).await, expected);
}

#[tokio::test]
async fn a_burst_is_streamed_whole_and_each_deliverys_events_in_order() {
    let service = service().await;
    let receiver = receiver(Behaviour { fail_first: 1, ..Behaviour::default() }).await;
    service.register(endpoint(&receiver.url())).await;
    let mut stream = stream(&service, StreamDeliveryEventsRequest::default()).await;
    let request = PublishBatchRequest { requests: vec![event("a"); 300] };
    service.client.clone().publish_batch(request).await.expect("published");
    let seen = stream.kinds(900).await;
    let mut by_delivery = std::collections::HashMap::<_, Vec<_>>::new();
    for (kind, id) in seen {
        by_delivery.entry(id).or_default().push(kind);
    }
    assert_eq!(by_delivery.len(), 300);
    use DeliveryEventKind::{AttemptFailed, Queued, Succeeded};
    for (id, kinds) in by_delivery {
        assert_eq!(kinds, [Queued, AttemptFailed, Succeeded], "{id}");
    }
}

#[tokio::test]
async fn bad_filters_are_named_at_once() {
    let service = service().await;
    let request = StreamDeliveryEventsRequest {
        tenant: "a b".to_owned(),
        endpoint_ids: vec!["x".to_owned()],
        event_types: vec!["*x".to_owned()],
        event_id: "x".to_owned(),
        delivery_id: "x".to_owned(),
        kinds: vec![0, 99],
        from: None,
    };
    let refusal = service.client.clone().stream_delivery_events(request).await.expect_err("bad");
    assert_eq!(reason(&refusal), told(Code::InvalidArgument, "INVALID_FIELD"));
    let expected = ["delivery_id", "endpoint_ids[0]", "event_id", "event_types[0]", "kinds[0]", "kinds[1]", "tenant"];
    assert_eq!(fields(&refusal), expected);
}

#[tokio::test]
async fn a_shutdown_ends_streams_with_a_reason_and_where_to_go_from_there() {
    let service = service().await;
    let mut streams = Vec::new();
    for _ in 0..2 {
        streams.push(stream(&service, StreamDeliveryEventsRequest::default()).await);
    }
    let stopping = tokio::spawn(service.app.stop());
    for mut stream in streams {
        let end = stream.next().await.expect_err("it ends");
        assert_eq!(reason(&end), told(Code::Unavailable, "DRAINING"));
        assert!(end.get_details_retry_info().and_then(|info| info.retry_delay).is_some());
    }
    soon("the end", stopping).await.expect("stopped");
}
