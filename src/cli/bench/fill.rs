//! Rows that scenarios put into the database themselves: as publishes of the last minute would have left them, an event
//! each.

use sqlx::types::Uuid;

use super::cluster::{execute, sql_failed};
use super::stage::Stage;
use crate::cli::Failure;

/// The statement: `$1` is the number of rows, `$2` the endpoints they are of, in turn. It draws `ids`, of deliveries with
/// their events and endpoints, and writes the events; what it is given writes the deliveries.
macro_rules! filling {
    ($deliveries:literal) => {
        concat!(
            "
with drawn as materialized (
  select lpad(to_hex(floor(extract(epoch from now()) * 1000)::bigint - 60000 + n % 60000), 12, '0') as millis,
         md5(n::text) as digits, ($2::uuid[])[1 + n % cardinality($2::uuid[])] as endpoint_id
  from generate_series(1, $1) as n
), ids as materialized (
  select endpoint_id, (millis || '7' || substr(digits, 1, 3) || '8' || substr(digits, 4, 15))::uuid as event_id,
         (millis || '7' || substr(digits, 5, 3) || '9' || substr(digits, 8, 15))::uuid as id
  from drawn
), new_events as (
  insert into hooklane.events (id, tenant, event_type, payload, content_type)
  select event_id, 'default', 'bench.event', convert_to('{\"pad\":\"' || repeat('x', 490) || '\"}', 'UTF8'),
         'application/json'
  from ids
)",
            $deliveries
        )
    };
}
pub(super) use filling;

/// Writes rows, and leaves the tables as autovacuum would have, which must not run beside one of the measurements only;
/// `deliveries` is the table that the statement writes them to.
pub(super) async fn fill(
    stage: &Stage<'_>,
    statement: &'static str,
    rows: i64,
    endpoints: &[Uuid],
    deliveries: &str,
) -> Result<(), Failure> {
    let mut connection = stage.cluster.connect(&stage.database).await?;
    sqlx::query(statement).bind(rows).bind(endpoints).execute(&mut connection).await.map_err(sql_failed)?;
    for table in [deliveries, "events", "timeline"] {
        execute(&mut connection, &format!("vacuum analyze hooklane.{table}")).await?;
    }
    Ok(())
}
