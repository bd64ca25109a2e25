//! API keys: `hlk_`, the key's id in 26 digits, `_`, and 32 random bytes in base64url. The id says which row to look
//! at, so that finding it tells nothing of the secret; of that the database has a digest alone.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::id::KeyId;

const PREFIX: &str = "hlk_";
const ID_DIGITS: usize = 26;
const SECRET_BYTES: usize = 32;

/// A key as its holder has it.
pub struct ApiKey {
    id: KeyId,
    secret: Zeroizing<[u8; SECRET_BYTES]>,
}

/// SHA-256 of a key's secret. 256 random bits cannot be guessed, so nothing slower is needed.
#[derive(Clone, Copy)]
pub struct KeyDigest([u8; 32]);

impl ApiKey {
    /// A new key over bytes that the caller drew from the operating system's generator.
    pub const fn new(id: KeyId, secret: Zeroizing<[u8; SECRET_BYTES]>) -> Self {
        Self { id, secret }
    }

    /// Reads what a caller sent; `None` where it has not the form of a key.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_at_checked(ID_DIGITS)?;
        let id = KeyId::from_digits(id)?;
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        let length = BASE64.decode_slice(secret.strip_prefix('_')?, &mut *bytes).ok()?;
        (length == SECRET_BYTES).then_some(Self { id, secret: bytes })
    }

    /// Which key it is.
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// What the database keeps of it.
    pub fn digest(&self) -> KeyDigest {
        KeyDigest(Sha256::digest(*self.secret).into())
    }

    /// The text, for the one time that it is shown.
    pub fn expose(&self) -> Zeroizing<String> {
        let id = self.id.to_string();
        let digits = id.split_once('_').map_or("", |(_, digits)| digits);
        let secret = Zeroizing::new(BASE64.encode(*self.secret));
        Zeroizing::new(format!("{PREFIX}{digits}_{}", *secret))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({}, …)", self.id)
    }
}

impl KeyDigest {
    /// Trusts a value that the database holds.
    pub const fn from_stored(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// For the database.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether it is of the same secret, told in constant time.
    pub fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDigest(…)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(id: u128, secret: [u8; 32]) -> ApiKey {
        ApiKey::new(KeyId::from_uuid(uuid::Uuid::from_u128(id)), Zeroizing::new(secret))
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(id: u128, secret: [u8; 32]) {
            let made = key(id, secret);
            let read = ApiKey::parse(&made.expose()).expect("a key");
            prop_assert_eq!(read.id(), made.id());
            prop_assert!(read.digest().is(&made.digest()));
        }

        #[test]
        fn anything_else_is_no_key(text: String) {
            prop_assume!(!text.starts_with("hlk_"));
            prop_assert!(ApiKey::parse(&text).is_none());
        }
    }

    #[test]
    fn a_key_is_read_whole_or_not_at_all() {
        let text = key(7, [7; 32]).expose().to_string();
        assert_eq!(text.len(), 4 + 26 + 1 + 43);
        let cases =
            [&text[1..], &text[..text.len() - 1], &format!("{text}A"), &text.replacen('_', "-", 2), "hlk_é", ""];
        for bad in cases {
            assert!(ApiKey::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn neither_key_nor_digest_show_themselves() {
        let made = key(7, [7; 32]);
        let shown = format!("{made:?} {:?}", made.digest());
        assert!(!shown.contains("BwcH") && shown.contains("key_0"), "{shown}");
        assert!(!made.digest().is(&key(7, [8; 32]).digest()));
    }
}
