//! Several replicas, each a process: what a killed, a stopped or a restarted one leaves to the others.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use hooklane::api::proto::{AttemptOutcome, Delivery, DeliveryState, PublishRequest, publish_request};
use hooklane::cli::listen::Behaviour;
use tonic::Code;

use crate::load::{Client, Load, Tally, delivery, settled};
use crate::program::Replica;
use crate::support::{database, eventually};

/// Enough that each of three replicas has some of their lanes.
const ENDPOINTS: usize = 12;

/// A receiver whose answers take a moment, so that requests are under way at any time.
async fn busy_receiver() -> Tally {
    Tally::start(Behaviour { delay: Duration::from_millis(50), ..Behaviour::default() }).await
}

pub(crate) async fn start_three(url: &str) -> Vec<Replica> {
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(Replica::start(url, &[]).await);
    }
    agree(&replicas[0], 3).await;
    replicas
}

/// Waits until so many replicas drive lanes, and reckon with as many.
pub(crate) async fn agree(witness: &Replica, count: usize) {
    eventually("the replicas agree", || async {
        let rows = witness.replicas().await?;
        let driving = rows.iter().filter(|row| row["drives_lanes"] == true && row["reckons_with"] == count).count();
        (driving == count && rows.len() == count).then_some(())
    })
    .await;
}

pub(crate) async fn client(replica: &Replica) -> Client {
    Client::connect(replica.grpc.clone()).await.expect("connects")
}

fn addresses<'r>(replicas: impl IntoIterator<Item = &'r Replica>) -> Vec<String> {
    replicas.into_iter().map(|replica| replica.grpc.clone()).collect()
}

/// Publishes one event; answers its deliveries.
async fn publish(client: &Client) -> Vec<String> {
    let request = PublishRequest {
        event_type: "order.created".to_owned(),
        body: Some(publish_request::Body::Payload("{}".into())),
        ..PublishRequest::default()
    };
    let published = client.clone().publish(request).await.expect("published").into_inner();
    published.deliveries.into_iter().map(|delivery| delivery.delivery_id).collect()
}

async fn read(client: &Client, ids: &[String]) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    for id in ids {
        deliveries.push(delivery(client, id).await);
    }
    deliveries
}

/// The names of the replicas that made the attempts of one outcome.
fn makers(deliveries: &[Delivery], outcome: AttemptOutcome) -> HashSet<&str> {
    let attempts = deliveries.iter().flat_map(|delivery| &delivery.attempts);
    attempts.filter(|one| one.outcome() == outcome).map(|one| one.replica_id.as_str()).collect()
}

#[tokio::test]
async fn a_killed_replicas_lanes_go_on_elsewhere_and_the_others_lose_nothing() {
    let url = database().await;
    let mut replicas = start_three(&url).await;
    let client = client(&replicas[0]).await;
    let tally = busy_receiver().await;
    tally.register_times(&mut client.clone(), ENDPOINTS, 64).await;
    let load = Load::start_on(addresses(&replicas[..2]), ENDPOINTS);
    load.acknowledge(300).await;
    let mut killed = replicas.pop().expect("the third");
    let name = killed.name().await;
    eventually("the third has delivered, too", || async {
        let metrics = killed.read("/metrics").await?;
        let delivered =
            metrics.lines().find(|line| line.starts_with("webhook_attempts_total{outcome=\"succeeded\"}"))?;
        (!delivered.ends_with(" 0")).then_some(())
    })
    .await;
    killed.signal("KILL").await;
    let killed_at = Instant::now();
    killed.ended().await;
    let (mut ids, refusals) = load.finish().await;
    assert!(refusals.is_empty(), "the others were not asked in vain: {refusals:?}");
    let later = publish(&client).await;
    tally.all_of(&later).await;
    // 15 s are promised; a slow machine gets as much again.
    assert!(killed_at.elapsed() < Duration::from_secs(30), "{:?}", killed_at.elapsed());
    ids.extend(later);
    explained(&client, &tally, &ids).await;
    let deliveries = read(&client, &ids).await;
    assert_eq!(makers(&deliveries, AttemptOutcome::Succeeded).len(), 3, "the work was spread");
    let losers = makers(&deliveries, AttemptOutcome::Lost);
    assert!(losers.iter().all(|loser| *loser == name), "{losers:?} lost attempts, {name} was killed");
    agree(&replicas[0], 2).await;
}

#[tokio::test]
async fn a_stopped_replica_that_goes_on_changes_nothing_and_comes_back() {
    let url = database().await;
    let replicas = start_three(&url).await;
    let client = client(&replicas[0]).await;
    let tally = busy_receiver().await;
    // Few at once, so that some wait ready to be sent when it is stopped.
    tally.register_times(&mut client.clone(), ENDPOINTS, 4).await;
    let load = Load::start_on(addresses(&replicas[..2]), ENDPOINTS);
    load.acknowledge(300).await;
    let stopped = &replicas[2];
    let name = stopped.name().await;
    stopped.signal("STOP").await;
    load.acknowledge(300).await;
    let (ids, refusals) = load.finish().await;
    assert!(refusals.is_empty(), "{refusals:?}");
    // Past its leases: what it had in flight is sent by the others.
    let lost = explained(&client, &tally, &ids).await;
    let before = read(&client, &ids).await;
    assert!(lost > 0 && makers(&before, AttemptOutcome::Lost) == HashSet::from([name.as_str()]), "{lost}");
    let arrived = tally.count();
    agree(&replicas[0], 2).await;

    stopped.signal("CONT").await;
    agree(&replicas[0], 3).await;
    eventually("its results come too late", || async { stopped.log().contains("changed nothing").then_some(()) }).await;
    // What was about to be written, or to connect, when it was stopped goes out; nothing that had not begun does.
    let late = tally.count() - arrived;
    assert!(late <= 2, "it sent {late} of {lost} that were others' by then");
    assert_eq!(read(&client, &ids).await, before);
    for _ in 0..3 {
        let ids = publish(&client).await;
        assert!(tally.all_of(&ids).await.is_empty());
        settled(&client).await;
        let deliveries = read(&client, &ids).await;
        assert_eq!(makers(&deliveries, AttemptOutcome::Succeeded).len(), 3, "it has its lanes again");
    }
}

#[tokio::test]
async fn a_rolling_restart_under_load_spends_no_attempt_and_fails_no_call() {
    let url = database().await;
    let mut replicas = start_three(&url).await;
    let tally = busy_receiver().await;
    tally.register_times(&mut client(&replicas[0]).await, ENDPOINTS, 64).await;
    let load = Load::start_on(addresses(&replicas), ENDPOINTS);
    for place in 0..replicas.len() {
        load.acknowledge(300).await;
        let old = &mut replicas[place];
        old.signal("TERM").await;
        assert_eq!(old.ended().await.code(), Some(0), "{}", old.log());
        assert!(!old.log().contains("connections are cut"), "{}", old.log());
        replicas[place] = Replica::start(&url, &[]).await;
        load.spread_over(addresses(&replicas));
    }
    load.acknowledge(300).await;
    let (ids, refusals) = load.finish().await;
    assert!(refusals.keys().all(|code| *code == Code::Unavailable), "{refusals:?}");
    let client = client(&replicas[0]).await;
    settled(&client).await;
    let repeated = tally.all_of(&ids).await;
    assert!(repeated.is_empty(), "{repeated:?}");
    for delivery in read(&client, &ids).await {
        let [attempt] = &delivery.attempts[..] else { panic!("{delivery:?}") };
        assert_eq!(
            (delivery.state(), attempt.number, attempt.outcome()),
            (DeliveryState::Succeeded, 1, AttemptOutcome::Succeeded)
        );
    }
}

#[tokio::test]
async fn roles_can_be_split_over_processes() {
    let url = database().await;
    let api = Replica::start(&url, &[("HOOKLANE_ROLES", "api")]).await;
    let mut workers = Vec::new();
    for _ in 0..2 {
        workers.push(Replica::start(&url, &[("HOOKLANE_ROLES", "worker")]).await);
        assert_eq!(workers.last().expect("one").grpc, "http://none", "a worker serves no calls");
    }
    eventually("both deliver", || async {
        let rows = api.replicas().await?;
        let driving =
            rows.iter().filter(|row| row["drives_lanes"] == true && row["roles"] == serde_json::json!(["worker"]));
        (driving.count() == 2 && rows.len() == 3).then_some(())
    })
    .await;
    let client = client(&api).await;
    let tally = busy_receiver().await;
    tally.register_times(&mut client.clone(), ENDPOINTS, 64).await;
    let ids = publish(&client).await;
    assert!(tally.all_of(&ids).await.is_empty());
    settled(&client).await;
    let deliveries = read(&client, &ids).await;
    let mut names = HashSet::new();
    for worker in &workers {
        names.insert(worker.name().await);
    }
    assert_eq!(makers(&deliveries, AttemptOutcome::Succeeded), names.iter().map(String::as_str).collect());
    for mut replica in workers.into_iter().chain([api]) {
        replica.signal("TERM").await;
        assert_eq!(replica.ended().await.code(), Some(0), "{}", replica.log());
    }
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
