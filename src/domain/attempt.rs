//! One request to an endpoint and what came of it.

use std::time::Duration;

use bytes::Bytes;

use super::endpoint::stored_enum;
use super::time::Timestamp;

/// What came of an attempt. The discriminants are the contract's and the database's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttemptOutcome {
    /// A 2xx status.
    Succeeded = 1,
    /// Another status.
    HttpError = 2,
    /// The deadline passed.
    Timeout = 3,
    /// The host's name did not resolve.
    DnsFailed = 4,
    /// No connection could be made.
    ConnectFailed = 5,
    /// The TLS handshake failed.
    TlsFailed = 6,
    /// The connection broke or what came was not HTTP.
    ProtocolError = 7,
    /// The egress guard forbade the address.
    Blocked = 8,
    /// The worker died or lost its lease before the result was on record.
    Lost = 9,
}

stored_enum!(AttemptOutcome {
    Succeeded,
    HttpError,
    Timeout,
    DnsFailed,
    ConnectFailed,
    TlsFailed,
    ProtocolError,
    Blocked,
    Lost
});

impl AttemptOutcome {
    /// As logs, metrics and traces call it: the contract's name without its prefix, in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::HttpError => "http_error",
            Self::Timeout => "timeout",
            Self::DnsFailed => "dns_failed",
            Self::ConnectFailed => "connect_failed",
            Self::TlsFailed => "tls_failed",
            Self::ProtocolError => "protocol_error",
            Self::Blocked => "blocked",
            Self::Lost => "lost",
        }
    }
}

/// Why an attempt was made. The discriminants are the contract's and the database's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptTrigger {
    /// Its time had come.
    Schedule = 1,
    /// RetryDelivery asked for it.
    Manual = 2,
    /// To see whether an endpoint is back whose circuit was open.
    Probe = 3,
    /// A replay asked for it.
    Replay = 4,
    /// TestEndpoint asked for it; such an attempt is of no delivery.
    Test = 5,
}

stored_enum!(AttemptTrigger { Schedule, Manual, Probe, Replay, Test });

/// What the egress reports of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptResult {
    /// What came of it.
    pub outcome: AttemptOutcome,
    /// From the start of name resolution to the end of the body (or the failure).
    pub duration: Duration,
    /// The response's status, 0 where none came.
    pub status: u16,
    /// The response's headers as received, lossily as text, bounded in number and size.
    pub response_headers: Vec<(String, String)>,
    /// The first [`BODY_BYTES_KEPT`] bytes of the response's body.
    pub response_body: Bytes,
    /// Whether there was more body than is kept.
    pub response_truncated: bool,
    /// In words what went wrong; empty on success. Leaks nothing of resolver or network.
    pub error: String,
    /// The response's Retry-After, clamped to [`RETRY_AFTER_MAX`]; only read on 429 and 503.
    pub retry_after: Option<Duration>,
}

/// How much of a response's body is read at most.
pub const BODY_BYTES_READ: usize = 16 * 1024;
/// How much of a response's body is kept.
pub const BODY_BYTES_KEPT: usize = 10 * 1024;
/// The longest Retry-After that is honoured.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// An attempt as the history shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// 1 is the first.
    pub number: u32,
    /// Why it was made.
    pub trigger: AttemptTrigger,
    /// What came of it; `None` while it is in flight.
    pub outcome: Option<AttemptOutcome>,
    /// When it was claimed to be sent.
    pub start_time: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// Where it was sent, without user information and query.
    pub url: String,
    /// The response's status, 0 where none came.
    pub status: u16,
    /// The response's headers.
    pub response_headers: Vec<(String, String)>,
    /// The kept part of the response's body.
    pub response_body: Bytes,
    /// Whether there was more body than is kept.
    pub response_truncated: bool,
    /// In words what went wrong.
    pub error: String,
    /// When the next attempt was scheduled, if one was.
    pub next_attempt_time: Option<Timestamp>,
    /// The replica that made it.
    pub replica_id: String,
}
