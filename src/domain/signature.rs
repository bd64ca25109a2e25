//! Signing a request: HMAC-SHA256 or Ed25519 over the bytes each scheme names, by every secret that is still valid.
//!
//! Sources: the Standard Webhooks specification; Stripe's `t=…,v1=…` form for TIMESTAMPED; RFC 8032 for Ed25519.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signer as _, SigningKey};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::endpoint::SignatureScheme;
use super::secret::{Secret, SigningSecret};
use super::time::Timestamp;

/// The header of the schemes whose signature is ours alone.
pub const SIGNATURE_HEADER: &str = "x-webhook-signature";
/// Standard Webhooks' header of the message id.
pub const STANDARD_ID_HEADER: &str = "webhook-id";
/// Standard Webhooks' header of the unix time.
pub const STANDARD_TIMESTAMP_HEADER: &str = "webhook-timestamp";
/// Standard Webhooks' header of the signatures.
pub const STANDARD_SIGNATURE_HEADER: &str = "webhook-signature";

/// Of an HMAC-SHA256.
const MAC_BYTES: usize = 32;
/// Room for `t=…,v1=…` with one signature, until the year 2286.
const TIMESTAMPED_BYTES: usize = "t=1234567890,v1=".len() + 2 * MAC_BYTES;

/// The keys an endpoint's requests are signed with, prepared once, newest first.
#[derive(Clone)]
pub struct Signer {
    keys: Vec<Key>,
}

#[derive(Clone)]
struct Key {
    scheme: SignatureScheme,
    expire_time: Option<Timestamp>,
    material: Material,
}

#[derive(Clone)]
enum Material {
    /// An HMAC state that is cloned for each message.
    Hmac(Hmac<Sha256>),
    Ed25519(Box<SigningKey>),
}

/// Headers that carry a signature: names in lower case.
pub type SignatureHeaders = Vec<(&'static str, String)>;

impl Signer {
    /// Prepares the keys of `secrets` that do not expire, newest first.
    pub fn new<'s>(scheme: SignatureScheme, secrets: impl IntoIterator<Item = &'s Secret>) -> Self {
        Self { keys: secrets.into_iter().filter_map(|secret| Key::of(scheme, secret, None)).collect() }
    }

    /// Prepares the keys of an endpoint's secrets, newest first.
    pub fn of<'s>(secrets: impl IntoIterator<Item = &'s SigningSecret>) -> Self {
        let prepare = |one: &SigningSecret| Key::of(one.scheme, &one.secret, one.expire_time);
        Self { keys: secrets.into_iter().filter_map(prepare).collect() }
    }

    /// Signs one attempt of `message_id` (the event id) at `now`, by which expired secrets have ceased to sign.
    pub fn sign(&self, message_id: &str, now: Timestamp, body: &[u8]) -> SignatureHeaders {
        let signed_time = now.seconds().to_string();
        let mut ours = Ours { scheme: None, value: String::new() };
        let mut standard = String::new();
        for key in self.keys.iter().filter(|key| key.expire_time.is_none_or(|end| end > now)) {
            match key.scheme {
                SignatureScheme::StandardWebhooks | SignatureScheme::StandardWebhooksEd25519 => {
                    let signed = [message_id.as_bytes(), b".", signed_time.as_bytes(), b".", body];
                    key.material.push_standard(&mut standard, &signed);
                }
                scheme => ours.push(scheme, &signed_time, body, &key.material),
            }
        }
        let mut headers = Vec::with_capacity(if standard.is_empty() { 1 } else { 4 });
        if !ours.value.is_empty() {
            headers.push((SIGNATURE_HEADER, ours.value));
        }
        if !standard.is_empty() {
            headers.push((STANDARD_ID_HEADER, message_id.to_owned()));
            headers.push((STANDARD_TIMESTAMP_HEADER, signed_time));
            headers.push((STANDARD_SIGNATURE_HEADER, standard));
        }
        headers
    }
}

impl Key {
    /// `None` where the secret is no key for the scheme, which no checked one is.
    fn of(scheme: SignatureScheme, secret: &Secret, expire_time: Option<Timestamp>) -> Option<Self> {
        let material = match scheme.is_ed25519() {
            true => Material::Ed25519(Box::new(secret.ed25519_key()?)),
            false => Material::Hmac(Hmac::new_from_slice(&secret.hmac_key(scheme)).ok()?),
        };
        Some(Self { scheme, expire_time, material })
    }
}

impl Material {
    fn push_standard(&self, value: &mut String, signed: &[&[u8]]) {
        if !value.is_empty() {
            value.push(' ');
        }
        match self {
            Self::Hmac(key) => {
                value.push_str("v1,");
                BASE64.encode_string(mac(key, signed), value);
            }
            Self::Ed25519(key) => {
                value.push_str("v1a,");
                BASE64.encode_string(key.sign(&signed.concat()).to_bytes(), value);
            }
        }
    }

    fn push_hex(&self, value: &mut String, signed: &[&[u8]]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        if let Self::Hmac(key) = self {
            let mut hex = [0; 2 * MAC_BYTES];
            for (digits, byte) in hex.chunks_exact_mut(2).zip(mac(key, signed)) {
                digits.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
            }
            // The digits are ASCII, so this never takes the other arm.
            value.push_str(std::str::from_utf8(&hex).unwrap_or_default());
        }
    }
}

/// The header of our own schemes: its form is that of the newest secret, and a secret of another form stays out of it.
struct Ours {
    scheme: Option<SignatureScheme>,
    value: String,
}

impl Ours {
    fn push(&mut self, scheme: SignatureScheme, signed_time: &str, body: &[u8], key: &Material) {
        match (self.scheme.replace(scheme), scheme) {
            (None, SignatureScheme::Timestamped) => {
                self.value.reserve(TIMESTAMPED_BYTES);
                self.value.push_str("t=");
                self.value.push_str(signed_time);
                self.push_timestamped(signed_time, body, key);
            }
            (Some(SignatureScheme::Timestamped), SignatureScheme::Timestamped) => {
                self.push_timestamped(signed_time, body, key);
            }
            (None, SignatureScheme::BodySha256) => {
                self.value.push_str("sha256=");
                key.push_hex(&mut self.value, &[body]);
            }
            (None, SignatureScheme::BodyHex) => key.push_hex(&mut self.value, &[body]),
            // The two BODY schemes have no room for a second signature.
            (first, _) => self.scheme = first,
        }
    }

    fn push_timestamped(&mut self, signed_time: &str, body: &[u8], key: &Material) {
        self.value.push_str(",v1=");
        key.push_hex(&mut self.value, &[signed_time.as_bytes(), b".", body]);
    }
}

/// HMAC-SHA256 over the parts one behind the other.
pub(super) fn mac(key: &Hmac<Sha256>, parts: &[&[u8]]) -> [u8; MAC_BYTES] {
    let mut state = key.clone();
    for part in parts {
        state.update(part);
    }
    state.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"test": 2432232314}"#;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn secret(scheme: SignatureScheme, seed: u8, expires: Option<i64>) -> SigningSecret {
        let make = if scheme.is_ed25519() { Secret::from_seed } else { Secret::from_random };
        SigningSecret { secret: make(&[seed; 32]), scheme, expire_time: expires.map(at) }
    }

    fn names(headers: &SignatureHeaders) -> Vec<&'static str> {
        headers.iter().map(|(name, _)| *name).collect()
    }

    #[test]
    fn signs_the_standard_webhooks_reference_vector() {
        let secret = Secret::from_stored("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned());
        let signer = Signer::new(SignatureScheme::StandardWebhooks, [&secret]);
        let headers = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", at(1_614_265_330), BODY);
        assert_eq!(names(&headers), [STANDARD_ID_HEADER, STANDARD_TIMESTAMP_HEADER, STANDARD_SIGNATURE_HEADER]);
        assert_eq!(headers[2].1, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn each_scheme_has_the_contracts_form() {
        use SignatureScheme::*;
        for (scheme, name, form) in [
            (Timestamped, SIGNATURE_HEADER, r"t=7,v1="),
            (BodySha256, SIGNATURE_HEADER, "sha256="),
            (BodyHex, SIGNATURE_HEADER, ""),
            (StandardWebhooks, STANDARD_SIGNATURE_HEADER, "v1,"),
            (StandardWebhooksEd25519, STANDARD_SIGNATURE_HEADER, "v1a,"),
        ] {
            let headers = Signer::of([&secret(scheme, 1, None)]).sign("evt_1", at(7), BODY);
            let (last, value) = headers.last().expect("a signature");
            let signature = value.strip_prefix(form).expect(form);
            assert_eq!(*last, name);
            let length = if name == SIGNATURE_HEADER { 64 } else { BASE64.decode(signature).expect("base64").len() };
            assert_eq!(length, if scheme.is_ed25519() { 64 } else { length });
            assert!(name != SIGNATURE_HEADER || signature.len() == 64 && signature == signature.to_lowercase());
        }
    }

    #[test]
    fn every_valid_secret_signs_until_its_own_end() {
        for (scheme, separator) in [
            (SignatureScheme::Timestamped, ",v1="),
            (SignatureScheme::StandardWebhooks, "v1,"),
            (SignatureScheme::StandardWebhooksEd25519, "v1a,"),
        ] {
            let signer =
                Signer::of([&secret(scheme, 1, None), &secret(scheme, 2, Some(200)), &secret(scheme, 3, Some(100))]);
            for (now, count) in [(99, 3), (100, 2), (199, 2), (200, 1), (10_000, 1)] {
                let headers = signer.sign("evt_1", at(now), BODY);
                let value = &headers.last().expect("a signature").1;
                assert_eq!(value.matches(separator).count(), count, "{scheme:?} at {now}");
            }
        }
    }

    #[test]
    fn the_body_schemes_sign_with_the_newest_secret_alone() {
        for scheme in [SignatureScheme::BodySha256, SignatureScheme::BodyHex] {
            let newest = secret(scheme, 1, None);
            let both = Signer::of([&newest, &secret(scheme, 2, Some(200))]).sign("evt_1", at(1), BODY);
            assert_eq!(both, Signer::of([&newest]).sign("evt_1", at(1), BODY));
        }
    }

    #[test]
    fn a_secret_of_another_kind_goes_on_in_its_own_form_beside_the_newest() {
        use SignatureScheme::*;
        let sign = |newest, former| {
            let secrets = [secret(newest, 1, None), secret(former, 2, Some(100))];
            let (during, after) =
                (Signer::of(&secrets).sign("e", at(1), BODY), Signer::of(&secrets).sign("e", at(100), BODY));
            assert_eq!(after, Signer::of(&secrets[..1]).sign("e", at(100), BODY));
            during
        };
        let both = sign(StandardWebhooksEd25519, StandardWebhooks);
        let parts: Vec<_> = both[2].1.split(' ').map(|part| part.split(',').next()).collect();
        assert_eq!(parts, [Some("v1a"), Some("v1")]);
        for former in [Timestamped, BodySha256, BodyHex] {
            assert_eq!(names(&sign(StandardWebhooksEd25519, former)).len(), 4);
            assert_eq!(names(&sign(former, StandardWebhooksEd25519)).len(), 4);
        }
        // One header has one form.
        assert_eq!(sign(BodyHex, Timestamped), Signer::of([&secret(BodyHex, 1, None)]).sign("e", at(1), BODY));
        assert_eq!(sign(Timestamped, BodyHex), Signer::of([&secret(Timestamped, 1, None)]).sign("e", at(1), BODY));
    }
}
