//! Deliveries that are claimed by the statement that publishes them: which may be, and what the engine is told of them.

use super::plan::{Fate, Plan, PlannedDelivery};
use crate::domain::attempt::AttemptTrigger;
use crate::domain::endpoint::Ordering;
use crate::domain::schedule::Priority;
use crate::domain::time::Timestamp;
use crate::store::offers::Taking;
use crate::store::queue::Claimed;

impl Plan {
    /// The deliveries that may be claimed as they are queued: due at once, ordered by nothing, and of the priority whose turn
    /// it always is.
    pub(super) fn claimable(&mut self) -> impl Iterator<Item = &mut PlannedDelivery> {
        let schedule = &self.waiting.event.schedule;
        let is_due = schedule.deliver_time.is_none() && schedule.priority == Priority::Normal;
        let deliveries = self.deliveries.iter_mut().filter(move |_| is_due);
        deliveries.filter(|delivery| delivery.fate == Fate::Queued && delivery.to.ordering == Ordering::Unordered)
    }

    /// Those that the statement has claimed, at `at`.
    pub(super) fn claimed(&self, at: Timestamp, taking: &Taking<'_>) -> impl Iterator<Item = Claimed> {
        let expire_at = self.event().schedule.expire_time;
        self.queued().filter_map(move |delivery| {
            Some(Claimed {
                id: delivery.id,
                endpoint: delivery.to.id,
                endpoint_version: taking.version(delivery.offer?),
                event: self.event_id,
                claim_gen: 1,
                attempt: 1,
                retries_spent: 0,
                lost_count: 0,
                format: delivery.to.format,
                trigger: AttemptTrigger::Schedule,
                openings: 0,
                cancel_requested: false,
                due_at: at,
                priority: Priority::Normal,
                expire_at,
                order_key: None,
                claimed_at: at,
            })
        })
    }
}
