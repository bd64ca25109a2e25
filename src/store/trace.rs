//! The spans of what the store does in batches: for each event in one that is recorded, with the batch's times.

use super::{Completion, Settlement, Store};
use crate::domain::event::Event;
use crate::domain::id::{DeliveryId, IdSet};
use crate::domain::time::Timestamp;
use crate::telemetry::traces::Kind;

impl Store {
    /// Records that these events were committed, between `began` and now.
    pub(super) fn trace_committed(&self, events: &[Event], began: Timestamp) {
        let Some(traces) = self.traces() else { return };
        let now = self.clock.now();
        for event in events {
            if let Some(span) = traces.begin(Kind::Internal, "commit", event.trace.as_ref(), began) {
                let span = span
                    .with("webhook.event.id", event.id.to_string())
                    .with("webhook.event.type", event.event_type.as_str().to_owned())
                    .with("webhook.batch.size", events.len() as i64);
                traces.end(span, now);
            }
        }
    }

    /// Records that these results were put on record, between `began` and now.
    pub(super) fn trace_completed(&self, batch: &[Completion], won: &IdSet<DeliveryId>, began: Timestamp) {
        let Some(traces) = self.traces() else { return };
        let now = self.clock.now();
        for one in batch.iter().filter(|one| won.contains(&one.id)) {
            if let Some(span) = traces.begin(Kind::Internal, "complete", one.trace.as_ref(), began) {
                let state = match one.settlement {
                    Settlement::Succeeded => "succeeded",
                    Settlement::Retry { .. } => "retrying",
                    Settlement::Failed(_) => "failed",
                    Settlement::Canceled(_) => "canceled",
                    Settlement::Expired => "expired",
                };
                let span = span
                    .with("webhook.delivery.id", one.id.to_string())
                    .with("webhook.delivery.state", state)
                    .with("webhook.batch.size", batch.len() as i64);
                traces.end(span, now);
            }
        }
    }
}
