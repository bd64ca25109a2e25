//! Publishing: what matches, what is a duplicate, what one bad row does to its batch.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hooklane::domain::circuit::CircuitPolicy;
use hooklane::domain::endpoint::{EndpointSpec, PayloadFormat, SignatureScheme};
use hooklane::domain::event::NewEvent;
use hooklane::domain::fields::{ContentType, Tenant};
use hooklane::domain::id::EndpointId;
use hooklane::domain::pattern::{EventPattern, EventType};
use hooklane::domain::secret::Secret;
use hooklane::domain::url::EndpointUrl;
use hooklane::store::{DeliveryFilter, Limits, NewEndpoint, PublishError, Published, Publisher, Store};

use crate::support;

pub(crate) fn spec(event_types: &[&str]) -> EndpointSpec {
    EndpointSpec {
        url: EndpointUrl::parse("http://127.0.0.1:9/", &support::loopback_rules()).expect("a URL"),
        description: String::new(),
        event_types: event_types.iter().map(|text| EventPattern::parse(text).expect("a pattern")).collect(),
        filter: None,
        signature_scheme: SignatureScheme::Timestamped,
        payload_format: PayloadFormat::Envelope,
        headers: Default::default(),
        tls: Default::default(),
        retry_policy: None,
        event_retry_policies: Vec::new(),
        timeout: Duration::from_secs(1),
        max_in_flight: 64,
        rate_limit: None,
        circuit_breaker: CircuitPolicy { failure_threshold: 0, ..CircuitPolicy::default() },
        disable_policy: Default::default(),
        labels: Default::default(),
        external_id: None,
        ordering: Default::default(),
        on_failure: Default::default(),
    }
}

pub(crate) async fn register(store: &Store, event_types: &[&str]) -> EndpointId {
    let new = NewEndpoint {
        tenant: Tenant::default_tenant(),
        spec: spec(event_types),
        secret: Secret::from_random(&[7; 32]),
    };
    store.register_endpoint(&new).await.expect("registered").id
}

pub(crate) fn event(event_type: &str) -> NewEvent {
    NewEvent {
        tenant: Tenant::default_tenant(),
        event_type: EventType::parse(event_type).expect("a type"),
        payload: Bytes::from_static(b"{}"),
        content_type: ContentType::parse("").expect("a content type"),
        idempotency_key: None,
        metadata: Default::default(),
        source: None,
        endpoint_ids: Vec::new(),
        inline_endpoint: None,
        schedule: Default::default(),
        trace: None,
    }
}

fn keyed(event_type: &str, key: &str) -> NewEvent {
    NewEvent { idempotency_key: Some(key.to_owned()), ..event(event_type) }
}

async fn both() -> (Arc<Store>, Publisher) {
    let store = support::store().await;
    let publisher = Publisher::start(&store);
    (store, publisher)
}

fn endpoints(published: &Published) -> Vec<EndpointId> {
    let mut ids: Vec<_> = published.deliveries.iter().map(|delivery| delivery.endpoint_id).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test]
async fn an_event_goes_to_every_endpoint_that_wants_its_type() {
    let (store, publisher) = both().await;
    let all = register(&store, &[]).await;
    let orders = register(&store, &["order.*"]).await;
    let created = register(&store, &["order.created", "user.created"]).await;
    let published = publisher.publish(event("order.created")).await.expect("published");
    assert_eq!(endpoints(&published), [all, orders, created]);
    let published = publisher.publish(event("user.deleted")).await.expect("published");
    assert_eq!(endpoints(&published), [all]);
    let named = NewEvent { endpoint_ids: vec![created], ..event("order.paid") };
    assert_eq!(endpoints(&publisher.publish(named).await.expect("published")), [created]);
}

#[tokio::test]
async fn an_event_that_matches_nothing_is_kept() {
    let (store, publisher) = both().await;
    let published = publisher.publish(event("order.created")).await.expect("published");
    assert_eq!((published.deliveries.len(), published.duplicate), (0, false));
    assert!(store.event(published.event_id).await.expect("read").is_some());
}

#[tokio::test]
async fn an_unknown_endpoint_is_refused_and_nothing_is_written() {
    let (store, publisher) = both().await;
    let known = register(&store, &[]).await;
    let unknown = EndpointId::from_uuid(store.clock().new_uuid());
    let named = NewEvent { endpoint_ids: vec![known, unknown], ..event("a") };
    assert_eq!(publisher.publish(named).await, Err(PublishError::EndpointNotFound(unknown)));
    let (rows, _) = store.list_deliveries(&DeliveryFilter::default(), 10).await.expect("listed");
    assert!(rows.is_empty());
}

#[tokio::test]
async fn a_publish_after_an_acknowledged_registration_on_another_replica_sees_the_endpoint() {
    let url = support::database().await;
    let here = Store::open(&support::config(url.clone())).await.expect("opens");
    let there = Store::open(&support::config(url)).await.expect("opens");
    let publisher = Publisher::start(&here);
    for expected in 1..=20 {
        // What `here` remembers of the tenant is of the round before.
        register(&there, &["order.*"]).await;
        let published = publisher.publish(event("order.created")).await.expect("published");
        assert_eq!(published.deliveries.len(), expected);
    }
}

#[tokio::test]
async fn sixty_four_publishes_of_one_key_at_once_make_one_delivery_on_two_replicas() {
    let url = support::database().await;
    let stores = [
        Store::open(&support::config(url.clone())).await.expect("opens"),
        Store::open(&support::config(url)).await.expect("opens"),
    ];
    register(&stores[0], &[]).await;
    let publishers = stores.each_ref().map(Publisher::start);
    let calls = (0..64).map(|n| {
        let publisher = publishers[n % 2].clone();
        tokio::spawn(async move { publisher.publish(keyed("order.created", "k-1")).await.expect("published") })
    });
    let answers = futures::future::try_join_all(calls).await.expect("no panic");
    let first = &answers[0];
    assert!(answers.iter().all(|one| one.event_id == first.event_id));
    assert!(answers.iter().all(|one| one.deliveries[0].delivery_id == first.deliveries[0].delivery_id));
    assert_eq!(answers.iter().filter(|one| !one.duplicate).count(), 1);
    let (rows, _) = stores[0].list_deliveries(&DeliveryFilter::default(), 10).await.expect("listed");
    assert_eq!(rows.len(), 1);
}

#[tokio::test]
async fn a_repeat_adds_new_endpoints_to_the_first_event() {
    let (store, publisher) = both().await;
    let first = register(&store, &[]).await;
    let original = publisher.publish(keyed("a", "k")).await.expect("published");
    let second = register(&store, &[]).await;
    let repeat = publisher.publish(keyed("a", "k")).await.expect("published");
    assert_eq!(repeat.event_id, original.event_id);
    assert!(!repeat.duplicate, "one of its deliveries is new");
    let is_duplicate = |id| repeat.deliveries.iter().find(|delivery| delivery.endpoint_id == id).map(|d| d.duplicate);
    assert_eq!((is_duplicate(first), is_duplicate(second)), (Some(true), Some(false)));
    assert!(publisher.publish(keyed("a", "k")).await.expect("published").duplicate);
}

#[tokio::test]
async fn the_key_of_an_event_that_matched_nothing_is_kept_too() {
    let (_store, publisher) = both().await;
    let original = publisher.publish(keyed("a", "k")).await.expect("published");
    let repeat = publisher.publish(keyed("a", "k")).await.expect("published");
    assert_eq!((repeat.event_id, repeat.duplicate), (original.event_id, true));
}

#[tokio::test]
async fn the_same_key_with_other_content_is_a_conflict() {
    let (store, publisher) = both().await;
    register(&store, &[]).await;
    publisher.publish(keyed("a", "k")).await.expect("published");
    let other_payload = NewEvent { payload: Bytes::from_static(b"[]"), ..keyed("a", "k") };
    let other_content_type =
        NewEvent { content_type: ContentType::parse("text/json").expect("a type"), ..keyed("a", "k") };
    for other in [other_payload, other_content_type, keyed("b", "k")] {
        assert_eq!(publisher.publish(other).await, Err(PublishError::KeyConflict));
    }
    let other_tenant = NewEvent { tenant: Tenant::parse("other").expect("a tenant"), ..keyed("b", "k") };
    assert!(publisher.publish(other_tenant).await.is_ok());
}

#[tokio::test]
async fn one_bad_row_fails_alone() {
    let url = support::database().await;
    let store = Store::open(&support::config(url.clone())).await.expect("opens");
    let publisher = Publisher::start(&store);
    register(&store, &[]).await;
    let mut connection = support::connection(&url).await;
    let trap = "alter table events add constraint events_trap check (event_type <> 'bad')";
    sqlx::query(trap).execute(&mut connection).await.expect("altered");
    let calls = (0..100).map(|n| {
        let publisher = publisher.clone();
        tokio::spawn(async move { publisher.publish(event(if n == 37 { "bad" } else { "good" })).await })
    });
    let answers = futures::future::try_join_all(calls).await.expect("no panic");
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(matches!(answer, Err(PublishError::Refused(_))), n == 37, "{n}: {answer:?}");
        assert_eq!(answer.is_ok(), n != 37, "{n}: {answer:?}");
    }
    let (rows, _) = store.list_deliveries(&DeliveryFilter::default(), 200).await.expect("listed");
    assert_eq!(rows.len(), 99);
}

#[tokio::test]
async fn beyond_an_endpoints_bound_deliveries_fail_at_once_and_can_be_seen() {
    let limits = Limits { outstanding_per_endpoint_max: 3, ..Limits::default() };
    let store = Store::open(&hooklane::store::Config { limits, ..support::config(support::database().await) })
        .await
        .expect("opens");
    let publisher = Publisher::start(&store);
    register(&store, &[]).await;
    for _ in 0..5 {
        publisher.publish(event("a")).await.expect("published all the same");
    }
    let (rows, _) = store.list_deliveries(&DeliveryFilter::default(), 10).await.expect("listed");
    let refused: Vec<_> = rows.iter().filter_map(|row| row.reason.as_deref()).collect();
    assert_eq!((rows.len(), refused.len()), (5, 2));
    assert!(refused.iter().all(|reason| reason.starts_with("QUEUE_FULL")));
}

#[tokio::test]
async fn beyond_the_bound_of_all_publishes_are_refused() {
    let limits = Limits { outstanding_max: 3, ..Limits::default() };
    let store = Store::open(&hooklane::store::Config { limits, ..support::config(support::database().await) })
        .await
        .expect("opens");
    let publisher = Publisher::start(&store);
    register(&store, &[]).await;
    for _ in 0..3 {
        publisher.publish(event("a")).await.expect("published");
    }
    assert_eq!(publisher.publish(event("a")).await, Err(PublishError::QueueFull));
}
