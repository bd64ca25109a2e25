//! The database's clock, tracked where no statement is at hand.
//!
//! Ids, signature times and waits are taken from it, so a replica whose own clock is off by an hour does no harm.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use super::connections::Connections;
use super::error::Result;
use super::types::{PgTime, micros};
use crate::domain::id::new_uuid;
use crate::domain::time::Timestamp;

/// The database's time as an offset from this process's monotonic clock.
#[derive(Debug)]
pub struct DbClock {
    started: Instant,
    /// Microseconds since the epoch at `started`.
    origin: AtomicI64,
}

impl DbClock {
    /// Reads the database's clock once.
    pub(super) async fn start(pool: &Connections) -> Result<Self> {
        let clock = Self { started: Instant::now(), origin: AtomicI64::new(0) };
        clock.track(pool).await?;
        Ok(clock)
    }

    /// Reads the database's clock again: it may drift against ours, and another server may have taken over.
    pub(super) async fn track(&self, pool: &Connections) -> Result<()> {
        let before = self.started.elapsed();
        let PgTime(told) = sqlx::query_scalar("select clock_timestamp()").fetch_one(pool).await?;
        let after = self.started.elapsed();
        let read_at = micros((before + after) / 2);
        self.origin.store(told.micros() - read_at, Ordering::Relaxed);
        Ok(())
    }

    /// The database's time now, give or take half a round trip.
    pub fn now(&self) -> Timestamp {
        self.at(Instant::now())
    }

    /// The database's time at `instant`.
    pub fn at(&self, instant: Instant) -> Timestamp {
        let elapsed = instant.saturating_duration_since(self.started);
        Timestamp::from_micros(self.origin.load(Ordering::Relaxed).saturating_add(micros(elapsed)))
    }

    /// When the database's clock will show `time`, on ours; now, if it already has.
    pub fn instant_of(&self, time: Timestamp) -> Instant {
        let now = Instant::now();
        now + time.since(self.at(now))
    }

    /// A new UUIDv7 at the database's time.
    pub fn new_uuid(&self) -> uuid::Uuid {
        new_uuid(self.now(), rand::random())
    }
}
