//! Alarms: when to wake which lane for what is not due yet, retries and deliveries that are put off.
//!
//! A lane has the nearest alarms only. Where more may follow, as when the sweep found something that nobody told of, the
//! database is asked for the next ones when the last of them has rung: for many lanes at once, one look at a time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinSet;

use super::Scheduler;
use crate::domain::id::EndpointId;
use crate::domain::time::Timestamp;
use crate::store::{self, Due};

/// Alarms of one lane.
const ALARMS_MAX: usize = 64;
/// Alarms are set on multiples of this, in microseconds, so that retries of one moment share one.
const GRAIN_MICROS: i64 = 20_000;
/// Lanes of one look.
const LANES_MAX: usize = 256;

/// What is looked for beyond the alarms that are set.
#[derive(Default)]
pub(super) struct Ahead {
    /// Lanes whose last alarm has rung, and when.
    wanted: BTreeMap<EndpointId, Timestamp>,
    looking: JoinSet<Seen>,
    /// Whether another replica has told of something, but not of what: the next sweep's finds may not be all.
    pub(super) was_told_to_look: bool,
}

/// What a look found.
pub(super) struct Seen {
    asked: BTreeMap<EndpointId, Timestamp>,
    found: store::Result<Vec<Due>>,
}

impl Ahead {
    /// What a look has found; never, while none is under way. Safe to drop while it waits.
    pub(super) async fn seen(&mut self) -> Option<Seen> {
        match self.looking.join_next().await {
            Some(seen) => seen.ok(),
            None => std::future::pending().await,
        }
    }
}

impl Scheduler {
    /// There may be more than anybody told of.
    pub(super) fn look_at_everything(&mut self) {
        self.ahead.was_told_to_look = true;
        self.hurry.notify_one();
    }

    /// Takes in what the sweep found: the first of its lane's, behind which may be more that is news.
    pub(super) fn learn_swept(&mut self, due: Due) {
        let is_to_come = due.at > self.shared.store.clock().now();
        if !is_to_come {
            return self.learn(due);
        }
        let is_news = self.set_alarm(due, Instant::now());
        if (is_news || self.ahead.was_told_to_look)
            && let Some(lane) = self.lanes.get_mut(&due.endpoint)
        {
            lane.overlooks = true;
        }
    }

    /// Sets an alarm, unless nearer ones take the lane's place for it; answers whether it was news.
    pub(super) fn set_alarm(&mut self, due: Due, now: Instant) -> bool {
        if !self.view.owns(due.endpoint) {
            return false;
        }
        let grains = due.at.micros().div_euclid(GRAIN_MICROS) + 1;
        let alarm = (Timestamp::from_micros(grains * GRAIN_MICROS), due.priority);
        let lane = self.lane(due.endpoint, now);
        if !lane.alarms.insert(alarm) {
            return false;
        }
        let dropped = if lane.alarms.len() > ALARMS_MAX { lane.alarms.pop_last() } else { None };
        lane.overlooks |= dropped.is_some();
        self.alarms.insert((alarm.0, due.endpoint, alarm.1));
        if let Some((at, priority)) = dropped {
            self.alarms.remove(&(at, due.endpoint, priority));
        }
        true
    }

    /// When to look at the alarms next, if at any time.
    pub(super) fn next_alarm(&self) -> Option<Instant> {
        let first = self.alarms.first().map(|(at, ..)| self.shared.store.clock().instant_of(*at));
        self.paused_until.into_iter().chain(first).min()
    }

    pub(super) fn ring_alarms(&mut self) {
        if self.paused_until.is_some_and(|until| until <= Instant::now()) {
            self.paused_until = None;
        }
        let now = self.shared.store.clock().now();
        while let Some((at, endpoint, priority)) = self.alarms.first().copied().filter(|(at, ..)| *at <= now) {
            self.alarms.pop_first();
            if let Some(lane) = self.lanes.get_mut(&endpoint) {
                lane.alarms.remove(&(at, priority));
                if lane.alarms.is_empty() && lane.overlooks {
                    self.ahead.wanted.entry(endpoint).or_insert(at);
                }
                // The alarm was rounded up; what it was set for is due a little before it.
                lane.wake(Timestamp::from_micros(at.micros() - GRAIN_MICROS), priority);
                self.queue(endpoint);
            }
        }
    }

    /// Asks what falls due next in the lanes whose alarms have rung.
    pub(super) fn look_ahead(&mut self) {
        if self.ahead.wanted.is_empty() || !self.ahead.looking.is_empty() || self.paused_until.is_some() {
            return;
        }
        let mut asked = std::mem::take(&mut self.ahead.wanted);
        if let Some(beyond) = asked.keys().nth(LANES_MAX).copied() {
            self.ahead.wanted = asked.split_off(&beyond);
        }
        let shared = Arc::clone(&self.shared);
        self.ahead.looking.spawn(async move {
            let endpoints: Vec<EndpointId> = asked.keys().copied().collect();
            // What fell due since the first of the alarms may have come too late for the claim that it caused.
            let since = asked.values().min().copied().unwrap_or(Timestamp::from_micros(0));
            let found = shared.store.upcoming(&endpoints, since, ALARMS_MAX).await;
            Seen { asked, found }
        });
    }

    pub(super) fn take_in_seen(&mut self, seen: Option<Seen>) {
        let Some(Seen { asked, found }) = seen else { return };
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "what falls due next could not be looked at; the sweep finds it");
                Vec::new()
            }
        };
        let mut counts = HashMap::new();
        for due in &found {
            *counts.entry((due.endpoint, due.priority)).or_insert(0) += 1;
        }
        for endpoint in asked.keys() {
            if let Some(lane) = self.lanes.get_mut(endpoint) {
                lane.overlooks = false;
            }
        }
        for ((endpoint, _), count) in counts {
            if let Some(lane) = self.lanes.get_mut(&endpoint) {
                lane.overlooks |= count >= ALARMS_MAX;
            }
        }
        for due in found {
            self.learn(due);
        }
    }
}
