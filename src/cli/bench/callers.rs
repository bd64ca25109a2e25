//! The callers: concurrent unary Publish over a few HTTP/2 connections, in a closed loop or at a fixed rate.
//!
//! At a fixed rate a call is stamped with the moment it was meant for, so that a service that stalls is charged with
//! every call that it kept waiting (no coordinated omission).

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint as Server};

use super::stamp::{self, Payloads, wall_ns};
use crate::api::proto::publish_request::Body;
use crate::api::proto::webhook_service_client::WebhookServiceClient;
use crate::api::proto::{Endpoint, PublishRequest, RegisterEndpointRequest};
use crate::cli::Failure;

pub(super) type Client = WebhookServiceClient<Channel>;

/// The type of every event here.
const EVENT_TYPE: &str = "bench.event";
/// A caller whose call failed, or who may not call, breathes before the next one.
const AFTER_FAILURE: Duration = Duration::from_millis(20);
/// Longer than any stall that ends well.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Registrations under way at once.
const REGISTERING: usize = 16;

/// To whom events go.
#[derive(Debug, Clone)]
pub(super) enum Audience {
    /// To every endpoint that wants the type, which is all of them.
    Everyone,
    /// To one endpoint each, in turn.
    InTurn(Vec<Target>),
    /// To every endpoint, by one of these ordering keys each, in turn.
    Keyed(Arc<Keys>),
}

/// Ordering keys, and how many events of each are acknowledged. A key has one publish at a time: in what order its events
/// were published is known then.
#[derive(Debug)]
pub(super) struct Keys(Vec<tokio::sync::Mutex<u64>>);

impl Keys {
    pub(super) fn new(count: usize) -> Arc<Self> {
        Arc::new(Self((0..count).map(|_| tokio::sync::Mutex::default()).collect()))
    }
}

/// An endpoint that events are addressed to.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) id: String,
    pub(super) is_live: bool,
}

/// Connected callers and what they were told.
#[derive(Debug)]
pub(super) struct Callers {
    clients: Vec<Client>,
    payloads: Payloads,
    audience: Audience,
    turn: AtomicUsize,
    acknowledged: AtomicU64,
    /// How many events callers in a closed loop may come to.
    allowed: AtomicU64,
    /// Acknowledged deliveries to endpoints that answer.
    deliveries: AtomicU64,
    failed: AtomicU64,
    last_failure: Mutex<String>,
    /// Ids of acknowledged deliveries, where they are kept.
    ids: Option<Mutex<Vec<String>>>,
    /// Whether events carry their stamp as idempotency key, too: a stream shows that, and no payload.
    stamps_keys: bool,
    /// For how long deliveries are put off.
    delay: Option<Duration>,
}

/// Where a service is, and how it is spoken to.
#[derive(Debug, Clone)]
pub(super) struct Door {
    pub(super) address: SocketAddr,
    /// Who signed its certificate, in PEM; `None` where it has none.
    pub(super) authority: Option<String>,
}

impl From<SocketAddr> for Door {
    fn from(address: SocketAddr) -> Self {
        Self { address, authority: None }
    }
}

/// Lazy connections: they come back by themselves when the service does.
pub(super) fn connect(service: impl Into<Door>, channels: usize) -> Result<Vec<Client>, Failure> {
    Ok(clients(&server(service.into())?.timeout(CALL_TIMEOUT), channels))
}

/// The same for streams, which go on for as long as they are wanted.
pub(super) fn connect_without_deadline(service: SocketAddr, channels: usize) -> Result<Vec<Client>, Failure> {
    Ok(clients(&server(service.into())?, channels))
}

fn server(Door { address, authority }: Door) -> Result<Server, Failure> {
    let failed = |error| Failure::internal(format!("the service's address: {error}"));
    let Some(authority) = authority else { return Server::from_shared(format!("http://{address}")).map_err(failed) };
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority)).domain_name(super::tls::NAME);
    Server::from_shared(format!("https://{address}")).and_then(|server| server.tls_config(tls)).map_err(failed)
}

fn clients(server: &Server, channels: usize) -> Vec<Client> {
    (0..channels.max(1)).map(|_| Client::new(server.clone().connect_lazy())).collect()
}

/// Registers endpoints for the events published here; answers their ids in the same order.
pub(super) async fn register(client: &Client, endpoints: Vec<Endpoint>) -> Result<Vec<String>, Failure> {
    let mut ids = vec![String::new(); endpoints.len()];
    let mut rest = endpoints.into_iter().enumerate();
    let mut running = JoinSet::new();
    loop {
        while running.len() < REGISTERING
            && let Some((place, endpoint)) = rest.next()
        {
            let mut client = client.clone();
            let endpoint = Endpoint { event_types: vec![EVENT_TYPE.to_owned()], ..endpoint };
            let request = RegisterEndpointRequest { endpoint: Some(endpoint), ..RegisterEndpointRequest::default() };
            running.spawn(async move { client.register_endpoint(request).await.map(|answer| (place, answer)) });
        }
        let Some(joined) = running.join_next().await else { return Ok(ids) };
        let (place, answer) = joined
            .map_err(|error| Failure::internal(error.to_string()))?
            .map_err(|status| Failure::other(format!("an endpoint could not be registered: {status}")))?;
        ids[place] = answer.into_inner().endpoint.unwrap_or_default().id;
    }
}

impl Callers {
    pub(super) fn new(clients: Vec<Client>, payload_bytes: usize, audience: Audience) -> Self {
        Self {
            clients,
            payloads: Payloads::of(payload_bytes),
            audience,
            turn: AtomicUsize::new(0),
            acknowledged: AtomicU64::new(0),
            allowed: AtomicU64::new(u64::MAX),
            deliveries: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            last_failure: Mutex::default(),
            ids: None,
            stamps_keys: false,
            delay: None,
        }
    }

    /// The same, who keep the ids of what was acknowledged.
    pub(super) fn keeping_ids(self) -> Self {
        Self { ids: Some(Mutex::default()), ..self }
    }

    /// The same, whose events can be timed in a stream: see [`stamp::sent_ns_of_key`].
    pub(super) fn stamping_keys(self) -> Self {
        Self { stamps_keys: true, ..self }
    }

    /// The same, whose deliveries are not due at once.
    pub(super) fn putting_off(self, delay: Duration) -> Self {
        Self { delay: Some(delay), ..self }
    }

    /// Events acknowledged so far.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Relaxed)
    }

    /// Deliveries acknowledged so far that will arrive.
    pub(super) fn deliveries(&self) -> u64 {
        self.deliveries.load(Relaxed)
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    pub(super) fn last_failure(&self) -> String {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The ids of acknowledged deliveries.
    pub(super) fn ids(&self) -> Vec<String> {
        let ids = self.ids.as_ref().map(|ids| ids.lock().unwrap_or_else(PoisonError::into_inner).clone());
        ids.unwrap_or_default()
    }

    /// `callers` callers that each publish again as soon as they are answered, until `stop` or `limit` acknowledgements.
    pub(super) fn closed_loop(self: &Arc<Self>, callers: usize, stop: &CancellationToken, limit: u64) -> JoinSet<()> {
        let mut running = JoinSet::new();
        for place in 0..callers {
            let (this, stop) = (Arc::clone(self), stop.clone());
            running.spawn(async move {
                while !stop.is_cancelled() && this.acknowledged() < limit {
                    let is_acknowledged = this.is_allowed() && this.publish(place, wall_ns()).await;
                    if !is_acknowledged {
                        tokio::time::sleep(AFTER_FAILURE).await;
                    }
                }
            });
        }
        running
    }

    /// Has callers in a closed loop wait at so many acknowledgements, until more are allowed.
    pub(super) fn allow(&self, acknowledgements: u64) {
        self.allowed.store(acknowledgements, Relaxed);
    }

    fn is_allowed(&self) -> bool {
        self.acknowledged() < self.allowed.load(Relaxed)
    }

    /// `rate` calls a second for `span`, whatever becomes of them; returns when the last one is answered.
    pub(super) async fn open_loop(self: &Arc<Self>, rate: f64, span: Duration) -> Result<(), Failure> {
        let (calls, this) = (TaskTracker::new(), Arc::clone(self));
        let (tracker, handle) = (calls.clone(), Handle::current());
        // A thread of its own: the runtime's timer is as coarse as the latencies that are measured.
        let pace = move || {
            let (began, began_ns) = (Instant::now(), wall_ns());
            for place in 0..(rate * span.as_secs_f64()) as usize {
                let offset = Duration::from_secs_f64(place as f64 / rate);
                std::thread::sleep(offset.saturating_sub(began.elapsed()));
                let meant_ns = began_ns + u64::try_from(offset.as_nanos()).unwrap_or_default();
                let this = Arc::clone(&this);
                tracker.spawn_on(async move { this.publish(place, meant_ns).await }, &handle);
            }
        };
        tokio::task::spawn_blocking(pace).await.map_err(|error| Failure::internal(error.to_string()))?;
        calls.close();
        calls.wait().await;
        Ok(())
    }

    /// One call; whether it was acknowledged.
    async fn publish(&self, place: usize, sent_ns: u64) -> bool {
        let mut request = PublishRequest { event_type: EVENT_TYPE.to_owned(), ..PublishRequest::default() };
        request.deliver_time = self.delay.map(|delay| stamp::time(sent_ns, delay));
        if self.stamps_keys {
            request.idempotency_key = stamp::key(sent_ns, place);
        }
        let turn = |count: usize| self.turn.fetch_add(1, Relaxed) % count.max(1);
        let (mut target, mut published) = (None, None);
        let payload = match &self.audience {
            Audience::Everyone => self.payloads.stamped(sent_ns),
            Audience::InTurn(targets) => {
                target = targets.get(turn(targets.len()));
                request.endpoint_ids.extend(target.map(|target| target.id.clone()));
                self.payloads.stamped(sent_ns)
            }
            Audience::Keyed(keys) => {
                let key = turn(keys.0.len());
                let count = keys.0[key].lock().await;
                request.ordering_key = format!("key-{key}");
                let payload = self.payloads.ordered(sent_ns, key as u64, *count);
                published = Some(count);
                payload
            }
        };
        request.body = Some(Body::Payload(payload));
        let mut client = self.clients[place % self.clients.len()].clone();
        match client.publish(request).await {
            Ok(answer) => {
                if let Some(count) = &mut published {
                    **count += 1;
                }
                let answer = answer.into_inner();
                let is_live = target.is_none_or(|target| target.is_live);
                self.deliveries.fetch_add(if is_live { answer.deliveries.len() as u64 } else { 0 }, Relaxed);
                if let Some(ids) = &self.ids {
                    ids.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .extend(answer.deliveries.into_iter().map(|one| one.delivery_id));
                }
                self.acknowledged.fetch_add(1, Relaxed);
                true
            }
            Err(status) => {
                self.failed.fetch_add(1, Relaxed);
                *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = status.to_string();
                false
            }
        }
    }
}
