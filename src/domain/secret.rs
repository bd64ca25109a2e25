//! Endpoint secrets: their forms, and the one thing done with them outside signing: being hidden.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

use super::Problem;
use super::endpoint::SignatureScheme;

/// A signing secret: `whsec_` and base64 of 24–64 bytes, or (schemes other than Standard Webhooks) 16–128 visible characters.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

const PREFIX: &str = "whsec_";

impl Secret {
    /// A new secret over 32 bytes that the caller drew from the operating system's generator.
    pub fn from_random(bytes: &[u8; 32]) -> Self {
        Self(Zeroizing::new(format!("{PREFIX}{}", BASE64.encode(bytes))))
    }

    /// Parses a caller's own secret for use with `scheme`.
    pub fn parse(text: &str, scheme: SignatureScheme) -> Result<Self, Problem> {
        let secret = Self(Zeroizing::new(text.to_owned()));
        if let Some(encoded) = text.strip_prefix(PREFIX) {
            let bytes = BASE64.decode(encoded).map(Zeroizing::new);
            return match bytes {
                Ok(bytes) if (24..=64).contains(&bytes.len()) => Ok(secret),
                _ => Err(Problem::new("is not a secret; allowed is whsec_ followed by the base64 of 24 to 64 bytes")),
            };
        }
        let visible = (16..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        match scheme {
            SignatureScheme::StandardWebhooks => Err(Problem::new(
                "is not a secret for this scheme; allowed is whsec_ followed by the base64 of 24 to 64 bytes",
            )),
            _ if visible => Ok(secret),
            _ => Err(Problem::new(
                "is not a secret; allowed are 16 to 128 visible ASCII characters, or whsec_ and base64",
            )),
        }
    }

    /// Trusts a value that the database holds.
    pub fn from_stored(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, for the database and for the one answer that shows it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The bytes that key the HMAC: decoded for Standard Webhooks, the string's own bytes for the other schemes,
    /// so that `hmac(secret, …)` in any language verifies them.
    pub fn hmac_key(&self, scheme: SignatureScheme) -> Zeroizing<Vec<u8>> {
        let decoded = match scheme {
            SignatureScheme::StandardWebhooks => {
                self.0.strip_prefix(PREFIX).and_then(|encoded| BASE64.decode(encoded).ok())
            }
            SignatureScheme::Timestamped => None,
        };
        Zeroizing::new(decoded.unwrap_or_else(|| self.0.as_bytes().to_vec()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_checked_by_scheme() {
        let own = "a-secret-of-our-own";
        assert!(Secret::parse(own, SignatureScheme::Timestamped).is_ok());
        assert!(Secret::parse(own, SignatureScheme::StandardWebhooks).is_err());
        let generated = Secret::from_random(&[7; 32]);
        for scheme in [SignatureScheme::Timestamped, SignatureScheme::StandardWebhooks] {
            assert_eq!(Secret::parse(generated.expose(), scheme).as_ref(), Ok(&generated));
            for bad in ["", "short", "whsec_", "whsec_!!!!", "whsec_AAAA", &"x".repeat(129), "has a space in it now"] {
                assert!(Secret::parse(bad, scheme).is_err(), "{bad}");
            }
        }
    }

    #[test]
    fn the_key_is_decoded_for_standard_webhooks_alone() {
        let secret = Secret::from_random(&[7; 32]);
        assert_eq!(secret.hmac_key(SignatureScheme::StandardWebhooks).as_slice(), [7; 32]);
        assert_eq!(secret.hmac_key(SignatureScheme::Timestamped).as_slice(), secret.expose().as_bytes());
    }

    #[test]
    fn debug_hides_it() {
        assert_eq!(format!("{:?}", Secret::from_random(&[7; 32])), "Secret(…)");
    }
}
