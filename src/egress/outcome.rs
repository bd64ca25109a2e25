//! What came of a request: the kept part of an answer, or why there was none.
//!
//! Errors are told apart by their types, never by their text, and are worded here: nothing of resolver, network or
//! library reaches the endpoint's owner.

use std::borrow::Cow;
use std::error::Error;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::response::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use rustls::CertificateError;

use super::guard::DialError;
use super::metered::TooMuch;
use crate::domain::attempt::{AttemptOutcome, AttemptResult, BODY_BYTES_KEPT, BODY_BYTES_READ};
use crate::domain::retry_after;
use crate::domain::time::Timestamp;

/// How many response headers are kept, and how many bytes of them together.
const HEADERS_MAX: usize = 64;
const HEADERS_BYTES_MAX: usize = 8 * 1_024;

/// An answer whose status is known, with as much of its body as has come.
pub(super) struct Answer {
    status: StatusCode,
    headers: Vec<(String, String)>,
    retry_after: Option<Duration>,
    body: Vec<u8>,
    /// Whether `body` is known to be all there is.
    whole: bool,
}

/// Whether a body was read to its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BodyEnd {
    Reached,
    NotReached,
}

impl Answer {
    pub(super) fn new(head: &Parts, now: Timestamp) -> Self {
        let waits = matches!(head.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        Self {
            status: head.status,
            headers: kept_headers(&head.headers),
            retry_after: head.headers.get(RETRY_AFTER).filter(|_| waits).and_then(|value| asked_wait(value, now)),
            body: Vec::new(),
            whole: false,
        }
    }

    /// Reads the body up to its bound. What is read stays when the deadline drops this midway, or the body breaks off.
    ///
    /// A body that is left unread closes its connection; one that was read to its end leaves it to the pool.
    pub(super) async fn read(&mut self, mut body: Incoming) -> BodyEnd {
        let mut bytes_read = 0;
        while !body.is_end_stream() {
            if bytes_read >= BODY_BYTES_READ {
                return BodyEnd::NotReached;
            }
            let Some(frame) = body.frame().await else { break };
            let Ok(frame) = frame else { return BodyEnd::NotReached };
            let Some(data) = frame.data_ref() else { continue };
            bytes_read += data.len();
            let room = BODY_BYTES_KEPT - self.body.len();
            self.body.extend_from_slice(&data[..data.len().min(room)]);
        }
        self.whole = bytes_read == self.body.len();
        BodyEnd::Reached
    }

    pub(super) fn into_result(self, duration: Duration) -> AttemptResult {
        let succeeded = self.status.is_success();
        AttemptResult {
            outcome: if succeeded { AttemptOutcome::Succeeded } else { AttemptOutcome::HttpError },
            duration,
            status: self.status.as_u16(),
            response_headers: self.headers,
            response_body: self.body.into(),
            response_truncated: !self.whole,
            error: if succeeded { String::new() } else { status_words(self.status) },
            retry_after: self.retry_after,
        }
    }
}

/// `HTTP 503: Service Unavailable`, with the registered reason, not the receiver's own.
fn status_words(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("HTTP {}: {reason}", status.as_u16()),
        None => format!("HTTP {}", status.as_u16()),
    }
}

fn kept_headers(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut room = HEADERS_BYTES_MAX;
    headers
        .iter()
        .take(HEADERS_MAX)
        .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .take_while(|(name, value)| {
            let left = room.checked_sub(name.len() + value.len());
            room = left.unwrap_or(0);
            left.is_some()
        })
        .collect()
}

fn asked_wait(value: &HeaderValue, now: Timestamp) -> Option<Duration> {
    retry_after::parse(value.to_str().ok()?, now)
}

/// Why a request brought no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    outcome: AttemptOutcome,
    error: Cow<'static, str>,
}

impl Failure {
    /// The deadline passed before a status was read.
    pub(super) fn timeout(limit: Duration) -> Self {
        let error = format!("timeout: no answer within {} s", limit.as_secs_f64());
        Self { outcome: AttemptOutcome::Timeout, error: error.into() }
    }

    /// There is no connection.
    pub(super) fn of_connecting(error: &(dyn Error + 'static)) -> Self {
        if let Some(error) = causes(error).find_map(|cause| cause.downcast_ref::<DialError>()) {
            return Self { outcome: dial_outcome(*error), error: error.to_string().into() };
        }
        // The guard had connected, so it was the handshake.
        Self::of_tls(error).unwrap_or_else(|| Self::tls("TLS handshake failed: the connection was closed"))
    }

    /// The connection brought no answer.
    pub(super) fn of_exchange(error: &hyper::Error) -> Self {
        // An alert may come after our part of the handshake, where a receiver wants a certificate of us.
        Self::of_tls(error).unwrap_or_else(|| {
            let words = match causes(error).any(|cause| cause.is::<TooMuch>()) {
                true => "more came than is read, and no answer in it",
                false => protocol_words(error),
            };
            Self { outcome: AttemptOutcome::ProtocolError, error: words.into() }
        })
    }

    fn of_tls(error: &(dyn Error + 'static)) -> Option<Self> {
        causes(error).find_map(|cause| cause.downcast_ref::<rustls::Error>()).map(|error| Self::tls(tls_words(error)))
    }

    /// What an endpoint's connections are to be secured with cannot be used.
    pub(super) fn of_options() -> Self {
        Self::tls("TLS cannot be set up with the endpoint's certificates")
    }

    fn tls(words: &'static str) -> Self {
        Self { outcome: AttemptOutcome::TlsFailed, error: words.into() }
    }

    pub(super) fn into_result(self, duration: Duration) -> AttemptResult {
        AttemptResult {
            outcome: self.outcome,
            duration,
            status: 0,
            response_headers: Vec::new(),
            response_body: Bytes::new(),
            response_truncated: false,
            error: self.error.into_owned(),
            retry_after: None,
        }
    }
}

/// An error and what caused it, outermost first. An `io::Error` hides the error it was made of from `source`.
fn causes<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    })
}

const fn dial_outcome(error: DialError) -> AttemptOutcome {
    match error {
        DialError::PlainHttp | DialError::Forbidden(_) => AttemptOutcome::Blocked,
        DialError::Unresolved => AttemptOutcome::DnsFailed,
        DialError::Unreachable(_) | DialError::ProxyUnreachable | DialError::ProxyRefused => {
            AttemptOutcome::ConnectFailed
        }
    }
}

const fn tls_words(error: &rustls::Error) -> &'static str {
    use CertificateError::*;
    match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            Expired | ExpiredContext { .. } => "TLS handshake failed: certificate expired",
            NotValidYet | NotValidYetContext { .. } => "TLS handshake failed: certificate not valid yet",
            NotValidForName | NotValidForNameContext { .. } => "TLS handshake failed: certificate of another host",
            UnknownIssuer => "TLS handshake failed: certificate of an unknown issuer",
            Revoked => "TLS handshake failed: certificate revoked",
            _ => "TLS handshake failed: certificate not acceptable",
        },
        rustls::Error::AlertReceived(_) => "TLS handshake failed: the receiver refused it",
        rustls::Error::PeerIncompatible(_) => "TLS handshake failed: no protocol version or cipher in common",
        rustls::Error::InvalidMessage(_) => "TLS handshake failed: what came was not TLS",
        _ => "TLS handshake failed",
    }
}

fn protocol_words(error: &hyper::Error) -> &'static str {
    if error.is_parse() {
        "what came was not a valid HTTP response"
    } else if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        "the connection was closed before an answer came"
    } else {
        "the connection broke before an answer came"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_is_no_text_asks_for_none() {
        let obscure = HeaderValue::from_bytes(b"12\xff").expect("header value");
        assert_eq!(asked_wait(&obscure, Timestamp::from_micros(0)), None);
        assert_eq!(
            asked_wait(&HeaderValue::from_static("12"), Timestamp::from_micros(0)),
            Some(Duration::from_secs(12))
        );
    }

    #[test]
    fn headers_are_kept_up_to_both_bounds() {
        let mut headers = HeaderMap::new();
        for n in 0..70 {
            headers.append("x-many", HeaderValue::from(n));
        }
        assert_eq!(kept_headers(&headers).len(), HEADERS_MAX);
        let mut headers = HeaderMap::new();
        headers.append("a", HeaderValue::from_bytes(b"\xff").expect("header value"));
        headers.append("b", HeaderValue::from_str(&"x".repeat(HEADERS_BYTES_MAX)).expect("header value"));
        assert_eq!(kept_headers(&headers), [("a".to_owned(), "\u{fffd}".to_owned())]);
    }

    #[test]
    fn failures_are_worded_for_people() {
        assert_eq!(status_words(StatusCode::SERVICE_UNAVAILABLE), "HTTP 503: Service Unavailable");
        assert_eq!(StatusCode::from_u16(799).map(status_words).ok().as_deref(), Some("HTTP 799"));
        assert_eq!(Failure::timeout(Duration::from_secs(30)).error, "timeout: no answer within 30 s");
        assert_eq!(Failure::timeout(Duration::from_millis(1_500)).error, "timeout: no answer within 1.5 s");
    }

    #[test]
    fn an_io_error_hides_no_cause() {
        let error = io::Error::other(io::Error::other(rustls::Error::DecryptError));
        assert!(causes(&error).any(|cause| cause.is::<rustls::Error>()));
    }
}
