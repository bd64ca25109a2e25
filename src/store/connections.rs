//! Connections to the database, in a pool that costs a statement nothing and whose statements have an end of ours, beside
//! the server's.
//!
//! sqlx opens connections and speaks on them; which is used next is decided here. Its own pool asks each one that comes
//! back whether it is well, which is a round trip for every statement, and uses them in turn, so that under load every
//! backend's plans and catalogs are cold in the processor's caches. Here the one that came back last goes out first, and
//! only what met an error is asked.
//!
//! The server's `statement_timeout` ends what is slow. It cannot end what never reaches it, or whose answer never comes
//! back: behind a link that swallows packets, or a failover that forgot the connection, a statement would wait without
//! end. Therefore a connection is given back only when its statement has ended; any other is closed, and opened anew.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, join_all};
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection as _, Describe, Either, Execute, Executor, PgConnection, PgPool, Postgres, SqlStr};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections to the database. Statements run on it as on sqlx's own pool.
#[derive(Debug, Clone)]
pub(super) struct Connections {
    /// What opens them; they leave it at once.
    opener: PgPool,
    shelf: Arc<Shelf>,
    /// How long a statement, or a transaction, may take from here.
    patience: Duration,
}

/// The connections that nobody uses, and how many may be in use.
#[derive(Debug)]
struct Shelf {
    /// One for each connection that may be open. An idle one needs none: whoever has a turn takes it first.
    turns: Arc<Semaphore>,
    turns_max: u32,
    /// In the order in which they came back.
    idle: Mutex<Vec<Idle>>,
    doubt: Arc<Doubt>,
}

#[derive(Debug)]
struct Idle {
    connection: PgConnection,
    opened: Instant,
    since: Instant,
}

/// How long a caller waits for a free connection, or for one to be opened.
const LEND_MAX: Duration = Duration::from_secs(5);
/// A connection that nobody needed for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(60);

impl Shelf {
    /// The one that came back last, of those that are to be trusted.
    fn take(&self) -> Option<Idle> {
        loop {
            let last = self.lock().pop()?;
            if !self.doubt.covers(last.opened) {
                return Some(last);
            }
        }
    }

    fn put(&self, connection: PgConnection, opened: Instant) {
        let one = Idle { connection, opened, since: Instant::now() };
        self.lock().push(one);
    }

    fn take_all(&self) -> Vec<Idle> {
        std::mem::take(&mut self.lock())
    }

    fn idle_count(&self) -> usize {
        self.lock().len()
    }

    /// Those that have been idle since before `start`.
    fn take_unused(&self, start: Instant) -> Vec<Idle> {
        let mut idle = self.lock();
        let unused = idle.partition_point(|one| one.since < start);
        idle.drain(..unused).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes what nobody needs any more, for as long as the connections are there.
async fn close_unused(shelf: Weak<Shelf>) {
    loop {
        tokio::time::sleep(IDLE_MAX / 4).await;
        let Some(shelf) = shelf.upgrade() else { return };
        let unused = Instant::now().checked_sub(IDLE_MAX).map(|start| shelf.take_unused(start));
        drop(shelf);
        close_all(unused.unwrap_or_default()).await;
    }
}

/// Whatever a farewell meets, the connection is gone.
async fn close_all(idle: Vec<Idle>) {
    let farewells = join_all(idle.into_iter().map(|one| one.connection.close()));
    let _ = tokio::time::timeout(LEND_MAX, farewells).await;
}

/// Since when connections are not to be trusted: one of them did not answer in time or was found broken, so the others, which
/// were opened over the same link, need not be waited for one after the other. All pools of a process share it.
#[derive(Debug)]
pub(super) struct Doubt {
    started: Instant,
    /// Microseconds since `started`.
    since: AtomicU64,
}

impl Doubt {
    pub(super) fn none() -> Arc<Self> {
        Arc::new(Self { started: Instant::now(), since: AtomicU64::new(0) })
    }

    fn raise(&self, now: Instant) {
        self.since.fetch_max(self.micros(now), Ordering::Relaxed);
    }

    /// Whether a connection that was opened then was opened before the doubt arose.
    fn covers(&self, opened: Instant) -> bool {
        self.micros(opened) < self.since.load(Ordering::Relaxed)
    }

    fn micros(&self, time: Instant) -> u64 {
        u64::try_from(time.saturating_duration_since(self.started).as_micros()).unwrap_or(u64::MAX)
    }
}

impl Connections {
    /// Opens connections as they are needed, `max` at most.
    pub(super) fn open_lazily(max: u32, options: PgConnectOptions, doubt: &Arc<Doubt>, patience: Duration) -> Self {
        let opener = PgPoolOptions::new()
            .max_connections(max)
            .acquire_timeout(LEND_MAX)
            // While the database is away everything waits for a connection, and would say so.
            .acquire_slow_level(tracing::log::LevelFilter::Debug)
            .connect_lazy_with(options);
        let shelf = Arc::new(Shelf {
            turns: Arc::new(Semaphore::new(max as usize)),
            turns_max: max,
            idle: Mutex::default(),
            doubt: Arc::clone(doubt),
        });
        tokio::spawn(close_unused(Arc::downgrade(&shelf)));
        Self { opener, shelf, patience }
    }

    /// The same connections for statements that have to answer sooner.
    pub(super) fn within(&self, patience: Duration) -> Self {
        Self { patience, ..self.clone() }
    }

    /// A connection for several statements.
    pub(super) async fn lend(&self) -> sqlx::Result<Lent> {
        let turns = &self.shelf.turns;
        if let Ok(turn) = Arc::clone(turns).try_acquire_owned() {
            return self.take_or_open(turn).await;
        }
        let lending = async {
            let turn = Arc::clone(turns).acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
            self.take_or_open(turn).await
        };
        tokio::time::timeout(LEND_MAX, lending).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    async fn take_or_open(&self, turn: OwnedSemaphorePermit) -> sqlx::Result<Lent> {
        let (connection, opened) = match self.shelf.take() {
            Some(idle) => (idle.connection, idle.opened),
            None => {
                // Before it is opened: what makes the others doubtful meanwhile may have met this one as well.
                let opened = Instant::now();
                (self.opener.acquire().await?.detach(), opened)
            }
        };
        Ok(Lent { connection, opened, turn, shelf: Arc::clone(&self.shelf) })
    }

    /// Runs what is done with a lent connection, for as long as a statement may take. An error of the outer kind means
    /// that it was given up: what it did is unknown.
    pub(super) async fn bounded<F: Future>(&self, work: F) -> sqlx::Result<F::Output> {
        tokio::time::timeout(self.patience, work).await.map_err(|_| {
            self.shelf.doubt.raise(Instant::now());
            let words = format!("no answer within {} s", self.patience.as_secs_f64());
            sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, words))
        })
    }

    /// How many are open or being opened, and how many of those are not in use.
    pub(super) fn counts(&self) -> (usize, usize) {
        let idle = self.shelf.idle_count();
        let used = (self.shelf.turns_max as usize).saturating_sub(self.shelf.turns.available_permits());
        (used + idle, idle)
    }

    /// Closes every connection, once the statements under way have ended.
    pub(super) async fn close(&self) {
        let all = self.shelf.turns.acquire_many(self.shelf.turns_max).await;
        self.shelf.turns.close();
        drop(all);
        self.opener.close().await;
        close_all(self.shelf.take_all()).await;
    }
}

/// A connection that somebody uses. Dropped before it is given back, it is closed.
#[derive(Debug)]
pub(super) struct Lent {
    connection: PgConnection,
    opened: Instant,
    turn: OwnedSemaphorePermit,
    shelf: Arc<Shelf>,
}

impl Lent {
    /// Its work has ended well: others may use it.
    pub(super) fn give_back(self) {
        self.shelf.put(self.connection, self.opened);
        drop(self.turn);
    }

    /// Its work has ended, well or not. After an error it is asked first, and so it is where something is left to be sent: the
    /// rollback of a transaction that was dropped.
    pub(super) fn give_back_after<T, E>(mut self, ended: &Result<T, E>) {
        if ended.is_ok() && !self.connection.should_flush() {
            return self.give_back();
        }
        let ended_at = Instant::now();
        tokio::spawn(async move {
            match tokio::time::timeout(LEND_MAX, self.connection.ping()).await {
                Ok(Ok(())) => self.give_back(),
                // The server may have gone, and the others with it.
                _ => self.shelf.doubt.raise(ended_at),
            }
        });
    }
}

impl Deref for Lent {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl<'p> Executor<'p> for &'_ Connections {
    type Database = Postgres;

    /// Rows are handed on once all are here: a reader that stalls between them would hold the connection.
    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, sqlx::Result<Either<<Postgres as sqlx::Database>::QueryResult, <Postgres as sqlx::Database>::Row>>>
    where
        E: 'q + Execute<'q, Postgres>,
    {
        let connections = self.clone();
        let all = async move {
            let mut lent = connections.lend().await?;
            let answered = connections.bounded(lent.fetch_many(query).try_collect::<Vec<_>>()).await?;
            lent.give_back_after(&answered);
            Ok::<_, sqlx::Error>(stream::iter(answered?.into_iter().map(Ok)))
        };
        stream::once(all).try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, sqlx::Result<Option<<Postgres as sqlx::Database>::Row>>>
    where
        E: 'q + Execute<'q, Postgres>,
    {
        let connections = self.clone();
        Box::pin(async move {
            let mut lent = connections.lend().await?;
            let answered = connections.bounded(lent.fetch_optional(query)).await?;
            lent.give_back_after(&answered);
            answered
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [<Postgres as sqlx::Database>::TypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<<Postgres as sqlx::Database>::Statement>>
    where
        'p: 'e,
    {
        let connections = self.clone();
        Box::pin(async move {
            let mut lent = connections.lend().await?;
            let answered = connections.bounded(lent.prepare_with(sql, parameters)).await?;
            lent.give_back_after(&answered);
            answered
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<Postgres>>>
    where
        'p: 'e,
    {
        let connections = self.clone();
        Box::pin(async move {
            let mut lent = connections.lend().await?;
            let answered = connections.bounded(lent.describe(sql)).await?;
            lent.give_back_after(&answered);
            answered
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubt_covers_what_was_opened_before_it() {
        let doubt = Doubt::none();
        let after = |millis| doubt.started + Duration::from_millis(millis);
        assert!(!doubt.covers(after(0)) && !doubt.covers(after(9)));
        doubt.raise(after(5));
        doubt.raise(after(3));
        assert!(doubt.covers(after(0)) && doubt.covers(after(4)));
        assert!(!doubt.covers(after(6)), "opened since");
    }
}
