//! Alerts as rows: opened once a condition, raised, closed, acknowledged, listed, and which of them are still to be told
//! of by operational events. Which conditions hold is read in `conditions`.

use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::{Json, Uuid};

use super::Store;
use super::error::Result;
use super::types::{PgTime, count, stored};
use crate::domain::alert::{Alert, AlertKind, Finding};
use crate::domain::fields::Tenant;
use crate::domain::id::{AlertId, EndpointId};

/// Which alerts to list, newest first.
#[derive(Debug, Default, Clone)]
pub struct AlertFilter {
    /// One tenant's; `None` for all.
    pub tenant: Option<Tenant>,
    /// One endpoint's.
    pub endpoint: Option<EndpointId>,
    /// Of one of these kinds; empty for any.
    pub kinds: Vec<AlertKind>,
    /// Open ones alone.
    pub open_only: bool,
    /// Only ids below this one: where the page before ended.
    pub before: Option<AlertId>,
}

/// An alert that is still to be told of.
#[derive(Debug, Clone)]
pub struct UntoldAlert {
    /// The alert.
    pub alert: Alert,
    /// Its level.
    pub level: u32,
    /// Up to which level it is told of.
    pub told_level: u32,
    /// Whether its end is told of, or need not be.
    pub is_close_told: bool,
}

/// Opens alerts, or raises the level of those that are open: `alerts_open` makes it one for each endpoint and kind,
/// whoever finds it. Reads endpoints by `endpoints_pkey`; a deleted one gets none.
///
/// It is quiet where no operational event tells of it (`$7`). A failing or disabled endpoint's is quiet as well where
/// operational events are all that fails there, for those raise no further ones: that is, as far as the first thousand of
/// its outstanding deliveries and the last hundred that failed since its last success show (`outstanding_due`,
/// `settled_failed_endpoint`). It is not quiet any more once others fail, too.
///
/// Of what a success has ended already (`$8`) these show nothing any more. It is no news where an alert of its kind was
/// closed a moment ago: by somebody who saw the success first.
const OPEN: &str = "
insert into alerts as a (id, tenant, endpoint_id, kind, level, is_quiet, message, details, open_time)
select f.id, e.tenant, e.id, f.kind, f.level,
       not ($7::boolean[])[f.place] or f.kind in (1, 2) and not $8 and not (
         exists (select from unnest(array[1, 2, 3]::smallint[]) as p (priority) cross join lateral (
                   select o.event_type from outstanding o where o.endpoint_id = e.id and o.priority = p.priority
                   order by o.endpoint_id, o.priority, o.due_at limit 1000
                 ) o where o.event_type not like 'hooklane.%')
         or exists (select from (
                      select s.event_type, s.settle_time from settled_failed s where s.endpoint_id = e.id
                      order by s.endpoint_id desc, s.id desc limit 100
                    ) s
                    where s.event_type not like 'hooklane.%'
                      and s.settle_time > coalesce(h.last_success_time, '-infinity'))
       ),
       f.message, f.details, now()
from unnest($1::uuid[], $2::uuid[], $3::smallint[], $4::int[], $5::text[], $6::jsonb[]) with ordinality
  as f (id, endpoint_id, kind, level, message, details, place)
join endpoints e on e.id = f.endpoint_id and e.delete_time is null
left join endpoint_health h on h.endpoint_id = e.id
where not $8 or not exists (
  select from alerts c where c.endpoint_id = e.id and c.kind = f.kind and c.close_time > now() - interval '10 seconds')
on conflict (endpoint_id, kind) where close_time is null do update
  set level = greatest(a.level, excluded.level), message = excluded.message, details = excluded.details,
      is_quiet = a.is_quiet and excluded.is_quiet
  where a.level < excluded.level or (a.is_quiet and not excluded.is_quiet)";

/// `$2`: the kinds whose end is told of, but not where the endpoint is gone.
const CLOSE: &str = "
update alerts a
set close_time = now(),
    is_close_told = not (a.kind = any($2::smallint[]))
                    or not exists (select from endpoints e where e.id = a.endpoint_id and e.delete_time is null)
where a.id = any($1) and a.close_time is null";

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "
select a.id, a.tenant, a.endpoint_id, a.kind, a.message, a.details, a.open_time, a.close_time, a.acknowledge_time,
       a.acknowledged_by, a.level, a.told_level, a.is_close_told
from alerts a ",
            $rest
        )
    };
}

/// By `alerts_endpoint`, `alerts_tenant_open`, `alerts_tenant` or `alerts_pkey` backwards.
const LIST: &str = select!(
    "where ($1::text is null or a.tenant = $1) and ($2::uuid is null or a.endpoint_id = $2)
  and (cardinality($3::smallint[]) = 0 or a.kind = any($3)) and (not $4 or a.close_time is null)
  and ($5::uuid is null or a.id < $5)
order by a.id desc limit $6"
);

const ONE: &str = select!("where a.id = $1");

/// By `alerts_untold`, oldest first.
const UNTOLD: &str = select!(
    "where not a.is_quiet and (a.told_level < a.level or (a.close_time is not null and not a.is_close_told))
order by a.id limit $1"
);

const TOLD: &str = "
update alerts set told_level = greatest(told_level, $2), is_close_told = is_close_told or $3 where id = $1";

/// The first one who acknowledges stays on record.
const ACKNOWLEDGE: &str = "
update alerts set acknowledge_time = now(), acknowledged_by = $2 where id = $1 and acknowledge_time is null";

/// A batch of those that were closed long ago, by `alerts_closed`. What is still to be told of stays.
const PRUNE: &str = "
delete from alerts where id = any(array(
  select id from alerts
  where close_time < now() - make_interval(secs => $1) and (is_quiet or (told_level >= level and is_close_told))
  order by close_time limit $2))";

impl Store {
    /// Opens an alert for each finding of which there is none, and raises those that are open.
    pub async fn open_alerts(&self, findings: &[Finding]) -> Result<u64> {
        let told: Vec<bool> = findings.iter().map(|finding| finding.kind.event_type().is_some()).collect();
        self.insert_alerts(findings, told, false).await
    }

    /// The same for what has ceased to hold already; with whether operational events tell of each.
    pub async fn open_past_alerts(&self, findings: Vec<(Finding, bool)>) -> Result<u64> {
        let (findings, told): (Vec<Finding>, Vec<bool>) = findings.into_iter().unzip();
        self.insert_alerts(&findings, told, true).await
    }

    async fn insert_alerts(&self, findings: &[Finding], told: Vec<bool>, is_past: bool) -> Result<u64> {
        if findings.is_empty() {
            return Ok(0);
        }
        let opened = sqlx::query(OPEN)
            .bind(findings.iter().map(|_| self.clock.new_uuid()).collect::<Vec<_>>())
            .bind(findings.iter().map(|finding| finding.endpoint.uuid()).collect::<Vec<_>>())
            .bind(findings.iter().map(|finding| finding.kind.number()).collect::<Vec<_>>())
            .bind(findings.iter().map(|finding| finding.level.cast_signed()).collect::<Vec<_>>())
            .bind(findings.iter().map(|finding| finding.message.as_str()).collect::<Vec<_>>())
            .bind(findings.iter().map(|finding| Json(&finding.details)).collect::<Vec<_>>())
            .bind(told)
            .bind(is_past)
            .execute(&self.reader)
            .await?;
        Ok(opened.rows_affected())
    }

    /// Closes alerts whose condition has ceased to hold.
    pub async fn close_alerts(&self, ids: &[AlertId]) -> Result<()> {
        let told: Vec<i16> = (1..=6)
            .filter_map(AlertKind::from_number)
            .filter(|kind| kind.tells_recovery())
            .map(AlertKind::number)
            .collect();
        let ids: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
        sqlx::query(CLOSE).bind(ids).bind(told).execute(&self.reader).await?;
        Ok(())
    }

    /// Alerts, newest first, `limit` at most.
    pub async fn list_alerts(&self, filter: &AlertFilter, limit: u32) -> Result<Vec<Alert>> {
        let rows = sqlx::query(LIST)
            .bind(filter.tenant.as_ref().map(Tenant::as_str))
            .bind(filter.endpoint.map(EndpointId::uuid))
            .bind(filter.kinds.iter().map(|kind| kind.number()).collect::<Vec<_>>())
            .bind(filter.open_only)
            .bind(filter.before.map(AlertId::uuid))
            .bind(i64::from(limit))
            .fetch_all(&self.reader)
            .await?;
        rows.iter().map(read_alert).collect()
    }

    /// One alert; `None` where there is none.
    pub async fn alert(&self, id: AlertId) -> Result<Option<Alert>> {
        let row = sqlx::query(ONE).bind(id.uuid()).fetch_optional(&self.reader).await?;
        row.as_ref().map(read_alert).transpose()
    }

    /// Notes who has seen an alert, unless somebody has already. Whether there is one is not told.
    pub async fn acknowledge_alert(&self, id: AlertId, by: &str) -> Result<()> {
        sqlx::query(ACKNOWLEDGE).bind(id.uuid()).bind(by).execute(&self.reader).await?;
        Ok(())
    }

    /// Alerts that are still to be told of, oldest first.
    pub async fn untold_alerts(&self, limit: u32) -> Result<Vec<UntoldAlert>> {
        let rows = sqlx::query(UNTOLD).bind(i64::from(limit)).fetch_all(&self.reader).await?;
        rows.iter().map(read_untold).collect()
    }

    /// Notes up to which level an alert is told of, and whether its end is.
    pub async fn alert_told(&self, id: AlertId, level: u32, is_close_told: bool) -> Result<()> {
        let told = sqlx::query(TOLD).bind(id.uuid()).bind(level.cast_signed()).bind(is_close_told);
        told.execute(&self.reader).await?;
        Ok(())
    }

    /// Removes at most `limit` alerts that were closed longer ago than that; answers how many.
    pub async fn prune_alerts(&self, kept: std::time::Duration, limit: u32) -> Result<u64> {
        let pruned = sqlx::query(PRUNE).bind(kept.as_secs_f64()).bind(i64::from(limit)).execute(&self.reader).await?;
        Ok(pruned.rows_affected())
    }
}

fn read_alert(row: &PgRow) -> Result<Alert> {
    let acknowledge_time: Option<PgTime> = row.try_get("acknowledge_time")?;
    let by: Option<String> = row.try_get("acknowledged_by")?;
    Ok(Alert {
        id: AlertId::from_uuid(row.try_get("id")?),
        tenant: Tenant::from_stored(row.try_get("tenant")?),
        endpoint: EndpointId::from_uuid(row.try_get("endpoint_id")?),
        kind: stored("alert kind", row.try_get("kind")?, AlertKind::from_number)?,
        message: row.try_get("message")?,
        details: row.try_get::<Json<_>, _>("details")?.0,
        open_time: row.try_get::<PgTime, _>("open_time")?.0,
        close_time: row.try_get::<Option<PgTime>, _>("close_time")?.map(|time| time.0),
        acknowledged: acknowledge_time.map(|time| (time.0, by.unwrap_or_default())),
    })
}

fn read_untold(row: &PgRow) -> Result<UntoldAlert> {
    Ok(UntoldAlert {
        alert: read_alert(row)?,
        level: count(row.try_get("level")?),
        told_level: count(row.try_get("told_level")?),
        is_close_told: row.try_get("is_close_told")?,
    })
}
