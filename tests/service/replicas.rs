//! Several replicas on one database: whose lanes are whose, how they pass on, and what the endpoints notice of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use hooklane::cli::listen::Behaviour;
use hooklane::domain::delivery::DeliveryState;
use hooklane::domain::id::{DeliveryId, EndpointId};
use hooklane::domain::rendezvous::{Driver, driver_of};
use hooklane::domain::schedule::Priority;
use hooklane::domain::time::Timestamp;
use hooklane::engine::Engine;
use hooklane::engine::membership::Membership;
use hooklane::store::{Config, DeliveryFilter, Hint, LaneRequest, PublishedDelivery, Publisher, Replica, Roles, Store};
use sqlx::postgres::PgListener;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::delivery::{endpoint, receiver, start_member};
use crate::publish::event;
use crate::support::{self, eventually};

/// A claim of NORMAL rows from the beginning.
fn whole(endpoint: EndpointId, room: u32) -> LaneRequest {
    let (priority, low_water) = (Priority::Normal, Timestamp::from_micros(i64::MIN));
    LaneRequest { endpoint, priority, room, held: 0, ahead: 0, low_water, version: 0, circuit_until: None }
}

const API: Roles = Roles { api: true, worker: false };

pub(crate) async fn open(url: &str, name: &str) -> Arc<Store> {
    let config = Config { replica: name.to_owned(), ..support::config(url.to_owned()) };
    Store::open(&config).await.expect("opens")
}

/// A worker with a runtime of its own, so that it can be killed: whatever runs on it ends where it stands, and its
/// connections are closed.
pub(crate) struct Worker {
    runtime: Runtime,
    engine: Engine,
    member: JoinHandle<()>,
    shutdown: CancellationToken,
    end: CancellationToken,
}

impl Worker {
    pub(crate) async fn start(url: &str, name: &str) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let (url, name) = (url.to_owned(), name.to_owned());
        let (shutdown, end) = (CancellationToken::new(), CancellationToken::new());
        let tokens = (shutdown.clone(), end.clone());
        let handle = runtime.handle().clone();
        let started = tokio::task::spawn_blocking(move || {
            handle.block_on(async {
                let store = open(&url, &name).await;
                start_member(&store, Duration::from_secs(30), &tokens.0, tokens.1)
            })
        });
        let (engine, member) = started.await.expect("no panic");
        Self { runtime, engine, member, shutdown, end }
    }

    /// Ends it as SIGTERM does.
    async fn drain(self) {
        self.shutdown.cancel();
        self.runtime.spawn(self.engine.ended()).await.expect("no panic");
        self.end.cancel();
        self.member.await.expect("no panic");
        self.runtime.shutdown_background();
    }

    pub(crate) fn kill(self) {
        self.runtime.shutdown_background();
    }
}

/// Waits until exactly these drive lanes, and each reckons with each.
pub(crate) async fn driving(store: &Store, names: &[&str]) -> Vec<Replica> {
    eventually(&format!("{names:?} drive"), || async {
        let drivers: Vec<_> = store.replicas().await.ok()?.into_iter().filter(|one| one.drives).collect();
        let are_all =
            drivers.iter().map(|one| one.name.as_str()).collect::<HashSet<_>>() == names.iter().copied().collect();
        let ids: HashSet<_> = drivers.iter().map(|one| one.id).collect();
        let agree = drivers.iter().all(|one| one.sees.iter().copied().collect::<HashSet<_>>() == ids);
        (are_all && agree).then_some(drivers)
    })
    .await
}

/// A receiver that counts, for each path, how many requests are under way at once, and for each delivery, how many came.
#[derive(Default)]
struct Gauges {
    paths: Mutex<BTreeMap<String, Arc<Gauge>>>,
    arrived: Mutex<HashMap<String, usize>>,
}

#[derive(Default)]
struct Gauge {
    now: AtomicUsize,
    max: AtomicUsize,
}

/// One request under way, until it is answered or its connection is gone.
struct UnderWay(Arc<Gauge>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Gauges {
    /// Starts to answer, each request after `delay`; answers the address too.
    async fn start(delay: Duration) -> (Arc<Self>, String) {
        let gauges = Arc::new(Self::default());
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let take = move |State(gauges): State<Arc<Self>>, Path(path): Path<String>, headers: http::HeaderMap| async move {
            let gauge = Arc::clone(gauges.paths.lock().expect("no panic").entry(path).or_default());
            let now = gauge.now.fetch_add(1, Ordering::SeqCst) + 1;
            gauge.max.fetch_max(now, Ordering::SeqCst);
            let _under_way = UnderWay(gauge);
            let id = headers["x-webhook-id"].to_str().expect("text").to_owned();
            *gauges.arrived.lock().expect("no panic").entry(id).or_default() += 1;
            tokio::time::sleep(delay).await;
        };
        let router = Router::new().route("/{path}", axum::routing::post(take)).with_state(Arc::clone(&gauges));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (gauges, url)
    }

    /// The most that were ever under way at once at one path.
    fn most(&self) -> usize {
        let paths = self.paths.lock().expect("no panic");
        paths.values().map(|gauge| gauge.max.load(Ordering::SeqCst)).max().unwrap_or_default()
    }

    fn arrivals(&self, id: DeliveryId) -> usize {
        self.arrived.lock().expect("no panic").get(&id.to_string()).copied().unwrap_or_default()
    }
}

/// Publishes without pause until it is told to stop; answers every delivery.
fn publish_on(publisher: &Publisher, stop: &Arc<AtomicBool>) -> tokio::task::JoinHandle<Vec<DeliveryId>> {
    let (publisher, stop) = (publisher.clone(), Arc::clone(stop));
    tokio::spawn(async move {
        let mut ids = Vec::new();
        while !stop.load(Ordering::SeqCst) {
            let published = publisher.publish(event("a")).await.expect("published");
            ids.extend(published.deliveries.iter().map(|delivery| delivery.delivery_id));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        ids
    })
}

/// Waits until nothing is outstanding.
pub(crate) async fn settled(store: &Store) {
    use DeliveryState::{InFlight, Pending, Retrying};
    let filter = DeliveryFilter { states: vec![Pending, InFlight, Retrying], ..DeliveryFilter::default() };
    eventually("everything is settled", || async {
        let (rows, _) = store.list_deliveries(&filter, 1).await.ok()?;
        rows.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn every_lane_is_driven_by_the_one_it_falls_to() {
    let url = support::database().await;
    let store = open(&url, "publisher").await;
    let receiver = receiver(Behaviour::default()).await;
    for _ in 0..30 {
        endpoint(&store, &receiver.url(), |_| {}).await;
    }
    let names = ["one", "two", "three"];
    let mut workers = Vec::new();
    for name in names {
        workers.push(Worker::start(&url, name).await);
    }
    let drivers = driving(&store, &names).await;
    let drivers: Vec<_> = drivers.iter().map(|one| Driver::new(one.id, &one.name)).collect();
    let name_of: HashMap<_, _> = drivers.iter().map(|driver| driver.id).zip(driving(&store, &names).await).collect();
    let published = Publisher::start(&store).publish(event("a")).await.expect("published");
    settled(&store).await;
    let mut busy = HashSet::new();
    for delivery in published.deliveries {
        let record = store.delivery(delivery.delivery_id).await.expect("read").expect("there");
        let expected = &name_of[&driver_of(delivery.endpoint_id, &drivers).expect("one").id].name;
        assert_eq!((record.attempts.len(), &record.attempts[0].replica_id), (1, expected));
        busy.insert(expected.clone());
    }
    assert_eq!(busy.len(), names.len(), "of thirty lanes, each has some");
    assert_eq!(receiver.count(), 30);
    for worker in workers {
        worker.drain().await;
    }
    let left = store.replicas().await.expect("read");
    assert!(left.is_empty(), "who ends leaves no row: {left:?}");
}

#[tokio::test]
async fn the_cap_holds_while_replicas_join_leave_and_die() {
    const CAP: u32 = 3;
    let url = support::database().await;
    let store = open(&url, "publisher").await;
    let (_membership, _) = Membership::start(&store, API, CancellationToken::new());
    let (gauges, address) = Gauges::start(Duration::from_millis(40)).await;
    for path in 0..8 {
        endpoint(&store, &format!("{address}/{path}"), |spec| spec.max_in_flight = CAP).await;
    }
    let (publisher, stop) = (Publisher::start(&store), Arc::new(AtomicBool::new(false)));
    let first = Worker::start(&url, "first").await;
    driving(&store, &["first"]).await;
    let publishing: Vec<_> = (0..2).map(|_| publish_on(&publisher, &stop)).collect();
    let second = Worker::start(&url, "second").await;
    driving(&store, &["first", "second"]).await;
    let third = Worker::start(&url, "third").await;
    driving(&store, &["first", "second", "third"]).await;
    first.drain().await;
    driving(&store, &["second", "third"]).await;
    second.kill();
    let fourth = Worker::start(&url, "fourth").await;
    driving(&store, &["third", "fourth"]).await;
    stop.store(true, Ordering::SeqCst);
    let ids: Vec<_> = futures::future::try_join_all(publishing).await.expect("no panic").concat();
    settled(&store).await;
    assert_eq!(gauges.most(), CAP as usize, "reached, and never passed");
    let mut lost = 0;
    for id in ids {
        let record = store.delivery(id).await.expect("read").expect("there");
        assert_eq!(record.row.state, DeliveryState::Succeeded);
        lost += record.attempts.len() - 1;
        let arrivals = gauges.arrivals(id);
        assert!((1..=record.attempts.len()).contains(&arrivals), "{id} arrived {arrivals} times: {record:?}");
    }
    assert!(lost <= 8 * 2 * CAP as usize, "no more than the killed one held, and none of the drained one: {lost}");
    third.drain().await;
    fourth.drain().await;
}

#[tokio::test]
async fn what_others_have_in_flight_counts_until_it_ends() {
    let url = support::database().await;
    let other = open(&url, "other").await;
    let receiver = receiver(Behaviour { silent: true, ..Behaviour::default() }).await;
    let lane = endpoint(&other, &receiver.url(), |spec| {
        spec.max_in_flight = 3;
        spec.timeout = Duration::from_secs(300);
    })
    .await;
    let publisher = Publisher::start(&other);
    for _ in 0..10 {
        publisher.publish(event("a")).await.expect("published");
    }
    let request = whole(lane, 2);
    let held = other.claim(&[request]).await.expect("claimed").claimed;
    let held: Vec<_> = held.iter().map(|one| (one.id, one.claim_gen)).collect();
    let here = open(&url, "here").await;
    let found = here.in_flight_elsewhere(&[lane]).await.expect("found");
    assert_eq!((found.len(), found[0].max_in_flight, found[0].held.len()), (1, 3, 2));
    assert!(other.in_flight_elsewhere(&[lane]).await.expect("found")[0].held.is_empty(), "its own");

    let shutdown = CancellationToken::new();
    let (_engine, _) = start_member(&here, Duration::ZERO, &shutdown, CancellationToken::new());
    receiver.next().await.expect("a request");
    // What would be another request too many has had every occasion once a later lane's delivery is through.
    let healthy = crate::delivery::receiver(Behaviour::default()).await;
    endpoint(&other, &healthy.url(), |_| {}).await;
    publisher.publish(event("a")).await.expect("published");
    healthy.next().await.expect("a request");
    assert_eq!(receiver.count(), 1);
    other.release(&held[..1]).await.expect("released");
    receiver.next().await.expect("room for one more");
    let lapse = "update outstanding set lease_until = now() - interval '1 second' where replica = 'other'";
    sqlx::query(lapse).execute(&mut support::connection(&url).await).await.expect("lapsed");
    receiver.next().await.expect("room for the last");
    publisher.publish(event("a")).await.expect("published");
    healthy.next().await.expect("a request");
    assert_eq!(receiver.count(), 3);
    shutdown.cancel();
}

#[tokio::test]
async fn replicas_tell_each_other_of_work_and_growth() {
    let url = support::database().await;
    let publishing = open(&url, "publishing").await;
    let receiver = receiver(Behaviour { delay: Duration::from_millis(300), ..Behaviour::default() }).await;
    let lane = endpoint(&publishing, &receiver.url(), |_| {}).await;
    let end = CancellationToken::new();
    let (_membership, _) = Membership::start(&publishing, API, end.clone());
    let delivering = open(&url, "delivering").await;
    let hints = tokio::sync::Mutex::new(delivering.due_hints());
    let (_engine, _) = start_member(&delivering, Duration::from_secs(1), &CancellationToken::new(), end);
    driving(&publishing, &["delivering"]).await;
    let publisher = Publisher::start(&publishing);
    // From the moment on at which each has read of the other.
    let told = eventually("a hint is heard", || async {
        publisher.publish(event("a")).await.expect("published");
        let hint = tokio::time::timeout(Duration::from_secs(1), async {
            loop {
                if let Hint::Heard(due) = hints.lock().await.recv().await.expect("hints") {
                    return due;
                }
            }
        });
        hint.await.ok()
    })
    .await;
    assert!(told.iter().all(|due| due.endpoint == lane) && !told.is_empty());
}

#[tokio::test]
async fn replicas_tell_each_other_that_the_timeline_grows() {
    let url = support::database().await;
    let delivering = open(&url, "delivering").await;
    let watching = open(&url, "watching").await;
    let end = CancellationToken::new();
    let (_membership, _) = Membership::start(&watching, API, end.clone());
    let (_engine, _) = start_member(&delivering, Duration::from_secs(1), &CancellationToken::new(), end);
    driving(&watching, &["delivering"]).await;
    let receiver = receiver(Behaviour::default()).await;
    endpoint(&delivering, &receiver.url(), |_| {}).await;
    let publisher = Publisher::start(&delivering);
    let mut growth = watching.growth_hints();
    eventually("growth is heard", || {
        growth.mark_unchanged();
        let mut growth = growth.clone();
        let publisher = publisher.clone();
        async move {
            publisher.publish(event("a")).await.expect("published");
            tokio::time::timeout(Duration::from_secs(1), growth.changed()).await.ok()
        }
    })
    .await
    .expect("hints");
    assert_eq!(*watching.own_growth_hints().borrow(), 0, "none of it was its own");
}

#[tokio::test]
async fn a_replica_alone_tells_nobody_of_its_work() {
    let url = support::database().await;
    let mut heard = PgListener::connect(&url).await.expect("connects");
    heard.listen("hooklane").await.expect("listens");
    let store = open(&url, "alone").await;
    let receiver = receiver(Behaviour::default()).await;
    endpoint(&store, &receiver.url(), |_| {}).await;
    let end = CancellationToken::new();
    let (engine, _) = start_member(&store, Duration::from_secs(1), &end, end.clone());
    let publisher = Publisher::start(&store);
    for _ in 0..20 {
        publisher.publish(event("a")).await.expect("published");
        receiver.next().await.expect("a request");
    }
    settled(&store).await;
    end.cancel();
    engine.ended().await;
    sqlx::query("select pg_notify('hooklane', 'the end')")
        .execute(&mut support::connection(&url).await)
        .await
        .expect("told");
    loop {
        let note = heard.recv().await.expect("a note").payload().to_owned();
        if note == "the end" {
            break;
        }
        assert!(!note.contains(" work "), "{note}");
    }
}

#[tokio::test]
async fn a_replica_whose_row_is_gone_claims_nothing() {
    let url = support::database().await;
    let store = open(&url, "given up").await;
    let lane = endpoint(&store, "http://127.0.0.1:9/", |_| {}).await;
    let publisher = Publisher::start(&store);
    for _ in 0..2 {
        publisher.publish(event("a")).await.expect("published");
    }
    let request = whole(lane, 1);
    let mut session = store.session().await.expect("a session");
    assert!(store.join(&mut session, Roles { api: false, worker: true }, None).await.expect("joined"));
    store.claim_as(session.id());
    assert_eq!(store.claim(&[request]).await.expect("claimed").claimed.len(), 1);
    sqlx::query("delete from replicas").execute(&mut support::connection(&url).await).await.expect("deleted");
    assert!(store.claim(&[request]).await.expect("claimed").claimed.is_empty());
    assert!(session.beat(true, &[]).await.expect("beaten").here.is_empty(), "and its heartbeat brings nothing back");
}

#[tokio::test]
async fn the_silent_and_those_without_a_session_are_dead() {
    let url = support::database().await;
    let store = open(&url, "witness").await;
    let worker = Roles { api: false, worker: true };
    let mut sessions = Vec::new();
    for _ in 0..4 {
        let mut session = store.session().await.expect("a session");
        store.join(&mut session, worker, None).await.expect("joined");
        sessions.push(session);
    }
    let ids: Vec<_> = sessions.iter().map(|session| session.id()).collect();
    let mut witness = sessions.remove(0);
    assert_eq!(witness.beat(true, &ids).await.expect("beaten").here.len(), 4);
    let silence = "update replicas set beat_time = now() - interval '11 seconds' where id = $1";
    let mut connection = support::connection(&url).await;
    sqlx::query(silence).bind(ids[1]).execute(&mut connection).await.expect("silenced");
    let silence = "update replicas set beat_time = now() - interval '9 seconds' where id = $1";
    sqlx::query(silence).bind(ids[2]).execute(&mut connection).await.expect("silenced");
    let roll = witness.beat(true, &ids).await.expect("beaten");
    assert_eq!((roll.removed.len(), roll.removed[0].id, roll.here.len()), (1, ids[1], 3));
    assert!(roll.here.iter().any(|one| one.id == ids[2] && one.silent_for >= Duration::from_secs(9)));
    drop(sessions.pop());
    let witness = tokio::sync::Mutex::new(witness);
    let removed = eventually("the session is found ended", || async {
        witness.lock().await.beat(true, &ids).await.expect("beaten").removed.pop()
    })
    .await;
    assert_eq!(removed.id, ids[3]);
}

#[tokio::test]
async fn a_replica_that_lost_its_session_joins_again_and_goes_on() {
    let url = support::database().await;
    let store = open(&url, "the one").await;
    let receiver = receiver(Behaviour::default()).await;
    endpoint(&store, &receiver.url(), |_| {}).await;
    let publisher = Publisher::start(&store);
    let (_engine, _) = start_member(&store, Duration::ZERO, &CancellationToken::new(), CancellationToken::new());
    let [before] = &driving(&store, &["the one"]).await[..] else { panic!("one") };
    let end_session = "select pg_terminate_backend(pid) from pg_locks
                       where locktype = 'advisory' and (classid::bigint << 32 | objid::bigint) = $1";
    let key = before.id.as_u64_pair().1.cast_signed();
    sqlx::query(end_session).bind(key).execute(&mut support::connection(&url).await).await.expect("ended");
    eventually("it is somebody new", || async {
        let rows = store.replicas().await.expect("read");
        (rows.len() == 1 && rows[0].id != before.id && rows[0].drives).then_some(())
    })
    .await;
    publisher.publish(event("a")).await.expect("published");
    receiver.next().await.expect("a request");
}

#[tokio::test]
async fn a_later_version_beside_this_one_keeps_the_lanes_that_fall_to_it() {
    let url = support::database().await;
    let column = "alter table replicas add column zone text not null default 'a'";
    sqlx::query(column).execute(&mut support::connection(&url).await).await.expect("altered");
    let store = open(&url, "later").await;
    let receiver = receiver(Behaviour::default()).await;
    for _ in 0..20 {
        endpoint(&store, &receiver.url(), |_| {}).await;
    }
    // It says what a replica says, and more that this version does not know.
    let mut later = store.session().await.expect("a session");
    store.join(&mut later, Roles { api: false, worker: true }, None).await.expect("joined");
    let leave = CancellationToken::new();
    let beating = tokio::spawn({
        let (leave, url) = (leave.clone(), url.clone());
        async move {
            let mut connection = support::connection(&url).await;
            let mut sees = vec![later.id()];
            while !leave.is_cancelled() {
                sees = later.beat(true, &sees).await.expect("beaten").here.iter().map(|one| one.id).collect();
                let note = format!("select pg_notify('hooklane', '{} zones a b')", later.id().simple());
                sqlx::query(sqlx::AssertSqlSafe(note)).execute(&mut connection).await.expect("told");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            later.leave().await.expect("left");
        }
    });
    let earlier = open(&url, "earlier").await;
    let (_engine, _) = start_member(&earlier, Duration::ZERO, &CancellationToken::new(), CancellationToken::new());
    let drivers = driving(&store, &["later", "earlier"]).await;
    let drivers: Vec<_> = drivers.iter().map(|one| Driver::new(one.id, &one.name)).collect();
    let published = Publisher::start(&store).publish(event("a")).await.expect("published");
    let later = drivers.iter().find(|one| **one == Driver::new(one.id, "later")).expect("later");
    type Deliveries = Vec<PublishedDelivery>;
    let (theirs, own): (Deliveries, Deliveries) =
        published.deliveries.iter().partition(|delivery| driver_of(delivery.endpoint_id, &drivers) == Some(later));
    assert!(!theirs.is_empty() && !own.is_empty());
    for _ in &own {
        receiver.next().await.expect("a request");
    }
    for delivery in theirs {
        let row = store.delivery_row(delivery.delivery_id).await.expect("read").expect("there");
        assert_eq!(row.state, DeliveryState::Pending);
    }
    leave.cancel();
    beating.await.expect("no panic");
    settled(&store).await;
    assert_eq!(receiver.count(), 20);
}

#[tokio::test]
async fn a_replica_of_an_earlier_version_starts_where_a_later_one_has_migrated() {
    let url = support::database().await;
    let later = "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
                 values (9999, 'of a later version', true, 'x', 1)";
    sqlx::query(later).execute(&mut support::connection(&url).await).await.expect("recorded");
    let store = open(&url, "earlier").await;
    assert!(store.replicas().await.expect("read").is_empty());
}

#[tokio::test]
async fn chores_that_meet_on_several_replicas_do_their_work_once() {
    let url = support::database().await;
    let store = open(&url, "one").await;
    let lane = endpoint(&store, "http://127.0.0.1:9/", |_| {}).await;
    let publisher = Publisher::start(&store);
    futures::future::join_all((0..300).map(|_| publisher.publish(event("a")))).await;
    let request = whole(lane, 50);
    assert_eq!(store.claim(&[request]).await.expect("claimed").claimed.len(), 50);
    store.delete_endpoint(lane, None).await.expect("deleted");
    let mut others = Vec::new();
    for name in ["two", "three", "four"] {
        others.push(open(&url, name).await);
    }
    let all = others.iter().chain([&store]);
    let chores = all.map(|store| async {
        let canceled = store.cancel_deleted(lane).await?;
        store.rest_tombstone(lane).await?;
        store.make_partitions().await?;
        store.prune_idempotency_keys(100).await?;
        store.count_backlog().await?;
        Ok::<_, hooklane::store::Error>(canceled)
    });
    let canceled: u64 = futures::future::try_join_all(chores).await.expect("none fails").into_iter().sum();
    assert_eq!(canceled, 300, "250 that waited and 50 in flight");
}
