//! The bare limits: what this machine does, in this run, without Hooklane between client and receiver, and what one
//! connection writes of the same rows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use serde::Serialize;
use sqlx::PgConnection;
use sqlx::types::Uuid;
use tokio::task::JoinSet;

use super::cluster::{Cluster, execute, sql_failed};
use super::http::{Bare, Receivers, bare};
use super::measure::WARM_UP;
use super::stamp::{Payloads, wall_ns};
use super::usage;
use crate::cli::Failure;
use crate::domain::endpoint::SignatureScheme;
use crate::domain::id::{DeliveryId, EventId, new_uuid};
use crate::domain::secret::Secret;
use crate::domain::signature::Signer;
use crate::domain::time::Timestamp;
use crate::store::{Config, Limits as QueueLimits, Retention, Store};

/// What the machine gives.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Limits {
    /// Signed requests a second of a bare hyper client to the same receivers.
    pub(super) hyper_per_s: f64,
    /// The processor time that each of them took of client and receivers, in milliseconds.
    pub(super) hyper_cpu_ms: f64,
    /// Deliveries a second whose rows one connection writes and settles.
    pub(super) rows_per_s: f64,
}

/// Rows of one statement.
const BATCH: usize = 256;

/// Event, delivery and first timeline row.
const WRITE: &str = "
with new_events as (
  insert into hooklane.events (id, tenant, event_type, payload, content_type)
  select id, 'default', 'bench.event', $3, 'application/json' from unnest($1::uuid[]) as id
), queued as (
  insert into hooklane.outstanding (id, endpoint_id, event_id, due_at, state, priority, payload_format, tenant, event_type)
  select d.id, $4, d.event_id, now(), 1, 2, 1, 'default', 'bench.event'
  from unnest($2::uuid[], $1::uuid[]) as d (id, event_id)
)
insert into hooklane.timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count, tenant, event_type)
select now(), d.id, $4, d.event_id, 1, 1, 2, 0, 'default', 'bench.event'
from unnest($2::uuid[], $1::uuid[]) as d (id, event_id)";

/// Moved by id to where it stays, with what its attempt came to.
const SETTLE: &str = "
with settled as (
  delete from hooklane.outstanding where id = any($1)
  returning id, endpoint_id, event_id, priority, payload_format, tenant, event_type
)
insert into hooklane.settled_succeeded (id, endpoint_id, event_id, settle_time, claim_gen, attempt_count, last_status,
                                        priority, payload_format, tenant, event_type, xid, started_at, duration_us,
                                        trigger, response_truncated, url, response_headers, response_body, replica)
select id, endpoint_id, event_id, now(), 1, 1, 200, priority, payload_format, tenant, event_type, pg_current_xact_id(),
       now(), 1000, 1, false, 'http://127.0.0.1:8080/live/0', 'content-length: 0', '', 'bench'
from settled";

/// Measures both, one after the other.
pub(super) async fn measure(
    cluster: &Cluster,
    callers: usize,
    payload_bytes: usize,
    span: Duration,
) -> Result<Limits, Failure> {
    let payloads = Payloads::of(payload_bytes);
    let (hyper_per_s, hyper_cpu_ms) = hyper(callers, &payloads, span).await?;
    Ok(Limits { hyper_per_s, hyper_cpu_ms, rows_per_s: rows(cluster, &payloads, span).await? })
}

/// Requests a second, and the processor time of each in milliseconds.
async fn hyper(callers: usize, payloads: &Payloads, span: Duration) -> Result<(f64, f64), Failure> {
    let receivers = Receivers::start(false).await?;
    let signer = Arc::new(Signer::new(SignatureScheme::Timestamped, [&Secret::from_random(&rand::random())]));
    let (client, stop) = (bare(), Arc::new(AtomicBool::new(false)));
    let mut running = JoinSet::new();
    for place in 0..callers {
        let (client, signer, payloads, stop) = (client.clone(), signer.clone(), payloads.clone(), stop.clone());
        let url = receivers.live_url(place);
        running.spawn(async move {
            while !stop.load(Relaxed) {
                if post(&client, &url, &signer, &payloads).await.is_none() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
    }
    tokio::time::sleep(WARM_UP).await;
    let cpu_ms = || usage::own_ms(std::process::id()) + usage::own_ms(receivers.pid());
    let (began, before, used) = (Instant::now(), receivers.report().await?, cpu_ms());
    tokio::time::sleep(span).await;
    let (took, after, used) = (began.elapsed(), receivers.report().await?, cpu_ms() - used);
    stop.store(true, Relaxed);
    running.join_all().await;
    let requests = (after.arrived - before.arrived) as f64;
    Ok((requests / took.as_secs_f64(), used / requests))
}

/// A request as Hooklane would send it: an envelope, its headers, its signature.
async fn post(client: &Bare, url: &str, signer: &Signer, payloads: &Payloads) -> Option<()> {
    let now_ns = wall_ns();
    let seconds = (now_ns / 1_000_000_000).cast_signed();
    let uuid = draw(now_ns);
    let (event, delivery) = (EventId::from_uuid(uuid).to_string(), DeliveryId::from_uuid(uuid).to_string());
    let head =
        format!("{{\"id\":\"{event}\",\"event\":\"bench.event\",\"timestamp\":\"2026-01-21T12:00:00Z\",\"data\":");
    let body: Bytes = [head.as_bytes(), &payloads.stamped(now_ns), b"}"].concat().into();
    let mut request = Request::post(url)
        .header("user-agent", "hooklane/bench")
        .header("content-type", "application/json")
        .header("x-webhook-id", &delivery)
        .header("x-webhook-delivery", &delivery)
        .header("x-webhook-event", "bench.event")
        .header("x-webhook-timestamp", seconds)
        .header("x-webhook-attempt", 1)
        .header("idempotency-key", &event)
        .header("traceparent", "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00");
    for (name, value) in signer.sign(&event, Timestamp::from_micros(seconds * 1_000_000), &body) {
        request = request.header(name, value);
    }
    let response = client.request(request.body(Full::new(body)).ok()?).await.ok()?;
    response.into_body().collect().await.ok().map(drop)
}

async fn rows(cluster: &Cluster, payloads: &Payloads, span: Duration) -> Result<f64, Failure> {
    const DATABASE: &str = "bench_rows";
    let database_url = cluster.create_database(DATABASE).await?;
    let config = Config {
        database_url,
        connections_max: 3,
        notify: true,
        replica: "bench".to_owned(),
        limits: QueueLimits::default(),
        retention: Retention::default(),
        encryption: Default::default(),
        event_types_max: 0,
    };
    Store::migrate(&config).await.map_err(|error| Failure::unavailable(error.to_string()))?;
    let mut connection = cluster.connect(DATABASE).await?;
    // As the engine's connections: an empty table's statistics must not make a settle a scan.
    execute(
        &mut connection,
        "set enable_seqscan = off; set enable_bitmapscan = off; set plan_cache_mode = force_generic_plan",
    )
    .await?;
    cluster.begin_measurement(DATABASE).await?;
    let (warm, mut cycles) = (Instant::now(), 0_u32);
    let mut began = warm;
    while began.elapsed() < span || warm.elapsed() < WARM_UP + span {
        if warm.elapsed() < WARM_UP {
            (began, cycles) = (Instant::now(), 0);
        }
        cycle(&mut connection, payloads).await?;
        cycles += 1;
    }
    let rate = f64::from(cycles) * BATCH as f64 / began.elapsed().as_secs_f64();
    drop(connection);
    cluster.drop_database(DATABASE).await?;
    Ok(rate)
}

async fn cycle(connection: &mut PgConnection, payloads: &Payloads) -> Result<(), Failure> {
    let now_ns = wall_ns();
    let draw_batch = || {
        let mut ids: Vec<Uuid> = (0..BATCH).map(|_| draw(now_ns)).collect();
        ids.sort_unstable();
        ids
    };
    let (events, deliveries) = (draw_batch(), draw_batch());
    let payload = payloads.stamped(now_ns);
    sqlx::query(WRITE)
        .bind(&events)
        .bind(&deliveries)
        .bind(payload.as_ref())
        .bind(Uuid::nil())
        .execute(&mut *connection)
        .await
        .map_err(sql_failed)?;
    sqlx::query(SETTLE).bind(&deliveries).execute(connection).await.map(drop).map_err(sql_failed)
}

fn draw(now_ns: u64) -> Uuid {
    new_uuid(Timestamp::from_micros((now_ns / 1_000).cast_signed()), rand::random())
}
