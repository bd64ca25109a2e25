//! A delivery and its attempts in words.

use crate::api::proto::{Attempt, AttemptOutcome, Delivery, DeliveryEventKind, DeliveryState, Event};
use crate::cli::show::{Cell, Column, Fields, Paint, Table, option, span, time, time_of_day, visible, word};
use crate::cli::{Failure, say};

/// Of a payload or body that is not asked for in full, in characters.
const PREVIEW_CHARS: usize = 200;

/// A state, in its colour.
fn state(state: DeliveryState) -> Cell {
    let paint = match state {
        DeliveryState::Succeeded => Paint::Good,
        DeliveryState::Pending | DeliveryState::InFlight => Paint::Strong,
        DeliveryState::Retrying => Paint::Waiting,
        DeliveryState::Failed | DeliveryState::Canceled | DeliveryState::Expired | DeliveryState::Unspecified => {
            Paint::Bad
        }
    };
    Cell::painted(paint, word(state.as_str_name(), "DELIVERY_STATE"))
}

/// The colour of what happens to a delivery.
pub(in crate::cli) const fn kind_paint(kind: DeliveryEventKind) -> Paint {
    match kind {
        DeliveryEventKind::Succeeded => Paint::Good,
        DeliveryEventKind::AttemptFailed | DeliveryEventKind::AttemptLost => Paint::Waiting,
        DeliveryEventKind::Failed | DeliveryEventKind::Canceled | DeliveryEventKind::Expired => Paint::Bad,
        _ => Paint::Strong,
    }
}

/// The head of a list.
pub(in crate::cli) fn deliveries() -> Table {
    Table::new(&[
        Column::left("id"),
        Column::left("created"),
        Column::left("state"),
        Column::right("attempts"),
        Column::left("event type"),
        Column::left("endpoint"),
        Column::left("next attempt"),
        Column::left("last error"),
    ])
}

/// Its line in the list.
pub(in crate::cli) fn row(delivery: &Delivery) -> Vec<Cell> {
    vec![
        Cell::new(&delivery.id),
        Cell::new(time(delivery.create_time.as_ref())),
        state(delivery.state()),
        Cell::new(delivery.attempt_count.to_string()),
        Cell::new(&delivery.event_type),
        Cell::new(&delivery.endpoint_id),
        Cell::new(time_of_day(delivery.next_attempt_time.as_ref())),
        Cell::new(&delivery.last_error),
    ]
}

/// What has become of it, after a change by hand.
pub(super) fn sentence(delivery: &Delivery) -> String {
    let state = word(delivery.state().as_str_name(), "DELIVERY_STATE");
    match delivery.reason.as_str() {
        "" => format!("{} is {state}", delivery.id),
        reason => format!("{} is {state}: {}", delivery.id, visible(reason)),
    }
}

/// All of it.
pub(super) fn print(delivery: &Delivery, is_full: bool) -> Result<(), Failure> {
    let mut fields = Fields::default();
    fields.add("id", &delivery.id);
    fields.add("event", &delivery.event_id);
    fields.add("event type", &delivery.event_type);
    fields.add("endpoint", &delivery.endpoint_id);
    fields.add("tenant", &delivery.tenant);
    fields.add("state", state(delivery.state()));
    fields.add("reason", &delivery.reason);
    fields.add("priority", option(delivery.priority().as_str_name(), "PRIORITY"));
    fields.add("ordering key", &delivery.ordering_key);
    fields.add("idempotency key", &delivery.idempotency_key);
    fields.add("replay of", &delivery.replay_of);
    fields.add("created", time(delivery.create_time.as_ref()));
    fields.add("next attempt", time(delivery.next_attempt_time.as_ref()));
    fields.add("settled", time(delivery.settle_time.as_ref()));
    if let Some(event) = &delivery.event {
        add_event(&mut fields, event, is_full);
    }
    fields.print()?;
    if delivery.attempts.is_empty() {
        return Ok(());
    }
    say("")?;
    attempts(&delivery.attempts)?;
    if is_full {
        for attempt in &delivery.attempts {
            say("")?;
            attempt_fields(attempt).print()?;
        }
    }
    Ok(())
}

/// What was published, after what a delivery or an event begins with.
pub(in crate::cli) fn add_event(fields: &mut Fields, event: &Event, is_full: bool) {
    fields.add("published", time(event.create_time.as_ref()));
    fields.add("deliver at", time(event.deliver_time.as_ref()));
    fields.add("expires", time(event.expire_time.as_ref()));
    let mut metadata: Vec<_> = event.metadata.iter().map(|(name, value)| format!("{name}={value}")).collect();
    metadata.sort_unstable();
    fields.add_all("metadata", metadata);
    fields.add("content type", &event.content_type);
    match is_full {
        true => fields.add_all("payload", lines(&event.payload)),
        false => fields.add("payload", preview(&event.payload)),
    }
}

fn attempts(attempts: &[Attempt]) -> Result<(), Failure> {
    let mut table = Table::new(&[
        Column::right("attempt"),
        Column::left("started"),
        Column::right("took"),
        Column::left("outcome"),
        Column::right("status"),
        Column::left("trigger"),
        Column::left("next attempt"),
        Column::left("error"),
    ]);
    let row = |attempt: &Attempt| {
        vec![
            Cell::new(attempt.number.to_string()),
            Cell::new(time(attempt.start_time.as_ref())),
            Cell::new(span(attempt.duration.as_ref())),
            outcome(attempt),
            Cell::new(status(attempt)),
            Cell::new(word(attempt.trigger().as_str_name(), "ATTEMPT_TRIGGER")),
            Cell::new(time_of_day(attempt.next_attempt_time.as_ref())),
            Cell::new(&attempt.error),
        ]
    };
    table.print(&attempts.iter().map(row).collect::<Vec<_>>())
}

/// All that there is to say of an attempt.
pub(in crate::cli) fn attempt_fields(attempt: &Attempt) -> Fields {
    let mut fields = Fields::default();
    if attempt.number > 0 {
        fields.add("attempt", attempt.number.to_string());
    }
    fields.add("outcome", outcome(attempt));
    fields.add("status", status(attempt));
    fields.add("error", &attempt.error);
    fields.add("trigger", word(attempt.trigger().as_str_name(), "ATTEMPT_TRIGGER"));
    fields.add("started", time(attempt.start_time.as_ref()));
    fields.add("took", span(attempt.duration.as_ref()));
    fields.add("url", &attempt.url);
    let headers = |headers: &[crate::api::proto::Header]| -> Vec<String> {
        headers.iter().map(|header| format!("{}: {}", header.name, header.value)).collect()
    };
    fields.add_all("sent", headers(&attempt.request_headers));
    fields.add_all("received", headers(&attempt.response_headers));
    fields.add_all("body", lines(&attempt.response_body));
    if attempt.response_truncated {
        fields.add("", "… and more, which was not kept");
    }
    fields.add("replica", &attempt.replica_id);
    fields
}

fn outcome(attempt: &Attempt) -> Cell {
    let paint = match attempt.outcome() {
        AttemptOutcome::Succeeded => Paint::Good,
        AttemptOutcome::InFlight => Paint::Strong,
        AttemptOutcome::Lost => Paint::Waiting,
        _ => Paint::Bad,
    };
    Cell::painted(paint, word(attempt.outcome().as_str_name(), "ATTEMPT_OUTCOME"))
}

fn status(attempt: &Attempt) -> String {
    if attempt.status_code == 0 { String::new() } else { attempt.status_code.to_string() }
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect()
}

fn preview(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    match text.char_indices().nth(PREVIEW_CHARS) {
        Some((cut, _)) => format!("{}… ({} bytes; --full shows them)", &text[..cut], bytes.len()),
        None => text.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_payload_is_cut_between_characters_and_says_so() {
        assert_eq!(preview("größe".as_bytes()), "größe");
        let shown = preview("ö".repeat(300).as_bytes());
        assert!(shown.starts_with(&"ö".repeat(PREVIEW_CHARS)) && shown.contains("600 bytes"), "{shown}");
    }

    #[test]
    fn what_a_change_made_of_it_is_a_sentence() {
        let delivery = Delivery {
            id: "dlv_1".to_owned(),
            state: DeliveryState::Pending.into(),
            reason: "due now".to_owned(),
            ..Delivery::default()
        };
        assert_eq!(sentence(&delivery), "dlv_1 is PENDING: due now");
    }
}
