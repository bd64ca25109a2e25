//! Replays at ordered endpoints: each key keeps its order, and what others wait for goes before them.

use std::collections::HashMap;

use hooklane::api::proto::*;
use hooklane::cli::listen::{Behaviour, Receiver};
use http::StatusCode;

use super::ordering::{failing, next, nth, ordered};
use super::replays::{ended, start};
use super::{Service, receiver, service, service_with};
use crate::support;

async fn publish(service: &Service, requests: Vec<PublishRequest>) -> Vec<String> {
    let answer = service.client.clone().publish_batch(PublishBatchRequest { requests }).await.expect("published");
    let one = |result: PublishBatchResult| match result.result {
        Some(publish_batch_result::Result::Response(one)) => one.deliveries[0].delivery_id.clone(),
        other => panic!("{other:?}"),
    };
    answer.into_inner().results.into_iter().map(one).collect()
}

async fn replay(service: &Service, states: &[DeliveryState]) -> (ReplayState, u64, u64) {
    let filter = ReplayFilter { states: states.iter().map(|state| (*state).into()).collect(), ..Default::default() };
    let started = start(service, StartReplayRequest { filter: Some(filter), ..Default::default() }).await;
    let replay = ended(service, &started.id).await;
    (replay.state(), replay.replayed, replay.skipped)
}

/// The next requests are those of these keys, each from 0 up to `count`.
async fn in_order(receiver: &Receiver, keys: usize, count: u64) {
    let mut expected: HashMap<String, u64> = HashMap::new();
    for _ in 0..keys as u64 * count {
        let (key, n, status) = next(receiver).await;
        let next = expected.entry(key.clone()).or_default();
        assert_eq!((n, status), (*next, 200), "of {key}");
        *next += 1;
    }
    assert!(expected.len() == keys && expected.values().all(|reached| *reached == count), "{expected:?}");
}

#[tokio::test]
async fn each_key_keeps_its_order_and_room_is_what_is_parked_too() {
    let service = service().await;
    let receiver = receiver(failing(StatusCode::NOT_FOUND)).await;
    let skipping = ordered(&receiver.url(), Ordering::ByKey, OrderingOnFailure::Skip);
    service.register(Endpoint { max_in_flight: 2, ..skipping }).await;
    let requests: Vec<_> = (0..40).flat_map(|n| ["a", "b"].map(|key| nth(key, n))).collect();
    let ids = publish(&service, requests).await;
    for id in &ids {
        service.in_state(id, DeliveryState::Failed).await;
    }
    for _ in &ids {
        assert_eq!(next(&receiver).await.2, 404);
    }
    receiver.set_behaviour(Behaviour::default());
    let (replayed, ()) = tokio::join!(replay(&service, &[]), in_order(&receiver, 2, 40));
    assert_eq!(replayed, (ReplayState::Completed, 80, 0));
    for id in &ids {
        let delivery = service.in_state(id, DeliveryState::Succeeded).await;
        assert_eq!(delivery.attempts[1].trigger(), AttemptTrigger::Replay);
    }
    // Made anew, they join the ends of their keys, in the same order.
    let anew = replay(&service, &[DeliveryState::Succeeded]);
    let (replayed, ()) = tokio::join!(anew, in_order(&receiver, 2, 40));
    assert_eq!(replayed, (ReplayState::Completed, 80, 0));
}

#[tokio::test]
async fn no_more_than_the_room_is_parked() {
    let url = support::database().await;
    let service = service_with(url.clone(), &[]).await;
    let receiver = receiver(failing(StatusCode::NOT_FOUND)).await;
    let skipping = ordered(&receiver.url(), Ordering::Fifo, OrderingOnFailure::Skip);
    let endpoint = service.register(Endpoint { max_in_flight: 1, ..skipping }).await;
    // One by one: what was published in one millisecond is put back together.
    for n in 0..40 {
        let id = publish(&service, vec![nth("a", n)]).await.remove(0);
        service.in_state(&id, DeliveryState::Failed).await;
    }
    let mut client = service.client.clone();
    client.pause_endpoint(PauseEndpointRequest { endpoint_id: endpoint.id.clone() }).await.expect("paused");
    let started = start(&service, StartReplayRequest::default()).await;
    // A full lane is looked at again and again.
    let looked = || async {
        let time =
            "select max(extract(epoch from look_time))::float8 from replay_lanes where items_left between 1 and 24";
        let time: Option<f64> =
            sqlx::query_scalar(time).fetch_one(&mut support::connection(&url).await).await.expect("read");
        time
    };
    let first = support::eventually("its lane is full", &looked).await;
    let again = || async { looked().await.filter(|time| *time > first + 0.2) };
    support::eventually("it was looked at again", again).await;
    let outstanding: i64 = sqlx::query_scalar("select count(*) from outstanding")
        .fetch_one(&mut support::connection(&url).await)
        .await
        .expect("counted");
    assert_eq!(outstanding, 16);
    receiver.set_behaviour(Behaviour::default());
    client.resume_endpoint(ResumeEndpointRequest { endpoint_id: endpoint.id }).await.expect("resumed");
    let replay = ended(&service, &started.id).await;
    assert_eq!((replay.state(), replay.replayed), (ReplayState::Completed, 40));
}

#[tokio::test]
async fn what_blocks_its_key_goes_first_though_the_queue_is_full() {
    let settings = [("HOOKLANE_QUEUE_MAX_OUTSTANDING_PER_ENDPOINT", "2")];
    let service = service_with(support::database().await, &settings).await;
    let receiver = receiver(failing(StatusCode::NOT_FOUND)).await;
    service.register(ordered(&receiver.url(), Ordering::ByKey, OrderingOnFailure::Block)).await;
    let head = publish(&service, vec![nth("k", 0)]).await;
    service.in_state(&head[0], DeliveryState::Failed).await;
    assert_eq!(next(&receiver).await.2, 404);
    let mut behind = Vec::new();
    for n in 1..4 {
        behind.extend(publish(&service, vec![nth("k", n)]).await);
    }
    let refused = service.in_state(&behind[2], DeliveryState::Failed).await;
    assert!(refused.reason.starts_with("QUEUE_FULL"), "{refused:?}");
    receiver.set_behaviour(Behaviour::default());
    let (replayed, ()) = tokio::join!(replay(&service, &[]), in_order(&receiver, 1, 4));
    assert_eq!(replayed, (ReplayState::Completed, 2, 0));
}
