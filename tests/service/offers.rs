//! Claims that a publish makes by the way: of whose room, for whom, and what of it comes back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hooklane::domain::delivery::DeliveryState;
use hooklane::domain::event::NewEvent;
use hooklane::domain::id::{DeliveryId, EndpointId};
use hooklane::domain::schedule::{Priority, Schedule};
use hooklane::domain::time::Timestamp;
use hooklane::store::{Publisher, Store, Taken};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::publish::{event, register};
use crate::queue::{lane, lapse, success, waiting};
use crate::support;

const VERSION: i64 = 1;
/// In the year 2100.
const FAR_OFF: Timestamp = Timestamp::from_micros(4_102_444_800_000_000);

/// A store with one endpoint, at which so much room is offered.
async fn offering(room: u32) -> (Arc<Store>, String, EndpointId, UnboundedReceiver<Taken>) {
    let (store, url, endpoint, _) = waiting(0).await;
    let taken = store.offers().open();
    store.offers().close_at(Some(Instant::now() + Duration::from_secs(3_600)));
    store.offers().offer(endpoint, VERSION, room);
    (store, url, endpoint, taken)
}

async fn publish(store: &Arc<Store>, event: NewEvent) -> DeliveryId {
    Publisher::start(store).publish(event).await.expect("published").deliveries[0].delivery_id
}

async fn state(store: &Store, id: DeliveryId) -> DeliveryState {
    store.delivery_row(id).await.expect("read").expect("there").state
}

#[tokio::test]
async fn what_takes_an_offer_is_claimed_as_it_is_published_and_the_rest_waits() {
    let (store, url, endpoint, mut taken) = offering(2).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(publish(&store, event("order.created")).await);
    }
    let mut claimed = Vec::new();
    for id in &ids[..2] {
        let one = taken.recv().await.expect("told");
        assert_eq!(one.room, [(endpoint, 1)]);
        assert_eq!(one.claimed.iter().map(|one| one.id).collect::<Vec<_>>(), [*id]);
        claimed.extend(one.claimed);
    }
    assert!(taken.try_recv().is_err(), "there was no room for the third");
    let states = [state(&store, ids[0]).await, state(&store, ids[1]).await, state(&store, ids[2]).await];
    assert_eq!(states, [DeliveryState::InFlight, DeliveryState::InFlight, DeliveryState::Pending]);

    // Such a claim is as good as any: it excludes others, completes, and lapses.
    let others = store.claim(&[lane(endpoint, 10)]).await.expect("claimed").claimed;
    assert_eq!(others.iter().map(|one| one.id).collect::<Vec<_>>(), ids[2..]);
    let one = &claimed[0];
    assert_eq!((one.claim_gen, one.attempt, one.endpoint_version, one.due_at), (1, 1, VERSION, one.claimed_at));
    assert!(store.payloads(&[one.event]).await.expect("read").contains_key(&one.event));
    store.complete(&[success(one)]).await.expect("completed");
    assert_eq!(state(&store, ids[0]).await, DeliveryState::Succeeded);
    lapse(&url).await;
    let again = store.claim(&[lane(endpoint, 1)]).await.expect("claimed");
    assert_eq!(again.lost, [ids[1]]);
    assert_eq!((again.claimed[0].claim_gen, again.claimed[0].attempt, again.claimed[0].lost_count), (2, 2, 1));
    let settled = store.complete(&[success(&claimed[1])]).await.expect("asked");
    assert!(settled.won.is_empty(), "its time is over");
}

/// What makes an offer void, or an event nothing for it.
enum Void {
    /// The endpoint has changed so.
    Changed(&'static str),
    /// The event is so.
    Event(Box<NewEvent>),
    /// The offer is of another version.
    OtherVersion,
    /// The others have given this replica up.
    GivenUp,
    Closed,
    Withdrawn,
}

#[tokio::test]
async fn an_offer_stands_only_while_everything_is_as_the_lane_knows_it() {
    let scheduled = |schedule| Void::Event(Box::new(NewEvent { schedule, ..event("order.created") }));
    let open = "circuit_until = now() + interval '1 hour', circuit_opened_at = now(), circuit_openings = 1";
    for (what, void) in [
        ("paused", Void::Changed("state = 2")),
        ("changed", Void::Changed("version = 7")),
        ("an open circuit", Void::Changed(open)),
        ("another version", Void::OtherVersion),
        ("given up", Void::GivenUp),
        ("closed", Void::Closed),
        ("withdrawn", Void::Withdrawn),
        ("urgent", scheduled(Schedule { priority: Priority::High, ..Schedule::default() })),
        ("put off", scheduled(Schedule { deliver_time: Some(FAR_OFF), ..Schedule::default() })),
    ] {
        let (store, url, endpoint, mut taken) = offering(5).await;
        let mut published = event("order.created");
        let mut is_taken = true;
        match void {
            Void::Changed(how) => {
                let change = format!("update endpoints set {how}");
                sqlx::query(sqlx::AssertSqlSafe(change))
                    .execute(&mut support::connection(&url).await)
                    .await
                    .expect(what);
            }
            Void::Event(event) => (published, is_taken) = (*event, false),
            Void::OtherVersion => store.offers().offer(endpoint, VERSION + 1, 1),
            Void::GivenUp => store.claim_as(uuid::Uuid::from_u128(1)),
            Void::Closed => {
                store.offers().close_at(None);
                is_taken = false;
            }
            Void::Withdrawn => {
                assert_eq!(store.offers().withdraw(endpoint), 5);
                is_taken = false;
            }
        }
        let id = publish(&store, published).await;
        assert_eq!(state(&store, id).await, DeliveryState::Pending, "{what}");
        let begun = store.offers().withdraw_all(1).1;
        assert_eq!(begun, u64::from(is_taken), "{what}");
        if is_taken {
            let told = taken.recv().await.expect("told");
            assert_eq!((told.room, told.claimed.len()), (vec![(endpoint, 1)], 0), "{what}: the room comes back");
        }
    }
}

#[tokio::test]
async fn room_that_nothing_was_claimed_for_comes_back() {
    let (store, url, _, mut taken) = offering(500).await;
    let mut connection = support::connection(&url).await;
    let trap = "alter table events add constraint events_trap check (event_type <> 'bad')";
    sqlx::query(trap).execute(&mut connection).await.expect("altered");
    let publisher = Publisher::start(&store);
    let calls = (0..20).map(|n| publisher.publish(event(if n == 7 { "bad" } else { "good" })));
    let published: Vec<_> = futures::future::join_all(calls).await.into_iter().filter_map(Result::ok).collect();
    assert_eq!(published.len(), 19);
    let (mut room, mut claimed) = (0, Vec::new());
    let (left, begun) = store.offers().withdraw_all(1);
    for _ in 0..begun {
        let one = taken.recv().await.expect("told");
        room += one.room.iter().map(|(_, room)| room).sum::<u32>();
        claimed.extend(one.claimed.into_iter().map(|one| one.id));
    }
    let left = left.first().map_or(0, |(_, room)| *room);
    assert_eq!(room + left, 500, "all that was taken is told, of the batches too that the bad one spoiled");
    let mut ids: Vec<_> = published.iter().map(|one| one.deliveries[0].delivery_id).collect();
    ids.sort_unstable();
    claimed.sort_unstable();
    assert_eq!(claimed, ids);
}

#[tokio::test]
async fn each_endpoint_of_an_event_has_an_offer_of_its_own() {
    let (store, url, first, mut taken) = offering(1).await;
    let second = register(&store, &[]).await;
    let third = register(&store, &[]).await;
    store.offers().offer(second, VERSION, 1);
    store.offers().offer(third, VERSION, 1);
    let pause = format!("update endpoints set state = 2 where id = '{}'", second.uuid());
    sqlx::query(sqlx::AssertSqlSafe(pause)).execute(&mut support::connection(&url).await).await.expect("paused");
    let published = Publisher::start(&store).publish(event("order.created")).await.expect("published");
    assert_eq!(published.deliveries.len(), 3);
    for delivery in &published.deliveries {
        let expected = if delivery.endpoint_id == second { DeliveryState::Pending } else { DeliveryState::InFlight };
        assert_eq!(state(&store, delivery.delivery_id).await, expected);
    }
    let told = taken.recv().await.expect("told");
    assert_eq!(told.room.len(), 3);
    let mut claimed: Vec<_> = told.claimed.iter().map(|one| one.endpoint).collect();
    claimed.sort_unstable();
    let mut expected = [first, third];
    expected.sort_unstable();
    assert_eq!(claimed, expected);
}

#[tokio::test]
async fn what_is_taken_under_an_earlier_view_is_known_to_whoever_ends_it() {
    let (store, _, endpoint, mut taken) = offering(3).await;
    publish(&store, event("order.created")).await;
    let (left, begun) = store.offers().withdraw_all(7);
    assert_eq!((left, begun), (vec![(endpoint, 2)], 1));
    assert_eq!(taken.recv().await.expect("told").view, 0);
    store.offers().offer(endpoint, VERSION, 1);
    publish(&store, event("order.created")).await;
    assert_eq!(taken.recv().await.expect("told").view, 7);
}
