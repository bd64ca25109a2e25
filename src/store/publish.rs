//! Publishing: callers in flight share commits.
//!
//! Requests queue up while a commit is under way and the next commit takes all of them; a caller alone waits for no
//! company. A batch that a row spoils is halved until the row stands alone. Filters are asked before an event is queued.
//!
//! The file is long because the queue, the committer and what it answers are read together.

mod claimed;
mod columns;
mod filters;
mod from_sql;
mod gather;
mod plan;
mod write;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

pub(super) use self::filters::Judges;
use self::filters::Verdicts;
pub use self::from_sql::{InboxWalk, TakenUp};
use self::gather::Gatherer;
pub(super) use self::plan::Plan;
use self::plan::Planned;
pub(super) use self::write::PUBLISH;
use self::write::{Written, write};
use super::directory::{Recipient, TenantEndpoints};
use super::error::Error;
use super::inbox::Place;
use super::offers::Taking;
use super::queue::Claimed;
use super::{Due, Store};
use crate::domain::event::NewEvent;
use crate::domain::id::{DeliveryId, EndpointId, EventId};
use crate::domain::time::Timestamp;
use crate::telemetry::log::few;

/// What a publish made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The event, or the first one with the same idempotency key.
    pub event_id: EventId,
    /// One for each endpoint it is delivered to.
    pub deliveries: Vec<PublishedDelivery>,
    /// Whether nothing new was made.
    pub duplicate: bool,
}

/// One delivery of a published event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedDelivery {
    /// Its id.
    pub delivery_id: DeliveryId,
    /// Where it goes.
    pub endpoint_id: EndpointId,
    /// Whether an earlier publish with the same key made it.
    pub duplicate: bool,
}

/// Why an event was not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The tenant has no such endpoint.
    #[error("there is no endpoint {0}")]
    EndpointNotFound(EndpointId),
    /// The event is put off, and one of the endpoints it names wants its deliveries in publish order.
    #[error("{0} is ordered and cannot wait for deliver_time")]
    DeliverTimeInOrder(EndpointId),
    /// The event has no ordering key, and one of the endpoints it names orders by it.
    #[error("{0} orders by ordering_key")]
    OrderingKeyMissing(EndpointId),
    /// The key was used with another event type, payload or content type.
    #[error("the idempotency key was used for another event")]
    KeyConflict,
    /// As many deliveries are outstanding as may be.
    #[error("the queue is full")]
    QueueFull,
    /// The database refused this event's rows.
    #[error("the database refused the event: {0}")]
    Refused(String),
    /// The database cannot be reached; whether the event was committed is unknown.
    #[error("the database cannot be reached")]
    Unavailable,
    /// A fault of ours, logged where it was met.
    #[error("the event could not be stored")]
    Internal,
}

/// An event on its way into a commit, and who waits for it.
struct Waiting {
    /// Boxed: it changes hands some ten times on its way.
    event: Box<NewEvent>,
    /// The endpoint that came with it.
    inline: Option<Recipient>,
    /// What filters said of it, where they were asked.
    verdicts: Option<Verdicts>,
    /// How often it was sent back to be judged.
    sent_back: usize,
    /// The row in the inbox that it is, where it was published in SQL.
    taken_from: Option<Place>,
    reply: oneshot::Sender<Result<Published, PublishError>>,
}

/// Where an event's answer comes.
type Answer = oneshot::Receiver<Result<Published, PublishError>>;

impl Waiting {
    fn answer(self, outcome: Result<Published, PublishError>) {
        // A caller that has gone away misses its answer; the event stands.
        let _ = self.reply.send(outcome);
    }
}

/// Requests that may wait for a commit; beyond it callers wait in their connection.
const WAITING_MAX: usize = 4_096;
/// Events of one commit at most.
const BATCH_EVENTS_MAX: usize = 256;
/// Payload bytes of one commit, about: one more event than that may go.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Deliveries of one statement, about: one more event than that may go.
const BATCH_DELIVERIES_MAX: usize = 4_000;
/// How long a caller waits for its answer: a statement and the wait for its connection. While the database does not
/// answer, batches take that long each, and who stands far back in the queue would wait for all of those before it.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// How often a batch is planned anew before its callers are told to try again: each time somebody else has changed
/// an endpoint or taken a key meanwhile.
const ROUNDS_MAX: usize = 32;

/// Takes events and commits them in batches.
#[derive(Debug, Clone)]
pub struct Publisher {
    store: Arc<Store>,
    queue: mpsc::Sender<Waiting>,
}

impl Publisher {
    /// Starts the committer; it ends when the last clone is dropped and the queue is empty.
    ///
    /// There is one: whoever comes while a commit is under way shares the next, and a statement costs as much as ten of
    /// its events. Two of them halved the batches and took a third more of the database's processor time.
    pub fn start(store: &Arc<Store>) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        let mut gatherer = Gatherer::of(waiting);
        let committer = Committer { store: Arc::clone(store), queue: queue.downgrade() };
        tokio::spawn(async move {
            loop {
                let batch = gatherer.next_batch().await;
                if batch.is_empty() {
                    return;
                }
                committer.commit(batch).await;
            }
        });
        Self { store: Arc::clone(store), queue }
    }

    /// Publishes one event; answers once it is committed, or was not.
    pub async fn publish(&self, event: NewEvent) -> Result<Published, PublishError> {
        let published = pin!(async {
            let (waiting, answer) = self.ready(Box::new(event)).await?;
            self.queue.send(waiting).await.map_err(|_| PublishError::Unavailable)?;
            answer.await.unwrap_or(Err(PublishError::Internal))
        });
        timeout(ANSWER_MAX, published).await.unwrap_or(Err(PublishError::Unavailable))
    }

    /// Publishes several events, each for itself; those that are ordered by one key come one behind the other. Answers
    /// in their order.
    pub async fn publish_in_order(&self, events: Vec<NewEvent>) -> Vec<Result<Published, PublishError>> {
        let until = Instant::now() + ANSWER_MAX;
        // Filters and endpoints that come with an event take a while of their own; the queue is in order.
        let ready = join_all(events.into_iter().map(|event| timeout_at(until, self.ready(Box::new(event))))).await;
        let mut queued = Vec::with_capacity(ready.len());
        for one in ready {
            queued.push(match one.unwrap_or(Err(PublishError::Unavailable)) {
                Ok((waiting, answer)) => match timeout_at(until, self.queue.send(waiting)).await {
                    Ok(Ok(())) => Ok(answer),
                    _ => Err(PublishError::Unavailable),
                },
                Err(error) => Err(error),
            });
        }
        let mut answers = Vec::with_capacity(queued.len());
        for one in queued {
            answers.push(match one {
                Ok(answer) => match timeout_at(until, answer).await {
                    Ok(answered) => answered.unwrap_or(Err(PublishError::Internal)),
                    Err(_) => Err(PublishError::Unavailable),
                },
                Err(error) => Err(error),
            });
        }
        answers
    }

    /// An event that can be queued, and where its answer comes.
    async fn ready(&self, event: Box<NewEvent>) -> Result<(Waiting, Answer), PublishError> {
        let verdicts = self.verdicts(&event).await;
        let inline = match &event.inline_endpoint {
            Some(inline) => {
                // Boxed, for it is large and seldom, as judging is: every publish would carry room for it.
                let recipient = Box::pin(self.store.inline_recipient(&event.tenant, inline));
                Some(recipient.await.map_err(|error| unready(&event, error))?)
            }
            None => None,
        };
        let (reply, answer) = oneshot::channel();
        Ok((Waiting { event, inline, verdicts, sent_back: 0, taken_from: None, reply }, answer))
    }

    /// What filters say of an event. Of a tenant that is not known yet the committer learns whether there are filters.
    async fn verdicts(&self, event: &NewEvent) -> Option<Verdicts> {
        let tenant = self.store.directory.known_with_filters(&event.tenant).filter(|_| event.is_fan_out())?;
        Some(Box::pin(self.store.judges.judge(&tenant, event)).await)
    }
}

/// Why an event was not even queued.
fn unready(event: &NewEvent, error: Error) -> PublishError {
    tracing::warn!(
        %error,
        tenant = event.tenant.as_str(),
        event_type = event.event_type.as_str(),
        trace_id = event.trace_id().map(tracing::field::display),
        "endpoints could not be read or made for an event"
    );
    if error.is_passing() { PublishError::Unavailable } else { PublishError::Internal }
}

struct Committer {
    store: Arc<Store>,
    queue: mpsc::WeakSender<Waiting>,
}

impl Committer {
    /// Publishes a batch to the end: everybody in it is answered, or will be.
    async fn commit(&self, mut waiting: Vec<Waiting>) {
        // Nobody waits for these any more: they were told that nothing is known of their event, or have gone away.
        waiting.retain(|one| !one.reply.is_closed());
        for _ in 0..ROUNDS_MAX {
            let Planned { plans, later: mut again, unjudged } = plan::plan(&self.store, waiting).await;
            self.send_back(unjudged);
            for chunk in chunks(plans) {
                again.extend(write_halving(&self.store, chunk).await);
            }
            if again.is_empty() {
                return;
            }
            waiting = again;
        }
        for unlucky in waiting {
            unlucky.answer(Err(PublishError::Unavailable));
        }
    }

    /// Asks the filters again, of the configuration that holds by now, and queues the events anew, in their order.
    fn send_back(&self, unjudged: Vec<(Waiting, Arc<TenantEndpoints>)>) {
        if unjudged.is_empty() {
            return;
        }
        let (store, queue) = (Arc::clone(&self.store), self.queue.clone());
        tokio::spawn(async move {
            let judged = unjudged.into_iter().map(|(mut one, tenant)| {
                let store = &store;
                async move {
                    one.sent_back += 1;
                    if one.sent_back <= ROUNDS_MAX {
                        one.verdicts = Some(store.judges.judge(&tenant, &one.event).await);
                    }
                    one
                }
            });
            for one in join_all(judged).await {
                let refused = match queue.upgrade() {
                    Some(queue) if one.sent_back <= ROUNDS_MAX => queue.send(one).await.err().map(|refused| refused.0),
                    _ => Some(one),
                };
                if let Some(one) = refused {
                    one.answer(Err(PublishError::Unavailable));
                }
            }
        });
    }
}

/// Cuts a batch where its deliveries would make one statement too large.
fn chunks(plans: Vec<Plan>) -> Vec<Vec<Plan>> {
    let mut chunks: Vec<Vec<Plan>> = Vec::new();
    let mut room = 0;
    for plan in plans {
        if room == 0 {
            chunks.push(Vec::new());
            room = BATCH_DELIVERIES_MAX;
        }
        room = room.saturating_sub(plan.deliveries.len().max(1));
        if let Some(chunk) = chunks.last_mut() {
            chunk.push(plan);
        }
    }
    chunks
}

/// Writes a batch; one that a row spoils is halved until the row stands alone. Answers everybody but those it returns,
/// who are to be planned anew.
async fn write_halving(store: &Store, batch: Vec<Plan>) -> Vec<Waiting> {
    let mut again = Vec::new();
    let mut batches = vec![batch];
    while let Some(mut batch) = batches.pop() {
        let began = store.clock.now();
        match write(store, &mut batch).await {
            Ok(Written::All { at, lost, taking }) => {
                // From the back, so that removing one leaves the places of the others.
                for place in lost.into_iter().rev() {
                    again.push(batch.swap_remove(place).waiting);
                }
                finish(store, batch, began, at, taking);
            }
            Ok(Written::TakenElsewhere { places }) => {
                for place in places.into_iter().rev() {
                    batch.remove(place).answer_taken();
                }
                again.extend(batch.into_iter().map(|plan| plan.waiting));
            }
            Ok(Written::NothingMatchedAnew) => again.extend(batch.into_iter().map(|plan| plan.waiting)),
            Err(Error::Conflict(_)) => again.extend(batch.into_iter().map(|plan| plan.waiting)),
            Err(Error::Data(_)) if batch.len() > 1 => {
                let rest = batch.split_off(batch.len() / 2);
                // The first half is next: what is ordered stays so.
                batches.extend([rest, batch]);
            }
            Err(error) => refuse(batch, &error),
        }
    }
    again
}

/// Answers a committed batch and tells who else should know.
fn finish(store: &Store, batch: Vec<Plan>, began: Timestamp, at: Timestamp, taking: Taking<'_>) {
    let mut due: Vec<Due> = Vec::new();
    let mut claimed: Vec<Claimed> = Vec::new();
    let mut queued: Vec<EndpointId> = Vec::new();
    let mut refused: Vec<EndpointId> = Vec::new();
    let mut refused_count = 0;
    let mut committed = Vec::with_capacity(batch.len());
    for plan in batch {
        queued.extend(plan.queued().map(|delivery| delivery.to.id));
        refused_count += plan.refused().count() as u64;
        if !plan.event().event_type.is_operational() {
            refused.extend(plan.refused().map(|delivery| delivery.to.id));
        }
        let schedule = &plan.event().schedule;
        let (at, priority) = (schedule.deliver_time.map_or(at, |time| time.max(at)), Some(schedule.priority));
        let waiting = plan.queued().filter(|delivery| delivery.offer.is_none());
        due.extend(waiting.map(|delivery| Due { endpoint: delivery.to.id, at, priority }));
        claimed.extend(plan.claimed(at, &taking));
        let is_new = plan.is_new_event;
        let (waiting, published) = plan.into_answer();
        if is_new {
            store.filter_errors.note(waiting.verdicts.as_ref().map_or(&[], |verdicts| &verdicts.failed));
            committed.push(waiting.event.into_event(published.event_id));
        }
        // A caller that has gone away misses its answer; the event stands.
        let _ = waiting.reply.send(Ok(published));
    }
    store.trace_committed(&committed, began);
    store.metrics.events.count(committed.iter().map(|event| event.event_type.as_str()));
    // Before the hint: who claims at once finds them.
    store.recent.keep(committed);
    store.metrics.claims_with_publish.inc_by(claimed.len() as u64);
    taking.claim(claimed);
    store.metrics.deliveries.failed.inc_by(refused_count);
    store.backlog.change(queued.into_iter().map(|endpoint| (endpoint, 1)));
    if !refused.is_empty() {
        store.tallies.note_refused(refused);
    }
    due.sort_unstable_by_key(|due| (due.endpoint, due.priority, due.at));
    due.dedup();
    store.hint(due);
}

fn refuse(batch: Vec<Plan>, error: &Error) {
    let outcome = match error {
        Error::Data(refusal) => PublishError::Refused(refusal.to_string()),
        Error::Unavailable(_) | Error::Conflict(_) => PublishError::Unavailable,
        Error::Internal(_) | Error::Unreadable(_) | Error::Sealed(_) | Error::Random(_) => PublishError::Internal,
    };
    let (count, ids) = (batch.len(), few(batch.iter().map(|plan| plan.event_id)));
    let trace_ids = few(batch.iter().filter_map(|plan| plan.event().trace_id()));
    if error.is_passing() {
        tracing::warn!(events = count, ids = %ids, %trace_ids, %error, "events were not published");
    } else {
        tracing::error!(events = count, ids = %ids, %trace_ids, %error, "events were not published");
    }
    drop((ids, trace_ids));
    for plan in batch {
        plan.waiting.answer(Err(outcome.clone()));
    }
}
