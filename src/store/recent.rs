//! Events published by this process a moment ago: what is claimed next is mostly among them, and its payload need not
//! be read back. Only what is committed gets in, and a payload never changes, so a hit is as good as a read.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::domain::event::Event;
use crate::domain::id::{EventId, IdMap};

/// What is kept at most, counted in payload bytes; beyond it the oldest go.
const BYTES_MAX: usize = 8 * 1024 * 1024;
/// And in events, for small ones.
const EVENTS_MAX: usize = 8_192;

/// The events, oldest first.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    events: IdMap<EventId, Arc<Event>>,
    oldest_first: VecDeque<EventId>,
    bytes: usize,
}

impl Recent {
    /// Keeps events that have just been committed.
    pub(super) fn keep(&self, events: impl IntoIterator<Item = Event>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for mut event in events {
            // A payload is a slice of the message it came in, which may be a batch of 16 MiB.
            event.payload = Bytes::copy_from_slice(&event.payload);
            kept.bytes += event.payload.len();
            kept.oldest_first.push_back(event.id);
            kept.events.insert(event.id, Arc::new(event));
        }
        while kept.bytes > BYTES_MAX || kept.oldest_first.len() > EVENTS_MAX {
            let Some(oldest) = kept.oldest_first.pop_front() else { break };
            kept.bytes -= kept.events.remove(&oldest).map_or(0, |event| event.payload.len());
        }
    }

    /// Those of `ids` that are kept; leaves the others in `ids`.
    pub(super) fn take_known(&self, ids: &mut Vec<EventId>) -> IdMap<EventId, Arc<Event>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = IdMap::with_capacity_and_hasher(ids.len(), Default::default());
        ids.retain(|id| match kept.events.get(id) {
            Some(event) => {
                known.insert(*id, Arc::clone(event));
                false
            }
            None => true,
        });
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::fields::{ContentType, Tenant};
    use crate::domain::pattern::EventType;

    fn event(number: u128, bytes: usize) -> Event {
        Event {
            id: EventId::from_uuid(sqlx::types::Uuid::from_u128(number)),
            tenant: Tenant::default_tenant(),
            event_type: EventType::from_stored("a".to_owned()),
            payload: Bytes::from(vec![b'x'; bytes]),
            content_type: ContentType::from_stored("text/plain".to_owned()),
            idempotency_key: None,
            metadata: Default::default(),
            source: None,
            schedule: Default::default(),
            trace: None,
        }
    }

    #[test]
    fn the_oldest_go_when_the_bound_is_reached() {
        let recent = Recent::default();
        recent.keep((0..3).map(|number| event(number, BYTES_MAX / 2)));
        let ids = || (0..3).map(|number| EventId::from_uuid(sqlx::types::Uuid::from_u128(number)));
        let mut asked: Vec<_> = ids().collect();
        let known = recent.take_known(&mut asked);
        assert_eq!(asked, ids().take(1).collect::<Vec<_>>());
        assert_eq!(known.len(), 2);
        recent.keep((10..10 + EVENTS_MAX as u128).map(|number| event(number, 0)));
        let mut asked: Vec<_> = ids().collect();
        assert!(recent.take_known(&mut asked).is_empty());
    }
}
