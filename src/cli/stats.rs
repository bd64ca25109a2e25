//! `hooklane stats`: the figures of a tenant over a window.

use super::client::{CallArgs, refused_as, to_json};
use super::show::{Cell, Column, Fields, Paint, Table, count, share, span};
use super::{Failure, flags, say};
use crate::api::proto::{EndpointStats, GetStatsRequest, GetStatsResponse, Quantiles};

/// Show what is waiting, what came of the rest, and how long it took
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:\n  hooklane stats\n  hooklane stats --tenant '*' --window 24h --json")]
pub struct Args {
    /// Whose, or '*' for every tenant's [default: the caller's own tenant]
    #[arg(long, value_name = "TENANT", default_value = "", hide_default_value = true)]
    tenant: String,
    /// How far back what has settled counts, up to 30d
    #[arg(long, value_name = "SPAN", default_value = "1h", value_parser = flags::span)]
    window: prost_types::Duration,
    #[command(flatten)]
    call: CallArgs,
}

/// Asks once.
pub async fn run(args: Args) -> Result<(), Failure> {
    let mut client = args.call.connection.connect().await?;
    let request = GetStatsRequest { tenant: args.tenant, window: Some(args.window) };
    let stats = client.get_stats(request).await.map_err(refused_as("GetStats", flags::FILTERS))?.into_inner();
    if args.call.json { say(&to_json(&stats)?) } else { print(&stats, &span(Some(&args.window))) }
}

fn print(stats: &GetStatsResponse, window: &str) -> Result<(), Failure> {
    let mut fields = Fields::default();
    fields.add("outstanding", format!("{}, {} of them in flight", count(stats.outstanding), count(stats.in_flight)));
    fields.add("oldest due", waited(stats.oldest_due_age.as_ref()));
    fields.add("dead letters", Cell::painted(warning(stats.dead_letters), count(stats.dead_letters)));
    fields.add("window", format!("the last {window}"));
    fields.add("succeeded", count(stats.succeeded));
    fields.add("failed", Cell::painted(warning(stats.failed), count(stats.failed)));
    if stats.succeeded + stats.failed > 0 {
        fields.add("success rate", share(stats.success_rate));
    }
    fields.add("attempts", count(stats.attempts));
    fields.add("an attempt took", quantiles(stats.attempt_duration.as_ref(), stats.attempt_duration_mean.as_ref()));
    fields.add("from publish on", quantiles(stats.end_to_end.as_ref(), None));
    fields.print()?;
    if stats.endpoints.is_empty() {
        return Ok(());
    }
    say("")?;
    let mut table = Table::new(&[
        Column::left("endpoint"),
        Column::right("outstanding"),
        Column::right("oldest due"),
        Column::right("succeeded"),
        Column::right("failed"),
        Column::right("success"),
        Column::right("p50"),
        Column::right("p95"),
        Column::right("p99"),
    ]);
    table.print(&stats.endpoints.iter().map(row).collect::<Vec<_>>())
}

fn row(endpoint: &EndpointStats) -> Vec<Cell> {
    let quantile = |pick: fn(&Quantiles) -> Option<&prost_types::Duration>| {
        Cell::new(span(endpoint.attempt_duration.as_ref().and_then(pick)))
    };
    let success = match endpoint.succeeded + endpoint.failed {
        0 => String::new(),
        _ => share(endpoint.success_rate),
    };
    vec![
        Cell::new(&endpoint.endpoint_id),
        Cell::new(count(endpoint.outstanding)),
        Cell::new(span(endpoint.oldest_due_age.as_ref())),
        Cell::new(count(endpoint.succeeded)),
        Cell::painted(warning(endpoint.failed), count(endpoint.failed)),
        Cell::new(success),
        quantile(|q| q.p50.as_ref()),
        quantile(|q| q.p95.as_ref()),
        quantile(|q| q.p99.as_ref()),
    ]
}

fn warning(number: u64) -> Paint {
    if number > 0 { Paint::Bad } else { Paint::Good }
}

fn waited(age: Option<&prost_types::Duration>) -> String {
    age.map_or_else(|| "none is due".to_owned(), |age| format!("{} ago", span(Some(age))))
}

fn quantiles(quantiles: Option<&Quantiles>, mean: Option<&prost_types::Duration>) -> String {
    let Some(quantiles) = quantiles else { return String::new() };
    let named = [("p50", &quantiles.p50), ("p95", &quantiles.p95), ("p99", &quantiles.p99)];
    let mut words: Vec<_> = named.iter().map(|(name, value)| format!("{name} {}", span(value.as_ref()))).collect();
    words.extend(mean.map(|mean| format!("mean {}", span(Some(mean)))));
    words.join(", ")
}
