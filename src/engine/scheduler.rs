//! The scheduler: one loop that knows which lanes are hungry and claims for all of them at once.
//!
//! It learns of work from hints, from alarms it set for retries, and from a sweep that finds whatever both missed.
//! Which lanes are its own, [`super::membership`] says; how they come and go stands in `handover`, what lets their requests
//! through in `gates`, what they offer to publishers in `offering`, and the limits of the settings in `quotas`.
//!
//! The file is long because the loop and what it calls are read together.

mod alarms;
mod gates;
mod handover;
mod offering;
mod quotas;
mod sweep;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, broadcast, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::alarms::Ahead;
use self::gates::Learning;
use self::handover::Passing;
use self::offering::Arrival;
pub use self::quotas::Rates;
use self::quotas::{Grant, Quotas};
use self::sweep::{SWEEP_EVERY_MIN, pauses, sweep};
use super::attempt::{self, Ended, Ready};
use super::claims::{Done, Unstarted, claim, release};
use super::lane::{Appetite, Ask, Lane};
use super::membership::{Membership, Tenure, View};
use super::{COMPLETIONS_MAX, Config, Shared, sleep_until, told};
use crate::domain::endpoint::MAX_IN_FLIGHT_DEFAULT;
use crate::domain::event::Event;
use crate::domain::id::{EndpointId, IdMap, IdSet};
use crate::domain::schedule::Priority;
use crate::domain::time::Timestamp;
use crate::store::{self, Claimed, Due, Hint, LaneRequest, Swept};
use crate::telemetry::log::few;

/// Claim statements under way at once, for different lanes.
const CLAIMS_MAX: usize = 2;
/// Lanes of one claim statement.
const LANES_MAX: usize = 256;
/// Rows of one claim statement, about: one more lane than that may be asked for.
const ROWS_MAX: u32 = 512;
/// A lane without work is forgotten after this.
const IDLE_AFTER: Duration = Duration::from_secs(60);
/// How long an endpoint that cannot be read is left alone: only its owner or the installation's can mend it.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(5);
/// What was claimed ahead is handed back when it could not be started for this long.
const READY_MAX: Duration = Duration::from_secs(1);
/// The wait after a failed claim.
const CLAIM_RETRY: Duration = Duration::from_millis(250);

/// Schedules until `shutdown`; requests under way go on.
pub(super) async fn run(
    shared: &Arc<Shared>,
    config: &Config,
    membership: &mut Membership,
    shutdown: CancellationToken,
) {
    let (ended_sender, mut ended) = mpsc::unbounded_channel();
    let mut hints = shared.store.due_hints();
    let mut taken = shared.store.offers().open();
    let mut scheduler = Scheduler {
        shared: Arc::clone(shared),
        in_flight_max: config.in_flight_max,
        lanes: IdMap::default(),
        hungry: VecDeque::new(),
        alarms: BTreeSet::new(),
        ahead: Ahead::default(),
        held: 0,
        claims: JoinSet::new(),
        arrivals: JoinSet::new(),
        arrived: 0,
        paused_until: None,
        ended: ended_sender,
        tenure: membership.tenure(),
        view: View::default(),
        passing: Passing::default(),
        learning: Learning::default(),
        openings: BTreeSet::new(),
        quotas: Quotas::new(config.rates, Instant::now()),
        started: Instant::now(),
        hurry: Arc::default(),
    };
    let mut sweeps = JoinSet::new();
    sweeps.spawn(sweep(Arc::clone(shared), Duration::ZERO, SWEEP_EVERY_MIN, Arc::clone(&scheduler.hurry)));
    let mut ended_batch = Vec::new();
    loop {
        scheduler.claim_for_the_hungry();
        scheduler.look_ahead();
        scheduler.open_offers();
        let (alarm, opening) = (scheduler.next_alarm(), scheduler.next_opening());
        tokio::select! {
            () = shutdown.cancelled() => break,
            hint = hints.recv() => match hint {
                Ok(Hint::Made(due) | Hint::Heard(due)) => due.iter().for_each(|one| scheduler.learn(*one)),
                Ok(Hint::Changed(endpoint)) => scheduler.take_in_change(endpoint),
                Ok(Hint::ChangedElsewhere(changed)) => changed.iter().for_each(|one| scheduler.take_in_change(*one)),
                Ok(Hint::Look) => scheduler.look_at_everything(),
                // Whatever was missed, the sweep finds.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => break,
            },
            _ = ended.recv_many(&mut ended_batch, 256) => {
                ended_batch.drain(..).for_each(|one| scheduler.end_attempt(one));
            }
            Some(Ok(claim)) = scheduler.claims.join_next() => scheduler.end_claim(claim),
            Some(taken) = taken.recv() => scheduler.take_in_taken(taken),
            Some(Ok(arrival)) = scheduler.arrivals.join_next() => scheduler.end_arrival(arrival),
            Some(Ok((found, took))) = sweeps.join_next() => {
                scheduler.take_in_sweep(found);
                let (least, more) = pauses(took);
                sweeps.spawn(sweep(Arc::clone(shared), least, more, Arc::clone(&scheduler.hurry)));
            }
            handover = membership.next() => scheduler.change_hands(handover),
            followed = scheduler.passing.followed() => scheduler.take_in_followed(followed),
            read = scheduler.learning.read() => scheduler.take_in_gates(read),
            seen = scheduler.ahead.seen() => scheduler.take_in_seen(seen),
            () = sleep_until(alarm) => scheduler.ring_alarms(),
            () = sleep_until(opening) => scheduler.open_gates(),
        }
    }
    // What has not been started goes back: claimed ahead, or being claimed right now.
    let now = Instant::now();
    let mut unstarted: Vec<Unstarted> = scheduler.end_offers(&mut taken).await;
    for lane in scheduler.lanes.values_mut() {
        unstarted.extend(lane.give_up_ready(now, None).into_iter().map(Unstarted::from));
    }
    while let Some(Ok(claim)) = scheduler.claims.join_next().await {
        unstarted.extend(claim.outcome.into_iter().flat_map(Done::into_unstarted));
    }
    release(shared, unstarted).await;
}

struct Scheduler {
    shared: Arc<Shared>,
    in_flight_max: usize,
    lanes: IdMap<EndpointId, Lane<Ready>>,
    /// Lanes that may be hungry, in turn, each once.
    hungry: VecDeque<EndpointId>,
    /// When to wake which lane.
    alarms: BTreeSet<(Timestamp, EndpointId, Option<Priority>)>,
    ahead: Ahead,
    /// Requests under way, rows ready to be sent and rows asked for.
    held: usize,
    claims: JoinSet<Claim>,
    /// What publishers have taken of the lanes' room, on its way here, and how much of that has come.
    arrivals: JoinSet<Arrival>,
    arrived: u64,
    /// Set while the database does not answer claims.
    paused_until: Option<Instant>,
    ended: mpsc::UnboundedSender<Ended>,
    /// Whether this replica may claim at all.
    tenure: Arc<Tenure>,
    /// Which lanes fall to it.
    view: View,
    passing: Passing,
    learning: Learning,
    /// When to look at which lane because a gate of it opens.
    openings: BTreeSet<(Instant, EndpointId)>,
    /// The limits of the settings.
    quotas: Quotas,
    started: Instant,
    /// Has the next sweep come soon.
    hurry: Arc<Notify>,
}

/// A claim statement that has come back.
struct Claim {
    asked: Vec<LaneRequest>,
    asked_at: Timestamp,
    /// How many views there were before it.
    view: u64,
    outcome: store::Result<Done>,
}

impl Scheduler {
    /// Takes in that an endpoint has work.
    fn learn(&mut self, due: Due) {
        if !self.view.owns(due.endpoint) {
            return;
        }
        let now = Instant::now();
        if due.at > self.shared.store.clock().now() {
            self.set_alarm(due, now);
            return;
        }
        self.lane(due.endpoint, now).wake(due.at, due.priority);
        self.queue(due.endpoint);
    }

    /// Puts a lane that may be hungry into the queue, once.
    fn queue(&mut self, endpoint: EndpointId) {
        if let Some(lane) = self.lanes.get_mut(&endpoint)
            && !lane.queued
        {
            lane.queued = true;
            self.hungry.push_back(endpoint);
        }
    }

    fn take_in_sweep(&mut self, found: Vec<Swept>) {
        let now = Instant::now();
        self.shared.store.metrics().lanes.set(self.lanes.len() as i64);
        self.quotas.forget_quiet(now);
        let (view, offers) = (&self.view, self.shared.store.offers());
        self.lanes.retain(|endpoint, lane| match view.owns(*endpoint) {
            true if lane.is_idle(now, IDLE_AFTER) => {
                lane.end_offer(offers.withdraw(*endpoint));
                lane.is_offering()
            }
            true => true,
            false => !lane.is_empty(),
        });
        let stuck = self.lanes.values_mut().flat_map(|lane| lane.give_up_ready(now, Some(READY_MAX))).collect();
        self.hand_back(stuck);
        found.iter().for_each(|seen| self.take_in_swept(seen));
        self.ahead.was_told_to_look = false;
    }

    /// Starts claims for hungry lanes, as many as may be under way.
    fn claim_for_the_hungry(&mut self) {
        while self.claims.len() < CLAIMS_MAX && self.may_claim() {
            let mut asked = self.next_requests();
            if asked.is_empty() {
                return;
            }
            let unsure = self.unsure(&asked);
            let (shared, view) = (Arc::clone(&self.shared), self.passing.views());
            self.claims.spawn(async move {
                let asked_at = shared.store.clock().now();
                let outcome = claim(&shared, &mut asked, &unsure).await;
                Claim { asked, asked_at, view, outcome }
            });
        }
    }

    /// Results that wait for the database must not pile up, and who has lost touch with the others leaves the lanes to
    /// them.
    fn may_claim(&self) -> bool {
        let unsettled = self.shared.leases.len().saturating_sub(self.held);
        self.paused_until.is_none() && unsettled < COMPLETIONS_MAX && self.tenure.holds_at(Instant::now())
    }

    fn next_requests(&mut self) -> Vec<LaneRequest> {
        let now = Instant::now();
        let mut asked = Vec::new();
        let mut withdrawn = Vec::new();
        let mut rows = 0;
        while asked.len() < LANES_MAX && rows < ROWS_MAX {
            let Some(endpoint) = self.hungry.pop_front() else { break };
            let is_crowded = self.held >= self.in_flight_max;
            let Some(lane) = self.lanes.get_mut(&endpoint) else { continue };
            lane.queued = false;
            if !self.view.owns(endpoint) {
                continue;
            }
            if lane.is_offering() && lane.wants_claim(now) {
                lane.end_offer(self.shared.store.offers().withdraw(endpoint));
                withdrawn.push(endpoint);
            }
            let Appetite { room, held, ahead } = lane.appetite(now, is_crowded);
            if room == 0 {
                self.watch(endpoint, now);
                continue;
            }
            let tenant = lane.gate.tenant();
            if tenant.is_none() && self.quotas.are_by_tenant() {
                self.take_in_refusal(endpoint);
                continue;
            }
            let room = match self.quotas.take(endpoint, tenant, room, lane.gate.since(), now) {
                Grant::Rows(rows) => rows,
                Grant::TenantWaits => {
                    // It stands in the queue of its tenant.
                    lane.queued = true;
                    continue;
                }
                Grant::AllWait(until) => {
                    lane.queued = true;
                    self.hungry.push_front(endpoint);
                    self.paused_until = self.paused_until.max(Some(until));
                    break;
                }
            };
            let (version, circuit_until) = lane.gate.known();
            // What waits is little: some of the room is left to what comes meanwhile, or that would wait for the next claim.
            let keeps_up = self.quotas.are_none() && lane.keeps_up(now);
            let room = if keeps_up { room.div_ceil(2) } else { room };
            rows += room;
            self.held += room as usize;
            asked.extend(lane.begin_claim(room).map(|Ask { priority, room, before, low_water }| LaneRequest {
                endpoint,
                priority,
                room,
                held: held + before,
                ahead,
                low_water,
                version,
                circuit_until,
            }));
        }
        withdrawn.into_iter().for_each(|endpoint| self.offer(endpoint, now));
        asked
    }

    fn end_claim(&mut self, claim: Claim) {
        self.passing.end_claim(claim.view);
        let mut done = match claim.outcome {
            Ok(done) => done,
            Err(error) => {
                let mut endpoints: Vec<_> = claim.asked.iter().map(|request| request.endpoint).collect();
                endpoints.dedup();
                let (lanes, endpoints) = (endpoints.len(), few(&endpoints));
                tracing::warn!(%error, lanes, %endpoints, "nothing could be claimed; trying again");
                self.paused_until = Some(Instant::now() + CLAIM_RETRY);
                for request in claim.asked {
                    self.held -= request.room as usize;
                    if let Some(lane) = self.lanes.get_mut(&request.endpoint) {
                        lane.abandon_claim();
                        self.quotas.give_back(lane.gate.tenant(), request.room);
                    }
                    self.queue(request.endpoint);
                }
                return;
            }
        };
        self.take_in_elsewhere(&done.elsewhere);
        let mut taken: HashMap<(EndpointId, Priority), (u32, Timestamp)> = HashMap::with_capacity(claim.asked.len());
        for one in &done.claimed {
            let (count, last) = taken.entry((one.endpoint, one.priority)).or_insert((0, one.due_at));
            *count += 1;
            *last = (*last).max(one.due_at);
        }
        let now = Instant::now();
        for ready in &done.ready {
            let prepared = &ready.endpoint;
            if let Some(lane) = self.lanes.get_mut(&ready.claimed.endpoint) {
                let threshold = prepared.circuit_breaker.failure_threshold;
                lane.gate.take_in_policies(prepared.version, prepared.rate_limit, threshold, now);
            }
        }
        let refused: IdSet<EndpointId> = done.refused.iter().copied().collect();
        let unreadable = std::mem::take(&mut done.unreadable);
        let caps: IdMap<EndpointId, u32> = (done.elsewhere.iter().map(|one| (one.endpoint, one.max_in_flight)))
            .chain(done.ready.iter().map(|ready| (ready.claimed.endpoint, ready.endpoint.max_in_flight)))
            .collect();
        for request in &claim.asked {
            let (count, last) = taken
                .get(&(request.endpoint, request.priority))
                .map_or((0, None), |(count, last)| (*count, Some(*last)));
            let unused = request.room.saturating_sub(count);
            self.held -= unused as usize;
            if let Some(lane) = self.lanes.get_mut(&request.endpoint) {
                self.quotas.give_back(lane.gate.tenant(), unused);
                let cap = caps.get(&request.endpoint).copied();
                cap.into_iter().for_each(|cap| lane.set_max_in_flight(cap));
                // The statement keeps to the endpoint's own cap, which may be lower than the lane knew.
                // And one that refused the lane for what it does not know says nothing of what waits.
                let admitted = match cap {
                    _ if refused.contains(&request.endpoint) || unreadable.contains(&request.endpoint) => 0,
                    Some(cap) => (cap + request.ahead).saturating_sub(request.held),
                    None => request.room,
                };
                lane.end_claim(request.priority, count, admitted, last, claim.asked_at);
            }
            self.queue(request.endpoint);
        }
        self.dispatch(done);
        refused.into_iter().for_each(|endpoint| self.take_in_refusal(endpoint));
        unreadable.into_iter().for_each(|endpoint| self.hold(endpoint, UNREADABLE_PAUSE, now));
        for request in &claim.asked {
            self.go_on(request.endpoint, now);
        }
        self.hand_back_foreign(claim.asked.iter().map(|request| request.endpoint));
    }

    /// Makes what was claimed ready; ends at once what is not to be sent.
    fn dispatch(&mut self, mut done: Done) {
        let now = Instant::now();
        let unsent = done.take_unsent();
        let event_of = |one: &Claimed| done.unsent_events.get(&one.event).map(Arc::as_ref);
        let held = |one: &Claimed, event: Option<&Event>| (one.id, one.claim_gen, event.map(Event::trace_id));
        let ready = done.ready.iter().map(|ready| held(&ready.claimed, Some(&ready.event)));
        self.shared.leases.hold(ready.chain(unsent.iter().map(|one| held(one, event_of(one)))));
        for ready in done.ready {
            self.lane(ready.claimed.endpoint, now).make_ready(ready, now);
        }
        self.held -= unsent.len();
        for claimed in unsent {
            let settlement = attempt::without_request(&claimed, claimed.claimed_at)
                .unwrap_or_else(|| store::Settlement::Failed("the event's payload is no longer kept".to_owned()));
            let event = event_of(&claimed);
            told::of_unsent(&claimed, event, &settlement);
            let completion = attempt::completion_without_request(&claimed, event, settlement);
            let shared = Arc::clone(&self.shared);
            self.shared.attempts.spawn(async move { shared.record(completion, None).await });
        }
    }

    /// Starts requests while the lane's cap admits them.
    fn start_ready(&mut self, endpoint: EndpointId) {
        let now = Instant::now();
        let Some(lane) = self.lanes.get_mut(&endpoint) else { return };
        while let Some(ready) = lane.start_next(now) {
            let attempt = attempt::run(Arc::clone(&self.shared), ready, self.ended.clone());
            // Boxed, because the runtime moves a task's kilobytes five times from its beginning to its end.
            self.shared.attempts.spawn(Box::pin(attempt));
        }
        if lane.has_ready() && lane.opens_at(now).is_some() {
            self.watch(endpoint, now);
        }
    }

    fn end_attempt(&mut self, ended: Ended) {
        let now = Instant::now();
        self.held = self.held.saturating_sub(1);
        let Some(lane) = self.lanes.get_mut(&ended.endpoint) else { return };
        lane.end_attempt(&ended, now);
        if let Some(wait) = ended.hold {
            self.hold(ended.endpoint, wait, now);
        }
        self.go_on(ended.endpoint, now);
        self.queue(ended.endpoint);
    }

    /// Does what follows for a lane that has more to send or more room: a gate may have shut meanwhile.
    fn go_on(&mut self, endpoint: EndpointId, now: Instant) {
        self.hand_back_shut(endpoint, now);
        self.start_ready(endpoint);
        self.offer(endpoint, now);
    }

    /// Hands back what was claimed ahead and cannot be started soon: a changed endpoint, a cancel or another replica
    /// should find it as it is.
    fn hand_back(&mut self, unstarted: Vec<Ready>) {
        if unstarted.is_empty() {
            return;
        }
        self.held -= unstarted.len();
        self.shared.leases.drop_all(unstarted.iter().map(|ready| ready.claimed.id));
        let shared = Arc::clone(&self.shared);
        self.shared.attempts.spawn(async move { release(&shared, unstarted).await });
    }

    fn lane(&mut self, endpoint: EndpointId, now: Instant) -> &mut Lane<Ready> {
        let roster = &self.shared.roster;
        self.lanes.entry(endpoint).or_insert_with(|| {
            // A guess where the endpoint is unknown: the claim keeps to the endpoint's own cap and tells it.
            let max = roster.known(endpoint).map_or(MAX_IN_FLIGHT_DEFAULT, |known| known.max_in_flight);
            let mut lane = Lane::new(max, self.passing.changed_at().unwrap_or(now), now);
            if self.passing.is_recent(now) {
                lane.doubt();
            }
            lane
        })
    }
}
