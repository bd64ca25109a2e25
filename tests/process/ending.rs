//! Ending by a signal: a drain that loses nothing and repeats nothing, and one that is cut short.

use std::time::Duration;

use hooklane::api::proto::{AttemptOutcome, DeliveryState};
use hooklane::cli::listen::Behaviour;
use tonic::Code;

use crate::load::{Client, Load, Tally, delivery, settled};
use crate::program::Replica;
use crate::support::{database, eventually};

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
