//! What holds of any input, a function for each target. `make fuzz` looks for inputs of which it does not hold;
//! `tests/fuzzing.rs` tries those that are known, at every `make test`.

use std::time::Duration;

use bytes::Bytes;
use hooklane::domain::address::{EgressRules, Ports};
use hooklane::domain::attempt::RETRY_AFTER_MAX;
use hooklane::domain::endpoint::SignatureScheme;
use hooklane::domain::event::NewEvent;
use hooklane::domain::fields::{ContentType, Tenant};
use hooklane::domain::filter::{Budget, Facts, Filter};
use hooklane::domain::headers::OwnHeaders;
use hooklane::domain::id::EndpointId;
use hooklane::domain::keyring::{Keyring, Place};
use hooklane::domain::pattern::{EventPattern, EventType, any_matches};
use hooklane::domain::retry_after as wait;
use hooklane::domain::secret::Secret;
use hooklane::domain::signature::Signer;
use hooklane::domain::time::Timestamp;
use hooklane::domain::url::EndpointUrl;
use hooklane::egress::Target;
use http::{HeaderName, HeaderValue, Uri};

/// 2026-01-21T12:00:00Z.
const NOW: Timestamp = Timestamp::from_micros(1_768_996_800_000_000);

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// A URL that is taken can be stored, shown, requested, and means the same host to the HTTP client as to the guard.
pub fn url(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let rules = EgressRules { allow_http: true, allow_cidrs: Vec::new(), allow_ports: Ports::Any };
    let Ok(parsed) = EndpointUrl::parse(text, &rules) else { return };
    assert_eq!(EndpointUrl::from_stored(parsed.as_str()).as_ref(), Some(&parsed));
    assert_eq!(EndpointUrl::parse(parsed.as_str(), &rules).as_ref(), Ok(&parsed));

    let shown = url::Url::parse(&parsed.redacted()).expect("what is shown is a URL");
    assert!(shown.username().is_empty() && shown.password().is_none() && shown.query().is_none());

    let mut bare = parsed.parsed().clone();
    bare.set_username("").and_then(|()| bare.set_password(None)).expect("it has a host");
    let uri = Uri::try_from(bare.as_str()).expect("a URL that was taken can be requested");
    assert_eq!(uri.host(), parsed.parsed().host_str());
    assert_eq!(uri.port_u16(), parsed.parsed().port());
    assert_eq!(uri.scheme_str(), Some(parsed.parsed().scheme()));
    let host = uri.host().expect("a host").trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = host.parse() {
        rules.judge(std::net::SocketAddr::new(address, 443)).expect("a literal address that was taken may be dialled");
    }
    let secret = Secret::from_random(&[7; 32]);
    let signer = Signer::new(SignatureScheme::Timestamped, [&secret]);
    Target::new(&parsed, signer, Duration::from_secs(1)).expect("a URL that was taken can be requested");
}

/// Headers that are taken are ones to the HTTP client, with the same bytes. A line is a name, a colon and a value.
pub fn headers(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let entries = text.split('\n').map(|line| {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        (name.to_owned(), value.to_owned())
    });
    let Ok(headers) = OwnHeaders::parse(entries) else { return };
    for (name, value) in headers.entries() {
        let known = HeaderName::try_from(name.as_str()).expect("a name that was taken is one");
        assert!(known.as_str().eq_ignore_ascii_case(name));
        let sent = HeaderValue::try_from(value.as_str()).expect("a value that was taken is one");
        assert_eq!(sent.as_bytes(), value.as_bytes());
        assert!(headers.has(known.as_str()));
        assert!(!known.as_str().starts_with("x-webhook-") && known != "host" && known != "content-length");
    }
}

/// A pattern that is taken is written as it is read, and matches what it should. A line is a pattern, a further one a type.
pub fn pattern(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let (text, event_type) = text.split_once('\n').unwrap_or((text, "order.created"));
    let Ok(pattern) = EventPattern::parse(text) else { return };
    assert_eq!(EventPattern::parse(&pattern.to_string()).as_ref(), Ok(&pattern));
    let matches = pattern.matches(event_type);
    assert_eq!(any_matches(std::slice::from_ref(&pattern), event_type), matches);
    if let EventPattern::Exactly(exact) = &pattern {
        assert!(pattern.matches(exact));
        assert_eq!(matches, exact == event_type);
    }
}

/// A filter that is taken comes to an end on any event. A line is the filter, the rest the payload.
pub fn filter(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (filter, payload) = (&data[..end], data.get(end + 1..).unwrap_or(b"{}"));
    let Some(Ok(filter)) = text(filter).map(Filter::parse) else { return };
    let event = NewEvent {
        tenant: Tenant::default_tenant(),
        event_type: EventType::parse("order.created").expect("a type"),
        payload: Bytes::copy_from_slice(payload),
        content_type: ContentType::default(),
        idempotency_key: None,
        metadata: Default::default(),
        source: None,
        endpoint_ids: Vec::new(),
        inline_endpoint: None,
        schedule: Default::default(),
        trace: None,
    };
    let facts = Facts::of(&event);
    let judged = filter.judge(&facts, &mut Budget::default());
    let again = Filter::from_stored(filter.as_str()).judge(&facts, &mut Budget::default());
    assert_eq!(format!("{judged:?}"), format!("{again:?}"));
}

/// A wait that is read is one that is allowed.
pub fn retry_after(data: &[u8]) {
    let Some(text) = text(data) else { return };
    if let Some(wait) = wait::parse(text, NOW) {
        assert!(wait > Duration::ZERO && wait <= RETRY_AFTER_MAX);
    }
}

/// Tokens are read or refused, with our signature and without. The first byte says which.
pub fn tokens(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 3 {
        0 => hooklane::live::fuzzing::read_token_content(rest),
        1 => text(rest).into_iter().for_each(hooklane::live::fuzzing::read_token),
        _ => {
            let (filter, token) = rest.split_at(rest.len() / 2);
            if let Some(token) = text(token) {
                // Nobody guesses the filters of a list either; without a token it begins.
                assert_eq!(hooklane::api::fuzzing::read_page_token(filter, token), token.is_empty());
            }
        }
    }
}

/// Nothing opens but what was sealed, and that only there. Keys are read or refused, and repeated in no problem.
pub fn ciphertext(data: &[u8]) {
    const KEYS: &str = "k1:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let keys = Keyring::parse(KEYS).expect("keys");
    let (tenant, endpoint) = (Tenant::default_tenant(), "ep_01h455vb4pex5vsknk084sn02q".parse::<EndpointId>());
    let endpoint = endpoint.expect("an id");
    let place = Place::Secret(&tenant, endpoint, 1);
    assert!(keys.open(place, "k1", data).is_err(), "nobody guesses a tag");
    let sealed = keys.seal(place, data, [9; 12]).expect("sealed").bytes;
    assert_eq!(keys.open(place, "k1", &sealed).expect("opened").as_slice(), data);
    assert!(keys.open(Place::Settings(&tenant, endpoint, 1), "k1", &sealed).is_err());
    assert!(keys.open(place, "k1", &[&sealed[..], data].concat()).is_err() || data.is_empty());
    // No words of ours have that in them, and behind a colon it is no id.
    const SECRET: &str = "c2VjcmV0";
    if let Some(text) = text(data)
        && let Err(problem) = Keyring::parse(&format!("{text}:{SECRET}"))
    {
        assert!(!problem.to_string().contains(SECRET));
    }
}

/// Requests are read or refused, and each refusal says why.
pub fn messages(data: &[u8]) {
    hooklane::api::fuzzing::read_request(data);
}
