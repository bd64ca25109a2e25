//! `hooklane bench`: what this machine delivers, beside what it could deliver at most.
//!
//! A cluster, a service and receivers run as processes of their own; the callers are this one. A scenario is a file or a
//! `Shape` of `load`; `measure` knows how to count, `report` and `checks` what to say about it.

mod abuse;
pub mod attacker;
mod backlog;
mod callers;
mod checks;
mod cluster;
mod fill;
mod gates;
mod healthy;
mod history;
mod http;
mod kill;
mod limits;
mod load;
mod measure;
mod process;
pub mod receiver;
mod replay;
mod report;
mod sql;
mod stage;
mod stamp;
mod stream;
mod tally;
mod tls;
mod usage;

use std::io::{self, Write as _};
use std::time::Duration;

use clap::ValueEnum as _;

use super::{Failure, say};
use cluster::Cluster;
use load::{Shape, To};
use report::{Outcome, RunReport, ScenarioReport};

const DETAILS: &str = "\
Scenarios:
  one                  1 endpoint
  fanout10             10 endpoints, each gets every event
  thousand             1,000 endpoints, an event each in turn
  thousand-100-silent  the same, and 100 of them never answer; the figures are
                       those of the others
  by-key               1 endpoint that wants the deliveries of each of 1,000
                       keys one after the other
  backlog              a live endpoint at 200/s, without and with 1,000,000
                       deliveries waiting for a silent one
  refusing             100,000 deliveries waiting for an endpoint that refuses
                       every connection
  thousand-limited     1,000 endpoints at one request a second, 100,000
                       deliveries waiting for them
  kill                 SIGKILL to the service 10 times and to PostgreSQL's work
                       3 times under load; counts, no times
  stream               publish to stream at 2,000 transitions/s over 3 replicas:
                       with and without NOTIFY, beside 1,000 streams that nobody
                       reads; and `one` with a stream and without
  replay               live traffic at --rate while 100,000 dead letters of
                       another endpoint are replayed, and without
  abuse                callers at --rate alone, and then beside 10,000 idle
                       streams, floods of resets, pings and oversized lengths,
                       half-open connections, and TLS handshakes that stop in
                       the middle. Attackers get what is left of the processors:
                       in truth they have their own
  sql                  `hooklane.publish` in transactions of 16 connections at
                       5,000/s, and at 20/s of one alone
  healthy              2,000,000 deliveries while a snapshot is held open, and
                       what claims and the hot table come back to (minutes: only
                       when named)
  history              `one` with 10,000,000 settled rows and with none (minutes
                       and gigabytes: only when named)

Examples:
  hooklane bench --scenario one --scenario fanout10 --seconds 5
  hooklane bench --scenario one --statements
  hooklane bench --json --check > bench.json";

/// Measure what this machine delivers, beside its bare limits
///
/// It starts a PostgreSQL of its own (fsync and synchronous_commit on, its data removed afterwards), `hooklane serve`, and
/// receivers on loopback, each a process of its own; this process is the callers. Every rate and latency is counted at the
/// receivers: from the publish call to the arrival of the delivery. Nothing else should run meanwhile. Use a release
/// build: `cargo run --release -- bench`.
///
/// Full load: the callers publish again as soon as they are answered. Fixed rate: calls are made at --rate whatever becomes
/// of them, and latency counts from the moment a call was meant for. `of hyper` is delivered/s over what a bare hyper client
/// sends signed to the same receivers in the same run: it is what to compare between machines. So is CPU `of bare`, over
/// what such a request takes of that client and its receiver.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = DETAILS)]
pub struct Args {
    /// Run this scenario only; repeatable [default: all but healthy and history]
    #[arg(long = "scenario", value_name = "NAME", value_enum)]
    scenarios: Vec<Scenario>,

    /// List the scenarios and end
    #[arg(long)]
    list: bool,

    /// How long each measurement's window is, in seconds; 2 s of warm-up come before it
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,

    /// Events a second of the measurement at a fixed rate
    #[arg(long, value_name = "N", default_value_t = 1_000.0, value_parser = parse_rate)]
    rate: f64,

    /// Concurrent callers of unary Publish
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = parse_count)]
    callers: usize,

    /// HTTP/2 connections that the callers share
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = parse_count)]
    channels: usize,

    /// Size of a payload
    #[arg(long, value_name = "BYTES", default_value_t = 500, value_parser = parse_count)]
    payload_bytes: usize,

    /// Waiting deliveries of scenario backlog
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(i64).range(1..))]
    backlog_rows: i64,

    /// Settled rows of scenario history
    #[arg(long, value_name = "N", default_value_t = 10_000_000, value_parser = clap::value_parser!(i64).range(10..))]
    history_rows: i64,

    /// Deliveries of scenario healthy
    #[arg(long, value_name = "N", default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    healthy_deliveries: u64,

    /// Events of scenario kill
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    kill_events: u64,

    /// Print one JSON document instead of tables
    #[arg(long)]
    json: bool,

    /// Show what each SQL statement cost (where pg_stat_statements is installed; always part of --json)
    #[arg(long)]
    statements: bool,

    /// Exit with code 1 if a target is missed
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Scenario {
    One,
    #[value(name = "fanout10")]
    Fanout10,
    Thousand,
    #[value(name = "thousand-100-silent")]
    Thousand100Silent,
    ByKey,
    Backlog,
    Refusing,
    ThousandLimited,
    Kill,
    Stream,
    Replay,
    Abuse,
    Sql,
    Healthy,
    History,
}

impl Scenario {
    const DEFAULT: [Self; 13] = [
        Self::One,
        Self::Fanout10,
        Self::Thousand,
        Self::Thousand100Silent,
        Self::ByKey,
        Self::Backlog,
        Self::Refusing,
        Self::ThousandLimited,
        Self::Kill,
        Self::Stream,
        Self::Replay,
        Self::Abuse,
        Self::Sql,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Fanout10 => "fanout10",
            Self::Thousand => "thousand",
            Self::Thousand100Silent => "thousand-100-silent",
            Self::ByKey => "by-key",
            Self::Backlog => "backlog",
            Self::Refusing => "refusing",
            Self::ThousandLimited => "thousand-limited",
            Self::Kill => "kill",
            Self::Stream => "stream",
            Self::Replay => "replay",
            Self::Abuse => "abuse",
            Self::Sql => "sql",
            Self::Healthy => "healthy",
            Self::History => "history",
        }
    }

    /// Endpoints and fan-out, where that is all there is to it.
    const fn shape(self) -> Option<Shape> {
        match self {
            Self::One => Some(Shape { endpoints: 1, silent: 0, to: To::Everyone }),
            Self::Fanout10 => Some(Shape { endpoints: 10, silent: 0, to: To::Everyone }),
            Self::Thousand => Some(Shape { endpoints: 1_000, silent: 0, to: To::OneInTurn }),
            Self::Thousand100Silent => Some(Shape { endpoints: 1_000, silent: 100, to: To::OneInTurn }),
            Self::ByKey => Some(Shape { endpoints: 1, silent: 0, to: To::Keys(1_000) }),
            Self::Backlog
            | Self::Refusing
            | Self::ThousandLimited
            | Self::Kill
            | Self::Stream
            | Self::Replay
            | Self::Abuse
            | Self::Sql
            | Self::Healthy
            | Self::History => None,
        }
    }
}

impl Args {
    const fn span(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    fn chosen(&self) -> &[Scenario] {
        if self.scenarios.is_empty() { &Scenario::DEFAULT } else { &self.scenarios }
    }
}

fn parse_count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| (1..=100_000).contains(count)).ok_or_else(|| "allowed is 1 to 100000".to_owned())
}

fn parse_rate(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|rate| (1.0..=1e6).contains(rate)).ok_or_else(|| "allowed is 1 to 1000000".to_owned())
}

/// Runs the scenarios and prints what they measured. Ends early on SIGINT and SIGTERM, with everything it started.
pub async fn run(args: Args) -> Result<(), Failure> {
    if args.list {
        return Scenario::value_variants().iter().try_for_each(|scenario| say(scenario.name()));
    }
    let interrupted =
        super::interrupted().map_err(|error| Failure::internal(format!("cannot catch signals: {error}")))?;
    let mut cluster = Cluster::start().await?;
    // Interrupted, the future is dropped, and with it every process that it started.
    let outcome = tokio::select! {
        () = interrupted => Err(Failure::other("interrupted")),
        outcome = measure_all(&mut cluster, &args) => outcome,
    };
    let stopped = cluster.stop().await;
    let run = outcome?;
    stopped?;
    if args.json {
        let json = serde_json::to_string_pretty(&run).map_err(|error| Failure::internal(error.to_string()))?;
        say(&json)?;
    } else {
        say(run.to_text(args.statements).trim_end())?;
    }
    let missed: Vec<&str> = run.checks.iter().filter(|check| !check.is_met).map(|check| check.what.as_str()).collect();
    if args.check && !missed.is_empty() {
        return Err(Failure::other(format!("missed: {}", missed.join("; "))));
    }
    Ok(())
}

async fn measure_all(cluster: &mut Cluster, args: &Args) -> Result<RunReport, Failure> {
    let mut run = RunReport {
        hooklane: env!("CARGO_PKG_VERSION"),
        postgresql: cluster.version().await?,
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        is_debug_build: cfg!(debug_assertions),
        callers: args.callers,
        channels: args.channels,
        payload_bytes: args.payload_bytes,
        window_s: args.span().as_secs_f64(),
        bare: None,
        scenarios: Vec::new(),
        checks: Vec::new(),
    };
    if args.chosen().iter().any(|scenario| scenario.shape().is_some()) {
        progress("bare limits");
        run.bare = Some(limits::measure(cluster, args.callers, args.payload_bytes, args.span()).await?);
    }
    for scenario in args.chosen() {
        progress(scenario.name());
        let outcome = measure(cluster, args, *scenario, run.bare).await?;
        run.scenarios.push(ScenarioReport { name: scenario.name(), outcome });
    }
    run.checks = checks::of(&run);
    Ok(run)
}

async fn measure(
    cluster: &mut Cluster,
    args: &Args,
    scenario: Scenario,
    bare: Option<limits::Limits>,
) -> Result<Outcome, Failure> {
    Ok(match (scenario, scenario.shape()) {
        (Scenario::Backlog, _) => Outcome::Backlog(Box::new(backlog::run(cluster, args).await?)),
        (Scenario::Refusing, _) => Outcome::Refusing(gates::refusing(cluster, args).await?),
        (Scenario::ThousandLimited, _) => Outcome::Limited(gates::limited(cluster, args).await?),
        (Scenario::Stream, _) => Outcome::Stream(Box::new(stream::run(cluster, args).await?)),
        (Scenario::Replay, _) => Outcome::Replay(Box::new(replay::run(cluster, args).await?)),
        (Scenario::Abuse, _) => Outcome::Abuse(Box::new(abuse::run(cluster, args).await?)),
        (Scenario::Sql, _) => Outcome::Sql(Box::new(sql::run(cluster, args).await?)),
        (Scenario::Healthy, _) => Outcome::Healthy(Box::new(healthy::run(cluster, args).await?)),
        (Scenario::History, _) => Outcome::History(Box::new(history::run(cluster, args).await?)),
        (_, Some(shape)) => {
            let bare = bare.ok_or_else(|| Failure::unavailable("the bare limits were not measured".to_owned()))?;
            Outcome::Load(Box::new(load::run(cluster, args, scenario.name(), shape, bare).await?))
        }
        (_, None) => Outcome::Kill(kill::run(cluster, args).await?),
    })
}

/// Tells on standard error what is under way: standard output is the report's.
fn progress(what: &str) {
    let _ = writeln!(io::stderr(), "bench: {what}");
}
