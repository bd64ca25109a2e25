//! Act 2: the two receivers, and how an endpoint is registered for each.

use bytes::Bytes;

use super::screen::{Paint, Screen};
use super::{Client, refused};
use crate::api::proto::retry_policy::Backoff;
use crate::api::proto::{Endpoint, ExponentialBackoff, RegisterEndpointRequest, RetryPolicy};
use crate::cli::Failure;
use crate::cli::listen::{Behaviour, Receiver, ReceiverOptions};
use crate::domain::secret::Secret;

/// Somebody who wants to hear of events.
pub(super) struct Recipient {
    /// What the demo calls it.
    pub(super) name: &'static str,
    /// How it answers, in words.
    pub(super) manners: &'static str,
    /// Its web server: that of `hooklane listen`.
    pub(super) receiver: Receiver,
    secret: Secret,
    event_types: &'static [&'static str],
    /// `None` for the default: after 1, 2, 4, 8 and 16 s.
    retry_policy: Option<RetryPolicy>,
}

/// How many requests of each delivery the flaky receiver turns away.
const FAIL_FIRST: u32 = 2;

impl Recipient {
    /// One that takes everything at once.
    pub(super) async fn steady() -> Result<Self, Failure> {
        let behaviour = Behaviour { body: Bytes::from_static(b"thank you"), ..Behaviour::default() };
        let (receiver, secret) = start(behaviour).await?;
        let event_types = &["order.*", "customer.*"];
        Ok(Self { name: "steady", manners: "200", receiver, secret, event_types, retry_policy: None })
    }

    /// One that has to be asked three times.
    pub(super) async fn flaky() -> Result<Self, Failure> {
        let body = Bytes::from_static(b"the third time I listen");
        let (receiver, secret) = start(Behaviour { fail_first: FAIL_FIRST, body, ..Behaviour::default() }).await?;
        let half_a_second = prost_types::Duration { seconds: 0, nanos: 500_000_000 };
        let backoff = ExponentialBackoff { initial_delay: Some(half_a_second), ..ExponentialBackoff::default() };
        Ok(Self {
            name: "flaky",
            manners: "503 twice to each delivery, then 200",
            receiver,
            secret,
            event_types: &["order.*"],
            retry_policy: Some(RetryPolicy { backoff: Some(Backoff::Exponential(backoff)), ..RetryPolicy::default() }),
        })
    }

    /// Registers the endpoint and shows it; answers its id.
    pub(super) async fn register(&self, client: &mut Client, screen: &Screen) -> Result<String, Failure> {
        let endpoint = Endpoint {
            url: format!("{}/webhooks", self.receiver.url()),
            description: format!("the {} receiver of the demo", self.name),
            event_types: self.event_types.iter().map(ToString::to_string).collect(),
            retry_policy: self.retry_policy.clone(),
            ..Endpoint::default()
        };
        // Without a secret the server draws one and answers it. These receivers had to know theirs before.
        let secret = self.secret.expose().to_owned();
        let request = RegisterEndpointRequest { endpoint: Some(endpoint), secret };
        let response = client.register_endpoint(request).await.map_err(refused("RegisterEndpoint"))?.into_inner();
        let endpoint = response.endpoint.unwrap_or_default();

        let retries = if self.retry_policy.is_some() { "0.5, 1, 2 … s" } else { "1, 2, 4 … s (the default)" };
        let shown: String = response.secret.chars().take(10).collect();
        let name = screen.paint(Paint::Name, &format!("{:<7}", self.name));
        screen.line(&format!("{name} {}  {}", endpoint.id, endpoint.url))?;
        let terms = format!("wants {}; retries after {retries}; secret {shown}…", endpoint.event_types.join(", "));
        screen.line(&format!("{:<7} {}", "", screen.paint(Paint::Dim, &terms)))?;
        Ok(endpoint.id)
    }
}

/// A receiver that checks every signature with a secret of its own.
async fn start(behaviour: Behaviour) -> Result<(Receiver, Secret), Failure> {
    let secret = Secret::from_random(&rand::random());
    let options = ReceiverOptions { secrets: vec![secret.clone().into()], behaviour, ..ReceiverOptions::default() };
    let receiver = Receiver::start(options).await;
    let receiver = receiver.map_err(|error| Failure::internal(format!("a receiver cannot listen: {error}")))?;
    Ok((receiver, secret))
}
