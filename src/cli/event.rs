//! `hooklane event`: shows what was published, and what became of it.

use super::client::{CallArgs, refused_as, to_json};
use super::delivery::{add_event, deliveries, row};
use super::show::{Fields, option};
use super::{Failure, flags, say};
use crate::api::proto::GetEventRequest;

/// Show an event and its deliveries
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    call: CallArgs,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    Show(ShowArgs),
}

/// Show an event and its deliveries
#[derive(Debug, Clone, clap::Args)]
struct ShowArgs {
    /// Its id, evt_…
    id: String,
    /// The whole payload
    #[arg(long)]
    full: bool,
}

/// Does what is asked.
pub async fn run(args: Args) -> Result<(), Failure> {
    let mut client = args.call.connection.connect().await?;
    let Command::Show(ShowArgs { id, full }) = args.command;
    let answer = client
        .get_event(GetEventRequest { event_id: id })
        .await
        .map_err(refused_as("GetEvent", flags::ID))?
        .into_inner();
    if args.call.json {
        return say(&to_json(&answer)?);
    }
    let event = answer.event.ok_or_else(|| Failure::internal("the service answered without the event"))?;
    let mut fields = Fields::default();
    fields.add("id", &event.id);
    fields.add("event type", &event.event_type);
    fields.add("tenant", &event.tenant);
    fields.add("priority", option(event.priority().as_str_name(), "PRIORITY"));
    fields.add("ordering key", &event.ordering_key);
    fields.add("idempotency key", &event.idempotency_key);
    add_event(&mut fields, &event, full);
    fields.print()?;
    if answer.deliveries.is_empty() {
        return Ok(());
    }
    say("")?;
    deliveries().print(&answer.deliveries.iter().map(row).collect::<Vec<_>>())
}
