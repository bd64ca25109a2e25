//! What a request's signature is worth. The rules are the domain's; here is only which secret and scheme to try.

use http::HeaderMap;

use crate::domain::endpoint::SignatureScheme;
use crate::domain::signature::SIGNATURE_HEADER;
use crate::domain::verification::{Rejected, Verifier, schemes_of, verify};

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

/// Judges a request: one secret that fits is enough. Without a `scheme` each one that its headers show is tried.
pub(super) fn judge(
    verifiers: &[Verifier],
    scheme: Option<SignatureScheme>,
    headers: &HeaderMap,
    body: &[u8],
    now: i64,
) -> Verdict {
    // A value that is not text is there, and malformed.
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let schemes = scheme.map_or_else(|| schemes_of(header), |only| vec![only]);
    let mut verdict =
        if verifiers.is_empty() { Verdict::Unchecked } else { Verdict::Bad(Rejected::Missing(SIGNATURE_HEADER)) };
    for scheme in schemes {
        for verifier in verifiers {
            match verify(scheme, verifier, header, body, now) {
                Ok(()) => return Verdict::Good,
                Err(rejected) => verdict = Verdict::Bad(rejected),
            }
        }
    }
    verdict
}
