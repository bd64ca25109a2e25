//! Collecting: which deliveries a replay is about, walked in small steps and kept as its items.

use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, PgConnection};

use super::work::{Locked, Step};
use crate::domain::delivery::DeliveryState;
use crate::domain::fields::Tenant;
use crate::domain::id::uuid_floor;
use crate::domain::time::Timestamp;
use crate::store::error::Result;
use crate::store::types::{PgTime, regex_of};

/// Rows looked at by one step.
const WALK: i64 = 2_000;
/// Collecting takes no lock and makes no request: a fifth of the time.
const REST: f64 = 4.0;

/// Takes the next rows of a walk among the items. The walks of a replay are those of each table for each endpoint, or
/// for the tenant, in the order of ids.
pub(super) async fn collect(connection: &mut PgConnection, locked: &Locked, walk: i32) -> Result<Step> {
    let mut step = Step { rest_for_each: REST, ..Step::default() };
    let filter = &locked.replay.asked.filter;
    let tables = tables(&filter.states);
    let by_ids = !filter.deliveries.is_empty();
    let lanes = if by_ids || filter.endpoints.is_empty() { 1 } else { filter.endpoints.len() };
    let place = usize::try_from(walk).unwrap_or_default();
    if place >= lanes * tables.len() {
        return Ok(Step { is_last: locked.replay.asked.is_dry_run, ..step });
    }
    let endpoint = if by_ids { None } else { filter.endpoints.get(place / tables.len()) };
    let states: Vec<i16> = match filter.states.is_empty() {
        true => vec![DeliveryState::Failed.number()],
        false => filter.states.iter().map(|state| state.number()).collect(),
    };
    let after = filter.create_after.map_or(Uuid::nil(), uuid_floor);
    let since = filter.create_after.map_or(i64::MIN, |after| after.micros() - 3_600_000_000);
    let statement = walk_statement(tables[place % tables.len()], by_ids, endpoint.is_some(), &filter.tenant);
    let (walked, matched, last): (i64, i64, Option<Uuid>) = sqlx::query_as(AssertSqlSafe(statement))
        .bind(locked.replay.id.uuid())
        .bind(filter.tenant.as_str())
        .bind(endpoint.map(|id| id.uuid()))
        .bind(filter.deliveries.iter().map(|id| id.uuid()).collect::<Vec<_>>())
        .bind(filter.endpoints.iter().map(|id| id.uuid()).collect::<Vec<_>>())
        .bind(after)
        .bind(filter.create_before.map_or(Uuid::max(), uuid_floor))
        .bind(locked.walked_to.unwrap_or_default())
        .bind(PgTime(Timestamp::from_micros(since)))
        .bind(PgTime(locked.replay.create_time))
        .bind(states)
        .bind(regex_of(&filter.event_types))
        .bind(locked.replay.asked.is_dry_run)
        .bind(WALK)
        .fetch_one(connection)
        .await?;
    step.matched = matched;
    (step.walk, step.walked_to) = if walked < WALK { (Some(walk + 1), None) } else { (Some(walk), last) };
    Ok(step)
}

/// The tables that a replay of these states looks at.
fn tables(states: &[DeliveryState]) -> Vec<&'static str> {
    let is_succeeded = states.contains(&DeliveryState::Succeeded);
    let is_failed = states.is_empty() || states.iter().any(|state| *state != DeliveryState::Succeeded);
    [(is_failed, "settled_failed"), (is_succeeded, "settled_succeeded")]
        .into_iter()
        .filter_map(|(is_wanted, table)| is_wanted.then_some(table))
        .collect()
}

/// Looks at the next rows by `…_endpoint`, `…_tenant` or `…_pkey`, in the order of ids, and makes items of those that
/// match. What settled after the replay was started is not in it, so that it never meets what it made fail again. The
/// column before the id is bounded on both sides, as in `lists`.
fn walk_statement(table: &str, by_ids: bool, by_endpoint: bool, tenant: &Tenant) -> String {
    let is_succeeded = table == "settled_succeeded";
    let (path, order) = match (by_ids, by_endpoint) {
        (true, _) => ("d.id = any($4::uuid[])", "d.id"),
        (_, true) => ("d.endpoint_id >= $3::uuid and d.endpoint_id <= $3::uuid", "d.endpoint_id, d.id"),
        _ if !is_succeeded => ("d.tenant >= $2::text and d.tenant <= $2::text", "d.tenant, d.id"),
        _ if tenant.is_default() => ("true", "d.id"),
        _ => ("d.tenant <> 'default' and d.tenant >= $2::text and d.tenant <= $2::text", "d.tenant, d.id"),
    };
    let state = if is_succeeded { "4::smallint" } else { "d.state" };
    // One that was deleted as a dead letter is replayed by its id alone.
    let dismissed = if is_succeeded || by_ids { "false" } else { "d.dismiss_time is not null" };
    format!(
        "
with walked as materialized (
  select d.id, d.endpoint_id, d.settle_time, d.event_type, d.tenant, {state} as state, {dismissed} as is_dismissed
  from {table} d
  where {path} and d.id >= $6::uuid and d.id < $7::uuid and d.id > $8::uuid
    and d.settle_time >= $9::timestamptz and d.settle_time <= $10::timestamptz
    and ($3::uuid is null or d.endpoint_id = $3)
  order by {order}
  limit $14::bigint
), kept as materialized (
  select w.id, w.endpoint_id, w.settle_time from walked w
  where w.state = any($11::smallint[]) and ($12::text is null or w.event_type ~ $12) and w.tenant = $2::text
    and (cardinality($5::uuid[]) = 0 or w.endpoint_id = any($5)) and cardinality($4::uuid[]) >= 0 and not w.is_dismissed
), itemized as (
  insert into replay_items (replay_id, endpoint_id, id, settle_time, is_succeeded)
  select $1, k.endpoint_id, k.id, k.settle_time, {is_succeeded} from kept k where not $13::boolean
), lanes as (
  insert into replay_lanes (replay_id, endpoint_id, items_left)
  select $1, k.endpoint_id, count(*) from kept k where not $13::boolean group by k.endpoint_id
  on conflict (replay_id, endpoint_id) do update set items_left = replay_lanes.items_left + excluded.items_left
)
select (select count(*) from walked), (select count(*) from kept), (select w.id from walked w order by w.id desc limit 1)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_looks_at_the_tables_of_its_states() {
        use DeliveryState::{Canceled, Failed, Succeeded};
        assert_eq!(tables(&[]), ["settled_failed"]);
        assert_eq!(tables(&[Canceled, Failed]), ["settled_failed"]);
        assert_eq!(tables(&[Succeeded]), ["settled_succeeded"]);
        assert_eq!(tables(&[Succeeded, Failed]), ["settled_failed", "settled_succeeded"]);
    }
}
