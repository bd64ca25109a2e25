//! Committed events by type, with as many types told apart as the settings allow.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use prometheus::{IntCounter, IntCounterVec};

/// What the types beyond the bound count as.
const OTHER: &str = "other";

/// The counters of the types seen first, and one for all others: publishers name the types, and a series for each name
/// that somebody makes up would be without end.
pub struct Events {
    family: IntCounterVec,
    types_max: usize,
    known: Mutex<HashMap<Box<str>, IntCounter>>,
}

impl Events {
    pub(super) fn new(family: IntCounterVec, types_max: usize) -> Self {
        Self { family, types_max, known: Mutex::default() }
    }

    /// Counts a batch, one for each event in it.
    pub fn count<'t>(&self, types: impl IntoIterator<Item = &'t str>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for event_type in types {
            if let Some(counter) = known.get(event_type) {
                counter.inc();
            } else if known.len() < self.types_max {
                let counter = self.family.with_label_values(&[event_type]);
                counter.inc();
                known.insert(event_type.into(), counter);
            } else {
                self.family.with_label_values(&[OTHER]).inc();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Opts;

    use super::*;

    #[test]
    fn types_beyond_the_bound_count_as_other() {
        let family = IntCounterVec::new(Opts::new("events", "Events."), &["event_type"]).expect("a family");
        let events = Events::new(family.clone(), 2);
        events.count(["a", "b", "a", "c"]);
        events.count(["d", "b"]);
        let counts = ["a", "b", OTHER].map(|name| family.with_label_values(&[name]).get());
        assert_eq!(counts, [2, 2, 2]);
        assert!(family.remove_label_values(&["c"]).is_err(), "it has no series");
    }
}
