//! The keys that a transition shows: its event's. Most transitions follow soon on their event's publish by the same
//! process, which remembers it; the others' are read once a page. As a lookup in each row of the page's statement, they
//! cost more than all the rest of it.

use std::collections::HashMap;

use sqlx::types::Uuid;

use super::TimelineEvent;
use crate::domain::id::EventId;
use crate::store::Store;
use crate::store::error::Result;

/// Reads by `events_pkey`; the bounds leave out the days' partitions that hold none of the ids. Those that have outlasted
/// their day by `events_kept_pkey`.
const KEYS: &str = "
select id, idempotency_key, ordering_key
from events
where id = any($1) and id >= $2 and id <= $3 and (idempotency_key is not null or ordering_key is not null)
union all
select id, idempotency_key, ordering_key
from events_kept
where id = any($1) and (idempotency_key is not null or ordering_key is not null)";

impl Store {
    /// Puts their events' keys into transitions that were read without them.
    pub(super) async fn fill_keys(&self, transitions: &mut [TimelineEvent]) -> Result<()> {
        let mut unknown: Vec<EventId> = transitions.iter().map(|transition| transition.event).collect();
        unknown.sort_unstable();
        unknown.dedup();
        let known = self.recent.take_known(&mut unknown);
        let read = self.read_keys(&unknown).await?;
        for transition in transitions {
            if let Some(event) = known.get(&transition.event) {
                transition.idempotency_key.clone_from(&event.idempotency_key);
                transition.ordering_key.clone_from(&event.schedule.ordering_key);
            } else if let Some([idempotency_key, ordering_key]) = read.get(&transition.event) {
                transition.idempotency_key.clone_from(idempotency_key);
                transition.ordering_key.clone_from(ordering_key);
            }
        }
        Ok(())
    }

    /// The keys of those of the events that have any; `events` ascend.
    async fn read_keys(&self, events: &[EventId]) -> Result<HashMap<EventId, [Option<String>; 2]>> {
        let (Some(low), Some(high)) = (events.first(), events.last()) else { return Ok(HashMap::new()) };
        let rows: Vec<(Uuid, Option<String>, Option<String>)> = sqlx::query_as(KEYS)
            .bind(events.iter().map(|id| id.uuid()).collect::<Vec<_>>())
            .bind(low.uuid())
            .bind(high.uuid())
            .fetch_all(&self.stream)
            .await?;
        Ok(rows
            .into_iter()
            .map(|(id, idempotency, ordering)| (EventId::from_uuid(id), [idempotency, ordering]))
            .collect())
    }
}
