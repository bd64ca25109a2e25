//! What lets a lane's requests through beside its cap: the endpoint's state, its circuit and its rate limit, as far as
//! they are known here. Pure bookkeeping; every instant is passed in.
//!
//! The database has the last word: a claim gives nothing to a lane that does not know a gate as it is.

use std::time::{Duration, Instant};

use crate::domain::circuit::{Admission, Circuit};
use crate::domain::fields::Tenant;
use crate::domain::rate::{Bucket, RateLimit};
use crate::domain::time::Timestamp;
use crate::store::{Gates, Swept};

/// How long before its token a delivery is claimed: longer than a claim takes where the machine is busy, so that no token
/// waits for the database.
const AHEAD: Duration = Duration::from_millis(200);

/// The gates of one lane.
#[derive(Debug)]
pub(super) struct Gate {
    /// The endpoint's version that is known; 0 is none.
    version: i64,
    /// Whether the endpoint is paused, disabled or deleted.
    is_stopped: bool,
    /// Whether a claim was refused since: nothing is asked for until more is known.
    is_refused: bool,
    circuit: Circuit,
    /// The circuit as the database has it.
    circuit_until: Option<Timestamp>,
    bucket: Option<Bucket>,
    /// Whose the endpoint is.
    tenant: Option<Tenant>,
    /// Since when the lane is here: a limit that is learned of has saved up nothing before.
    since: Instant,
}

impl Gate {
    /// The gates of a lane that has been here since then, of which nothing is known.
    pub(super) fn new(since: Instant) -> Self {
        Self {
            version: 0,
            is_stopped: false,
            is_refused: false,
            circuit: Circuit::default(),
            circuit_until: None,
            bucket: None,
            tenant: None,
            since,
        }
    }

    /// Whose the endpoint is, where that is known.
    pub(super) const fn tenant(&self) -> Option<&Tenant> {
        self.tenant.as_ref()
    }

    /// Since when the lane is here.
    pub(super) const fn since(&self) -> Instant {
        self.since
    }

    /// What a claim has to name: the version, and the circuit.
    pub(super) const fn known(&self) -> (i64, Option<Timestamp>) {
        (self.version, self.circuit_until)
    }

    /// Whether the sweep has seen nothing that is not known.
    pub(super) fn agrees(&self, seen: &Swept) -> bool {
        let is_current = self.version == 0 || self.version == seen.version;
        is_current && !self.is_stopped && self.circuit_until == seen.circuit_until
    }

    /// Whether nothing is sent to the endpoint, for longer than a circuit is open.
    pub(super) const fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// A claim was refused.
    pub(super) const fn refuse(&mut self) {
        self.is_refused = true;
    }

    /// The endpoint is gone.
    pub(super) const fn stop(&mut self) {
        (self.is_stopped, self.is_refused) = (true, false);
    }

    /// A claim went by this version's policies, which may be newer than those known.
    pub(super) fn take_in_policies(&mut self, version: i64, rate: Option<RateLimit>, threshold: u32, now: Instant) {
        if version <= self.version {
            return;
        }
        let empty_since = if self.version == 0 { self.since } else { now };
        self.bucket = match (self.bucket, rate) {
            (Some(bucket), Some(limit)) if bucket.limit() == limit => Some(bucket),
            (Some(mut bucket), Some(limit)) => {
                bucket.change(limit, now);
                Some(bucket)
            }
            (None, Some(limit)) => Some(Bucket::empty(limit, empty_since)),
            (_, None) => None,
        };
        self.circuit.set_threshold(threshold);
        self.version = version;
    }

    /// The gates as the database has them; `probe_at` is when an open circuit may be probed, on this process's clock.
    pub(super) fn take_in(&mut self, gates: &Gates, probe_at: Option<Instant>, now: Instant) {
        let has_moved = gates.version != self.version || gates.circuit_until != self.circuit_until;
        self.take_in_policies(gates.version, gates.rate_limit, gates.failure_threshold, now);
        (self.is_stopped, self.is_refused) = (!gates.is_active, false);
        self.tenant.get_or_insert_with(|| gates.tenant.clone());
        if has_moved {
            self.circuit.decide(probe_at);
            self.circuit_until = gates.circuit_until;
        }
    }

    /// How many deliveries may be held that have not started. `others` says that requests of another replica are under
    /// way, one of which may be a probe.
    pub(super) fn allowance(&self, others: bool, now: Instant) -> u32 {
        if self.is_stopped || self.is_refused {
            return 0;
        }
        let admitted = match self.circuit.admits(now) {
            Admission::All => u32::MAX,
            Admission::Probe if !others => 1,
            Admission::Probe | Admission::Nothing => 0,
        };
        let tokens = self.bucket.map_or(u32::MAX, |bucket| bucket.count_within(AHEAD, now));
        admitted.min(tokens)
    }

    /// Whether nothing but the endpoint's cap keeps requests back, and that is known of a version of it.
    pub(super) fn is_wide_open(&self, now: Instant) -> bool {
        let is_known = self.version != 0 && !self.is_refused;
        let is_closed_circuit = self.circuit_until.is_none() && self.circuit.admits(now) == Admission::All;
        is_known && !self.is_stopped && self.bucket.is_none() && is_closed_circuit
    }

    /// Whether a request may start now; if so, it does.
    pub(super) fn start(&mut self, now: Instant) -> bool {
        let is_admitted = !self.is_shut(now) && self.bucket.as_mut().is_none_or(|bucket| bucket.take(now));
        if is_admitted {
            self.circuit.start();
        }
        is_admitted
    }

    /// A request has ended; `is_last` where none is under way any more.
    pub(super) fn end(&mut self, is_success: Option<bool>, is_probe: bool, is_last: bool, now: Instant) {
        self.circuit.end(is_success, is_probe, now);
        if is_last {
            self.circuit.rest();
        }
    }

    /// Whether what is held goes back: nothing starts for longer than a token takes to come.
    pub(super) fn is_shut(&self, now: Instant) -> bool {
        self.is_stopped || self.circuit.admits(now) == Admission::Nothing
    }

    /// When more may be let through than now, if that follows by itself: a start, where something is ready, or else a
    /// claim.
    pub(super) fn opens_at(&self, has_ready: bool, now: Instant) -> Option<Instant> {
        let token = self.bucket.map(|bucket| {
            let next_at = bucket.next_at(now);
            if has_ready { next_at } else { next_at.checked_sub(AHEAD).unwrap_or(now) }
        });
        self.circuit.changes_at(now).max(token.filter(|at| *at > now))
    }

    /// Whether nothing is lost by forgetting what was saved up.
    pub(super) fn is_forgettable(&self, now: Instant) -> bool {
        self.bucket.is_none_or(|bucket| bucket.is_full(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::EndpointId;
    use crate::store::Due;

    const SECOND: Duration = Duration::from_secs(1);

    fn gates(version: i64, rate: Option<(f64, u32)>) -> Gates {
        Gates {
            endpoint: EndpointId::from_uuid(uuid::Uuid::nil()),
            tenant: Tenant::default_tenant(),
            version,
            is_active: true,
            max_in_flight: 64,
            rate_limit: rate.map(|(per_second, burst)| RateLimit { per_second, burst }),
            failure_threshold: 1,
            circuit_until: None,
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn a_limit_has_saved_up_nothing_from_before_the_lane_came_here() {
        let start = Instant::now();
        let mut gate = Gate::new(start);
        let now = start + 3 * SECOND;
        gate.take_in(&gates(1, Some((1.0, 10))), None, now);
        assert_eq!(std::iter::from_fn(|| gate.start(now).then_some(())).count(), 3);
        gate.take_in(&gates(2, None), None, now);
        assert_eq!(gate.allowance(false, now), u32::MAX);
        gate.take_in(&gates(3, Some((1.0, 10))), None, now + SECOND);
        assert!(!gate.start(now + SECOND), "nor from when there was none");
        assert!(gate.start(now + 2 * SECOND));
    }

    #[test]
    fn deliveries_are_claimed_a_little_before_their_tokens() {
        let now = Instant::now();
        let mut gate = Gate::new(now);
        gate.take_in(&gates(1, Some((1.0, 1))), None, now);
        assert_eq!(gate.allowance(false, now), 0);
        assert_eq!(gate.opens_at(false, now), Some(now + SECOND - AHEAD));
        assert_eq!(gate.opens_at(true, now), Some(now + SECOND));
        assert_eq!(gate.allowance(false, now + SECOND - AHEAD), 1);
        assert!(!gate.start(now + SECOND - AHEAD) && gate.start(now + SECOND));
        assert!(!gate.is_forgettable(now + SECOND) && gate.is_forgettable(now + 2 * SECOND));
    }

    #[test]
    fn older_policies_than_those_known_change_nothing() {
        let now = Instant::now();
        let mut gate = Gate::new(now);
        gate.take_in(&gates(5, Some((1.0, 1))), None, now);
        gate.take_in_policies(4, None, 0, now);
        assert_eq!((gate.allowance(false, now), gate.known()), (0, (5, None)));
    }

    #[test]
    fn a_stopped_or_refused_lane_asks_for_nothing_until_more_is_known() {
        let now = Instant::now();
        let mut gate = Gate::new(now);
        gate.refuse();
        assert_eq!((gate.allowance(false, now), gate.is_shut(now)), (0, false));
        gate.take_in(&Gates { is_active: false, ..gates(2, None) }, None, now);
        assert_eq!((gate.allowance(false, now), gate.is_shut(now), gate.start(now)), (0, true, false));
        gate.take_in(&gates(3, None), None, now);
        assert!(gate.start(now));
        gate.stop();
        assert!(!gate.start(now));
    }

    #[test]
    fn an_open_circuit_is_probed_once_where_nobody_else_may_be_probing() {
        let now = Instant::now();
        let mut gate = Gate::new(now);
        gate.take_in(&Gates { circuit_until: Some(at(9)), ..gates(1, None) }, Some(now + SECOND), now);
        assert_eq!((gate.allowance(false, now), gate.opens_at(false, now)), (0, Some(now + SECOND)));
        let later = now + SECOND;
        assert_eq!((gate.allowance(true, later), gate.allowance(false, later)), (0, 1));
        assert!(gate.start(later) && !gate.start(later));
        gate.end(Some(true), true, true, later);
        assert!(gate.is_shut(later), "the verdict is waited for");
        gate.take_in(&gates(1, None), None, later);
        assert_eq!(gate.allowance(false, later), u32::MAX);
    }

    #[test]
    fn the_sweep_tells_of_what_changed_unheard() {
        let now = Instant::now();
        let mut gate = Gate::new(now);
        let due = Due { endpoint: EndpointId::from_uuid(uuid::Uuid::nil()), at: at(1), priority: None };
        let seen = |version, circuit_until| Swept { due, version, circuit_until };
        assert!(gate.agrees(&seen(7, None)) && !gate.agrees(&seen(7, Some(at(9)))));
        gate.take_in(&Gates { circuit_until: Some(at(9)), ..gates(7, None) }, Some(now), now);
        assert!(gate.agrees(&seen(7, Some(at(9)))));
        assert!(!gate.agrees(&seen(8, Some(at(9)))) && !gate.agrees(&seen(7, None)));
        gate.stop();
        assert!(!gate.agrees(&seen(7, Some(at(9)))), "it would not be found if it were stopped");
    }
}
