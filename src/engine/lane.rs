//! A lane: what the scheduler knows of one endpoint with work. Pure bookkeeping; every instant is passed in.

use std::time::Instant;

use crate::domain::time::Timestamp;

/// One endpoint's place in the scheduler.
#[derive(Debug)]
pub(super) struct Lane {
    /// Requests under way, and rows asked for in a claim under way.
    in_flight: u32,
    max_in_flight: u32,
    /// Whether work may be due.
    awake: bool,
    /// Whether a claim for this lane is under way.
    claiming: bool,
    /// Whether it stands in the scheduler's queue.
    pub(super) queued: bool,
    /// Nothing due before this is waiting, as far as we know.
    low_water: Timestamp,
    /// Set while a Retry-After holds the lane.
    held_until: Option<Instant>,
    /// Alarms set for it.
    pub(super) alarms: usize,
    last_active: Instant,
}

/// Rows claimed for one lane in one statement.
const CLAIM_MAX: u32 = 256;
/// How far behind the newest claimed row a lane looks again, in microseconds: commits of the same moment may come later.
const LOOK_BACK_MICROS: i64 = 250_000;

impl Lane {
    /// A lane about which nothing is known but that it may have work.
    pub(super) const fn new(max_in_flight: u32, now: Instant) -> Self {
        Self {
            in_flight: 0,
            max_in_flight,
            awake: false,
            claiming: false,
            queued: false,
            low_water: Timestamp::from_micros(i64::MIN),
            held_until: None,
            alarms: 0,
            last_active: now,
        }
    }

    /// Work is, or will by then be, due at `at`.
    pub(super) fn wake(&mut self, at: Timestamp) {
        self.awake = true;
        self.low_water = self.low_water.min(at);
    }

    /// How many rows to claim now; 0 when the lane is not hungry. `is_crowded` says that the process as a whole has
    /// as many requests under way as it should: then a lane gets one at a time.
    pub(super) fn room(&self, now: Instant, is_crowded: bool) -> u32 {
        let is_held = self.held_until.is_some_and(|until| until > now);
        if !self.awake || self.claiming || is_held {
            return 0;
        }
        let cap = if is_crowded { 1 } else { self.max_in_flight };
        cap.saturating_sub(self.in_flight).min(CLAIM_MAX)
    }

    /// A claim of `room` rows begins; answers where it may start.
    pub(super) fn begin_claim(&mut self, room: u32) -> Timestamp {
        self.claiming = true;
        self.awake = false;
        self.in_flight += room;
        self.low_water
    }

    /// The claim of `room` rows, begun at `asked_at`, gave `taken`, the last of them due at `last_due`.
    pub(super) fn end_claim(&mut self, room: u32, taken: u32, last_due: Option<Timestamp>, asked_at: Timestamp) {
        self.claiming = false;
        self.in_flight = self.in_flight.saturating_sub(room - taken.min(room));
        // The statement gives no more than the endpoint's own cap admits, which may be lower than the lane knew.
        let is_exhausted = taken < room && self.in_flight < self.max_in_flight;
        // Woken meanwhile: `wake` has lowered the mark to what it was told of, and it must stay there.
        let was_woken = self.awake;
        self.awake |= !is_exhausted;
        let seen = if is_exhausted { Some(asked_at) } else { last_due };
        if let Some(seen) = seen
            && !was_woken
        {
            self.low_water = self.low_water.max(Timestamp::from_micros(seen.micros() - LOOK_BACK_MICROS));
        }
    }

    /// The claim failed: everything is as before it.
    pub(super) const fn abandon_claim(&mut self, room: u32) {
        self.claiming = false;
        self.awake = true;
        self.in_flight = self.in_flight.saturating_sub(room);
    }

    /// A request has ended.
    pub(super) fn end_attempt(&mut self, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.last_active = now;
    }

    /// Nothing is sent before `until`.
    pub(super) fn hold(&mut self, until: Instant) {
        self.held_until = self.held_until.max(Some(until));
    }

    /// The endpoint's present cap.
    pub(super) const fn set_max_in_flight(&mut self, max: u32) {
        self.max_in_flight = max;
    }

    /// Whether nothing is lost by forgetting the lane.
    pub(super) fn is_idle(&self, now: Instant, idle_after: std::time::Duration) -> bool {
        self.in_flight == 0
            && !self.awake
            && !self.claiming
            && self.alarms == 0
            && self.held_until.is_none_or(|until| until <= now)
            && now.saturating_duration_since(self.last_active) > idle_after
    }

    /// Requests under way, and rows asked for.
    pub(super) const fn in_flight(&self) -> u32 {
        self.in_flight
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn a_lane_is_hungry_only_with_work_room_and_no_hold() {
        let now = Instant::now();
        let mut lane = Lane::new(3, now);
        assert_eq!(lane.room(now, false), 0);
        lane.wake(at(1));
        assert_eq!((lane.room(now, false), lane.room(now, true)), (3, 1));
        lane.hold(now + Duration::from_secs(1));
        assert_eq!(lane.room(now, false), 0);
        assert_eq!(lane.room(now + Duration::from_secs(1), false), 3);
    }

    #[test]
    fn a_claim_reserves_its_room_and_gives_back_what_it_did_not_take() {
        let now = Instant::now();
        let mut lane = Lane::new(3, now);
        lane.wake(at(1));
        lane.begin_claim(3);
        assert_eq!((lane.in_flight(), lane.room(now, false)), (3, 0));
        lane.end_claim(3, 1, Some(at(1)), at(10));
        assert_eq!(lane.in_flight(), 1);
        assert_eq!(lane.room(now, false), 0, "nothing more is due");
        lane.end_attempt(now);
        assert!(lane.is_idle(now + Duration::from_secs(2), Duration::from_secs(1)));
    }

    #[test]
    fn a_full_claim_stays_awake_and_goes_on_behind_what_it_took() {
        let mut lane = Lane::new(2, Instant::now());
        lane.wake(at(1));
        lane.begin_claim(2);
        lane.end_claim(2, 2, Some(at(5)), at(10));
        lane.end_attempt(Instant::now());
        assert_eq!(lane.room(Instant::now(), false), 1);
        assert_eq!(lane.begin_claim(1).micros(), at(5).micros() - LOOK_BACK_MICROS);
    }

    #[test]
    fn a_hint_during_a_claim_is_not_lost() {
        let mut lane = Lane::new(2, Instant::now());
        lane.wake(at(1));
        lane.begin_claim(2);
        lane.wake(at(3));
        lane.end_claim(2, 0, None, at(10));
        assert_eq!(lane.room(Instant::now(), false), 2);
        assert!(lane.begin_claim(1) <= at(3));
    }
}
