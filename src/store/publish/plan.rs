//! What a publish would write: its recipients, the ids of its rows, the keys it must win.
//!
//! Planning reads and answers those who need no write (duplicates, conflicts, unknown endpoints); nothing is written.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{PublishError, Published, PublishedDelivery, Waiting, unready};
use crate::domain::endpoint::Ordering;
use crate::domain::event::NewEvent;
use crate::domain::fields::Tenant;
use crate::domain::id::{DeliveryId, EndpointId, EventId, IdMap};
use crate::domain::schedule::Schedule;
use crate::store::Store;
use crate::store::directory::{Recipient, TenantEndpoints};
use crate::store::error::{Error, Result};
use crate::store::idempotency::{self, Fingerprint, KnownKeys};
use crate::store::order::{ONLY_KEY, OrderKey};
use crate::telemetry::log::few;

/// One event of a batch, ready to be written.
pub(in crate::store) struct Plan {
    pub(super) waiting: Waiting,
    pub(in crate::store) event_id: EventId,
    /// False where a repeat adds deliveries to the first event.
    pub(super) is_new_event: bool,
    /// The tenant's configuration that `deliveries` was matched against.
    pub(super) config_version: i64,
    pub(super) deliveries: Vec<PlannedDelivery>,
    /// Set where there is an idempotency key.
    pub(in crate::store) fingerprint: Option<Fingerprint>,
    /// Whether the event's own key is still free.
    pub(in crate::store) claims_event_key: bool,
}

/// One delivery of a planned event.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct PlannedDelivery {
    pub(in crate::store) id: DeliveryId,
    pub(in crate::store) to: Recipient,
    pub(super) fate: Fate,
    /// Whose offer it takes, by the place among those of its statement: with it, it is claimed as it is queued.
    pub(super) offer: Option<usize>,
}

/// What becomes of a planned delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is queued.
    Queued,
    /// Its endpoint has as many outstanding as it may: it fails at once, visibly.
    QueueFull,
    /// An earlier publish with the same key made it.
    Duplicate,
}

impl PlannedDelivery {
    /// Whether it is nothing but queued: most are.
    pub(super) fn is_unordered_and_queued(&self) -> bool {
        self.fate != Fate::QueueFull && self.to.ordering == Ordering::Unordered
    }
}

impl Plan {
    pub(in crate::store) const fn event(&self) -> &NewEvent {
        &self.waiting.event
    }

    /// The deliveries that this publish makes.
    pub(in crate::store) fn fresh(&self) -> impl Iterator<Item = &PlannedDelivery> {
        self.deliveries.iter().filter(|delivery| delivery.fate != Fate::Duplicate)
    }

    pub(super) fn queued(&self) -> impl Iterator<Item = &PlannedDelivery> {
        self.deliveries.iter().filter(|delivery| delivery.fate == Fate::Queued)
    }

    pub(super) fn refused(&self) -> impl Iterator<Item = &PlannedDelivery> {
        self.deliveries.iter().filter(|delivery| delivery.fate == Fate::QueueFull)
    }

    /// What one of its deliveries is ordered by. An event that is put off, or that has no key, stands for itself: there is
    /// nothing before or behind it.
    pub(super) fn order_key(&self, delivery: &PlannedDelivery) -> Option<OrderKey<'_>> {
        if delivery.to.ordering == Ordering::Unordered {
            return None;
        }
        let schedule = &self.event().schedule;
        let key = match delivery.to.ordering {
            _ if schedule.deliver_time.is_some() => None,
            Ordering::Fifo => Some(ONLY_KEY),
            Ordering::ByKey | Ordering::Unordered => schedule.ordering_key.as_deref(),
        };
        key.map(|key| (delivery.to.id.uuid(), key))
    }

    pub(super) fn into_answer(self) -> (Waiting, Published) {
        let deliveries = self
            .deliveries
            .iter()
            .map(|delivery| PublishedDelivery {
                delivery_id: delivery.id,
                endpoint_id: delivery.to.id,
                duplicate: delivery.fate == Fate::Duplicate,
            })
            .collect();
        let all_known = self.deliveries.iter().all(|delivery| delivery.fate == Fate::Duplicate);
        let published = Published { event_id: self.event_id, deliveries, duplicate: !self.is_new_event && all_known };
        (self.waiting, published)
    }

    /// The row in the inbox that becomes this event.
    pub(super) fn taken_from(&self) -> Option<i64> {
        self.waiting.taken_from.filter(|_| self.is_new_event).map(|place| place.seq)
    }

    /// Answers that another replica has published the row of the inbox.
    pub(super) fn answer_taken(self) {
        let event_id = self.waiting.taken_from.map_or(self.event_id, |place| place.id);
        self.waiting.answer(Ok(Published { event_id, deliveries: Vec::new(), duplicate: true }));
    }

    fn needs_writing(&self) -> bool {
        self.is_new_event || self.deliveries.iter().any(|delivery| delivery.fate != Fate::Duplicate)
    }
}

/// What became of a batch's events that are not answered yet.
#[derive(Default)]
pub(super) struct Planned {
    /// To be written.
    pub(super) plans: Vec<Plan>,
    /// To be planned in the next round: an earlier one in this batch claims the same key.
    pub(super) later: Vec<Waiting>,
    /// To be judged first, by filters of these endpoints.
    pub(super) unjudged: Vec<(Waiting, Arc<TenantEndpoints>)>,
}

/// Plans a batch; answers those who need no write.
pub(super) async fn plan(store: &Store, waiting: Vec<Waiting>) -> Planned {
    let known_keys = match known_keys(store, &waiting).await {
        Ok(known) => known,
        Err(error) => {
            refuse_all(waiting, &error);
            return Planned::default();
        }
    };
    let mut planner = Planner { store, planned: IdMap::default(), claimed_keys: HashSet::new() };
    let mut planned = Planned::default();
    // Those of a tenant stay behind the first of them that is to be judged: they may be ordered by one key.
    let mut held: HashMap<Tenant, Arc<TenantEndpoints>> = HashMap::new();
    for one in waiting {
        if let Some(tenant) = held.get(&one.event.tenant) {
            planned.unjudged.push((one, Arc::clone(tenant)));
            continue;
        }
        match planner.plan_one(&one, &known_keys).await {
            Ok(Step::Later) => planned.later.push(one),
            Ok(Step::Judge(tenant)) => {
                held.insert(one.event.tenant.clone(), Arc::clone(&tenant));
                planned.unjudged.push((one, tenant));
            }
            Ok(Step::Now(draft)) => {
                let plan = draft.into_plan(one);
                if plan.needs_writing() {
                    planned.plans.push(plan);
                } else {
                    let (waiting, published) = plan.into_answer();
                    waiting.answer(Ok(published));
                }
            }
            Err(refusal) => one.answer(Err(refusal)),
        }
    }
    planned
}

/// What is known of the batch's keys. A repeat is answered without the statement that proves the configuration
/// current, so for those tenants it is looked up here.
async fn known_keys(store: &Store, waiting: &[Waiting]) -> Result<KnownKeys> {
    let keyed = || waiting.iter().map(|one| &*one.event).filter(|event| event.idempotency_key.is_some());
    if keyed().next().is_none() {
        return Ok(KnownKeys::default());
    }
    store.directory.refresh(&store.engine, &keyed().map(|event| &event.tenant).collect()).await?;
    idempotency::known(store, keyed()).await
}

fn refuse_all(waiting: Vec<Waiting>, error: &Error) {
    tracing::warn!(
        events = waiting.len(),
        tenants = %few(waiting.iter().map(|one| &one.event.tenant)),
        trace_ids = %few(waiting.iter().filter_map(|one| one.event.trace_id())),
        %error,
        "idempotency keys could not be read"
    );
    for one in waiting {
        one.answer(Err(PublishError::Unavailable));
    }
}

/// What is to be done with an event.
enum Step {
    Now(Draft),
    Later,
    Judge(Arc<TenantEndpoints>),
}

/// Who gets an event.
enum Recipients {
    /// As this configuration version says.
    Known(i64, Vec<Recipient>),
    /// As filters say that have not been asked.
    Unjudged(Arc<TenantEndpoints>),
}

/// A plan without its caller.
struct Draft {
    event_id: EventId,
    is_new_event: bool,
    config_version: i64,
    deliveries: Vec<PlannedDelivery>,
    fingerprint: Option<Fingerprint>,
    claims_event_key: bool,
}

impl Draft {
    fn into_plan(self, waiting: Waiting) -> Plan {
        Plan {
            waiting,
            event_id: self.event_id,
            is_new_event: self.is_new_event,
            config_version: self.config_version,
            deliveries: self.deliveries,
            fingerprint: self.fingerprint,
            claims_event_key: self.claims_event_key,
        }
    }
}

struct Planner<'s> {
    store: &'s Store,
    /// Deliveries of this batch by endpoint, for the endpoint's bound.
    planned: IdMap<EndpointId, i64>,
    /// Keys that somebody earlier in this batch claims.
    claimed_keys: HashSet<(Tenant, String)>,
}

impl Planner<'_> {
    async fn plan_one(&mut self, one: &Waiting, known_keys: &KnownKeys) -> std::result::Result<Step, PublishError> {
        let event = &one.event;
        let (config_version, recipients) = match self.recipients(one).await? {
            Recipients::Known(version, recipients) => (version, recipients),
            Recipients::Unjudged(tenant) => return Ok(Step::Judge(tenant)),
        };
        let is_fan_out = event.is_fan_out();
        let fingerprint = event.idempotency_key.as_ref().map(|_| Fingerprint::of(event));
        let known = match (&event.idempotency_key, &fingerprint) {
            (Some(key), Some(fingerprint)) => known_keys
                .of(&event.tenant, key)
                .check(fingerprint, recipients.iter().map(|recipient| recipient.id), is_fan_out)
                .map_err(|idempotency::OtherContent| PublishError::KeyConflict)?,
            _ => idempotency::Known::default(),
        };
        let is_new_event = known.event_id.is_none();
        let adds = recipients.iter().any(|recipient| !known.deliveries.contains_key(&recipient.id));
        if let Some(key) = &event.idempotency_key
            && (is_new_event || adds)
            && !self.claimed_keys.insert((event.tenant.clone(), key.clone()))
        {
            return Ok(Step::Later);
        }
        if (is_new_event || adds) && self.store.backlog.is_full() {
            return Err(PublishError::QueueFull);
        }
        // Its caller in SQL was told an id already; that of a repeat is another event's.
        let told = one.taken_from.filter(|place| !place.is_repeat).map(|place| place.id);
        let new_id = || EventId::from_uuid(self.store.clock.new_uuid());
        let event_id = known.event_id.or(told).unwrap_or_else(new_id);
        let with = is_new_event.then_some(event_id);
        let deliveries = recipients.into_iter().map(|to| self.plan_delivery(to, with, &known)).collect();
        Ok(Step::Now(Draft {
            event_id,
            is_new_event,
            config_version,
            deliveries,
            fingerprint,
            claims_event_key: known.is_event_key_free,
        }))
    }

    /// `with` is the event that it is made with; one that is added later has an id of its own time.
    fn plan_delivery(&mut self, to: Recipient, with: Option<EventId>, known: &idempotency::Known) -> PlannedDelivery {
        if let Some(id) = known.deliveries.get(&to.id) {
            return PlannedDelivery { id: *id, to, fate: Fate::Duplicate, offer: None };
        }
        let id = match with {
            Some(event) => DeliveryId::of(event, rand::random()),
            None => DeliveryId::from_uuid(self.store.clock.new_uuid()),
        };
        let planned = self.planned.entry(to.id).or_default();
        let fate = if self.store.backlog.is_endpoint_full(to.id, *planned) { Fate::QueueFull } else { Fate::Queued };
        *planned += i64::from(fate == Fate::Queued);
        PlannedDelivery { id, to, fate, offer: None }
    }

    async fn recipients(&self, one: &Waiting) -> std::result::Result<Recipients, PublishError> {
        let event = &one.event;
        if let Some(inline) = one.inline {
            check_order(&event.schedule, &[inline])?;
            return Ok(Recipients::Known(self.tenant(event).await?.version, vec![inline]));
        }
        let mut tenant = self.tenant(event).await?;
        if event.endpoint_ids.is_empty() {
            return Ok(matching(one, tenant));
        }
        // An unknown one may have been registered since, or be unlisted.
        let mut unlisted = Vec::new();
        if event.endpoint_ids.iter().any(|id| tenant.recipient(*id).is_none()) {
            tenant = self.load(event).await?;
            let unknown: Vec<_> =
                event.endpoint_ids.iter().copied().filter(|id| tenant.recipient(*id).is_none()).collect();
            if !unknown.is_empty() {
                unlisted = self.store.unlisted(&event.tenant, &unknown).await.map_err(|error| unready(event, error))?;
            }
        }
        let named = |id: &EndpointId| {
            let known = tenant.recipient(*id).or_else(|| unlisted.iter().find(|one| one.id == *id).copied());
            known.ok_or(PublishError::EndpointNotFound(*id))
        };
        let recipients: Vec<Recipient> = event.endpoint_ids.iter().map(named).collect::<std::result::Result<_, _>>()?;
        check_order(&event.schedule, &recipients)?;
        Ok(Recipients::Known(tenant.version, recipients))
    }

    /// The endpoints of an event's tenant as last read.
    async fn tenant(&self, event: &NewEvent) -> std::result::Result<Arc<TenantEndpoints>, PublishError> {
        match self.store.directory.known(&event.tenant) {
            Some(known) => Ok(known),
            None => self.load(event).await,
        }
    }

    async fn load(&self, event: &NewEvent) -> std::result::Result<Arc<TenantEndpoints>, PublishError> {
        let loaded = self.store.directory.load(&self.store.engine, &event.tenant).await;
        loaded.map_err(|error| unready(event, error))
    }
}

/// Whether an event can have its place at endpoints that its publisher named: what matched by itself is taken as it is.
fn check_order(schedule: &Schedule, named: &[Recipient]) -> std::result::Result<(), PublishError> {
    for to in named {
        if to.ordering != Ordering::Unordered && schedule.deliver_time.is_some() {
            return Err(PublishError::DeliverTimeInOrder(to.id));
        }
        if to.ordering == Ordering::ByKey && schedule.ordering_key.is_none() {
            return Err(PublishError::OrderingKeyMissing(to.id));
        }
    }
    Ok(())
}

/// Every endpoint whose patterns and filter want the event.
fn matching(one: &Waiting, tenant: Arc<TenantEndpoints>) -> Recipients {
    let event_type = one.event.event_type.as_str();
    let mut recipients = tenant.matching(event_type);
    match &one.verdicts {
        Some(verdicts) if verdicts.version == tenant.version => {
            recipients.retain(|recipient| !verdicts.refused.contains(&recipient.id));
        }
        _ if tenant.has_filters(event_type) => return Recipients::Unjudged(tenant),
        _ => {}
    }
    Recipients::Known(tenant.version, recipients)
}
