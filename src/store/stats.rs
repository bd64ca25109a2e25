//! What this process counts of ended attempts and settled deliveries, put on record every few seconds off the hot path.
//!
//! A completion adds to counts in memory. What has gathered is added to a minute, an hour and a day, of the endpoint and
//! of its tenant, and each of those that changed is written whole, under this process's own id: a write that is repeated,
//! because nobody heard of its commit, says the same again. What a killed process had not written, some seconds, is lost
//! to the figures and to nothing else. `figures` reads them.

mod dead;
mod figures;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::types::Uuid;

pub(super) use self::dead::DeadCounts;
pub use self::figures::{EndpointFigures, Figures, Quantiles};
use super::Store;
use super::error::Result;
use super::types::{PgTime, micros};
use crate::domain::histogram::Histogram;
use crate::domain::id::EndpointId;
use crate::domain::time::Timestamp;

/// What happened to a delivery, as far as it is counted.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Event {
    /// How long the attempt took that ended, if one did.
    pub(super) attempt: Option<Duration>,
    /// How long after its publish the delivery succeeded, if it did.
    pub(super) succeeded: Option<Duration>,
    /// Whether it failed for good.
    pub(super) is_failed: bool,
}

/// How long a row's time is. The discriminants are the database's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Grain {
    Minute = 1,
    Hour = 2,
    Day = 3,
}

impl Grain {
    const ALL: [Self; 3] = [Self::Minute, Self::Hour, Self::Day];

    const fn micros(self) -> i64 {
        match self {
            Self::Minute => 60_000_000,
            Self::Hour => 3_600_000_000,
            Self::Day => 86_400_000_000,
        }
    }

    const fn number(self) -> i16 {
        self as i16
    }

    /// When the one began that `time` is in. Days are of UTC.
    const fn start(self, time: Timestamp) -> Timestamp {
        Timestamp::from_micros(time.micros() - time.micros().rem_euclid(self.micros()))
    }

    /// How long rows are kept: as long as a window can reach them.
    const fn kept(self) -> Duration {
        match self {
            Self::Minute => Duration::from_secs(14 * 3_600),
            Self::Hour | Self::Day => Duration::from_secs(32 * 86_400),
        }
    }
}

/// Counts of one endpoint, or one tenant, in some time.
#[derive(Debug, Clone, Default, PartialEq)]
struct Counts {
    attempts: i64,
    succeeded: i64,
    failed: i64,
    duration_us: i64,
    durations: Histogram,
    end_to_end: Histogram,
}

impl Counts {
    fn add(&mut self, event: &Event) {
        if let Some(duration) = event.attempt {
            self.attempts += 1;
            self.duration_us = self.duration_us.saturating_add(micros(duration));
            self.durations.add(duration);
        }
        if let Some(span) = event.succeeded {
            self.succeeded += 1;
            self.end_to_end.add(span);
        }
        self.failed += i64::from(event.is_failed);
    }

    fn merge(&mut self, other: &Self) {
        self.attempts += other.attempts;
        self.succeeded += other.succeeded;
        self.failed += other.failed;
        self.duration_us = self.duration_us.saturating_add(other.duration_us);
        self.durations.merge(&other.durations);
        self.end_to_end.merge(&other.end_to_end);
    }
}

/// What has happened since the last time, by minute and endpoint.
type Gathered = HashMap<(Timestamp, EndpointId), Counts>;
/// A row of the table but for its writer. The nil endpoint is the tenant's sum.
type Key = (Grain, Timestamp, String, Uuid);

/// What this process has counted.
#[derive(Debug)]
pub(super) struct Stats {
    /// Names this process's rows.
    writer: Uuid,
    gathered: Mutex<Gathered>,
    /// What the rows of the present (and of what was not written yet) hold.
    kept: tokio::sync::Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    rows: HashMap<Key, Row>,
    tenants: HashMap<EndpointId, String>,
}

#[derive(Debug, Default)]
struct Row {
    counts: Counts,
    is_changed: bool,
}

/// Rows of one statement.
const WRITE_BATCH: usize = 500;

/// Locks this process's own rows alone, by `stats_pkey`.
const WRITE: &str = "
insert into stats (writer, grain, start_time, tenant, endpoint_id, attempts, succeeded, failed, duration_us, durations,
                   end_to_end)
select $1, r.* from unnest($2::smallint[], $3::timestamptz[], $4::text[], $5::uuid[], $6::bigint[], $7::bigint[],
                           $8::bigint[], $9::bigint[], $10::bytea[], $11::bytea[]) r
on conflict (grain, start_time, tenant, endpoint_id, writer) do update
set attempts = excluded.attempts, succeeded = excluded.succeeded, failed = excluded.failed,
    duration_us = excluded.duration_us, durations = excluded.durations, end_to_end = excluded.end_to_end";

const TENANTS: &str = "select id, tenant from endpoints where id = any($1)";

/// By `stats_pkey`.
const PRUNE: &str = "
delete from stats where ctid = any(array(
  select s.ctid from stats s where s.grain = $1 and s.start_time < now() - make_interval(secs => $2) limit $3
))";

impl Stats {
    pub(super) fn new(writer: Uuid) -> Self {
        Self { writer, gathered: Mutex::default(), kept: tokio::sync::Mutex::default() }
    }

    /// Counts what happened just now.
    pub(super) fn count(&self, now: Timestamp, events: impl Iterator<Item = (EndpointId, Event)>) {
        let minute = Grain::Minute.start(now);
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        for (endpoint, event) in events {
            gathered.entry((minute, endpoint)).or_default().add(&event);
        }
    }

    fn take(&self) -> Gathered {
        std::mem::take(&mut *self.gathered.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Kept {
    /// Adds what has gathered to each of the rows it belongs to. Endpoints that nobody knows were never there.
    fn add(&mut self, gathered: &Gathered) {
        for ((minute, endpoint), counts) in gathered {
            let Some(tenant) = self.tenants.get(endpoint) else { continue };
            for grain in Grain::ALL {
                for whose in [endpoint.uuid(), Uuid::nil()] {
                    let row = self.rows.entry((grain, grain.start(*minute), tenant.clone(), whose)).or_default();
                    row.counts.merge(counts);
                    row.is_changed = true;
                }
            }
        }
    }

    /// Forgets the rows of the past. A completion that comes late, with a clock that lags, finds its row for a while.
    fn forget(&mut self, now: Timestamp) {
        let is_kept = |(grain, start, ..): &Key, row: &Row| {
            row.is_changed || start.micros() + grain.micros() + 60_000_000 > now.micros()
        };
        self.rows.retain(|key, row| is_kept(key, row));
        if self.rows.is_empty() {
            self.tenants.clear();
        }
    }
}

impl Store {
    /// Puts on record what has been counted since the last time.
    pub async fn record_stats(&self) -> Result<()> {
        // One at a time; where it fails, what was added stays changed and is written the next time.
        let mut kept = self.stats.kept.lock().await;
        let gathered = self.stats.take();
        let unknown: Vec<Uuid> = gathered
            .keys()
            .filter(|(_, endpoint)| !kept.tenants.contains_key(endpoint))
            .map(|(_, endpoint)| endpoint.uuid())
            .collect();
        if !unknown.is_empty() {
            let found: sqlx::Result<Vec<(Uuid, String)>> =
                sqlx::query_as(TENANTS).bind(unknown).fetch_all(&self.engine).await;
            match found {
                Ok(found) => {
                    kept.tenants.extend(found.into_iter().map(|(id, tenant)| (EndpointId::from_uuid(id), tenant)));
                }
                Err(error) => {
                    let mut back = self.stats.gathered.lock().unwrap_or_else(PoisonError::into_inner);
                    for (key, counts) in &gathered {
                        back.entry(*key).or_default().merge(counts);
                    }
                    return Err(error.into());
                }
            }
        }
        kept.add(&gathered);
        self.write_stats(&mut kept).await?;
        kept.forget(self.clock.now());
        Ok(())
    }

    async fn write_stats(&self, kept: &mut Kept) -> Result<()> {
        let mut changed: Vec<(&Key, &mut Row)> = kept.rows.iter_mut().filter(|(_, row)| row.is_changed).collect();
        for batch in changed.chunks_mut(WRITE_BATCH) {
            let of = |count: fn(&Counts) -> i64| batch.iter().map(|(_, row)| count(&row.counts)).collect::<Vec<_>>();
            let bytes = |of: fn(&Counts) -> &Histogram| {
                batch.iter().map(|(_, row)| of(&row.counts).to_bytes()).collect::<Vec<_>>()
            };
            sqlx::query(WRITE)
                .bind(self.stats.writer)
                .bind(batch.iter().map(|((grain, ..), _)| grain.number()).collect::<Vec<_>>())
                .bind(batch.iter().map(|((_, start, ..), _)| PgTime(*start)).collect::<Vec<_>>())
                .bind(batch.iter().map(|((_, _, tenant, _), _)| tenant.as_str()).collect::<Vec<_>>())
                .bind(batch.iter().map(|((.., endpoint), _)| *endpoint).collect::<Vec<_>>())
                .bind(of(|counts| counts.attempts))
                .bind(of(|counts| counts.succeeded))
                .bind(of(|counts| counts.failed))
                .bind(of(|counts| counts.duration_us))
                .bind(bytes(|counts| &counts.durations))
                .bind(bytes(|counts| &counts.end_to_end))
                .execute(&self.engine)
                .await?;
            batch.iter_mut().for_each(|(_, row)| row.is_changed = false);
        }
        Ok(())
    }

    /// Removes some of the rows that no window reaches any more; answers how many.
    pub async fn prune_stats(&self, limit: u32) -> Result<u64> {
        let mut pruned = 0;
        for grain in Grain::ALL {
            let done = sqlx::query(PRUNE)
                .bind(grain.number())
                .bind(grain.kept().as_secs_f64())
                .bind(i64::from(limit))
                .execute(&self.reader)
                .await?;
            pruned += done.rows_affected();
        }
        Ok(pruned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(number: u128) -> EndpointId {
        EndpointId::from_uuid(Uuid::from_u128(number))
    }

    fn succeeded(millis: u64) -> Event {
        let span = Some(Duration::from_millis(millis));
        Event { attempt: span, succeeded: span, is_failed: false }
    }

    #[test]
    fn what_is_counted_is_in_its_minute_hour_and_day_of_endpoint_and_tenant() {
        let stats = Stats::new(Uuid::nil());
        let noon = Timestamp::from_micros(1_768_996_800_000_000);
        stats.count(noon, [(endpoint(1), succeeded(5)), (endpoint(2), succeeded(7))].into_iter());
        stats.count(
            noon.plus(Duration::from_secs(61)),
            [(endpoint(1), Event { is_failed: true, ..Event::default() })].into_iter(),
        );
        let mut kept = Kept::default();
        kept.tenants.insert(endpoint(1), "acme".to_owned());
        kept.tenants.insert(endpoint(2), "acme".to_owned());
        kept.add(&stats.take());
        assert!(stats.take().is_empty());
        let of = |grain: Grain, whose: u128| {
            let row = &kept.rows[&(grain, grain.start(noon), "acme".to_owned(), Uuid::from_u128(whose))];
            (row.counts.attempts, row.counts.succeeded, row.counts.failed)
        };
        assert_eq!(
            (of(Grain::Minute, 1), of(Grain::Minute, 2), of(Grain::Minute, 0)),
            ((1, 1, 0), (1, 1, 0), (2, 2, 0))
        );
        assert_eq!((of(Grain::Hour, 1), of(Grain::Day, 0)), ((1, 1, 1), (2, 2, 1)));
        // Two minutes with two and one of the endpoints and their sum, an hour and a day of both and their sum.
        assert_eq!(kept.rows.len(), 3 + 2 + 3 + 3);
    }

    #[test]
    fn rows_of_the_past_are_forgotten_once_they_are_written() {
        let mut kept = Kept::default();
        let noon = Timestamp::from_micros(1_768_996_800_000_000);
        kept.tenants.insert(endpoint(1), "acme".to_owned());
        kept.add(&HashMap::from([((noon, endpoint(1)), Counts::default())]));
        let later = noon.plus(Duration::from_secs(1_000));
        kept.forget(later);
        assert_eq!(kept.rows.len(), 6, "not written yet");
        kept.rows.values_mut().for_each(|row| row.is_changed = false);
        kept.forget(later);
        assert_eq!(kept.rows.len(), 4, "the hour's and the day's");
        kept.forget(noon.plus(Duration::from_secs(100_000)));
        assert!(kept.rows.is_empty() && kept.tenants.is_empty());
    }
}
