//! The days' partitions, made ahead so that no row ever meets a missing one.
//!
//! `CREATE TABLE … LIKE` and `ATTACH` take no lock that a claim, settle or publish waits for; a plain
//! `CREATE TABLE … PARTITION OF` blocked settles behind one open reader.

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row};

use super::connections::Connections;
use super::error::Result;
use super::types::{PgTime, micros};
use crate::domain::id::uuid_floor;
use crate::domain::time::Timestamp;

/// How many days ahead partitions are made.
const DAYS_AHEAD: u32 = 7;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Dozens of statements, and the wait for other replicas.
const PATIENCE: Duration = Duration::from_secs(60);
/// Serializes the replicas' chores; any constant that nobody else uses ("hooklane").
const LOCK: i64 = 0x686f_6f6b_6c61_6e65;

/// What a parent is partitioned by.
#[derive(Clone, Copy)]
enum Key {
    Id,
    Time,
}

const PARENTS: [(&str, Key); 4] =
    [("events", Key::Id), ("timeline", Key::Time), ("settled_succeeded", Key::Time), ("settled_failed", Key::Time)];

/// Makes the partitions from yesterday (a clock may be a little behind) to [`DAYS_AHEAD`] days from now.
pub(super) async fn ensure(connections: &Connections) -> Result<()> {
    let connections = connections.within(PATIENCE);
    let mut connection = connections.lend().await?;
    let ensured = connections.bounded(ensure_on(&mut connection)).await?;
    connection.give_back_after(&ensured);
    ensured
}

/// Makes the partitions of `events` for ids that were drawn on days before those of [`ensure`], where they are missing. They
/// leave as any day does.
pub(super) async fn ensure_for_events(
    connections: &Connections,
    now: Timestamp,
    drawn: impl Iterator<Item = Timestamp>,
) -> Result<()> {
    let first = day_of(now).minus(DAY);
    let days: BTreeSet<Timestamp> = drawn.map(day_of).filter(|day| *day < first).collect();
    if days.is_empty() {
        return Ok(());
    }
    let connections = connections.within(PATIENCE);
    let mut connection = connections.lend().await?;
    let made =
        connections.bounded(make(&mut connection, |_| days.iter().map(|day| ("events", Key::Id, *day)).collect()));
    let made = made.await?;
    connection.give_back_after(&made);
    made
}

async fn ensure_on(connection: &mut PgConnection) -> Result<()> {
    let wanted = |today: Timestamp| {
        let days = (0..=DAYS_AHEAD + 1).map(|ahead| today.minus(DAY).plus(DAY * ahead));
        days.flat_map(|day| PARENTS.map(|(parent, key)| (parent, key, day))).collect()
    };
    make(connection, wanted).await
}

/// A day of a parent.
type Day = (&'static str, Key, Timestamp);

/// Makes the partitions that are wanted, as of today, and missing.
async fn make(connection: &mut PgConnection, wanted: impl FnOnce(Timestamp) -> Vec<Day>) -> Result<()> {
    let mut transaction = connection.begin().await?;
    // Replicas that start at once wait for each other.
    sqlx::query("set local statement_timeout = '30s'").execute(&mut *transaction).await?;
    sqlx::query("select pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *transaction).await?;
    let row = sqlx::query(
        "select date_trunc('day', now()) as today,
                array(select c.relname::text from pg_class c join pg_inherits i on i.inhrelid = c.oid
                      where c.relnamespace = 'hooklane'::regnamespace) as known",
    )
    .fetch_one(&mut *transaction)
    .await?;
    let PgTime(today) = row.try_get("today")?;
    let known: Vec<String> = row.try_get("known")?;
    for (parent, key, from) in wanted(today) {
        let name = partition_name(parent, from);
        if known.contains(&name) {
            continue;
        }
        let (low, high) = bounds(key, from);
        // Names and bounds are made here from constants and a date.
        let statement = format!(
            "create table hooklane.{name} (like hooklane.{parent} including all);
             alter table hooklane.{parent} attach partition hooklane.{name} for values from ('{low}') to ('{high}')"
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// When the day began that `time` is in. Days are of UTC.
fn day_of(time: Timestamp) -> Timestamp {
    Timestamp::from_micros(time.micros() - time.micros().rem_euclid(micros(DAY)))
}

fn partition_name(parent: &str, day: Timestamp) -> String {
    let date: String = day.to_string().chars().take(10).filter(char::is_ascii_digit).collect();
    format!("{parent}_{date}")
}

fn bounds(key: Key, from: Timestamp) -> (String, String) {
    let to = from.plus(DAY);
    match key {
        Key::Id => (uuid_floor(from).to_string(), uuid_floor(to).to_string()),
        Key::Time => (from.to_string(), to.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_named_and_bounded() {
        let day = Timestamp::from_micros(1_768_953_600_000_000);
        assert_eq!(partition_name("events", day), "events_20260121");
        assert_eq!((day_of(day), day_of(day.plus(DAY * 2).minus(Duration::from_micros(1)))), (day, day.plus(DAY)));
        let (low, high) = bounds(Key::Time, day);
        assert_eq!((low.as_str(), high.as_str()), ("2026-01-21T00:00:00Z", "2026-01-22T00:00:00Z"));
        let (low, high) = bounds(Key::Id, day);
        assert!(low < high && low.ends_with("-0000-0000-000000000000"));
    }
}
