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
    #[error("the header {0} is missing")]
    Missing(&'static str),
    /// A header is there but cannot be read.
    #[error("the header {0} is malformed")]
    Malformed(&'static str),
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
    let presented = Presented::read(scheme, header)?;
    presented.check_time(now, TOLERANCE_SECONDS.unsigned_abs())?;
    presented.match_of(verifier, body).map(drop).ok_or(Rejected::Mismatch)
}

/// What a request's headers present under one scheme: signatures to be held against secrets, and what they sign beside
/// the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presented {
    scheme: SignatureScheme,
    /// The signed time in unix seconds, in the schemes that sign one.
    time: Option<i64>,
    /// The signed bytes before the body.
    prefix: Vec<u8>,
    /// As bytes; what is not encoded as the scheme says is none of them.
    signatures: Vec<Vec<u8>>,
}

impl Presented {
    /// Reads the headers of `scheme`, looked up by their lower-case names.
    pub fn read<'h>(scheme: SignatureScheme, header: impl Fn(&str) -> Option<&'h str>) -> Result<Self, Rejected> {
        let needed = |name| header(name).ok_or(Rejected::Missing(name));
        let malformed = Rejected::Malformed(SIGNATURE_HEADER);
        let unsigned_time = |signatures| Self { scheme, time: None, prefix: Vec::new(), signatures };
        match scheme {
            SignatureScheme::Timestamped => {
                let value = needed(SIGNATURE_HEADER)?;
                let parts = || value.split(',').filter_map(|part| part.split_once('='));
                let text = parts().find(|(name, _)| *name == "t").ok_or(malformed)?.1;
                let time = text.parse().map_err(|_| malformed)?;
                let prefix = [text.as_bytes(), b"."].concat();
                let signatures = parts().filter(|(name, _)| *name == "v1").filter_map(|(_, hex)| from_hex(hex));
                Ok(Self { scheme, time: Some(time), prefix, signatures: signatures.collect() })
            }
            SignatureScheme::BodySha256 => {
                let hex = needed(SIGNATURE_HEADER)?.strip_prefix("sha256=").ok_or(malformed)?;
                Ok(unsigned_time(vec![from_hex(hex).ok_or(malformed)?]))
            }
            SignatureScheme::BodyHex => Ok(unsigned_time(vec![from_hex(needed(SIGNATURE_HEADER)?).ok_or(malformed)?])),
            SignatureScheme::StandardWebhooks | SignatureScheme::StandardWebhooksEd25519 => {
                let (id, text) = (needed(STANDARD_ID_HEADER)?, needed(STANDARD_TIMESTAMP_HEADER)?);
                let value = needed(STANDARD_SIGNATURE_HEADER)?;
                let time = text.parse().map_err(|_| Rejected::Malformed(STANDARD_TIMESTAMP_HEADER))?;
                let prefix = [id.as_bytes(), b".", text.as_bytes(), b"."].concat();
                let tag = if scheme.is_ed25519() { "v1a," } else { "v1," };
                let signatures = value.split(' ').filter_map(|part| BASE64.decode(part.strip_prefix(tag)?).ok());
                Ok(Self { scheme, time: Some(time), prefix, signatures: signatures.collect() })
            }
        }
    }

    /// The signed time in unix seconds, in the schemes that sign one.
    pub const fn time(&self) -> Option<i64> {
        self.time
    }

    /// How many signatures there are.
    pub const fn signature_count(&self) -> usize {
        self.signatures.len()
    }

    /// Whether the signed time, where there is one, is within `tolerance` seconds of `now`.
    pub fn check_time(&self, now: i64, tolerance: u64) -> Result<(), Rejected> {
        let is_far = |time: i64| time.abs_diff(now) > tolerance;
        if self.time.is_some_and(is_far) { Err(Rejected::Stale) } else { Ok(()) }
    }

    /// Which of the signatures, counted from 0, is the verifier's over that body.
    pub fn match_of(&self, verifier: &Verifier, body: &[u8]) -> Option<usize> {
        let signed = [self.prefix.as_slice(), body];
        match (verifier, self.scheme.is_ed25519()) {
            (Verifier::Secret(secret), false) => {
                let key: Hmac<Sha256> = Hmac::new_from_slice(&secret.hmac_key(self.scheme)).ok()?;
                let tag = mac(&key, &signed);
                self.signatures.iter().position(|candidate| candidate.as_slice().ct_eq(&tag).into())
            }
            (Verifier::PublicKey(public), true) => {
                let message = signed.concat();
                let is_signature = |candidate: &Vec<u8>| {
                    Signature::from_slice(candidate)
                        .is_ok_and(|signature| public.key().verify_strict(&message, &signature).is_ok())
                };
                self.signatures.iter().position(is_signature)
            }
            _ => None,
        }
    }
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
            let first = headers[0].0;
            assert_eq!(missing, Err(Rejected::Missing(first)), "{scheme:?}");
        }
    }

    #[test]
    fn malformed_headers_are_told_from_wrong_ones() {
        let secret = Verifier::Secret(Secret::from_stored("a-secret-of-our-own".to_owned()));
        let malformed = Rejected::Malformed(SIGNATURE_HEADER);
        for (scheme, value, rejected) in [
            (SignatureScheme::Timestamped, "nonsense", malformed),
            (SignatureScheme::Timestamped, "t=x,v1=00", malformed),
            (SignatureScheme::Timestamped, "t=1000,v1=+1", Rejected::Mismatch),
            (SignatureScheme::BodySha256, "0a", malformed),
            (SignatureScheme::BodySha256, "sha256=0", malformed),
            (SignatureScheme::BodyHex, "sha256=00", malformed),
            (SignatureScheme::BodyHex, "", Rejected::Mismatch),
            (SignatureScheme::StandardWebhooks, "x", Rejected::Malformed(STANDARD_TIMESTAMP_HEADER)),
        ] {
            assert_eq!(verify(scheme, &secret, |_| Some(value), BODY, SIGNED_AT), Err(rejected), "{value}");
        }
    }

    #[test]
    fn the_signature_that_matches_is_told_by_its_place() {
        for scheme in [SignatureScheme::Timestamped, SignatureScheme::StandardWebhooksEd25519] {
            let make = if scheme.is_ed25519() { Secret::from_seed } else { Secret::from_random };
            let secrets = [1, 2, 3].map(|seed| make(&[seed; 32]));
            let signer = Signer::new(scheme, &secrets[..2]);
            let headers = signer.sign("evt_1", Timestamp::from_micros(SIGNED_AT * 1_000_000), BODY);
            let presented = Presented::read(scheme, lookup(&headers)).expect("its headers");
            assert_eq!((presented.time(), presented.signature_count()), (Some(SIGNED_AT), 2));
            let places = secrets.map(|secret| presented.match_of(&secret.into(), BODY));
            assert_eq!(places, [Some(0), Some(1), None]);
            assert_eq!(presented.check_time(SIGNED_AT + 61, 60), Err(Rejected::Stale));
            assert_eq!(presented.check_time(SIGNED_AT + 60, 60), Ok(()));
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
