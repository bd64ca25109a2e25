//! Learning what lets a lane's requests through, and looking at lanes again when a gate opens by itself.
//!
//! A change is told by a hint, seen by the sweep, or met by a claim that is refused; what it is, is then read.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::Scheduler;
use crate::domain::id::EndpointId;
use crate::domain::time::Timestamp;
use crate::store::{self, Due, Gates, Swept};
use crate::telemetry::log::tried_again;

/// Endpoints read by one statement.
const READ_MAX: usize = 256;
/// The wait after a read that failed.
const READ_RETRY: Duration = Duration::from_millis(250);
/// Lanes that wait for a token to claim for are looked at together, so that many slow ones share their claims: well
/// within what they claim ahead.
const GRAIN: Duration = Duration::from_millis(50);

/// Lanes of which more is to be known.
#[derive(Default)]
pub(super) struct Learning {
    wanted: HashSet<EndpointId>,
    reading: JoinSet<Read>,
}

/// What was read of these lanes' endpoints.
pub(super) struct Read {
    asked: Vec<EndpointId>,
    outcome: store::Result<Vec<Gates>>,
}

impl Learning {
    /// What has been read; never, while nothing is. Safe to drop while it waits.
    pub(super) async fn read(&mut self) -> Option<Read> {
        match self.reading.join_next().await {
            Some(read) => read.ok(),
            None => std::future::pending().await,
        }
    }
}

impl Scheduler {
    /// Something of an endpoint has changed that lets its requests through: then whatever waits may be due.
    pub(super) fn take_in_change(&mut self, endpoint: EndpointId) {
        if self.view.owns(endpoint) {
            self.lane(endpoint, Instant::now()).wake(Timestamp::from_micros(i64::MIN), None);
            self.find_out(endpoint);
            self.queue(endpoint);
        }
    }

    /// Takes in what the sweep found, and whether the lane knows as much.
    pub(super) fn take_in_swept(&mut self, seen: &Swept) {
        let endpoint = seen.due.endpoint;
        if self.view.owns(endpoint) {
            let lane = self.lane(endpoint, Instant::now());
            if !lane.gate.agrees(seen) {
                self.find_out(endpoint);
            }
            self.learn_swept(seen.due);
        }
    }

    /// A claim was refused for want of knowledge.
    pub(super) fn take_in_refusal(&mut self, endpoint: EndpointId) {
        if let Some(lane) = self.lanes.get_mut(&endpoint) {
            lane.gate.refuse();
            self.find_out(endpoint);
        }
    }

    fn find_out(&mut self, endpoint: EndpointId) {
        self.learning.wanted.insert(endpoint);
        self.read_next(Duration::ZERO);
    }

    /// One read at a time: what is told of meanwhile is read after it.
    fn read_next(&mut self, wait: Duration) {
        let learning = &mut self.learning;
        if learning.wanted.is_empty() || !learning.reading.is_empty() {
            return;
        }
        let asked: Vec<EndpointId> = learning.wanted.iter().take(READ_MAX).copied().collect();
        learning.wanted.retain(|endpoint| !asked.contains(endpoint));
        let shared = std::sync::Arc::clone(&self.shared);
        learning.reading.spawn(async move {
            tokio::time::sleep(wait).await;
            let outcome = shared.store.gates(&asked).await;
            Read { asked, outcome }
        });
    }

    pub(super) fn take_in_gates(&mut self, read: Option<Read>) {
        let Some(Read { asked, outcome }) = read else { return self.read_next(READ_RETRY) };
        let found = match outcome {
            Ok(found) => found,
            Err(error) => {
                tried_again!(error, "what lets lanes' requests through could not be read; trying again");
                self.learning.wanted.extend(asked);
                return self.read_next(READ_RETRY);
            }
        };
        let now = Instant::now();
        for endpoint in asked {
            let gates = found.iter().find(|one| one.endpoint == endpoint);
            let probe_at =
                gates.and_then(|gates| gates.circuit_until).map(|at| self.shared.store.clock().instant_of(at));
            let Some(lane) = self.lanes.get_mut(&endpoint) else { continue };
            match gates {
                Some(gates) => {
                    lane.gate.take_in(gates, probe_at, now);
                    lane.set_max_in_flight(gates.max_in_flight);
                }
                None => lane.gate.stop(),
            }
            let shut_out = lane.give_up_shut(now);
            self.hand_back(shut_out);
            self.start_ready(endpoint);
            self.queue(endpoint);
        }
        self.read_next(Duration::ZERO);
    }

    /// Has the lane looked at when a gate of it opens by itself.
    pub(super) fn watch(&mut self, endpoint: EndpointId, now: Instant) {
        let Some(lane) = self.lanes.get(&endpoint) else { return };
        let is_exact = lane.has_ready();
        let opens_at = lane.opens_at(now).map(|at| if is_exact { at } else { self.rounded(at) });
        let Some(lane) = self.lanes.get_mut(&endpoint) else { return };
        let before = std::mem::replace(&mut lane.opening, opens_at);
        if before != opens_at {
            before.map(|at| self.openings.remove(&(at, endpoint)));
            opens_at.map(|at| self.openings.insert((at, endpoint)));
        }
    }

    fn rounded(&self, at: Instant) -> Instant {
        let grains = at.saturating_duration_since(self.started).as_nanos().div_ceil(GRAIN.as_nanos());
        self.started + GRAIN * u32::try_from(grains).unwrap_or(u32::MAX)
    }

    /// Looks at the lanes of which a gate has opened.
    pub(super) fn open_gates(&mut self) {
        let now = Instant::now();
        // Those stand in no other queue.
        self.hungry.extend(self.quotas.opened(now));
        while let Some((_, endpoint)) = self.openings.first().copied().filter(|(at, _)| *at <= now) {
            self.openings.pop_first();
            if let Some(lane) = self.lanes.get_mut(&endpoint).filter(|_| self.view.owns(endpoint)) {
                lane.opening = None;
                self.start_ready(endpoint);
                self.queue(endpoint);
            }
        }
    }

    /// When to look at the gates next, if at any time.
    pub(super) fn next_opening(&self) -> Option<Instant> {
        self.openings.first().map(|(at, _)| *at).into_iter().chain(self.quotas.next_opening()).min()
    }

    /// What was held ready behind a gate that has shut goes back.
    pub(super) fn hand_back_shut(&mut self, endpoint: EndpointId, now: Instant) {
        if let Some(lane) = self.lanes.get_mut(&endpoint) {
            let shut_out = lane.give_up_shut(now);
            self.hand_back(shut_out);
        }
    }

    /// Sets the alarm of a lane that a Retry-After holds.
    pub(super) fn hold(&mut self, endpoint: EndpointId, wait: Duration, now: Instant) {
        if let Some(lane) = self.lanes.get_mut(&endpoint) {
            lane.hold(now + wait);
        }
        let at = self.shared.store.clock().now().plus(wait);
        self.set_alarm(Due { endpoint, at, priority: None }, now);
    }
}
