//! Ending by a signal: a drain that loses nothing and repeats nothing, and one that is cut short.

use std::time::{Duration, Instant};

use hooklane::api::proto::stream_delivery_events_request::From;
use hooklane::api::proto::{AttemptOutcome, DeliveryState, StreamDeliveryEventsRequest, StreamDeliveryEventsResponse};
use hooklane::cli::listen::Behaviour;
use tonic::{Code, Streaming};
use tonic_types::StatusExt as _;

use crate::load::{Client, Load, Tally, delivery, settled};
use crate::program::Replica;
use crate::support::{connection, database, eventually};

#[tokio::test]
async fn a_drain_under_load_loses_nothing_and_sends_nothing_twice() {
    let url = database().await;
    let mut replica = Replica::start(&url, &[]).await;
    // Long enough for requests to be under way whenever a signal comes.
    let tally = Tally::start(Behaviour { delay: Duration::from_millis(100), ..Behaviour::default() }).await;
    tally.register(&mut Client::connect(replica.grpc.clone()).await.expect("connects")).await;
    let load = Load::start(&replica.grpc);
    for signal in ["TERM", "INT", "TERM"] {
        load.acknowledge(150).await;
        replica.signal(signal).await;
        assert_eq!(replica.ended().await.code(), Some(0), "{}", replica.log());
        replica = Replica::start(&url, &[]).await;
        load.move_to(&replica.grpc);
    }
    load.acknowledge(50).await;
    let (ids, refusals) = load.finish().await;
    assert!(refusals.keys().all(|code| *code == Code::Unavailable), "{refusals:?}");
    let client = Client::connect(replica.grpc.clone()).await.expect("connects");
    settled(&client).await;
    let repeated = tally.all_of(&ids).await;
    assert!(repeated.is_empty(), "{repeated:?}");
    for id in ids {
        let delivery = delivery(&client, &id).await;
        assert_eq!(delivery.state(), DeliveryState::Succeeded);
        let [attempt] = &delivery.attempts[..] else { panic!("{delivery:?}") };
        assert_eq!(attempt.outcome(), AttemptOutcome::Succeeded);
    }
}

#[tokio::test]
async fn a_second_signal_ends_a_drain_at_once() {
    let url = database().await;
    // A grace that no test waits for.
    let mut replica = Replica::start(&url, &[("HOOKLANE_SHUTDOWN_GRACE", "1h")]).await;
    let tally = Tally::start(Behaviour { silent: true, ..Behaviour::default() }).await;
    let mut client = Client::connect(replica.grpc.clone()).await.expect("connects");
    tally.register(&mut client).await;
    let load = Load::start(&replica.grpc);
    eventually("a request is under way", || async { (tally.count() > 0).then_some(()) }).await;
    load.finish().await;
    replica.signal("TERM").await;
    eventually("it drains", || async { (replica.look("/readyz").await == Some(503)).then_some(()) }).await;
    assert_eq!(replica.look("/livez").await, Some(200));
    assert!(replica.runs(), "it waits for the request under way");
    replica.signal("TERM").await;
    assert_eq!(replica.ended().await.code(), Some(1), "{}", replica.log());
}

/// A stream from the beginning of time, on a connection of its own: one that is not read fills what its transport holds.
async fn open_stream(replica: &Replica) -> Streaming<StreamDeliveryEventsResponse> {
    let mut client = Client::connect(replica.grpc.clone()).await.expect("connects");
    let from = Some(From::StartTime(prost_types::Timestamp { seconds: 0, nanos: 0 }));
    let request = StreamDeliveryEventsRequest { from, ..StreamDeliveryEventsRequest::default() };
    client.stream_delivery_events(request).await.expect("opened").into_inner()
}

#[tokio::test]
async fn streams_that_nobody_reads_and_receivers_that_are_silent_hold_up_no_drain() {
    const GRACE: Duration = Duration::from_secs(4);
    let url = database().await;
    let mut replica = Replica::start(&url, &[("HOOKLANE_SHUTDOWN_GRACE", "4s")]).await;
    let tally = Tally::start(Behaviour { silent: true, ..Behaviour::default() }).await;
    tally.register(&mut Client::connect(replica.grpc.clone()).await.expect("connects")).await;
    let load = Load::start(&replica.grpc);
    eventually("a request is under way", || async { (tally.count() > 0).then_some(()) }).await;
    load.finish().await;
    let rows = "insert into timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count,
                                      tenant, event_type)
                select now(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 1, 1, 2, 0, 'default', 'a'
                from generate_series(1, 5000)";
    sqlx::query(rows).execute(&mut connection(&url).await).await.expect("written");
    let mut stalled = Vec::new();
    for _ in 0..50 {
        stalled.push(open_stream(&replica).await);
    }
    let mut read = open_stream(&replica).await;
    for _ in 0..5_000 {
        read.message().await.expect("no end").expect("no end");
    }
    let began = Instant::now();
    replica.signal("TERM").await;
    let end = loop {
        match read.message().await {
            Ok(message) => assert!(message.is_some(), "it ends with a status"),
            Err(end) => break end,
        }
    };
    let reason = end.get_details_error_info().expect("ErrorInfo").reason;
    assert_eq!((end.code(), reason.as_str()), (Code::Unavailable, "DRAINING"));
    assert_eq!(replica.ended().await.code(), Some(0), "{}", replica.log());
    // The promise itself: the grace time, which the silent receiver uses up, and 5 s.
    let taken = began.elapsed();
    assert!(taken < GRACE + Duration::from_secs(5), "{taken:?}");
    drop(stalled);
}
