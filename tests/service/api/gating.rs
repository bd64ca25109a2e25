//! How fast, and when to stop: circuit breakers, disabling and rate limits, seen by callers and by real receivers.

use std::time::Duration;

use hooklane::api::proto::*;
use hooklane::cli::listen::{Behaviour, Receiver};
use http::StatusCode;

use super::{Service, endpoint, event, receiver, retries, seconds, service, service_with};
use crate::support::{self, eventually};

/// Answers so to everything.
fn answering(status: u16) -> Behaviour {
    Behaviour { status: Some(StatusCode::from_u16(status).expect("a status")), ..Behaviour::default() }
}

/// A receiver that answers so, to be told otherwise.
async fn failing(status: u16) -> Receiver {
    receiver(answering(status)).await
}

fn breaker(failure_threshold: u32, open_duration: prost_types::Duration) -> Option<CircuitBreaker> {
    let max_open_duration = Some(seconds(24 * 3_600));
    let (failure_threshold, open_duration) = (Some(failure_threshold), Some(open_duration));
    Some(CircuitBreaker { failure_threshold, open_duration, max_open_duration })
}

const fn millis(millis: i32) -> prost_types::Duration {
    prost_types::Duration { seconds: (millis / 1_000) as i64, nanos: millis % 1_000 * 1_000_000 }
}

fn no_breaker() -> Option<CircuitBreaker> {
    breaker(0, seconds(1))
}

/// One request at a time, and a failed delivery waits for an hour.
fn patient(url: &str) -> Endpoint {
    let delays = vec![seconds(3_600)];
    let backoff = Some(retry_policy::Backoff::Schedule(BackoffSchedule { delays }));
    let retry_policy = Some(RetryPolicy { backoff, jitter: Some(0.0), max_retries: Some(9) });
    Endpoint { retry_policy, max_in_flight: 1, ..endpoint(url) }
}

/// What is asked of a service here.
trait Asks {
    async fn shown(&self, id: &str) -> Endpoint;
    async fn update(&self, patch: Endpoint) -> Endpoint;
    async fn resume(&self, id: &str) -> Endpoint;
    async fn in_circuit_state(&self, id: &str, state: CircuitState) -> Endpoint;
    async fn publish_to(&self, id: &str, count: usize) -> Vec<String>;
    /// Returns once whatever was due before could have been sent: a delivery made later has gone through.
    async fn let_others_pass(&self);
}

impl Asks for Service {
    async fn shown(&self, id: &str) -> Endpoint {
        let request = GetEndpointRequest { endpoint_id: id.to_owned() };
        self.client.clone().get_endpoint(request).await.expect("read").into_inner().endpoint.expect("an endpoint")
    }

    async fn update(&self, patch: Endpoint) -> Endpoint {
        let request = UpdateEndpointRequest { endpoint: Some(patch), update_mask: None };
        self.client.clone().update_endpoint(request).await.expect("updated").into_inner().endpoint.expect("it")
    }

    async fn resume(&self, id: &str) -> Endpoint {
        let request = ResumeEndpointRequest { endpoint_id: id.to_owned() };
        self.client.clone().resume_endpoint(request).await.expect("resumed").into_inner().endpoint.expect("it")
    }

    async fn in_circuit_state(&self, id: &str, state: CircuitState) -> Endpoint {
        eventually(&format!("the circuit is {state:?}"), || async {
            Some(self.shown(id).await).filter(|endpoint| endpoint.circuit_state() == state)
        })
        .await
    }

    async fn publish_to(&self, id: &str, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for _ in 0..count {
            let request = PublishRequest { endpoint_ids: vec![id.to_owned()], ..event("a") };
            ids.push(self.publish(request).await.deliveries[0].delivery_id.clone());
        }
        ids
    }

    async fn let_others_pass(&self) {
        let other = receiver(Behaviour::default()).await;
        let id = self.register(endpoint(&other.url())).await.id;
        for _ in 0..3 {
            self.publish_to(&id, 1).await;
            other.next().await.expect("a request");
        }
    }
}

#[tokio::test]
async fn an_open_circuit_sends_nothing_over_a_restart_until_a_probe_succeeds() {
    let database = support::database().await;
    let service = service_with(database.clone(), &[]).await;
    let receiver = failing(500).await;
    let registered =
        service.register(Endpoint { circuit_breaker: breaker(3, seconds(3_600)), ..patient(&receiver.url()) }).await;
    assert_eq!(registered.circuit_state(), CircuitState::Closed);
    let ids = service.publish_to(&registered.id, 6).await;
    let opened = service.in_circuit_state(&registered.id, CircuitState::Open).await;
    assert_eq!((opened.consecutive_failures, &opened.etag), (3, &registered.etag));
    assert!((opened.health_score - 0.8f64.powi(3)).abs() < 1e-9, "{}", opened.health_score);
    service.let_others_pass().await;
    assert_eq!(receiver.count(), 3);
    for id in &ids[3..] {
        let waiting = service.in_state(id, DeliveryState::Pending).await;
        assert!(waiting.attempts.is_empty() && waiting.reason.contains("circuit is open until 20"), "{waiting:?}");
    }
    let retrying = service.in_state(&ids[0], DeliveryState::Retrying).await;
    assert!(retrying.reason.contains("HTTP 500") && retrying.reason.contains("circuit is open until"), "{retrying:?}");

    service.app.stop().await;
    let service = service_with(database, &[]).await;
    service.let_others_pass().await;
    assert_eq!(receiver.count(), 3, "a restart forgets nothing");
    // By hand, too, nothing passes an open circuit.
    service.client.clone().retry_delivery(RetryDeliveryRequest { delivery_id: ids[0].clone() }).await.expect("due");
    service.let_others_pass().await;
    assert_eq!(receiver.count(), 3);

    receiver.set_behaviour(answering(200));
    let patch = Endpoint { id: registered.id.clone(), circuit_breaker: breaker(3, millis(1)), ..Endpoint::default() };
    service.update(patch).await;
    let closed = service.in_circuit_state(&registered.id, CircuitState::Closed).await;
    assert_eq!(closed.consecutive_failures, 0);
    let mut triggers = Vec::new();
    for id in ids[3..].iter().chain(&ids[..1]) {
        let delivery = service.in_state(id, DeliveryState::Succeeded).await;
        triggers.extend(delivery.attempts.iter().filter(|one| one.status_code == 200).map(|one| one.trigger()));
    }
    let probes = triggers.iter().filter(|trigger| **trigger == AttemptTrigger::Probe).count();
    assert_eq!((triggers.len(), probes, receiver.count()), (4, 1, 7));
}

#[tokio::test]
async fn probes_go_one_by_one_and_the_wait_doubles_up_to_its_maximum() {
    let service = service().await;
    let receiver = failing(503).await;
    let max_open_duration = Some(millis(800));
    let circuit_breaker = breaker(2, millis(200)).map(|breaker| CircuitBreaker { max_open_duration, ..breaker });
    let registered = service.register(Endpoint { circuit_breaker, ..endpoint(&receiver.url()) }).await;
    let ids = service.publish_to(&registered.id, 1).await;
    let mut times = Vec::new();
    for _ in 0..6 {
        times.push(receiver.next().await.expect("a request").time);
    }
    let gaps: Vec<i64> = times.windows(2).map(|pair| pair[1].as_millisecond() - pair[0].as_millisecond()).collect();
    // A retry of 20 ms, then the waits: they are floors.
    for (gap, wait) in gaps[1..].iter().zip([200, 400, 800, 800]) {
        assert!(*gap >= wait, "{gaps:?}");
    }
    receiver.set_behaviour(answering(200));
    let delivery = service.in_state(&ids[0], DeliveryState::Succeeded).await;
    let probes = delivery.attempts.iter().map(|attempt| attempt.trigger() == AttemptTrigger::Probe);
    assert!(probes.clone().skip(2).all(|is_probe| is_probe) && !probes.take(2).any(|is_probe| is_probe));
    service.in_circuit_state(&registered.id, CircuitState::Closed).await;
}

#[tokio::test]
async fn resuming_closes_a_circuit_and_begins_to_count_anew() {
    let service = service().await;
    let receiver = failing(500).await;
    let registered =
        service.register(Endpoint { circuit_breaker: breaker(3, seconds(3_600)), ..patient(&receiver.url()) }).await;
    service.publish_to(&registered.id, 20).await;
    for opening in 1..=3 {
        service.in_circuit_state(&registered.id, CircuitState::Open).await;
        service.let_others_pass().await;
        assert_eq!(receiver.count(), 3 * opening, "three each time");
        let resumed = service.resume(&registered.id).await;
        assert_eq!((resumed.circuit_state(), resumed.consecutive_failures), (CircuitState::Closed, 0));
        assert_eq!((resumed.state(), &resumed.etag), (EndpointState::Active, &registered.etag));
    }
}

#[tokio::test]
async fn without_a_threshold_nothing_stops_and_setting_none_closes_at_once() {
    let service = service().await;
    let receiver = failing(500).await;
    let open =
        service.register(Endpoint { circuit_breaker: breaker(1, seconds(3_600)), ..patient(&receiver.url()) }).await;
    service.publish_to(&open.id, 30).await;
    service.in_circuit_state(&open.id, CircuitState::Open).await;
    assert_eq!(receiver.count(), 1);
    let patch = Endpoint { id: open.id.clone(), circuit_breaker: no_breaker(), ..Endpoint::default() };
    assert_eq!(service.update(patch).await.circuit_state(), CircuitState::Closed);
    eventually("all are tried", || async { (receiver.count() == 30).then_some(()) }).await;
    assert_eq!(service.shown(&open.id).await.circuit_state(), CircuitState::Closed);
}

#[tokio::test]
async fn what_the_endpoint_did_not_cause_counts_for_nothing() {
    let database = support::database().await;
    let service = service_with(database.clone(), &[]).await;
    let receiver = failing(500).await;
    let disable_policy = Some(DisablePolicy { consecutive_failures: Some(2), failing_for: Some(seconds(0)) });
    let quick = Endpoint { circuit_breaker: breaker(2, seconds(3_600)), disable_policy, ..endpoint(&receiver.url()) };
    let tested = service.register(quick).await;
    for _ in 0..5 {
        let request = TestEndpointRequest { endpoint_id: tested.id.clone(), ..TestEndpointRequest::default() };
        service.client.clone().test_endpoint(request).await.expect("tested");
    }
    service.app.stop().await;
    let service = service_with(database, &[("HOOKLANE_EGRESS_ALLOW_CIDRS", "10.0.0.0/8")]).await;
    for id in service.publish_to(&tested.id, 5).await {
        let blocked = service.in_state(&id, DeliveryState::Failed).await;
        assert_eq!(blocked.attempts[0].outcome(), AttemptOutcome::Blocked);
    }
    let shown = service.shown(&tested.id).await;
    assert_eq!((receiver.count(), shown.state()), (5, EndpointState::Active));
    assert_eq!((shown.circuit_state(), shown.consecutive_failures, shown.health_score), (CircuitState::Closed, 0, 1.0));
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_disabled_at_once_and_what_waits_is_kept_in_sight() {
    let service = service().await;
    let receiver = failing(410).await;
    let registered = service.register(patient(&receiver.url())).await;
    let gone = service.publish_to(&registered.id, 1).await;
    assert_eq!(service.in_state(&gone[0], DeliveryState::Failed).await.attempts.len(), 1);
    let disabled = eventually("it is disabled", || async {
        Some(service.shown(&registered.id).await).filter(|one| one.state() == EndpointState::Disabled)
    })
    .await;
    assert_eq!(disabled.disabled_reason, "the receiver answered with HTTP 410: Gone");
    assert_ne!(disabled.etag, registered.etag);

    // Published afterwards, by fan-out as well as by name: visible, and kept.
    let fanned_out = service.publish(event("a")).await;
    let mut ids: Vec<_> = fanned_out.deliveries.iter().map(|one| one.delivery_id.clone()).collect();
    ids.extend(service.publish_to(&registered.id, 2).await);
    assert_eq!(ids.len(), 3);
    service.let_others_pass().await;
    for id in &ids {
        let waiting = service.in_state(id, DeliveryState::Pending).await;
        assert!(waiting.reason.contains("the endpoint is disabled, because the receiver answered"), "{waiting:?}");
    }
    assert_eq!(receiver.count(), 1);
    receiver.set_behaviour(answering(200));
    let resumed = service.resume(&registered.id).await;
    assert_eq!((resumed.state(), resumed.disabled_reason.as_str()), (EndpointState::Active, ""));
    for id in &ids {
        service.in_state(id, DeliveryState::Succeeded).await;
    }
}

#[tokio::test]
async fn an_endpoint_is_disabled_once_it_has_failed_often_enough_and_for_long_enough() {
    let database = support::database().await;
    let service = service_with(database.clone(), &[]).await;
    let receiver = failing(500).await;
    let policy = |consecutive_failures, failing_for| {
        Some(DisablePolicy { consecutive_failures: Some(consecutive_failures), failing_for: Some(failing_for) })
    };
    let with = |disable_policy| Endpoint { disable_policy, circuit_breaker: no_breaker(), ..patient(&receiver.url()) };
    let by_count = service.register(with(policy(3, seconds(0)))).await.id;
    let both = service.register(with(policy(3, seconds(24 * 3_600)))).await.id;
    let never = service.register(with(policy(0, seconds(0)))).await.id;
    let disabled = async |id: &str| {
        eventually("it is disabled", || async {
            Some(service.shown(id).await).filter(|one| one.state() == EndpointState::Disabled)
        })
        .await
    };
    let failed = async |id: &str, count| {
        eventually("they have failed", || async {
            Some(service.shown(id).await).filter(|one| one.consecutive_failures == count)
        })
        .await
    };
    service.publish_to(&by_count, 9).await;
    let shown = disabled(&by_count).await;
    assert!(shown.disabled_reason.contains(" attempts in a row failed, the first at 20"), "{shown:?}");
    for id in [&both, &never] {
        service.publish_to(id, 5).await;
        assert_eq!(failed(id, 5).await.state(), EndpointState::Active);
    }
    let since = "update endpoint_health set failing_since = now() - interval '24 hours'";
    sqlx::query(since).execute(&mut support::connection(&database).await).await.expect("long ago");
    service.publish_to(&both, 1).await;
    disabled(&both).await;
    service.publish_to(&never, 1).await;
    assert_eq!(failed(&never, 6).await.state(), EndpointState::Active);

    // Counted from the last success, and from a resumption.
    service.resume(&both).await;
    receiver.set_behaviour(answering(200));
    let id = service.publish_to(&both, 1).await.remove(0);
    service.in_state(&id, DeliveryState::Succeeded).await;
    receiver.set_behaviour(answering(500));
    service.publish_to(&both, 5).await;
    assert_eq!(failed(&both, 5).await.state(), EndpointState::Active);
}

#[tokio::test]
async fn a_rate_limit_is_never_passed_and_a_burst_goes_at_once() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    let limit = |per_second, burst| Some(RateLimit { per_second, burst });
    let limited = service.register(Endpoint { rate_limit: limit(20.0, 1), ..endpoint(&receiver.url()) }).await;
    assert_eq!(limited.rate_limit, limit(20.0, 1));
    let ids = service.publish_to(&limited.id, 41).await;
    let mut times = Vec::new();
    for _ in &ids {
        times.push(receiver.next().await.expect("a request").time);
    }
    // Forty intervals of 50 ms; what may be early is the burst's one, what a timer may be late by, and the way here.
    let span = times[40].as_millisecond() - times[0].as_millisecond();
    assert!(span >= 1_750, "{span} ms");
    for id in &ids {
        assert_eq!(service.in_state(id, DeliveryState::Succeeded).await.attempts.len(), 1);
    }

    let slow = service.register(Endpoint { rate_limit: limit(0.0001, 1), ..endpoint(&receiver.url()) }).await;
    let ids = service.publish_to(&slow.id, 3).await;
    service.let_others_pass().await;
    assert_eq!(receiver.count(), 41);
    let waiting = service.in_state(&ids[0], DeliveryState::Pending).await;
    assert!(waiting.reason.contains("rate limit admits 0.0001 requests a second"), "{waiting:?}");
    let patch = Endpoint { id: slow.id.clone(), rate_limit: limit(1_000.0, 0), ..Endpoint::default() };
    service.update(patch).await;
    for id in &ids {
        service.in_state(id, DeliveryState::Succeeded).await;
    }
    let patch = Endpoint { id: slow.id.clone(), ..Endpoint::default() };
    let update_mask = Some(prost_types::FieldMask { paths: vec!["rate_limit".to_owned()] });
    let request = UpdateEndpointRequest { endpoint: Some(patch), update_mask };
    let free = service.client.clone().update_endpoint(request).await.expect("updated").into_inner().endpoint;
    assert_eq!(free.expect("it").rate_limit, None);
}

#[tokio::test]
async fn a_changed_policy_takes_effect_on_queued_work_whichever_replica_is_told() {
    let database = support::database().await;
    let services = [service_with(database.clone(), &[]).await, service_with(database, &[]).await];
    let receiver = receiver(Behaviour { silent: true, ..Behaviour::default() }).await;
    let mut expected = 0;
    for round in 0..6 {
        let slow = Endpoint {
            max_in_flight: 1,
            timeout: Some(seconds(300)),
            retry_policy: Some(retries(0)),
            ..endpoint(&receiver.url())
        };
        let id = services[0].register(slow).await.id;
        services[0].publish_to(&id, 5).await;
        expected += 1;
        eventually("one is under way", || async { (receiver.count() == expected).then_some(()) }).await;
        // The lane sleeps: nothing of it ends. Whoever drives it, one of the two is told by the other.
        services[round % 2].update(Endpoint { id, max_in_flight: 3, ..Endpoint::default() }).await;
        expected += 2;
        eventually("two more are under way", || async { (receiver.count() == expected).then_some(()) }).await;
    }
    tokio::time::timeout(Duration::from_millis(300), receiver.next()).await.ok();
    assert_eq!(receiver.count(), expected);
}

/// How long it took from the first to the last of `count` requests, in milliseconds.
async fn span_of(receiver: &Receiver, count: usize) -> i64 {
    let mut times = Vec::new();
    for _ in 0..count {
        times.push(receiver.next().await.expect("a request").time.as_millisecond());
    }
    times.iter().max().zip(times.iter().min()).map_or(0, |(last, first)| last - first)
}

#[tokio::test]
async fn the_installations_limit_holds_over_all_endpoints() {
    let settings = [("HOOKLANE_RATE_GLOBAL_PER_SECOND", "20")];
    let service = service_with(support::database().await, &settings).await;
    let receiver = receiver(Behaviour::default()).await;
    for _ in 0..3 {
        service.register(endpoint(&receiver.url())).await;
    }
    for _ in 0..20 {
        service.publish(event("a")).await;
    }
    // Twenty may have been saved up, and one comes early.
    let span = span_of(&receiver, 60).await;
    assert!(span >= 1_700, "{span} ms");
}

#[tokio::test]
async fn a_tenants_limit_holds_over_its_endpoints_and_concerns_nobody_else() {
    let settings = [("HOOKLANE_RATE_TENANT_PER_SECOND", "5")];
    let service = service_with(support::database().await, &settings).await;
    let (busy, other) = (receiver(Behaviour::default()).await, receiver(Behaviour::default()).await);
    for _ in 0..2 {
        service.register(Endpoint { tenant: "busy".to_owned(), ..endpoint(&busy.url()) }).await;
    }
    service.register(endpoint(&other.url())).await;
    let requests = vec![PublishRequest { tenant: "busy".to_owned(), ..event("a") }; 500];
    service.client.clone().publish_batch(PublishBatchRequest { requests }).await.expect("published");
    service.publish(event("a")).await;
    other.next().await.expect("a request");
    assert!(busy.count() < 1_000, "the other one does not wait for them");
    // Five may have been saved up, and one comes early.
    let span = span_of(&busy, 25).await;
    assert!(span >= 3_000, "{span} ms");
}
