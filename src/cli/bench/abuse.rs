//! Scenario `abuse`: what well-behaved callers notice of others who hold thousands of streams, flood the port with frames
//! that cost their sender nothing, or open connections and say no more.
//!
//! Each kind is measured beside the same service alone, directly before: what this machine does from minute to minute is
//! in both. The attackers are a process of their own that gets what is left of the processors. In truth they have their
//! own: what the callers notice is to be the service's work, not theirs.

use std::time::Instant;

use serde::Serialize;

use super::attacker::{Attacker, Kind};
use super::callers::Audience;
use super::cluster::Cluster;
use super::measure::{self, FixedRate};
use super::stage::Stage;
use super::{Args, progress, usage};
use crate::api::proto::Ordering;
use crate::cli::Failure;

/// What it measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct AbuseReport {
    pub(super) attacks: Vec<Attack>,
}

/// The callers without and beside one kind of abuse.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Attack {
    pub(super) name: &'static str,
    pub(super) alone: Beside,
    pub(super) beside: Beside,
    /// The callers' p99 beside it over that alone.
    pub(super) p99_ratio: f64,
    /// The service's peak.
    pub(super) rss_mb: f64,
    /// Streams that it holds.
    pub(super) held: u64,
    /// Pings, or calls that come to nothing, a second: fewer than 16,000 where the processors did not suffice for more.
    pub(super) sent_per_s: f64,
    /// Connections that it ended because of what they sent, or did not send.
    pub(super) ended: u64,
}

/// The callers, and what the service took for all that it was asked meanwhile.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Beside {
    pub(super) callers: FixedRate,
    /// Of one processor.
    pub(super) service_cpu: f64,
    seconds: f64,
}

pub(super) async fn run(cluster: &Cluster, args: &Args) -> Result<AbuseReport, Failure> {
    let mut attacks = Vec::new();
    let plain = Stage::set(cluster, "abuse").await?;
    suffer(plain, args, &Kind::PLAIN, &mut attacks).await?;
    let secured = Stage::set_secured(cluster, "abuse_tls").await?;
    suffer(secured, args, &Kind::TLS, &mut attacks).await?;
    Ok(AbuseReport { attacks })
}

async fn suffer(mut stage: Stage<'_>, args: &Args, kinds: &[Kind], attacks: &mut Vec<Attack>) -> Result<(), Failure> {
    stage.register(args, 1, 0, Ordering::Unordered).await?;
    for kind in kinds {
        progress(&format!("abuse: {}", kind.name()));
        // Its peak begins anew.
        stage.renew_service().await?;
        let alone = measure(&mut stage, args).await?;
        let attacker = Attacker::start(*kind, stage.service.grpc()).await?;
        let before = attacker.deeds().await?;
        let beside = measure(&mut stage, args).await?;
        let deeds = attacker.deeds().await?;
        attacks.push(Attack {
            name: kind.name(),
            p99_ratio: beside.callers.latency.p99_ms / alone.callers.latency.p99_ms,
            rss_mb: usage::peak_rss_mb(stage.service.pid()),
            held: deeds.held,
            sent_per_s: (deeds.sent - before.sent) as f64 / beside.seconds,
            ended: deeds.ended,
            alone,
            beside,
        });
    }
    stage.strike().await
}

async fn measure(stage: &mut Stage<'_>, args: &Args) -> Result<Beside, Failure> {
    let (began, cpu) = (Instant::now(), stage.cpu());
    let callers = measure::fixed_rate(stage, args, &Audience::Everyone, args.rate).await?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Beside { callers, service_cpu: (stage.cpu().service - cpu.service) / 1e3 / seconds, seconds })
}
