//! The statements whose plans are guarded, for the test that explains them as the engine runs them. Not an interface.

use std::str::FromStr;

use serde_json::Value;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection, Row};

use super::lists::DeliveryFilter;
use super::{expire, gates, lists, order, pool, publish, queue, tail};

/// A statement and the types of its parameters.
#[derive(Debug, Clone, Copy)]
pub struct Guarded {
    /// What it does.
    pub name: &'static str,
    /// As it is executed.
    pub sql: &'static str,
    /// Of `$1` and so on, comma-separated.
    pub types: &'static str,
}

/// See [`super::Store::claim`].
pub const CLAIM: Guarded = Guarded {
    name: "claim",
    sql: queue::CLAIM,
    types: "uuid[], int[], timestamptz[], float8, text, int[], int[], uuid, bigint[], timestamptz[], smallint[]",
};
/// See [`super::Publisher::publish`].
pub const PUBLISH: Guarded = Guarded {
    name: "publish",
    sql: publish::PUBLISH,
    types: "text[], bigint[], uuid[], text[], text[], bytea[], text[], text[], jsonb[], uuid[], uuid[], uuid[], \
            smallint[], text[], text[], text[], smallint[], text[], timestamptz[], timestamptz[], smallint[], \
            timestamptz[], timestamptz[], text[], boolean[], bytea[], int[], uuid[], bigint[], uuid, float8, text, \
            int[], int[]",
};
/// See [`super::Store::complete`].
pub const COMPLETE: Guarded = Guarded {
    name: "complete",
    sql: queue::COMPLETE,
    types: "uuid[], uuid[], uuid[], int[], smallint[], int[], text[], bigint[], timestamptz[], bigint[], smallint[], \
            int[], smallint[], boolean[], text[], text[], text[], bytea[], uuid[], float8[], float8[], int[], boolean[], \
            boolean[], text",
};
/// The same of attempts that succeeded.
pub const SUCCEED: Guarded = Guarded {
    name: "succeed",
    sql: queue::SUCCEED,
    types: "uuid[], int[], int[], timestamptz[], bigint[], int[], smallint[], boolean[], text[], text[], bytea[], uuid[], \
            float8[], float8[], int[], int[]",
};
/// See [`super::Store::renew`].
pub const RENEW: Guarded = Guarded { name: "renew", sql: queue::RENEW, types: "uuid[], int[], float8" };
/// See [`super::Store::release`].
pub const RELEASE: Guarded = Guarded { name: "release", sql: queue::RELEASE, types: "uuid[], int[]" };
/// See [`super::Store::sweep`].
pub const SWEEP: Guarded = Guarded { name: "sweep", sql: queue::SWEEP, types: "" };
/// See [`super::Store::upcoming`].
pub const UPCOMING: Guarded = Guarded { name: "upcoming", sql: queue::UPCOMING, types: "uuid[], timestamptz, bigint" };
/// Locks the keys of what was completed.
pub const ORDER_LOCK: Guarded = Guarded { name: "order lock", sql: order::LOCK, types: "uuid[], text[]" };
/// Blocks the keys of what has failed.
pub const ORDER_BLOCK: Guarded = Guarded { name: "order block", sql: order::BLOCK, types: "uuid[], text[], uuid[]" };
/// Lets the next of each key go on.
pub const ORDER_ADVANCE: Guarded = Guarded { name: "order advance", sql: order::ADVANCE, types: "uuid[], text[]" };
/// See [`super::Store::expire`].
pub const EXPIRE: Guarded = Guarded { name: "expire", sql: expire::EXPIRE, types: "bigint, text" };
/// See [`super::Store::in_flight_elsewhere`].
pub const ELSEWHERE: Guarded = Guarded { name: "elsewhere", sql: queue::ELSEWHERE, types: "uuid[], text" };
/// See [`super::Store::gates`].
pub const GATES: Guarded = Guarded { name: "gates", sql: gates::GATES, types: "uuid[]" };
/// See [`super::Store::follow`].
pub const FOLLOW: Guarded = Guarded { name: "follow", sql: queue::FOLLOW, types: "uuid[]" };

/// The plan by which a page of deliveries is read, as `explain (analyze, buffers, format json)` tells it.
pub async fn explain_list(connection: &mut PgConnection, filter: &DeliveryFilter, limit: u32) -> sqlx::Result<Value> {
    let statement = lists::Statement::of_page(filter, limit);
    let row = statement.query("explain (analyze, buffers, format json) ").fetch_one(connection).await?;
    row.try_get(0)
}

/// A connection with the readers' settings: the planner's defaults.
pub async fn connect_reader(url: &str) -> sqlx::Result<PgConnection> {
    pool::for_readers(PgConnectOptions::from_str(url)?).connect().await
}

/// See [`super::Store::timeline_since`].
pub const SINCE: Guarded = Guarded {
    name: "since",
    sql: tail::SINCE,
    types: "text[], text, text, text, uuid, int, smallint, timestamptz, bigint",
};
/// See [`super::Store::timeline_past`].
pub const REPLAY: Guarded = Guarded {
    name: "replay",
    sql: tail::REPLAY,
    types: "text[], text, text, text, uuid, int, smallint, timestamptz, bigint, text, uuid[], uuid, uuid, smallint[], \
            bigint",
};

/// A connection with the engine's settings, which are the live stream's, too.
pub async fn connect(url: &str) -> sqlx::Result<PgConnection> {
    pool::for_engine(PgConnectOptions::from_str(url)?).connect().await
}
