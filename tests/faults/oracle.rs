//! What holds after every fault, checked against three witnesses: the receiver's record, the database's timeline and the
//! service's own answers.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hooklane::api::proto::{Delivery, DeliveryState, ListDeliveriesRequest};
use hooklane::domain::id::DeliveryId;
use hooklane::store::LEASE;
use sqlx::PgConnection;
use sqlx::types::Uuid;

use crate::load::{Client, delivery, settled};
use crate::record::Arrival;
use crate::stage::Stage;
use crate::support::eventually;

/// How long a lease that nobody renews may stand after its end.
const LAPSED_MAX: Duration = Duration::from_secs(5);

/// The receiver's record, by delivery.
type Arrivals = HashMap<String, Vec<Arrival>>;

/// Checks everything, once the faults are over and nobody publishes any more. `acknowledged` are deliveries; `in_flight`
/// bounds the attempts that were in flight at the faults.
pub(crate) async fn every_promise_holds(stage: &Stage, acknowledged: &[String], in_flight: usize) {
    let (client, mut database) = (stage.client().await, stage.database().await);
    nothing_leased_beyond(&mut database, LEASE + LAPSED_MAX).await;
    settled(&client).await;
    let arrivals = stage.record.arrivals();
    acknowledged_is_delivered_or_final(&client, acknowledged, &arrivals).await;
    no_stale_completion(&mut database, &arrivals).await;
    duplicates_are_explained(&mut database, &arrivals, in_flight).await;
}

/// Every claim that stands now has ended by then: its attempt is over, or it has lapsed and was taken over.
async fn nothing_leased_beyond(database: &mut PgConnection, limit: Duration) {
    type Claim = (Uuid, i32);
    const HELD: &str = "select id, claim_gen from outstanding where state = 2";
    let began = Instant::now();
    let at_first: Vec<Claim> = sqlx::query_as(HELD).fetch_all(&mut *database).await.expect("read");
    loop {
        let held: Vec<Claim> = sqlx::query_as(HELD).fetch_all(&mut *database).await.expect("read");
        let left = at_first.iter().filter(|claim| held.contains(claim)).count();
        if left == 0 {
            return;
        }
        assert!(began.elapsed() < limit, "{left} of {} claims still stand after {limit:?}", at_first.len());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Every acknowledged delivery succeeded and stands in the record, verified; or it ended otherwise, with its reason.
async fn acknowledged_is_delivered_or_final(client: &Client, acknowledged: &[String], arrivals: &Arrivals) {
    assert!(!acknowledged.is_empty());
    let known = all_deliveries(client).await;
    for id in acknowledged {
        let Some(listed) = known.get(id) else { panic!("{id} was acknowledged and is not known") };
        match listed.state() {
            DeliveryState::Succeeded => {
                let arrived = arrivals.get(id).map_or(&[][..], Vec::as_slice);
                assert!(arrived.iter().any(|arrival| arrival.is_verified), "{id} succeeded: {arrived:?}");
            }
            DeliveryState::Failed | DeliveryState::Canceled | DeliveryState::Expired => {
                let shown = delivery(client, id).await;
                assert!(!shown.reason.is_empty() || !shown.last_error.is_empty(), "{shown:?}");
            }
            unsettled => panic!("{id} is {unsettled:?}"),
        }
    }
}

async fn all_deliveries(client: &Client) -> HashMap<String, Delivery> {
    let mut known = HashMap::new();
    let mut request = ListDeliveriesRequest { page_size: 500, ..ListDeliveriesRequest::default() };
    loop {
        let page = eventually("a page is read", || async {
            client.clone().list_deliveries(request.clone()).await.ok().map(tonic::Response::into_inner)
        })
        .await;
        known.extend(page.deliveries.into_iter().map(|delivery| (delivery.id.clone(), delivery)));
        if page.next_page_token.is_empty() {
            return known;
        }
        request.page_token = page.next_page_token;
    }
}

/// Deliveries that the timeline contradicts, by how: nobody retried any by hand.
const CONTRADICTIONS: [(&str, &str); 4] = [
    (
        "an attempt that ended twice",
        "select delivery_id from transitions where number is not null group by delivery_id, number having count(*) > 1",
    ),
    (
        "settled twice",
        "select delivery_id from transitions where state between 4 and 7 group by delivery_id having count(*) > 1",
    ),
    (
        "an attempt that began before the one before it had ended, or ended after the next had begun",
        "select delivery_id from (
           select delivery_id, time, lead(started_at) over (partition by delivery_id order by number) as next_began
           from transitions where number is not null) attempts
         where next_began < time",
    ),
    (
        "a change after it was settled",
        "select t.delivery_id from transitions t
         join transitions s on s.delivery_id = t.delivery_id and s.state between 4 and 7
         where t.time > s.time or t.number > s.number",
    ),
];

/// No result came from a claim that was over: attempts end once and one after the other, a settled delivery stays as it
/// is, and an attempt that succeeded is in the record.
async fn no_stale_completion(database: &mut PgConnection, arrivals: &Arrivals) {
    for (what, contradicted) in CONTRADICTIONS {
        let ids: Vec<Uuid> = sqlx::query_scalar(contradicted).fetch_all(&mut *database).await.expect("read");
        assert!(ids.is_empty(), "{what}: {:?}", ids.into_iter().map(DeliveryId::from_uuid).collect::<Vec<_>>());
    }
    let succeeded: Vec<(Uuid, i32)> = sqlx::query_as("select delivery_id, number from transitions where outcome = 1")
        .fetch_all(database)
        .await
        .expect("read");
    for (id, number) in succeeded {
        let id = DeliveryId::from_uuid(id).to_string();
        let arrived = arrivals.get(&id).map_or(&[][..], Vec::as_slice);
        let is_in_it = arrived.iter().any(|arrival| i64::from(arrival.attempt) == i64::from(number));
        assert!(is_in_it, "attempt {number} of {id} succeeded, and the record has {arrived:?}");
    }
}

/// No attempt was sent twice; a delivery arrived beyond its attempts with a result as often as attempts were lost at
/// most; and all that arrived again was in flight at a fault.
async fn duplicates_are_explained(database: &mut PgConnection, arrivals: &Arrivals, in_flight: usize) {
    let ended: Vec<(Uuid, i64, i64)> = sqlx::query_as(
        "select delivery_id, count(*) filter (where outcome = 9), count(*) filter (where outcome <> 9)
         from transitions where number is not null group by delivery_id",
    )
    .fetch_all(database)
    .await
    .expect("read");
    let ended: HashMap<String, (usize, usize)> = ended
        .into_iter()
        .map(|(id, lost, answered)| {
            let count = |count: i64| usize::try_from(count).expect("a count");
            (DeliveryId::from_uuid(id).to_string(), (count(lost), count(answered)))
        })
        .collect();
    let mut duplicates = 0;
    for (id, arrived) in arrivals {
        let mut attempts: Vec<u32> = arrived.iter().map(|arrival| arrival.attempt).collect();
        attempts.sort_unstable();
        assert!(attempts.is_sorted_by(|one, next| one < next), "an attempt was sent twice: {arrived:?}");
        let (lost, answered) = ended.get(id).copied().unwrap_or_default();
        assert!(arrived.len() <= lost + answered, "{id}: {arrived:?}, {lost} lost, {answered} answered");
        duplicates += arrived.len().saturating_sub(answered);
    }
    assert!(duplicates <= in_flight, "{duplicates} duplicates, {in_flight} attempts were in flight at the faults");
}
