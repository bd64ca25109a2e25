//! Callers that publish without pause and remember what was acknowledged, and a receiver that remembers what arrived.
//!
//! A caller that gets no answer asks again with the same idempotency key, as callers should: what it knows to be
//! acknowledged is what counts.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hooklane::api::proto::webhook_service_client::WebhookServiceClient;
use hooklane::api::proto::{
    CircuitBreaker, Delivery, DeliveryState, Endpoint, GetDeliveryRequest, GetStatsRequest, ListDeliveriesRequest,
    PublishRequest, RegisterEndpointRequest, publish_request,
};
use hooklane::cli::listen::{Behaviour, Receiver, ReceiverOptions};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::eventually;

pub(crate) type Client = WebhookServiceClient<Channel>;

/// Callers at once.
const CALLERS: usize = 16;
/// Before a call that failed is made again.
const PAUSE: Duration = Duration::from_millis(50);

/// Callers at work.
pub(crate) struct Load {
    /// Where the service is now: on each of its replicas.
    addresses: watch::Sender<Vec<String>>,
    acknowledged: Arc<Mutex<Vec<String>>>,
    refusals: Arc<Mutex<HashMap<Code, String>>>,
    stopping: CancellationToken,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts to publish to the service at `address`, where one endpoint wants everything.
    pub(crate) fn start(address: &str) -> Self {
        Self::start_on(vec![address.to_owned()], 1)
    }

    /// Starts to publish to replicas of the service, where so many endpoints want everything. A caller whose call fails
    /// goes on to the next replica.
    pub(crate) fn start_on(addresses: Vec<String>, endpoints: usize) -> Self {
        let load = Self {
            addresses: watch::Sender::new(addresses),
            acknowledged: Arc::default(),
            refusals: Arc::default(),
            stopping: CancellationToken::new(),
            callers: Vec::new(),
        };
        let callers = (0..CALLERS).map(|number| {
            let caller = Caller {
                number,
                endpoints,
                turn: number,
                addresses: load.addresses.subscribe(),
                acknowledged: Arc::clone(&load.acknowledged),
                refusals: Arc::clone(&load.refusals),
                stopping: load.stopping.clone(),
            };
            tokio::spawn(caller.run())
        });
        Self { callers: callers.collect(), ..load }
    }

    /// The service is somewhere else now.
    pub(crate) fn move_to(&self, address: &str) {
        self.spread_over(vec![address.to_owned()]);
    }

    /// The service is on these replicas now.
    pub(crate) fn spread_over(&self, addresses: Vec<String>) {
        self.addresses.send_replace(addresses);
    }

    /// How many deliveries were acknowledged so far.
    pub(crate) fn count(&self) -> usize {
        self.acknowledged.lock().expect("no panic").len()
    }

    /// Waits until `count` further deliveries are acknowledged.
    pub(crate) async fn acknowledge(&self, count: usize) {
        let wanted = self.count() + count;
        eventually("events are acknowledged", || async { (self.count() >= wanted).then_some(()) }).await;
    }

    /// Lets every caller finish its event; answers the delivery of each event that was acknowledged, and the refusals
    /// of calls that were sent, by code.
    pub(crate) async fn finish(self) -> (Vec<String>, HashMap<Code, String>) {
        self.stopping.cancel();
        for caller in self.callers {
            tokio::time::timeout(Duration::from_secs(60), caller).await.expect("it ends").expect("no panic");
        }
        let take = |acknowledged: &Mutex<Vec<String>>| std::mem::take(&mut *acknowledged.lock().expect("no panic"));
        let refusals = std::mem::take(&mut *self.refusals.lock().expect("no panic"));
        (take(&self.acknowledged), refusals)
    }
}

struct Caller {
    number: usize,
    endpoints: usize,
    /// Whose turn it is, of the replicas.
    turn: usize,
    addresses: watch::Receiver<Vec<String>>,
    acknowledged: Arc<Mutex<Vec<String>>>,
    refusals: Arc<Mutex<HashMap<Code, String>>>,
    stopping: CancellationToken,
}

impl Caller {
    async fn run(mut self) {
        let mut client = self.client();
        let mut events = 0_u32;
        while !self.stopping.is_cancelled() {
            events += 1;
            let request = PublishRequest {
                event_type: "order.created".to_owned(),
                idempotency_key: format!("{}-{events}", self.number),
                body: Some(publish_request::Body::Payload(format!("{{\"n\":{events}}}").into())),
                ..PublishRequest::default()
            };
            loop {
                if self.addresses.has_changed().expect("the load goes on") {
                    client = self.client();
                }
                match client.publish(request.clone()).await {
                    Ok(answer) => {
                        let deliveries = answer.into_inner().deliveries;
                        assert_eq!(deliveries.len(), self.endpoints, "{deliveries:?}");
                        let ids = deliveries.into_iter().map(|delivery| delivery.delivery_id);
                        self.acknowledged.lock().expect("no panic").extend(ids);
                        break;
                    }
                    Err(refusal) => {
                        if !was_never_sent(&refusal) {
                            self.refusals.lock().expect("no panic").insert(refusal.code(), format!("{refusal:?}"));
                        }
                        tokio::time::sleep(PAUSE).await;
                        self.turn += 1;
                        client = self.client();
                    }
                }
            }
        }
    }

    fn client(&mut self) -> Client {
        let addresses = self.addresses.borrow_and_update().clone();
        let address = addresses[self.turn % addresses.len()].clone();
        Client::new(Channel::from_shared(address).expect("a URI").connect_lazy())
    }
}

/// Whether a call came to its connection when that was closed already, or just asked to finish. tonic's client (0.14) calls
/// these CANCELLED and INTERNAL by its own; the service never knew of them. The latter has no type that tells it.
fn was_never_sent(refusal: &Status) -> bool {
    let causes = std::iter::successors(refusal.source(), |&cause| cause.source());
    let mut hyper = causes.filter_map(|cause| cause.downcast_ref::<hyper::Error>());
    hyper.any(|error| error.is_canceled() || format!("{error:?}").contains("GoAway(b\"\", NO_ERROR, Remote)"))
}

/// A receiver that counts how often each delivery arrived.
pub(crate) struct Tally {
    receiver: Arc<Receiver>,
    arrived: Arc<Mutex<HashMap<String, usize>>>,
}

impl Tally {
    /// Starts to count.
    pub(crate) async fn start(behaviour: Behaviour) -> Self {
        let receiver = Receiver::start(ReceiverOptions { behaviour, ..ReceiverOptions::default() }).await;
        let tally = Self { receiver: Arc::new(receiver.expect("a receiver")), arrived: Arc::default() };
        let (receiver, arrived) = (Arc::clone(&tally.receiver), Arc::clone(&tally.arrived));
        tokio::spawn(async move {
            while let Some(received) = receiver.next().await {
                let id = received.headers["x-webhook-id"].to_str().expect("text").to_owned();
                *arrived.lock().expect("no panic").entry(id).or_default() += 1;
            }
        });
        tally
    }

    /// How many requests there were.
    pub(crate) fn count(&self) -> u64 {
        self.receiver.count()
    }

    /// Registers it as the endpoint of all events.
    pub(crate) async fn register(&self, client: &mut Client) {
        self.register_times(client, 1, 64).await;
    }

    /// Registers it as so many endpoints, each of all events and with that cap.
    pub(crate) async fn register_times(&self, client: &mut Client, count: usize, max_in_flight: u32) {
        for place in 0..count {
            let url = format!("{}/{place}", self.receiver.url());
            // Failures are made here on purpose, and none is to hold up the rest.
            let circuit_breaker = Some(CircuitBreaker { failure_threshold: Some(0), ..CircuitBreaker::default() });
            let endpoint = Endpoint { url, max_in_flight, circuit_breaker, ..Endpoint::default() };
            let request = RegisterEndpointRequest { endpoint: Some(endpoint), secret: String::new() };
            client.register_endpoint(request).await.expect("registered");
        }
    }

    /// Waits until every delivery of `ids` has arrived; answers how often each did that came more than once.
    pub(crate) async fn all_of(&self, ids: &[String]) -> HashMap<String, usize> {
        eventually("everything acknowledged arrives", || async {
            let arrived = self.arrived.lock().expect("no panic");
            ids.iter().all(|id| arrived.contains_key(id)).then_some(())
        })
        .await;
        let arrived = self.arrived.lock().expect("no panic");
        let counts = ids.iter().map(|id| (id.clone(), arrived[id]));
        counts.filter(|(_, count)| *count > 1).collect()
    }
}

/// Waits until nothing is outstanding: what is due to arrive has, and is on record. However much that is, some of it has to
/// be settled in every minute.
pub(crate) async fn settled(client: &Client) {
    use DeliveryState::{InFlight, Pending, Retrying};
    const PATIENCE: Duration = Duration::from_secs(60);
    let states = [Pending, InFlight, Retrying].map(i32::from).to_vec();
    let request = ListDeliveriesRequest { states, page_size: 1, ..ListDeliveriesRequest::default() };
    let (mut least, mut at) = (u64::MAX, Instant::now());
    loop {
        if let Ok(listed) = client.clone().list_deliveries(request.clone()).await
            && listed.into_inner().deliveries.is_empty()
        {
            return;
        }
        if let Ok(stats) = client.clone().get_stats(GetStatsRequest::default()).await
            && stats.get_ref().outstanding < least
        {
            (least, at) = (stats.into_inner().outstanding, Instant::now());
        }
        assert!(at.elapsed() < PATIENCE, "{least} deliveries are outstanding, and none was settled for {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A delivery with its attempts.
pub(crate) async fn delivery(client: &Client, id: &str) -> Delivery {
    let request = GetDeliveryRequest { delivery_id: id.to_owned() };
    client.clone().get_delivery(request).await.expect("read").into_inner().delivery.expect("a delivery")
}
