//! Order over several replicas, and what each verb of the queue does to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use bytes::Bytes;
use hooklane::domain::delivery::DeliveryState;
use hooklane::domain::endpoint::{OnFailure, Ordering, PayloadFormat};
use hooklane::domain::event::NewEvent;
use hooklane::domain::fields::ContentType;
use hooklane::domain::id::{DeliveryId, EndpointId};
use hooklane::domain::rendezvous::{Driver, driver_of};
use hooklane::domain::schedule::{Priority, Schedule};
use hooklane::domain::time::Timestamp;
use hooklane::store::{Claimed, Completion, LaneRequest, OrderPlace, OrderWalk, Publisher, Settlement, Store, Waits};
use http::StatusCode;

use crate::delivery::{endpoint, quick};
use crate::publish::event;
use crate::queue;
use crate::replicas::{Worker, driving, open, settled};
use crate::support::{self, eventually};

/// What arrived of each key, and what was answered with 200: places in publish order.
#[derive(Default)]
struct Log {
    arrived: Mutex<BTreeMap<String, Vec<(u64, bool)>>>,
}

impl Log {
    /// Answers a share of the requests with 503, at random.
    async fn start(failures: f64) -> (Arc<Self>, String) {
        let log = Arc::new(Self::default());
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let url = format!("http://{}/", listener.local_addr().expect("bound"));
        let take = move |State(log): State<Arc<Self>>, body: Bytes| async move {
            let text = std::str::from_utf8(&body).expect("text");
            let (key, n) = text.split_once(' ').expect("key and number");
            let succeeds = !rand::random_bool(failures);
            let mut arrived = log.arrived.lock().expect("no panic");
            arrived.entry(key.to_owned()).or_default().push((n.parse().expect("a number"), succeeds));
            if succeeds { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
        };
        let router = Router::new().route("/", axum::routing::post(take)).with_state(Arc::clone(&log));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (log, url)
    }

    fn count(&self) -> usize {
        self.arrived.lock().expect("no panic").values().map(Vec::len).sum()
    }

    /// For each key: everything arrived, for the first time in publish order, and nothing before the one before it was
    /// answered with 200.
    fn check(&self, keys: usize, each: u64) {
        let arrived = self.arrived.lock().expect("no panic");
        assert_eq!(arrived.len(), keys);
        for (key, requests) in arrived.iter() {
            let mut answered = BTreeSet::new();
            let mut first = Vec::new();
            for (n, succeeded) in requests {
                assert!(*n == 0 || answered.contains(&(n - 1)), "{key} {n} came too early: {requests:?}");
                if !first.contains(n) {
                    first.push(*n);
                }
                if *succeeded {
                    answered.insert(*n);
                }
            }
            assert_eq!(first, (0..each).collect::<Vec<_>>(), "{key}");
        }
    }
}

fn nth(key: &str, n: u64) -> NewEvent {
    NewEvent {
        payload: Bytes::from(format!("{key} {n}")),
        content_type: ContentType::parse("text/plain").expect("a type"),
        schedule: Schedule { ordering_key: Some(key.to_owned()), ..Schedule::default() },
        ..event("a")
    }
}

#[tokio::test]
async fn fifty_keys_keep_their_order_through_failures_and_a_killed_replica() {
    const KEYS: usize = 50;
    const EACH: u64 = 12;
    let url = support::database().await;
    let store = open(&url, "publisher").await;
    let (log, receiver) = Log::start(0.2).await;
    let lane = endpoint(&store, &receiver, |spec| {
        spec.ordering = Ordering::ByKey;
        spec.payload_format = PayloadFormat::Raw;
        spec.timeout = Duration::from_secs(30);
        spec.retry_policy = Some(quick(100));
    })
    .await;
    let names = ["one", "two", "three"];
    let mut workers = Vec::new();
    for name in names {
        workers.push((name, Worker::start(&url, name).await));
    }
    let here = driving(&store, &names).await;
    let drivers: Vec<_> = here.iter().map(|one| Driver::new(one.id, &one.name)).collect();
    let owner = driver_of(lane, &drivers).expect("one of them").id;
    let owner = here.iter().find(|one| one.id == owner).expect("one of them").name.clone();
    let publisher = Publisher::start(&store);
    let publish = |n| {
        let publisher = publisher.clone();
        async move {
            let events = (0..KEYS).map(|key| publisher.publish(nth(&format!("k{key}"), n)));
            futures::future::try_join_all(events).await.expect("published")
        }
    };
    for n in 0..EACH / 2 {
        publish(n).await;
    }
    eventually("the work is under way", || async { (log.count() > KEYS).then_some(()) }).await;
    // The one that has the work: its requests under way are sent again by another when their leases lapse.
    let killed = workers.iter().position(|(name, _)| *name == owner).expect("one of them");
    workers.remove(killed).1.kill();
    for n in EACH / 2..EACH {
        publish(n).await;
    }
    settled(&store).await;
    log.check(KEYS, EACH);
    workers.into_iter().for_each(|(_, worker)| worker.kill());
}

/// A store with one ordered endpoint.
async fn ordered(on_failure: OnFailure) -> (Arc<Store>, String, EndpointId, Publisher) {
    let url = support::database().await;
    let store = Store::open(&support::config(url.clone())).await.expect("opens");
    let id = endpoint(&store, "http://127.0.0.1:9/", |spec| {
        spec.ordering = Ordering::ByKey;
        spec.on_failure = on_failure;
    })
    .await;
    let publisher = Publisher::start(&store);
    (store, url, id, publisher)
}

async fn publish(publisher: &Publisher, key: &str, n: u64) -> DeliveryId {
    publisher.publish(nth(key, n)).await.expect("published").deliveries[0].delivery_id
}

async fn claim(store: &Store, endpoint: EndpointId) -> Vec<Claimed> {
    let (priority, low_water) = (Priority::Normal, Timestamp::from_micros(i64::MIN));
    let lane =
        LaneRequest { endpoint, priority, room: 64, held: 0, ahead: 0, low_water, version: 0, circuit_until: None };
    store.claim(&[lane]).await.expect("claimed").claimed
}

fn ids(claimed: &[Claimed]) -> Vec<DeliveryId> {
    claimed.iter().map(|one| one.id).collect()
}

fn completion(claimed: &Claimed, settlement: Settlement) -> Completion {
    Completion {
        id: claimed.id,
        endpoint: claimed.endpoint,
        claim_gen: claimed.claim_gen,
        attempt_count: claimed.attempt,
        attempt: None,
        trace: None,
        settlement,
        order_key: claimed.order_key.clone(),
    }
}

#[tokio::test]
async fn only_the_first_of_a_key_can_be_claimed_and_the_next_one_once_it_is_settled() {
    let (store, url, endpoint, publisher) = ordered(OnFailure::Block).await;
    let mut of_key = Vec::new();
    for n in 0..3 {
        of_key.push(publish(&publisher, "k", n).await);
    }
    let other = publish(&publisher, "other", 0).await;
    let first = claim(&store, endpoint).await;
    assert_eq!(ids(&first), [of_key[0], other]);
    assert!(claim(&store, endpoint).await.is_empty(), "the rest is behind them");
    assert!(store.sweep().await.expect("swept").is_empty(), "and no work");
    // Handed back, lapsed or retried, it stays the first.
    store.release(&[(first[0].id, first[0].claim_gen)]).await.expect("released");
    let again = claim(&store, endpoint).await;
    assert_eq!(ids(&again), [of_key[0]]);
    let lapse = "update outstanding set lease_until = now() - interval '1 second' where state = 2";
    sqlx::query(lapse).execute(&mut support::connection(&url).await).await.expect("lapsed");
    let again = claim(&store, endpoint).await;
    assert_eq!(ids(&again), [of_key[0], other]);
    store.complete(&[queue::retry(&again[0])]).await.expect("completed");
    let current = claim(&store, endpoint).await;
    assert_eq!(ids(&current), [of_key[0]]);
    // Of a claim that is over nothing goes on.
    let stale = store.complete(&[completion(&first[0], Settlement::Succeeded)]).await.expect("completed");
    assert!(stale.won.is_empty() && claim(&store, endpoint).await.is_empty());
    let all = [completion(&current[0], Settlement::Succeeded), completion(&again[1], Settlement::Succeeded)];
    assert_eq!(store.complete(&all).await.expect("completed").won.len(), 2);
    // Written again, because its answer was lost, it changes nothing.
    assert!(store.complete(&all).await.expect("completed").won.is_empty());
    assert_eq!(ids(&claim(&store, endpoint).await), [of_key[1]]);
    let keys: Vec<String> = sqlx::query_scalar("select key from order_keys")
        .fetch_all(&mut support::connection(&url).await)
        .await
        .expect("read");
    assert_eq!(keys, ["k"], "the other has nothing left");
}

#[tokio::test]
async fn a_blocked_key_goes_on_when_its_failed_delivery_is_gone() {
    let (store, url, endpoint, publisher) = ordered(OnFailure::Block).await;
    let (first, second) = (publish(&publisher, "k", 0).await, publish(&publisher, "k", 1).await);
    let claimed = claim(&store, endpoint).await;
    let failed = completion(&claimed[0], Settlement::Failed("HTTP 404: Not Found".to_owned()));
    store.complete(&[failed]).await.expect("completed");
    assert!(claim(&store, endpoint).await.is_empty());
    let row = store.delivery_row(second).await.expect("read").expect("there");
    assert_eq!(row.waits, Some(Waits::Behind { first, has_failed: true }));
    for walk in [OrderWalk::Blocked, OrderWalk::Any] {
        let mended = store.mend_order(walk, &OrderPlace::default(), 10).await.expect("looked");
        assert_eq!(mended, (0, OrderPlace::default()), "it waits rightly");
    }
    let mut connection = support::connection(&url).await;
    sqlx::query("delete from settled_failed").execute(&mut connection).await.expect("deleted");
    assert_eq!(store.mend_order(OrderWalk::Blocked, &OrderPlace::default(), 10).await.expect("mended").0, 1);
    assert_eq!(ids(&claim(&store, endpoint).await), [second]);
}

#[tokio::test]
async fn a_key_that_a_version_without_order_left_behind_goes_on() {
    let (store, _, endpoint, publisher) = ordered(OnFailure::Block).await;
    let mut waiting = Vec::new();
    for key in ["a", "b", "c"] {
        publish(&publisher, key, 0).await;
        waiting.push(publish(&publisher, key, 1).await);
    }
    let mut claimed = claim(&store, endpoint).await;
    for one in &mut claimed {
        one.order_key = None;
    }
    let all: Vec<_> = claimed.iter().map(|one| completion(one, Settlement::Succeeded)).collect();
    store.complete(&all).await.expect("completed");
    assert!(claim(&store, endpoint).await.is_empty());
    let (mended, place) = store.mend_order(OrderWalk::Any, &OrderPlace::default(), 2).await.expect("mended");
    assert_eq!(mended, 2);
    let (mended, place) = store.mend_order(OrderWalk::Any, &place, 2).await.expect("mended");
    assert_eq!((mended, place), (1, OrderPlace::default()), "from the beginning again");
    assert_eq!(ids(&claim(&store, endpoint).await), waiting);
}

#[tokio::test]
async fn concurrent_publishers_completers_and_cancels_leave_no_key_behind() {
    let (store, url, endpoint, publisher) = ordered(OnFailure::Skip).await;
    let publishing = (0..8).map(|caller| {
        let publisher = publisher.clone();
        tokio::spawn(async move {
            let mut ids = Vec::new();
            for n in 0..25 {
                ids.push(publish(&publisher, &format!("k{}", (caller + n) % 3), n).await);
            }
            ids
        })
    });
    let publishing: Vec<_> = publishing.collect();
    let canceling = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            for ids in futures::future::try_join_all(publishing).await.expect("no panic") {
                for id in ids.into_iter().step_by(3) {
                    // Most of them are settled by then.
                    let _ = store.cancel(id).await;
                }
            }
        }
    });
    while !canceling.is_finished() || !store.sweep().await.expect("swept").is_empty() {
        let claimed = claim(&store, endpoint).await;
        let all: Vec<_> = claimed.iter().map(|one| completion(one, Settlement::Succeeded)).collect();
        store.complete(&all).await.expect("completed");
    }
    canceling.await.expect("no panic");
    let left: (i64, i64) =
        sqlx::query_as("select (select count(*) from outstanding), (select count(*) from order_keys)")
            .fetch_one(&mut support::connection(&url).await)
            .await
            .expect("counted");
    assert_eq!(left, (0, 0));
}

#[tokio::test]
async fn a_claim_past_its_expire_time_is_not_sent() {
    let (store, url, endpoint, publisher) = ordered(OnFailure::Block).await;
    let expire_time = Some(store.clock().now().plus(Duration::from_secs(3_600)));
    let asked = NewEvent { schedule: Schedule { expire_time, ..Schedule::default() }, ..event("a") };
    let id = publisher.publish(asked).await.expect("published").deliveries[0].delivery_id;
    let past = "update outstanding set expire_at = now() - interval '1 second'";
    sqlx::query(past).execute(&mut support::connection(&url).await).await.expect("set");
    let claimed = claim(&store, endpoint).await;
    assert!(claimed[0].expire_at.expect("it has one") <= claimed[0].claimed_at);
    assert_eq!(store.expire().await.expect("looked"), (0, false), "its claim decides");
    let ended = Completion { attempt_count: 0, ..completion(&claimed[0], Settlement::Expired) };
    store.complete(&[ended]).await.expect("completed");
    let row = store.delivery_row(id).await.expect("read").expect("there");
    assert_eq!((row.state, row.reason.as_deref()), (DeliveryState::Expired, Some("its expire_time passed")));
    store.retry(id).await.expect("retried");
    assert_eq!(claim(&store, endpoint).await[0].expire_at, None, "cleared");
}
