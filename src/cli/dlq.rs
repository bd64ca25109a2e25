//! `hooklane dlq`: lists, replays and removes dead letters.

use super::client::{CallArgs, Client, Typed, refused_as, to_json};
use super::flags;
use super::pages::PageArgs;
use super::show::{Cell, Column, Table, count, counted, time};
use super::{Failure, note, replay, say};
use crate::api::proto::{
    DeadLetter, DeleteDeadLettersRequest, DeleteDeadLettersResponse, GetStatsRequest, ListDeadLettersRequest,
};

/// List, replay and remove dead letters: deliveries that have failed for good
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    call: CallArgs,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    List(ListArgs),
    Replay(ReplayArgs),
    Purge(PurgeArgs),
}

// Which dead letters. Not in the documentation, which would become that of the commands.
#[derive(Debug, Clone, clap::Args)]
struct FilterArgs {
    /// Of deliveries to this endpoint, ep_…
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    endpoint: String,
    /// Of events of this type, or pattern such as 'order.*'; repeatable
    #[arg(long = "event-type", value_name = "PATTERN")]
    event_types: Vec<String>,
}

/// List dead letters, those that failed last first
#[derive(Debug, Clone, clap::Args)]
struct ListArgs {
    /// Whose, or '*' for every tenant's [default: the caller's own tenant]
    #[arg(long, value_name = "TENANT", default_value = "", hide_default_value = true)]
    tenant: String,
    #[command(flatten)]
    filter: FilterArgs,
    /// Those that failed since then: a time such as 2026-01-21T12:00:00Z, or so long ago, such as 90m
    #[arg(long, value_name = "TIME", value_parser = flags::past)]
    since: Option<prost_types::Timestamp>,
    /// Those that failed before then
    #[arg(long, value_name = "TIME", value_parser = flags::past)]
    until: Option<prost_types::Timestamp>,
    #[command(flatten)]
    page: PageArgs,
}

/// Send dead letters again and watch it: `hooklane replay` of what has failed
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_long_help = "Examples:\n  hooklane dlq replay --dry-run\n  hooklane dlq replay --endpoint ep_… --since \
                             2h --max-per-second 100"
)]
struct ReplayArgs {
    #[command(flatten)]
    job: replay::JobArgs,
}

/// Remove dead letters: only count them, unless --force is given
///
/// The deliveries stay: they can be read and retried as before. With --force it has to be said which: by their ids or by
/// flags, of which --tenant alone means all of the tenant's.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_long_help = "Examples:\n  hooklane dlq purge\n  hooklane dlq purge --endpoint ep_…\n  hooklane dlq purge \
                             --tenant default --until 7d --force\n  hooklane dlq purge dlv_… dlv_… --force"
)]
struct PurgeArgs {
    /// Their deliveries, dlv_…
    #[arg(value_name = "ID", conflicts_with_all = ["tenant", "endpoint", "event_types", "until"])]
    ids: Vec<String>,
    /// Whose [default: the caller's own tenant]
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    #[command(flatten)]
    filter: FilterArgs,
    /// Those that failed before then
    #[arg(long, value_name = "TIME", value_parser = flags::past)]
    until: Option<prost_types::Timestamp>,
    /// Really do it
    #[arg(long)]
    force: bool,
}

pub(super) const PURGED: Typed = &[
    ("delivery_ids", "ID"),
    ("tenant", "--tenant"),
    ("endpoint_id", "--endpoint"),
    ("event_types", "--event-type"),
    ("dead_before", "--until"),
];

impl PurgeArgs {
    /// Whether it is said which.
    fn names_some(&self) -> bool {
        let FilterArgs { endpoint, event_types } = &self.filter;
        !self.ids.is_empty()
            || self.tenant.is_some()
            || !endpoint.is_empty()
            || !event_types.is_empty()
            || self.until.is_some()
    }
}

/// Does what is asked.
pub async fn run(args: Args) -> Result<(), Failure> {
    let Args { command, call } = args;
    match command {
        Command::Replay(args) => replay::start(args.job, Vec::new(), call).await,
        Command::List(args) => list(call.connection.connect().await?, args, call.json).await,
        // Refused here: the service would speak of fields.
        Command::Purge(args) if args.force && !args.names_some() => Err(Failure::usage(
            "nothing was removed: --force wants it said which: ids, --endpoint, --event-type or --until, or --tenant for \
             all of a tenant's",
        )),
        Command::Purge(args) => purge(call.connection.connect().await?, args, call.json).await,
    }
}

async fn list(mut client: Client, args: ListArgs, json: bool) -> Result<(), Failure> {
    let table = Table::new(&[
        Column::left("delivery"),
        Column::left("failed"),
        Column::right("attempts"),
        Column::left("event type"),
        Column::left("endpoint"),
        Column::left("reason"),
        Column::left("kept until"),
    ]);
    let mut pages = args.page.pages(table, json);
    while let Some((page_size, page_token)) = pages.next() {
        let request = ListDeadLettersRequest {
            tenant: args.tenant.clone(),
            endpoint_id: args.filter.endpoint.clone(),
            event_types: args.filter.event_types.clone(),
            dead_after: args.since,
            dead_before: args.until,
            page_size,
            page_token,
        };
        let page = client
            .list_dead_letters(request)
            .await
            .map_err(refused_as("ListDeadLetters", flags::FILTERS))?
            .into_inner();
        pages.show(&page.dead_letters, page.next_page_token, row)?;
    }
    Ok(())
}

fn row(letter: &DeadLetter) -> Vec<Cell> {
    vec![
        Cell::new(&letter.delivery_id),
        Cell::new(time(letter.dead_time.as_ref())),
        Cell::new(letter.attempts.to_string()),
        Cell::new(&letter.event_type),
        Cell::new(&letter.endpoint_id),
        Cell::new(&letter.failure_reason),
        Cell::new(time(letter.expire_time.as_ref())),
    ]
}

async fn purge(mut client: Client, args: PurgeArgs, json: bool) -> Result<(), Failure> {
    if !args.names_some() {
        return count_all(client, json).await;
    }
    let request = DeleteDeadLettersRequest {
        delivery_ids: args.ids,
        tenant: args.tenant.unwrap_or_default(),
        endpoint_id: args.filter.endpoint,
        event_types: args.filter.event_types,
        dead_before: args.until,
        force: args.force,
    };
    let mut whole = DeleteDeadLettersResponse::default();
    loop {
        let answer =
            client.delete_dead_letters(request.clone()).await.map_err(refused_as("DeleteDeadLetters", PURGED))?;
        let answer = answer.into_inner();
        whole.matched = whole.matched.max(whole.deleted + answer.matched);
        whole.deleted += answer.deleted;
        // One call works for so long at most and leaves the rest to the next.
        if !args.force || answer.deleted == 0 || answer.deleted >= answer.matched {
            break;
        }
    }
    if json {
        return say(&to_json(&whole)?);
    }
    match args.force {
        // Others may have removed or retried the rest meanwhile; the caller has to know.
        true if whole.deleted < whole.matched => {
            say(&format!("removed: {} of {}", count(whole.deleted), dead_letters(whole.matched)))
        }
        true => say(&format!("removed: {}", dead_letters(whole.deleted))),
        false => {
            say(&matched(whole.matched))?;
            note("--force removes them");
            Ok(())
        }
    }
}

/// All of the caller's own tenant, which DeleteDeadLetters counts only by its name.
async fn count_all(mut client: Client, json: bool) -> Result<(), Failure> {
    let stats = client.get_stats(GetStatsRequest::default()).await.map_err(refused_as("GetStats", &[]))?.into_inner();
    if json {
        return say(&to_json(&DeleteDeadLettersResponse { matched: stats.dead_letters, deleted: 0 })?);
    }
    say(&matched(stats.dead_letters))?;
    note(
        "--force removes those that are named: by ids, --endpoint, --event-type or --until, or --tenant for all of them",
    );
    Ok(())
}

fn matched(number: u64) -> String {
    let verb = if number == 1 { "matches" } else { "match" };
    format!("{} {verb}; none was removed", dead_letters(number))
}

fn dead_letters(number: u64) -> String {
    counted(number, "dead letter", "dead letters")
}
