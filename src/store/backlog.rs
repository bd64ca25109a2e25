//! How much is outstanding, in all and for each endpoint, so that publishing can stop at a bound.
//!
//! Counted in the database now and then, tracked in between by what this process adds and settles. With one replica
//! the count is exact but for rows under way; with several, what others did shows at the next count.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use sqlx::types::Uuid;

use super::connections::Connections;
use super::error::Result;
use crate::domain::id::{EndpointId, IdMap};

/// How many deliveries may be outstanding, and how large an event may be that is published in SQL.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// In all: beyond it publishes are refused.
    pub outstanding_max: u64,
    /// For one endpoint: beyond it its deliveries fail at once, with a reason, and can be retried.
    pub outstanding_per_endpoint_max: u64,
    /// The largest payload, in bytes, that `hooklane.publish` takes: the same as the calls'.
    pub payload_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { outstanding_max: 10_000_000, outstanding_per_endpoint_max: 1_000_000, payload_bytes_max: 262_144 }
    }
}

/// The counts.
#[derive(Debug)]
pub(super) struct Backlog {
    limits: Limits,
    counts: Mutex<Counts>,
    /// Shows the total.
    gauge: IntGauge,
}

#[derive(Debug, Default)]
struct Counts {
    total: i64,
    endpoints: IdMap<EndpointId, i64>,
    /// What changed here since the count under way began.
    since_count: Option<IdMap<EndpointId, i64>>,
}

/// An index-only scan where vacuum has been; its cost bounds how often it runs.
const COUNT: &str = "select endpoint_id, count(*) from outstanding group by endpoint_id";

impl Backlog {
    /// Counts what is there.
    pub(super) async fn start(pool: &Connections, limits: Limits, gauge: IntGauge) -> Result<Self> {
        let backlog = Self { limits, counts: Mutex::default(), gauge };
        backlog.count(pool).await?;
        Ok(backlog)
    }

    /// Counts again; answers how long that took.
    pub(super) async fn count(&self, pool: &Connections) -> Result<Duration> {
        let began = Instant::now();
        self.lock().since_count = Some(IdMap::default());
        let rows: Vec<(Uuid, i64)> = sqlx::query_as(COUNT).fetch_all(pool).await?;
        let mut counts = self.lock();
        let meanwhile = counts.since_count.take().unwrap_or_default();
        counts.endpoints = rows.into_iter().map(|(id, count)| (EndpointId::from_uuid(id), count)).collect();
        for (endpoint, change) in meanwhile {
            *counts.endpoints.entry(endpoint).or_default() += change;
        }
        counts.total = counts.endpoints.values().sum();
        self.gauge.set(counts.total.max(0));
        Ok(began.elapsed())
    }

    /// Tells of deliveries that became outstanding (positive) or were settled (negative).
    pub(super) fn change(&self, changes: impl IntoIterator<Item = (EndpointId, i64)>) {
        let mut counts = self.lock();
        for (endpoint, change) in changes {
            counts.total += change;
            *counts.endpoints.entry(endpoint).or_default() += change;
            if let Some(since) = &mut counts.since_count {
                *since.entry(endpoint).or_default() += change;
            }
        }
        self.gauge.set(counts.total.max(0));
    }

    /// The endpoints with something outstanding, the longest queues first.
    pub(super) fn longest(&self) -> Vec<(EndpointId, u64)> {
        let counts = self.lock();
        let waiting = counts.endpoints.iter().filter_map(|(id, count)| Some((*id, u64::try_from(*count).ok()?)));
        let mut longest: Vec<_> = waiting.filter(|(_, count)| *count > 0).collect();
        longest.sort_unstable_by_key(|(id, count)| (std::cmp::Reverse(*count), *id));
        longest
    }

    /// Whether no event may be accepted now.
    pub(super) fn is_full(&self) -> bool {
        self.lock().total >= bound(self.limits.outstanding_max)
    }

    /// Whether this endpoint may get no further delivery now, `planned` of the same batch counted.
    pub(super) fn is_endpoint_full(&self, endpoint: EndpointId, planned: i64) -> bool {
        let count = self.lock().endpoints.get(&endpoint).copied().unwrap_or_default();
        count + planned >= bound(self.limits.outstanding_per_endpoint_max)
    }

    /// How many more deliveries of an endpoint may be outstanding.
    pub(super) fn endpoint_room(&self, endpoint: EndpointId) -> i64 {
        let count = self.lock().endpoints.get(&endpoint).copied().unwrap_or_default();
        (bound(self.limits.outstanding_per_endpoint_max) - count).max(0)
    }

    /// How many deliveries of an endpoint are outstanding.
    pub(super) fn of(&self, endpoint: EndpointId) -> u64 {
        let count = self.lock().endpoints.get(&endpoint).copied().unwrap_or_default();
        u64::try_from(count).unwrap_or_default()
    }

    /// Every endpoint with outstanding deliveries, and how many.
    pub(super) fn all(&self) -> Vec<(EndpointId, u64)> {
        let counts = self.lock();
        let known = counts.endpoints.iter();
        known.filter_map(|(id, count)| Some((*id, u64::try_from(*count).ok().filter(|count| *count > 0)?))).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bound(limit: u64) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
