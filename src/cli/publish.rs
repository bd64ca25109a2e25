//! `hooklane publish`: publishes an event from the command line.

use std::path::Path;

use super::client::{CallArgs, Typed, refused_as, to_json};
use super::show::{Cell, Column, Table, visible};
use super::{Failure, flags, note, say};
use crate::api::proto::{Priority, PublishRequest, PublishResponse, publish_request::Body};

const EXAMPLES: &str = "\
Examples:
  hooklane publish order.created '{\"order\": 1001}' --idempotency-key o-1001
  hooklane publish report.ready @report.json --endpoint ep_…
  echo '{\"n\": 1}' | hooklane publish job.done - --deliver 10m --priority low";

/// Publish an event
///
/// Ends once the event is committed: from then on it is delivered at least once to each endpoint it matched, or ends in a
/// state that says why not.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// Its type, such as order.created
    #[arg(value_name = "TYPE")]
    event_type: String,
    /// The payload: a text, @FILE, or - for standard input [default: {}]
    #[arg(value_name = "DATA")]
    data: Option<String>,
    /// Whose it is [default: the caller's own tenant]
    #[arg(long, value_name = "TENANT", default_value = "", hide_default_value = true)]
    tenant: String,
    /// The media type of the payload [default: application/json]
    #[arg(long, value_name = "TYPE", default_value = "", hide_default_value = true)]
    content_type: String,
    /// The same key again publishes nothing new
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    idempotency_key: String,
    /// An endpoint it is for, ep_…; repeatable [default: those that want events of its type]
    #[arg(long = "endpoint", value_name = "ID")]
    endpoints: Vec<String>,
    /// Before or after others that are due [default: normal]
    #[arg(long, value_name = "PRIORITY", value_parser = priority())]
    priority: Option<Priority>,
    /// What it is ordered by, at endpoints that are ordered by key
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    ordering_key: String,
    /// Nothing is sent before then: a time such as 2026-01-21T12:00:00Z, or so long from now, such as 10m
    #[arg(long, value_name = "TIME", value_parser = flags::future)]
    deliver: Option<prost_types::Timestamp>,
    /// Nothing is sent after then
    #[arg(long, value_name = "TIME", value_parser = flags::future)]
    expire: Option<prost_types::Timestamp>,
    /// Data for filters, NAME=VALUE, never sent; repeatable
    #[arg(long = "metadata", value_name = "PAIR", value_parser = flags::pair)]
    metadata: Vec<(String, String)>,
    #[command(flatten)]
    call: CallArgs,
}

pub(super) const TYPED: Typed = &[
    ("event_type", "TYPE"),
    ("payload", "DATA"),
    ("tenant", "--tenant"),
    ("content_type", "--content-type"),
    ("idempotency_key", "--idempotency-key"),
    ("endpoint_ids", "--endpoint"),
    ("priority", "--priority"),
    ("ordering_key", "--ordering-key"),
    ("deliver_time", "--deliver"),
    ("expire_time", "--expire"),
    ("metadata", "--metadata"),
];

fn priority() -> impl clap::builder::TypedValueParser<Value = Priority> {
    flags::one_of("PRIORITY", &["high", "normal", "low"], Priority::from_str_name)
}

impl Args {
    fn request(&self) -> Result<PublishRequest, Failure> {
        let payload = self.data.as_deref().map(data).transpose()?.unwrap_or_else(|| b"{}".to_vec());
        Ok(PublishRequest {
            tenant: self.tenant.clone(),
            event_type: self.event_type.clone(),
            body: Some(Body::Payload(payload.into())),
            content_type: self.content_type.clone(),
            idempotency_key: self.idempotency_key.clone(),
            endpoint_ids: self.endpoints.clone(),
            inline_endpoint: None,
            priority: self.priority.unwrap_or_default().into(),
            ordering_key: self.ordering_key.clone(),
            deliver_time: self.deliver,
            expire_time: self.expire,
            metadata: self.metadata.iter().cloned().collect(),
        })
    }
}

/// A payload as people give it: a text, `@FILE`, or `-` for standard input.
pub(super) fn data(text: &str) -> Result<Vec<u8>, Failure> {
    match text.strip_prefix('@') {
        Some(path) if Path::new(path).as_os_str().is_empty() => Err(Failure::usage("@ names no file")),
        Some(path) => flags::read(path),
        None if text == "-" => flags::read("-"),
        None => Ok(text.as_bytes().to_vec()),
    }
}

/// Publishes.
pub async fn run(args: Args) -> Result<(), Failure> {
    let request = args.request()?;
    let mut client = args.call.connection.connect().await?;
    let answer = client.publish(request).await.map_err(refused_as("Publish", TYPED))?.into_inner();
    if args.call.json { say(&to_json(&answer)?) } else { print(&answer) }
}

fn print(answer: &PublishResponse) -> Result<(), Failure> {
    say(&visible(&answer.event_id))?;
    if answer.duplicate {
        note("a duplicate: the idempotency key has published it before, and nothing new is sent");
    }
    if answer.deliveries.is_empty() {
        note("no endpoint wants it; the event is stored");
    }
    let mut table = Table::new(&[Column::left("delivery"), Column::left("endpoint"), Column::left("")]);
    let row = |delivery: &crate::api::proto::PublishedDelivery| {
        let note = if delivery.duplicate { "duplicate" } else { "" };
        vec![Cell::new(&delivery.delivery_id), Cell::new(&delivery.endpoint_id), Cell::new(note)]
    };
    table.print(&answer.deliveries.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn request(line: &[&str]) -> Result<PublishRequest, Failure> {
        Line::try_parse_from([&["publish"], line].concat()).expect("a command line").args.request()
    }

    #[test]
    fn flags_become_the_request() {
        let line = ["order.paid", "{}", "--priority", "high", "--metadata", "a=b", "--deliver", "2026-01-21T12:00:00Z"];
        let asked = request(&line).unwrap();
        assert_eq!((asked.priority(), asked.metadata["a"].as_str()), (Priority::High, "b"));
        assert_eq!(asked.deliver_time.map(|time| time.seconds), Some(1_768_996_800));
        assert_eq!(request(&["ping"]).unwrap().body, Some(Body::Payload("{}".into())));
    }

    #[test]
    fn a_payload_is_a_text_or_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[1]").unwrap();
        let named = format!("@{}", file.path().display());
        assert_eq!(request(&["ping", &named]).unwrap().body, Some(Body::Payload("[1]".into())));
        for bad in ["@", "@/nowhere/at/all"] {
            assert_eq!(request(&["ping", bad]).unwrap_err().code(), 64);
        }
    }
}
