//! What seals secrets before they are written and opens them when they are read, and which keys the database needs.

use std::collections::BTreeMap;

use rand::TryRng as _;
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::postgres::PgRow;
use zeroize::{Zeroize, Zeroizing};

use super::connections::Connections;
use super::error::{Error, Result};
use super::pool::ConnectError;
use crate::domain::endpoint::EndpointSpec;
use crate::domain::fields::Tenant;
use crate::domain::id::EndpointId;
use crate::domain::keyring::{Keyring, OpenError, Place, SealNonce};

/// How secrets stand in the database.
#[derive(Debug, Clone, Default)]
pub struct Encryption {
    /// What seals and opens; `None` where there are no keys.
    pub keys: Option<Keyring>,
    /// Whether secrets are written as they are although there are keys, which then open alone.
    pub plaintext: bool,
}

/// Seals and opens.
#[derive(Debug, Clone)]
pub(super) struct Vault(Encryption);

/// A value as a row has it: sealed under a key, or as it is.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) bytes: Vec<u8>,
    pub(super) key_id: Option<String>,
}

/// What is secret of an endpoint's own settings, as it is sealed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Private {
    pub(super) url: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) client_key_pem: Option<String>,
}

/// The columns of an endpoint's row that hold [`Private`], one way or the other.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct PrivateColumns {
    pub(super) url: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) client_key_pem: Option<String>,
    pub(super) sealed: Option<Vec<u8>>,
    pub(super) sealed_key_id: Option<String>,
    pub(super) sealed_version: Option<i64>,
}

/// Under no other key than these is anything sealed.
const KNOWN_KEYS: &str = "select id, sealed_check from encryption_keys order by id";

const ADD_KEY: &str = "
insert into encryption_keys (id, sealed_check, create_time) values ($1, $2, now()) on conflict (id) do nothing";

/// What tells a key from another of the same id.
const CHECK_VALUE: &[u8] = b"hooklane";

impl Vault {
    pub(super) const fn new(encryption: Encryption) -> Self {
        Self(encryption)
    }

    /// The key that seals what is written; `None` where nothing is sealed.
    pub(super) fn sealing_key(&self) -> Option<&str> {
        self.sealing().map(Keyring::sealing_key)
    }

    fn sealing(&self) -> Option<&Keyring> {
        self.0.keys.as_ref().filter(|_| !self.0.plaintext)
    }

    /// Sees that every key under which something may be sealed is here, and makes known the one that seals from now on.
    pub(super) async fn check_keys(&self, pool: &Connections) -> std::result::Result<(), ConnectError> {
        if let Some(keys) = self.sealing() {
            let check = self.seal_with(keys, Place::KeyCheck, CHECK_VALUE)?;
            sqlx::query(ADD_KEY).bind(keys.sealing_key()).bind(check).execute(pool).await?;
        }
        for row in sqlx::query(KNOWN_KEYS).fetch_all(pool).await? {
            let (id, check): (String, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
            let opened = match &self.0.keys {
                Some(keys) => keys.open(Place::KeyCheck, &id, &check).map(drop),
                None => Err(OpenError::UnknownKey(id.clone())),
            };
            opened.map_err(|error| match error {
                OpenError::UnknownKey(id) => ConnectError::KeyMissing(id),
                OpenError::Broken(id) => ConnectError::KeyDiffers(id),
            })?;
        }
        Ok(())
    }

    /// A value as it is to be written.
    pub(super) fn keep(&self, place: Place<'_>, value: &[u8]) -> Result<Kept> {
        match self.sealing() {
            None => Ok(Kept { bytes: value.to_vec(), key_id: None }),
            Some(keys) => {
                let bytes = self.seal_with(keys, place, value)?;
                Ok(Kept { bytes, key_id: Some(keys.sealing_key().to_owned()) })
            }
        }
    }

    /// A value as it was before it was written.
    pub(super) fn open(&self, place: Place<'_>, key_id: Option<&str>, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let Some(key_id) = key_id else { return Ok(Zeroizing::new(bytes.to_vec())) };
        let opened = match &self.0.keys {
            Some(keys) => keys.open(place, key_id, bytes),
            None => Err(OpenError::UnknownKey(key_id.to_owned())),
        };
        opened.map_err(Error::Sealed)
    }

    /// An endpoint's secret settings as they are to be written with its version `version`.
    pub(super) fn keep_settings(
        &self,
        tenant: &Tenant,
        id: EndpointId,
        version: i64,
        spec: &EndpointSpec,
    ) -> Result<PrivateColumns> {
        self.keep_private(tenant, id, version, &Private::of(spec))
    }

    pub(super) fn keep_private(
        &self,
        tenant: &Tenant,
        id: EndpointId,
        version: i64,
        private: &Private,
    ) -> Result<PrivateColumns> {
        let Some(keys) = self.sealing() else {
            return Ok(PrivateColumns {
                url: private.url.clone(),
                headers: private.headers.clone(),
                client_key_pem: private.client_key_pem.clone(),
                sealed: None,
                sealed_key_id: None,
                sealed_version: None,
            });
        };
        let text =
            serde_json::to_vec(private).map_err(|_| Error::Unreadable("settings that are no JSON".to_owned()))?;
        let text = Zeroizing::new(text);
        Ok(PrivateColumns {
            url: String::new(),
            headers: BTreeMap::new(),
            client_key_pem: None,
            sealed: Some(self.seal_with(keys, Place::Settings(tenant, id, version), &text)?),
            sealed_key_id: Some(keys.sealing_key().to_owned()),
            sealed_version: Some(version),
        })
    }

    /// An endpoint's secret settings, from the columns `tenant`, `id` and those of [`PrivateColumns`] of its row.
    pub(super) fn open_settings(&self, row: &PgRow) -> Result<Private> {
        let Some(sealed) = row.try_get::<Option<&[u8]>, _>("sealed")? else {
            return Ok(Private {
                url: row.try_get("url")?,
                headers: row.try_get::<sqlx::types::Json<_>, _>("headers")?.0,
                client_key_pem: row.try_get("client_key_pem")?,
            });
        };
        let tenant = Tenant::from_stored(row.try_get("tenant")?);
        let place = Place::Settings(&tenant, EndpointId::from_uuid(row.try_get("id")?), row.try_get("sealed_version")?);
        let text = self.open(place, row.try_get("sealed_key_id")?, sealed)?;
        serde_json::from_slice(&text).map_err(|_| Error::Unreadable("an endpoint's sealed settings".to_owned()))
    }

    fn seal_with(&self, keys: &Keyring, place: Place<'_>, value: &[u8]) -> Result<Vec<u8>> {
        let mut nonce = SealNonce::default();
        SysRng.try_fill_bytes(&mut nonce).map_err(Error::Random)?;
        let sealed =
            keys.seal(place, value, nonce).map_err(|problem| Error::Unreadable(format!("a secret that {problem}")))?;
        Ok(sealed.bytes)
    }
}

impl Private {
    pub(super) fn of(spec: &EndpointSpec) -> Self {
        Self {
            url: spec.url.as_str().to_owned(),
            headers: spec.headers.entries().clone(),
            client_key_pem: spec.tls.client.as_ref().map(|client| client.expose_key().to_owned()),
        }
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        self.url.zeroize();
        self.headers.values_mut().for_each(Zeroize::zeroize);
        self.client_key_pem.zeroize();
    }
}
