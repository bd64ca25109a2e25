//! An endpoint: where events go, in what form, and how patiently.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Problem;
use super::circuit::{CircuitPolicy, DisablePolicy};
use super::fields::Tenant;
use super::filter::Filter;
use super::headers::OwnHeaders;
use super::id::EndpointId;
use super::pattern::EventPattern;
use super::rate::RateLimit;
use super::retry::{EventRetryPolicy, RetryPolicy};
use super::time::Timestamp;
use super::tls::TlsOptions;
use super::url::EndpointUrl;

/// What a caller decides about an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointSpec {
    /// Where requests are sent.
    pub url: EndpointUrl,
    /// The caller's words, at most 1,024 bytes.
    pub description: String,
    /// What is wanted; empty means everything but operational events.
    pub event_types: Vec<EventPattern>,
    /// What an event must satisfy besides; `None` means nothing.
    pub filter: Option<Filter>,
    /// How requests are signed.
    pub signature_scheme: SignatureScheme,
    /// How bodies look.
    pub payload_format: PayloadFormat,
    /// What is sent with every request beside our own headers.
    pub headers: OwnHeaders,
    /// What its connections are secured with beside the system's certificates.
    pub tls: TlsOptions,
    /// When failures are retried; `None` means the server's default.
    pub retry_policy: Option<RetryPolicy>,
    /// The same for certain event types, which goes before it.
    pub event_retry_policies: Vec<EventRetryPolicy>,
    /// One deadline over DNS, TCP, TLS, headers and body: 1–300 s.
    pub timeout: Duration,
    /// How many requests may be under way at once: 1–1,024.
    pub max_in_flight: u32,
    /// How many requests a second; `None` means as many as it takes.
    pub rate_limit: Option<RateLimit>,
    /// When sending stops for a while.
    pub circuit_breaker: CircuitPolicy,
    /// When the endpoint is disabled for failing.
    pub disable_policy: DisablePolicy,
    /// The caller's labels.
    pub labels: BTreeMap<String, String>,
    /// The caller's own id, unique in the tenant.
    pub external_id: Option<String>,
    /// In what order deliveries are made.
    pub ordering: Ordering,
    /// What follows in that order when one has failed for good.
    pub on_failure: OnFailure,
}

/// An endpoint as the database holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// Its id.
    pub id: EndpointId,
    /// Who owns it.
    pub tenant: Tenant,
    /// What its owner decided.
    pub spec: EndpointSpec,
    /// Whether it came with an event: then it is in no list, and no event matches it.
    pub is_inline: bool,
    /// Whether it is delivered to.
    pub state: EndpointState,
    /// Why it is DISABLED, in words.
    pub disabled_reason: Option<String>,
    /// Whether its circuit lets anything through.
    pub circuit: CircuitState,
    /// Counts the changes of `spec` and `state`: the etag.
    pub version: i64,
    /// When it was registered.
    pub create_time: Timestamp,
    /// When it was last changed.
    pub update_time: Timestamp,
    /// How it has been doing.
    pub health: Health,
    /// Events on which its filter failed.
    pub filter_error_count: u64,
    /// Its secrets that sign, newest first, without their values.
    pub secrets: Vec<SecretInfo>,
    /// What verifies the newest one's signatures, where it is an Ed25519 key.
    pub public_key: Option<String>,
}

/// How an endpoint has answered lately.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Health {
    /// Exponential moving average of attempt results, 0–1.
    pub score: f64,
    /// Failures since the last success.
    pub consecutive_failures: u32,
    /// The last 2xx.
    pub last_success_time: Option<Timestamp>,
    /// The last failure the endpoint caused.
    pub last_failure_time: Option<Timestamp>,
}

/// The weight of one attempt in the health score.
pub const HEALTH_ALPHA: f64 = 0.2;

/// A secret's history without its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecretInfo {
    /// 1 is the first.
    pub version: u32,
    /// When it was made.
    pub create_time: Timestamp,
    /// When it stops signing; `None` for the newest.
    pub expire_time: Option<Timestamp>,
}

/// Whether an endpoint is delivered to. The discriminants are the contract's and the database's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointState {
    /// Deliveries go out.
    Active = 1,
    /// Deliveries wait by the operator's wish.
    Paused = 2,
    /// Deliveries wait because the endpoint failed for too long.
    Disabled = 3,
}

/// What an endpoint's circuit lets through. The discriminants are the contract's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CircuitState {
    /// Everything.
    Closed = 1,
    /// Nothing, for a while.
    Open = 2,
    /// One probe at a time.
    HalfOpen = 3,
}

/// How requests are signed. The discriminants are the contract's and the database's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureScheme {
    /// `X-Webhook-Signature: t=…,v1=…` over `{t}.{body}`.
    Timestamped = 1,
    /// `webhook-signature: v1,…` over `{id}.{timestamp}.{body}`.
    StandardWebhooks = 2,
    /// `webhook-signature: v1a,…` over the same.
    StandardWebhooksEd25519 = 3,
    /// `X-Webhook-Signature: sha256=…` over `{body}`.
    BodySha256 = 4,
    /// `X-Webhook-Signature: …` over `{body}`.
    BodyHex = 5,
}

impl SignatureScheme {
    /// Whether it signs with a private key that receivers need not know.
    pub const fn is_ed25519(self) -> bool {
        matches!(self, Self::StandardWebhooksEd25519)
    }
}

/// How bodies look. The discriminants are the contract's and the database's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadFormat {
    /// A JSON object around the payload.
    Envelope = 1,
    /// The payload as published.
    Raw = 2,
    /// A CloudEvents 1.0 object around the payload.
    CloudEventsStructured = 3,
    /// The payload as published, the CloudEvents 1.0 attributes as headers.
    CloudEventsBinary = 4,
    /// `{"type":…,"timestamp":…,"data":…}`.
    StandardWebhooks = 5,
}

/// In what order an endpoint's deliveries are made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Ordering {
    /// As they fall due, many at once.
    #[default]
    Unordered = 1,
    /// One at a time for each ordering key, in publish order.
    ByKey = 2,
    /// One at a time, in publish order.
    Fifo = 3,
}

/// What an ordered endpoint does when the delivery at the head has no retry left.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// Those behind it wait until somebody retries, cancels or deletes it.
    #[default]
    Block = 1,
    /// Those behind it go on.
    Skip = 2,
}

macro_rules! stored_enum {
    ($name:ident { $($variant:ident),* }) => {
        impl $name {
            /// Each of them, by number.
            pub const EVERY: &'static [Self] = &[$(Self::$variant),*];

            /// The number in the database and the contract.
            pub const fn number(self) -> i16 {
                self as i16
            }

            /// From the number in the database or the contract.
            pub const fn from_number(number: i16) -> Option<Self> {
                match number {
                    $(n if n == Self::$variant as i16 => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}
pub(crate) use stored_enum;

stored_enum!(Ordering { Unordered, ByKey, Fifo });
stored_enum!(OnFailure { Block, Skip });
stored_enum!(EndpointState { Active, Paused, Disabled });
stored_enum!(CircuitState { Closed, Open, HalfOpen });
stored_enum!(SignatureScheme { Timestamped, StandardWebhooks, StandardWebhooksEd25519, BodySha256, BodyHex });
stored_enum!(PayloadFormat { Envelope, Raw, CloudEventsStructured, CloudEventsBinary, StandardWebhooks });

/// The timeout of an endpoint that names none.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// The in-flight cap of an endpoint that names none.
pub const MAX_IN_FLIGHT_DEFAULT: u32 = 64;
/// How long a description may be, in bytes.
pub const DESCRIPTION_BYTES_MAX: usize = 1_024;
/// How many event type patterns an endpoint may have.
pub const EVENT_TYPES_MAX: usize = 100;

/// Checks an endpoint's timeout.
pub fn parse_timeout(timeout: Duration) -> Result<Duration, Problem> {
    if (Duration::from_secs(1)..=Duration::from_secs(300)).contains(&timeout) {
        Ok(timeout)
    } else {
        Err(Problem::new("is out of range; allowed is 1 s to 300 s"))
    }
}

/// Checks an endpoint's in-flight cap; 0 means the default.
pub fn parse_max_in_flight(count: u32) -> Result<u32, Problem> {
    match count {
        0 => Ok(MAX_IN_FLIGHT_DEFAULT),
        1..=1_024 => Ok(count),
        _ => Err(Problem::new("is out of range; allowed is 1 to 1024")),
    }
}
