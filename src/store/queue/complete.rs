//! Completing: what follows from ended attempts, for a whole batch in one statement and one commit.
//!
//! A delivery moves by `DELETE … RETURNING` into an INSERT, its timeline row and the endpoint's health with it; a success
//! is its own: what the attempt came to stands in the settled row. A completion whose claim is no longer the current one
//! changes nothing.

mod columns;
mod succeed;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::types::Uuid;
use sqlx::{Connection as _, PgConnection, PgExecutor};

use self::columns::Columns;
pub(in crate::store) use self::succeed::SUCCEED;
use super::due_of;
use crate::domain::attempt::{AttemptOutcome, AttemptResult, AttemptTrigger};
use crate::domain::id::{DeliveryId, EndpointId, IdMap, IdSet};
use crate::domain::time::Timestamp;
use crate::domain::trace::{TraceContext, TraceId};
use crate::store::error::Result;
use crate::store::stats::Event;
use crate::store::types::{PgTime, count};
use crate::store::{Due, Failing, Store, measure, order};

/// What becomes of a claimed delivery.
#[derive(Debug, Clone)]
pub struct Completion {
    /// The delivery.
    pub id: DeliveryId,
    /// Its endpoint.
    pub endpoint: EndpointId,
    /// The claim it was held by.
    pub claim_gen: i32,
    /// Attempts made so far, this one counted where there was one.
    pub attempt_count: u32,
    /// The attempt that ended; `None` where the claim ends without a request.
    pub attempt: Option<AttemptRecord>,
    /// The place in a trace that its receiver was told of; where no request was made, its event's, where that was read.
    pub trace: Option<TraceContext>,
    /// What follows.
    pub settlement: Settlement,
    /// What it is the first of, where its endpoint is ordered: once it has come to its end, the next one goes on.
    pub order_key: Option<Box<str>>,
}

/// An ended attempt.
#[derive(Debug, Clone)]
pub struct AttemptRecord {
    /// When it was claimed to be sent.
    pub started_at: Timestamp,
    /// Why it was made.
    pub trigger: AttemptTrigger,
    /// Where it was sent, without secrets.
    pub url: Arc<str>,
    /// What came of it.
    pub result: AttemptResult,
    /// Whether its event is an operational one, whose failures no operational event tells of.
    pub is_operational: bool,
}

/// Where a delivery goes from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// To the succeeded ones.
    Succeeded,
    /// Back to waiting; it becomes canceled instead if that was asked for meanwhile.
    Retry {
        /// From the commit to the next attempt.
        delay: Duration,
    },
    /// To the failed ones, for this reason.
    Failed(String),
    /// To the canceled ones, for this reason.
    Canceled(String),
    /// To the expired ones: its time was over before a request was sent.
    Expired,
}

impl Completion {
    /// Whether it is an attempt that succeeded, and nothing else is to be said of it.
    fn is_plain_success(&self) -> bool {
        let outcome = self.attempt.as_ref().map(|attempt| attempt.result.outcome);
        self.settlement == Settlement::Succeeded && outcome == Some(AttemptOutcome::Succeeded)
    }

    /// The trace by which its event is found, where that is known.
    pub fn trace_id(&self) -> Option<TraceId> {
        self.trace.as_ref().map(TraceContext::trace_id)
    }

    /// As it is counted. One that somebody canceled while its last attempt was under way is counted as failed.
    fn event(&self, now: Timestamp) -> Event {
        Event {
            attempt: self.attempt.as_ref().map(|attempt| attempt.result.duration),
            succeeded: (self.settlement == Settlement::Succeeded).then(|| now.since(self.id.time())),
            is_failed: matches!(self.settlement, Settlement::Failed(_)),
        }
    }
}

/// What a batch of completions did.
#[derive(Debug, Default)]
pub struct Settled {
    /// Those whose claim was current.
    pub won: IdSet<DeliveryId>,
    /// When the retried ones are due again; told as hints.
    due: Vec<Due>,
    /// Whose deliveries are outstanding no more; told to the backlog's count.
    ended: Vec<EndpointId>,
    /// Endpoints whose last attempt in this batch failed.
    pub failing: Vec<Failing>,
}

/// Completions of one statement at most: it ends within some tens of milliseconds.
const BATCH_MAX: usize = 512;

/// A retry leaves the fence as it is, so a claim is over when its row is no longer in flight: that is what a batch finds
/// which is written again because nobody heard of its commit.
/// The score is capped because the sum of a batch's weights may be a rounding error above 1, which the CHECK refuses.
/// Locks the deliveries in id order (an index scan visits an array's values in order) by `outstanding_pkey`, then the
/// endpoints' health in id order; the `any` keeps that join from scanning every endpoint's. `$1` are all ids, ascending,
/// among which a row's place is found by halving, `$2` those that settle, `$3` those that are retried. Answers how many
/// claims were current, beside each that is due again, or beside every one where some were not; and the endpoints that
/// are failing, with their failures in a row.
pub(in crate::store) const COMPLETE: &str = "
with settled as (
  delete from outstanding o
  where o.id = any($2::uuid[]) and o.claim_gen = ($4::int[])[width_bucket(o.id, $1::uuid[])] and o.state = 2
  returning o.id, o.endpoint_id, o.event_id, o.claim_gen, o.priority, o.payload_format, o.tenant, o.event_type,
            o.last_status, o.last_error, o.replica, o.cancel_requested, o.order_key, o.seq, o.expire_at,
            width_bucket(o.id, $1::uuid[]) as i
), moved as (
  select s.*, case when s.cancel_requested and ($5::smallint[])[s.i] = 5 then 6 else ($5::smallint[])[s.i] end as state,
         case when s.cancel_requested and ($5::smallint[])[s.i] = 5 then $25 else ($7::text[])[s.i] end as reason,
         coalesce(($12::int[])[s.i], s.last_status) as status
  from settled s
), succeeded as (
  insert into settled_succeeded (id, endpoint_id, event_id, settle_time, claim_gen, attempt_count, last_status,
                                 priority, payload_format, tenant, event_type, xid, started_at, duration_us, trigger,
                                 response_truncated, url, response_headers, response_body, replica)
  select m.id, m.endpoint_id, m.event_id, now(), m.claim_gen, ($6::int[])[m.i], m.status,
         m.priority, m.payload_format, m.tenant, m.event_type, pg_current_xact_id(), ($9::timestamptz[])[m.i],
         ($10::bigint[])[m.i], ($13::smallint[])[m.i], ($14::boolean[])[m.i], ($15::text[])[m.i], ($17::text[])[m.i],
         ($18::bytea[])[m.i], m.replica
  from moved m where m.state = 4
), failed as (
  insert into settled_failed (id, endpoint_id, event_id, settle_time, claim_gen, attempt_count, last_status, state,
                              priority, payload_format, tenant, event_type, reason, last_error, order_key, seq,
                              expire_at)
  select m.id, m.endpoint_id, m.event_id, now(), m.claim_gen, ($6::int[])[m.i], m.status, m.state,
         m.priority, m.payload_format, m.tenant, m.event_type, m.reason,
         coalesce(($16::text[])[m.i], m.last_error), m.order_key, m.seq, m.expire_at
  from moved m where m.state <> 4
), retried as (
  update outstanding o
  set state = 3, due_at = now() + ($8::bigint[])[width_bucket(o.id, $1::uuid[])] * interval '1 microsecond',
      lease_until = null, attempt_started_at = null, retries_spent = o.retries_spent + 1, trigger = 1,
      attempt_count = ($6::int[])[width_bucket(o.id, $1::uuid[])],
      last_status = ($12::int[])[width_bucket(o.id, $1::uuid[])],
      last_error = ($16::text[])[width_bucket(o.id, $1::uuid[])]
  where o.id = any($3::uuid[]) and o.claim_gen = ($4::int[])[width_bucket(o.id, $1::uuid[])]
    and o.state = 2 and not o.cancel_requested
  returning o.id, o.endpoint_id, o.event_id, o.priority, o.tenant, o.event_type, o.replica, o.due_at,
            width_bucket(o.id, $1::uuid[]) as i
), ended as (
  select id, endpoint_id, event_id, priority, tenant, event_type, replica, null::timestamptz as due_at, i, state, reason
  from moved
  union all
  select id, endpoint_id, event_id, priority, tenant, event_type, replica, due_at, i, 3, null from retried
), told as (
  insert into timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count, number,
                        started_at, duration_us, next_attempt_at, status, trigger, outcome, response_truncated,
                        tenant, event_type, reason, url, error, response_headers, response_body, replica)
  select now(), e.id, e.endpoint_id, e.event_id, case e.state when 3 then 2 else e.state end, e.state, e.priority,
         ($6::int[])[e.i], case when ($11::smallint[])[e.i] is not null then ($6::int[])[e.i] end,
         ($9::timestamptz[])[e.i], ($10::bigint[])[e.i], e.due_at, ($12::int[])[e.i], ($13::smallint[])[e.i],
         ($11::smallint[])[e.i], ($14::boolean[])[e.i], e.tenant, e.event_type, e.reason,
         ($15::text[])[e.i], ($16::text[])[e.i], ($17::text[])[e.i], ($18::bytea[])[e.i], e.replica
  from ended e where e.state <> 4
), healed as (
  update endpoint_health h
  set score = least(h.score * f.kept + f.added, 1),
      failing_since = case
        when f.failures = 0 then null
        when f.had_success or h.consecutive_failures = 0 or h.failing_since <= h.last_success_time then now()
        else coalesce(h.failing_since, now())
      end,
      consecutive_failures = case when f.had_success then f.failures else h.consecutive_failures + f.failures end,
      last_success_time = case when f.had_success then now() else h.last_success_time end,
      last_failure_time = case when f.had_failure then now() else h.last_failure_time end
  from unnest($19::uuid[], $20::float8[], $21::float8[], $22::int[], $23::boolean[], $24::boolean[])
    as f (endpoint_id, kept, added, failures, had_success, had_failure)
  where h.endpoint_id = f.endpoint_id and h.endpoint_id = any($19::uuid[])
  returning h.endpoint_id, h.consecutive_failures, h.failing_since
)
select t.count, e.id, e.due_at, null::int, e.priority
from (select count(*) from ended) t
left join ended e on e.due_at is not null or t.count < cardinality($1::uuid[])
union all
select null, h.endpoint_id, h.failing_since, h.consecutive_failures, null::smallint
from healed h where h.consecutive_failures > 0";

/// A row of that answer: how many claims were current, a delivery, when it is due again and its priority; or an endpoint,
/// since when it has been failing, and how often in a row.
type Answer = (Option<i64>, Option<Uuid>, Option<PgTime>, Option<i32>, Option<i16>);

/// Why a delivery is canceled whose request was under way.
pub const CANCELED_REASON: &str = "canceled by CancelDelivery";

/// Why a delivery expired.
pub const EXPIRED_REASON: &str = "its expire_time passed";

impl Store {
    /// Completes claims, in one commit for each 512 of them; ids must be distinct.
    pub async fn complete(&self, completions: &[Completion]) -> Result<Settled> {
        let mut settled = Settled::default();
        for batch in completions.chunks(BATCH_MAX) {
            self.complete_batch(batch, &mut settled).await?;
            let canceled: Vec<Completion> = batch
                .iter()
                .filter(|one| matches!(one.settlement, Settlement::Retry { .. }) && !settled.won.contains(&one.id))
                .map(|one| Completion { settlement: Settlement::Canceled(CANCELED_REASON.to_owned()), ..one.clone() })
                .collect();
            // A retry that was not taken is stale, or its delivery was canceled meanwhile: in that case alone its
            // claim is still the current one, and this moves it.
            if !canceled.is_empty() {
                self.complete_batch(&canceled, &mut settled).await?;
            }
        }
        self.tallies.note(completions, &settled.won);
        self.hint(std::mem::take(&mut settled.due));
        Ok(settled)
    }

    async fn complete_batch(&self, batch: &[Completion], settled: &mut Settled) -> Result<()> {
        let (began, began_at) = (Instant::now(), self.clock.now());
        if batch.iter().all(|one| one.order_key.is_none()) {
            let rows = write(&self.engine, batch).await?;
            settled.take_in(&rows, batch);
        } else {
            let mut lent = self.engine.lend().await?;
            let written = self.engine.bounded(write_ordered(&mut lent, batch)).await?;
            lent.give_back_after(&written);
            let (rows, due) = written?;
            settled.take_in(&rows, batch);
            settled.due.extend(due);
        }
        let now = self.clock.now();
        self.metrics.completions.observe(began.elapsed(), batch.len());
        measure::count_completed(&self.metrics, batch, &settled.won, now);
        self.trace_completed(batch, &settled.won, began_at);
        let won = batch.iter().filter(|one| settled.won.contains(&one.id));
        self.stats.count(now, won.map(|one| (one.endpoint, one.event(now))));
        self.backlog.change(settled.ended.drain(..).map(|endpoint| (endpoint, -1)));
        Ok(())
    }
}

/// Completes a batch with deliveries of ordered endpoints among it, and lets those behind them go on.
async fn write_ordered(connection: &mut PgConnection, batch: &[Completion]) -> Result<(Vec<Answer>, Vec<Due>)> {
    let mut transaction = connection.begin().await?;
    let rows = write(&mut *transaction, batch).await?;
    let mut settled = Settled::default();
    settled.take_in(&rows, batch);
    let mut ended = BTreeMap::new();
    for one in batch {
        let is_over = !matches!(one.settlement, Settlement::Retry { .. }) && settled.won.contains(&one.id);
        if let Some(key) = one.order_key.as_deref().filter(|_| is_over) {
            let failed = matches!(one.settlement, Settlement::Failed(_)).then_some(one.id);
            ended.insert((one.endpoint.uuid(), key), failed);
        }
    }
    let due = order::pass_on(&mut transaction, &ended).await?;
    transaction.commit().await?;
    Ok((rows, due))
}

async fn write<'c>(on: impl PgExecutor<'c>, batch: &[Completion]) -> Result<Vec<Answer>> {
    if batch.iter().all(Completion::is_plain_success) {
        return succeed::write(on, batch).await;
    }
    let columns = Columns::of(batch);
    let health = columns.health();
    let rows = sqlx::query_as(COMPLETE)
        .bind(columns.ids)
        .bind(columns.settling)
        .bind(columns.retried)
        .bind(columns.claim_gens)
        .bind(columns.states)
        .bind(columns.attempt_counts)
        .bind(columns.reasons)
        .bind(columns.delays_us)
        .bind(columns.started_at)
        .bind(columns.durations_us)
        .bind(columns.outcomes)
        .bind(columns.statuses)
        .bind(columns.triggers)
        .bind(columns.truncated)
        .bind(columns.urls)
        .bind(columns.errors)
        .bind(columns.headers)
        .bind(columns.bodies)
        .bind(health.endpoints)
        .bind(health.kept)
        .bind(health.added)
        .bind(health.failures)
        .bind(health.had_success)
        .bind(health.had_failure)
        .bind(CANCELED_REASON)
        .fetch_all(on)
        .await?;
    Ok(rows)
}

impl Settled {
    fn take_in(&mut self, rows: &[Answer], batch: &[Completion]) {
        let (failing, rows): (Vec<&Answer>, Vec<&Answer>) = rows.iter().partition(|row| row.3.is_some());
        self.failing.extend(failing.into_iter().filter_map(|(_, endpoint, since, failures, _)| {
            Some(Failing {
                endpoint: EndpointId::from_uuid((*endpoint)?),
                consecutive_failures: count((*failures)?),
                since: (*since)?.0,
            })
        }));
        let won = rows.first().and_then(|(count, ..)| *count);
        let all_won = won.is_some_and(|count| usize::try_from(count) == Ok(batch.len()));
        let due: IdMap<DeliveryId, Option<(PgTime, i16)>> = rows
            .iter()
            .filter_map(|(_, id, due, _, priority)| Some((DeliveryId::from_uuid((*id)?), due.zip(*priority))))
            .collect();
        for one in batch {
            let due = due.get(&one.id);
            if !all_won && due.is_none() {
                continue;
            }
            self.won.insert(one.id);
            match due.copied().flatten() {
                Some((at, priority)) => self.due.push(due_of(one.endpoint.uuid(), at, priority)),
                None => self.ended.push(one.endpoint),
            }
        }
    }
}
