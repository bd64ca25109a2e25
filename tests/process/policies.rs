//! An endpoint's policy where several replicas deliver: it holds for all of them together, and a change reaches each.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use hooklane::api::proto::{
    Endpoint, PublishRequest, RateLimit, RegisterEndpointRequest, UpdateEndpointRequest, publish_request,
};
use prost_types::FieldMask;
use tokio::net::TcpListener;

use crate::load::{Client, settled};
use crate::program::Replica;
use crate::replicas::{agree, client, start_three};
use crate::support::{database, eventually};

/// Enough that each of three replicas has some of their lanes.
const ENDPOINTS: usize = 9;

/// A receiver that keeps when requests came, and on which path.
#[derive(Clone)]
struct Diary {
    arrivals: Arc<Mutex<Vec<(Instant, String)>>>,
    delay: Duration,
}

impl Diary {
    /// Starts it; answers its URL too. It answers after `delay`.
    async fn start(delay: Duration) -> (Self, String) {
        let diary = Self { arrivals: Arc::default(), delay };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let routes = Router::new().route("/{*path}", axum::routing::post(note)).with_state(diary.clone());
        tokio::spawn(axum::serve(listener, routes).into_future());
        (diary, url)
    }

    fn arrivals(&self) -> Vec<(Instant, String)> {
        self.arrivals.lock().expect("no panic").clone()
    }

    /// Of each path, how many requests came.
    fn counts(&self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for (_, path) in self.arrivals() {
            *counts.entry(path).or_default() += 1;
        }
        counts
    }
}

async fn note(State(diary): State<Diary>, Path(path): Path<String>) {
    diary.arrivals.lock().expect("no panic").push((Instant::now(), path));
    tokio::time::sleep(diary.delay).await;
}

/// Registers an endpoint for each path below `url`, like `template`.
async fn register(client: &Client, url: &str, template: &Endpoint) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    for place in 0..ENDPOINTS {
        let endpoint = Endpoint { url: format!("{url}/{place}"), ..template.clone() };
        let request = RegisterEndpointRequest { endpoint: Some(endpoint), secret: String::new() };
        let registered = client.clone().register_endpoint(request).await.expect("registered").into_inner();
        endpoints.push(registered.endpoint.expect("an endpoint"));
    }
    endpoints
}

/// Publishes so many events to every endpoint.
async fn publish(client: &Client, count: usize) {
    for _ in 0..count {
        let request = PublishRequest {
            event_type: "order.created".to_owned(),
            body: Some(publish_request::Body::Payload("{}".into())),
            ..PublishRequest::default()
        };
        client.clone().publish(request).await.expect("published");
    }
}

#[tokio::test]
async fn an_update_reaches_what_waits_within_a_second_on_every_replica() {
    const PAUSE: Duration = Duration::from_millis(100);
    const WAITING: usize = 60;
    let database = database().await;
    let replicas = start_three(&database).await;
    let client = client(&replicas[0]).await;
    let (before, old_url) = Diary::start(PAUSE).await;
    let (after, new_url) = Diary::start(Duration::ZERO).await;
    let one_at_a_time = Endpoint { max_in_flight: 1, ..Endpoint::default() };
    let endpoints = register(&client, &old_url, &one_at_a_time).await;
    publish(&client, WAITING).await;
    eventually("every endpoint is delivered to", || async { (before.counts().len() == ENDPOINTS).then_some(()) }).await;

    let mut updated_at = HashMap::new();
    for (place, endpoint) in endpoints.iter().enumerate() {
        let url = format!("{new_url}/{place}");
        let endpoint = Endpoint { id: endpoint.id.clone(), url, ..Endpoint::default() };
        let update_mask = Some(FieldMask { paths: vec!["url".to_owned()] });
        let request = UpdateEndpointRequest { endpoint: Some(endpoint), update_mask };
        client.clone().update_endpoint(request).await.expect("updated");
        updated_at.insert(place.to_string(), Instant::now());
    }
    settled(&client).await;

    let (counts_before, counts_after) = (before.counts(), after.counts());
    for path in updated_at.keys() {
        assert_eq!(counts_before[path] + counts_after[path], WAITING, "endpoint {path}: each delivery once");
    }
    // One request at a time, each of a tenth of a second: so many fit into the second that is allowed. Counted, not
    // timed: a machine that is slow is slow to make requests too.
    let fit = 1 + Duration::from_secs(1).div_duration_f64(PAUSE).ceil() as usize;
    let mut late: HashMap<String, usize> = HashMap::new();
    for (at, path) in before.arrivals() {
        *late.entry(path.clone()).or_default() += usize::from(at > updated_at[&path]);
    }
    assert!(late.values().all(|count| *count <= fit), "requests to the old URL after the update: {late:?}");
}

#[tokio::test]
async fn a_rate_limit_holds_while_replicas_come_and_go() {
    const PER_SECOND: f64 = 20.0;
    const BURST: u32 = 5;
    const EVENTS: usize = 600;
    let database = database().await;
    let mut replicas = start_three(&database).await;
    let client = client(&replicas[0]).await;
    let (diary, url) = Diary::start(Duration::ZERO).await;
    let rate_limit = Some(RateLimit { per_second: PER_SECOND, burst: BURST });
    register(&client, &url, &Endpoint { rate_limit, ..Endpoint::default() }).await;
    publish(&client, EVENTS).await;
    eventually("work is under way", || async { (diary.arrivals().len() > ENDPOINTS * 20).then_some(()) }).await;

    replicas.push(Replica::start(&database, &[]).await);
    agree(&replicas[0], 4).await;
    let mut killed = replicas.remove(1);
    killed.signal("KILL").await;
    killed.ended().await;
    agree(&replicas[0], 3).await;
    let mut leaving = replicas.remove(1);
    leaving.signal("TERM").await;
    leaving.ended().await;
    settled(&client).await;

    let mut by_path: HashMap<String, Vec<Instant>> = HashMap::new();
    for (at, path) in diary.arrivals() {
        by_path.entry(path).or_default().push(at);
    }
    assert_eq!(by_path.len(), ENDPOINTS);
    for (path, arrivals) in by_path {
        assert!(arrivals.len() >= EVENTS, "endpoint {path} got everything");
        // Of any two requests, those between them took at least their time. What a busy machine held up in the kernel
        // arrives closer together, for which half a second is allowed; a second bucket would double the rate.
        for (first, from) in arrivals.iter().enumerate() {
            for (last, to) in arrivals.iter().enumerate().skip(first) {
                let span = to.duration_since(*from).as_secs_f64() + 0.5;
                let allowed = f64::from(BURST) + PER_SECOND * 1.02 * span + 1.0;
                let count = (last - first + 1) as f64;
                assert!(count <= allowed, "endpoint {path}: {count} requests in {span:.3} s, {allowed:.1} are allowed");
            }
        }
    }
}
