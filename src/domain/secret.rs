//! Endpoint secrets: their forms, the keys they stand for, and their being hidden everywhere else.
//!
//! An HMAC secret is `whsec_` and base64 of 24–64 bytes or, where the scheme is not Standard Webhooks, 16–128 visible
//! characters. An Ed25519 key is `whsk_` and base64 of its 32-byte seed, with or without the public key behind it (as
//! libsodium writes it); what verifies it is `whpk_` and base64 of 32 bytes.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use super::Problem;
use super::endpoint::SignatureScheme;
use super::time::Timestamp;

/// A signing secret of either kind.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

/// What a secret of an endpoint signs, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningSecret {
    /// The secret.
    pub secret: Secret,
    /// How it signs.
    pub scheme: SignatureScheme,
    /// When it stops; `None` for the newest.
    pub expire_time: Option<Timestamp>,
}

/// What verifies the signatures of an Ed25519 key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

const HMAC_PREFIX: &str = "whsec_";
const ED25519_PREFIX: &str = "whsk_";
const PUBLIC_PREFIX: &str = "whpk_";

impl Secret {
    /// A new HMAC secret over 32 bytes that the caller drew from the operating system's generator.
    pub fn from_random(bytes: &[u8; 32]) -> Self {
        Self(Zeroizing::new(format!("{HMAC_PREFIX}{}", BASE64.encode(bytes))))
    }

    /// A new Ed25519 key whose seed the caller drew likewise.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(Zeroizing::new(format!("{ED25519_PREFIX}{}", BASE64.encode(seed))))
    }

    /// Parses a caller's own secret for use with `scheme`.
    pub fn parse(text: &str, scheme: SignatureScheme) -> Result<Self, Problem> {
        let secret = Self(Zeroizing::new(text.to_owned()));
        let is_good = match scheme {
            SignatureScheme::StandardWebhooksEd25519 => secret.ed25519_key().is_some(),
            SignatureScheme::StandardWebhooks => is_encoded_secret(text),
            SignatureScheme::Timestamped | SignatureScheme::BodySha256 | SignatureScheme::BodyHex => {
                if text.starts_with(HMAC_PREFIX) { is_encoded_secret(text) } else { is_plain_secret(text) }
            }
        };
        if is_good { Ok(secret) } else { Err(problem(scheme)) }
    }

    /// Trusts a value that the database holds.
    pub fn from_stored(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, for the database and for the one answer that shows it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it says of itself that it is an Ed25519 key.
    pub fn is_ed25519(&self) -> bool {
        self.0.starts_with(ED25519_PREFIX)
    }

    /// What verifies its signatures, where it is an Ed25519 key.
    pub fn public_key(&self) -> Option<PublicKey> {
        self.ed25519_key().map(|key| PublicKey(key.verifying_key()))
    }

    /// The bytes that key the HMAC: decoded for Standard Webhooks, the string's own bytes for the other schemes,
    /// so that `hmac(secret, …)` in any language verifies them.
    pub(super) fn hmac_key(&self, scheme: SignatureScheme) -> Zeroizing<Vec<u8>> {
        let decoded = match scheme {
            SignatureScheme::StandardWebhooks => {
                self.0.strip_prefix(HMAC_PREFIX).and_then(|encoded| BASE64.decode(encoded).ok())
            }
            _ => None,
        };
        Zeroizing::new(decoded.unwrap_or_else(|| self.0.as_bytes().to_vec()))
    }

    /// The key that signs by Ed25519; `None` where this is none.
    pub(super) fn ed25519_key(&self) -> Option<SigningKey> {
        let bytes = self.0.strip_prefix(ED25519_PREFIX).and_then(|encoded| BASE64.decode(encoded).ok())?;
        let bytes = Zeroizing::new(bytes);
        let (seed, public) = bytes.split_first_chunk::<32>()?;
        let key = SigningKey::from_bytes(seed);
        (public.is_empty() || public == key.verifying_key().as_bytes()).then_some(key)
    }
}

fn is_encoded_secret(text: &str) -> bool {
    let bytes = text.strip_prefix(HMAC_PREFIX).and_then(|encoded| BASE64.decode(encoded).ok()).map(Zeroizing::new);
    bytes.is_some_and(|bytes| (24..=64).contains(&bytes.len()))
}

/// An Ed25519 key or its public half is no HMAC secret, although its characters would do: the public half is known to
/// everybody.
fn is_plain_secret(text: &str) -> bool {
    let is_key = text.starts_with(ED25519_PREFIX) || text.starts_with(PUBLIC_PREFIX);
    !is_key && (16..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn problem(scheme: SignatureScheme) -> Problem {
    Problem::new(match scheme {
        SignatureScheme::StandardWebhooksEd25519 => {
            "is not a key for this scheme; allowed is whsk_ followed by the base64 of a 32-byte Ed25519 seed, or of seed \
             and public key"
        }
        SignatureScheme::StandardWebhooks => {
            "is not a secret for this scheme; allowed is whsec_ followed by the base64 of 24 to 64 bytes"
        }
        SignatureScheme::Timestamped | SignatureScheme::BodySha256 | SignatureScheme::BodyHex => {
            "is not a secret; allowed are 16 to 128 visible ASCII characters, or whsec_ followed by the base64 of 24 to \
             64 bytes"
        }
    })
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl PublicKey {
    /// Parses `whpk_…`; `None` where it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.strip_prefix(PUBLIC_PREFIX).and_then(|encoded| BASE64.decode(encoded).ok())?;
        VerifyingKey::from_bytes(&bytes.try_into().ok()?).ok().map(Self)
    }

    /// The key for the arithmetic.
    pub(super) const fn key(&self) -> &VerifyingKey {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC_PREFIX}{}", BASE64.encode(self.0.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HMAC: [SignatureScheme; 4] = [
        SignatureScheme::Timestamped,
        SignatureScheme::StandardWebhooks,
        SignatureScheme::BodySha256,
        SignatureScheme::BodyHex,
    ];
    const ED25519: SignatureScheme = SignatureScheme::StandardWebhooksEd25519;

    #[test]
    fn forms_are_checked_by_scheme() {
        let own = "a-secret-of-our-own";
        let key = Secret::from_seed(&[7; 32]);
        let public = key.public_key().expect("an Ed25519 key").to_string();
        for scheme in HMAC {
            assert_eq!(Secret::parse(own, scheme).is_ok(), scheme != SignatureScheme::StandardWebhooks);
            let generated = Secret::from_random(&[7; 32]);
            assert_eq!(Secret::parse(generated.expose(), scheme).as_ref(), Ok(&generated));
            assert!(Secret::parse(generated.expose(), ED25519).is_err());
            let long = "x".repeat(129);
            let bad = ["", "short", "whsec_", "whsec_!!!!", "whsec_AAAA", &long, "has a space in it now"];
            for bad in bad.into_iter().chain([key.expose(), &public]) {
                assert!(Secret::parse(bad, scheme).is_err(), "{bad} {scheme:?}");
            }
        }
    }

    #[test]
    fn an_ed25519_key_is_a_seed_with_or_without_its_public_key() {
        let key = Secret::from_seed(&[7; 32]);
        let public = key.public_key().expect("a key");
        assert_eq!(PublicKey::parse(&public.to_string()), Some(public));
        let encoded = |tail: &[u8]| format!("whsk_{}", BASE64.encode([&[7; 32], tail].concat()));
        for (text, is_good) in [
            (encoded(&[]), true),
            (encoded(public.key().as_bytes()), true),
            (encoded(&[7; 32]), false),
            (encoded(&[7]), false),
            (format!("whsk_{}", BASE64.encode([7; 31])), false),
            ("whsk_".to_owned(), false),
            (public.to_string(), false),
        ] {
            let parsed = Secret::parse(&text, ED25519);
            assert_eq!(parsed.is_ok(), is_good, "{text}");
            assert!(parsed.is_err() || parsed.is_ok_and(|secret| secret.public_key() == Some(public)));
        }
        for bad in ["whpk_", "whpk_AAAA", key.expose(), "nonsense"] {
            assert_eq!(PublicKey::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_key_is_decoded_for_standard_webhooks_alone() {
        for scheme in HMAC {
            let secret = Secret::from_random(&[7; 32]);
            let is_decoded = secret.hmac_key(scheme).as_slice() == [7; 32];
            assert_eq!(is_decoded, scheme == SignatureScheme::StandardWebhooks, "{scheme:?}");
            assert!(is_decoded || secret.hmac_key(scheme).as_slice() == secret.expose().as_bytes());
        }
    }

    #[test]
    fn debug_hides_it() {
        assert_eq!(format!("{:?}", Secret::from_seed(&[7; 32])), "Secret(…)");
    }
}
