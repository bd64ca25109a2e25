//! What a run tells: one JSON document, or tables to read. The file is long because each scenario has its table here.

use std::fmt::Write as _;

use serde::Serialize;

use super::abuse::{AbuseReport, Attack};
use super::backlog::BacklogReport;
use super::checks::Check;
use super::cluster::Statement;
use super::gates::{LimitedReport, RefusingReport};
use super::healthy::{HealthyReport, Standing};
use super::history::HistoryReport;
use super::kill::KillReport;
use super::limits::Limits;
use super::load::LoadReport;
use super::replay::ReplayReport;
use super::sql::SqlReport;
use super::stream::StreamReport;
use super::tally::Latency;

/// Everything that a run measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct RunReport {
    pub(super) hooklane: &'static str,
    pub(super) postgresql: String,
    pub(super) cores: usize,
    pub(super) is_debug_build: bool,
    pub(super) callers: usize,
    pub(super) channels: usize,
    pub(super) payload_bytes: usize,
    pub(super) window_s: f64,
    /// None where no scenario is compared with them.
    pub(super) bare: Option<Limits>,
    pub(super) scenarios: Vec<ScenarioReport>,
    pub(super) checks: Vec<Check>,
}

/// What one scenario measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ScenarioReport {
    pub(super) name: &'static str,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    Load(Box<LoadReport>),
    Backlog(Box<BacklogReport>),
    History(Box<HistoryReport>),
    Refusing(RefusingReport),
    Limited(LimitedReport),
    Stream(Box<StreamReport>),
    Replay(Box<ReplayReport>),
    Abuse(Box<AbuseReport>),
    Sql(Box<SqlReport>),
    Healthy(Box<HealthyReport>),
    Kill(KillReport),
}

impl RunReport {
    /// Tables, and `statements` of each scenario below them.
    pub(super) fn to_text(&self, with_statements: bool) -> String {
        let mut out = String::new();
        self.write(&mut out, with_statements).expect("a string takes everything");
        out
    }

    fn write(&self, out: &mut String, with_statements: bool) -> std::fmt::Result {
        let build = if self.is_debug_build { " (debug build: figures mean little)" } else { "" };
        writeln!(out, "hooklane {}{build}, PostgreSQL {}", self.hooklane, self.postgresql)?;
        writeln!(
            out,
            "fsync and synchronous_commit on; {} cores; {} callers on {} connections; {}-byte payloads; {} s windows",
            self.cores, self.callers, self.channels, self.payload_bytes, self.window_s
        )?;
        if let Some(bare) = &self.bare {
            writeln!(out, "\nbare limits of this run")?;
            writeln!(
                out,
                "  hyper client to the same receivers, signed, {} at once {:>9.0}/s",
                self.callers, bare.hyper_per_s
            )?;
            writeln!(out, "  the same rows by one connection, batches of 256       {:>9.0}/s", bare.rows_per_s)?;
        }
        self.write_loads(out)?;
        for scenario in &self.scenarios {
            match &scenario.outcome {
                Outcome::Load(_) => {}
                Outcome::Backlog(backlog) => write_backlog(out, backlog)?,
                Outcome::History(history) => write_history(out, history)?,
                Outcome::Refusing(refusing) => write_refusing(out, refusing)?,
                Outcome::Limited(limited) => write_limited(out, limited)?,
                Outcome::Kill(kill) => write_kill(out, kill)?,
                Outcome::Stream(stream) => write_stream(out, stream)?,
                Outcome::Replay(replay) => write_replay(out, replay)?,
                Outcome::Abuse(abuse) => write_abuse(out, abuse)?,
                Outcome::Sql(sql) => write_sql(out, sql)?,
                Outcome::Healthy(healthy) => write_healthy(out, healthy)?,
            }
        }
        if with_statements {
            for scenario in &self.scenarios {
                write_statements(out, scenario)?;
            }
        }
        writeln!(out, "\ntargets")?;
        for check in &self.checks {
            let verdict = if check.is_met { "met " } else { "MISS" };
            writeln!(out, "  {verdict}  {:<56} {:>9.3}, {}", check.what, check.found, check.wanted)?;
        }
        Ok(())
    }

    fn write_loads(&self, out: &mut String) -> std::fmt::Result {
        let loads: Vec<(&str, &LoadReport)> = self
            .scenarios
            .iter()
            .filter_map(|scenario| match &scenario.outcome {
                Outcome::Load(load) => Some((scenario.name, &**load)),
                _ => None,
            })
            .collect();
        if loads.is_empty() {
            return Ok(());
        }
        writeln!(
            out,
            "\nfull load             accepted/s  delivered/s  of hyper    p50 ms    p95 ms    p99 ms  missing  twice"
        )?;
        for (name, load) in &loads {
            let full = &load.full_load;
            writeln!(
                out,
                "  {name:<20}{:>10.0}{:>13.0}{:>10.3}{}{:>9}{:>7}",
                full.accepted_per_s,
                full.delivered_per_s,
                load.of_bare_hyper,
                quantiles(&full.latency),
                full.arrivals.missing,
                full.arrivals.repeated
            )?;
        }
        writeln!(
            out,
            "\nfixed rate           offered ev/s  delivered/s              p50 ms    p95 ms    p99 ms  missing  twice"
        )?;
        for (name, load) in &loads {
            let fixed = &load.fixed_rate;
            writeln!(
                out,
                "  {name:<20}{:>10.0}{:>13.0}{:>10}{}{:>9}{:>7}",
                fixed.offered_per_s,
                fixed.delivered_per_s,
                "",
                quantiles(&fixed.latency),
                fixed.arrivals.missing,
                fixed.arrivals.repeated
            )?;
        }
        writeln!(
            out,
            "\nCPU ms a delivery        service   postgres   both of bare  callers  receivers   peak RSS MB  in flight  drained/s"
        )?;
        for (name, load) in &loads {
            let cpu = &load.full_load.cpu_ms_per_delivery;
            writeln!(
                out,
                "  {name:<20}{:>10.4}{:>11.4}{:>7.3}{:>8.1}{:>9.4}{:>11.4}{:>14.1}{:>11}{:>11.0}",
                cpu.service,
                cpu.postgres,
                cpu.of_hooklane(),
                load.cpu_of_bare,
                cpu.callers,
                cpu.receivers,
                load.peak_rss_mb,
                load.full_load.in_flight,
                load.full_load.drained_per_s
            )?;
        }
        let failed: u64 = loads.iter().map(|(_, load)| load.full_load.arrivals.failed_calls).sum();
        if failed > 0 { writeln!(out, "  calls that failed: {failed}") } else { Ok(()) }
    }
}

fn quantiles(latency: &Latency) -> String {
    format!("{:>10.2}{:>10.2}{:>10.2}", latency.p50_ms, latency.p95_ms, latency.p99_ms)
}

fn write_backlog(out: &mut String, backlog: &BacklogReport) -> std::fmt::Result {
    let rate = backlog.with.offered_per_s;
    writeln!(out, "\nbacklog: a live endpoint at {rate}/s beside {} waiting deliveries of a silent one", backlog.rows)?;
    writeln!(out, "                          p50 ms    p95 ms    p99 ms")?;
    writeln!(out, "  without             {}", quantiles(&backlog.without.latency))?;
    writeln!(out, "  with                {}", quantiles(&backlog.with.latency))?;
    match backlog.claim_ms {
        Some((without, with)) => writeln!(out, "  a claim takes {with:.3} ms, without the backlog {without:.3} ms")?,
        None => writeln!(out, "  a claim's time is not known: pg_stat_statements is not installed")?,
    }
    writeln!(out, "  peak RSS {:.1} MB; the silent endpoint holds {} requests", backlog.peak_rss_mb, backlog.silenced)
}

fn write_history(out: &mut String, history: &HistoryReport) -> std::fmt::Result {
    writeln!(
        out,
        "\nhistory: {:.0} delivered/s beside {} settled rows, {:.0} beside none: {:.2}",
        history.with.delivered_per_s, history.rows, history.without.delivered_per_s, history.ratio
    )
}

fn write_refusing(out: &mut String, refusing: &RefusingReport) -> std::fmt::Result {
    let percent = |share: f64| 100.0 * share;
    writeln!(out, "\nrefusing: {} deliveries waiting for an endpoint that refuses every connection", refusing.rows)?;
    writeln!(
        out,
        "  service and PostgreSQL took {:.1} % of a processor, {:.1} % at rest; {} attempts were made",
        percent(refusing.cpu),
        percent(refusing.cpu_at_rest),
        refusing.attempts
    )
}

fn write_limited(out: &mut String, limited: &LimitedReport) -> std::fmt::Result {
    writeln!(out, "\nthousand-limited: {} rate-limited endpoints, {} waiting", limited.endpoints, limited.rows)?;
    writeln!(
        out,
        "  {:.1} delivered/s where the limits admit {:.0}; {:.1} % of a processor, {:.3} ms a delivery; peak RSS {:.1} MB",
        limited.delivered_per_s,
        limited.expected_per_s,
        100.0 * limited.cpu,
        limited.cpu_ms_per_delivery.of_hooklane(),
        limited.peak_rss_mb
    )
}

fn write_healthy(out: &mut String, healthy: &HealthyReport) -> std::fmt::Result {
    writeln!(
        out,
        "\nhealthy: {} deliveries in {:.0} s behind an open snapshot, {} missing",
        healthy.deliveries, healthy.seconds, healthy.missing
    )?;
    writeln!(out, "                   heap pages  index pages  dead rows  claim ms    p50 ms    p95 ms    p99 ms")?;
    let line = |out: &mut String, name: &str, at: &Standing| {
        writeln!(
            out,
            "  {name:<16}{:>11}{:>13}{:>11}{:>10.3}{}",
            at.heap_pages,
            at.index_pages,
            at.dead_rows,
            at.claim_ms.unwrap_or(f64::NAN),
            quantiles(&at.run.latency)
        )
    };
    line(out, "before", &healthy.before)?;
    line(out, "behind it", &healthy.held)?;
    line(out, "after vacuum", &healthy.after)
}

fn write_sql(out: &mut String, sql: &SqlReport) -> std::fmt::Result {
    writeln!(out, "\nsql: hooklane.publish, a transaction each, from the call to the arrival")?;
    writeln!(
        out,
        "  connections  offered/s  committed/s  delivered/s    p50 ms    p95 ms    p99 ms  waiting  missing  twice"
    )?;
    for run in [&sql.idle, &sql.busy] {
        writeln!(
            out,
            "  {:>11}{:>11.0}{:>13.0}{:>13.0}{}{:>9}{:>9}{:>7}",
            run.connections,
            run.offered_per_s,
            run.committed_per_s,
            run.delivered_per_s,
            quantiles(&run.latency),
            run.waiting,
            run.missing,
            run.repeated
        )?;
    }
    Ok(())
}

fn write_stream(out: &mut String, stream: &StreamReport) -> std::fmt::Result {
    writeln!(
        out,
        "\nstream: {:.0} transitions/s over {} replicas, from the publish call to a stream on each",
        stream.notified.transitions_per_s, stream.replicas
    )?;
    writeln!(out, "                          p50 ms    p95 ms    p99 ms    peak RSS MB  missing  twice")?;
    let stalled = format!("beside {} stalled", stream.stalled);
    for (name, run) in [
        ("with NOTIFY", &stream.notified),
        ("without NOTIFY", &stream.unnotified),
        (stalled.as_str(), &stream.beside_stalled),
    ] {
        writeln!(
            out,
            "  {name:<20}{}{:>15.1}{:>9}{:>7}",
            quantiles(&run.latency),
            run.peak_rss_mb,
            run.missing,
            run.repeated
        )?;
    }
    writeln!(
        out,
        "  {:.0} delivered/s with a stream, {:.0} and {:.0} without: {:.2}",
        stream.with_stream.delivered_per_s,
        stream.without_stream.delivered_per_s,
        stream.without_again.delivered_per_s,
        stream.delivered_ratio
    )
}

fn write_replay(out: &mut String, replay: &ReplayReport) -> std::fmt::Result {
    let rate = replay.with.offered_per_s;
    writeln!(out, "\nreplay: live traffic at {rate}/s while {} dead letters are replayed", replay.rows)?;
    writeln!(out, "                      delivered/s    p50 ms    p95 ms    p99 ms")?;
    for (name, run) in [("without", &replay.without), ("with", &replay.with)] {
        writeln!(out, "  {name:<20}{:>11.0}{}", run.delivered_per_s, quantiles(&run.latency))?;
    }
    writeln!(
        out,
        "  {} were replayed meanwhile, all in {:.1} s; missing {}, twice {}; peak RSS {:.1} MB",
        replay.replayed_beside, replay.seconds, replay.missing, replay.repeated, replay.peak_rss_mb
    )
}

fn write_abuse(out: &mut String, abuse: &AbuseReport) -> std::fmt::Result {
    let rate = abuse.attacks.first().map_or(0.0, |attack| attack.alone.callers.offered_per_s);
    writeln!(
        out,
        "\nabuse: callers at {rate}/s beside others, each time over the same service alone directly before;"
    )?;
    writeln!(out, "the attackers get what is left of the processors, cpu is the service's, of one processor")?;
    writeln!(out, "                              p50 ms    p95 ms    p99 ms     alone     ratio  cpu alone       cpu")?;
    for attack in &abuse.attacks {
        writeln!(
            out,
            "  {:<24}{}{:>10.2}{:>10.2}{:>11.2}{:>10.2}",
            attack.name,
            quantiles(&attack.beside.callers.latency),
            attack.alone.callers.latency.p99_ms,
            attack.p99_ratio,
            attack.alone.service_cpu,
            attack.beside.service_cpu,
        )?;
    }
    writeln!(out, "                         peak RSS MB   streams    sent/s  ended")?;
    for attack in &abuse.attacks {
        let Attack { name, rss_mb, held, sent_per_s, ended, .. } = attack;
        writeln!(out, "  {name:<24}{rss_mb:>10.1}{held:>10}{sent_per_s:>10.0}{ended:>7}")?;
    }
    Ok(())
}

fn write_kill(out: &mut String, kill: &KillReport) -> std::fmt::Result {
    let failures = kill.failures();
    let verdict = if failures.is_empty() { "PASS" } else { "FAIL" };
    writeln!(
        out,
        "\nkill: {verdict}: {} kills of the service, {} of PostgreSQL, {} events and {} deliveries acknowledged in {:.0} s",
        kill.service_kills,
        kill.postgres_restarts,
        kill.acknowledged_events,
        kill.acknowledged_deliveries,
        kill.seconds
    )?;
    writeln!(
        out,
        "  never arrived {}, arrived twice {} ({} attempts were in flight at the faults), LOST in the timeline {}",
        kill.lost_deliveries, kill.duplicates, kill.in_flight, kill.lost_attempts
    )?;
    writeln!(
        out,
        "  calls that failed {}; resumed {:.1} s after PostgreSQL was back",
        kill.failed_calls, kill.resumed_s
    )?;
    failures.iter().try_for_each(|failure| writeln!(out, "  FAIL: {failure}"))
}

fn write_statements(out: &mut String, scenario: &ScenarioReport) -> std::fmt::Result {
    let groups: Vec<(&str, &[Statement])> = match &scenario.outcome {
        Outcome::Load(load) => {
            vec![("full load", &load.full_load.statements), ("fixed rate", &load.fixed_rate.statements)]
        }
        Outcome::Backlog(it) => vec![("without", &it.without.statements), ("with", &it.with.statements)],
        Outcome::History(it) => vec![("without", &it.without.statements), ("with", &it.with.statements)],
        Outcome::Refusing(_) | Outcome::Limited(_) | Outcome::Kill(_) | Outcome::Abuse(_) => Vec::new(),
        Outcome::Replay(it) => vec![("without", &it.without.statements), ("with", &it.with.statements)],
        Outcome::Healthy(it) => vec![
            ("before", &it.before.run.statements[..]),
            ("behind it", &it.held.run.statements[..]),
            ("after vacuum", &it.after.run.statements[..]),
        ],
        Outcome::Sql(sql) => vec![("16 connections", &sql.statements)],
        Outcome::Stream(stream) => vec![
            ("without a stream", &stream.without_stream.statements[..]),
            ("with a stream", &stream.with_stream.statements[..]),
        ],
    };
    for (title, statements) in groups {
        writeln!(
            out,
            "\n{}, {title}: statements          calls      rows   rows/call  total ms   mean ms",
            scenario.name
        )?;
        for one in statements {
            let each = one.rows as f64 / one.calls.max(1) as f64;
            writeln!(
                out,
                "  {:<40.40}{:>10}{:>10}{each:>12.1}{:>10.0}{:>10.3}",
                one.name, one.calls, one.rows, one.total_ms, one.mean_ms
            )?;
        }
    }
    Ok(())
}
