//! The engine at work: from the database to real receivers and back.

use std::sync::Arc;
use std::time::Duration;

use hooklane::cli::listen::{Behaviour, Receiver, ReceiverOptions};
use hooklane::domain::attempt::AttemptOutcome;
use hooklane::domain::delivery::DeliveryState;
use hooklane::domain::endpoint::EndpointSpec;
use hooklane::domain::fields::Tenant;
use hooklane::domain::id::{DeliveryId, EndpointId};
use hooklane::domain::retry::{Backoff, RetryDefaults, RetryPolicy};
use hooklane::domain::secret::Secret;
use hooklane::domain::url::EndpointUrl;
use hooklane::egress::{self, Egress};
use hooklane::engine::membership::Membership;
use hooklane::engine::{self, Engine};
use hooklane::store::{DeliveryRecord, NewEndpoint, Publisher, Roles, Store};
use http::StatusCode;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::publish::{event, spec};
use crate::support::{self, eventually};

/// A store and an engine over it, with one retry policy that is quick.
struct Running {
    store: Arc<Store>,
    publisher: Publisher,
    engine: Engine,
    shutdown: CancellationToken,
}

pub(crate) fn quick(max_retries: u32) -> RetryPolicy {
    let (initial, max) = (Duration::from_millis(20), Duration::from_millis(100));
    RetryPolicy { backoff: Backoff::exponential(initial, 2.0, max).expect("in bounds"), jitter: 0.3, max_retries }
}

fn start_engine(store: &Arc<Store>, grace: Duration, shutdown: &CancellationToken) -> Engine {
    start_member(store, grace, shutdown, CancellationToken::new()).0
}

/// An engine that is one of several until `end`, and what ends once it is none of them any more.
pub(crate) fn start_member(
    store: &Arc<Store>,
    grace: Duration,
    shutdown: &CancellationToken,
    end: CancellationToken,
) -> (Engine, JoinHandle<()>) {
    let rules = support::loopback_rules();
    let egress =
        Egress::new(egress::Config { rules, proxy: None, user_agent: "hooklane/test".to_owned() }).expect("an egress");
    let retries = RetryDefaults { policy: quick(5), ..RetryDefaults::default() };
    let config = engine::Config { retries, grace, ..engine::Config::default() };
    let (membership, member) = Membership::start(store, Roles { api: false, worker: true }, end);
    (Engine::start(Arc::clone(store), Publisher::start(store), membership, egress, config, shutdown.clone()), member)
}

async fn running() -> Running {
    let store = support::store().await;
    let shutdown = CancellationToken::new();
    let engine = start_engine(&store, Duration::from_secs(10), &shutdown);
    Running { publisher: Publisher::start(&store), store, engine, shutdown }
}

pub(crate) async fn receiver(behaviour: Behaviour) -> Receiver {
    let secrets = vec![Secret::from_random(&[7; 32]).into()];
    Receiver::start(ReceiverOptions { secrets, behaviour, ..ReceiverOptions::default() }).await.expect("a receiver")
}

pub(crate) async fn endpoint(store: &Store, url: &str, change: impl FnOnce(&mut EndpointSpec)) -> EndpointId {
    let mut spec = spec(&[]);
    spec.url = EndpointUrl::parse(url, &support::loopback_rules()).expect("a URL");
    change(&mut spec);
    let new = NewEndpoint { tenant: Tenant::default_tenant(), spec, secret: Secret::from_random(&[7; 32]) };
    store.register_endpoint(&new).await.expect("registered").id
}

impl Running {
    async fn publish(&self) -> DeliveryId {
        self.publisher.publish(event("order.created")).await.expect("published").deliveries[0].delivery_id
    }

    async fn in_state(&self, id: DeliveryId, state: DeliveryState) -> DeliveryRecord {
        eventually(&format!("{id} is {state:?}"), || async {
            self.store.delivery(id).await.expect("read").filter(|record| record.row.state == state)
        })
        .await
    }
}

fn failing_first(count: u32, status: StatusCode) -> Behaviour {
    Behaviour { fail_first: count, fail_status: status, ..Behaviour::default() }
}

#[tokio::test]
async fn events_arrive_signed_and_once_each() {
    let running = running().await;
    let receiver = receiver(Behaviour::default()).await;
    endpoint(&running.store, &receiver.url(), |_| {}).await;
    let mut expected = Vec::new();
    for _ in 0..50 {
        expected.push(running.publish().await.to_string());
    }
    let mut arrived = Vec::new();
    while arrived.len() < expected.len() {
        let received = receiver.next().await.expect("a request");
        assert_eq!(received.status, Some(StatusCode::OK), "{:?}", received.verdict);
        arrived.push(received.headers["x-webhook-id"].to_str().expect("text").to_owned());
    }
    arrived.sort_unstable();
    expected.sort_unstable();
    assert_eq!(arrived, expected);
}

#[tokio::test]
async fn a_failing_receiver_is_retried_until_it_recovers() {
    let running = running().await;
    let receiver = receiver(failing_first(3, StatusCode::SERVICE_UNAVAILABLE)).await;
    let id = endpoint(&running.store, &receiver.url(), |_| {}).await;
    let delivery = running.publish().await;
    let record = running.in_state(delivery, DeliveryState::Succeeded).await;
    let attempts: Vec<_> = record.attempts.iter().map(|attempt| (attempt.number, attempt.status)).collect();
    assert_eq!(attempts, [(1, 503), (2, 503), (3, 503), (4, 200)]);
    assert!(record.attempts[..3].iter().all(|attempt| attempt.next_attempt_time.is_some()));
    let health = running.store.endpoint(id).await.expect("read").expect("there").health;
    assert_eq!(health.consecutive_failures, 0);
    assert!(health.score < 1.0 && health.last_failure_time.is_some());
}

#[tokio::test]
async fn retries_end_and_the_reason_is_told() {
    let running = running().await;
    let receiver = receiver(Behaviour { status: Some(StatusCode::BAD_GATEWAY), ..Behaviour::default() }).await;
    endpoint(&running.store, &receiver.url(), |spec| spec.retry_policy = Some(quick(2))).await;
    let delivery = running.publish().await;
    let record = running.in_state(delivery, DeliveryState::Failed).await;
    assert_eq!((record.attempts.len(), record.row.reason.as_deref()), (3, Some("HTTP 502: Bad Gateway")));
    running.store.retry(delivery).await.expect("retried");
    let again = eventually("it failed again", || async {
        let record = running.store.delivery(delivery).await.expect("read").expect("there");
        (record.row.state == DeliveryState::Failed && record.attempts.len() > 3).then_some(record)
    })
    .await;
    assert_eq!(again.attempts.len(), 6, "a manual retry starts a fresh budget");
}

#[tokio::test]
async fn a_client_error_fails_at_once() {
    let running = running().await;
    let receiver = receiver(Behaviour { status: Some(StatusCode::NOT_FOUND), ..Behaviour::default() }).await;
    endpoint(&running.store, &receiver.url(), |_| {}).await;
    let delivery = running.publish().await;
    let record = running.in_state(delivery, DeliveryState::Failed).await;
    assert_eq!((record.attempts.len(), record.row.reason.as_deref()), (1, Some("HTTP 404: Not Found")));
}

#[tokio::test]
async fn a_changed_endpoint_holds_from_the_next_attempt_on() {
    let running = running().await;
    let broken = receiver(Behaviour { status: Some(StatusCode::INTERNAL_SERVER_ERROR), ..Behaviour::default() }).await;
    let healthy = receiver(Behaviour::default()).await;
    let id = endpoint(&running.store, &broken.url(), |spec| spec.retry_policy = Some(quick(100))).await;
    let delivery = running.publish().await;
    broken.next().await.expect("a first attempt");
    let endpoint = running.store.endpoint(id).await.expect("read").expect("there");
    let url = EndpointUrl::parse(&healthy.url(), &support::loopback_rules()).expect("a URL");
    let moved = EndpointSpec { url, ..endpoint.spec };
    running.store.update_endpoint(&endpoint.tenant, id, endpoint.version, &moved).await.expect("updated");
    running.in_state(delivery, DeliveryState::Succeeded).await;
    assert_eq!(healthy.count(), 1);
}

#[tokio::test]
async fn no_more_requests_are_under_way_than_the_endpoint_admits() {
    let running = running().await;
    let receiver = receiver(Behaviour { silent: true, ..Behaviour::default() }).await;
    endpoint(&running.store, &receiver.url(), |spec| {
        spec.max_in_flight = 3;
        spec.timeout = Duration::from_secs(300);
    })
    .await;
    for _ in 0..10 {
        running.publish().await;
    }
    for _ in 0..3 {
        receiver.next().await.expect("a request");
    }
    // What would be a fourth request has had every occasion once a later event's delivery elsewhere is through.
    let healthy = self::receiver(Behaviour::default()).await;
    endpoint(&running.store, &healthy.url(), |_| {}).await;
    running.publish().await;
    healthy.next().await.expect("a request");
    assert_eq!(receiver.count(), 3);
    running.shutdown.cancel();
}

#[tokio::test]
async fn a_silent_endpoint_costs_the_others_nothing() {
    let running = running().await;
    let silent = receiver(Behaviour { silent: true, ..Behaviour::default() }).await;
    let healthy = receiver(Behaviour::default()).await;
    endpoint(&running.store, &silent.url(), |spec| spec.timeout = Duration::from_secs(300)).await;
    endpoint(&running.store, &healthy.url(), |_| {}).await;
    for _ in 0..300 {
        running.publisher.publish(event("order.created")).await.expect("published");
    }
    for _ in 0..300 {
        healthy.next().await.expect("a request");
    }
    assert_eq!(silent.count(), 16, "as many as a receiver gets that has not answered yet, and no more");
}

#[tokio::test]
async fn work_that_no_hint_tells_of_is_found_by_the_sweep() {
    let url = support::database().await;
    let publishing = Store::open(&support::config(url.clone())).await.expect("opens");
    let receiver = receiver(Behaviour::default()).await;
    endpoint(&publishing, &receiver.url(), |_| {}).await;
    // Another replica's engine: it hears none of this store's hints.
    let delivering = Store::open(&support::config(url)).await.expect("opens");
    let shutdown = CancellationToken::new();
    let _engine = start_engine(&delivering, Duration::from_secs(1), &shutdown);
    let publisher = Publisher::start(&publishing);
    for _ in 0..3 {
        publisher.publish(event("order.created")).await.expect("published");
        receiver.next().await.expect("a request");
    }
}

#[tokio::test]
async fn a_shutdown_lets_requests_end_and_puts_every_result_on_record() {
    let running = running().await;
    let receiver = receiver(Behaviour { delay: Duration::from_millis(500), ..Behaviour::default() }).await;
    endpoint(&running.store, &receiver.url(), |spec| spec.timeout = Duration::from_secs(30)).await;
    let mut deliveries = Vec::new();
    for _ in 0..200 {
        deliveries.push(running.publish().await);
    }
    receiver.next().await.expect("a request");
    running.shutdown.cancel();
    running.engine.ended().await;
    let mut succeeded = 0;
    for id in deliveries {
        let record = running.store.delivery(id).await.expect("read").expect("there");
        match record.row.state {
            DeliveryState::Succeeded => succeeded += 1,
            DeliveryState::Pending => assert_eq!(record.row.attempt_count, 0, "no attempt is spent"),
            other => panic!("{id} is {other:?} after the drain"),
        }
    }
    assert_eq!(succeeded, receiver.count(), "every request that arrived is on record");
}

#[tokio::test]
async fn a_killed_worker_loses_its_attempt_and_nothing_else() {
    let url = support::database().await;
    let store = Store::open(&support::config(url.clone())).await.expect("opens");
    let receiver = receiver(Behaviour { silent: true, ..Behaviour::default() }).await;
    endpoint(&store, &receiver.url(), |spec| spec.timeout = Duration::from_secs(30)).await;
    let publisher = Publisher::start(&store);
    let shutdown = CancellationToken::new();
    let engine = start_engine(&store, Duration::ZERO, &shutdown);
    let delivery = publisher.publish(event("order.created")).await.expect("published").deliveries[0].delivery_id;
    receiver.next().await.expect("a request");
    // No grace: the engine goes while the request is under way, as a killed process would.
    shutdown.cancel();
    engine.ended().await;
    receiver.set_behaviour(Behaviour::default());
    let mut connection = support::connection(&url).await;
    let lapsed = "update outstanding set lease_until = now() - interval '1 second'";
    sqlx::query(lapsed).execute(&mut connection).await.expect("lapsed");
    let successor = Store::open(&support::config(url)).await.expect("opens");
    let shutdown = CancellationToken::new();
    let _engine = start_engine(&successor, Duration::ZERO, &shutdown);
    let record = eventually("it succeeded", || async {
        successor.delivery(delivery).await.expect("read").filter(|record| record.row.state == DeliveryState::Succeeded)
    })
    .await;
    let outcomes: Vec<_> = record.attempts.iter().map(|attempt| attempt.outcome.expect("ended")).collect();
    assert_eq!(outcomes, [AttemptOutcome::Lost, AttemptOutcome::Succeeded]);
}

#[tokio::test]
async fn a_delivery_that_kills_its_worker_ends() {
    let url = support::database().await;
    let store = Store::open(&support::config(url.clone())).await.expect("opens");
    let receiver = receiver(Behaviour::default()).await;
    endpoint(&store, &receiver.url(), |_| {}).await;
    let delivery = Publisher::start(&store).publish(event("a")).await.expect("published").deliveries[0].delivery_id;
    let mut connection = support::connection(&url).await;
    let lost = "update outstanding set state = 2, lost_count = 9, attempt_count = 10, attempt_started_at = now(),
                lease_until = now() - interval '1 second'";
    sqlx::query(lost).execute(&mut connection).await.expect("lost");
    let shutdown = CancellationToken::new();
    let _engine = start_engine(&store, Duration::ZERO, &shutdown);
    let record = eventually("it failed", || async {
        store.delivery(delivery).await.expect("read").filter(|record| record.row.state == DeliveryState::Failed)
    })
    .await;
    assert!(record.row.reason.expect("a reason").contains("lost"));
    assert_eq!((record.row.attempt_count, receiver.count()), (10, 0));
}

#[tokio::test]
async fn retry_after_holds_the_lane() {
    let running = running().await;
    let receiver =
        receiver(Behaviour { retry_after: Some(3_600), ..failing_first(1, StatusCode::TOO_MANY_REQUESTS) }).await;
    endpoint(&running.store, &receiver.url(), |spec| spec.max_in_flight = 1).await;
    let first = running.publish().await;
    receiver.next().await.expect("a request");
    let record = eventually("the first attempt is on record", || async {
        running.store.delivery(first).await.expect("read").filter(|record| record.row.state == DeliveryState::Retrying)
    })
    .await;
    let wait = record.row.due_at.expect("due").since(running.store.clock().now());
    assert!(wait > Duration::from_secs(3_500), "{wait:?}");
    let second = running.publish().await;
    let healthy = self::receiver(Behaviour::default()).await;
    endpoint(&running.store, &healthy.url(), |_| {}).await;
    running.publish().await;
    healthy.next().await.expect("a request");
    let row = running.store.delivery_row(second).await.expect("read").expect("there");
    assert_eq!((row.state, receiver.count()), (DeliveryState::Pending, 1));
}
