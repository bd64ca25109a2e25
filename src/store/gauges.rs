//! How everything on the database stands, for the metrics: a few small numbers, read every now and then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Store;
use super::error::Result;
use super::replicas::DEAD_AFTER;
use super::types::stored;
use crate::domain::endpoint::EndpointState;

/// Registered endpoints by state, and how many circuits are not closed, of unlisted ones too. Reads every endpoint, tens
/// of milliseconds for a hundred thousand; how often is up to the caller.
const ENDPOINTS: &str = "
select state, count(*) filter (where inline_digest is null), count(*) filter (where circuit_until is not null)
from endpoints where delete_time is null group by state";

const REPLICAS: &str = "select count(*) from replicas where beat_time > now() - make_interval(secs => $1)";

impl Store {
    /// Reads what the metrics say of the database; answers how long that took. Beyond 100,000 dead letters their number is
    /// one of a while ago.
    pub async fn read_gauges(self: &Arc<Self>) -> Result<Duration> {
        let began = Instant::now();
        let read = self.set_gauges().await;
        self.metrics.database_up.set(read.is_ok().into());
        read.map(|()| began.elapsed())
    }

    async fn set_gauges(self: &Arc<Self>) -> Result<()> {
        let rows: Vec<(i16, i64, i64)> = sqlx::query_as(ENDPOINTS).fetch_all(&self.reader).await?;
        let (mut listed, mut open) = ([0; EndpointState::EVERY.len()], 0);
        for (state, endpoints, circuits) in rows {
            listed[stored("endpoint state", state, EndpointState::from_number)? as usize - 1] = endpoints;
            open += circuits;
        }
        for (state, endpoints) in EndpointState::EVERY.iter().zip(listed) {
            self.metrics.endpoints(*state).set(endpoints);
        }
        self.metrics.open_circuits.set(open);
        let replicas: i64 = sqlx::query_scalar(REPLICAS).bind(DEAD_AFTER.as_secs_f64()).fetch_one(&self.reader).await?;
        self.metrics.replicas.set(replicas);
        self.metrics.dead_letters.set(self.count_dead_letters(None).await?.cast_signed());
        Ok(())
    }
}
