//! The deliveries of a batch as arrays.

use std::collections::HashSet;

use sqlx::types::Uuid;

use super::plan::{Plan, PlannedDelivery};
use crate::domain::id::EventId;
use crate::domain::schedule::Priority;
use crate::store::order::OrderKey;
use crate::store::types::PgTime;

/// A column that is mostly null: empty where it is so altogether, which the statement unnests to the same.
pub(super) fn sparse<T>(column: impl IntoIterator<Item = Option<T>>) -> Vec<Option<T>> {
    let column: Vec<_> = column.into_iter().collect();
    if column.iter().all(Option::is_none) { Vec::new() } else { column }
}

/// Deliveries as the columns that both statements unnest.
#[derive(Default)]
pub(super) struct DeliveryColumns<'p> {
    pub(super) ids: Vec<Uuid>,
    pub(super) endpoints: Vec<Uuid>,
    pub(super) events: Vec<Uuid>,
    pub(super) formats: Vec<i16>,
    pub(super) tenants: Vec<&'p str>,
    pub(super) types: Vec<&'p str>,
    pub(super) priorities: Vec<Option<i16>>,
    pub(super) deliver_at: Vec<Option<PgTime>>,
    pub(super) expire_at: Vec<Option<PgTime>>,
    pub(super) order_keys: Vec<Option<&'p str>>,
    pub(super) parked: Vec<Option<bool>>,
    /// Places, from 1.
    pub(super) offers: Vec<Option<i32>>,
    pub(super) told: ToldTogether,
}

/// Deliveries that a row of the timeline tells of together, by their first and last place, from 1.
#[derive(Default)]
pub(super) struct ToldTogether {
    pub(super) firsts: Vec<i32>,
    pub(super) lasts: Vec<i32>,
    /// What those of the last row have in common.
    of: Option<(EventId, bool)>,
}

/// So many at most: the row stays well below what PostgreSQL would compress and store elsewhere (2 KB).
const TOLD_TOGETHER_MAX: i32 = 32;

impl ToldTogether {
    /// The next delivery is of this event and waits behind others, or does not.
    fn push(&mut self, event: EventId, is_parked: bool) {
        let place = self.lasts.last().copied().unwrap_or_default() + 1;
        match (self.firsts.last(), self.lasts.last_mut()) {
            (Some(first), Some(last)) if self.of == Some((event, is_parked)) && place - first < TOLD_TOGETHER_MAX => {
                *last = place;
            }
            _ => {
                self.firsts.push(place);
                self.lasts.push(place);
                self.of = Some((event, is_parked));
            }
        }
    }
}

impl<'p> DeliveryColumns<'p> {
    /// Of each of the `free` keys the first delivery goes at once; all others behind a key are parked.
    pub(super) fn of(
        deliveries: impl Iterator<Item = (&'p Plan, &'p PlannedDelivery)>,
        mut free: HashSet<OrderKey<'p>>,
    ) -> Self {
        let mut columns = Self::default();
        for (plan, delivery) in deliveries {
            columns.ids.push(delivery.id.uuid());
            columns.endpoints.push(delivery.to.id.uuid());
            columns.events.push(plan.event_id.uuid());
            columns.formats.push(delivery.to.format.number());
            columns.tenants.push(plan.waiting.event.tenant.as_str());
            columns.types.push(plan.waiting.event.event_type.as_str());
            let schedule = &plan.waiting.event.schedule;
            let order_key = plan.order_key(delivery);
            columns.priorities.push(Some(schedule.priority.number()).filter(|_| schedule.priority != Priority::Normal));
            columns.deliver_at.push(schedule.deliver_time.map(PgTime));
            columns.expire_at.push(schedule.expire_time.map(PgTime));
            let is_parked = order_key.map(|key| !free.remove(&key));
            columns.parked.push(is_parked);
            columns.told.push(plan.event_id, is_parked.unwrap_or_default());
            columns.order_keys.push(order_key.map(|(_, key)| key));
            columns.offers.push(delivery.offer.and_then(|place| i32::try_from(place + 1).ok()));
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_together_is_of_one_event_and_waits_alike() {
        let [one, other] = [1, 2].map(|id| EventId::from_uuid(Uuid::from_u128(id)));
        let mut told = ToldTogether::default();
        for is_parked in [false, false, false, true, false] {
            told.push(one, is_parked);
        }
        for _ in 0..TOLD_TOGETHER_MAX + 1 {
            told.push(other, false);
        }
        assert_eq!((told.firsts, told.lasts), (vec![1, 4, 5, 6, 38], vec![3, 4, 5, 37, 38]));
    }
}
