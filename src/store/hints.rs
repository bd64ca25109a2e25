//! Hints inside this process: that an endpoint has work or has changed, that the timeline has grown. Nothing depends on them: what a
//! lost one told of, the sweep and the poll find.

use std::sync::Arc;

use tokio::sync::{broadcast, watch};

use super::Due;
use super::notes::Work;
use crate::domain::id::EndpointId;

/// That there is work, or that what lets it through has changed.
#[derive(Debug, Clone)]
pub enum Hint {
    /// This process made it.
    Made(Arc<[Due]>),
    /// Another replica made it.
    Heard(Arc<[Due]>),
    /// This process changed it.
    Changed(EndpointId),
    /// Another replica changed them.
    ChangedElsewhere(Arc<[EndpointId]>),
    /// There may be more than anybody told of.
    Look,
}

/// Who is to be told.
#[derive(Debug)]
pub(super) struct Hints {
    due: broadcast::Sender<Hint>,
    /// Growth of the timeline, whoever caused it.
    grown: watch::Sender<u64>,
    /// That which this process caused.
    made: watch::Sender<u64>,
}

/// Batches of hints kept for a slow reader.
const DUE_HINTS_MAX: usize = 1_024;

impl Default for Hints {
    fn default() -> Self {
        Self { due: broadcast::channel(DUE_HINTS_MAX).0, grown: watch::Sender::new(0), made: watch::Sender::new(0) }
    }
}

impl Hints {
    /// This process has committed transitions, after which `due` is due.
    pub(super) fn made(&self, due: Vec<Due>) {
        // The work first: whoever is woken by the growth tells of both.
        if !due.is_empty() {
            self.give(Hint::Made(due.into()));
        }
        self.made.send_modify(|count| *count += 1);
        self.grown.send_modify(|count| *count += 1);
    }

    /// This process has changed what lets an endpoint's requests through.
    pub(super) fn changed(&self, endpoint: EndpointId) {
        self.give(Hint::Changed(endpoint));
    }

    /// Another replica told of its work.
    pub(super) fn heard(&self, work: &Work) {
        if work.is_grown {
            self.grown.send_modify(|count| *count += 1);
        }
        if !work.endpoints.is_empty() {
            self.give(Hint::Heard(
                work.endpoints.iter().map(|id| Due { endpoint: *id, at: work.at, priority: None }).collect(),
            ));
        }
        if !work.changed.is_empty() {
            self.give(Hint::ChangedElsewhere(work.changed.as_slice().into()));
        }
        if work.is_more {
            self.give(Hint::Look);
        }
    }

    pub(super) fn due(&self) -> broadcast::Receiver<Hint> {
        self.due.subscribe()
    }

    pub(super) fn growth(&self) -> watch::Receiver<u64> {
        self.grown.subscribe()
    }

    pub(super) fn own_growth(&self) -> watch::Receiver<u64> {
        self.made.subscribe()
    }

    fn give(&self, hint: Hint) {
        // Nobody listening is no error: the sweep finds the work.
        let _ = self.due.send(hint);
    }
}
