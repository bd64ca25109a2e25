//! The figures of a window: what is on record of it, and how the queue stands now. Bounded work whatever there is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::types::Uuid;

use super::{Grain, Store};
use crate::domain::fields::Tenant;
use crate::domain::histogram::Histogram;
use crate::domain::id::EndpointId;
use crate::domain::time::Timestamp;
use crate::store::error::{Error, Result};
use crate::store::types::PgTime;

/// Quantiles of spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantiles {
    /// Half of them are at most this.
    pub p50: Duration,
    /// 95 % are.
    pub p95: Duration,
    /// 99 % are.
    pub p99: Duration,
}

/// What GetStats answers.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Figures {
    /// Deliveries outstanding now.
    pub outstanding: u64,
    /// Of those, how many are in flight.
    pub in_flight: u64,
    /// For how long the oldest due one has been waiting.
    pub oldest_due_age: Option<Duration>,
    /// Dead letters now.
    pub dead_letters: u64,
    /// Deliveries that succeeded in the window.
    pub succeeded: u64,
    /// Deliveries that failed for good in it.
    pub failed: u64,
    /// Attempts that ended in it.
    pub attempts: u64,
    /// How long those took.
    pub attempt_duration: Option<Quantiles>,
    /// The same, on average.
    pub attempt_duration_mean: Option<Duration>,
    /// From publish to success.
    pub end_to_end: Option<Quantiles>,
    /// The busiest endpoints.
    pub endpoints: Vec<EndpointFigures>,
}

/// The figures of one endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointFigures {
    /// Whose.
    pub endpoint: EndpointId,
    /// Deliveries outstanding now.
    pub outstanding: u64,
    /// For how long the oldest due one has been waiting.
    pub oldest_due_age: Option<Duration>,
    /// Deliveries that succeeded in the window.
    pub succeeded: u64,
    /// Deliveries that failed for good in it.
    pub failed: u64,
    /// How long its attempts took.
    pub attempt_duration: Option<Quantiles>,
}

/// Endpoints that are shown.
const ENDPOINTS_MAX: usize = 100;
/// Outstanding rows that are counted one by one.
const EXACT_MAX: i64 = 20_000;
/// Endpoints, those with the longest queues, that are looked at where more are outstanding.
const QUEUES_MAX: usize = 1_000;
/// Up to this, a window begins at a full minute, beyond it at a full hour.
const MINUTES_MAX: Duration = Duration::from_secs(12 * 3_600);
/// Up to this, minutes alone are read.
const MINUTES_ALONE_MAX: Duration = Duration::from_secs(90 * 60);
/// Up to this, whole days are read as hours.
const HOURS_MAX: Duration = Duration::from_secs(72 * 3_600);

/// A tenant's sums, by `stats_pkey`; `$1` to `$3` are the ranges of a window.
const SUMS: &str = "
select s.attempts, s.succeeded, s.failed, s.duration_us, s.durations, s.end_to_end
from unnest($1::smallint[], $2::timestamptz[], $3::timestamptz[]) as r (grain, low, high)
join stats s on s.grain = r.grain and s.start_time >= r.low and s.start_time < r.high
where s.endpoint_id = '00000000-0000-0000-0000-000000000000' and ($4::text is null or s.tenant = $4)";

type SumRow = (i64, i64, i64, i64, Vec<u8>, Vec<u8>);

/// The endpoints with the most attempts, by `stats_pkey`.
const BUSIEST: &str = "
select s.endpoint_id, sum(s.attempts)::bigint, sum(s.succeeded)::bigint, sum(s.failed)::bigint
from unnest($1::smallint[], $2::timestamptz[], $3::timestamptz[]) as r (grain, low, high)
join stats s on s.grain = r.grain and s.start_time >= r.low and s.start_time < r.high
where s.endpoint_id <> '00000000-0000-0000-0000-000000000000' and ($4::text is null or s.tenant = $4)
group by s.endpoint_id
order by 2 desc, 3 desc, 1
limit $5";

const DURATIONS: &str = "
select s.endpoint_id, s.durations
from unnest($1::smallint[], $2::timestamptz[], $3::timestamptz[]) as r (grain, low, high)
join stats s on s.grain = r.grain and s.start_time >= r.low and s.start_time < r.high
where s.endpoint_id = any($4)";

/// What is outstanding, unless that is more than `$1`: then the sum of the counts tells so.
const OUTSTANDING: &str = "
select o.endpoint_id, o.tenant, count(*), count(*) filter (where o.state = 2),
       extract(epoch from now() - min(o.due_at) filter (where o.state <> 2 and o.due_at <= now()))::float8
from (select endpoint_id, tenant, state, due_at from outstanding limit $1 + 1) o
group by o.endpoint_id, o.tenant";

/// The heads of endpoints' queues, by `outstanding_due`: what is in flight was due first.
const HEADS: &str = "
select e.id, sum(h.in_flight)::bigint, max(h.age)::float8
from unnest($1::uuid[]) as q (id)
cross join lateral (
  select e.id, e.max_in_flight from endpoints e where e.id = q.id and ($2::text is null or e.tenant = $2) limit 1
) e
cross join (values (1::smallint), (2::smallint), (3::smallint)) as p (priority)
cross join lateral (
  select count(*) filter (where o.state = 2) as in_flight,
         extract(epoch from now() - min(o.due_at) filter (where o.state <> 2 and o.due_at <= now())) as age
  from (
    select o.state, o.due_at from outstanding o
    where o.endpoint_id = e.id and o.priority = p.priority
    order by o.due_at
    limit 2 * e.max_in_flight + 16
  ) o
) h
group by e.id";

const OWNED: &str = "select id from endpoints where id = any($1) and tenant = $2";

/// How an endpoint's queue stands.
#[derive(Debug, Default, Clone, Copy)]
struct Queue {
    outstanding: u64,
    in_flight: u64,
    age: Option<f64>,
}

impl Store {
    /// The figures of the last `window`, at most 30 days. It is rounded up to begin at a full minute, beyond 12 hours
    /// at a full hour. What this process counted is in them; what another one did in its last seconds may not be.
    pub async fn figures(self: &Arc<Self>, tenant: Option<&Tenant>, window: Duration) -> Result<Figures> {
        self.record_stats().await?;
        let ranges = Ranges::of(window, self.clock.now());
        let mut figures = self.sums(&ranges, tenant).await?;
        let queues = self.queues(tenant).await?;
        figures.outstanding = queues.values().map(|queue| queue.outstanding).sum();
        figures.in_flight = queues.values().map(|queue| queue.in_flight).sum();
        figures.oldest_due_age = queues.values().filter_map(|queue| queue.age).max_by(f64::total_cmp).and_then(span);
        figures.dead_letters = self.count_dead_letters(tenant).await?;
        figures.endpoints = self.busiest(&ranges, tenant, &queues).await?;
        Ok(figures)
    }

    async fn sums(&self, ranges: &Ranges, tenant: Option<&Tenant>) -> Result<Figures> {
        let rows: Vec<SumRow> = sqlx::query_as(SUMS)
            .bind(&ranges.grains)
            .bind(&ranges.lows)
            .bind(&ranges.highs)
            .bind(tenant.map(Tenant::as_str))
            .fetch_all(&self.reader)
            .await?;
        let (mut figures, mut took) = (Figures::default(), 0_i64);
        let (mut durations, mut end_to_end) = (Histogram::default(), Histogram::default());
        for (attempts, succeeded, failed, duration_us, attempt_durations, publish_to_success) in rows {
            figures.attempts += number(attempts);
            figures.succeeded += number(succeeded);
            figures.failed += number(failed);
            took = took.saturating_add(duration_us);
            durations.merge(&histogram(&attempt_durations)?);
            end_to_end.merge(&histogram(&publish_to_success)?);
        }
        figures.attempt_duration = quantiles(&durations);
        figures.end_to_end = quantiles(&end_to_end);
        figures.attempt_duration_mean = number(took).checked_div(figures.attempts).map(Duration::from_micros);
        Ok(figures)
    }

    /// The endpoints with the most attempts; where those are fewer than are shown, the longest queues after them.
    async fn busiest(
        &self,
        ranges: &Ranges,
        tenant: Option<&Tenant>,
        queues: &HashMap<Uuid, Queue>,
    ) -> Result<Vec<EndpointFigures>> {
        let rows: Vec<(Uuid, i64, i64, i64)> = sqlx::query_as(BUSIEST)
            .bind(&ranges.grains)
            .bind(&ranges.lows)
            .bind(&ranges.highs)
            .bind(tenant.map(Tenant::as_str))
            .bind(i64::try_from(ENDPOINTS_MAX).unwrap_or(i64::MAX))
            .fetch_all(&self.reader)
            .await?;
        let ids: Vec<Uuid> = rows.iter().map(|(id, ..)| *id).collect();
        let mut durations: HashMap<Uuid, Histogram> = HashMap::new();
        let found: Vec<(Uuid, Vec<u8>)> = sqlx::query_as(DURATIONS)
            .bind(&ranges.grains)
            .bind(&ranges.lows)
            .bind(&ranges.highs)
            .bind(&ids)
            .fetch_all(&self.reader)
            .await?;
        for (id, bytes) in found {
            durations.entry(id).or_default().merge(&histogram(&bytes)?);
        }
        let mut waiting: Vec<(&Uuid, &Queue)> = queues.iter().filter(|(id, _)| !ids.contains(id)).collect();
        waiting.sort_unstable_by_key(|(id, queue)| (std::cmp::Reverse(queue.outstanding), **id));
        let idle = waiting.into_iter().map(|(id, _)| (*id, 0, 0, 0));
        let figures = rows.into_iter().chain(idle).take(ENDPOINTS_MAX).map(|(id, _, succeeded, failed)| {
            let queue = queues.get(&id).copied().unwrap_or_default();
            EndpointFigures {
                endpoint: EndpointId::from_uuid(id),
                outstanding: queue.outstanding,
                oldest_due_age: queue.age.and_then(span),
                succeeded: number(succeeded),
                failed: number(failed),
                attempt_duration: durations.get(&id).and_then(quantiles),
            }
        });
        Ok(figures.collect())
    }

    /// How the queues stand: counted one by one while few deliveries are outstanding. Where many are, their numbers are
    /// those by which publishes are bounded, and the longest queues alone are looked at.
    async fn queues(&self, tenant: Option<&Tenant>) -> Result<HashMap<Uuid, Queue>> {
        let rows: Vec<(Uuid, String, i64, i64, Option<f64>)> =
            sqlx::query_as(OUTSTANDING).bind(EXACT_MAX).fetch_all(&self.reader).await?;
        if rows.iter().map(|(_, _, count, ..)| count).sum::<i64>() <= EXACT_MAX {
            let is_wanted = |owner: &str| tenant.is_none_or(|tenant| tenant.as_str() == owner);
            let queue = |count, in_flight, age| Queue { outstanding: number(count), in_flight: number(in_flight), age };
            let wanted = rows.into_iter().filter(|(_, owner, ..)| is_wanted(owner));
            return Ok(wanted.map(|(id, _, count, in_flight, age)| (id, queue(count, in_flight, age))).collect());
        }
        let mut longest = self.backlog.longest();
        if let Some(tenant) = tenant {
            let ids: Vec<Uuid> = longest.iter().map(|(id, _)| id.uuid()).collect();
            let owned: Vec<Uuid> =
                sqlx::query_scalar(OWNED).bind(ids).bind(tenant.as_str()).fetch_all(&self.reader).await?;
            let owned: std::collections::HashSet<Uuid> = owned.into_iter().collect();
            longest.retain(|(id, _)| owned.contains(&id.uuid()));
        }
        let heads: Vec<Uuid> = longest.iter().take(QUEUES_MAX).map(|(id, _)| id.uuid()).collect();
        let heads: Vec<(Uuid, i64, Option<f64>)> =
            sqlx::query_as(HEADS).bind(heads).bind(tenant.map(Tenant::as_str)).fetch_all(&self.engine).await?;
        let queue = |(id, count): (EndpointId, u64)| (id.uuid(), Queue { outstanding: count, ..Queue::default() });
        let mut queues: HashMap<Uuid, Queue> = longest.into_iter().map(queue).collect();
        for (id, in_flight, age) in heads {
            if let Some(queue) = queues.get_mut(&id) {
                (queue.in_flight, queue.age) = (number(in_flight), age);
            }
        }
        Ok(queues)
    }
}

/// The rows of a window: of each grain from when to when.
#[derive(Debug, PartialEq)]
struct Ranges {
    grains: Vec<i16>,
    lows: Vec<PgTime>,
    highs: Vec<PgTime>,
}

impl Ranges {
    /// Fine rows where the window begins, coarse ones after them, up to and with those of the present.
    fn of(window: Duration, now: Timestamp) -> Self {
        let begin = Timestamp::from_micros(now.micros() - i64::try_from(window.as_micros()).unwrap_or(i64::MAX));
        let end = now.plus(Duration::from_secs(2 * 86_400));
        let fine = if window <= MINUTES_MAX { Grain::Minute } else { Grain::Hour };
        let coarse = match window {
            _ if window <= MINUTES_ALONE_MAX => Grain::Minute,
            _ if window <= HOURS_MAX => Grain::Hour,
            _ => Grain::Day,
        };
        let begin = fine.start(begin);
        // The first coarse row that is all inside.
        let change = coarse.start(Timestamp::from_micros(begin.micros() + coarse.micros() - 1));
        let mut ranges = Self { grains: Vec::new(), lows: Vec::new(), highs: Vec::new() };
        for (grain, low, high) in [(fine, begin, change), (coarse, change, end)] {
            if low < high {
                ranges.grains.push(grain.number());
                ranges.lows.push(PgTime(low));
                ranges.highs.push(PgTime(high));
            }
        }
        ranges
    }
}

fn histogram(bytes: &[u8]) -> Result<Histogram> {
    Histogram::from_bytes(bytes).ok_or_else(|| Error::Unreadable("a histogram".to_owned()))
}

fn quantiles(histogram: &Histogram) -> Option<Quantiles> {
    let at = |share| histogram.quantile(share);
    Some(Quantiles { p50: at(0.5)?, p95: at(0.95)?, p99: at(0.99)? })
}

fn span(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds.max(0.0)).ok()
}

fn number(count: i64) -> u64 {
    u64::try_from(count).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(window_s: u64, expected: &[(i16, &str, &str)]) {
        // 2026-01-21T12:34:56Z
        let now = Timestamp::from_micros(1_768_998_896_000_000);
        let ranges = Ranges::of(Duration::from_secs(window_s), now);
        let found: Vec<_> = (0..ranges.grains.len())
            .map(|n| (ranges.grains[n], ranges.lows[n].0.to_string(), ranges.highs[n].0.to_string()))
            .collect();
        let expected: Vec<_> =
            expected.iter().map(|(g, low, high)| (*g, (*low).to_owned(), (*high).to_owned())).collect();
        assert_eq!(found, expected, "{window_s}");
    }

    #[test]
    fn a_window_is_covered_once_by_as_few_rows_as_reach_its_beginning() {
        let end = "2026-01-23T12:34:56Z";
        check(1, &[(1, "2026-01-21T12:34:00Z", end)]);
        check(3_600, &[(1, "2026-01-21T11:34:00Z", end)]);
        check(2 * 3_600, &[(1, "2026-01-21T10:34:00Z", "2026-01-21T11:00:00Z"), (2, "2026-01-21T11:00:00Z", end)]);
        check(24 * 3_600, &[(2, "2026-01-20T12:00:00Z", end)]);
        check(30 * 86_400, &[(2, "2025-12-22T12:00:00Z", "2025-12-23T00:00:00Z"), (3, "2025-12-23T00:00:00Z", end)]);
    }
}
