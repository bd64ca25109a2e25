//! What is expected of the figures, in ratios to the same machine's bare limits wherever the machine matters.

use serde::Serialize;

use super::load::LoadReport;
use super::report::{Outcome, RunReport};

/// The service's memory: at rest, and for each delivery it holds.
const RSS_BASE_MB: f64 = 100.0;
const RSS_PER_DELIVERY_MB: f64 = 0.010;

/// And for each stream that it holds.
const RSS_PER_STREAM_MB: f64 = 0.020;

/// One expectation and what was found.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Check {
    pub(super) what: String,
    pub(super) found: f64,
    pub(super) wanted: String,
    pub(super) is_met: bool,
}

fn at_least(what: String, found: f64, limit: f64) -> Check {
    Check { what, found, wanted: format!("at least {limit}"), is_met: found >= limit }
}

fn at_most(what: String, found: f64, limit: f64) -> Check {
    Check { what, found, wanted: format!("at most {limit:.4}"), is_met: found <= limit }
}

/// Every expectation that the scenarios that ran can tell about.
pub(super) fn of(run: &RunReport) -> Vec<Check> {
    let mut checks = Vec::new();
    for scenario in &run.scenarios {
        let name = scenario.name;
        match &scenario.outcome {
            Outcome::Load(load) => {
                checks.extend(of_load(name, load));
                if load.keys > 0 {
                    let inverted = load.full_load.arrivals.inverted + load.fixed_rate.arrivals.inverted;
                    checks.push(at_most(format!("{name}: inversions"), inverted as f64, 0.0));
                }
                match name {
                    "one" => checks.extend(of_speed(name, load, 0.14, 0.100)),
                    "fanout10" => checks.extend(of_speed(name, load, 0.25, 0.050)),
                    _ => {}
                }
                if name == "one" && load.fixed_rate.offered_per_s >= 1_000.0 {
                    let rate = load.fixed_rate.offered_per_s;
                    checks.push(at_most(format!("{name}: p50 ms at {rate}/s"), load.fixed_rate.latency.p50_ms, 3.0));
                    checks.push(at_most(format!("{name}: p99 ms at {rate}/s"), load.fixed_rate.latency.p99_ms, 10.0));
                }
            }
            Outcome::Backlog(backlog) => {
                checks.push(at_most(format!("{name}: p99 over p99 without"), backlog.p99_ratio, 1.5));
                checks.extend(
                    backlog.claim_ratio.map(|ratio| at_most(format!("{name}: claim time over without"), ratio, 1.5)),
                );
            }
            Outcome::History(history) => {
                checks.push(at_least(format!("{name}: delivered/s over without"), history.ratio, 0.9));
            }
            Outcome::Refusing(refusing) => {
                let share = refusing.cpu - refusing.cpu_at_rest;
                checks.push(at_most(format!("{name}: share of a processor, beyond rest"), share, 0.02));
            }
            Outcome::Limited(limited) => {
                let off = (limited.delivered_per_s / limited.expected_per_s - 1.0).abs();
                checks.push(at_most(format!("{name}: delivered/s off the limits by"), off, 0.02));
            }
            Outcome::Healthy(healthy) => {
                checks.push(at_most(format!("{name}: missing deliveries"), healthy.missing as f64, 0.0));
                let claims = healthy.before.claim_ms.zip(healthy.after.claim_ms);
                checks
                    .extend(claims.map(|(before, after)| {
                        at_most(format!("{name}: claim time over before"), after / before, 1.5)
                    }));
                let heap = healthy.after.heap_pages as f64 / healthy.held.heap_pages.max(1) as f64;
                checks.push(at_most(format!("{name}: hot table's pages over those behind the snapshot"), heap, 0.1));
            }
            Outcome::Sql(sql) => {
                let wrong = [&sql.idle, &sql.busy].map(|run| run.missing + run.repeated).iter().sum::<u64>();
                checks.push(at_most(format!("{name}: missing or repeated deliveries"), wrong as f64, 0.0));
                checks.push(at_most(format!("{name}: p99 ms of one alone"), sql.idle.latency.p99_ms, 1_000.0));
                let share = sql.busy.delivered_per_s / sql.busy.offered_per_s;
                checks.push(at_least(format!("{name}: delivered/s over offered"), share, 0.98));
            }
            Outcome::Stream(stream) => {
                let missing = stream.runs().iter().map(|run| run.missing + run.repeated).sum::<u64>();
                checks.push(at_most(format!("{name}: missing or repeated transitions"), missing as f64, 0.0));
                checks.push(at_most(format!("{name}: p99 ms"), stream.notified.latency.p99_ms, 250.0));
                checks.push(at_most(format!("{name}: p99 ms without NOTIFY"), stream.unnotified.latency.p99_ms, 600.0));
                checks.push(at_most(
                    format!("{name}: p99 beside stalled streams over without"),
                    stream.stalled_ratio,
                    1.2,
                ));
                checks.push(at_least(
                    format!("{name}: delivered/s with a stream over without"),
                    stream.delivered_ratio,
                    0.9,
                ));
            }
            Outcome::Replay(replay) => {
                let wrong = replay.missing + replay.repeated;
                checks.push(at_least(format!("{name}: live delivered/s over without"), replay.ratio, 0.9));
                checks.push(at_most(format!("{name}: dead letters missing or twice"), wrong as f64, 0.0));
            }
            Outcome::Abuse(abuse) => {
                for attack in &abuse.attacks {
                    let room = RSS_BASE_MB + RSS_PER_STREAM_MB * attack.held as f64;
                    checks.push(at_most(format!("{name}: p99 over alone, {}", attack.name), attack.p99_ratio, 2.0));
                    checks.push(at_most(format!("{name}: peak RSS in MB, {}", attack.name), attack.rss_mb, room));
                }
            }
            Outcome::Kill(kill) => {
                checks.push(at_most(format!("{name}: broken promises"), kill.failures().len() as f64, 0.0));
            }
        }
    }
    checks
}

fn of_load(name: &str, load: &LoadReport) -> [Check; 2] {
    let missing = load.full_load.arrivals.missing + load.fixed_rate.arrivals.missing;
    let room = RSS_BASE_MB + RSS_PER_DELIVERY_MB * load.full_load.in_flight as f64;
    [
        at_most(format!("{name}: missing deliveries"), missing as f64, 0.0),
        at_most(format!("{name}: peak RSS of the service, MB"), load.peak_rss_mb, room),
    ]
}

fn of_speed(name: &str, load: &LoadReport, of_hyper: f64, cpu_ms: f64) -> [Check; 2] {
    let cpu = load.full_load.cpu_ms_per_delivery.of_hooklane();
    [
        at_least(format!("{name}: delivered/s over bare hyper"), load.of_bare_hyper, of_hyper),
        at_most(format!("{name}: CPU ms a delivery, service and PostgreSQL"), cpu, cpu_ms),
    ]
}
