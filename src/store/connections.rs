//! A pool whose statements have an end of ours, beside the server's.
//!
//! The server's `statement_timeout` ends what is slow. It cannot end what never reaches it, or whose answer never comes
//! back: behind a link that swallows packets, or a failover that forgot the connection, a statement would wait without
//! end. sqlx bounds the wait for a connection, but not the one for an answer, and a connection given back in the middle
//! of a statement is read from until it answers, so that the pool never gets its place back. Therefore a connection is
//! given back only when its statement has ended; any other is closed, and opened anew.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Describe, Either, Execute, Executor, PgConnection, PgPool, Postgres, SqlStr};

/// Connections to the database. Statements run on it as on sqlx's own pool.
#[derive(Debug, Clone)]
pub(super) struct Connections {
    pool: PgPool,
    doubt: Arc<Doubt>,
    /// How long a statement, or a transaction, may take from here.
    patience: Duration,
}

/// Since when connections are not to be trusted: one of them did not answer in time, so the others, which were opened
/// over the same link, need not be waited for one after the other. All pools of a process share it.
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
    /// Opens connections as they are needed.
    pub(super) fn open_lazily(
        pool: PgPoolOptions,
        options: PgConnectOptions,
        doubt: &Arc<Doubt>,
        patience: Duration,
    ) -> Self {
        let doubted = Arc::clone(doubt);
        let pool = pool.before_acquire(move |_, connection| {
            let is_doubted = Instant::now().checked_sub(connection.age).is_some_and(|opened| doubted.covers(opened));
            Box::pin(std::future::ready(Ok(!is_doubted)))
        });
        Self { pool: pool.connect_lazy_with(options), doubt: Arc::clone(doubt), patience }
    }

    /// The same connections for statements that have to answer sooner.
    pub(super) fn within(&self, patience: Duration) -> Self {
        Self { patience, ..self.clone() }
    }

    /// A connection for several statements.
    pub(super) async fn lend(&self) -> sqlx::Result<Lent> {
        Ok(Lent { connection: self.pool.acquire().await?, has_ended: false })
    }

    /// Runs what is done with a lent connection, for as long as a statement may take. An error of the outer kind means
    /// that it was given up: what it did is unknown.
    pub(super) async fn bounded<F: Future>(&self, work: F) -> sqlx::Result<F::Output> {
        tokio::time::timeout(self.patience, work).await.map_err(|_| {
            self.doubt.raise(Instant::now());
            let words = format!("no answer within {} s", self.patience.as_secs_f64());
            sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, words))
        })
    }

    /// How many are open, and how many of those are not in use.
    pub(super) fn counts(&self) -> (usize, usize) {
        let idle = self.pool.num_idle();
        // Read one after the other: a connection may be taken or opened in between.
        ((self.pool.size() as usize).max(idle), idle)
    }

    /// Closes every connection, once the statements under way have ended.
    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}

/// A connection out of the pool. Dropped before [`Lent::give_back`], it is closed.
#[derive(Debug)]
pub(super) struct Lent {
    connection: PoolConnection<Postgres>,
    has_ended: bool,
}

impl Lent {
    /// Its statement has ended, well or not: others may use it.
    pub(super) fn give_back(mut self) {
        self.has_ended = true;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.has_ended {
            self.connection.close_on_drop();
        }
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
            lent.give_back();
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
            lent.give_back();
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
            lent.give_back();
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
            lent.give_back();
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
