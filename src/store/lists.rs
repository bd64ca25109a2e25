//! Lists of deliveries, newest first: pages whose cost does not grow with what there is.
//!
//! A delivery is in one of three tables, so a page merges three walks, each by the index of the narrowest condition, in
//! one statement and so in one snapshot: what settles between two walks is neither missed nor seen twice. Conditions that
//! no index knows (an event type, one state of several) are tried on what is walked, and a walk has an end: then the page
//! is short, and the next one goes on where the shortest walk stopped.

use std::fmt::Write as _;

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, Postgres, Row};

use super::Store;
use super::error::Result;
use super::history::{DeliveryRow, beside_delivery, read_row};
use super::types::regex_of;
use crate::domain::delivery::DeliveryState;
use crate::domain::fields::Tenant;
use crate::domain::id::{DeliveryId, EndpointId, EventId, uuid_floor};
use crate::domain::pattern::EventPattern;
use crate::domain::time::Timestamp;

/// Which deliveries to list, newest first.
#[derive(Debug, Default, Clone)]
pub struct DeliveryFilter {
    /// One tenant's; `None` for all.
    pub tenant: Option<Tenant>,
    /// One endpoint's.
    pub endpoint: Option<EndpointId>,
    /// One event's.
    pub event: Option<EventId>,
    /// Of types that one of these matches; empty for any.
    pub event_types: Vec<EventPattern>,
    /// In one of these states; empty for any.
    pub states: Vec<DeliveryState>,
    /// Made at or after.
    pub create_after: Option<Timestamp>,
    /// Made before.
    pub create_before: Option<Timestamp>,
    /// Only ids below this one: where the page before ended.
    pub before: Option<DeliveryId>,
}

/// Rows that a walk looks at for one page, at most.
const WALK_MAX: i64 = 3_000;
/// Endpoints of a tenant whose queues are looked at one by one, at most.
const QUEUES_MAX: i64 = 1_000;

/// One of the tables that a delivery may be in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    Outstanding,
    Succeeded,
    Failed,
}

impl Table {
    const ALL: [Self; 3] = [Self::Outstanding, Self::Succeeded, Self::Failed];

    const fn states(self) -> &'static [DeliveryState] {
        match self {
            Self::Outstanding => &[DeliveryState::Pending, DeliveryState::InFlight, DeliveryState::Retrying],
            Self::Succeeded => &[DeliveryState::Succeeded],
            Self::Failed => &[DeliveryState::Failed, DeliveryState::Canceled, DeliveryState::Expired],
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Outstanding => "outstanding",
            Self::Succeeded => "settled_succeeded",
            Self::Failed => "settled_failed",
        }
    }

    /// The columns that `read_row` wants, in its order, but for those of other tables.
    const fn columns(self) -> &'static str {
        match self {
            Self::Outstanding => {
                "d.id, d.event_id, d.endpoint_id, d.tenant, d.event_type, d.state, null::text as reason, \
                 d.attempt_count, d.priority, d.due_at, null::timestamptz as settle_time, d.last_status, d.last_error, \
                 d.cancel_requested"
            }
            Self::Succeeded => {
                "d.id, d.event_id, d.endpoint_id, d.tenant, d.event_type, 4::smallint as state, null::text as reason, \
                 d.attempt_count, d.priority, null::timestamptz as due_at, d.settle_time, d.last_status, \
                 null::text as last_error, false as cancel_requested"
            }
            Self::Failed => {
                "d.id, d.event_id, d.endpoint_id, d.tenant, d.event_type, d.state, d.reason, d.attempt_count, \
                 d.priority, null::timestamptz as due_at, d.settle_time, d.last_status, d.last_error, \
                 false as cancel_requested"
            }
        }
    }
}

/// How the outstanding ones are found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// By their ids, newest first, as the settled ones: ends soon where the wanted ones are many.
    Walked,
    /// All of the wanted endpoints' queues, by `outstanding_due`: ends soon where they are few, however many others wait.
    Gathered,
}

/// The ids of a page.
const RANGE: &str = "($5::uuid is null or d.id >= $5) and ($6::uuid is null or d.id < $6)";
/// What is tried on each row.
const TRIES: &str =
    "where (cardinality($4::smallint[]) = 0 or d.state = any($4)) and ($7::text is null or d.event_type ~ $7)
    and ($1::uuid is null or d.endpoint_id = $1) and ($3::text is null or d.tenant = $3)";

/// What a walk reads, and in which order.
struct Walk {
    from: String,
    order: &'static str,
}

/// What a page is read by.
pub(super) struct Statement<'f> {
    filter: &'f DeliveryFilter,
    limit: i64,
    waiting: Waiting,
    sql: String,
}

impl<'f> Statement<'f> {
    /// The statement for a page of `limit` deliveries.
    pub(super) fn of_page(filter: &'f DeliveryFilter, limit: u32) -> Self {
        Self::new(filter, limit, Waiting::Walked)
    }

    fn new(filter: &'f DeliveryFilter, limit: u32, waiting: Waiting) -> Self {
        let mut statement = Self { filter, limit: i64::from(limit), waiting, sql: String::new() };
        statement.write().expect("a string takes everything");
        statement
    }

    /// Binds what is asked for. `prefix` goes before the statement.
    pub(super) fn query(&self, prefix: &str) -> Query<'static, Postgres, PgArguments> {
        let filter = self.filter;
        let ceiling = match (filter.before.map(DeliveryId::uuid), filter.create_before.map(uuid_floor)) {
            (Some(before), Some(made)) => Some(before.min(made)),
            (before, made) => before.or(made),
        };
        // Made from constants alone; every value is a parameter.
        sqlx::query(AssertSqlSafe(format!("{prefix}{}", self.sql)))
            .bind(filter.endpoint.map(EndpointId::uuid))
            .bind(filter.event.map(EventId::uuid))
            .bind(filter.tenant.as_ref().map(|tenant| tenant.as_str().to_owned()))
            .bind(filter.states.iter().map(|state| state.number()).collect::<Vec<_>>())
            .bind(filter.create_after.map(uuid_floor))
            .bind(ceiling)
            .bind(regex_of(&filter.event_types))
            .bind(self.limit)
            .bind(WALK_MAX.max(self.limit))
            .bind(QUEUES_MAX)
    }

    fn write(&mut self) -> std::fmt::Result {
        let is_wanted = |table: &Table| {
            self.filter.states.is_empty() || table.states().iter().any(|state| self.filter.states.contains(state))
        };
        let tables: Vec<Table> = Table::ALL.into_iter().filter(is_wanted).collect();
        let mut separator = "with ";
        for table in &tables {
            self.sql.push_str(separator);
            if *table == Table::Outstanding && self.waiting == Waiting::Gathered {
                self.write_gathered()?;
            } else {
                self.write_walked(*table)?;
            }
            separator = ", ";
        }
        let all = tables.iter().map(|table| format!("select * from {}_page", table.name())).collect::<Vec<_>>();
        let stops = tables.iter().map(|table| self.stop(*table)).collect::<Vec<_>>();
        let is_exceeded = match tables.contains(&Table::Outstanding) && self.waiting == Waiting::Gathered {
            true => "(select count(*) from gathered) > $9 or (select count(*) from queues) > $10",
            false => "false",
        };
        write!(
            self.sql,
            "
select d.*, {},
       b.outstanding_stop, b.stop, b.is_exceeded
from (
  select greatest({}) as stop, {} as outstanding_stop, {is_exceeded} as is_exceeded,
         ($1::uuid, $2::uuid, $3::text, $4::smallint[], $5::uuid, $6::uuid, $7::text, $9::bigint, $10::bigint) is null
) b
left join (select * from ({}) d order by d.id desc limit $8) d on true
order by d.id desc",
            beside_delivery!(),
            stops.join(", "),
            if tables.contains(&Table::Outstanding) { self.stop(Table::Outstanding) } else { "null::uuid".to_owned() },
            all.join(" union all "),
        )
    }

    /// A walk down one table's ids.
    fn write_walked(&mut self, table: Table) -> std::fmt::Result {
        let (name, columns, Walk { from, order }) = (table.name(), table.columns(), self.walk(table));
        let (tried, end) = if self.is_tried(table) { (TRIES, "$9") } else { ("", "$8") };
        write!(
            self.sql,
            "{name}_page as materialized (
  select * from (select {columns} from {from} order by {order} limit {end}) d
  {tried}
  order by {order} limit $8
)"
        )
    }

    /// The wanted endpoints' queues, each by `outstanding_due`, up to more than a walk would look at.
    fn write_gathered(&mut self) -> std::fmt::Result {
        let columns = Table::Outstanding.columns();
        let queues = match self.filter.endpoint {
            Some(_) => "select $1::uuid as id",
            None => {
                "select e.id from endpoints e where e.tenant = $3 and e.delete_time is null
  union all
  select e.id from endpoints e where e.tenant = $3 and e.delete_time is not null and e.drain_time is null"
            }
        };
        write!(
            self.sql,
            "queues as materialized (select q.id from ({queues}) q limit $10 + 1), gathered as materialized (
  select d.* from queues q cross join lateral (
    select {columns} from outstanding d where d.endpoint_id = q.id
    order by d.endpoint_id, d.priority, d.due_at limit $9 + 1
  ) d
  limit $9 + 1
), outstanding_page as materialized (
  select d.* from gathered d {TRIES} and {RANGE} order by d.id desc limit $8
)"
        )
    }

    /// A table with the conditions that an index of it knows, and the order of that index. The column before the id is
    /// bounded on both sides instead of being equal: then it stays part of the order, which no other index has. Equal, it
    /// would fall away, and the planner took the primary key for an endpoint with a seventh of the rows, seven times as
    /// many. The settled ones are pruned to the days since `$5`: nothing settles before it is made, but for an hour that
    /// the clocks may be apart.
    fn walk(&self, table: Table) -> Walk {
        let name = table.name();
        let is_settled = table != Table::Outstanding;
        let days = if is_settled {
            " and ($5::uuid is null or d.settle_time >= uuid_time($5) - interval '1 hour')"
        } else {
            ""
        };
        let range = format!("{RANGE}{days}");
        if self.filter.event.is_some() {
            let since = if is_settled { " and d.settle_time >= uuid_time($2) - interval '1 hour'" } else { "" };
            // An event's are few: read by their ids before anything is sorted, whatever the statistics say.
            let from = format!(
                "(select * from {name} d
      where d.id >= deliveries_from($2) and d.id <= deliveries_to($2) and d.event_id = $2{since}
      union all
      select * from {name} d where d.id = any(array(select delivery_id from deliveries_apart where event_id = $2)){since}
      offset 0) d where {RANGE}"
            );
            return Walk { from, order: "d.id desc" };
        }
        if is_settled && self.filter.endpoint.is_some() {
            // An endpoint has one tenant: looked at once, not for every row.
            let owner = "($3::text is null or exists (select from endpoints e where e.id = $1 and e.tenant = $3))";
            let from = format!("{name} d where d.endpoint_id >= $1 and d.endpoint_id <= $1 and {owner} and {range}");
            return Walk { from, order: "d.endpoint_id desc, d.id desc" };
        }
        if self.is_by_tenant(table) {
            let indexed = if table == Table::Succeeded { "d.tenant <> 'default' and " } else { "" };
            let from = format!("{name} d where {indexed}d.tenant >= $3 and d.tenant <= $3 and {range}");
            return Walk { from, order: "d.tenant desc, d.id desc" };
        }
        Walk { from: format!("{name} d where {range}"), order: "d.id desc" }
    }

    /// Whether a tenant's rows are walked by an index of their own. The default tenant's SUCCEEDED ones have none: mostly
    /// they are all there are.
    fn is_by_tenant(&self, table: Table) -> bool {
        let is_indexed = |tenant: &Tenant| match table {
            Table::Outstanding => false,
            Table::Succeeded => !tenant.is_default(),
            Table::Failed => true,
        };
        self.filter.event.is_none()
            && self.filter.endpoint.is_none()
            && self.filter.tenant.as_ref().is_some_and(is_indexed)
    }

    /// Whether the walk meets rows that are not wanted.
    fn is_tried(&self, table: Table) -> bool {
        let states = &self.filter.states;
        let is_part = !states.is_empty() && !table.states().iter().all(|state| states.contains(state));
        // An index has the endpoint's, or the tenant's, of the settled ones.
        let is_indexed = match (table, self.filter.event, self.filter.endpoint, &self.filter.tenant) {
            (_, _, None, None) => true,
            (Table::Outstanding, ..) | (_, Some(_), ..) => false,
            (_, None, Some(_), _) => true,
            (_, None, None, Some(_)) => self.is_by_tenant(table),
        };
        is_part || !is_indexed || !self.filter.event_types.is_empty()
    }

    /// Where a walk stopped short: the last row it looked at. Looked for only where its page is not full.
    fn stop(&self, table: Table) -> String {
        if !self.is_tried(table) || (table == Table::Outstanding && self.waiting == Waiting::Gathered) {
            return "null::uuid".to_owned();
        }
        let (name, Walk { from, order }) = (table.name(), self.walk(table));
        format!(
            "case when (select count(*) from {name}_page) < $8
              then (select d.id from {from} order by {order} offset $9 - 1 limit 1) end"
        )
    }
}

/// A page as it was read.
struct Page {
    rows: Vec<DeliveryRow>,
    /// Nothing below is known.
    stop: Option<DeliveryId>,
    /// Of the outstanding ones alone.
    outstanding_stop: Option<DeliveryId>,
    /// More wait than were gathered.
    is_exceeded: bool,
}

impl Store {
    /// Deliveries, newest first, `limit` at most; and after which one to go on, where there may be more.
    pub async fn list_deliveries(
        &self,
        filter: &DeliveryFilter,
        limit: u32,
    ) -> Result<(Vec<DeliveryRow>, Option<DeliveryId>)> {
        let mut page = self.read_page(&Statement::of_page(filter, limit)).await?;
        let is_narrow = filter.event.is_none() && (filter.endpoint.is_some() || filter.tenant.is_some());
        let is_short = page.rows.len() < limit as usize;
        if is_short && is_narrow && page.outstanding_stop.is_some() {
            // Many wait, and few of them are wanted.
            let gathered = self.read_page(&Statement::new(filter, limit, Waiting::Gathered)).await?;
            if !gathered.is_exceeded {
                page = gathered;
            }
        }
        let is_full = page.rows.len() == limit as usize;
        let end = if is_full { page.rows.last().map(|row| row.id) } else { page.stop };
        self.tell_held_up(&mut page.rows).await?;
        Ok((page.rows, end))
    }

    async fn read_page(&self, statement: &Statement<'_>) -> Result<Page> {
        let read = statement.query("").fetch_all(&self.reader).await?;
        let mut page =
            Page { rows: Vec::with_capacity(read.len()), stop: None, outstanding_stop: None, is_exceeded: false };
        for row in &read {
            page.outstanding_stop = id_of(row, 19)?;
            page.stop = id_of(row, 20)?;
            page.is_exceeded = row.try_get(21)?;
            if id_of(row, 0)?.is_some_and(|id| page.stop.is_none_or(|stop| id >= stop)) {
                page.rows.push(read_row(row)?);
            }
        }
        Ok(page)
    }
}

fn id_of(row: &PgRow, column: usize) -> Result<Option<DeliveryId>> {
    Ok(row.try_get::<Option<Uuid>, _>(column)?.map(DeliveryId::from_uuid))
}
