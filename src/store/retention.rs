//! Retention: days that are over leave, a partition at a time, and nobody waits for it.
//!
//! A partition is detached concurrently, which waits until no transaction uses its parent any more and holds no lock
//! meanwhile that a claim, settle, publish or reader would wait for; then it is nobody's, and is dropped. Each step is on
//! record in `leaving_partitions` or in the catalog, so that whoever comes next goes on: after a crash, or because a
//! reader took longer than one look waits for it.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};

use super::error::{Error, Result};
use super::pool::Retention;
use super::{Store, kept};

/// What one step did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retired {
    /// This partition is gone.
    Partition(String),
    /// This one is on its way out, and somebody's transaction is older: it goes on later.
    Waiting(String),
    /// Another replica is at it.
    Elsewhere,
    /// Every day that is left is to be kept.
    Nothing,
}

/// One replica at a time; any constant that nobody else uses ("retire").
const LOCK: i64 = 0x7265_7469_7265;
/// How much longer than asked a day is kept: a day's rows may be committed, and repeats of its events come, a little
/// after its end.
const GRACE: Duration = Duration::from_secs(3_600);

/// Detaching that was begun and not finished, by whomever: a parent can have one, and no other begins before it ends.
const PENDING: &str = "
select p.relname::text, quote_ident(c.relname)
from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_class p on p.oid = i.inhparent
where i.inhdetachpending and p.relnamespace = 'hooklane'::regnamespace and p.relname = any($1)
limit 1";

/// What is leaving, and whether it is still there, and attached.
const LEAVING: &str = "
select l.parent, quote_ident(l.partition), l.partition, c.oid is not null,
       exists (select from pg_inherits i where i.inhrelid = c.oid)
from leaving_partitions l
left join pg_class c on c.relnamespace = 'hooklane'::regnamespace and c.relname = l.partition
order by l.leave_time, l.partition
limit 1";

/// The first partition, in the order of the parents `$1`, that ended more than `$2` seconds ago, by its upper bound: a
/// time, or the id that was the first of its time.
const EXPIRED: &str = "
select r.parent, c.relname::text
from unnest($1::text[], $2::float8[]) with ordinality as r (parent, kept_s, place)
join pg_class p on p.relnamespace = 'hooklane'::regnamespace and p.relname = r.parent
join pg_inherits i on i.inhparent = p.oid and not i.inhdetachpending
join pg_class c on c.oid = i.inhrelid
cross join lateral (
  select substring(pg_get_expr(c.relpartbound, c.oid) from 'TO \\(''([^'']+)''\\)') as upper
) b
cross join lateral (
  select case when b.upper ~ '^[0-9a-f]{8}-' then uuid_time(b.upper::uuid) else b.upper::timestamptz end as end_time
) e
where e.end_time <= now() - make_interval(secs => r.kept_s)
order by r.place, e.end_time
limit 1";

const LEAVE: &str = "
insert into leaving_partitions (partition, parent, leave_time) values ($1, $2, now()) on conflict do nothing";

const GONE: &str = "delete from leaving_partitions where partition = $1";

/// A partition, by its parent and by its own name.
struct Day {
    parent: String,
    name: String,
    /// As it stands in a statement.
    quoted: String,
}

impl Retention {
    /// What is kept for how long; deliveries before payloads, so that those of deliveries that leave are not kept for
    /// them.
    fn parents(&self) -> [(&'static str, Duration); 4] {
        [
            ("settled_succeeded", self.succeeded),
            ("settled_failed", self.failed),
            ("timeline", self.timeline),
            ("events", self.payloads),
        ]
    }

    /// The longest that anything is kept.
    pub(super) fn longest(&self) -> Duration {
        self.parents().map(|(_, kept)| kept).into_iter().max().unwrap_or_default()
    }
}

impl Store {
    /// Takes the next step: ends what was begun, or lets the next day leave that is over. Waits some seconds for others
    /// at most, and nobody waits for it.
    pub async fn retire_day(&self) -> Result<Retired> {
        let mut lent = self.reader.lend().await?;
        let locked = sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(LOCK).fetch_one(&mut *lent);
        if !self.reader.bounded(locked).await?? {
            lent.give_back();
            return Ok(Retired::Elsewhere);
        }
        // With an error the connection is closed, and the lock is gone with it.
        let retired = self.retire_on(&mut lent).await?;
        let unlocked = sqlx::query("select pg_advisory_unlock($1)").bind(LOCK).execute(&mut *lent);
        self.reader.bounded(unlocked).await??;
        lent.give_back();
        Ok(retired)
    }

    async fn retire_on(&self, connection: &mut PgConnection) -> Result<Retired> {
        let parents = self.retention.parents();
        let names = parents.map(|(name, _)| name);
        let pending = sqlx::query_as(PENDING).bind(names).fetch_optional(&mut *connection);
        let pending: Option<(String, String)> = self.reader.bounded(pending).await??;
        if let Some((parent, quoted)) = pending {
            let finalize = format!("alter table hooklane.{parent} detach partition hooklane.{quoted} finalize");
            if !self.waits_its_turn(connection, finalize).await? {
                return Ok(Retired::Waiting(quoted));
            }
        }
        let leaving = sqlx::query_as(LEAVING).fetch_optional(&mut *connection);
        type Leaving = (String, String, String, bool, bool);
        let leaving: Option<Leaving> = self.reader.bounded(leaving).await??;
        if let Some((parent, quoted, name, is_there, is_attached)) = leaving {
            return self.leave(connection, Day { parent, name, quoted }, is_there, is_attached).await;
        }
        let kept = parents.map(|(_, kept)| (kept + GRACE).as_secs_f64());
        let expired = sqlx::query_as(EXPIRED).bind(names).bind(kept).fetch_optional(&mut *connection);
        let expired: Option<(String, String)> = self.reader.bounded(expired).await??;
        let Some((parent, name)) = expired else { return Ok(Retired::Nothing) };
        let quoted = sqlx::query_scalar("select quote_ident($1)").bind(&name).fetch_one(&mut *connection);
        let quoted: String = self.reader.bounded(quoted).await??;
        if parent == "events" {
            // Before the others cannot find them there any more.
            kept::keep_needed(self, connection, &quoted).await?;
        }
        let on_record = sqlx::query(LEAVE).bind(&name).bind(&parent).execute(&mut *connection);
        self.reader.bounded(on_record).await??;
        self.leave(connection, Day { parent, name, quoted }, true, true).await
    }

    /// Detaches a day and drops it.
    async fn leave(
        &self,
        connection: &mut PgConnection,
        day: Day,
        is_there: bool,
        is_attached: bool,
    ) -> Result<Retired> {
        let Day { parent, name, quoted } = day;
        if is_attached {
            let detach = format!("alter table hooklane.{parent} detach partition hooklane.{quoted} concurrently");
            if !self.waits_its_turn(connection, detach).await? {
                return Ok(Retired::Waiting(name));
            }
        }
        if is_there {
            if parent == "events" {
                // Transactions that put a delivery back meanwhile have ended: the detaching waited for them.
                kept::keep_needed(self, connection, &quoted).await?;
            }
            if !self.waits_its_turn(connection, format!("drop table if exists hooklane.{quoted}")).await? {
                return Ok(Retired::Waiting(name));
            }
        }
        let gone = sqlx::query(GONE).bind(&name).execute(&mut *connection);
        self.reader.bounded(gone).await??;
        Ok(Retired::Partition(name))
    }

    /// Runs a statement that waits for others; `false` where it gave up waiting (`statement_timeout`, or whoever canceled
    /// it): it goes on next time. Names in it are from the catalog, quoted.
    async fn waits_its_turn(&self, connection: &mut PgConnection, statement: String) -> Result<bool> {
        match self.reader.bounded(sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection)).await? {
            Ok(_) => Ok(true),
            // 57014: canceled; 55P03: a lock was not to be had in time.
            Err(sqlx::Error::Database(refusal)) if matches!(refusal.code().as_deref(), Some("57014" | "55P03")) => {
                Ok(false)
            }
            Err(error) => Err(Error::from(error)),
        }
    }
}
