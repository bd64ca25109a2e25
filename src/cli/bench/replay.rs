//! Scenario `replay`: live traffic while 100,000 dead letters of another endpoint are replayed, and without.

use std::time::{Duration, Instant};

use serde::Serialize;
use sqlx::types::Uuid;

use super::callers::{self, Audience, Client, Target};
use super::cluster::Cluster;
use super::fill::{self, filling};
use super::http::Receivers;
use super::measure::{self, FixedRate};
use super::stage::Stage;
use super::{Args, progress};
use crate::api::proto::{DeliveryState, Endpoint, GetReplayRequest, ReplayFilter, ReplayState, StartReplayRequest};
use crate::cli::Failure;
use crate::domain::id::EndpointId;

const ROWS: i64 = 100_000;
/// How long a replay may take once nothing else is going on.
const PATIENCE: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(100);

/// Dead letters, as failures of now would have left them.
const FILL: &str = filling!(
    ", failed as (
  insert into hooklane.settled_failed (id, endpoint_id, event_id, settle_time, claim_gen, attempt_count, last_status,
                                       state, priority, payload_format, tenant, event_type, reason, last_error)
  select id, endpoint_id, event_id, now(), 6, 6, 503, 5, 2, 1, 'default', 'bench.event', 'the retries are spent', ''
  from ids
)
insert into hooklane.timeline (time, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count, tenant,
                               event_type, reason)
select now(), id, endpoint_id, event_id, 5, 5, 2, 6, 'default', 'bench.event', 'the retries are spent' from ids"
);

/// What it measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ReplayReport {
    pub(super) rows: i64,
    pub(super) without: FixedRate,
    pub(super) with: FixedRate,
    /// Delivered a second of the live traffic, with over without.
    pub(super) ratio: f64,
    /// Replayed by the end of the live traffic's window.
    pub(super) replayed_beside: u64,
    /// From StartReplay to its end.
    pub(super) seconds: f64,
    /// Dead letters that did not arrive, or arrived twice.
    pub(super) missing: u64,
    pub(super) repeated: u64,
    pub(super) peak_rss_mb: f64,
}

pub(super) async fn run(cluster: &Cluster, args: &Args) -> Result<ReplayReport, Failure> {
    let mut stage = Stage::set(cluster, "replay").await?;
    // Of its own, so that its arrivals are told from the live ones.
    let replayed = Receivers::start(false).await?;
    let client = callers::connect(stage.service.grpc(), 1)?.remove(0);
    let endpoint = |url| Endpoint { url, ..Endpoint::default() };
    let ids = callers::register(&client, vec![endpoint(stage.receivers.live_url(0)), endpoint(replayed.live_url(0))]);
    let [live, dead]: [String; 2] =
        ids.await?.try_into().map_err(|_| Failure::internal("two endpoints were registered"))?;
    let audience = Audience::InTurn(vec![Target { id: live, is_live: true }]);
    let without = measure::fixed_rate(&mut stage, args, &audience, args.rate).await?;

    progress(&format!("replay: writing {ROWS} dead letters"));
    let id = dead.parse::<EndpointId>().map_err(|_| Failure::internal("the endpoint has no id"))?;
    fill(&stage, id.uuid()).await?;
    let (began, replay) = (Instant::now(), start(&client, dead).await?);
    let with = measure::fixed_rate(&mut stage, args, &audience, args.rate).await?;
    let replayed_beside = replayed.report().await?.distinct();
    let seconds = ended(&client, &replay, began).await?;
    let report = replayed.report().await?;
    let peak_rss_mb = stage.peak_rss_mb();
    stage.strike().await?;
    Ok(ReplayReport {
        rows: ROWS,
        ratio: with.delivered_per_s / without.delivered_per_s,
        without,
        with,
        replayed_beside,
        seconds,
        missing: ROWS.unsigned_abs().saturating_sub(report.distinct()),
        repeated: report.repeated,
        peak_rss_mb,
    })
}

async fn fill(stage: &Stage<'_>, endpoint: Uuid) -> Result<(), Failure> {
    fill::fill(stage, FILL, ROWS, &[endpoint], "settled_failed").await
}

/// Starts the replay of what the endpoint has; answers its id.
async fn start(client: &Client, endpoint: String) -> Result<String, Failure> {
    let states = vec![DeliveryState::Failed.into()];
    let filter = ReplayFilter { endpoint_ids: vec![endpoint], states, ..ReplayFilter::default() };
    let request = StartReplayRequest { filter: Some(filter), ..StartReplayRequest::default() };
    let started = client.clone().start_replay(request).await.map_err(failed)?.into_inner();
    Ok(started.replay.unwrap_or_default().id)
}

/// Waits until the replay has completed; answers how many seconds after `began` that was.
async fn ended(client: &Client, id: &str, began: Instant) -> Result<f64, Failure> {
    loop {
        let request = GetReplayRequest { replay_id: id.to_owned() };
        let replay = client.clone().get_replay(request).await.map_err(failed)?.into_inner().replay.unwrap_or_default();
        match replay.state() {
            ReplayState::Running if began.elapsed() < PATIENCE => tokio::time::sleep(POLL).await,
            ReplayState::Completed => return Ok(began.elapsed().as_secs_f64()),
            other => {
                let found = format!("{} after {:.0} s", other.as_str_name(), began.elapsed().as_secs_f64());
                return Err(Failure::other(format!("the replay is {found}, {} done", replay.replayed)));
            }
        }
    }
}

fn failed(status: tonic::Status) -> Failure {
    Failure::other(format!("the replay could not be asked for: {status}"))
}
