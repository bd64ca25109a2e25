//! What a request's signature is worth. The rules are the domain's; here is only which secret and scheme to try.

use http::HeaderMap;

use crate::domain::endpoint::SignatureScheme;
use crate::domain::secret::Secret;
use crate::domain::signature::{self, Rejected, SIGNATURE_HEADER, STANDARD_SIGNATURE_HEADER};

/// What a request's signature is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A secret and scheme fit.
    Good,
    /// None does.
    Bad(Rejected),
    /// There was no secret to check with, or the body was not read.
    Unchecked,
}

impl Verdict {
    /// One word: `ok`, `bad`, `unchecked`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Bad(_) => "bad",
            Self::Unchecked => "unchecked",
        }
    }

    /// Why it is bad.
    pub const fn reason(self) -> Option<Rejected> {
        match self {
            Self::Bad(rejected) => Some(rejected),
            _ => None,
        }
    }
}

/// Judges a request: one secret that fits is enough. Without a `scheme` each one whose header is there is tried.
pub(super) fn judge(
    secrets: &[Secret],
    scheme: Option<SignatureScheme>,
    headers: &HeaderMap,
    body: &[u8],
    now: i64,
) -> Verdict {
    let schemes = [
        (SignatureScheme::StandardWebhooks, STANDARD_SIGNATURE_HEADER),
        (SignatureScheme::Timestamped, SIGNATURE_HEADER),
    ];
    let tried = |candidate, header| scheme.map_or_else(|| headers.contains_key(header), |only| only == candidate);
    // A value that is not text is there, and malformed.
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());

    let mut verdict = if secrets.is_empty() { Verdict::Unchecked } else { Verdict::Bad(Rejected::Missing) };
    for (candidate, _) in schemes.into_iter().filter(|(candidate, header)| tried(*candidate, *header)) {
        for secret in secrets {
            match signature::verify(candidate, secret, header, body, now) {
                Ok(()) => return Verdict::Good,
                Err(rejected) => verdict = Verdict::Bad(rejected),
            }
        }
    }
    verdict
}
