//! The scheduler: one loop that knows which lanes are hungry and claims for all of them at once.
//!
//! It learns of work from hints, from alarms it set for retries, and from a sweep that finds whatever both missed.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::attempt::{self, Ended, Ready};
use super::lane::Lane;
use super::{COMPLETIONS_MAX, Config, Shared};
use crate::domain::endpoint::MAX_IN_FLIGHT_DEFAULT;
use crate::domain::id::EndpointId;
use crate::domain::time::Timestamp;
use crate::store::{self, Claimed, Due, LaneRequest};

/// Claim statements under way at once, for different lanes.
const CLAIMS_MAX: usize = 2;
/// Lanes of one claim statement.
const LANES_MAX: usize = 256;
/// Rows of one claim statement, about: one more lane than that may be asked for.
const ROWS_MAX: u32 = 512;
/// Alarms of one lane; what is due beyond them the sweep finds.
const ALARMS_MAX: usize = 64;
/// Alarms are set on multiples of this, in microseconds, so that retries of one moment share one.
const ALARM_GRAIN_MICROS: i64 = 20_000;
/// The sweep runs at least this often, so that work is found within 5 s when every hint is lost, and at most that
/// often; in between, so that it takes a twentieth of the time.
const SWEEP_EVERY_MAX: Duration = Duration::from_secs(4);
const SWEEP_EVERY_MIN: Duration = Duration::from_secs(1);
/// A lane without work is forgotten after this.
const IDLE_AFTER: Duration = Duration::from_secs(60);
/// The wait after a failed claim.
const CLAIM_RETRY: Duration = Duration::from_millis(250);

/// Schedules until `shutdown`; requests under way go on.
pub(super) async fn run(shared: &Arc<Shared>, config: &Config, shutdown: CancellationToken) {
    let (ended_sender, mut ended) = mpsc::unbounded_channel();
    let mut hints = shared.store.due_hints();
    let mut scheduler = Scheduler {
        shared: Arc::clone(shared),
        in_flight_max: config.in_flight_max,
        lanes: HashMap::new(),
        hungry: VecDeque::new(),
        alarms: BTreeSet::new(),
        in_flight: 0,
        claims: JoinSet::new(),
        paused_until: None,
        ended: ended_sender,
    };
    let mut sweeps = JoinSet::new();
    sweeps.spawn(sweep(Arc::clone(shared), Duration::ZERO));
    let mut ended_batch = Vec::new();
    loop {
        scheduler.claim_for_the_hungry();
        let alarm = scheduler.next_alarm();
        tokio::select! {
            () = shutdown.cancelled() => break,
            hint = hints.recv() => match hint {
                Ok(due) => due.iter().for_each(|one| scheduler.learn(*one)),
                // Whatever was missed, the sweep finds.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => break,
            },
            _ = ended.recv_many(&mut ended_batch, 256) => {
                ended_batch.drain(..).for_each(|one| scheduler.end_attempt(one));
            }
            Some(Ok(claim)) = scheduler.claims.join_next() => scheduler.end_claim(claim),
            Some(Ok((found, took))) = sweeps.join_next() => {
                scheduler.take_in_sweep(found);
                let pause = (took * 20).clamp(SWEEP_EVERY_MIN, SWEEP_EVERY_MAX);
                sweeps.spawn(sweep(Arc::clone(shared), pause));
            }
            () = sleep_until(alarm) => scheduler.ring_alarms(),
        }
    }
    // What is being claimed right now has not been started: it goes back.
    while let Some(Ok(claim)) = scheduler.claims.join_next().await {
        release(shared, claim.outcome.map(|done| done.claimed).unwrap_or_default()).await;
    }
}

struct Scheduler {
    shared: Arc<Shared>,
    in_flight_max: usize,
    lanes: HashMap<EndpointId, Lane>,
    /// Lanes that may be hungry, in turn, each once.
    hungry: VecDeque<EndpointId>,
    /// When to wake which lane.
    alarms: BTreeSet<(Timestamp, EndpointId)>,
    /// Requests under way.
    in_flight: usize,
    claims: JoinSet<Claim>,
    /// Set while the database does not answer claims.
    paused_until: Option<Instant>,
    ended: mpsc::UnboundedSender<Ended>,
}

/// A claim statement that has come back.
struct Claim {
    asked: Vec<LaneRequest>,
    asked_at: Timestamp,
    outcome: store::Result<Done>,
}

#[derive(Default)]
struct Done {
    /// Everything that was claimed.
    claimed: Vec<Claimed>,
    /// What of it can be sent.
    ready: Vec<Ready>,
}

impl Scheduler {
    /// Takes in that an endpoint has work.
    fn learn(&mut self, due: Due) {
        let now = Instant::now();
        if due.at > self.shared.store.clock().now() {
            self.set_alarm(due, now);
            return;
        }
        self.lane(due.endpoint, now).wake(due.at);
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

    fn take_in_sweep(&mut self, found: Vec<Due>) {
        let now = Instant::now();
        self.lanes.retain(|_, lane| !lane.is_idle(now, IDLE_AFTER));
        found.into_iter().for_each(|due| self.learn(due));
    }

    fn set_alarm(&mut self, due: Due, now: Instant) {
        let grains = due.at.micros().div_euclid(ALARM_GRAIN_MICROS) + 1;
        let at = Timestamp::from_micros(grains * ALARM_GRAIN_MICROS);
        let lane = self.lane(due.endpoint, now);
        if lane.alarms < ALARMS_MAX && self.alarms.insert((at, due.endpoint)) {
            self.lane(due.endpoint, now).alarms += 1;
        }
    }

    /// When to look at the alarms next, if at any time.
    fn next_alarm(&self) -> Option<Instant> {
        let first = self.alarms.first().map(|(at, _)| self.shared.store.clock().instant_of(*at));
        self.paused_until.into_iter().chain(first).min()
    }

    fn ring_alarms(&mut self) {
        if self.paused_until.is_some_and(|until| until <= Instant::now()) {
            self.paused_until = None;
        }
        let now = self.shared.store.clock().now();
        while let Some((at, endpoint)) = self.alarms.first().copied().filter(|(at, _)| *at <= now) {
            self.alarms.pop_first();
            if let Some(lane) = self.lanes.get_mut(&endpoint) {
                lane.alarms -= 1;
                // The alarm was rounded up; what it was set for is due a little before it.
                lane.wake(Timestamp::from_micros(at.micros() - ALARM_GRAIN_MICROS));
                self.queue(endpoint);
            }
        }
    }

    /// Starts claims for hungry lanes, as many as may be under way.
    fn claim_for_the_hungry(&mut self) {
        while self.claims.len() < CLAIMS_MAX && self.may_claim() {
            let asked = self.next_requests();
            if asked.is_empty() {
                return;
            }
            let shared = Arc::clone(&self.shared);
            self.claims.spawn(async move {
                let asked_at = shared.store.clock().now();
                let outcome = claim(&shared, &asked).await;
                Claim { asked, asked_at, outcome }
            });
        }
    }

    /// Results that wait for the database must not pile up.
    fn may_claim(&self) -> bool {
        let unsettled = self.shared.leases.len().saturating_sub(self.in_flight);
        self.paused_until.is_none() && unsettled < COMPLETIONS_MAX
    }

    fn next_requests(&mut self) -> Vec<LaneRequest> {
        let now = Instant::now();
        let mut asked = Vec::new();
        let mut rows = 0;
        while asked.len() < LANES_MAX && rows < ROWS_MAX {
            let Some(endpoint) = self.hungry.pop_front() else { break };
            let is_crowded = self.in_flight >= self.in_flight_max;
            let Some(lane) = self.lanes.get_mut(&endpoint) else { continue };
            lane.queued = false;
            let room = lane.room(now, is_crowded);
            if room == 0 {
                continue;
            }
            rows += room;
            self.in_flight += room as usize;
            let in_flight = lane.in_flight();
            asked.push(LaneRequest { endpoint, room, in_flight, low_water: lane.begin_claim(room) });
        }
        asked
    }

    fn end_claim(&mut self, claim: Claim) {
        let done = match claim.outcome {
            Ok(done) => done,
            Err(error) => {
                tracing::warn!(%error, lanes = claim.asked.len(), "nothing could be claimed; trying again");
                self.paused_until = Some(Instant::now() + CLAIM_RETRY);
                for request in claim.asked {
                    self.in_flight -= request.room as usize;
                    if let Some(lane) = self.lanes.get_mut(&request.endpoint) {
                        lane.abandon_claim(request.room);
                    }
                    self.queue(request.endpoint);
                }
                return;
            }
        };
        let mut taken: HashMap<EndpointId, (u32, Timestamp)> = HashMap::with_capacity(claim.asked.len());
        for one in &done.claimed {
            let (count, last) = taken.entry(one.endpoint).or_insert((0, one.due_at));
            *count += 1;
            *last = (*last).max(one.due_at);
        }
        for ready in &done.ready {
            if let Some(lane) = self.lanes.get_mut(&ready.claimed.endpoint) {
                lane.set_max_in_flight(ready.endpoint.max_in_flight);
            }
        }
        for request in &claim.asked {
            let (count, last) = taken.get(&request.endpoint).map_or((0, None), |(count, last)| (*count, Some(*last)));
            self.in_flight -= (request.room - count.min(request.room)) as usize;
            if let Some(lane) = self.lanes.get_mut(&request.endpoint) {
                lane.end_claim(request.room, count, last, claim.asked_at);
            }
            self.queue(request.endpoint);
        }
        self.dispatch(done);
    }

    /// Starts the requests of what was claimed; ends at once what is not to be sent.
    fn dispatch(&mut self, done: Done) {
        self.shared.leases.hold(done.claimed.iter().map(|one| (one.id, one.claim_gen)));
        let mut unsent: HashMap<_, Claimed> = done.claimed.into_iter().map(|one| (one.id, one)).collect();
        for ready in done.ready {
            unsent.remove(&ready.claimed.id);
            self.shared.attempts.spawn(attempt::run(Arc::clone(&self.shared), ready, self.ended.clone()));
        }
        for claimed in unsent.into_values() {
            self.end_attempt(Ended { endpoint: claimed.endpoint, hold: None });
            let settlement = attempt::without_request(&claimed)
                .unwrap_or_else(|| store::Settlement::Failed("the event's payload is no longer kept".to_owned()));
            let completion = attempt::completion_without_request(&claimed, settlement);
            let shared = Arc::clone(&self.shared);
            self.shared.attempts.spawn(async move {
                let _ = shared.completions.send(completion).await;
            });
        }
    }

    fn end_attempt(&mut self, ended: Ended) {
        let now = Instant::now();
        self.in_flight = self.in_flight.saturating_sub(1);
        let Some(lane) = self.lanes.get_mut(&ended.endpoint) else { return };
        lane.end_attempt(now);
        match ended.hold {
            None => self.queue(ended.endpoint),
            Some(wait) => {
                lane.hold(now + wait);
                let at = self.shared.store.clock().now().plus(wait);
                self.set_alarm(Due { endpoint: ended.endpoint, at }, now);
            }
        }
    }

    fn lane(&mut self, endpoint: EndpointId, now: Instant) -> &mut Lane {
        let roster = &self.shared.roster;
        self.lanes.entry(endpoint).or_insert_with(|| {
            // A guess where the endpoint is unknown: the claim keeps to the endpoint's own cap and tells it.
            let max = roster.known(endpoint).map_or(MAX_IN_FLIGHT_DEFAULT, |known| known.max_in_flight);
            Lane::new(max, now)
        })
    }
}

/// Claims for the lanes and reads what their requests need.
async fn claim(shared: &Shared, asked: &[LaneRequest]) -> store::Result<Done> {
    let claimed = shared.store.claim(asked).await?;
    if claimed.is_empty() {
        return Ok(Done::default());
    }
    match prepare(shared, &claimed).await {
        Ok(ready) => Ok(Done { claimed, ready }),
        Err(error) => {
            // Claimed but not to be sent now: better handed back than left to lapse.
            release(shared, claimed).await;
            Err(error)
        }
    }
}

async fn prepare(shared: &Shared, claimed: &[Claimed]) -> store::Result<Vec<Ready>> {
    let sendable = || claimed.iter().filter(|one| attempt::without_request(one).is_none());
    let versions = sendable().map(|one| (one.endpoint, one.endpoint_version)).collect();
    let endpoints = shared.roster.current(&shared.store, &versions).await?;
    let events = shared.store.payloads(&sendable().map(|one| one.event).collect::<Vec<_>>()).await?;
    let ready = |one: &Claimed| {
        Some(Ready {
            claimed: one.clone(),
            endpoint: Arc::clone(endpoints.get(&one.endpoint)?),
            event: Arc::clone(events.get(&one.event)?),
        })
    };
    Ok(sendable().filter_map(ready).collect())
}

async fn release(shared: &Shared, claimed: Vec<Claimed>) {
    if claimed.is_empty() {
        return;
    }
    let claims: Vec<_> = claimed.iter().map(|one| (one.id, one.claim_gen)).collect();
    if let Err(error) = shared.store.release(&claims).await {
        tracing::warn!(%error, claims = claims.len(), "claims were not handed back; their leases will lapse");
    }
}

/// Forever, without an instant.
async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

/// Looks for work after a pause; answers how long the look took.
async fn sweep(shared: Arc<Shared>, pause: Duration) -> (Vec<Due>, Duration) {
    tokio::time::sleep(pause).await;
    let began = Instant::now();
    let found = shared.store.sweep().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "the sweep for waiting work failed; the next one follows");
        Vec::new()
    });
    (found, began.elapsed())
}
