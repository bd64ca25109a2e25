//! Secrets at rest: sealed by AES-256-GCM under a master key of the settings, bound to where they belong.
//!
//! What is sealed cannot be read without its key, nor changed, nor moved to another tenant, endpoint or version. The
//! nonce is the caller's to draw, at random and never twice: up to 2³² seals under one key (NIST SP 800-38D, section
//! 8.3) are far more than endpoints are changed.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::Problem;
use super::fields::Tenant;
use super::id::EndpointId;

/// Keys of an installation at most: the one that seals, and former ones.
const KEYS_MAX: usize = 32;
/// A key's length, in bytes.
const KEY_BYTES: usize = 32;
const ID_BYTES_MAX: usize = 64;
/// The first byte of what is sealed: how the rest is to be read.
const FORMAT: u8 = 1;

/// What a nonce is drawn as.
pub type SealNonce = [u8; NONCE_LEN];

/// The master keys: the first seals, all of them open.
#[derive(Clone)]
pub struct Keyring(Arc<[MasterKey]>);

struct MasterKey {
    id: String,
    key: LessSafeKey,
}

/// Something sealed, and by which key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The key's id.
    pub key_id: String,
    /// Format, nonce, ciphertext and tag.
    pub bytes: Vec<u8>,
}

/// Where a sealed value belongs. It opens there and nowhere else.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// A signing secret, by its version.
    Secret(&'a Tenant, EndpointId, i32),
    /// What is secret of an endpoint's own settings, by the version of the endpoint at which it was written.
    Settings(&'a Tenant, EndpointId, i64),
    /// A value by which keys are told apart.
    KeyCheck,
}

/// Why something sealed does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The key is none of these.
    #[error("it is sealed with the key {0}, which encryption.keys does not have")]
    UnknownKey(String),
    /// Another key of that id sealed it, or it was changed or moved.
    #[error("it does not open with the key {0}")]
    Broken(String),
}

impl Keyring {
    /// Parses `id:base64,…`. The problem never repeats what was given: it may be a key.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let mut keys: Vec<MasterKey> = Vec::new();
        for (place, entry) in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).enumerate() {
            let key = MasterKey::parse(entry).ok_or_else(|| {
                Problem::new(format!(
                    "has an entry ({}) that is no key; allowed is id:base64, of 1 to {ID_BYTES_MAX} characters of \
                     [a-zA-Z0-9._-] and {KEY_BYTES} bytes, such as hooklane keys generate prints",
                    place + 1
                ))
            })?;
            if keys.iter().any(|known| known.id == key.id) {
                return Err(Problem::new(format!("has the key {} twice; allowed is each id once", key.id)));
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err(Problem::new("has no key; allowed is id:base64,…"));
        }
        if keys.len() > KEYS_MAX {
            return Err(Problem::new(format!("has {} keys; allowed are {KEYS_MAX}", keys.len())));
        }
        Ok(Self(keys.into()))
    }

    /// A key that the caller drew from the operating system's generator, as the setting has it.
    pub fn entry(id: &str, key: &[u8; KEY_BYTES]) -> Result<Zeroizing<String>, Problem> {
        if !is_id(id) {
            return Err(Problem::new(format!(
                "is no id of a key; allowed are 1 to {ID_BYTES_MAX} characters of [a-zA-Z0-9._-]"
            )));
        }
        Ok(Zeroizing::new(format!("{id}:{}", BASE64.encode(key))))
    }

    /// The id of the key that seals.
    pub fn sealing_key(&self) -> &str {
        &self.0[0].id
    }

    /// The ids, the sealing one first.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|key| key.id.as_str())
    }

    /// Seals under the first key. Only a value of 64 GiB has a problem.
    pub fn seal(&self, place: Place<'_>, value: &[u8], nonce: SealNonce) -> Result<Sealed, Problem> {
        let MasterKey { id, key } = &self.0[0];
        let mut bytes = Vec::with_capacity(1 + NONCE_LEN + value.len() + AES_256_GCM.tag_len());
        bytes.push(FORMAT);
        bytes.extend_from_slice(&nonce);
        bytes.extend_from_slice(value);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key
            .seal_in_place_separate_tag(nonce, Aad::from(place.bytes()), &mut bytes[1 + NONCE_LEN..])
            .map_err(|_| Problem::new("is too long to be sealed"))?;
        bytes.extend_from_slice(tag.as_ref());
        Ok(Sealed { key_id: id.clone(), bytes })
    }

    /// Opens what was sealed under any of the keys.
    pub fn open(&self, place: Place<'_>, key_id: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let known = self.0.iter().find(|key| key.id == key_id);
        let key = &known.ok_or_else(|| OpenError::UnknownKey(key_id.to_owned()))?.key;
        let broken = || OpenError::Broken(key_id.to_owned());
        let (&format, rest) = sealed.split_first().ok_or_else(broken)?;
        let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>().filter(|_| format == FORMAT).ok_or_else(broken)?;
        let mut text = Zeroizing::new(text.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = key.open_in_place(nonce, Aad::from(place.bytes()), &mut text).map_err(|_| broken())?.len();
        text.truncate(length);
        Ok(text)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ids()).finish()
    }
}

impl MasterKey {
    fn parse(entry: &str) -> Option<Self> {
        let (id, encoded) = entry.split_once(':')?;
        let bytes = Zeroizing::new(BASE64.decode(encoded.trim()).ok()?);
        let is_good = is_id(id) && bytes.len() == KEY_BYTES;
        let key = UnboundKey::new(&AES_256_GCM, &bytes).ok().filter(|_| is_good)?;
        Some(Self { id: id.to_owned(), key: LessSafeKey::new(key) })
    }
}

fn is_id(text: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

impl Place<'_> {
    /// The associated data: kind, tenant, endpoint and version. No tenant and no id holds a bar.
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Secret(tenant, endpoint, version) => format!("secret|{tenant}|{endpoint}|{version}"),
            Self::Settings(tenant, endpoint, version) => format!("settings|{tenant}|{endpoint}|{version}"),
            Self::KeyCheck => "key-check".to_owned(),
        }
        .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keyring(ids: &[(&str, u8)]) -> Keyring {
        let entries: Vec<String> =
            ids.iter().map(|(id, byte)| Keyring::entry(id, &[*byte; 32]).expect("an id").to_string()).collect();
        Keyring::parse(&entries.join(", ")).expect("keys")
    }

    fn endpoint(n: u128) -> EndpointId {
        EndpointId::from_uuid(uuid::Uuid::from_u128(n))
    }

    #[test]
    fn it_opens_where_it_belongs_and_nowhere_else() {
        let (keys, tenant, other) = (keyring(&[("k1", 1)]), Tenant::default_tenant(), Tenant::parse("b").expect("one"));
        let place = Place::Secret(&tenant, endpoint(1), 1);
        let sealed = keys.seal(place, b"value", [9; 12]).expect("sealed");
        assert_eq!((sealed.key_id.as_str(), sealed.bytes.len()), ("k1", 1 + 12 + 5 + 16));
        assert_eq!(keys.open(place, "k1", &sealed.bytes).as_deref().map(Vec::as_slice), Ok(&b"value"[..]));
        for elsewhere in [
            Place::Secret(&other, endpoint(1), 1),
            Place::Secret(&tenant, endpoint(2), 1),
            Place::Secret(&tenant, endpoint(1), 2),
            Place::Settings(&tenant, endpoint(1), 1),
            Place::KeyCheck,
        ] {
            assert_eq!(keys.open(elsewhere, "k1", &sealed.bytes), Err(OpenError::Broken("k1".to_owned())));
        }
    }

    #[test]
    fn former_keys_open_and_the_first_seals() {
        let tenant = Tenant::default_tenant();
        let place = Place::Settings(&tenant, endpoint(1), 7);
        let old = keyring(&[("k1", 1)]).seal(place, b"value", [9; 12]).expect("sealed");
        let both = keyring(&[("k2", 2), ("k1", 1)]);
        assert!(both.open(place, "k1", &old.bytes).is_ok());
        let new = both.seal(place, b"value", [8; 12]).expect("sealed");
        assert_eq!((new.key_id.as_str(), both.sealing_key()), ("k2", "k2"));
        assert_eq!(keyring(&[("k1", 1)]).open(place, "k2", &new.bytes), Err(OpenError::UnknownKey("k2".to_owned())));
        // A key of the same id that is another.
        assert_eq!(keyring(&[("k1", 3)]).open(place, "k1", &old.bytes), Err(OpenError::Broken("k1".to_owned())));
    }

    #[test]
    fn bad_keys_are_refused_without_being_repeated() {
        let good = BASE64.encode([7; 32]);
        for bad in [
            "".to_owned(),
            ",".to_owned(),
            good.clone(),
            format!(":{good}"),
            format!("a b:{good}"),
            format!("{}:{good}", "k".repeat(65)),
            format!("k1:{}", BASE64.encode([7; 31])),
            format!("k1:{}", BASE64.encode([7; 33])),
            format!("k1:{good}x"),
            format!("k1:{good},k1:{good}"),
            (0..33).map(|n| format!("k{n}:{good}")).collect::<Vec<_>>().join(","),
        ] {
            let problem = Keyring::parse(&bad).expect_err(&bad).to_string();
            assert!(!problem.contains(&good[..8]), "{problem}");
        }
        assert!(Keyring::entry("a:b", &[7; 32]).is_err());
        let keys = keyring(&[("k2", 2), ("k1", 1)]);
        assert_eq!(format!("{keys:?}"), r#"["k2", "k1"]"#);
    }

    proptest! {
        #[test]
        fn nothing_that_was_changed_opens(value in proptest::collection::vec(any::<u8>(), 0..64), at in any::<usize>(), bit in 0..8_u8) {
            let (keys, tenant) = (keyring(&[("k1", 1)]), Tenant::default_tenant());
            let place = Place::Secret(&tenant, endpoint(1), 1);
            let mut bytes = keys.seal(place, &value, [9; 12]).expect("sealed").bytes;
            prop_assert_eq!(&*keys.open(place, "k1", &bytes).expect("whole"), &value);
            let at = at % bytes.len();
            prop_assert!(keys.open(place, "k1", &bytes[..at]).is_err());
            bytes[at] ^= 1 << bit;
            prop_assert!(keys.open(place, "k1", &bytes).is_err());
        }
    }
}
