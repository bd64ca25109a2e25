//! Verifying a received request, as every receiver should: over the bytes as they came, in constant time, and where the
//! scheme signs a time, within five minutes of it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::Signature;
use hmac::{Hmac, KeyInit};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::Problem;
use super::endpoint::SignatureScheme;
use super::secret::{PublicKey, Secret};
use super::signature::{
    SIGNATURE_HEADER, STANDARD_ID_HEADER, STANDARD_SIGNATURE_HEADER, STANDARD_TIMESTAMP_HEADER, mac,
};

/// How far a signed time may be from the verifier's clock, in seconds.
pub const TOLERANCE_SECONDS: i64 = 300;

/// What a receiver verifies with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verifier {
    /// The secret that signs by HMAC.
    Secret(Secret),
    /// The public half of the key that signs by Ed25519.
    PublicKey(PublicKey),
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

impl Verifier {
    /// Parses what somebody verifies with: a secret for `scheme` (for any, where it is not known), `whpk_…`, or the
    /// `whsk_…` it is the public half of.
    pub fn parse(text: &str, scheme: Option<SignatureScheme>) -> Result<Self, Problem> {
        let is_wanted = |is_ed25519| scheme.is_none_or(|scheme| scheme.is_ed25519() == is_ed25519);
        if let Some(key) = PublicKey::parse(text).filter(|_| is_wanted(true)) {
            return Ok(Self::PublicKey(key));
        }
        match Secret::parse(text, SignatureScheme::StandardWebhooksEd25519) {
            Ok(key) if is_wanted(true) => Ok(key.into()),
            Err(_) if scheme.is_some_and(SignatureScheme::is_ed25519) => {
                Err(Problem::new("is no key for this scheme; allowed is whpk_ followed by the base64 of 32 bytes"))
            }
            _ => Secret::parse(text, scheme.unwrap_or(SignatureScheme::Timestamped)).map(Self::Secret),
        }
    }
}

impl From<Secret> for Verifier {
    /// What verifies that secret's signatures.
    fn from(secret: Secret) -> Self {
        match secret.public_key() {
            Some(key) => Self::PublicKey(key),
            None => Self::Secret(secret),
        }
    }
}

/// The schemes that a request is signed by, as far as the form of its headers tells.
pub fn schemes_of<'h>(header: impl Fn(&str) -> Option<&'h str>) -> Vec<SignatureScheme> {
    let mut schemes = Vec::new();
    if let Some(value) = header(STANDARD_SIGNATURE_HEADER) {
        let is_ed25519 = value.split(' ').any(|part| part.starts_with("v1a,"));
        let is_hmac = value.split(' ').any(|part| part.starts_with("v1,"));
        schemes.extend(is_ed25519.then_some(SignatureScheme::StandardWebhooksEd25519));
        schemes.extend((is_hmac || !is_ed25519).then_some(SignatureScheme::StandardWebhooks));
    }
    schemes.extend(header(SIGNATURE_HEADER).map(|value| match value {
        _ if value.starts_with("sha256=") => SignatureScheme::BodySha256,
        _ if from_hex(value).is_some_and(|bytes| bytes.len() == 32) => SignatureScheme::BodyHex,
        _ => SignatureScheme::Timestamped,
    }));
    schemes
}

/// Verifies a received request: `header` looks a header up by its lower-case name, `now` is in unix seconds.
pub fn verify<'h>(
    scheme: SignatureScheme,
    verifier: &Verifier,
    header: impl Fn(&str) -> Option<&'h str>,
    body: &[u8],
    now: i64,
) -> Result<(), Rejected> {
    let needed = |name| header(name).ok_or(Rejected::Missing);
    match scheme {
        SignatureScheme::Timestamped => {
            let value = needed(SIGNATURE_HEADER)?;
            let parts = || value.split(',').filter_map(|part| part.split_once('='));
            let time = parts().find(|(name, _)| *name == "t").ok_or(Rejected::Malformed)?.1;
            check_time(time, now)?;
            let offered = parts().filter(|(name, _)| *name == "v1").filter_map(|(_, hex)| from_hex(hex));
            verifier.check_hmac(scheme, &[time.as_bytes(), b".", body], offered)
        }
        SignatureScheme::BodySha256 => {
            let hex = needed(SIGNATURE_HEADER)?.strip_prefix("sha256=").ok_or(Rejected::Malformed)?;
            verifier.check_hmac(scheme, &[body], [from_hex(hex).ok_or(Rejected::Malformed)?])
        }
        SignatureScheme::BodyHex => {
            let tag = from_hex(needed(SIGNATURE_HEADER)?).ok_or(Rejected::Malformed)?;
            verifier.check_hmac(scheme, &[body], [tag])
        }
        SignatureScheme::StandardWebhooks | SignatureScheme::StandardWebhooksEd25519 => {
            let (id, time) = (needed(STANDARD_ID_HEADER)?, needed(STANDARD_TIMESTAMP_HEADER)?);
            let value = needed(STANDARD_SIGNATURE_HEADER)?;
            check_time(time, now)?;
            let tag = if scheme.is_ed25519() { "v1a," } else { "v1," };
            let offered = value.split(' ').filter_map(|part| BASE64.decode(part.strip_prefix(tag)?).ok());
            let signed = [id.as_bytes(), b".", time.as_bytes(), b".", body];
            match scheme.is_ed25519() {
                true => verifier.check_ed25519(&signed, offered),
                false => verifier.check_hmac(scheme, &signed, offered),
            }
        }
    }
}

impl Verifier {
    fn check_hmac(
        &self,
        scheme: SignatureScheme,
        signed: &[&[u8]],
        offered: impl IntoIterator<Item = Vec<u8>>,
    ) -> Result<(), Rejected> {
        let Self::Secret(secret) = self else { return Err(Rejected::Mismatch) };
        let key: Hmac<Sha256> = Hmac::new_from_slice(&secret.hmac_key(scheme)).map_err(|_| Rejected::Mismatch)?;
        let tag = mac(&key, signed);
        let is_tag = |candidate: Vec<u8>| bool::from(candidate.as_slice().ct_eq(&tag));
        if offered.into_iter().any(is_tag) { Ok(()) } else { Err(Rejected::Mismatch) }
    }

    fn check_ed25519(&self, signed: &[&[u8]], offered: impl IntoIterator<Item = Vec<u8>>) -> Result<(), Rejected> {
        let Self::PublicKey(public) = self else { return Err(Rejected::Mismatch) };
        let message = signed.concat();
        let is_signature = |candidate: Vec<u8>| {
            Signature::from_slice(&candidate)
                .is_ok_and(|signature| public.key().verify_strict(&message, &signature).is_ok())
        };
        if offered.into_iter().any(is_signature) { Ok(()) } else { Err(Rejected::Mismatch) }
    }
}

fn check_time(text: &str, now: i64) -> Result<(), Rejected> {
    let time: i64 = text.parse().map_err(|_| Rejected::Malformed)?;
    if time.abs_diff(now) > TOLERANCE_SECONDS.unsigned_abs() { Err(Rejected::Stale) } else { Ok(()) }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::secret::SigningSecret;
    use crate::domain::signature::{SignatureHeaders, Signer};
    use crate::domain::time::Timestamp;

    const BODY: &[u8] = br#"{"a":1}"#;
    const SIGNED_AT: i64 = 1_000;

    fn lookup<'h>(headers: &'h SignatureHeaders) -> impl Fn(&str) -> Option<&'h str> {
        move |wanted| headers.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.as_str())
    }

    #[test]
    fn every_scheme_verifies_what_it_signed_and_nothing_else() {
        for number in 1..=5 {
            let scheme = SignatureScheme::from_number(number).expect("a scheme");
            let has_time = !matches!(scheme, SignatureScheme::BodySha256 | SignatureScheme::BodyHex);
            let make = if scheme.is_ed25519() { Secret::from_seed } else { Secret::from_random };
            let [new, old, stranger] = [1, 2, 3].map(|seed| make(&[seed; 32]));
            let signing = [new.clone(), old.clone()].map(|secret| SigningSecret { secret, scheme, expire_time: None });
            let headers = Signer::of(&signing).sign("evt_1", Timestamp::from_micros(SIGNED_AT * 1_000_000), BODY);
            assert_eq!(schemes_of(lookup(&headers)), [scheme]);

            let check = |secret: &Secret, body: &[u8], now| {
                verify(scheme, &Verifier::from(secret.clone()), lookup(&headers), body, now)
            };
            let stale = if has_time { Err(Rejected::Stale) } else { Ok(()) };
            assert_eq!(check(&new, BODY, SIGNED_AT + 300), Ok(()), "{scheme:?}");
            assert_eq!(check(&new, BODY, SIGNED_AT + 301), stale, "{scheme:?}");
            assert_eq!(check(&new, BODY, SIGNED_AT - 301), stale, "{scheme:?}");
            assert_eq!(check(&old, BODY, SIGNED_AT).is_ok(), has_time, "{scheme:?}");
            assert_eq!(check(&new, b"{}", SIGNED_AT), Err(Rejected::Mismatch), "{scheme:?}");
            assert_eq!(check(&stranger, BODY, SIGNED_AT), Err(Rejected::Mismatch), "{scheme:?}");
            let missing = verify(scheme, &Verifier::from(new), |_| None, BODY, SIGNED_AT);
            assert_eq!(missing, Err(Rejected::Missing), "{scheme:?}");
        }
    }

    #[test]
    fn malformed_headers_are_told_from_wrong_ones() {
        let secret = Verifier::Secret(Secret::from_stored("a-secret-of-our-own".to_owned()));
        for (scheme, value, rejected) in [
            (SignatureScheme::Timestamped, "nonsense", Rejected::Malformed),
            (SignatureScheme::Timestamped, "t=x,v1=00", Rejected::Malformed),
            (SignatureScheme::Timestamped, "t=1000,v1=+1", Rejected::Mismatch),
            (SignatureScheme::BodySha256, "0a", Rejected::Malformed),
            (SignatureScheme::BodySha256, "sha256=0", Rejected::Malformed),
            (SignatureScheme::BodyHex, "sha256=00", Rejected::Malformed),
            (SignatureScheme::BodyHex, "", Rejected::Mismatch),
        ] {
            assert_eq!(verify(scheme, &secret, |_| Some(value), BODY, SIGNED_AT), Err(rejected), "{value}");
        }
    }

    #[test]
    fn what_verifies_is_read_by_its_form() {
        let ed25519 = SignatureScheme::StandardWebhooksEd25519;
        let key = Secret::from_seed(&[1; 32]);
        let public = key.public_key().expect("a key");
        for scheme in [None, Some(ed25519)] {
            for text in [key.expose(), &public.to_string()] {
                assert_eq!(Verifier::parse(text, scheme), Ok(Verifier::PublicKey(public)));
            }
        }
        let own = "a-secret-of-our-own";
        assert_eq!(Verifier::parse(own, None), Ok(Verifier::Secret(Secret::from_stored(own.to_owned()))));
        for (text, scheme) in [
            (own, Some(ed25519)),
            (own, Some(SignatureScheme::StandardWebhooks)),
            (key.expose(), Some(SignatureScheme::BodyHex)),
            (&public.to_string(), Some(SignatureScheme::BodyHex)),
            ("short", None),
        ] {
            assert!(Verifier::parse(text, scheme).is_err(), "{text} {scheme:?}");
        }
    }
}
