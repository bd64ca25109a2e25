//! Who runs on this database, and the connection by which a replica says that it does: it holds the advisory lock that
//! vouches for the row, carries the heartbeats, and LISTENs and NOTIFYs, beside the pools and never in their
//! transactions.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::Row;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions, PgRow};
use sqlx::types::Uuid;

use super::error::{Error, Result};
use super::notes::{CHANNEL, Note};
use super::{Roles, Store};

/// A replica as the others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Of this stay: whoever comes back has another.
    pub id: Uuid,
    /// Of the process, as attempts show it.
    pub name: String,
    /// Of the program.
    pub version: String,
    /// What it does.
    pub roles: Roles,
    /// Whether it drives lanes, or is about to.
    pub drives: bool,
    /// The drivers it reckons with.
    pub sees: Vec<Uuid>,
    /// Since its last heartbeat, by the database's clock.
    pub silent_for: Duration,
}

/// What a heartbeat finds.
#[derive(Debug, Default)]
pub struct Roll {
    /// Everybody who is there, this replica too unless it was removed.
    pub here: Vec<Replica>,
    /// Whom this heartbeat found dead, and removed.
    pub removed: Vec<Replica>,
}

/// A replica's connection beside the pools.
#[derive(Debug)]
pub struct Session {
    listener: PgListener,
    /// Of one connection, the listener's.
    pool: PgPool,
    id: Uuid,
    notify: bool,
}

/// Silent for this long is dead.
pub const DEAD_AFTER: Duration = Duration::from_secs(10);
/// Rows at most: each heartbeat reads them all.
const REPLICAS_MAX: i64 = 256;
/// How long anything on the session may take; then it counts as lost.
const PATIENCE: Duration = Duration::from_secs(3);

/// What nobody must wait for a disk for: whoever loses the database's last moment has lost its session as well.
const SESSION: [(&str, &str); 2] = [("synchronous_commit", "off"), ("statement_timeout", "3s")];

const LOCK: &str = "select pg_try_advisory_lock($1)";

const ENTER: &str = "
with earlier as (delete from replicas where id = $2)
insert into replicas (id, name, version, api, worker, drives, sees, session_key, join_time, beat_time)
select $1, $3, $4, $5, $6, false, '{}', $7, now(), now()
where (select count(*) from replicas) < $8";

/// One round trip: beats, removes the dead, and reads who is there. A row that is being beaten for, or removed, by
/// somebody else at this moment is skipped; so that a heartbeat that came to pass and a removal exclude each other,
/// and nobody counts as dead whose row was not removed.
const BEAT: &str = "
with mine as (
  update replicas set beat_time = now(), drives = $2, sees = $3 where id = $1 returning id
), removed as (
  delete from replicas where id = any(array(
    select id from replicas
    where id <> $1 and (beat_time < now() - make_interval(secs => $4) or pg_try_advisory_xact_lock(session_key))
    for update skip locked))
  returning id
)
select r.id, r.name, r.version, r.api, r.worker, r.drives, r.sees,
       greatest(extract(epoch from now() - r.beat_time), 0)::float8 as silent_s,
       case when r.id = $1 then not exists (select from mine) else r.id in (select id from removed) end as is_gone
from replicas r";

const LIST: &str = "
select id, name, version, api, worker, drives, sees, greatest(extract(epoch from now() - beat_time), 0)::float8
from replicas order by name, id";

const NOTIFY: &str = "select pg_notify($1, payload) from unnest($2::text[]) payload";

const LEAVE: &str = "delete from replicas where id = $1";

impl Store {
    /// Connects beside the pools and listens: what is told from here on is heard.
    pub async fn session(&self) -> Result<Session> {
        let pool = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None);
        let pool = pool.acquire_timeout(PATIENCE).connect_lazy_with(self.session_options.0.clone());
        let id = self.clock.new_uuid();
        let listener = soon(async {
            let mut listener = PgListener::connect_with(&pool).await?;
            // A lost connection is a lost session, not one to be mended behind our back.
            listener.eager_reconnect(false);
            listener.listen(CHANNEL).await?;
            sqlx::query(LOCK).bind(key_of(id)).execute(&mut listener).await?;
            Ok(listener)
        });
        Ok(Session { listener: listener.await?, pool: pool.clone(), id, notify: self.notify })
    }

    /// Joins the others in place of an `earlier` stay; `false` where there are too many. Nobody leaves a lane to this
    /// replica before it says that it drives.
    pub async fn join(&self, session: &mut Session, roles: Roles, earlier: Option<Uuid>) -> Result<bool> {
        let joined = sqlx::query(ENTER)
            .bind(session.id)
            .bind(earlier)
            .bind(&self.replica)
            .bind(env!("CARGO_PKG_VERSION"))
            .bind(roles.api)
            .bind(roles.worker)
            .bind(key_of(session.id))
            .bind(REPLICAS_MAX)
            .execute(&mut session.listener);
        Ok(soon(joined).await?.rows_affected() > 0)
    }

    /// The rows of all replicas, dead ones included until somebody finds them.
    pub async fn replicas(&self) -> Result<Vec<Replica>> {
        let rows = sqlx::query(LIST).fetch_all(&self.reader).await?;
        rows.iter().map(read_replica).collect()
    }
}

impl Session {
    /// Names this stay.
    pub const fn id(&self) -> Uuid {
        self.id
    }

    /// Says that this replica lives, what it does and whom it reckons with; answers who is there.
    pub async fn beat(&mut self, drives: bool, sees: &[Uuid]) -> Result<Roll> {
        let rows = sqlx::query(BEAT)
            .bind(self.id)
            .bind(drives)
            .bind(sees)
            .bind(DEAD_AFTER.as_secs_f64())
            .fetch_all(&mut self.listener);
        let mut roll = Roll::default();
        for row in &soon(rows).await? {
            let to = if row.try_get(8)? { &mut roll.removed } else { &mut roll.here };
            to.push(read_replica(row)?);
        }
        Ok(roll)
    }

    /// Tells the others, unless this replica is set to keep to itself: then they find it when they look.
    pub async fn tell(&mut self, note: &Note) -> Result<()> {
        if !self.notify {
            return Ok(());
        }
        let payloads = note.payloads(self.id);
        soon(sqlx::query(NOTIFY).bind(CHANNEL).bind(payloads).execute(&mut self.listener)).await?;
        Ok(())
    }

    /// The next that another one tells. Safe to drop while it waits.
    pub async fn heard(&mut self) -> Result<Note> {
        loop {
            let lost = || sqlx::Error::Io(std::io::ErrorKind::ConnectionAborted.into());
            let notification = self.listener.try_recv().await?.ok_or_else(lost)?;
            match Note::parse(notification.payload()) {
                Some((sender, note)) if sender != self.id => return Ok(note),
                _ => {}
            }
        }
    }

    /// Takes this replica's row away and closes the connection.
    pub async fn leave(mut self) -> Result<()> {
        soon(sqlx::query(LEAVE).bind(self.id).execute(&mut self.listener)).await?;
        self.tell(&Note::Members { to: None }).await?;
        drop(self.listener);
        // Its end is no news to anybody: the row is gone.
        let _ = tokio::time::timeout(PATIENCE, self.pool.close()).await;
        Ok(())
    }
}

/// Any key that nobody else uses: 62 random bits.
fn key_of(id: Uuid) -> i64 {
    id.as_u64_pair().1.cast_signed()
}

/// The options of a session's connection.
pub(super) fn for_session(options: PgConnectOptions) -> PgConnectOptions {
    options.options(SESSION)
}

async fn soon<T>(answer: impl Future<Output = sqlx::Result<T>>) -> Result<T> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Error::Unavailable(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))),
    }
}

fn read_replica(row: &PgRow) -> Result<Replica> {
    Ok(Replica {
        id: row.try_get(0)?,
        name: row.try_get(1)?,
        version: row.try_get(2)?,
        roles: Roles { api: row.try_get(3)?, worker: row.try_get(4)? },
        drives: row.try_get(5)?,
        sees: row.try_get(6)?,
        silent_for: Duration::try_from_secs_f64(row.try_get(7)?).unwrap_or(Duration::MAX),
    })
}
