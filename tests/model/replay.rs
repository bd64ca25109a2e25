//! The model held against PostgreSQL: each of its actions as the real operation of the store, and every row compared
//! after every step.
//!
//! Time passes as in the model, by leases and due times that are set; nothing waits for the clock.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hooklane::domain::delivery::DeliveryState;
use hooklane::domain::endpoint::{EndpointSpec, PayloadFormat, SignatureScheme};
use hooklane::domain::event::NewEvent;
use hooklane::domain::fields::{ContentType, Tenant};
use hooklane::domain::id::{DeliveryId, EndpointId};
use hooklane::domain::pattern::EventType;
use hooklane::domain::schedule::Priority;
use hooklane::domain::secret::Secret;
use hooklane::domain::time::Timestamp;
use hooklane::domain::url::EndpointUrl;
use hooklane::store::{
    AttemptRecord, CANCELED_REASON, CancelRefused, Claimed, Completion, LaneRequest, NewEndpoint, Publisher,
    RetryRefused, Settlement, Store,
};
use sqlx::PgConnection;
use stateright::Model as _;

use crate::protocol::{Action, Operator, Protocol, State, Verb, Worker};
use crate::rows::{Answer, Claim, Ending, Entry, Lease, Reason, Row, Settled, Tables};
use crate::support;

/// A database in which one path after the other is taken.
pub(crate) struct Replay {
    store: Arc<Store>,
    publisher: Publisher,
    connection: PgConnection,
    /// One for each delivery, so that a claim can name it.
    endpoints: Vec<EndpointId>,
}

/// What a path has come to.
struct Here {
    state: State,
    ids: Vec<DeliveryId>,
    held: Vec<Option<Claimed>>,
}

const ROWS: &str = "
select id, state, claim_gen, attempt_count, null::text, retries_spent, lost_count, cancel_requested,
       lease_until is not null, coalesce(lease_until > now(), false), due_at <= now()
from outstanding where id = any($1)
union all
select id, 4::smallint, claim_gen, attempt_count, null, null, null, null, null, null, null
from settled_succeeded where id = any($1)
union all
select id, state, claim_gen, attempt_count, reason, null, null, null, null, null, null
from settled_failed where id = any($1)";

/// Every step is a transaction of its own, so their order is that of the steps.
const TIMELINE: &str =
    "select delivery_id, kind, number, outcome from transitions where delivery_id = any($1) order by xid";

/// A machine that pauses lets no lease lapse that the model does not.
const HOLD: &str =
    "update outstanding set lease_until = now() + interval '1 day' where id = $1 and lease_until > now()";
const LAPSE: &str = "update outstanding set lease_until = now() where id = $1 and lease_until > now()";
const DUE: &str = "update outstanding set due_at = now() where id = $1";

type RowColumns = (
    sqlx::types::Uuid,
    i16,
    i32,
    i32,
    Option<String>,
    Option<i32>,
    Option<i32>,
    Option<bool>,
    Option<bool>,
    Option<bool>,
    Option<bool>,
);

impl Replay {
    pub(crate) async fn open(deliveries: usize) -> Self {
        let url = support::database().await;
        let store = Store::open(&support::config(url.clone())).await.expect("opens");
        let mut endpoints = Vec::new();
        for _ in 0..deliveries {
            endpoints.push(register(&store).await);
        }
        let connection = support::connection(&url).await;
        Self { publisher: Publisher::start(&store), store, connection, endpoints }
    }

    /// Takes the actions that `model` admits, one after the other, and compares after each; answers how many it took.
    pub(crate) async fn take(&mut self, model: &Protocol, actions: impl IntoIterator<Item = Action>) -> usize {
        let mut here = self.begin(model).await;
        let mut taken = Vec::new();
        for action in actions {
            let mut admitted = Vec::new();
            model.actions(&here.state, &mut admitted);
            let Some(next) = model.next_state(&here.state, action).filter(|_| admitted.contains(&action)) else {
                break;
            };
            taken.push(action);
            self.perform(model, &mut here, action, &next).await;
            here.state = next;
            self.compare(&here, &taken).await;
        }
        taken.len()
    }

    async fn begin(&mut self, model: &Protocol) -> Here {
        sqlx::query("delete from outstanding").execute(&mut self.connection).await.expect("deleted");
        let published = self.publisher.publish(event(self.endpoints.clone())).await.expect("published");
        let id_at = |endpoint| published.deliveries.iter().find(|one| one.endpoint_id == endpoint).expect("there");
        let ids = self.endpoints.iter().map(|&endpoint| id_at(endpoint).delivery_id).collect();
        Here { state: model.init_states().remove(0), ids, held: vec![None; model.workers] }
    }

    async fn perform(&mut self, model: &Protocol, here: &mut Here, action: Action, next: &State) {
        match action {
            // What is only seen or only sent changes no row.
            Action::Look { .. } | Action::Send { .. } | Action::Ask { .. } => {}
            Action::Claim { worker } => {
                let Worker::Looked { delivery, .. } = here.state.workers[worker] else { unreachable!() };
                let low_water = Timestamp::from_micros(i64::MIN);
                let (endpoint, priority) = (self.endpoints[delivery], Priority::Normal);
                let lane = LaneRequest {
                    endpoint,
                    priority,
                    room: 1,
                    held: 0,
                    ahead: 0,
                    low_water,
                    version: 0,
                    circuit_until: None,
                };
                let claimed = self.store.claim(&[lane]).await.expect("claimed").claimed.pop();
                let expected = match next.workers[worker] {
                    Worker::Holds { claim, .. } => Some(claim),
                    _ => None,
                };
                let serial = expected.map_or(0, |claim| claim.serial);
                assert_eq!(claimed.as_ref().map(|one| claim_of(one, serial)), expected, "{action:?}");
                self.set(HOLD, here.ids[delivery]).await;
                here.held[worker] = claimed;
            }
            Action::Complete { worker, answer, is_heard } => {
                let Worker::Holds { claim, .. } = here.state.workers[worker] else { unreachable!() };
                let claimed = here.held[worker].clone().expect("held");
                let completion = completion(model, &claimed, &claim, answer);
                let before = &here.state.deliveries[self.place(&claimed)].tables;
                let after = &next.deliveries[self.place(&claimed)].tables;
                let won = self.store.complete(&[completion]).await.expect("completed").won;
                assert_eq!(won.contains(&claimed.id), before != after, "{action:?}");
                if is_heard {
                    here.held[worker] = None;
                }
            }
            Action::Renew { worker } => {
                let claimed = here.held[worker].clone().expect("held");
                let row = next.deliveries[self.place(&claimed)].tables.outstanding;
                let renewed = self.store.renew(&[(claimed.id, claimed.claim_gen)]).await.expect("renewed");
                assert_eq!(renewed.len(), usize::from(row.is_some_and(|row| row.lease == Lease::Holds)));
                self.set(HOLD, claimed.id).await;
            }
            Action::Release { worker } => {
                let claimed = here.held[worker].take().expect("held");
                self.store.release(&[(claimed.id, claimed.claim_gen)]).await.expect("released");
            }
            Action::Crash { worker } => here.held[worker] = None,
            Action::Lapse { delivery } => self.set(LAPSE, here.ids[delivery]).await,
            Action::Due { delivery } => self.set(DUE, here.ids[delivery]).await,
            Action::Act => self.operate(here, next).await,
        }
    }

    async fn operate(&self, here: &Here, next: &State) {
        let Operator::Looked { delivery, verb, .. } = here.state.operator else { unreachable!() };
        let (before, after) = (&here.state.deliveries[delivery].tables, &next.deliveries[delivery].tables);
        let (id, is_settled) = (here.ids[delivery], before.outstanding.is_none());
        match verb {
            Verb::Cancel => match self.store.cancel(id).await {
                Ok(()) => assert!(!is_settled),
                Err(refused) => assert!(is_settled && matches!(refused, CancelRefused::Settled), "{refused}"),
            },
            Verb::Retry => match self.store.retry(id).await {
                Ok(()) => assert_ne!(before, after),
                Err(RetryRefused::Succeeded) => assert_eq!(before.state(), Some(DeliveryState::Succeeded)),
                Err(RetryRefused::NotSettled) => assert!(!is_settled && before == after),
                Err(refused) => panic!("{refused}"),
            },
        }
    }

    async fn set(&mut self, statement: &'static str, id: DeliveryId) {
        sqlx::query(statement).bind(id.uuid()).execute(&mut self.connection).await.expect("set");
    }

    fn place(&self, claimed: &Claimed) -> usize {
        self.endpoints.iter().position(|&endpoint| endpoint == claimed.endpoint).expect("one of ours")
    }

    /// Every table says what the model says, and the sweep finds what no worker holds.
    async fn compare(&mut self, here: &Here, taken: &[Action]) {
        let found = self.read(here).await;
        let expected: Vec<_> = here.state.deliveries.iter().map(|one| &one.tables).collect();
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "after {taken:#?}");
        let swept: HashSet<_> = self.store.sweep().await.expect("swept").iter().map(|seen| seen.due.endpoint).collect();
        let waits = |row: Option<Row>| row.is_some_and(|row| row.lease != Lease::Holds);
        let waiting = self.endpoints.iter().zip(&expected).filter(|(_, tables)| waits(tables.outstanding));
        assert_eq!(swept, waiting.map(|(&endpoint, _)| endpoint).collect(), "after {taken:#?}");
    }

    async fn read(&mut self, here: &Here) -> Vec<Tables> {
        let ids: Vec<_> = here.ids.iter().map(|id| id.uuid()).collect();
        let rows: Vec<RowColumns> =
            sqlx::query_as(ROWS).bind(&ids).fetch_all(&mut self.connection).await.expect("read");
        let told: Vec<(sqlx::types::Uuid, i16, Option<i32>, Option<i16>)> =
            sqlx::query_as(TIMELINE).bind(&ids).fetch_all(&mut self.connection).await.expect("read");
        let mut all = Vec::new();
        for (place, id) in ids.iter().enumerate() {
            let mut tables = Tables { outstanding: None, settled: Vec::new(), timeline: Vec::new() };
            for columns in rows.iter().filter(|columns| columns.0 == *id) {
                // Of the model alone, and so not to be compared.
                let claims = here.state.deliveries[place].tables.claims();
                add_row(&mut tables, columns, claims);
            }
            for (_, kind, number, outcome) in told.iter().filter(|columns| columns.0 == *id) {
                let attempt = number.map(i32::cast_unsigned).zip(*outcome);
                tables.timeline.push(Entry { kind: *kind, attempt });
            }
            all.push(tables);
        }
        all
    }
}

fn add_row(tables: &mut Tables, columns: &RowColumns, claims: u32) {
    let (_, state, claim_gen, attempt_count, reason, retries, lost, canceled, has_lease, holds, is_due) = columns;
    let state = DeliveryState::from_number(*state).expect("a state");
    let (claim_gen, attempt_count) = (*claim_gen, attempt_count.cast_unsigned());
    if state.is_settled() {
        let reason = reason.as_deref().map(reason_of);
        tables.settled.push(Settled { state, claim_gen, attempt_count, reason, claims });
        return;
    }
    assert!(tables.outstanding.is_none(), "two rows of one id");
    let lease = match (has_lease, holds) {
        (Some(true), Some(true)) => Lease::Holds,
        (Some(true), _) => Lease::Lapsed,
        _ => Lease::None,
    };
    tables.outstanding = Some(Row {
        state,
        claim_gen,
        attempt_count,
        retries_spent: retries.expect("a count").cast_unsigned(),
        lost_count: lost.expect("a count").cast_unsigned(),
        cancel_requested: *canceled == Some(true),
        lease,
        is_due: *is_due == Some(true),
        claims,
    });
}

fn reason_of(words: &str) -> Reason {
    if words == CANCELED_REASON {
        Reason::Canceled
    } else if words == LOST_REASON {
        Reason::LostTooOften
    } else if words.starts_with("HTTP ") {
        Reason::Answer
    } else {
        panic!("an unknown reason: {words}")
    }
}

const LOST_REASON: &str = "10 attempts were lost with their workers";

fn claim_of(claimed: &Claimed, serial: u32) -> Claim {
    Claim {
        claim_gen: claimed.claim_gen,
        attempt: claimed.attempt,
        retries_spent: claimed.retries_spent,
        lost_count: claimed.lost_count,
        cancel_requested: claimed.cancel_requested,
        serial,
    }
}

/// What the engine would hand to the store.
fn completion(model: &Protocol, claimed: &Claimed, claim: &Claim, answer: Option<Answer>) -> Completion {
    let ending = match answer {
        Some(answer) => claim.settle(answer, &model.policy),
        None => claim.unsent(model.rule).expect("not to be sent"),
    };
    let settlement = match ending {
        Ending::Retries(delay) => Settlement::Retry { delay },
        Ending::Settles(DeliveryState::Succeeded, _) => Settlement::Succeeded,
        Ending::Settles(_, Some(Reason::Canceled)) => Settlement::Canceled(CANCELED_REASON.to_owned()),
        Ending::Settles(_, Some(Reason::LostTooOften)) => Settlement::Failed(LOST_REASON.to_owned()),
        Ending::Settles(..) => Settlement::Failed(answer.expect("an answer").result().error),
    };
    let attempt = answer.map(|answer| AttemptRecord {
        started_at: claimed.claimed_at,
        trigger: claimed.trigger,
        url: "http://127.0.0.1:9/".into(),
        result: answer.result(),
        is_operational: false,
    });
    Completion {
        id: claimed.id,
        endpoint: claimed.endpoint,
        claim_gen: claimed.claim_gen,
        attempt_count: if attempt.is_some() { claimed.attempt } else { claimed.attempt - 1 },
        attempt,
        trace: None,
        settlement,
        order_key: claimed.order_key.clone(),
    }
}

async fn register(store: &Store) -> EndpointId {
    let spec = EndpointSpec {
        url: EndpointUrl::parse("http://127.0.0.1:9/", &support::loopback_rules()).expect("a URL"),
        description: String::new(),
        event_types: Vec::new(),
        signature_scheme: SignatureScheme::Timestamped,
        payload_format: PayloadFormat::Envelope,
        retry_policy: None,
        timeout: Duration::from_secs(1),
        max_in_flight: 64,
        rate_limit: None,
        circuit_breaker: Default::default(),
        disable_policy: Default::default(),
        labels: Default::default(),
        external_id: None,
        headers: Default::default(),
        tls: Default::default(),
        event_retry_policies: Vec::new(),
        filter: None,
        ordering: Default::default(),
        on_failure: Default::default(),
    };
    let new = NewEndpoint { tenant: Tenant::default_tenant(), spec, secret: Secret::from_random(&[7; 32]) };
    store.register_endpoint(&new).await.expect("registered").id
}

fn event(endpoint_ids: Vec<EndpointId>) -> NewEvent {
    NewEvent {
        tenant: Tenant::default_tenant(),
        event_type: EventType::parse("order.created").expect("a type"),
        payload: Bytes::from_static(b"{}"),
        content_type: ContentType::parse("").expect("a content type"),
        idempotency_key: None,
        metadata: Default::default(),
        endpoint_ids,
        source: None,
        inline_endpoint: None,
        schedule: Default::default(),
        trace: None,
    }
}
