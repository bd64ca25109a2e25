//! Lanes that come and go: what is handed back, what others still have in flight, and when all of it has been passed on.
//!
//! A lane that comes here may have requests under way elsewhere. They are found before its first claim, count towards
//! the endpoint's cap, and are followed until each has ended or its lease has lapsed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::Scheduler;
use crate::domain::id::{DeliveryId, EndpointId};
use crate::engine::membership::Handover;
use crate::store::{Due, Elsewhere, Followed, LaneRequest};

/// How long after a change of hands a lane that is new here is looked at for what others have in flight: longer than an
/// attempt lasts (300 s) and its result waits.
const RECENT: Duration = Duration::from_secs(600);
/// How often what others have in flight is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);
/// Deliveries followed by one statement.
const FOLLOW_BATCH: usize = 1_000;

/// What is on its way from one replica to another.
#[derive(Default)]
pub(super) struct Passing {
    changed_at: Option<Instant>,
    /// How many views there were.
    views: u64,
    /// Claims under way that were begun under an earlier view, and who waits for their end.
    earlier_claims: usize,
    settled: Option<oneshot::Sender<()>>,
    /// What others have in flight at endpoints whose lanes are here, each by the claim that holds it.
    elsewhere: HashMap<DeliveryId, (EndpointId, i32)>,
    following: JoinSet<Option<Found>>,
}

/// What those that were looked for have come to.
pub(super) struct Found {
    asked: Vec<DeliveryId>,
    outstanding: Vec<Followed>,
}

impl Passing {
    /// How many views there were.
    pub(super) const fn views(&self) -> u64 {
        self.views
    }

    /// Since when the lanes have been here that are.
    pub(super) const fn changed_at(&self) -> Option<Instant> {
        self.changed_at
    }

    /// Whether a lane that is new here may have been another's a moment ago.
    pub(super) fn is_recent(&self, now: Instant) -> bool {
        self.changed_at.is_some_and(|at| now.saturating_duration_since(at) < RECENT)
    }

    /// A claim that was begun after so many views has ended.
    pub(super) fn end_claim(&mut self, views: u64) {
        if views < self.views {
            self.earlier_claims = self.earlier_claims.saturating_sub(1);
            self.settle();
        }
    }

    fn settle(&mut self) {
        if self.earlier_claims == 0
            && let Some(settled) = self.settled.take()
        {
            // Nobody waiting for it any more is no error.
            let _ = settled.send(());
        }
    }

    /// What has become of what is followed; never, while nothing is. Safe to drop while it waits.
    pub(super) async fn followed(&mut self) -> Option<Found> {
        match self.following.join_next().await {
            Some(Ok(found)) => found,
            Some(Err(_)) => None,
            None => std::future::pending().await,
        }
    }
}

impl Scheduler {
    /// Other lanes are this replica's from now on.
    pub(super) fn change_hands(&mut self, Handover { view, settled }: Handover) {
        let (now, before) = (Instant::now(), std::mem::replace(&mut self.view, view));
        let mut given_up = Vec::new();
        for (endpoint, lane) in &mut self.lanes {
            match (before.owns(*endpoint), self.view.owns(*endpoint)) {
                (true, false) => given_up.extend(lane.leave(now)),
                (false, true) => lane.take_over(now),
                _ => {}
            }
        }
        self.hand_back(given_up);
        self.shared.takes_up.send_replace(self.view.owns(EndpointId::from_uuid(uuid::Uuid::nil())));
        self.quotas.share_among(self.view.count(), now);
        self.alarms.retain(|(_, endpoint, _)| self.view.owns(*endpoint));
        self.openings.retain(|(_, endpoint)| self.view.owns(*endpoint));
        // What is offered from now on is offered under the next view.
        let to_arrive = self.withdraw_all(self.passing.views + 1);
        let passing = &mut self.passing;
        passing.elsewhere.retain(|_, (endpoint, _)| before.owns(*endpoint) && self.view.owns(*endpoint));
        passing.changed_at = Some(now);
        passing.views += 1;
        passing.earlier_claims = self.claims.len() + to_arrive;
        passing.settled = Some(settled);
        passing.settle();
        self.hurry.notify_one();
    }

    /// Which of the lanes asked for are to be looked at first.
    pub(super) fn unsure(&self, asked: &[LaneRequest]) -> Vec<EndpointId> {
        let is_unsure = |endpoint: &EndpointId| self.lanes.get(endpoint).is_some_and(|lane| lane.is_unsure());
        asked.iter().map(|request| request.endpoint).filter(is_unsure).collect()
    }

    /// What others have in flight counts from now on.
    pub(super) fn take_in_elsewhere(&mut self, found: &[Elsewhere]) {
        for Elsewhere { endpoint, max_in_flight, held } in found {
            // A lane that has gone on meanwhile is looked at anew where it comes back.
            if let Some(lane) = self.lanes.get_mut(endpoint).filter(|_| self.view.owns(*endpoint)) {
                lane.set_elsewhere(held.len(), *max_in_flight);
                let followed = held.iter().map(|(id, claim_gen)| (*id, (*endpoint, *claim_gen)));
                self.passing.elsewhere.extend(followed);
            }
        }
        self.follow();
    }

    /// Follows what others have in flight, while there is any.
    fn follow(&mut self) {
        if self.passing.elsewhere.is_empty() || !self.passing.following.is_empty() {
            return;
        }
        let asked: Vec<DeliveryId> = self.passing.elsewhere.keys().copied().collect();
        let shared = std::sync::Arc::clone(&self.shared);
        self.passing.following.spawn(async move {
            tokio::time::sleep(FOLLOW_EVERY).await;
            let mut outstanding = Vec::new();
            for batch in asked.chunks(FOLLOW_BATCH) {
                match shared.store.follow(batch).await {
                    Ok(found) => outstanding.extend(found),
                    Err(error) => {
                        tracing::debug!(%error, "what others have in flight could not be looked at");
                        return None;
                    }
                }
            }
            Some(Found { asked, outstanding })
        });
    }

    /// Makes room where what others had in flight has ended.
    pub(super) fn take_in_followed(&mut self, found: Option<Found>) {
        if let Some(Found { asked, outstanding }) = found {
            let outstanding: HashMap<DeliveryId, Followed> = outstanding.into_iter().map(|one| (one.id, one)).collect();
            for id in asked {
                let Some((endpoint, claim_gen)) = self.passing.elsewhere.get(&id).copied() else { continue };
                let now = outstanding.get(&id);
                if now.is_some_and(|now| now.claim_gen == claim_gen && now.is_held) {
                    continue;
                }
                self.passing.elsewhere.remove(&id);
                if let Some(lane) = self.lanes.get_mut(&endpoint) {
                    lane.end_elsewhere();
                }
                // Handed back, lapsed, or to be retried: it is waiting again.
                if let Some(waiting) = now.filter(|now| !now.is_held) {
                    self.learn(Due { endpoint, at: waiting.due_at, priority: waiting.priority });
                }
                self.start_ready(endpoint);
                self.queue(endpoint);
            }
        }
        self.follow();
    }

    /// What was claimed for a lane that is another's by now, and could not be started at once, goes back.
    pub(super) fn hand_back_foreign(&mut self, claimed_for: impl Iterator<Item = EndpointId>) {
        let now = Instant::now();
        let mut foreign = Vec::new();
        for endpoint in claimed_for {
            if let Some(lane) = self.lanes.get_mut(&endpoint).filter(|_| !self.view.owns(endpoint)) {
                foreign.extend(lane.leave(now));
            }
        }
        self.hand_back(foreign);
    }
}
