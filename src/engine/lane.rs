//! A lane: what the scheduler knows of one endpoint with work. Pure bookkeeping; every instant is passed in.
//!
//! The file is long because its rules and their tests belong side by side.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::attempt::Ended;
use super::gate::Gate;
use crate::domain::schedule::{ByPriority, Priority, Shares};
use crate::domain::time::Timestamp;

/// One endpoint's place in the scheduler; `R` is a claimed delivery that is ready to be sent.
#[derive(Debug)]
pub(super) struct Lane<R> {
    /// Requests under way.
    running: u32,
    /// Claimed ahead of the cap, to be started as soon as others end.
    ready: VecDeque<R>,
    /// Since when the first of `ready` waits, at least.
    ready_since: Instant,
    /// What other replicas have in flight at the endpoint, from when the lane was theirs.
    elsewhere: u32,
    /// Whether that is yet to be found out.
    unsure: bool,
    /// Requests that ended since the last claim: how fast the endpoint is.
    ended: u32,
    max_in_flight: u32,
    /// Requests that the receiver is trusted with at once, within the cap: more as it answers.
    trust: u32,
    /// Room that it offers to what is being published, or that was taken by what is not here yet.
    offered: u32,
    /// Whether a claim for this lane is under way.
    claiming: bool,
    /// Whether it stands in the scheduler's queue.
    pub(super) queued: bool,
    /// What is known of each priority, and how they have shared the lane's room.
    parts: ByPriority<Part>,
    shares: Shares,
    /// Set while a Retry-After holds the lane.
    held_until: Option<Instant>,
    pub(super) gate: Gate,
    /// When the scheduler looks at it because a gate opens.
    pub(super) opening: Option<Instant>,
    /// Alarms set for it.
    pub(super) alarms: BTreeSet<Alarm>,
    /// Whether more may fall due than alarms are set for.
    pub(super) overlooks: bool,
    last_active: Instant,
}

/// When to wake a lane, for what is due of a priority, or of any.
pub(super) type Alarm = (Timestamp, Option<Priority>);

/// One priority's part of a lane.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// Whether work may be due.
    awake: bool,
    /// Whether more waits than the last claim took, or nobody knows.
    is_behind: bool,
    /// Rows asked for in a claim under way.
    asked: u32,
    /// Nothing due before this is waiting, as far as we know.
    low_water: Timestamp,
}

impl Part {
    const UNKNOWN: Self =
        Self { awake: false, is_behind: false, asked: 0, low_water: Timestamp::from_micros(i64::MIN) };
}

/// What a claim asks for of one priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) priority: Priority,
    pub(super) room: u32,
    /// Rows that the same claim asks for before it.
    pub(super) before: u32,
    /// Where it may start.
    pub(super) low_water: Timestamp,
}

/// What a hungry lane asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Appetite {
    /// Rows to claim now; 0 when the lane is not hungry.
    pub(super) room: u32,
    /// Rows it holds.
    pub(super) held: u32,
    /// How many beyond its cap it may hold.
    pub(super) ahead: u32,
}

/// Requests at once to a receiver that has not answered yet, or no longer does. Each holds a socket and some 34 KB until
/// its deadline: receivers that are dead should not hold as much as the cap allows to those that are alive.
const TRUST_MIN: u32 = 16;
/// Rows claimed for one lane in one statement.
const CLAIM_MAX: u32 = 256;
/// How far behind the newest claimed row a lane looks again, in microseconds: commits of the same moment may come later.
const LOOK_BACK_MICROS: i64 = 250_000;

impl<R> Lane<R> {
    /// A lane about which nothing is known but that it may have work, and that it has been here since then, wherever it
    /// was remembered.
    pub(super) fn new(max_in_flight: u32, since: Instant, now: Instant) -> Self {
        Self {
            running: 0,
            ready: VecDeque::new(),
            ready_since: now,
            elsewhere: 0,
            unsure: false,
            ended: 0,
            max_in_flight,
            trust: TRUST_MIN,
            offered: 0,
            claiming: false,
            queued: false,
            parts: [Part::UNKNOWN; Priority::COUNT],
            shares: Shares::NONE,
            held_until: None,
            gate: Gate::new(since),
            opening: None,
            alarms: BTreeSet::new(),
            overlooks: false,
            last_active: now,
        }
    }

    /// Work is, or will by then be, due at `at`, of this priority, or of any where that is unknown.
    pub(super) fn wake(&mut self, at: Timestamp, priority: Option<Priority>) {
        for known in Priority::ALL.into_iter().filter(|one| priority.is_none_or(|priority| priority == *one)) {
            let part = &mut self.parts[known.place()];
            part.awake = true;
            part.is_behind |= priority.is_none();
            part.low_water = part.low_water.min(at);
        }
    }

    /// What to claim now. `is_crowded` says that the process as a whole has as many requests under way as it should:
    /// then a lane gets one at a time.
    ///
    /// A lane claims ahead of its cap as many as ended since its last claim, so that an endpoint that answers at once
    /// never waits for the database, and one that does not answer holds nothing it cannot send.
    pub(super) fn appetite(&self, now: Instant, is_crowded: bool) -> Appetite {
        let (cap, ahead) = if is_crowded { (1, 0) } else { (self.in_flight_max(), self.ahead()) };
        let held = self.held();
        let is_hungry = self.wants_claim(now);
        let ready = u32::try_from(self.ready.len()).unwrap_or(u32::MAX);
        let allowance = if is_hungry { self.gate.allowance(self.elsewhere > 0, now) } else { 0 };
        let room = (cap + ahead).saturating_sub(held).min(allowance.saturating_sub(ready)).min(CLAIM_MAX);
        // While something is ready there is no hurry: a claim of a few rows costs almost as much as one of many.
        let is_worth_it = self.ready.is_empty() || room >= cap.min(allowance) / 2;
        Appetite { room: if is_worth_it { room } else { 0 }, held, ahead }
    }

    /// Whether work may be due that it could claim, had it room.
    pub(super) fn wants_claim(&self, now: Instant) -> bool {
        self.is_awake() && !self.claiming && !self.is_held(now)
    }

    /// How many rows it may hold beyond its cap.
    fn ahead(&self) -> u32 {
        self.ended.min(self.in_flight_max())
    }

    /// Whether what is published may be claimed for it at once. A lane that is about to claim keeps its room for that:
    /// offered, it would be taken by what is newer, for as long as more is published than the endpoint takes.
    pub(super) fn may_offer(&self, now: Instant) -> bool {
        self.keeps_up(now) && !self.wants_claim(now)
    }

    /// Whether nothing that is known keeps its requests back, and what waits in the database is little, if anything.
    pub(super) fn keeps_up(&self, now: Instant) -> bool {
        let is_caught_up = self.parts.iter().all(|part| !part.is_behind);
        let is_alone = !self.unsure && self.elsewhere == 0;
        is_caught_up && is_alone && !self.is_held(now) && self.gate.is_wide_open(now)
    }

    /// How much more room it could offer; negative where it has offered too much.
    pub(super) fn offerable(&self) -> i64 {
        i64::from(self.in_flight_max() + self.ahead()) - i64::from(self.held())
    }

    /// So much more of its room is offered.
    pub(super) const fn offer(&mut self, room: u32) {
        self.offered += room;
    }

    /// So much of its room is offered no more: it was taken back, or what took it is here, or will not come.
    pub(super) const fn end_offer(&mut self, room: u32) {
        self.offered = self.offered.saturating_sub(room);
    }

    /// Whether any of its room is offered, or taken by what is not here yet.
    pub(super) const fn is_offering(&self) -> bool {
        self.offered > 0
    }

    /// A claim of `room` rows begins, shared among the priorities that may have work.
    pub(super) fn begin_claim(&mut self, room: u32) -> impl Iterator<Item = Ask> + use<R> {
        self.claiming = true;
        self.ended = 0;
        let shares = self.shares.split(room, self.parts.map(|part| part.awake));
        let mut before = 0;
        let mut asks = ByPriority::default();
        for priority in Priority::ALL {
            let (part, room) = (&mut self.parts[priority.place()], shares[priority.place()]);
            if room > 0 {
                (part.awake, part.asked) = (false, room);
                asks[priority.place()] = Some(Ask { priority, room, before, low_water: part.low_water });
                before += room;
            }
        }
        asks.into_iter().flatten()
    }

    /// The claim, begun at `asked_at`, gave `taken` rows of a priority, the last of them due at `last_due`, where the
    /// endpoint's own cap admitted `admitted`. One that gave less than it was asked for leaves its room to the others.
    pub(super) fn end_claim(
        &mut self,
        priority: Priority,
        taken: u32,
        admitted: u32,
        last_due: Option<Timestamp>,
        asked_at: Timestamp,
    ) {
        self.claiming = false;
        let part = &mut self.parts[priority.place()];
        let is_exhausted = taken < part.asked.min(admitted);
        part.asked = 0;
        // Woken meanwhile: `wake` has lowered the mark to what it was told of, and it must stay there.
        let was_woken = part.awake;
        part.awake |= !is_exhausted;
        part.is_behind = !is_exhausted;
        let seen = if is_exhausted { Some(asked_at) } else { last_due };
        if let Some(seen) = seen
            && !was_woken
        {
            part.low_water = part.low_water.max(Timestamp::from_micros(seen.micros() - LOOK_BACK_MICROS));
        }
    }

    /// The claim failed: everything is as before it.
    pub(super) fn abandon_claim(&mut self) {
        self.claiming = false;
        for part in &mut self.parts {
            part.awake |= part.asked > 0;
            part.asked = 0;
        }
    }

    /// A claimed delivery is ready to be sent.
    pub(super) fn make_ready(&mut self, ready: R, now: Instant) {
        if self.ready.is_empty() {
            self.ready_since = now;
        }
        self.ready.push_back(ready);
    }

    /// The next delivery to send, if one is ready and cap and gates admit it: its request is under way from here on.
    pub(super) fn start_next(&mut self, now: Instant) -> Option<R> {
        let has_room = self.running + self.elsewhere < self.in_flight_max() && !self.is_held(now);
        if self.ready.is_empty() || !has_room || !self.gate.start(now) {
            return None;
        }
        let next = self.ready.pop_front()?;
        self.ready_since = now;
        self.running += 1;
        Some(next)
    }

    /// Gives up what is ready but could not be started: for longer than `patience`, or at all where that is `None`.
    pub(super) fn give_up_ready(&mut self, now: Instant, patience: Option<Duration>) -> Vec<R> {
        let is_patient = patience.is_some_and(|patience| now.saturating_duration_since(self.ready_since) < patience);
        if is_patient || self.ready.is_empty() {
            return Vec::new();
        }
        self.ended = 0;
        self.parts.iter_mut().for_each(|part| part.awake = true);
        self.ready.drain(..).collect()
    }

    /// Whether something is ready to be sent.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Gives up what is ready where nothing may start for a while.
    pub(super) fn give_up_shut(&mut self, now: Instant) -> Vec<R> {
        if self.is_held(now) || self.gate.is_shut(now) { self.give_up_ready(now, None) } else { Vec::new() }
    }

    /// When more may start or be claimed than now, because a gate opens by itself; `None` also where nothing waits.
    pub(super) fn opens_at(&self, now: Instant) -> Option<Instant> {
        let has_ready = !self.ready.is_empty();
        if has_ready || self.is_awake() { self.gate.opens_at(has_ready, now) } else { None }
    }

    /// A request has ended.
    pub(super) fn end_attempt(&mut self, ended: &Ended, now: Instant) {
        self.running = self.running.saturating_sub(1);
        self.gate.end(ended.is_success, ended.is_probe, self.running == 0, now);
        self.ended = self.ended.saturating_add(1);
        // Every answer admits one more: all that are under way answered, and it is twice as many.
        let trust = if ended.is_answered { self.trust + 1 } else { self.trust / 2 };
        self.trust = trust.clamp(TRUST_MIN, self.max_in_flight.max(TRUST_MIN));
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

    /// Requests that may be under way now.
    fn in_flight_max(&self) -> u32 {
        self.max_in_flight.min(self.trust)
    }

    /// The lane has come here, or may have lately: what others have in flight is to be found out before a claim.
    pub(super) const fn doubt(&mut self) {
        self.unsure = true;
    }

    pub(super) const fn is_unsure(&self) -> bool {
        self.unsure
    }

    /// What others have in flight at the endpoint, and its cap.
    pub(super) fn set_elsewhere(&mut self, in_flight: usize, max_in_flight: u32) {
        self.unsure = false;
        self.elsewhere = u32::try_from(in_flight).unwrap_or(u32::MAX / 2);
        self.max_in_flight = max_in_flight;
    }

    /// One of those has ended.
    pub(super) const fn end_elsewhere(&mut self) {
        self.elsewhere = self.elsewhere.saturating_sub(1);
    }

    /// The lane has come here again: what was known of it is out of date.
    pub(super) fn take_over(&mut self, now: Instant) {
        self.doubt();
        self.gate = Gate::new(now);
        (self.elsewhere, self.ended) = (0, 0);
        self.wake(Timestamp::from_micros(i64::MIN), None);
    }

    /// The lane is another replica's from now on. Answers what is to be handed back; requests under way go on.
    pub(super) fn leave(&mut self, now: Instant) -> Vec<R> {
        let given_up = self.give_up_ready(now, None);
        (self.held_until, self.elsewhere, self.overlooks, self.opening) = (None, 0, false, None);
        self.alarms.clear();
        self.parts.iter_mut().for_each(|part| part.awake = false);
        given_up
    }

    /// Whether nothing of it is here any more.
    pub(super) fn is_empty(&self) -> bool {
        self.running == 0 && self.ready.is_empty() && !self.claiming && self.offered == 0
    }

    /// Whether nothing is lost by forgetting the lane, once it offers nothing any more.
    pub(super) fn is_idle(&self, now: Instant, idle_after: Duration) -> bool {
        self.held() == self.offered
            // What waits for a stopped endpoint is found again when it goes on.
            && (!self.is_awake() || self.gate.is_stopped())
            && !self.claiming
            && self.alarms.is_empty()
            && self.gate.is_forgettable(now)
            && !self.is_held(now)
            && now.saturating_duration_since(self.last_active) > idle_after
    }

    fn is_awake(&self) -> bool {
        self.parts.iter().any(|part| part.awake)
    }

    fn is_held(&self, now: Instant) -> bool {
        self.held_until.is_some_and(|until| until > now)
    }

    /// Requests under way, here and elsewhere, rows that are ready, rows asked for, room that is offered.
    fn held(&self) -> u32 {
        let asked: u32 = self.parts.iter().map(|part| part.asked).sum();
        self.running + self.elsewhere + u32::try_from(self.ready.len()).unwrap_or(u32::MAX) + asked + self.offered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::EndpointId;
    use crate::domain::rate::RateLimit;

    /// An attempt that ended with an answer or without one.
    fn ended(is_answered: bool) -> Ended {
        let endpoint = EndpointId::from_uuid(uuid::Uuid::nil());
        Ended { endpoint, is_answered, is_success: Some(is_answered), is_probe: false, hold: None }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn awake(max_in_flight: u32, now: Instant) -> Lane<u8> {
        let mut lane = Lane::new(max_in_flight, now, now);
        lane.wake(at(1), NORMAL);
        lane
    }

    const NORMAL: Option<Priority> = Some(Priority::Normal);

    /// Begins a claim of NORMAL rows; answers where it starts.
    fn begin(lane: &mut Lane<u8>, room: u32) -> Timestamp {
        let asks: Vec<_> = lane.begin_claim(room).collect();
        assert_eq!(asks.iter().map(|ask| (ask.priority, ask.room)).collect::<Vec<_>>(), [(Priority::Normal, room)]);
        asks[0].low_water
    }

    fn end(lane: &mut Lane<u8>, taken: u32, admitted: u32, last_due: Option<Timestamp>) {
        lane.end_claim(Priority::Normal, taken, admitted, last_due, at(10));
    }

    #[test]
    fn a_lane_is_hungry_only_with_work_room_and_no_hold() {
        let now = Instant::now();
        assert_eq!(Lane::<u8>::new(3, now, now).appetite(now, false).room, 0);
        let mut lane = awake(3, now);
        assert_eq!((lane.appetite(now, false).room, lane.appetite(now, true).room), (3, 1));
        lane.hold(now + Duration::from_secs(1));
        assert_eq!(lane.appetite(now, false).room, 0);
        assert_eq!(lane.appetite(now + Duration::from_secs(1), false).room, 3);
    }

    #[test]
    fn a_claim_that_gives_less_than_it_may_puts_the_lane_to_sleep() {
        let now = Instant::now();
        let mut lane = awake(3, now);
        begin(&mut lane, 3);
        assert_eq!(lane.appetite(now, false), Appetite { room: 0, held: 3, ahead: 0 });
        end(&mut lane, 1, 3, Some(at(1)));
        lane.make_ready(7, now);
        assert_eq!(lane.appetite(now, false), Appetite { room: 0, held: 1, ahead: 0 });
        assert_eq!((lane.start_next(now), lane.start_next(now)), (Some(7), None));
        lane.end_attempt(&ended(true), now);
        assert!(lane.is_idle(now + Duration::from_secs(2), Duration::from_secs(1)));
    }

    #[test]
    fn a_full_claim_stays_awake_and_goes_on_behind_what_it_took() {
        let now = Instant::now();
        let mut lane = awake(2, now);
        begin(&mut lane, 2);
        end(&mut lane, 2, 2, Some(at(5)));
        assert_eq!(lane.appetite(now, false).room, 2);
        assert_eq!(begin(&mut lane, 2).micros(), at(5).micros() - LOOK_BACK_MICROS);
    }

    #[test]
    fn no_more_requests_run_than_the_cap_admits_however_many_are_ready() {
        let now = Instant::now();
        let mut lane = awake(2, now);
        for number in 0..4 {
            lane.make_ready(number, now);
        }
        assert_eq!((lane.start_next(now), lane.start_next(now), lane.start_next(now)), (Some(0), Some(1), None));
        lane.end_attempt(&ended(true), now);
        assert_eq!((lane.start_next(now), lane.start_next(now)), (Some(2), None));
    }

    #[test]
    fn a_lane_claims_ahead_only_as_far_as_its_endpoint_is_quick() {
        let now = Instant::now();
        let mut lane = awake(2, now);
        lane.make_ready(0, now);
        lane.make_ready(1, now);
        while lane.start_next(now).is_some() {}
        assert_eq!(lane.appetite(now, false).room, 0, "nothing has ended: nothing ahead");
        lane.end_attempt(&ended(true), now);
        assert_eq!(lane.appetite(now, false), Appetite { room: 2, held: 1, ahead: 1 });
    }

    #[test]
    fn a_lane_with_something_ready_waits_until_a_claim_is_worth_it() {
        let now = Instant::now();
        let mut lane = awake(4, now);
        (0..5).for_each(|number| lane.make_ready(number, now));
        while lane.start_next(now).is_some() {}
        lane.end_attempt(&ended(true), now);
        assert_eq!(lane.appetite(now, false).room, 0, "one is ready, and there is room for one");
        lane.start_next(now);
        assert_eq!(lane.appetite(now, false).room, 1, "nothing is ready any more");
    }

    #[test]
    fn a_receiver_gets_its_cap_as_it_answers_and_few_requests_while_it_does_not() {
        let now = Instant::now();
        let mut lane = awake(64, now);
        assert_eq!(lane.appetite(now, false).room, TRUST_MIN);
        (0..200).for_each(|number| lane.make_ready(number, now));
        let start = |lane: &mut Lane<u8>| std::iter::from_fn(|| lane.start_next(now)).count();
        assert_eq!(start(&mut lane), 16);
        (0..16).for_each(|_| lane.end_attempt(&ended(true), now));
        assert_eq!(start(&mut lane), 32, "each answer admits one more");
        (0..32).for_each(|_| lane.end_attempt(&ended(true), now));
        assert_eq!(start(&mut lane), 64, "up to the cap");
        lane.end_attempt(&ended(false), now);
        assert_eq!(start(&mut lane), 0, "half as many after one that was not answered");
        (0..63).for_each(|_| lane.end_attempt(&ended(false), now));
        assert_eq!(start(&mut lane), 16, "never less");
        let mut narrow = awake(3, now);
        (0..9).for_each(|number| narrow.make_ready(number, now));
        assert_eq!(start(&mut narrow), 3);
    }

    #[test]
    fn what_is_ready_and_cannot_start_is_given_up() {
        let now = Instant::now();
        let mut lane = awake(1, now);
        lane.make_ready(0, now);
        lane.make_ready(1, now);
        lane.start_next(now);
        let patience = Some(Duration::from_secs(1));
        assert!(lane.give_up_ready(now, patience).is_empty());
        assert_eq!(lane.give_up_ready(now + Duration::from_secs(1), patience), [1]);
    }

    #[test]
    fn what_others_have_in_flight_counts_until_it_ends() {
        let now = Instant::now();
        let mut lane = awake(3, now);
        lane.take_over(now);
        assert!(lane.is_unsure());
        lane.set_elsewhere(2, 3);
        assert!(!lane.is_unsure());
        assert_eq!(lane.appetite(now, false), Appetite { room: 1, held: 2, ahead: 0 });
        (0..3).for_each(|number| lane.make_ready(number, now));
        assert_eq!((lane.start_next(now), lane.start_next(now)), (Some(0), None));
        lane.end_elsewhere();
        assert_eq!((lane.start_next(now), lane.start_next(now)), (Some(1), None));
    }

    #[test]
    fn a_lane_that_leaves_gives_up_what_waits_and_keeps_what_runs() {
        let now = Instant::now();
        let mut lane = awake(1, now);
        (0..2).for_each(|number| lane.make_ready(number, now));
        lane.start_next(now);
        lane.hold(now + Duration::from_secs(60));
        assert_eq!(lane.leave(now), [1]);
        assert!(!lane.is_empty(), "a request is under way");
        assert_eq!(lane.appetite(now, false).room, 0);
        lane.end_attempt(&ended(true), now);
        assert!(lane.is_empty());
        lane.take_over(now);
        assert_eq!(lane.appetite(now, false).room, 1);
        let from: Vec<_> = lane.begin_claim(1).map(|ask| ask.low_water).collect();
        assert_eq!(from, [Timestamp::from_micros(i64::MIN)], "from the beginning");
    }

    #[test]
    fn a_hint_during_a_claim_is_not_lost() {
        let now = Instant::now();
        let mut lane = awake(2, now);
        begin(&mut lane, 2);
        lane.wake(at(3), NORMAL);
        end(&mut lane, 0, 2, None);
        assert_eq!(lane.appetite(now, false).room, 2);
        assert!(begin(&mut lane, 1) <= at(3));
    }

    #[test]
    fn priorities_share_the_room_and_leave_theirs_when_they_are_exhausted() {
        let now = Instant::now();
        let mut lane = awake(12, now);
        lane.wake(at(2), None);
        let asks: Vec<_> = lane.begin_claim(12).map(|ask| (ask.priority, ask.room, ask.before)).collect();
        assert_eq!(asks, [(Priority::High, 8, 0), (Priority::Normal, 3, 8), (Priority::Low, 1, 11)]);
        assert_eq!(lane.appetite(now, false).held, 12);
        lane.end_claim(Priority::High, 2, 8, Some(at(2)), at(10));
        lane.end_claim(Priority::Normal, 3, 3, Some(at(2)), at(10));
        lane.end_claim(Priority::Low, 1, 1, Some(at(2)), at(10));
        let asks: Vec<_> = lane.begin_claim(4).map(|ask| (ask.priority, ask.room, ask.before)).collect();
        assert_eq!(asks, [(Priority::Normal, 3, 0), (Priority::Low, 1, 3)]);
        lane.abandon_claim();
        assert_eq!(lane.begin_claim(4).count(), 2, "as before the claim that failed");
    }

    /// A lane that knows of nothing that keeps its requests back.
    fn keeping_up(max_in_flight: u32, now: Instant) -> Lane<u8> {
        let mut lane = Lane::new(max_in_flight, now, now);
        lane.gate.take_in_policies(1, None, 5, now);
        lane
    }

    #[test]
    fn room_that_is_offered_is_held_until_it_is_taken_back_or_what_took_it_is_here() {
        let now = Instant::now();
        let mut lane = keeping_up(8, now);
        assert_eq!((lane.may_offer(now), lane.offerable()), (true, 8));
        lane.offer(8);
        lane.wake(at(1), NORMAL);
        assert_eq!((lane.offerable(), lane.appetite(now, false).room), (0, 0));
        assert!(lane.keeps_up(now) && !lane.may_offer(now), "what waits goes before what comes");
        lane.end_offer(5);
        assert_eq!(lane.appetite(now, false), Appetite { room: 5, held: 3, ahead: 0 });
        begin(&mut lane, 5);
        assert_eq!((lane.may_offer(now), lane.offerable()), (true, 0), "a claim for what may be little");
        end(&mut lane, 5, 5, Some(at(5)));
        assert!(!lane.may_offer(now), "more waits, and goes first");
        begin(&mut lane, 5);
        end(&mut lane, 0, 5, None);
        assert!(lane.may_offer(now));
        lane.end_offer(3);
        (0..3).for_each(|number| lane.make_ready(number, now));
        assert_eq!(lane.offerable(), 5);
        assert!(!lane.is_offering() && !lane.is_empty());
    }

    #[test]
    fn nothing_is_offered_through_what_keeps_requests_back() {
        let now = Instant::now();
        assert!(!Lane::<u8>::new(8, now, now).may_offer(now), "nothing is known of the endpoint");
        assert!(keeping_up(8, now).may_offer(now));
        let mut held = keeping_up(8, now);
        held.hold(now + Duration::from_secs(1));
        assert!(!held.may_offer(now) && held.may_offer(now + Duration::from_secs(1)));
        let mut stopped = keeping_up(8, now);
        stopped.gate.stop();
        assert!(!stopped.may_offer(now));
        let mut limited = keeping_up(8, now);
        limited.gate.take_in_policies(2, Some(RateLimit { per_second: 5.0, burst: 5 }), 5, now);
        assert!(!limited.may_offer(now));
        let mut broken = keeping_up(8, now);
        (0..5).for_each(|number| broken.make_ready(number, now));
        while broken.start_next(now).is_some() {}
        (0..5).for_each(|_| broken.end_attempt(&ended(false), now));
        assert!(!broken.may_offer(now), "its circuit is about to open");
        let mut doubtful = keeping_up(8, now);
        doubtful.doubt();
        assert!(!doubtful.may_offer(now));
        doubtful.set_elsewhere(1, 8);
        assert!(!doubtful.may_offer(now), "others have requests under way");
        doubtful.end_elsewhere();
        assert!(doubtful.may_offer(now));
        doubtful.wake(at(1), None);
        assert!(!doubtful.may_offer(now), "nobody knows how much waits");
    }

    #[test]
    fn a_lane_is_forgotten_once_it_offers_nothing() {
        let now = Instant::now();
        let (mut lane, later) = (keeping_up(8, now), now + Duration::from_secs(2));
        lane.offer(8);
        assert!(lane.is_idle(later, Duration::from_secs(1)) && !lane.is_empty());
        lane.end_offer(8);
        assert!(lane.is_empty());
    }
}
