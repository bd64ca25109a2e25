//! Offering a lane's room to what is being published, and taking up what took it: a delivery that is claimed by the
//! statement which publishes it spares the claim, and most do while their lanes keep up.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use super::{Scheduler, UNREADABLE_PAUSE};
use crate::domain::id::EndpointId;
use crate::engine::claims::{self, Done, Unstarted};
use crate::store::{self, Taken};
use crate::telemetry::log::few;

/// What was taken, made ready.
pub(super) struct Arrival {
    view: u64,
    room: Vec<(EndpointId, u32)>,
    outcome: store::Result<Done>,
}

impl Scheduler {
    /// Lets what is published take the offers while claims may be made, and the process has room.
    pub(super) fn open_offers(&self) {
        let is_open = self.may_claim() && self.held < self.in_flight_max;
        self.shared.store.offers().close_at(is_open.then(|| self.tenure.until()));
    }

    /// Offers what room a lane has to what is being published, or takes back what it should not offer any more.
    pub(super) fn offer(&mut self, endpoint: EndpointId, now: Instant) {
        let may_offer = self.quotas.are_none() && self.view.owns(endpoint);
        let Some(lane) = self.lanes.get_mut(&endpoint) else { return };
        let offers = self.shared.store.offers();
        let may_offer = may_offer && lane.may_offer(now);
        if lane.is_offering() && (!may_offer || lane.offerable() < 0) {
            lane.end_offer(offers.withdraw(endpoint));
        }
        if let Ok(room @ 1..) = u32::try_from(lane.offerable())
            && may_offer
        {
            offers.offer(endpoint, lane.gate.known().0, room);
            lane.offer(room);
        }
    }

    /// Takes back what all of them offer: what is taken from now on is taken under this view. Answers how many takings
    /// before it have yet to arrive.
    pub(super) fn withdraw_all(&mut self, view: u64) -> usize {
        let (left, begun) = self.shared.store.offers().withdraw_all(view);
        for (endpoint, room) in left {
            if let Some(lane) = self.lanes.get_mut(&endpoint) {
                lane.end_offer(room);
            }
        }
        usize::try_from(begun - self.arrived).unwrap_or(usize::MAX)
    }

    /// Makes ready what a publish has claimed.
    pub(super) fn take_in_taken(&mut self, taken: Taken) {
        let shared = Arc::clone(&self.shared);
        self.arrivals.spawn(async move {
            let (view, room) = (taken.view, taken.room.clone());
            Arrival { view, room, outcome: claims::take_up(&shared, taken).await }
        });
    }

    /// What was taken is here, or will not come.
    pub(super) fn end_arrival(&mut self, Arrival { view, room, outcome }: Arrival) {
        let now = Instant::now();
        self.arrived += 1;
        self.passing.end_claim(view);
        for (endpoint, room) in &room {
            if let Some(lane) = self.lanes.get_mut(endpoint) {
                lane.end_offer(*room);
            }
        }
        match outcome {
            Ok(mut done) => {
                self.held += done.claimed.len();
                let unreadable = std::mem::take(&mut done.unreadable);
                self.dispatch(done);
                unreadable.into_iter().for_each(|endpoint| self.hold(endpoint, UNREADABLE_PAUSE, now));
            }
            Err(error) => {
                let endpoints = few(room.iter().map(|(endpoint, _)| endpoint));
                tracing::warn!(%error, %endpoints, "what was published is handed back: its requests could not be made ready");
            }
        }
        let endpoints = || room.iter().map(|(endpoint, _)| *endpoint);
        endpoints().for_each(|endpoint| self.go_on(endpoint, now));
        self.hand_back_foreign(endpoints());
    }

    /// What had been taken when the last view ended, and was not started: it goes back. Waits for what is under way.
    pub(super) async fn end_offers(&mut self, taken: &mut mpsc::UnboundedReceiver<Taken>) -> Vec<Unstarted> {
        let to_come = self.withdraw_all(u64::MAX).saturating_sub(self.arrivals.len());
        let mut unstarted = Vec::new();
        for _ in 0..to_come {
            unstarted.extend(taken.recv().await.into_iter().flat_map(|taken| taken.claimed).map(Unstarted::from));
        }
        while let Some(Ok(arrival)) = self.arrivals.join_next().await {
            unstarted.extend(arrival.outcome.into_iter().flat_map(Done::into_unstarted));
        }
        unstarted
    }
}
