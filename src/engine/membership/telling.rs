//! What this process did that other replicas should know of at once: gathered, and told at most twenty times a second.
//!
//! While nobody is there to be told, nothing is listened to and nothing is sent.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use tokio::sync::{broadcast, watch};

use super::View;
use crate::domain::id::EndpointId;
use crate::domain::time::Timestamp;
use crate::store::{Due, Hint, NAMED_MAX, Replica, Store, Work};

/// What is due later than this, whoever drives its lane finds by its sweep before it is.
const SOON: Duration = Duration::from_secs(5);
/// What is due within this is due now: clocks are tracked, not read.
const NOW: Duration = Duration::from_millis(50);
/// Between two notes; the first goes out at once.
const EVERY_MIN: Duration = Duration::from_millis(50);

/// What is to be told, and to whom it matters.
#[derive(Debug)]
pub(super) struct Telling {
    /// While others drive lanes.
    due: Option<broadcast::Receiver<Hint>>,
    /// While others serve streams.
    growth: Option<watch::Receiver<u64>>,
    pending: Pending,
    /// Not before.
    next_at: Instant,
}

#[derive(Debug, Default)]
struct Pending {
    endpoints: HashSet<EndpointId>,
    at: Option<Timestamp>,
    is_more: bool,
    is_grown: bool,
    changed: HashSet<EndpointId>,
}

/// Something that happened here.
#[derive(Debug)]
pub(super) enum Deed {
    Due(Hint),
    /// Hints came faster than they were taken.
    Missed,
    Grown,
}

impl Telling {
    pub(super) fn new(now: Instant) -> Self {
        Self { due: None, growth: None, pending: Pending::default(), next_at: now }
    }

    /// Who is there to be told has changed, or not.
    pub(super) fn to(&mut self, others: &[Replica], store: &Store) {
        match (others.iter().any(|one| one.roles.worker), &self.due) {
            (true, None) => self.due = Some(store.due_hints()),
            (false, Some(_)) => self.due = None,
            _ => {}
        }
        match (others.iter().any(|one| one.roles.api), &self.growth) {
            (true, None) => self.growth = Some(store.own_growth_hints()),
            (false, Some(_)) => self.growth = None,
            _ => {}
        }
    }

    /// The next deed that may be worth telling. Safe to drop while it waits.
    pub(super) async fn next(&mut self) -> Deed {
        let is_grown = self.pending.is_grown;
        tokio::select! {
            hint = next_hint(&mut self.due) => hint,
            () = next_growth(&mut self.growth), if !is_grown => Deed::Grown,
        }
    }

    /// The next deed that is there already.
    pub(super) fn try_next(&mut self) -> Option<Deed> {
        self.next().now_or_never()
    }

    /// Gathers a deed. Lanes of this replica's own concern nobody else.
    pub(super) fn gather(&mut self, deed: Deed, view: &View, now: Timestamp) {
        let pending = &mut self.pending;
        match deed {
            Deed::Grown => pending.is_grown = true,
            Deed::Missed => pending.is_more = true,
            // Heard from others, who told everybody.
            Deed::Due(Hint::Heard(_) | Hint::ChangedElsewhere(_) | Hint::Look) => {}
            Deed::Due(Hint::Changed(endpoint)) if view.owns(endpoint) => {}
            Deed::Due(Hint::Changed(_)) if pending.changed.len() >= NAMED_MAX => pending.is_more = true,
            Deed::Due(Hint::Changed(endpoint)) => {
                pending.changed.insert(endpoint);
            }
            Deed::Due(Hint::Made(due)) => {
                let soon = now.plus(SOON);
                for Due { endpoint, at, .. } in due.iter().filter(|due| due.at <= soon && !view.owns(due.endpoint)) {
                    // A note has one time, of what is due: of what will be, it says that there is something to find.
                    if *at > now.plus(NOW) {
                        pending.is_more = true;
                        continue;
                    }
                    if pending.endpoints.len() >= NAMED_MAX {
                        pending.is_more = true;
                        return;
                    }
                    pending.endpoints.insert(*endpoint);
                    pending.at = Some(pending.at.map_or(*at, |first| first.min(*at)));
                }
            }
        }
    }

    /// When to tell; `None` while there is nothing.
    pub(super) fn tell_at(&self) -> Option<Instant> {
        let Pending { endpoints, is_more, is_grown, changed, .. } = &self.pending;
        let is_any = !endpoints.is_empty() || !changed.is_empty() || *is_more || *is_grown;
        is_any.then_some(self.next_at)
    }

    /// What is to be told, which is done herewith.
    pub(super) fn take(&mut self, now: Instant) -> Work {
        self.next_at = now + EVERY_MIN;
        self.growth.iter_mut().for_each(watch::Receiver::mark_unchanged);
        let Pending { endpoints, at, is_more, is_grown, changed } = std::mem::take(&mut self.pending);
        let at = at.unwrap_or(Timestamp::from_micros(0));
        let (endpoints, changed) = (endpoints.into_iter().collect(), changed.into_iter().collect());
        Work { endpoints, at, is_more, is_grown, changed }
    }
}

async fn next_hint(due: &mut Option<broadcast::Receiver<Hint>>) -> Deed {
    let Some(hints) = due else { return std::future::pending().await };
    match hints.recv().await {
        Ok(hint) => Deed::Due(hint),
        Err(broadcast::error::RecvError::Lagged(_)) => Deed::Missed,
        Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
    }
}

async fn next_growth(growth: &mut Option<watch::Receiver<u64>>) {
    let Some(growth) = growth else { return std::future::pending().await };
    if growth.changed().await.is_err() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::rendezvous::Driver;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn made(count: u128, at: Timestamp) -> Deed {
        let due = |n| Due { endpoint: EndpointId::from_uuid(Uuid::from_u128(n)), at, priority: None };
        Deed::Due(Hint::Made((0..count).map(due).collect()))
    }

    #[test]
    fn deeds_are_gathered_into_one_note() {
        let now = Instant::now();
        let mut telling = Telling::new(now);
        assert_eq!(telling.tell_at(), None);
        telling.gather(made(3, at(5)), &View::default(), at(9));
        telling.gather(made(2, at(4)), &View::default(), at(9));
        telling.gather(made(9, at(15)), &View::default(), at(9));
        telling.gather(Deed::Grown, &View::default(), at(9));
        assert_eq!(telling.tell_at(), Some(now), "at once");
        let work = telling.take(now);
        assert_eq!((work.endpoints.len(), work.at, work.is_more, work.is_grown), (3, at(4), false, true));
        assert_eq!(telling.tell_at(), None);
        telling.gather(Deed::Missed, &View::default(), at(9));
        assert_eq!(telling.tell_at(), Some(now + EVERY_MIN));
        assert!(telling.take(now).is_more);
        telling.gather(made(9, at(11)), &View::default(), at(9));
        let work = telling.take(now);
        assert_eq!((work.endpoints.len(), work.is_more), (0, true), "what will be due soon is there to be found");
    }

    #[test]
    fn ones_own_lanes_are_told_to_nobody() {
        let mut telling = Telling::new(Instant::now());
        let me = Uuid::from_u128(7);
        telling.gather(made(3, at(5)), &View::of(me, vec![Driver::new(me, "me")]), at(9));
        telling.gather(changed(3), &View::of(me, vec![Driver::new(me, "me")]), at(9));
        assert_eq!(telling.tell_at(), None);
    }

    fn changed(n: u128) -> Deed {
        Deed::Due(Hint::Changed(EndpointId::from_uuid(Uuid::from_u128(n))))
    }

    #[test]
    fn each_changed_endpoint_is_named_once() {
        let now = Instant::now();
        let mut telling = Telling::new(now);
        [3, 4, 3].into_iter().for_each(|n| telling.gather(changed(n), &View::default(), at(9)));
        assert_eq!(telling.tell_at(), Some(now));
        let work = telling.take(now);
        assert_eq!((work.changed.len(), work.endpoints.len(), work.is_more), (2, 0, false));
        (0..=NAMED_MAX as u128).for_each(|n| telling.gather(changed(n), &View::default(), at(9)));
        assert!(telling.take(now).is_more);
    }

    #[test]
    fn what_is_too_much_to_name_is_a_reason_to_look() {
        let mut telling = Telling::new(Instant::now());
        telling.gather(made(NAMED_MAX as u128 + 1, at(5)), &View::default(), at(9));
        let work = telling.take(Instant::now());
        assert_eq!((work.endpoints.len(), work.is_more), (NAMED_MAX, true));
    }
}
