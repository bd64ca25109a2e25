//! Killing the service and its database under load, and counting: nothing acknowledged is lost, repeats are bounded
//! and explained by the timeline.

use std::time::Duration;

use hooklane::api::proto::{AttemptOutcome, DeliveryState};
use hooklane::cli::listen::Behaviour;
use hooklane::cli::postgres::{DataDir, Durability, Options, Postgres, RestartMode};
use tonic::Code;

use crate::load::{Client, Load, Tally, delivery, settled};
use crate::program::Replica;
use crate::support::{database, eventually};

/// Requests that an endpoint has under way at most.
const IN_FLIGHT_MAX: usize = 64;

/// A receiver whose answers take a moment, so that requests are under way whenever something is killed.
fn busy() -> Behaviour {
    Behaviour { delay: Duration::from_millis(30), ..Behaviour::default() }
}

/// Asserts that each delivery succeeded, and that whatever arrived more than once has a lost attempt for each time.
/// Answers how many attempts were lost in all.
async fn explained(client: &Client, tally: &Tally, ids: &[String]) -> usize {
    settled(client).await;
    let repeated = tally.all_of(ids).await;
    let mut lost_in_all = 0;
    for id in ids {
        let delivery = delivery(client, id).await;
        assert_eq!(delivery.state(), DeliveryState::Succeeded, "{delivery:?}");
        let lost = delivery.attempts.iter().filter(|one| one.outcome() == AttemptOutcome::Lost).count();
        let numbers: Vec<_> = delivery.attempts.iter().map(|attempt| attempt.number).collect();
        assert!(numbers.is_sorted() && numbers.len() == lost + 1, "{delivery:?}");
        let arrivals = repeated.get(id).copied().unwrap_or(1);
        assert!(arrivals <= lost + 1, "{id} arrived {arrivals} times, {lost} attempts were lost");
        lost_in_all += lost;
    }
    lost_in_all
}

#[tokio::test]
async fn a_killed_service_loses_nothing_that_was_acknowledged() {
    const KILLS: usize = 3;
    let url = database().await;
    let mut replica = Replica::start(&url, &[]).await;
    let tally = Tally::start(busy()).await;
    tally.register(&mut Client::connect(replica.grpc.clone()).await.expect("connects")).await;
    let load = Load::start(&replica.grpc);
    for kill in 1..=KILLS {
        load.acknowledge(400).await;
        if kill == KILLS {
            // Once with requests that are certainly under way.
            tally.set_behaviour(Behaviour { silent: true, ..Behaviour::default() });
            let before = tally.count();
            eventually("a request is held", || async { (tally.count() > before).then_some(()) }).await;
        }
        replica.signal("KILL").await;
        replica.ended().await;
        tally.set_behaviour(busy());
        replica = Replica::start(&url, &[]).await;
        load.move_to(&replica.grpc);
    }
    load.acknowledge(300).await;
    let (ids, refusals) = load.finish().await;
    assert!(ids.len() >= 1_500 && refusals.keys().all(|code| is_of_a_broken_connection(*code)), "{refusals:?}");
    let client = Client::connect(replica.grpc.clone()).await.expect("connects");
    let lost = explained(&client, &tally, &ids).await;
    assert!((1..=KILLS * IN_FLIGHT_MAX).contains(&lost), "{lost} attempts were lost");
}

#[tokio::test]
async fn a_killed_database_loses_nothing_and_the_service_resumes_by_itself() {
    let options = Options {
        data_dir: DataDir::Ephemeral,
        bin_dir: None,
        durability: Durability::Full,
        extra_settings: Vec::new(),
    };
    let mut postgres = Postgres::start(options).await.expect("PostgreSQL starts");
    postgres.create_database("hooklane").await.expect("created");
    let mut replica = Replica::start(&postgres.url("hooklane"), &[]).await;
    let tally = Tally::start(busy()).await;
    tally.register(&mut Client::connect(replica.grpc.clone()).await.expect("connects")).await;
    let load = Load::start(&replica.grpc);
    load.acknowledge(300).await;
    postgres.restart(RestartMode::Immediate).await.expect("restarted");
    load.acknowledge(300).await;
    let (ids, refusals) = load.finish().await;
    assert!(refusals.keys().all(|code| *code == Code::Unavailable), "{refusals:?}");
    let client = Client::connect(replica.grpc.clone()).await.expect("connects");
    let lost = explained(&client, &tally, &ids).await;
    assert!(lost <= IN_FLIGHT_MAX, "{lost} attempts were lost");
    assert_eq!(replica.look("/readyz").await, Some(200));
    assert!(replica.runs());
    replica.signal("TERM").await;
    assert_eq!(replica.ended().await.code(), Some(0));
}

/// What a client tells of a connection that ends in the middle of a call.
fn is_of_a_broken_connection(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
}
