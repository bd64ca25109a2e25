//! API keys: made, listed and revoked by operators, read whole by every replica.
//!
//! Reached without a whole [`super::Store`], so that managing keys does not count a queue first.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;

use super::clock::DbClock;
use super::connections::Connections;
use super::error::{Error, Result};
use super::pool::{self, Config, ConnectError};
use super::types::{PgTime, stored};
use crate::domain::access::{Role, Scope};
use crate::domain::api_key::KeyDigest;
use crate::domain::fields::Tenant;
use crate::domain::id::KeyId;
use crate::domain::time::Timestamp;

/// The keys of an installation.
#[derive(Debug, Clone)]
pub struct Keys(Connections);

/// A key to make.
#[derive(Debug)]
pub struct NewKey {
    /// By which its holder names it.
    pub id: KeyId,
    /// Who holds it, for people.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Whose things it may touch.
    pub scope: Scope,
    /// Of its secret.
    pub digest: KeyDigest,
    /// When it ends by itself, from now; `None` for never.
    pub expires_in: Option<Duration>,
}

/// A key that exists.
#[derive(Debug, Clone)]
pub struct KeyRecord {
    /// By which its holder names it.
    pub id: KeyId,
    /// Who holds it, for people.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Whose things it may touch.
    pub scope: Scope,
    /// Of its secret.
    pub digest: KeyDigest,
    /// When it was made.
    pub create_time: Timestamp,
    /// When it ends by itself.
    pub expire_time: Option<Timestamp>,
    /// When it was revoked.
    pub revoke_time: Option<Timestamp>,
    /// When it was used last, to the minute.
    pub last_used_time: Option<Timestamp>,
    /// Whether it can be used now, by the database's clock.
    pub is_live: bool,
}

/// Live keys at most: every replica holds them all.
pub const KEYS_MAX: i64 = 10_000;

/// Makes a key unless there are too many, and removes those that have been over for 90 days. Reads the whole table,
/// which [`KEYS_MAX`] bounds; several at once may pass the bound by their number.
const CREATE: &str = "
with over as (
  delete from api_keys where least(revoke_time, expire_time) < now() - interval '90 days'
)
insert into api_keys (id, name, role, tenant, secret_sha256, create_time, expire_time)
select $1, $2, $3, $4, $5, now(), now() + make_interval(secs => $6)
where (select count(*) from api_keys where revoke_time is null and (expire_time is null or expire_time > now())) < $7";

macro_rules! select {
    ($condition:literal) => {
        concat!(
            "
select id, name, role, tenant, secret_sha256, create_time, expire_time, revoke_time, last_used_time,
       revoke_time is null and (expire_time is null or expire_time > now())
from api_keys ",
            $condition
        )
    };
}

const LIST: &str = select!("order by id");

/// The whole table: it is small, and read by every replica each few seconds.
const LIVE: &str = select!("where revoke_time is null and (expire_time is null or expire_time > now())");

/// Locks one row by `api_keys_pkey`. A key that was revoked stays revoked since then.
const REVOKE: &str = "update api_keys set revoke_time = coalesce(revoke_time, now()) where id = $1";

/// Locks the rows in id order first, as everywhere. Changes no indexed column.
const USED: &str = "
with used as (
  select k.id, u.time from unnest($1::uuid[], $2::timestamptz[]) as u (id, time) join api_keys k on k.id = u.id
  order by k.id for no key update of k
)
update api_keys k set last_used_time = greatest(k.last_used_time, used.time) from used where k.id = used.id";

impl Keys {
    /// Connects and brings the schema up to date; the pair of them for making keys.
    pub async fn open(config: &Config) -> std::result::Result<(Self, DbClock), ConnectError> {
        let pool::Pools { reader, .. } = pool::connect(config).await?;
        pool::migrate(&reader).await?;
        let clock = DbClock::start(&reader).await?;
        Ok((Self(reader), clock))
    }

    pub(super) const fn over(reader: Connections) -> Self {
        Self(reader)
    }

    /// Makes a key; `false` where there are [`KEYS_MAX`] already.
    pub async fn create(&self, key: &NewKey) -> Result<bool> {
        let made = sqlx::query(CREATE)
            .bind(key.id.uuid())
            .bind(&key.name)
            .bind(key.role.number())
            .bind(tenant_of(&key.scope))
            .bind(&key.digest.as_bytes()[..])
            .bind(key.expires_in.map(|span| span.as_secs_f64()))
            .bind(KEYS_MAX)
            .execute(&self.0)
            .await?;
        Ok(made.rows_affected() > 0)
    }

    /// Every key, oldest first, those that are over too.
    pub async fn list(&self) -> Result<Vec<KeyRecord>> {
        let rows = sqlx::query(LIST).fetch_all(&self.0).await?;
        rows.iter().map(read_key).collect()
    }

    /// Every key that can be used now, within `limit`.
    pub async fn live(&self, limit: Duration) -> Result<Vec<KeyRecord>> {
        let rows = sqlx::query(LIVE).fetch_all(&self.0.within(limit)).await?;
        rows.iter().map(read_key).collect()
    }

    /// Revokes a key; `false` where there is none.
    pub async fn revoke(&self, id: KeyId) -> Result<bool> {
        Ok(sqlx::query(REVOKE).bind(id.uuid()).execute(&self.0).await?.rows_affected() > 0)
    }

    /// Notes when keys were used.
    pub async fn note_used(&self, used: &[(KeyId, Timestamp)]) -> Result<()> {
        let ids: Vec<Uuid> = used.iter().map(|(id, _)| id.uuid()).collect();
        let times: Vec<PgTime> = used.iter().map(|(_, time)| PgTime(*time)).collect();
        sqlx::query(USED).bind(ids).bind(times).execute(&self.0).await?;
        Ok(())
    }
}

fn tenant_of(scope: &Scope) -> Option<&str> {
    match scope {
        Scope::Tenant(tenant) => Some(tenant.as_str()),
        Scope::All => None,
    }
}

fn read_key(row: &PgRow) -> Result<KeyRecord> {
    let time = |column: usize| -> Result<_> { Ok(row.try_get::<Option<PgTime>, _>(column)?.map(|time| time.0)) };
    let digest: Vec<u8> = row.try_get(4)?;
    let digest = digest.try_into().map_err(|_| Error::Unreadable("a digest of another length".to_owned()))?;
    let tenant: Option<String> = row.try_get(3)?;
    Ok(KeyRecord {
        id: KeyId::from_uuid(row.try_get(0)?),
        name: row.try_get(1)?,
        role: stored("role", row.try_get(2)?, Role::from_number)?,
        scope: tenant.map_or(Scope::All, |tenant| Scope::Tenant(Tenant::from_stored(tenant))),
        digest: KeyDigest::from_stored(digest),
        create_time: row.try_get::<PgTime, _>(5)?.0,
        expire_time: time(6)?,
        revoke_time: time(7)?,
        last_used_time: time(8)?,
        is_live: row.try_get(9)?,
    })
}
