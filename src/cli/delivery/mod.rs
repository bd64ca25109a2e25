//! `hooklane delivery`: shows, lists, retries and cancels deliveries.

mod describe;

pub(super) use self::describe::{add_event, attempt_fields, deliveries, kind_paint, row};
use super::client::{CallArgs, Client, refused_as, to_json};
use super::each::each;
use super::flags;
use super::pages::PageArgs;
use super::{Failure, say};
use crate::api::proto::{
    CancelDeliveryRequest, Delivery, DeliveryState, GetDeliveryRequest, ListDeliveriesRequest, RetryDeliveryRequest,
};

/// Show, list, retry and cancel deliveries
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
    List(Box<ListArgs>),
    Retry(RetryArgs),
    Cancel(CancelArgs),
}

/// Show a delivery, its event and every attempt
#[derive(Debug, Clone, clap::Args)]
struct ShowArgs {
    /// Its id, dlv_…
    id: String,
    /// Headers and bodies of the attempts, too, and the whole payload
    #[arg(long)]
    full: bool,
}

/// List deliveries, newest first
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:\n  hooklane delivery list --state failed --since 2h\n  hooklane delivery list \
                             --endpoint ep_… --event-type 'order.*' --json")]
struct ListArgs {
    /// Whose, or '*' for every tenant's [default: the caller's own tenant]
    #[arg(long, value_name = "TENANT", default_value = "", hide_default_value = true)]
    tenant: String,
    /// Deliveries to this endpoint, ep_…
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    endpoint: String,
    /// Deliveries of this event, evt_…
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    event: String,
    /// Deliveries of events of this type, or pattern such as 'order.*'; repeatable
    #[arg(long = "event-type", value_name = "PATTERN")]
    event_types: Vec<String>,
    /// Deliveries in this state; repeatable
    #[arg(long = "state", value_name = "STATE", value_parser = state_flag())]
    states: Vec<DeliveryState>,
    /// Deliveries made since then: a time such as 2026-01-21T12:00:00Z, or so long ago, such as 90m
    #[arg(long, value_name = "TIME", value_parser = flags::past)]
    since: Option<prost_types::Timestamp>,
    /// Deliveries made before then
    #[arg(long, value_name = "TIME", value_parser = flags::past)]
    until: Option<prost_types::Timestamp>,
    #[command(flatten)]
    page: PageArgs,
}

/// Send deliveries again that failed, were canceled or have expired, or that wait for their next retry
#[derive(Debug, Clone, clap::Args)]
struct RetryArgs {
    /// Their ids, dlv_…
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

/// Cancel deliveries: an attempt under way ends first
#[derive(Debug, Clone, clap::Args)]
struct CancelArgs {
    /// Their ids, dlv_…
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

const STATES: &[&str] = &["pending", "in-flight", "retrying", "succeeded", "failed", "canceled", "expired"];

fn state_flag() -> impl clap::builder::TypedValueParser<Value = DeliveryState> {
    flags::one_of("DELIVERY_STATE", STATES, DeliveryState::from_str_name)
}

/// Does what is asked.
pub async fn run(args: Args) -> Result<(), Failure> {
    let client = args.call.connection.connect().await?;
    match args.command {
        Command::Show(show_args) => show(client, show_args, args.call.json).await,
        Command::List(list_args) => list(client, *list_args, args.call.json).await,
        Command::Retry(retry_args) => retry(client, retry_args.ids, args.call.json).await,
        Command::Cancel(cancel_args) => cancel(client, cancel_args.ids, args.call.json).await,
    }
}

async fn show(mut client: Client, args: ShowArgs, json: bool) -> Result<(), Failure> {
    let request = GetDeliveryRequest { delivery_id: args.id };
    let answer = client.get_delivery(request).await.map_err(refused_as("GetDelivery", flags::ID))?;
    let delivery = delivery_of(answer.into_inner().delivery)?;
    if json { say(&to_json(&delivery)?) } else { describe::print(&delivery, args.full) }
}

async fn list(mut client: Client, args: ListArgs, json: bool) -> Result<(), Failure> {
    let table = deliveries();
    let mut pages = args.page.pages(table, json);
    while let Some((page_size, page_token)) = pages.next() {
        let request = ListDeliveriesRequest {
            tenant: args.tenant.clone(),
            endpoint_id: args.endpoint.clone(),
            event_id: args.event.clone(),
            event_types: args.event_types.clone(),
            states: args.states.iter().map(|state| i32::from(*state)).collect(),
            create_after: args.since,
            create_before: args.until,
            page_size,
            page_token,
        };
        let page =
            client.list_deliveries(request).await.map_err(refused_as("ListDeliveries", flags::FILTERS))?.into_inner();
        pages.show(&page.deliveries, page.next_page_token, row)?;
    }
    Ok(())
}

async fn retry(mut client: Client, ids: Vec<String>, json: bool) -> Result<(), Failure> {
    each(ids, async |delivery_id| {
        let request = RetryDeliveryRequest { delivery_id };
        let answer = client.retry_delivery(request).await.map_err(refused_as("RetryDelivery", flags::ID))?;
        tell(answer.into_inner().delivery, json)
    })
    .await
}

async fn cancel(mut client: Client, ids: Vec<String>, json: bool) -> Result<(), Failure> {
    each(ids, async |delivery_id| {
        let request = CancelDeliveryRequest { delivery_id };
        let answer = client.cancel_delivery(request).await.map_err(refused_as("CancelDelivery", flags::ID))?;
        tell(answer.into_inner().delivery, json)
    })
    .await
}

fn delivery_of(delivery: Option<Delivery>) -> Result<Delivery, Failure> {
    delivery.ok_or_else(|| Failure::internal("the service answered without the delivery"))
}

fn tell(delivery: Option<Delivery>, json: bool) -> Result<(), Failure> {
    let delivery = delivery_of(delivery)?;
    if json { say(&to_json(&delivery)?) } else { say(&describe::sentence(&delivery)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_know_every_state_of_the_contract() {
        assert_eq!(crate::cli::client::values_of("DeliveryState"), STATES.len() + 1);
    }
}
