//! What is sent: a [`Target`] is prepared once for each version of an endpoint, an [`Outgoing`] becomes a request.
//!
//! Assembling runs for every attempt: header names are static and the values we write share one allocation.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::BytesMut;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use percent_encoding::percent_decode_str;

use super::connection::Body;
use super::pool::Origin;
use crate::domain::Problem;
use crate::domain::body;
use crate::domain::endpoint::PayloadFormat;
use crate::domain::event::Event;
use crate::domain::headers::OwnHeaders;
use crate::domain::id::DeliveryId;
use crate::domain::signature::Signer;
use crate::domain::time::Timestamp;
use crate::domain::tls::TlsOptions;
use crate::domain::trace::TraceContext;
use crate::domain::url::EndpointUrl;

const X_WEBHOOK_ID: HeaderName = HeaderName::from_static("x-webhook-id");
const X_WEBHOOK_DELIVERY: HeaderName = HeaderName::from_static("x-webhook-delivery");
const X_WEBHOOK_EVENT: HeaderName = HeaderName::from_static("x-webhook-event");
const X_WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("x-webhook-timestamp");
const X_WEBHOOK_ATTEMPT: HeaderName = HeaderName::from_static("x-webhook-attempt");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Only where the publisher sent one.
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Headers besides signature, CloudEvents attributes, authorization, `tracestate` and the endpoint's own: the first seven above, host, user agent, content type and (hyper's) length.
/// Counted exactly: at twelve in all, the usual number, a map takes 1.3 KB, and 2.5 KB from thirteen on.
const HEADERS_ALWAYS: usize = 11;

/// Room for the values that [`Values`] writes, unless a key is long: two ids (30 + 30), type, two numbers, trace (55).
const VALUES_BYTES: usize = 192;

/// An endpoint's address, headers and signing keys, ready for use.
pub struct Target {
    origin: Origin,
    /// Path and query.
    path: Uri,
    host: HeaderValue,
    /// The address's credentials and the endpoint's own headers, each name once.
    own: Vec<(HeaderName, HeaderValue)>,
    shown_url: String,
    signer: Signer,
    timeout: Duration,
}

impl Target {
    /// Prepares an endpoint's address. Its user information becomes a basic `authorization` header (RFC 7617).
    pub fn new(url: &EndpointUrl, signer: Signer, timeout: Duration) -> Result<Self, Problem> {
        let problem = || Problem::new("is not a URL that can be requested; encode special characters with %");
        let mut bare = url.parsed().clone();
        bare.set_username("").and_then(|()| bare.set_password(None)).map_err(|()| problem())?;
        let uri = Uri::try_from(bare.as_str()).map_err(|_| problem())?;
        let origin = Origin::of(&uri).ok_or_else(problem)?;
        let path = Uri::from(uri.path_and_query().cloned().ok_or_else(problem)?);
        // A URL's authority has its scheme's default port already left out, as the header wants it.
        let authority = uri.authority().ok_or_else(problem)?.as_str();
        let host = HeaderValue::from_str(authority).map_err(|_| problem())?;
        let own = basic(url.parsed()).map(|value| (AUTHORIZATION, value)).into_iter().collect();
        Ok(Self { origin, path, host, own, shown_url: url.redacted(), signer, timeout })
    }

    /// With certificates of the endpoint's own.
    pub fn with_tls(mut self, options: &TlsOptions) -> Self {
        if !options.is_empty() {
            self.origin = self.origin.with_tls(options);
        }
        self
    }

    /// With headers of the endpoint's own; an `authorization` among them goes before the address's.
    pub fn with_headers(mut self, headers: &OwnHeaders) -> Self {
        for (name, value) in headers.entries() {
            // What was checked is both; a stored one that is not is left out: the event matters more.
            let (Ok(name), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) else {
                continue;
            };
            value.set_sensitive(true);
            self.own.retain(|(known, _)| *known != name);
            self.own.push((name, value));
        }
        self
    }

    /// Scheme, host, port and path: what may be logged and shown.
    pub fn shown_url(&self) -> &str {
        &self.shown_url
    }

    pub(super) const fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(super) const fn timeout(&self) -> Duration {
        self.timeout
    }
}

fn basic(url: &url::Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let mut credentials: Vec<u8> = percent_decode_str(url.username()).collect();
    credentials.push(b':');
    credentials.extend(percent_decode_str(url.password().unwrap_or_default()));
    let mut value = HeaderValue::try_from(format!("Basic {}", BASE64.encode(credentials))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// One attempt to be made.
pub struct Outgoing<'a> {
    /// Where it goes.
    pub target: &'a Target,
    /// What it tells.
    pub event: &'a Event,
    /// The delivery it belongs to.
    pub delivery_id: DeliveryId,
    /// How the body looks.
    pub format: PayloadFormat,
    /// 1 is the first.
    pub attempt: u32,
    /// The time that is signed.
    pub now: Timestamp,
    /// What the receiver's spans belong to.
    pub trace: TraceContext,
}

/// The request an endpoint receives.
pub(super) fn assemble(outgoing: &Outgoing<'_>, user_agent: &HeaderValue) -> Request<Body> {
    let Outgoing { target, event, delivery_id, format, attempt, now, ref trace } = *outgoing;
    let body = body::render(event, format);
    let event_id = event.id.to_string();
    let signature = target.signer.sign(&event_id, now, &body.bytes);

    let mut headers =
        HeaderMap::with_capacity(HEADERS_ALWAYS + target.own.len() + body.headers.len() + signature.len());
    headers.insert(HOST, target.host.clone());
    for (name, value) in &target.own {
        headers.insert(name, value.clone());
    }
    headers.insert(USER_AGENT, user_agent.clone());
    // A stored value that no header can carry is left out, here and below: the event matters more.
    let content_type = match body.content_type {
        Cow::Borrowed(ours) => Ok(HeaderValue::from_static(ours)),
        Cow::Owned(published) => HeaderValue::try_from(published),
    };
    if let Ok(content_type) = content_type {
        headers.insert(CONTENT_TYPE, content_type);
    }

    let mut values = Values(BytesMut::with_capacity(VALUES_BYTES));
    if let Some(id) = values.write(format_args!("{delivery_id}")) {
        headers.insert(X_WEBHOOK_ID, id.clone());
        headers.insert(X_WEBHOOK_DELIVERY, id);
    }
    let key = event.idempotency_key.as_deref().unwrap_or(&event_id);
    for (name, value) in [
        (X_WEBHOOK_EVENT, format_args!("{}", event.event_type.as_str())),
        (X_WEBHOOK_TIMESTAMP, format_args!("{}", now.seconds())),
        (X_WEBHOOK_ATTEMPT, format_args!("{attempt}")),
        (IDEMPOTENCY_KEY, format_args!("{key}")),
        (TRACEPARENT, format_args!("{trace}")),
    ] {
        if let Some(value) = values.write(value) {
            headers.insert(name, value);
        }
    }
    if let Some(value) = trace.state().and_then(|state| HeaderValue::from_str(state.as_str()).ok()) {
        headers.insert(TRACESTATE, value);
    }
    for (name, value) in body.headers.into_iter().chain(signature) {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }

    let mut request = Request::new(Body::new(body.bytes));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = target.path.clone();
    *request.headers_mut() = headers;
    request
}

/// Writes header values one behind the other into one allocation that they share.
struct Values(BytesMut);

impl Values {
    fn write(&mut self, value: fmt::Arguments<'_>) -> Option<HeaderValue> {
        self.0.write_fmt(value).ok()?;
        HeaderValue::from_maybe_shared(self.0.split().freeze()).ok()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::FutureExt as _;
    use http_body_util::BodyExt as _;
    use proptest::prelude::*;

    use super::*;
    use crate::domain::endpoint::SignatureScheme;
    use crate::domain::fields::{ContentType, Tenant};
    use crate::domain::pattern::EventType;
    use crate::domain::secret::Secret;

    fn parts(request: Request<Body>) -> (HeaderMap, Bytes) {
        let (head, body) = request.into_parts();
        let body = body.collect().now_or_never().expect("it is there").expect("whole").to_bytes();
        (head.headers, body)
    }

    proptest! {
        #[test]
        fn an_attempt_is_told_by_its_headers_alone(
            key in proptest::option::of("[!-~]{1,255}"),
            event_type in "[a-zA-Z0-9._-]{1,128}",
            payload in proptest::collection::vec(any::<u8>(), 0..32),
            event_id in 1..u128::MAX,
            delivery_id in any::<u128>(),
            attempt in 1..u32::MAX,
            seconds in 0_i64..10_000_000_000,
            scheme in 1_i16..=5,
        ) {
            let scheme = SignatureScheme::from_number(scheme).expect("a scheme");
            let secret = if scheme.is_ed25519() { Secret::from_seed(&[7; 32]) } else { Secret::from_random(&[7; 32]) };
            let url = EndpointUrl::from_stored("https://example.com/hooks").expect("a URL");
            let target = Target::new(&url, Signer::new(scheme, [&secret]), Duration::from_secs(1)).expect("a target");
            let event = Event {
                id: crate::domain::id::EventId::from_uuid(uuid::Uuid::from_u128(event_id)),
                tenant: Tenant::default_tenant(),
                event_type: EventType::from_stored(event_type.clone()),
                payload: payload.into(),
                content_type: ContentType::parse("text/plain").expect("a type"),
                idempotency_key: key.clone(),
                metadata: Default::default(),
                source: None,
                schedule: Default::default(),
                trace: None,
            };
            let user_agent = HeaderValue::from_static("hooklane/0");
            let request = |attempt, seconds: i64| {
                let outgoing = Outgoing {
                    target: &target,
                    event: &event,
                    delivery_id: DeliveryId::from_uuid(uuid::Uuid::from_u128(delivery_id)),
                    format: PayloadFormat::Envelope,
                    attempt,
                    now: Timestamp::from_micros(seconds * 1_000_000),
                    trace: event.trace_of_attempt(DeliveryId::from_uuid(uuid::Uuid::from_u128(delivery_id)), attempt),
                };
                parts(assemble(&outgoing, &user_agent))
            };
            let (headers, body) = request(attempt, seconds);
            let (later, same_body) = request(attempt + 1, seconds + 1);
            prop_assert_eq!(&body, &same_body);
            let bare = key.unwrap_or_else(|| event.id.to_string());
            for (name, value) in [
                (IDEMPOTENCY_KEY, bare.as_str()),
                (X_WEBHOOK_EVENT, &event_type),
                (X_WEBHOOK_ATTEMPT, &attempt.to_string()),
                (X_WEBHOOK_TIMESTAMP, &seconds.to_string()),
            ] {
                prop_assert_eq!(headers[&name].as_bytes(), value.as_bytes());
                prop_assert_eq!(headers.get_all(&name).iter().count(), 1);
            }
            prop_assert_eq!(&headers[X_WEBHOOK_ID], &headers[X_WEBHOOK_DELIVERY]);
            let trace = [&headers, &later].map(|headers| headers[TRACEPARENT].to_str().expect("text").to_owned());
            let [one, other] = trace.each_ref().map(|text| text.split('-').collect::<Vec<_>>());
            prop_assert_eq!((one[0], one[3], one[1].len(), one[2].len()), ("00", "00", 32, 16));
            prop_assert!(one[1] == other[1] && one[2] != "0".repeat(16), "{:?}", trace);
        }
    }
}
