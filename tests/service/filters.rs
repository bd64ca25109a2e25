//! Filters at publish: who gets an event, whatever replica knows what, and what a filter that fails comes to.

use std::sync::Arc;

use bytes::Bytes;
use hooklane::domain::endpoint::EndpointSpec;
use hooklane::domain::event::NewEvent;
use hooklane::domain::fields::Tenant;
use hooklane::domain::filter::Filter;
use hooklane::domain::id::EndpointId;
use hooklane::domain::secret::Secret;
use hooklane::store::{NewEndpoint, Published, Publisher, Store};

use crate::publish::{event, spec};
use crate::support;

fn filtered(filter: &str) -> EndpointSpec {
    EndpointSpec { filter: Some(Filter::parse(filter).expect("a filter")), ..spec(&["order.*"]) }
}

async fn register(store: &Store, spec: EndpointSpec) -> EndpointId {
    let new = NewEndpoint { tenant: Tenant::default_tenant(), spec, secret: Secret::from_random(&[7; 32]) };
    store.register_endpoint(&new).await.expect("registered").id
}

/// Replaces what the endpoint has for a filter.
async fn change(store: &Store, id: EndpointId, filter: &str) {
    let endpoint = store.endpoint(id).await.expect("read").expect("it");
    store.update_endpoint(&endpoint.tenant, id, endpoint.version, &filtered(filter)).await.expect("updated");
}

fn order(payload: &str) -> NewEvent {
    NewEvent { payload: Bytes::copy_from_slice(payload.as_bytes()), ..event("order.created") }
}

fn targets(published: &Published) -> Vec<EndpointId> {
    published.deliveries.iter().map(|delivery| delivery.endpoint_id).collect()
}

async fn filter_errors(store: &Store, id: EndpointId) -> u64 {
    store.record_filter_errors().await.expect("recorded");
    store.endpoint(id).await.expect("read").expect("it").filter_error_count
}

async fn both() -> (Arc<Store>, Publisher) {
    let store = support::store().await;
    let publisher = Publisher::start(&store);
    (store, publisher)
}

#[tokio::test]
async fn an_event_goes_to_those_whose_pattern_and_filter_want_it() {
    let (store, publisher) = both().await;
    let large = register(&store, filtered("event.data.amount > 100")).await;
    let acme = register(&store, filtered("event.metadata.region == 'eu' && event.tenant == 'default'")).await;
    let other_type =
        register(&store, EndpointSpec { filter: Some(Filter::parse("true").expect("good")), ..spec(&["user.*"]) })
            .await;
    let all = register(&store, spec(&[])).await;
    let eu = NewEvent { metadata: [("region".to_owned(), "eu".to_owned())].into(), ..order("{\"amount\": 5}") };
    let us = NewEvent { metadata: [("region".to_owned(), "us".to_owned())].into(), ..order("{\"amount\": 500}") };
    for (event, expected) in [
        (eu.clone(), vec![acme, all]),
        (us, vec![large, all]),
        (NewEvent { endpoint_ids: vec![large, other_type], ..eu }, vec![large, other_type]),
    ] {
        assert_eq!(targets(&publisher.publish(event).await.expect("published")), expected);
    }
}

#[tokio::test]
async fn the_first_event_of_a_tenant_that_nobody_knew_is_judged_too() {
    let url = support::database().await;
    let registering = Store::open(&support::config(url.clone())).await.expect("opens");
    register(&registering, filtered("event.data.amount > 100")).await;
    let publishing = Store::open(&support::config(url)).await.expect("opens");
    let publisher = Publisher::start(&publishing);
    assert_eq!(targets(&publisher.publish(order("{\"amount\": 1}")).await.expect("published")), []);
    assert_eq!(targets(&publisher.publish(order("{\"amount\": 101}")).await.expect("published")).len(), 1);
}

#[tokio::test]
async fn a_publish_after_an_acknowledged_change_on_another_replica_obeys_the_new_filter() {
    let url = support::database().await;
    let here = Store::open(&support::config(url.clone())).await.expect("opens");
    let there = Store::open(&support::config(url)).await.expect("opens");
    let publisher = Publisher::start(&here);
    let id = register(&there, filtered("event.data.round == 0")).await;
    for round in 1..=20 {
        // What `here` knows is the filter of the round before.
        change(&there, id, &format!("event.data.round == {round}")).await;
        let payloads = [round, round - 1].map(|round| order(&format!("{{\"round\": {round}}}")));
        let calls = payloads.map(|event| publisher.publish(event));
        let answers = futures::future::try_join_all(calls).await.expect("published");
        assert_eq!(answers.iter().map(|answer| answer.deliveries.len()).collect::<Vec<_>>(), [1, 0], "{round}");
    }
}

#[tokio::test]
async fn a_filter_that_fails_is_no_match_and_counted_once_for_each_event() {
    let (store, publisher) = both().await;
    let failing = register(&store, filtered("event.data.missing > 1")).await;
    let refusing = register(&store, filtered("event.data.missing > 1 || false || !true && true || 1 == 2")).await;
    let healthy = register(&store, spec(&[])).await;
    let version = store.endpoint(failing).await.expect("read").expect("it").version;
    for _ in 0..3 {
        let published = publisher.publish(order("{}")).await.expect("published all the same");
        assert_eq!(targets(&published), [healthy]);
    }
    let keyed = NewEvent { idempotency_key: Some("k".to_owned()), ..order("{}") };
    for is_repeat in [false, true] {
        assert_eq!(publisher.publish(keyed.clone()).await.expect("published").duplicate, is_repeat);
    }
    publisher.publish(order("{\"missing\": 2}")).await.expect("published");
    assert_eq!(filter_errors(&store, failing).await, 4, "three events and one that was repeated");
    assert_eq!((filter_errors(&store, refusing).await, filter_errors(&store, healthy).await), (4, 0));
    let now = store.endpoint(failing).await.expect("read").expect("it").version;
    assert_eq!(now, version, "counting touches no etag");
}

#[tokio::test]
async fn hostile_filters_fail_and_hold_up_nobody() {
    let (store, publisher) = both().await;
    let hostile =
        register(&store, filtered("event.data.all(x, event.data.all(y, event.data.all(z, x + y + z > 0)))")).await;
    let modest = register(&store, filtered("event.data.size() > 0")).await;
    let large = format!("[{}]", vec!["1"; 131_000].join(","));
    // A tenant of its own has none of it.
    let elsewhere = NewEvent { tenant: Tenant::parse("other").expect("a tenant"), ..event("order.created") };
    publisher.publish(order("[1]")).await.expect("published");
    let hostile_calls = (0..8).map(|_| publisher.publish(order(&large)));
    let other_calls = (0..100).map(|_| publisher.publish(elsewhere.clone()));
    let (judged, others) =
        tokio::join!(futures::future::join_all(hostile_calls), futures::future::join_all(other_calls));
    assert!(others.iter().all(Result::is_ok));
    for published in judged {
        assert_eq!(targets(&published.expect("published all the same")), [modest]);
    }
    assert_eq!((filter_errors(&store, hostile).await, filter_errors(&store, modest).await), (8, 0));
}
