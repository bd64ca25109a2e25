//! Signing a request and verifying one: HMAC-SHA256 over the bytes each scheme names.
//!
//! Sources: the Standard Webhooks specification; Stripe's `t=…,v1=…` form for TIMESTAMPED.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::endpoint::SignatureScheme;
use super::secret::Secret;

/// The header of the schemes whose signature is ours alone.
pub const SIGNATURE_HEADER: &str = "x-webhook-signature";
/// Standard Webhooks' header of the message id.
pub const STANDARD_ID_HEADER: &str = "webhook-id";
/// Standard Webhooks' header of the unix time.
pub const STANDARD_TIMESTAMP_HEADER: &str = "webhook-timestamp";
/// Standard Webhooks' header of the signatures.
pub const STANDARD_SIGNATURE_HEADER: &str = "webhook-signature";

/// How far a signed time may be from the verifier's clock, in seconds.
pub const TOLERANCE_SECONDS: i64 = 300;

/// The keys an endpoint's requests are signed with, prepared once: an HMAC state for each secret still valid, newest first.
#[derive(Clone)]
pub struct Signer {
    scheme: SignatureScheme,
    keys: Vec<Hmac<Sha256>>,
}

/// Headers that carry a signature: names in lower case.
pub type SignatureHeaders = Vec<(&'static str, String)>;

impl Signer {
    /// Prepares the keys of `secrets`, newest first.
    pub fn new<'a>(scheme: SignatureScheme, secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let keys =
            secrets.into_iter().filter_map(|secret| Hmac::new_from_slice(&secret.hmac_key(scheme)).ok()).collect();
        Self { scheme, keys }
    }

    /// Signs one attempt of `message_id` (the event id) at `unix_seconds`.
    pub fn sign(&self, message_id: &str, unix_seconds: i64, body: &[u8]) -> SignatureHeaders {
        match self.scheme {
            SignatureScheme::Timestamped => {
                let signed_time = unix_seconds.to_string();
                let mut value = format!("t={signed_time}");
                for key in &self.keys {
                    value.push_str(",v1=");
                    push_hex(&mut value, &mac(key, &[signed_time.as_bytes(), b".", body]));
                }
                vec![(SIGNATURE_HEADER, value)]
            }
            SignatureScheme::StandardWebhooks => {
                let signed_time = unix_seconds.to_string();
                let mut value = String::new();
                for key in &self.keys {
                    let separator = if value.is_empty() { "v1," } else { " v1," };
                    value.push_str(separator);
                    let tag = mac(key, &[message_id.as_bytes(), b".", signed_time.as_bytes(), b".", body]);
                    BASE64.encode_string(tag, &mut value);
                }
                vec![
                    (STANDARD_ID_HEADER, message_id.to_owned()),
                    (STANDARD_TIMESTAMP_HEADER, signed_time),
                    (STANDARD_SIGNATURE_HEADER, value),
                ]
            }
        }
    }
}

/// Why a request's signature was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// A header the scheme needs is not there.
    #[error("the signature header is missing")]
    Missing,
    /// A header is there but cannot be read.
    #[error("the signature header is malformed")]
    Malformed,
    /// The signed time is too far from now.
    #[error("the signed time is more than 5 minutes from now")]
    Stale,
    /// No signature fits the body and secret.
    #[error("no signature matches")]
    Mismatch,
}

/// Verifies a received request: `header` looks a header up by its lower-case name, `now` is in unix seconds.
pub fn verify<'h>(
    scheme: SignatureScheme,
    secret: &Secret,
    header: impl Fn(&str) -> Option<&'h str>,
    body: &[u8],
    now: i64,
) -> Result<(), Rejected> {
    let key = Hmac::new_from_slice(&secret.hmac_key(scheme)).map_err(|_| Rejected::Mismatch)?;
    let (time, tag, offered): (i64, [u8; 32], Vec<Vec<u8>>) = match scheme {
        SignatureScheme::Timestamped => {
            let value = header(SIGNATURE_HEADER).ok_or(Rejected::Missing)?;
            let parts = || value.split(',').filter_map(|part| part.split_once('='));
            let time = parts().find(|(name, _)| *name == "t").ok_or(Rejected::Malformed)?.1;
            let offered = parts().filter(|(name, _)| *name == "v1").filter_map(|(_, hex)| from_hex(hex)).collect();
            (parse_time(time)?, mac(&key, &[time.as_bytes(), b".", body]), offered)
        }
        SignatureScheme::StandardWebhooks => {
            let id = header(STANDARD_ID_HEADER).ok_or(Rejected::Missing)?;
            let time = header(STANDARD_TIMESTAMP_HEADER).ok_or(Rejected::Missing)?;
            let value = header(STANDARD_SIGNATURE_HEADER).ok_or(Rejected::Missing)?;
            let tagged = value.split(' ').filter_map(|part| part.strip_prefix("v1,"));
            let offered = tagged.filter_map(|encoded| BASE64.decode(encoded).ok()).collect();
            (parse_time(time)?, mac(&key, &[id.as_bytes(), b".", time.as_bytes(), b".", body]), offered)
        }
    };
    if time.abs_diff(now) > TOLERANCE_SECONDS.unsigned_abs() {
        return Err(Rejected::Stale);
    }
    let matched = offered.iter().any(|candidate| bool::from(candidate.as_slice().ct_eq(&tag)));
    if matched { Ok(()) } else { Err(Rejected::Mismatch) }
}

fn parse_time(text: &str) -> Result<i64, Rejected> {
    text.parse().map_err(|_| Rejected::Malformed)
}

fn mac(key: &Hmac<Sha256>, parts: &[&[u8]]) -> [u8; 32] {
    let mut state = key.clone();
    for part in parts {
        state.update(part);
    }
    state.finalize().into_bytes().into()
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)].into());
        text.push(DIGITS[usize::from(byte & 15)].into());
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"test": 2432232314}"#;

    fn lookup<'h>(headers: &'h SignatureHeaders) -> impl Fn(&str) -> Option<&'h str> {
        move |wanted| headers.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.as_str())
    }

    #[test]
    fn signs_the_standard_webhooks_reference_vector() {
        let secret = Secret::from_stored("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned());
        let signer = Signer::new(SignatureScheme::StandardWebhooks, [&secret]);
        let headers = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, BODY);
        assert_eq!(
            lookup(&headers)(STANDARD_SIGNATURE_HEADER),
            Some("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")
        );
    }

    #[test]
    fn every_scheme_verifies_what_it_signed_and_nothing_else() {
        let (secret, old) = (Secret::from_random(&[1; 32]), Secret::from_random(&[2; 32]));
        for scheme in [SignatureScheme::Timestamped, SignatureScheme::StandardWebhooks] {
            let headers = Signer::new(scheme, [&secret, &old]).sign("evt_1", 1_000, BODY);
            for valid in [&secret, &old] {
                assert_eq!(verify(scheme, valid, lookup(&headers), BODY, 1_300), Ok(()));
            }
            assert_eq!(verify(scheme, &secret, lookup(&headers), b"{}", 1_000), Err(Rejected::Mismatch));
            assert_eq!(verify(scheme, &secret, lookup(&headers), BODY, 1_301), Err(Rejected::Stale));
            assert_eq!(verify(scheme, &secret, lookup(&headers), BODY, 699), Err(Rejected::Stale));
            let stranger = Secret::from_random(&[3; 32]);
            assert_eq!(verify(scheme, &stranger, lookup(&headers), BODY, 1_000), Err(Rejected::Mismatch));
            assert_eq!(verify(scheme, &secret, |_| None, BODY, 1_000), Err(Rejected::Missing));
        }
    }
}
