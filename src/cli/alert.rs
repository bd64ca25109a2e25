//! `hooklane alert`: lists and acknowledges alerts.

use super::client::{CallArgs, Client, refused_as, to_json};
use super::each::each;
use super::flags;
use super::pages::PageArgs;
use super::show::{Cell, Column, Paint, Table, time, visible, word};
use super::{Failure, say};
use crate::api::proto::{AcknowledgeAlertRequest, Alert, AlertKind, ListAlertsRequest};

/// List and acknowledge alerts: what somebody should look at
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
    Ack(AckArgs),
}

/// List alerts, newest first
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_long_help = "Examples:\n  hooklane alert list --open\n  hooklane alert list --kind queue-backlog --json"
)]
struct ListArgs {
    /// Whose, or '*' for every tenant's [default: the caller's own tenant]
    #[arg(long, value_name = "TENANT", default_value = "", hide_default_value = true)]
    tenant: String,
    /// Of this endpoint, ep_…
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    endpoint: String,
    /// Of this kind; repeatable
    #[arg(long = "kind", value_name = "KIND", value_parser = kind())]
    kinds: Vec<AlertKind>,
    /// Those whose condition still holds
    #[arg(long)]
    open: bool,
    #[command(flatten)]
    page: PageArgs,
}

/// Note that somebody has seen alerts
#[derive(Debug, Clone, clap::Args)]
struct AckArgs {
    /// Their ids, alr_…
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

const KINDS: &[&str] = &[
    "endpoint-failing",
    "endpoint-disabled",
    "failure-rate-high",
    "queue-backlog",
    "dead-letters-growing",
    "filter-error",
];

fn kind() -> impl clap::builder::TypedValueParser<Value = AlertKind> {
    flags::one_of("ALERT_KIND", KINDS, AlertKind::from_str_name)
}

/// Does what is asked.
pub async fn run(args: Args) -> Result<(), Failure> {
    let client = args.call.connection.connect().await?;
    match args.command {
        Command::List(list_args) => list(client, list_args, args.call.json).await,
        Command::Ack(ack_args) => acknowledge(client, ack_args.ids, args.call.json).await,
    }
}

async fn list(mut client: Client, args: ListArgs, json: bool) -> Result<(), Failure> {
    let table = Table::new(&[
        Column::left("id"),
        Column::left("opened"),
        Column::left("closed"),
        Column::left("kind"),
        Column::left("endpoint"),
        Column::left("seen by"),
        Column::left("message"),
    ]);
    let mut pages = args.page.pages(table, json);
    while let Some((page_size, page_token)) = pages.next() {
        let request = ListAlertsRequest {
            tenant: args.tenant.clone(),
            endpoint_id: args.endpoint.clone(),
            kinds: args.kinds.iter().map(|kind| i32::from(*kind)).collect(),
            open_only: args.open,
            page_size,
            page_token,
        };
        let page = client.list_alerts(request).await.map_err(refused_as("ListAlerts", flags::FILTERS))?.into_inner();
        pages.show(&page.alerts, page.next_page_token, row)?;
    }
    Ok(())
}

fn row(alert: &Alert) -> Vec<Cell> {
    let closed = match time(alert.close_time.as_ref()).as_str() {
        "" => Cell::painted(Paint::Bad, "open"),
        closed => Cell::new(closed),
    };
    vec![
        Cell::new(&alert.id),
        Cell::new(time(alert.open_time.as_ref())),
        closed,
        Cell::new(word(alert.kind().as_str_name(), "ALERT_KIND")),
        Cell::new(&alert.endpoint_id),
        Cell::new(seen_by(alert)),
        Cell::new(&alert.message),
    ]
}

fn seen_by(alert: &Alert) -> &str {
    match (&alert.acknowledge_time, alert.acknowledged_by.as_str()) {
        (None, _) => "",
        // Where callers have no key, nobody has a name.
        (Some(_), "") => "somebody",
        (Some(_), name) => name,
    }
}

async fn acknowledge(mut client: Client, ids: Vec<String>, json: bool) -> Result<(), Failure> {
    each(ids, async |alert_id| {
        let request = AcknowledgeAlertRequest { alert_id };
        let answer = client.acknowledge_alert(request).await.map_err(refused_as("AcknowledgeAlert", flags::ID))?;
        let alert = answer.into_inner().alert;
        let alert = alert.ok_or_else(|| Failure::internal("the service answered without the alert"))?;
        match json {
            true => say(&to_json(&alert)?),
            false => say(&format!("{} was seen by {}", alert.id, visible(seen_by(&alert)))),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_know_every_kind_of_the_contract() {
        assert_eq!(crate::cli::client::values_of("AlertKind"), KINDS.len() + 1);
    }
}
