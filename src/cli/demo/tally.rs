//! The books of the demo: for each delivery what the stream told and what the receivers saw. No I/O here.

use std::collections::BTreeMap;

use crate::api::proto::{DeliveryEvent, DeliveryState};
use crate::cli::listen::{Received, Verdict};

/// What is known of the deliveries that the demo published.
#[derive(Default)]
pub(super) struct Tally {
    /// By id, which is the order in which they were made. Deliveries that others publish are not in it.
    deliveries: BTreeMap<String, Progress>,
}

/// What is known of one delivery.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    pub(super) id: String,
    pub(super) event_type: String,
    /// The index of its endpoint, and what that is called.
    pub(super) recipient: usize,
    pub(super) recipient_name: &'static str,
    /// Attempts that ended, as the stream told.
    pub(super) attempts: u32,
    pub(super) state: DeliveryState,
    /// Requests that arrived.
    pub(super) arrivals: u32,
    /// Those of them whose signature was right.
    pub(super) verified: u32,
}

impl Progress {
    pub(super) fn has_succeeded(&self) -> bool {
        self.state == DeliveryState::Succeeded
    }

    /// Whether nothing more is to come: a final state on the stream, and every request of it seen at the receiver.
    fn is_settled(&self) -> bool {
        use DeliveryState::{Canceled, Expired, Failed, Succeeded};
        matches!(self.state, Succeeded | Failed | Canceled | Expired) && self.arrivals >= self.attempts
    }
}

impl Tally {
    /// Books a delivery that a publish made.
    pub(super) fn expect(&mut self, progress: Progress) {
        self.deliveries.insert(progress.id.clone(), progress);
    }

    /// Books what the stream told.
    pub(super) fn note_transition(&mut self, event: &DeliveryEvent) {
        let Some(delivery) = &event.delivery else { return };
        let Some(progress) = self.deliveries.get_mut(&delivery.id) else { return };
        progress.state = delivery.state();
        progress.attempts = progress.attempts.max(event.attempt.as_ref().map_or(0, |attempt| attempt.number));
    }

    /// Books what a receiver saw.
    pub(super) fn note_arrival(&mut self, received: &Received) {
        let delivery_id = received.delivery_id.as_deref().unwrap_or_default();
        let Some(progress) = self.deliveries.get_mut(delivery_id) else { return };
        progress.arrivals += 1;
        progress.verified += u32::from(received.verdict == Verdict::Good);
    }

    pub(super) fn each_was_attempted(&self) -> bool {
        self.deliveries.values().all(|progress| progress.attempts > 0 && progress.arrivals > 0)
    }

    pub(super) fn is_settled(&self) -> bool {
        self.deliveries.values().all(Progress::is_settled)
    }

    /// Those of one endpoint.
    pub(super) fn of(&self, recipient: usize) -> impl Iterator<Item = &Progress> {
        self.deliveries.values().filter(move |progress| progress.recipient == recipient)
    }

    /// The first that took more than one attempt.
    pub(super) fn first_retried(&self) -> Option<&Progress> {
        self.deliveries.values().find(|progress| progress.attempts > 1)
    }

    /// Which deliveries did not succeed with every signature right, in words; `None` if all did.
    pub(super) fn missing(&self) -> Option<String> {
        let is_fine = |progress: &Progress| {
            progress.is_settled() && progress.has_succeeded() && progress.verified == progress.arrivals
        };
        let lines: Vec<String> = self
            .deliveries
            .values()
            .filter(|progress| !is_fine(progress))
            .map(|progress| {
                let Progress { id, event_type, recipient_name, attempts, arrivals, verified, .. } = progress;
                let state = progress.state.as_str_name().trim_start_matches("DELIVERY_STATE_");
                format!(
                    "\n  {id} ({event_type} to {recipient_name}) is {state}: attempts ended: {attempts}, requests \
                     arrived: {arrivals}, signatures right: {verified}"
                )
            })
            .collect();
        (!lines.is_empty()).then(|| format!("not every delivery succeeded:{}", lines.concat()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::proto::{Attempt, Delivery};

    fn transition(state: DeliveryState, attempt: u32) -> DeliveryEvent {
        DeliveryEvent {
            delivery: Some(Delivery { id: "dlv_1".to_owned(), state: state.into(), ..Delivery::default() }),
            attempt: (attempt > 0).then(|| Attempt { number: attempt, ..Attempt::default() }),
            ..DeliveryEvent::default()
        }
    }

    #[test]
    fn a_delivery_is_done_when_the_stream_and_the_receiver_agree() {
        let mut tally = Tally::default();
        tally.expect(Progress { id: "dlv_1".to_owned(), recipient_name: "flaky", ..Progress::default() });
        for (state, attempt) in
            [(DeliveryState::Pending, 0), (DeliveryState::Retrying, 1), (DeliveryState::Succeeded, 2)]
        {
            assert!(!tally.is_settled(), "before {state:?}");
            tally.note_transition(&transition(state, attempt));
        }
        assert!(!tally.is_settled(), "no request has been seen yet");
        let missing = tally.missing().unwrap();
        assert!(
            missing.contains("dlv_1") && missing.contains("to flaky) is SUCCEEDED: attempts ended: 2,"),
            "{missing}"
        );

        let progress = tally.deliveries.get_mut("dlv_1").unwrap();
        (progress.arrivals, progress.verified) = (2, 2);
        assert!(tally.is_settled());
        assert_eq!(tally.missing(), None);
        assert_eq!(tally.first_retried().map(|progress| progress.attempts), Some(2));
    }

    #[test]
    fn a_signature_that_was_wrong_is_something_missing() {
        let mut tally = Tally::default();
        let state = DeliveryState::Succeeded;
        tally.expect(Progress { id: "dlv_1".to_owned(), state, attempts: 1, arrivals: 1, ..Progress::default() });
        assert!(tally.is_settled());
        assert!(tally.missing().is_some());
    }
}
