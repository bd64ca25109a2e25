//! Bringing every secret under the key that seals now, while replicas run.
//!
//! A page is read, opened, sealed anew and written back where nobody else has changed it meanwhile, in one statement: the
//! work may end between any two pages and be begun again. Reached without a whole [`super::Store`], like the API keys.

use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::{Json, Uuid};

use super::connections::Connections;
use super::error::{Error, Result};
use super::pool::{self, Config, ConnectError};
use super::vault::{Kept, PrivateColumns, Vault};
use crate::domain::fields::Tenant;
use crate::domain::id::EndpointId;
use crate::domain::keyring::Place;

/// The secrets of an installation.
#[derive(Debug, Clone)]
pub struct Rewrap {
    pool: Connections,
    vault: Vault,
}

/// What one pass over everything did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Pass {
    /// Values that were brought under the key.
    pub rewrapped: u64,
    /// Values that were not under it and still are not: somebody changed them meanwhile.
    pub missed: u64,
    /// Endpoints of which something does not open, and why.
    pub unreadable: Vec<(EndpointId, String)>,
}

/// How much is under which key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyUse {
    /// The key; `None` for what is not sealed.
    pub id: Option<String>,
    /// Signing secrets.
    pub secrets: i64,
    /// Endpoints' settings.
    pub settings: i64,
}

/// Values of one statement.
const PAGE: i64 = 200;

/// Walks `endpoint_secrets_pkey`.
const SECRETS: &str = "
select s.endpoint_id as id, s.version, s.secret, s.key_id, e.tenant
from endpoint_secrets s join endpoints e on e.id = s.endpoint_id
where (s.endpoint_id, s.version) > ($1, $2) and s.key_id is distinct from $3
order by s.endpoint_id, s.version limit $4";

/// A secret's value is changed by this alone, so its key tells whether it still is what was read. Takes the rows' locks in
/// the order of their key, and leaves out what somebody else holds.
const WRITE_SECRETS: &str = "
with given as (
  select * from unnest($1::uuid[], $2::int[], $3::bytea[], $4::text[], $5::text[])
    as g (endpoint_id, version, secret, key_id, former_key_id)
), locked as materialized (
  select s.endpoint_id, s.version from endpoint_secrets s join given g using (endpoint_id, version)
  where s.key_id is not distinct from g.former_key_id
  order by s.endpoint_id, s.version for no key update of s skip locked
)
update endpoint_secrets s set secret = g.secret, key_id = g.key_id
from locked l join given g using (endpoint_id, version)
where s.endpoint_id = l.endpoint_id and s.version = l.version";

/// Walks `endpoints_pkey`.
const SETTINGS: &str = "
select e.id, e.tenant, e.version, e.url, e.headers, e.client_key_pem, e.sealed, e.sealed_key_id, e.sealed_version
from endpoints e
where e.id > $1 and e.sealed_key_id is distinct from $2
order by e.id limit $3";

/// Whatever an owner changes moves the version, so that and the key tell whether the row still is what was read. Moves no
/// version itself: nothing has changed for anybody. Takes the rows' locks in the order of their key, and leaves out what
/// somebody else holds.
const WRITE_SETTINGS: &str = "
with given as (
  select * from unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::jsonb[], $6::text[], $7::bytea[], $8::text[],
                       $9::bigint[])
    as g (id, version, former_key_id, url, headers, client_key_pem, sealed, sealed_key_id, sealed_version)
), locked as materialized (
  select e.id from endpoints e join given g using (id)
  where e.version = g.version and e.sealed_key_id is not distinct from g.former_key_id
  order by e.id for no key update of e skip locked
)
update endpoints e set url = g.url, headers = g.headers, client_key_pem = g.client_key_pem, sealed = g.sealed,
       sealed_key_id = g.sealed_key_id, sealed_version = g.sealed_version
from locked l join given g using (id)
where e.id = l.id";

/// A key that a replica added goes on being needed until that replica seals with another.
const FORGET_UNUSED: &str = "
delete from encryption_keys k
where k.id is distinct from $1
  and not exists (select from endpoint_secrets s where s.key_id = k.id)
  and not exists (select from endpoints e where e.sealed_key_id = k.id)
returning k.id";

/// Reads both tables whole.
const USE: &str = "
select k.id, coalesce(s.count, 0) as secrets, coalesce(e.count, 0) as settings
from (select id from encryption_keys union select null) k
left join (select key_id, count(*) from endpoint_secrets group by key_id) s on s.key_id is not distinct from k.id
left join (select sealed_key_id, count(*) from endpoints group by sealed_key_id) e
  on e.sealed_key_id is not distinct from k.id
order by k.id nulls last";

impl Rewrap {
    /// Connects, brings the schema up to date and sees that the keys are those that are needed.
    pub async fn open(config: &Config) -> std::result::Result<Self, ConnectError> {
        let pool::Pools { reader, .. } = pool::connect(config).await?;
        pool::migrate(&reader).await?;
        let vault = Vault::new(config.encryption.clone());
        vault.check_keys(&reader).await?;
        Ok(Self { pool: reader, vault })
    }

    /// Goes over everything once. `progress` is told the values rewrapped so far, a page at a time.
    pub async fn pass(&self, mut progress: impl FnMut(u64)) -> Result<Pass> {
        let mut pass = Pass::default();
        let mut after = (Uuid::nil(), 0);
        while let Some(last) = self.secrets_page(after, &mut pass).await? {
            after = last;
            progress(pass.rewrapped);
        }
        let mut after = Uuid::nil();
        while let Some(last) = self.settings_page(after, &mut pass).await? {
            after = last;
            progress(pass.rewrapped);
        }
        pass.unreadable.sort_by_key(|(endpoint, _)| endpoint.uuid());
        pass.unreadable.dedup_by_key(|(endpoint, _)| *endpoint);
        Ok(pass)
    }

    /// Removes the keys under which nothing is, but for the one that seals; answers which.
    pub async fn forget_unused(&self) -> Result<Vec<String>> {
        Ok(sqlx::query_scalar(FORGET_UNUSED).bind(self.vault.sealing_key()).fetch_all(&self.pool).await?)
    }

    /// How much is under which key, and last what is under none.
    pub async fn usage(&self) -> Result<Vec<KeyUse>> {
        let rows = sqlx::query(USE).fetch_all(&self.pool).await?;
        let read = |row: &PgRow| {
            Ok(KeyUse { id: row.try_get("id")?, secrets: row.try_get("secrets")?, settings: row.try_get("settings")? })
        };
        rows.iter().map(read).collect()
    }

    /// The next secrets; answers the last of them, or `None` at the end.
    async fn secrets_page(&self, after: (Uuid, i32), pass: &mut Pass) -> Result<Option<(Uuid, i32)>> {
        let query = sqlx::query(SECRETS).bind(after.0).bind(after.1).bind(self.vault.sealing_key()).bind(PAGE);
        let rows = query.fetch_all(&self.pool).await?;
        let Some(last) = rows.last() else { return Ok(None) };
        let last = (last.try_get("id")?, last.try_get("version")?);
        let mut columns = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for row in &rows {
            let (id, version): (Uuid, i32) = (row.try_get("id")?, row.try_get("version")?);
            let former: Option<String> = row.try_get("key_id")?;
            let tenant = Tenant::from_stored(row.try_get("tenant")?);
            let place = Place::Secret(&tenant, EndpointId::from_uuid(id), version);
            let opened = self.vault.open(place, former.as_deref(), row.try_get("secret")?);
            let Some(value) = pass.readable(id, opened)? else { continue };
            let Kept { bytes, key_id } = self.vault.keep(place, &value)?;
            columns.0.push(id);
            columns.1.push(version);
            columns.2.push(bytes);
            columns.3.push(key_id);
            columns.4.push(former);
        }
        let tried = columns.0.len();
        let query = sqlx::query(WRITE_SECRETS).bind(columns.0).bind(columns.1).bind(columns.2).bind(columns.3);
        pass.count(tried, query.bind(columns.4).execute(&self.pool).await?.rows_affected());
        Ok(Some(last))
    }

    /// The settings of the next endpoints; answers the last of them, or `None` at the end.
    async fn settings_page(&self, after: Uuid, pass: &mut Pass) -> Result<Option<Uuid>> {
        let query = sqlx::query(SETTINGS).bind(after).bind(self.vault.sealing_key()).bind(PAGE);
        let rows = query.fetch_all(&self.pool).await?;
        let Some(last) = rows.last() else { return Ok(None) };
        let last = last.try_get("id")?;
        let (mut ids, mut versions, mut formers, mut kept) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for row in &rows {
            let (id, version): (Uuid, i64) = (row.try_get("id")?, row.try_get("version")?);
            let tenant = Tenant::from_stored(row.try_get("tenant")?);
            let Some(private) = pass.readable(id, self.vault.open_settings(row))? else { continue };
            // What was sealed stays bound to the version it was written with.
            let bound = row.try_get::<Option<i64>, _>("sealed_version")?.unwrap_or(version);
            kept.push(self.vault.keep_private(&tenant, EndpointId::from_uuid(id), bound, &private)?);
            ids.push(id);
            versions.push(version);
            formers.push(row.try_get::<Option<String>, _>("sealed_key_id")?);
        }
        let tried = ids.len();
        let query = bind_columns(sqlx::query(WRITE_SETTINGS).bind(ids).bind(versions).bind(formers), kept);
        pass.count(tried, query.execute(&self.pool).await?.rows_affected());
        Ok(Some(last))
    }
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

fn bind_columns<'q>(query: Query<'q>, kept: Vec<PrivateColumns>) -> Query<'q> {
    query
        .bind(kept.iter().map(|one| one.url.clone()).collect::<Vec<_>>())
        .bind(kept.iter().map(|one| Json(one.headers.clone())).collect::<Vec<_>>())
        .bind(kept.iter().map(|one| one.client_key_pem.clone()).collect::<Vec<_>>())
        .bind(kept.iter().map(|one| one.sealed.clone()).collect::<Vec<_>>())
        .bind(kept.iter().map(|one| one.sealed_key_id.clone()).collect::<Vec<_>>())
        .bind(kept.iter().map(|one| one.sealed_version).collect::<Vec<_>>())
}

impl Pass {
    /// A value, or `None` where the keys do not open it: the others are worth going on for.
    fn readable<T>(&mut self, id: Uuid, opened: Result<T>) -> Result<Option<T>> {
        match opened {
            Ok(value) => Ok(Some(value)),
            Err(error @ (Error::Sealed(_) | Error::Unreadable(_))) => {
                self.unreadable.push((EndpointId::from_uuid(id), error.to_string()));
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }

    fn count(&mut self, tried: usize, written: u64) {
        self.rewrapped += written;
        self.missed += (tried as u64).saturating_sub(written);
    }
}
