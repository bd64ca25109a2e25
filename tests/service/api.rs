//! The whole service in this process, spoken to as any client would: over gRPC, with real receivers.
//!
//! Here is what the groups of tests below share: a running service, its client, and what a refusal tells.

mod abuse;
mod access;
mod alerting;
mod canaries;
mod dead_letters;
mod delivering;
mod edge;
mod endpoints;
mod erasing;
mod filtering;
mod gating;
mod guarding;
mod history;
mod in_sql;
mod inline;
mod keys;
mod limits;
mod metrics;
mod ordered_replays;
mod ordering;
mod pausing;
mod publishing;
mod receivers;
mod refusals;
mod replays;
#[cfg(target_os = "linux")]
mod resolving;
mod resuming;
mod retaining;
mod retrying;
mod scheduling;
mod sealing;
mod secrets;
mod secured;
mod stats;
mod streaming;
mod testing;
mod tls;
mod tracing;
mod unbuilt;
mod verifying;

use std::collections::BTreeMap;
use std::time::Duration;

use hooklane::api::proto;
use hooklane::api::proto::webhook_service_client::WebhookServiceClient;
use hooklane::api::proto::{DeliveryState, Endpoint, ExponentialBackoff, RetryPolicy, retry_policy};
use hooklane::app::App;
use hooklane::cli::listen::{Behaviour, Receiver, ReceiverOptions};
use hooklane::config::{Config, Flags, Profile};
use hooklane::domain::verification::Verifier;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::{self, eventually};

type Client = WebhookServiceClient<Channel>;

/// A secret that fits every HMAC scheme.
const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// A key that fits the Ed25519 scheme.
const KEY: &str = "whsk_AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";

/// A replica and a client of it.
struct Service {
    app: App,
    client: Client,
    address: String,
}

/// A service over a database of this test's own.
async fn service() -> Service {
    service_with(support::database().await, &[]).await
}

/// A replica over `database_url` with more settings, named as in the environment.
async fn app_with(database_url: String, settings: &[(&str, &str)]) -> App {
    let any_port = || Some("127.0.0.1:0".to_owned());
    let flags =
        Flags { grpc_addr: any_port(), ops_addr: any_port(), database_url: Some(database_url), ..Flags::default() };
    let defaults = [("HOOKLANE_SHUTDOWN_GRACE", "2s"), ("HOOKLANE_ENCRYPTION_KEYS", support::KEYS)];
    let mut environment: BTreeMap<_, _> =
        defaults.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
    environment.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let config = Config::load(Profile::Dev, &flags, environment).expect("settings");
    App::start(config).await.expect("the service starts")
}

/// The same, and a client of it.
async fn service_with(database_url: String, settings: &[(&str, &str)]) -> Service {
    let app = app_with(database_url, settings).await;
    let address = format!("http://{}", app.grpc_addr().expect("it serves gRPC"));
    let client = Client::connect(address.clone()).await.expect("connects");
    Service { app, client, address }
}

impl Service {
    /// Another client on a connection of its own.
    async fn channel(&self) -> Channel {
        Channel::from_shared(self.address.clone()).expect("a URI").connect().await.expect("connects")
    }

    async fn register(&self, endpoint: Endpoint) -> Endpoint {
        self.register_with(endpoint, SECRET).await
    }

    async fn register_with(&self, endpoint: Endpoint, secret: &str) -> Endpoint {
        let request = proto::RegisterEndpointRequest { endpoint: Some(endpoint), secret: secret.to_owned() };
        let answer = self.client.clone().register_endpoint(request).await.expect("registered").into_inner();
        answer.endpoint.expect("an endpoint")
    }

    async fn publish(&self, request: proto::PublishRequest) -> proto::PublishResponse {
        self.client.clone().publish(request).await.expect("published").into_inner()
    }

    /// Publishes an event that one endpoint wants; answers the delivery's id.
    async fn publish_one(&self, event_type: &str) -> String {
        let published = self.publish(event(event_type)).await;
        assert_eq!(published.deliveries.len(), 1, "{published:?}");
        published.deliveries[0].delivery_id.clone()
    }

    async fn delivery(&self, id: &str) -> proto::Delivery {
        let request = proto::GetDeliveryRequest { delivery_id: id.to_owned() };
        self.client.clone().get_delivery(request).await.expect("read").into_inner().delivery.expect("a delivery")
    }

    async fn in_state(&self, id: &str, state: DeliveryState) -> proto::Delivery {
        eventually(&format!("{id} is {state:?}"), || async {
            Some(self.delivery(id).await).filter(|delivery| delivery.state() == state)
        })
        .await
    }
}

/// A receiver that checks signatures by [`SECRET`] and [`KEY`].
async fn receiver(behaviour: Behaviour) -> Receiver {
    let secrets = [SECRET, KEY].map(|text| Verifier::parse(text, None).expect("a secret")).to_vec();
    Receiver::start(ReceiverOptions { secrets, behaviour, ..ReceiverOptions::default() }).await.expect("a receiver")
}

/// An endpoint at `url`, retried soon and often, however often it fails.
fn endpoint(url: &str) -> Endpoint {
    let never_opens = proto::CircuitBreaker { failure_threshold: Some(0), ..proto::CircuitBreaker::default() };
    Endpoint {
        url: url.to_owned(),
        timeout: Some(seconds(5)),
        retry_policy: Some(retries(100)),
        circuit_breaker: Some(never_opens),
        ..Endpoint::default()
    }
}

fn retries(max_retries: u32) -> RetryPolicy {
    let millis = |millis: i32| Some(prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 });
    let backoff = ExponentialBackoff { initial_delay: millis(20), multiplier: Some(1.5), max_delay: millis(100) };
    RetryPolicy {
        backoff: Some(retry_policy::Backoff::Exponential(backoff)),
        jitter: None,
        max_retries: Some(max_retries),
    }
}

const fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

/// An event of that type with a small payload.
fn event(event_type: &str) -> proto::PublishRequest {
    proto::PublishRequest {
        event_type: event_type.to_owned(),
        body: Some(proto::publish_request::Body::Payload("{}".into())),
        ..proto::PublishRequest::default()
    }
}

/// An event with that payload.
fn event_of(payload: impl Into<bytes::Bytes>) -> proto::PublishRequest {
    proto::PublishRequest {
        body: Some(proto::publish_request::Body::Payload(payload.into())),
        ..event("order.created")
    }
}

/// Code and reason of a refusal, which is ours by its domain.
fn reason(status: &Status) -> (Code, String) {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "hooklane");
    (status.code(), info.reason)
}

/// Code and reason of a refusal, for comparing.
fn told(code: Code, reason: &str) -> (Code, String) {
    (code, reason.to_owned())
}

/// The fields that a refusal names, in alphabetical order.
fn fields(status: &Status) -> Vec<String> {
    let request = status.get_details_bad_request().unwrap_or_else(|| panic!("no BadRequest in {status:?}"));
    let mut fields: Vec<_> = request.field_violations.into_iter().map(|violation| violation.field).collect();
    fields.sort_unstable();
    fields
}

/// How long something that must come may take to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// What `future` gives, unless it takes forever.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not come"))
}
