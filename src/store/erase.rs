//! Erasing a tenant: its doors are closed, and then everything of it is removed, from every table of the schema, in
//! batches, over and over until nothing is found. Whoever is stopped in the middle begins anew and finds less.
//!
//! Which tables there are is read from the catalog, and what of a table is the tenant's from its columns: so that a table
//! that somebody adds is not forgotten, nor a day that is detached and not dropped yet.

use std::time::{Duration, Instant};

use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, Row};

use super::connections::Connections;
use super::error::{Error, Result};
use super::pool::{self, Config, ConnectError};
use crate::domain::fields::Tenant;

/// The removal of one tenant.
#[derive(Debug)]
pub struct Erasure {
    connections: Connections,
    tenant: Tenant,
}

/// What a round removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Erased {
    /// Rows of each table from which any were, by its name.
    pub tables: Vec<(String, u64)>,
    /// Whether the tenant had anything but the rows that name it and its endpoints and replays, which go last: the others
    /// are found by them.
    pub had_contents: bool,
}

impl Erased {
    /// All of them.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|(_, rows)| rows).sum()
    }
}

/// What kept others from the tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Keys that nobody can call with any more.
    pub keys: u64,
    /// Endpoints that nothing is matched, queued or sent to any more.
    pub endpoints: u64,
}

/// By `endpoints_tenant`. What matched before is not current any more, and is matched again.
const CLOSE: &str = "
with keys as (
  delete from api_keys where tenant = $1 returning id
), closed as (
  update endpoints set delete_time = now(), update_time = now(), version = version + 1
  where tenant = $1 and delete_time is null
  returning id
), moved as (
  update tenants set config_version = config_version + 1 where tenant = $1
)
select (select count(*) from keys), (select count(*) from closed)";

/// Tables with something of a tenant: by its name, or by the id of an endpoint or a replay of it. What they are found by
/// goes last.
const TABLES: &str = "
select c.relname::text, quote_ident(c.relname),
       pg_relation_size(c.oid) / current_setting('block_size')::bigint + 1,
       array(select a.attname::text from pg_attribute a
             where a.attrelid = c.oid and a.attname = any('{tenant,endpoint_id,replay_id}') and not a.attisdropped),
       c.relname in ('endpoints', 'replays', 'tenants')
from pg_class c
where c.relnamespace = 'hooklane'::regnamespace and c.relkind = 'r'
  and exists (select from pg_attribute a
              where a.attrelid = c.oid and a.attname = any('{tenant,endpoint_id,replay_id}') and not a.attisdropped)
order by c.relname <> 'outstanding', c.relname";

/// By what rows without the tenant's name are found.
const IDS: &str = "
select id from endpoints where tenant = $1 union all select id from replays where tenant = $1";

/// Pages that one statement looks through: 8 MB, and at most some tens of thousands of rows.
const PAGES: i64 = 1_000;
/// How often a batch that lost against other transactions is tried again.
const TRIES: u32 = 10;
/// How long counts that replicas hold in memory may take to be on record: three times as long as they do.
const FLUSH: Duration = Duration::from_secs(15);
/// How long transactions are waited for that began before.
const OTHERS_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

struct Table {
    name: String,
    quoted: String,
    pages: i64,
    has_tenant: bool,
    /// The other columns that tell.
    ids: Vec<String>,
    is_root: bool,
}

impl Erasure {
    /// Connects and brings the schema up to date.
    pub async fn open(config: &Config, tenant: Tenant) -> std::result::Result<Self, ConnectError> {
        let pool::Pools { reader, .. } = pool::connect(config).await?;
        pool::migrate(&reader).await?;
        Ok(Self { connections: reader, tenant })
    }

    /// Ends the tenant's keys and endpoints: from here on nobody can call for it alone, and nothing is sent.
    pub async fn close(&self) -> Result<Closed> {
        let row = sqlx::query(CLOSE).bind(self.tenant.as_str()).fetch_one(&self.connections).await?;
        let count = |column: usize| -> Result<u64> { Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0)) };
        Ok(Closed { keys: count(0)?, endpoints: count(1)? })
    }

    /// Removes everything that is found now. `tell` hears of each table from which rows were removed.
    pub async fn round(&self, mut tell: impl FnMut(&str, u64)) -> Result<Erased> {
        let ids: Vec<Uuid> = sqlx::query_scalar(IDS).bind(self.tenant.as_str()).fetch_all(&self.connections).await?;
        let tables = self.tables().await?;
        let mut erased = Erased::default();
        for are_roots in [false, true] {
            if are_roots && erased.had_contents {
                break;
            }
            for table in tables.iter().filter(|table| table.is_root == are_roots) {
                let rows = self.empty(table, &ids).await?;
                if rows > 0 {
                    tell(&table.name, rows);
                    erased.tables.push((table.name.clone(), rows));
                    erased.had_contents |= !are_roots;
                }
            }
        }
        Ok(erased)
    }

    /// Waits until whatever was under way while a round was at work is on record: counts that replicas hold, where there
    /// was anything to count, and transactions that began before. `false` where some of those do not end.
    pub async fn settle(&self, erased: &Erased) -> Result<bool> {
        if erased.had_contents {
            tokio::time::sleep(FLUSH).await;
        }
        let mark: String = sqlx::query_scalar("select pg_snapshot_xmax(pg_current_snapshot())::text")
            .fetch_one(&self.connections)
            .await?;
        let until = Instant::now() + OTHERS_MAX;
        loop {
            let is_over: bool = sqlx::query_scalar("select pg_snapshot_xmin(pg_current_snapshot()) >= $1::text::xid8")
                .bind(&mark)
                .fetch_one(&self.connections)
                .await?;
            if is_over || Instant::now() >= until {
                return Ok(is_over);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn tables(&self) -> Result<Vec<Table>> {
        type Columns = (String, String, i64, Vec<String>, bool);
        let rows: Vec<Columns> = sqlx::query_as(TABLES).fetch_all(&self.connections).await?;
        let table = |(name, quoted, pages, columns, is_root): Columns| {
            let has_tenant = columns.iter().any(|column| column == "tenant");
            let ids = columns.into_iter().filter(|column| column != "tenant").collect();
            Table { name, quoted, pages, has_tenant, ids, is_root }
        };
        Ok(rows.into_iter().map(table).collect())
    }

    /// Removes the tenant's rows of a table, some pages of it after the other: no index has them all.
    async fn empty(&self, table: &Table, ids: &[Uuid]) -> Result<u64> {
        if !table.has_tenant && ids.is_empty() {
            return Ok(0);
        }
        let is_ours = match table.has_tenant {
            true => "tenant = $1".to_owned(),
            false => table.ids.iter().map(|column| format!("{column} = any($1)")).collect::<Vec<_>>().join(" or "),
        };
        let mut sum = 0;
        for from in (0..table.pages).step_by(usize::try_from(PAGES).unwrap_or(1)) {
            // A name from the catalog, and numbers.
            let statement = format!(
                "delete from hooklane.{} where ctid >= '({from},0)'::tid and ctid < '({},0)'::tid and ({is_ours})",
                table.quoted,
                from + PAGES
            );
            sum += self.delete(&statement, table.has_tenant, ids).await?;
        }
        Ok(sum)
    }

    async fn delete(&self, statement: &str, has_tenant: bool, ids: &[Uuid]) -> Result<u64> {
        for _ in 0..TRIES {
            let query = sqlx::query(AssertSqlSafe(statement.to_owned()));
            let query = if has_tenant { query.bind(self.tenant.as_str()) } else { query.bind(ids) };
            match query.execute(&self.connections).await.map_err(Error::from) {
                Ok(done) => return Ok(done.rows_affected()),
                // Somebody locked the same rows the other way round.
                Err(Error::Conflict(_)) => {}
                // A day that was dropped meanwhile: undefined_table.
                Err(Error::Internal(sqlx::Error::Database(refusal))) if refusal.code().as_deref() == Some("42P01") => {
                    return Ok(0);
                }
                Err(other) => return Err(other),
            }
        }
        Err(Error::Unreadable("rows that are always locked".to_owned()))
    }
}
