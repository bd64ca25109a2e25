//! What the conditions that alerts are about are found by: counts of the last minutes, failures in a row, states, waits.
//! None of it is read for a delivery.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;

use super::Store;
use super::error::Result;
use super::tallies::Faltering;
use super::types::{count, stored};
use crate::domain::alert::{AlertKind, Counts, Figures};
use crate::domain::id::{AlertId, EndpointId};

/// An open alert and what holds at its endpoint now.
#[derive(Debug, Clone, Copy)]
pub struct OpenAlert {
    /// Which.
    pub id: AlertId,
    /// Where.
    pub endpoint: EndpointId,
    /// What it is about.
    pub kind: AlertKind,
    /// As far as its kind goes.
    pub figures: Figures,
}

/// Endpoints of one statement at most.
const BATCH: usize = 1_000;

/// Adds to the minute that is. In the order of the key, so that replicas cannot deadlock.
const ADD: &str = "
insert into endpoint_minutes as m (minute, endpoint_id, attempts, failed_attempts, failed_deliveries, filter_errors)
select date_trunc('minute', now()), c.endpoint_id, c.attempts, c.failed_attempts, c.failed_deliveries, c.filter_errors
from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
  as c (endpoint_id, attempts, failed_attempts, failed_deliveries, filter_errors)
on conflict (minute, endpoint_id) do update
  set attempts = m.attempts + excluded.attempts,
      failed_attempts = m.failed_attempts + excluded.failed_attempts,
      failed_deliveries = m.failed_deliveries + excluded.failed_deliveries,
      filter_errors = m.filter_errors + excluded.filter_errors";

/// A look-up by `endpoint_minutes_pkey` for each minute of the window (`$2` seconds). The sums stand beside the
/// endpoint of the row they are joined to.
macro_rules! window {
    ($endpoint:literal, $seconds:literal) => {
        concat!(
            "(select coalesce(sum(m.attempts), 0)::bigint as attempts,
                     coalesce(sum(m.failed_attempts), 0)::bigint as failed_attempts,
                     coalesce(sum(m.failed_deliveries), 0)::bigint as failed_deliveries,
                     coalesce(sum(m.filter_errors), 0)::bigint as filter_errors
              from generate_series(date_trunc('minute', now() - make_interval(secs => ",
            $seconds,
            ")), now(), interval '1 minute') as t (minute)
              join endpoint_minutes m on m.minute = t.minute and m.endpoint_id = ",
            $endpoint,
            ")"
        )
    };
}

/// The oldest due delivery of an endpoint that nobody holds, `due` at or before `$before`: by `outstanding_due`, a look
/// for each priority that steps over what is in flight at its front.
macro_rules! oldest_due {
    ($endpoint:literal, $before:literal) => {
        concat!(
            "(select min(f.due_at) as due_at
              from unnest(array[1, 2, 3]::smallint[]) as p (priority) cross join lateral (
                select o.due_at from outstanding o
                where o.endpoint_id = ",
            $endpoint,
            " and o.priority = p.priority and o.state <> 2 and o.due_at <= ",
            $before,
            " order by o.endpoint_id, o.priority, o.due_at limit 1
              ) f)"
        )
    };
}

const COUNTS: &str = concat!(
    "
select e.id, w.* from unnest($1::uuid[]) as e (id) cross join lateral ",
    window!("e.id", "$2"),
    " w"
);

const OLDEST_DUE: &str = concat!(
    "
select e.id, extract(epoch from now() - q.due_at)::float8 as age
from unnest($1::uuid[]) as e (id) cross join lateral ",
    oldest_due!("e.id", "now() - make_interval(secs => $2)"),
    " q
where q.due_at is not null"
);

/// A page of the open alerts in the order of `alerts_open`, each with what its kind is judged by: failures in a row do
/// not go on since the alert was opened where a success came after it.
const OPEN: &str = concat!(
    "
select a.id, a.endpoint_id, a.kind, e.state is not distinct from 3 as is_disabled,
       e.id is null or e.delete_time is not null as is_gone,
       case when h.last_success_time > a.open_time then 0 else coalesce(h.consecutive_failures, 0) end as failures,
       w.attempts, w.failed_attempts, w.failed_deliveries, w.filter_errors,
       extract(epoch from now() - q.due_at)::float8 as age
from (
  select id, endpoint_id, kind, open_time from alerts
  where close_time is null and (endpoint_id, kind) > ($1, $2)
  order by endpoint_id, kind limit $3
) a
left join endpoints e on e.id = a.endpoint_id
left join endpoint_health h on h.endpoint_id = a.endpoint_id
left join lateral ",
    window!("a.endpoint_id", "$4"),
    " w on a.kind in (3, 5, 6)
left join lateral ",
    oldest_due!("a.endpoint_id", "now()"),
    " q on a.kind = 4
order by a.endpoint_id, a.kind"
);

/// By `endpoint_health_pkey`.
const FAILURES: &str = "
select endpoint_id, consecutive_failures from endpoint_health
where endpoint_id = any($1) and consecutive_failures >= $2";

/// Reads every endpoint's health from one id on: a narrow table, some 10 ms for 100,000. Once in a while.
const ALL_FAILURES: &str = "
select endpoint_id, consecutive_failures from endpoint_health h
where consecutive_failures >= $1 and endpoint_id > $2
  and not exists (
    select from alerts a where a.endpoint_id = h.endpoint_id and a.kind = 1 and a.close_time is null
      and a.level >= (select max(t.threshold) from unnest($3::int[]) as t (threshold)
                      where t.threshold <= h.consecutive_failures))
order by endpoint_id limit $4";

/// Disabled endpoints without an open alert, by `endpoints_stopped`.
const DISABLED: &str = "
select e.id, coalesce(e.disabled_reason, '') as reason
from endpoints e
where e.state = 3 and e.delete_time is null
  and not exists (select from alerts a where a.endpoint_id = e.id and a.kind = 2 and a.close_time is null)
order by e.id limit $1";

/// A batch of minutes that no window reaches any more, by `endpoint_minutes_pkey`.
const PRUNE: &str = "
delete from endpoint_minutes where ctid = any(array(
  select ctid from endpoint_minutes where minute < now() - interval '2 hours' order by minute limit $1))";

impl Store {
    /// The endpoints that failed since this was last asked.
    pub fn take_faltering(&self) -> Vec<Faltering> {
        self.tallies.take_faltering()
    }

    /// Puts on record what was counted since the last time; answers the endpoints at which something went wrong.
    pub async fn record_counts(&self) -> Result<Vec<EndpointId>> {
        let mut taken: Vec<(EndpointId, Counts)> = self.tallies.take_counts().into_iter().collect();
        taken.retain(|(_, counts)| !counts.is_empty());
        taken.sort_unstable_by_key(|(endpoint, _)| *endpoint);
        for (place, batch) in taken.chunks(BATCH).enumerate() {
            if let Err(error) = self.add_counts(batch).await {
                self.tallies.give_back(taken.split_off(place * BATCH).into_iter().collect());
                return Err(error);
            }
        }
        let has_trouble =
            |counts: &Counts| counts.failed_attempts + counts.failed_deliveries + counts.filter_errors > 0;
        Ok(taken.into_iter().filter(|(_, counts)| has_trouble(counts)).map(|(endpoint, _)| endpoint).collect())
    }

    async fn add_counts(&self, batch: &[(EndpointId, Counts)]) -> Result<()> {
        let column = |of: fn(&Counts) -> u64| -> Vec<i64> {
            batch.iter().map(|(_, counts)| i64::try_from(of(counts)).unwrap_or(i64::MAX)).collect()
        };
        sqlx::query(ADD)
            .bind(batch.iter().map(|(endpoint, _)| endpoint.uuid()).collect::<Vec<_>>())
            .bind(column(|counts| counts.attempts))
            .bind(column(|counts| counts.failed_attempts))
            .bind(column(|counts| counts.failed_deliveries))
            .bind(column(|counts| counts.filter_errors))
            .execute(&self.engine)
            .await?;
        Ok(())
    }

    /// What happened at these endpoints in the last `window`, of all replicas.
    pub async fn counts_within(
        &self,
        endpoints: &[EndpointId],
        window: Duration,
    ) -> Result<HashMap<EndpointId, Counts>> {
        let mut counts = HashMap::with_capacity(endpoints.len());
        for batch in endpoints.chunks(BATCH) {
            let rows =
                sqlx::query(COUNTS).bind(uuids(batch)).bind(window.as_secs_f64()).fetch_all(&self.engine).await?;
            for row in &rows {
                counts.insert(EndpointId::from_uuid(row.try_get("id")?), read_counts(row)?);
            }
        }
        Ok(counts)
    }

    /// Those of these endpoints that have failed at least so often in a row, and how often.
    pub async fn failures_in_a_row(&self, endpoints: &[EndpointId], min: u32) -> Result<Vec<(EndpointId, u32)>> {
        let mut found = Vec::new();
        for batch in endpoints.chunks(BATCH) {
            let rows: Vec<(Uuid, i32)> =
                sqlx::query_as(FAILURES).bind(uuids(batch)).bind(min.cast_signed()).fetch_all(&self.engine).await?;
            found.extend(rows.into_iter().map(|(id, failures)| (EndpointId::from_uuid(id), count(failures))));
        }
        Ok(found)
    }

    /// A page of all endpoints that have failed as often in a row as one of these thresholds says and have no open alert
    /// of that level, from beyond `after` on.
    pub async fn all_failures_in_a_row(
        &self,
        thresholds: &[u32],
        after: Option<EndpointId>,
    ) -> Result<Vec<(EndpointId, u32)>> {
        let rows: Vec<(Uuid, i32)> = sqlx::query_as(ALL_FAILURES)
            .bind(thresholds.first().copied().unwrap_or(u32::MAX >> 1).cast_signed())
            .bind(after.map_or(Uuid::nil(), EndpointId::uuid))
            .bind(thresholds.iter().map(|threshold| threshold.cast_signed()).collect::<Vec<_>>())
            .bind(BATCH as i64)
            .fetch_all(&self.reader)
            .await?;
        Ok(rows.into_iter().map(|(id, failures)| (EndpointId::from_uuid(id), count(failures))).collect())
    }

    /// Disabled endpoints of which no open alert tells, with the reason where one is known; some of them.
    pub async fn disabled_unalerted(&self) -> Result<Vec<(EndpointId, String)>> {
        let rows: Vec<(Uuid, String)> = sqlx::query_as(DISABLED).bind(BATCH as i64).fetch_all(&self.reader).await?;
        Ok(rows.into_iter().map(|(id, reason)| (EndpointId::from_uuid(id), reason)).collect())
    }

    /// A page of the open alerts with what holds now, from beyond `after` on; empty at the end.
    pub async fn open_alerts_after(&self, after: Option<&OpenAlert>, window: Duration) -> Result<Vec<OpenAlert>> {
        let rows = sqlx::query(OPEN)
            .bind(after.map_or(Uuid::nil(), |alert| alert.endpoint.uuid()))
            .bind(after.map_or(0, |alert| alert.kind.number()))
            .bind(BATCH as i64)
            .bind(window.as_secs_f64())
            .fetch_all(&self.engine)
            .await?;
        rows.iter()
            .map(|row| {
                let open = read_open(row)?;
                let outstanding = self.backlog.of(open.endpoint);
                Ok(OpenAlert { figures: Figures { outstanding, ..open.figures }, ..open })
            })
            .collect()
    }

    /// Endpoints with at least `outstanding_min` outstanding deliveries, or of which one has been due and waiting for at
    /// least `age_min`; with how many and how long. As of the last count (see `count_backlog`).
    pub async fn backlogs(&self, outstanding_min: u64, age_min: Duration) -> Result<Vec<(EndpointId, u64, Duration)>> {
        let waiting = self.backlog.all();
        let mut found: HashMap<EndpointId, (u64, Duration)> = waiting
            .iter()
            .filter(|(_, count)| *count >= outstanding_min)
            .map(|(endpoint, count)| (*endpoint, (*count, Duration::ZERO)))
            .collect();
        for batch in waiting.chunks(BATCH) {
            let ids: Vec<Uuid> = batch.iter().map(|(endpoint, _)| endpoint.uuid()).collect();
            let rows: Vec<(Uuid, f64)> =
                sqlx::query_as(OLDEST_DUE).bind(ids).bind(age_min.as_secs_f64()).fetch_all(&self.engine).await?;
            for (id, age) in rows {
                let endpoint = EndpointId::from_uuid(id);
                found.entry(endpoint).or_insert((self.backlog.of(endpoint), Duration::ZERO)).1 = seconds(age);
            }
        }
        Ok(found.into_iter().map(|(endpoint, (count, age))| (endpoint, count, age)).collect())
    }

    /// Removes at most `limit` rows of minutes that are long over; answers how many.
    pub async fn prune_minutes(&self, limit: u32) -> Result<u64> {
        Ok(sqlx::query(PRUNE).bind(i64::from(limit)).execute(&self.engine).await?.rows_affected())
    }
}

fn uuids(endpoints: &[EndpointId]) -> Vec<Uuid> {
    endpoints.iter().map(|endpoint| endpoint.uuid()).collect()
}

fn seconds(age: f64) -> Duration {
    Duration::try_from_secs_f64(age).unwrap_or_default()
}

fn read_counts(row: &PgRow) -> Result<Counts> {
    let number = |column: &str| -> Result<u64> {
        Ok(u64::try_from(row.try_get::<Option<i64>, _>(column)?.unwrap_or_default()).unwrap_or_default())
    };
    Ok(Counts {
        attempts: number("attempts")?,
        failed_attempts: number("failed_attempts")?,
        failed_deliveries: number("failed_deliveries")?,
        filter_errors: number("filter_errors")?,
    })
}

fn read_open(row: &PgRow) -> Result<OpenAlert> {
    let figures = Figures {
        consecutive_failures: count(row.try_get("failures")?),
        is_disabled: row.try_get("is_disabled")?,
        is_gone: row.try_get("is_gone")?,
        counts: read_counts(row)?,
        outstanding: 0,
        oldest_due_age: row.try_get::<Option<f64>, _>("age")?.map(seconds),
    };
    Ok(OpenAlert {
        id: AlertId::from_uuid(row.try_get("id")?),
        endpoint: EndpointId::from_uuid(row.try_get("endpoint_id")?),
        kind: stored("alert kind", row.try_get("kind")?, AlertKind::from_number)?,
        figures,
    })
}
