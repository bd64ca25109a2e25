//! Rotating an endpoint's secret: the former ones go on signing for a while, and end by themselves.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::Store;
use super::error::{Error, Result};
use super::types::{PgTime, micros, stored};
use super::vault::Vault;
use crate::domain::endpoint::SignatureScheme;
use crate::domain::fields::Tenant;
use crate::domain::id::EndpointId;
use crate::domain::keyring::Place;
use crate::domain::secret::{Secret, SigningSecret};
use crate::domain::time::Timestamp;

/// How many secrets of an endpoint sign at once: each is a signature more in every request. Beyond it the oldest ends.
const SECRETS_MAX: i32 = 10;

/// A new secret for an endpoint.
#[derive(Debug)]
pub struct Rotation {
    /// Whose the endpoint is.
    pub tenant: Tenant,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The version of it that was looked at.
    pub version: i64,
    /// How it signs from now on.
    pub scheme: SignatureScheme,
    /// By what.
    pub secret: Secret,
    /// The version that the secret will have: one more than the newest at that version of the endpoint.
    pub secret_version: i32,
    /// For how long its former secrets go on signing, at most.
    pub overlap: Duration,
}

/// Why a secret was not rotated.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// The endpoint is at another version by now, or gone.
    #[error("the endpoint has changed")]
    VersionMoved,
    /// The statement failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Former secrets end with the overlap, or earlier where they would have anyway, so that an overlap of nothing leaves the
/// new one alone. Where the scheme changes between HMAC and Ed25519 (3) they keep the one they were made for.
/// Locks the endpoint's row, then its secrets'.
const ROTATE: &str = "
with changed as (
  update endpoints e set signature_scheme = $3, version = e.version + 1, update_time = now()
  from (select id, signature_scheme from endpoints where id = $1 for update) former
  where e.id = former.id and e.version = $2 and e.delete_time is null
  returning e.id, former.signature_scheme as former_scheme
), newest as (
  select max(s.version) as version from endpoint_secrets s join changed c on s.endpoint_id = c.id
), gone as (
  delete from endpoint_secrets s using changed c where s.endpoint_id = c.id and s.expire_time <= now()
), former as (
  update endpoint_secrets s
  set expire_time = case when s.version > n.version - $7 + 1
                         then least(s.expire_time, now() + $6 * interval '1 microsecond') else now() end,
      signature_scheme = coalesce(s.signature_scheme, case when (c.former_scheme = 3) <> ($3 = 3) then c.former_scheme end)
  from changed c, newest n
  where s.endpoint_id = c.id and (s.expire_time is null or s.expire_time > now())
  returning s.version, s.expire_time
), made as (
  insert into endpoint_secrets (endpoint_id, version, secret, key_id, create_time, public_key)
  select c.id, $8, $4, $9, now(), $5 from changed c
)
select f.expire_time from former f join newest n on n.version = f.version";

impl Store {
    /// Makes a new secret sign, beside the former ones while these last; answers when the one before it ends.
    pub async fn rotate_secret(&self, rotation: &Rotation) -> std::result::Result<Timestamp, RotateError> {
        let place = Place::Secret(&rotation.tenant, rotation.endpoint, rotation.secret_version);
        let kept = self.vault.keep(place, rotation.secret.expose().as_bytes())?;
        let row = sqlx::query(ROTATE)
            .bind(rotation.endpoint.uuid())
            .bind(rotation.version)
            .bind(rotation.scheme.number())
            .bind(kept.bytes)
            .bind(rotation.secret.public_key().map(|key| key.to_string()))
            .bind(micros(rotation.overlap))
            .bind(SECRETS_MAX)
            .bind(rotation.secret_version)
            .bind(kept.key_id)
            .fetch_optional(&self.reader)
            .await
            .map_err(Error::from)?;
        let row = row.ok_or(RotateError::VersionMoved)?;
        Ok(row.try_get::<PgTime, _>(0).map_err(Error::from)?.0)
    }
}

/// The secrets of an endpoint's row, from the arrays `secrets`, `versions`, `key_ids`, `schemes` and `expire_times`, newest
/// first.
pub(super) fn read(row: &PgRow, vault: &Vault) -> Result<Vec<SigningSecret>> {
    let tenant = Tenant::from_stored(row.try_get("tenant")?);
    let endpoint = EndpointId::from_uuid(row.try_get("id")?);
    let texts: Option<Vec<Vec<u8>>> = row.try_get("secrets")?;
    let versions: Option<Vec<i32>> = row.try_get("versions")?;
    let key_ids: Option<Vec<Option<String>>> = row.try_get("key_ids")?;
    let schemes: Option<Vec<i16>> = row.try_get("schemes")?;
    let expire_times: Option<Vec<Option<PgTime>>> = row.try_get("expire_times")?;
    let rows = texts.unwrap_or_default().into_iter().zip(versions.unwrap_or_default());
    let rows = rows.zip(key_ids.unwrap_or_default()).zip(schemes.unwrap_or_default());
    rows.zip(expire_times.unwrap_or_default())
        .map(|((((bytes, version), key_id), scheme), expires)| {
            let bytes = vault.open(Place::Secret(&tenant, endpoint, version), key_id.as_deref(), &bytes)?;
            let text = std::str::from_utf8(&bytes)
                .map_err(|_| Error::Unreadable("a secret that is no text".to_owned()))?
                .to_owned();
            Ok(SigningSecret {
                secret: Secret::from_stored(text),
                scheme: stored("signature scheme", scheme, SignatureScheme::from_number)?,
                expire_time: expires.map(|time| time.0),
            })
        })
        .collect()
}
