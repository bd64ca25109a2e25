//! The scenarios that load the service: who is published to, and what came of it.

use serde::Serialize;

use super::Args;
use super::callers::{Audience, Keys};
use super::cluster::Cluster;
use super::limits::Limits;
use super::measure::{self, FixedRate, FullLoad};
use super::stage::Stage;
use crate::api::proto::Ordering;
use crate::cli::Failure;

/// How many endpoints there are, and who of them gets an event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) endpoints: usize,
    /// Of those, how many never answer.
    pub(super) silent: usize,
    pub(super) to: To,
}

/// What becomes of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    /// It goes to every endpoint.
    Everyone,
    /// It goes to one endpoint, in turn.
    OneInTurn,
    /// It has one of so many ordering keys, in turn, which the endpoints order by.
    Keys(usize),
}

impl Shape {
    /// Deliveries of one event.
    pub(super) const fn fan_out(&self) -> usize {
        match self.to {
            To::OneInTurn => 1,
            To::Everyone | To::Keys(_) => self.endpoints,
        }
    }
}

/// What a load scenario measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct LoadReport {
    pub(super) endpoints: usize,
    pub(super) silent: usize,
    pub(super) fan_out: usize,
    /// Ordering keys, where the endpoints order by them.
    pub(super) keys: usize,
    pub(super) full_load: FullLoad,
    pub(super) fixed_rate: FixedRate,
    /// Delivered a second at full load over the bare hyper client's requests a second.
    pub(super) of_bare_hyper: f64,
    /// Processor time of a delivery, service and PostgreSQL, over that of a bare request and its receiver.
    pub(super) cpu_of_bare: f64,
    pub(super) peak_rss_mb: f64,
}

/// Full load first: it leaves the service and its tables as a busy day does.
pub(super) async fn run(
    cluster: &Cluster,
    args: &Args,
    name: &str,
    shape: Shape,
    bare: Limits,
) -> Result<LoadReport, Failure> {
    let mut stage = Stage::set(cluster, name).await?;
    let ordering = if matches!(shape.to, To::Keys(_)) { Ordering::ByKey } else { Ordering::Unordered };
    let targets = stage.register(args, shape.endpoints, shape.silent, ordering).await?;
    let audience = match shape.to {
        To::Everyone => Audience::Everyone,
        To::OneInTurn => Audience::InTurn(targets),
        To::Keys(count) => Audience::Keyed(Keys::new(count)),
    };
    let full_load = measure::full_load(&mut stage, args, &audience).await?;
    let fixed_rate = measure::fixed_rate(&mut stage, args, &audience, args.rate).await?;
    let report = LoadReport {
        endpoints: shape.endpoints,
        silent: shape.silent,
        fan_out: shape.fan_out(),
        keys: if let To::Keys(count) = shape.to { count } else { 0 },
        of_bare_hyper: full_load.delivered_per_s / bare.hyper_per_s,
        cpu_of_bare: full_load.cpu_ms_per_delivery.of_hooklane() / bare.hyper_cpu_ms,
        full_load,
        fixed_rate,
        peak_rss_mb: stage.peak_rss_mb(),
    };
    stage.strike().await?;
    Ok(report)
}
