//! Replays: which deliveries they take, what becomes of them, and that nothing is replayed twice.

use hooklane::api::proto::*;
use hooklane::cli::listen::{Behaviour, Receiver};
use http::StatusCode;
use tokio_stream::StreamExt as _;
use tonic::Code;

use super::{Service, endpoint, eventually, fields, reason, receiver, retries, service, service_with, soon, told};
use crate::support;

/// A service whose one endpoint refuses everything at once.
struct Stage {
    service: Service,
    url: String,
    endpoint: Endpoint,
    _refusing: Receiver,
}

async fn stage() -> Stage {
    let url = support::database().await;
    let service = service_with(url.clone(), &[]).await;
    let refusing = receiver(Behaviour { status: Some(StatusCode::BAD_GATEWAY), ..Behaviour::default() }).await;
    let given = Endpoint { retry_policy: Some(retries(0)), ..endpoint(&refusing.url()) };
    let endpoint = service.register(given).await;
    Stage { service, url, endpoint, _refusing: refusing }
}

impl Stage {
    /// Publishes so many events that fail.
    async fn fail(&self, count: usize, event_type: &str) -> Vec<String> {
        let requests = vec![super::event(event_type); count];
        let answer =
            self.service.client.clone().publish_batch(PublishBatchRequest { requests }).await.expect("published");
        let ids: Vec<String> = answer
            .into_inner()
            .results
            .into_iter()
            .map(|result| match result.result {
                Some(publish_batch_result::Result::Response(one)) => one.deliveries[0].delivery_id.clone(),
                other => panic!("{other:?}"),
            })
            .collect();
        for id in &ids {
            self.service.in_state(id, DeliveryState::Failed).await;
        }
        ids
    }

    /// The endpoint moves to a receiver that accepts everything.
    async fn mend(&self) -> Receiver {
        let accepting = receiver(Behaviour::default()).await;
        let moved = Endpoint { id: self.endpoint.id.clone(), url: accepting.url(), ..Endpoint::default() };
        let request = UpdateEndpointRequest { endpoint: Some(moved), update_mask: None };
        self.service.client.clone().update_endpoint(request).await.expect("updated");
        accepting
    }

    async fn start(&self, filter: ReplayFilter) -> Replay {
        start(&self.service, StartReplayRequest { filter: Some(filter), ..Default::default() }).await
    }

    /// How often each of the deliveries was asked to go on.
    async fn requests(&self) -> Vec<i64> {
        let mut connection = support::connection(&self.url).await;
        let counts = "select count(*) from timeline where kind = 8 group by delivery_id";
        sqlx::query_scalar(counts).fetch_all(&mut connection).await.expect("counted")
    }
}

pub(super) async fn start(service: &Service, request: StartReplayRequest) -> Replay {
    service.client.clone().start_replay(request).await.expect("started").into_inner().replay.expect("a replay")
}

async fn get(service: &Service, id: &str) -> Replay {
    let request = GetReplayRequest { replay_id: id.to_owned() };
    service.client.clone().get_replay(request).await.expect("read").into_inner().replay.expect("a replay")
}

pub(super) async fn ended(service: &Service, id: &str) -> Replay {
    eventually("the replay ended", || async {
        Some(get(service, id).await).filter(|replay| replay.state() != ReplayState::Running)
    })
    .await
}

fn counts(replay: &Replay) -> (ReplayState, u64, u64, u64) {
    (replay.state(), replay.matched, replay.replayed, replay.skipped)
}

#[tokio::test]
async fn failed_deliveries_go_on_themselves() {
    let stage = stage().await;
    let ids = stage.fail(130, "order.created").await;
    let accepting = stage.mend().await;
    let started = stage.start(ReplayFilter::default()).await;
    assert!(started.id.starts_with("rpl_") && started.state() == ReplayState::Running, "{started:?}");
    let replay = ended(&stage.service, &started.id).await;
    assert_eq!(counts(&replay), (ReplayState::Completed, 130, 130, 0));
    assert!(replay.end_time.is_some() && replay.error.is_empty());
    for id in &ids {
        let delivery = stage.service.in_state(id, DeliveryState::Succeeded).await;
        let triggers: Vec<_> = delivery.attempts.iter().map(|attempt| (attempt.number, attempt.trigger())).collect();
        assert_eq!(triggers, [(1, AttemptTrigger::Schedule), (2, AttemptTrigger::Replay)]);
        assert_eq!(delivery.replay_of, "", "the same delivery");
    }
    let letters = stage.service.client.clone().list_dead_letters(ListDeadLettersRequest::default()).await;
    assert!(letters.expect("listed").into_inner().dead_letters.is_empty());
    assert_eq!(stage.requests().await, vec![1; 130]);
    // Nothing is left behind but the replay itself.
    eventually("items and lanes are cleared", || async {
        let mut connection = support::connection(&stage.url).await;
        let left = "select (select count(*) from replay_items) + (select count(*) from replay_lanes)";
        let left: i64 = sqlx::query_scalar(left).fetch_one(&mut connection).await.expect("counted");
        (left == 0).then_some(())
    })
    .await;
    accepting.stop().await;
}

#[tokio::test]
async fn a_replay_takes_what_its_filter_says_and_a_dry_run_only_counts() {
    let stage = stage().await;
    let orders = stage.fail(5, "order.created").await;
    let users = stage.fail(3, "user.created").await;
    let other = Endpoint {
        event_types: vec!["quiet".to_owned()],
        retry_policy: Some(retries(0)),
        ..endpoint("http://127.0.0.1:9/")
    };
    let other = stage.service.register(other).await.id;
    let made = |id: &str| {
        let time = id.parse::<hooklane::domain::id::DeliveryId>().expect("an id").time();
        Some(prost_types::Timestamp { seconds: time.seconds() + 3_600, nanos: 0 })
    };
    let none = ReplayFilter::default();
    let failed = i32::from(DeliveryState::Failed);
    for (filter, matched) in [
        (none.clone(), 8),
        (ReplayFilter { states: vec![failed], ..none.clone() }, 8),
        (ReplayFilter { states: vec![DeliveryState::Canceled.into()], ..none.clone() }, 0),
        (ReplayFilter { states: vec![DeliveryState::Succeeded.into()], ..none.clone() }, 0),
        (ReplayFilter { tenant: "acme".to_owned(), ..none.clone() }, 0),
        (
            ReplayFilter {
                endpoint_ids: vec![stage.endpoint.id.clone(), stage.endpoint.id.clone(), other.clone()],
                ..none.clone()
            },
            8,
        ),
        (ReplayFilter { endpoint_ids: vec![other.clone()], ..none.clone() }, 0),
        (ReplayFilter { event_types: vec!["order.*".to_owned()], ..none.clone() }, 5),
        (ReplayFilter { create_after: made(&users[0]), ..none.clone() }, 0),
        (ReplayFilter { create_before: made(&users[0]), ..none.clone() }, 8),
        (ReplayFilter { delivery_ids: vec![orders[0].clone(), users[0].clone()], ..none.clone() }, 2),
        (ReplayFilter { delivery_ids: vec![orders[0].clone()], endpoint_ids: vec![other.clone()], ..none.clone() }, 0),
        (ReplayFilter { delivery_ids: vec![orders[0].clone()], tenant: "acme".to_owned(), ..none.clone() }, 0),
    ] {
        let started = start(
            &stage.service,
            StartReplayRequest { filter: Some(filter.clone()), dry_run: true, ..Default::default() },
        )
        .await;
        let replay = ended(&stage.service, &started.id).await;
        assert_eq!(counts(&replay), (ReplayState::Completed, matched, 0, 0), "{filter:?}");
        assert!(replay.dry_run);
    }
    assert!(stage.requests().await.is_empty(), "nothing was replayed");
    // What was deleted as a dead letter is left alone, unless it is named.
    let dismissed =
        DeleteDeadLettersRequest { delivery_ids: vec![orders[0].clone()], force: true, ..Default::default() };
    stage.service.client.clone().delete_dead_letters(dismissed).await.expect("deleted");
    for (filter, matched) in [(none.clone(), 7), (ReplayFilter { delivery_ids: vec![orders[0].clone()], ..none }, 1)] {
        let started =
            start(&stage.service, StartReplayRequest { filter: Some(filter), dry_run: true, ..Default::default() })
                .await;
        assert_eq!(ended(&stage.service, &started.id).await.matched, matched);
    }
}

#[tokio::test]
async fn succeeded_deliveries_are_made_anew_only_when_they_are_listed() {
    let service = service().await;
    let receiver = receiver(Behaviour::default()).await;
    let endpoint = service.register(endpoint(&receiver.url())).await;
    let id = service.publish_one("a").await;
    let first = service.in_state(&id, DeliveryState::Succeeded).await;
    let filter = ReplayFilter { states: vec![4, 5, 6, 7], ..Default::default() };
    let started = start(&service, StartReplayRequest { filter: Some(filter), ..Default::default() }).await;
    assert_eq!(counts(&ended(&service, &started.id).await), (ReplayState::Completed, 1, 1, 0));
    let list = ListDeliveriesRequest { endpoint_id: endpoint.id, ..Default::default() };
    let made = eventually("a new delivery succeeded", || async {
        let listed =
            service.client.clone().list_deliveries(list.clone()).await.expect("listed").into_inner().deliveries;
        listed.into_iter().find(|one| one.id != id && one.state() == DeliveryState::Succeeded)
    })
    .await;
    assert_eq!((made.replay_of.as_str(), &made.event_id), (started.id.as_str(), &first.event_id));
    let whole = service.delivery(&made.id).await;
    assert_eq!((whole.replay_of.as_str(), whole.attempts[0].trigger()), (started.id.as_str(), AttemptTrigger::Replay));
    let kept = service.delivery(&id).await;
    assert_eq!((kept.state(), kept.attempts.len(), kept.replay_of.as_str()), (DeliveryState::Succeeded, 1, ""));
    let event = GetEventRequest { event_id: first.event_id };
    let event = service.client.clone().get_event(event).await.expect("read").into_inner();
    assert_eq!(event.deliveries.iter().map(|one| &one.id).collect::<Vec<_>>(), [&made.id, &id], "newest first");
}

#[tokio::test]
async fn a_replay_never_meets_what_it_made_fail_again() {
    let stage = stage().await;
    let ids = stage.fail(40, "a").await;
    let started = stage.start(ReplayFilter::default()).await;
    assert_eq!(counts(&ended(&stage.service, &started.id).await), (ReplayState::Completed, 40, 40, 0));
    for id in &ids {
        eventually("it failed again", || async {
            let delivery = stage.service.delivery(id).await;
            (delivery.state() == DeliveryState::Failed && delivery.attempt_count == 2).then_some(())
        })
        .await;
    }
    assert_eq!(stage.requests().await, vec![1; 40]);
}

#[tokio::test]
async fn a_replay_fills_no_queue_and_waits_for_a_paused_endpoint() {
    let stage = stage().await;
    stage.fail(60, "a").await;
    let narrow = Endpoint { id: stage.endpoint.id.clone(), max_in_flight: 10, ..Endpoint::default() };
    let request = UpdateEndpointRequest { endpoint: Some(narrow), update_mask: None };
    stage.service.client.clone().update_endpoint(request).await.expect("updated");
    let endpoint_id = stage.endpoint.id.clone();
    let mut client = stage.service.client.clone();
    client.pause_endpoint(PauseEndpointRequest { endpoint_id: endpoint_id.clone() }).await.expect("paused");
    let accepting = stage.mend().await;
    let started = stage.start(ReplayFilter::default()).await;
    let waiting = eventually("twice what is sent at once waits", || async {
        Some(get(&stage.service, &started.id).await).filter(|replay| replay.replayed >= 20)
    })
    .await;
    assert_eq!((waiting.state(), waiting.matched, waiting.replayed), (ReplayState::Running, 60, 20));
    client.resume_endpoint(ResumeEndpointRequest { endpoint_id }).await.expect("resumed");
    assert_eq!(counts(&ended(&stage.service, &started.id).await), (ReplayState::Completed, 60, 60, 0));
    accepting.stop().await;
}

#[tokio::test]
async fn what_has_moved_meanwhile_or_has_no_endpoint_is_skipped() {
    let stage = stage().await;
    let ids = stage.fail(30, "a").await;
    let mut client = stage.service.client.clone();
    let narrow = Endpoint { id: stage.endpoint.id.clone(), max_in_flight: 1, ..Endpoint::default() };
    client.update_endpoint(UpdateEndpointRequest { endpoint: Some(narrow), update_mask: None }).await.expect("updated");
    client.pause_endpoint(PauseEndpointRequest { endpoint_id: stage.endpoint.id.clone() }).await.expect("paused");
    let started = stage.start(ReplayFilter::default()).await;
    eventually("its queue is full", || async {
        Some(get(&stage.service, &started.id).await).filter(|replay| replay.replayed == 16)
    })
    .await;
    client.retry_delivery(RetryDeliveryRequest { delivery_id: ids[29].clone() }).await.expect("retried");
    client
        .delete_endpoint(DeleteEndpointRequest { endpoint_id: stage.endpoint.id.clone(), ..Default::default() })
        .await
        .expect("deleted");
    assert_eq!(counts(&ended(&stage.service, &started.id).await), (ReplayState::Completed, 30, 16, 14));
}

#[tokio::test]
async fn a_pace_is_kept() {
    let stage = stage().await;
    stage.fail(60, "a").await;
    let accepting = stage.mend().await;
    let started = start(&stage.service, StartReplayRequest { max_per_second: 50.0, ..Default::default() }).await;
    assert_eq!(counts(&ended(&stage.service, &started.id).await), (ReplayState::Completed, 60, 60, 0));
    let mut connection = support::connection(&stage.url).await;
    // Batches are a tenth of a second's, and so much may be caught up: any further 50 take a second.
    let shortest: f64 = sqlx::query_scalar(
        "select min(extract(epoch from later.time - earlier.time))::float8
         from (select time, row_number() over (order by time) as n from timeline where kind = 8) earlier
         join (select time, row_number() over (order by time) as n from timeline where kind = 8) later
           on later.n = earlier.n + 59",
    )
    .fetch_one(&mut connection)
    .await
    .expect("measured");
    assert!(shortest >= 0.95, "60 deliveries in {shortest} s");
    accepting.stop().await;
}

#[tokio::test]
async fn a_canceled_replay_leaves_what_it_put_back() {
    let stage = stage().await;
    stage.fail(20, "a").await;
    let accepting = stage.mend().await;
    let started = start(&stage.service, StartReplayRequest { max_per_second: 0.5, ..Default::default() }).await;
    eventually("it began", || async {
        Some(get(&stage.service, &started.id).await).filter(|replay| replay.replayed > 0)
    })
    .await;
    let request = CancelReplayRequest { replay_id: started.id.clone() };
    let canceled = stage.service.client.clone().cancel_replay(request.clone()).await.expect("canceled").into_inner();
    let canceled = canceled.replay.expect("a replay");
    assert!(canceled.state() == ReplayState::Canceled && canceled.end_time.is_some() && canceled.replayed < 20);
    let again = stage.service.client.clone().cancel_replay(request).await.expect("canceled").into_inner().replay;
    assert_eq!(again, Some(canceled.clone()), "as it was");
    assert_eq!(stage.requests().await.len() as u64, canceled.replayed);
    accepting.stop().await;
}

#[tokio::test]
async fn a_stream_tells_the_progress_to_its_end() {
    let stage = stage().await;
    stage.fail(30, "a").await;
    let accepting = stage.mend().await;
    let started = start(&stage.service, StartReplayRequest { max_per_second: 20.0, ..Default::default() }).await;
    let request = StreamReplayRequest { replay_id: started.id.clone() };
    let mut stream = stage.service.client.clone().stream_replay(request).await.expect("opened").into_inner();
    let mut told: Vec<Replay> = Vec::new();
    while let Some(message) = soon("progress", stream.next()).await {
        told.push(message.expect("a message").replay.expect("a replay"));
    }
    let last = told.last().expect("one at least");
    assert_eq!(counts(last), (ReplayState::Completed, 30, 30, 0));
    assert!(told.len() > 2, "{}", told.len());
    assert!(told.windows(2).all(|pair| pair[0] != pair[1] && pair[0].replayed <= pair[1].replayed));
    assert!(told[..told.len() - 1].iter().all(|replay| replay.state() == ReplayState::Running));
    // Of one that has ended, its end.
    let request = StreamReplayRequest { replay_id: started.id };
    let mut stream = stage.service.client.clone().stream_replay(request).await.expect("opened").into_inner();
    let only = soon("the end", stream.next()).await.expect("one").expect("a message").replay;
    assert_eq!(only.as_ref(), Some(last));
    assert!(soon("nothing more", stream.next()).await.is_none());
    accepting.stop().await;
}

#[tokio::test]
async fn a_replay_goes_on_when_the_service_is_started_anew() {
    let stage = stage().await;
    let ids = stage.fail(60, "a").await;
    let accepting = stage.mend().await;
    let started = start(&stage.service, StartReplayRequest { max_per_second: 30.0, ..Default::default() }).await;
    eventually("it began", || async {
        Some(get(&stage.service, &started.id).await).filter(|replay| replay.replayed > 0)
    })
    .await;
    stage.service.app.stop().await;
    let service = service_with(stage.url.clone(), &[]).await;
    let before = get(&service, &started.id).await;
    assert_eq!(before.state(), ReplayState::Running);
    assert_eq!(counts(&ended(&service, &started.id).await), (ReplayState::Completed, 60, 60, 0));
    for id in &ids {
        let delivery = service.in_state(id, DeliveryState::Succeeded).await;
        assert_eq!(
            delivery.attempts.iter().filter(|one| one.trigger() == AttemptTrigger::Replay).count(),
            1,
            "{delivery:?}"
        );
    }
    accepting.stop().await;
}

#[tokio::test]
async fn however_often_its_workers_are_killed_a_replay_replays_each_once() {
    use hooklane::domain::fields::Tenant;
    use hooklane::store::{NewReplay, ReplayFilter, Store, Worked};
    let url = support::database().await;
    let mut admin = support::connection(&url).await;
    let rows = "insert into endpoints (id, tenant, url, shown_url, description, event_types, signature_scheme,
                       payload_format, timeout_ms, max_in_flight, labels, state, version, create_time, update_time)
         select md5('e' || n)::uuid, 'default', 'http://h/', 'http://h/', '', '{}', 1, 1, 1000, 1000, '{}', 1, 1, now(),
                now()
         from generate_series(0, 3) n;
         insert into settled_failed (id, endpoint_id, event_id, settle_time, claim_gen, attempt_count, last_status, state,
                                     priority, payload_format, tenant, event_type, reason)
         select md5('d' || n)::uuid, md5('e' || n % 4)::uuid, md5('v' || n)::uuid, now(), 1, 6, 503, 5, 2, 1, 'default',
                'a', 'HTTP 503: Service Unavailable'
         from generate_series(1, 1500) n";
    sqlx::raw_sql(rows).execute(&mut admin).await.expect("filled");
    let store = Store::open(&support::config(url.clone())).await.expect("opens");
    let filter = ReplayFilter {
        tenant: Tenant::default_tenant(),
        endpoints: Vec::new(),
        event_types: Vec::new(),
        states: Vec::new(),
        create_after: None,
        create_before: None,
        deliveries: Vec::new(),
    };
    let new = NewReplay { filter, is_dry_run: false, max_per_second: 0.0 };
    let replay = store.start_replay(&new).await.expect("started");
    let mut kills = 0;
    loop {
        // Two workers at once, each given up wherever it is; its connection goes, and with it what it had not committed.
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let store = std::sync::Arc::clone(&store);
                tokio::spawn(async move {
                    while let Ok(Worked::Again(wait)) = store.work_on_replays().await {
                        tokio::time::sleep(wait.min(std::time::Duration::from_millis(5))).await;
                    }
                })
            })
            .collect();
        // From too short for a step to long enough for several, on any machine.
        tokio::time::sleep(std::time::Duration::from_millis(3 + kills * 37 % 400)).await;
        workers.iter().for_each(tokio::task::JoinHandle::abort);
        for worker in workers {
            kills += u64::from(worker.await.is_err());
        }
        // As delivered ones leave, so that there is room; and no rest, which is not what is looked at here.
        let make_room = "delete from outstanding; update replays set next_time = now() where state = 1";
        sqlx::raw_sql(make_room).execute(&mut admin).await.expect("emptied");
        let now = store.replay(replay.id).await.expect("read").expect("there");
        if now.end_time.is_some() {
            assert_eq!((now.matched, now.replayed, now.skipped), (1_500, 1_500, 0));
            break;
        }
        assert!(kills < 20_000, "{now:?}");
    }
    let (requests, deliveries): (i64, i64) =
        sqlx::query_as("select count(*), count(distinct delivery_id) from timeline where kind = 8")
            .fetch_one(&mut admin)
            .await
            .expect("counted");
    assert_eq!((requests, deliveries), (1_500, 1_500), "after {kills} kills");
    assert!(kills > 5, "{kills}");
}

#[tokio::test]
async fn replays_are_listed_and_unknown_or_malformed_ones_refused() {
    let service = service().await;
    let mut client = service.client.clone();
    let mut expected = Vec::new();
    for _ in 0..5 {
        let started = start(&service, StartReplayRequest { dry_run: true, ..Default::default() }).await;
        ended(&service, &started.id).await;
        expected.push(started.id);
    }
    expected.reverse();
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListReplaysRequest { page_size: 2, page_token, ..Default::default() };
        let page = client.list_replays(request).await.expect("listed").into_inner();
        listed.extend(page.replays.into_iter().map(|replay| replay.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, expected);
    let others = ListReplaysRequest { tenant: "acme".to_owned(), ..Default::default() };
    assert!(client.list_replays(others).await.expect("listed").into_inner().replays.is_empty());

    let unknown = "rpl_01h455vb4pex5vsknk084sn02q".to_owned();
    let missing = told(Code::NotFound, "REPLAY_NOT_FOUND");
    let refusal = client.get_replay(GetReplayRequest { replay_id: unknown.clone() }).await.expect_err("unknown");
    assert_eq!(reason(&refusal), missing);
    let refusal = client.cancel_replay(CancelReplayRequest { replay_id: unknown.clone() }).await.expect_err("unknown");
    assert_eq!(reason(&refusal), missing);
    let refusal = client.stream_replay(StreamReplayRequest { replay_id: unknown }).await.expect_err("unknown");
    assert_eq!(reason(&refusal), missing);
    let refusal = client.get_replay(GetReplayRequest::default()).await.expect_err("malformed");
    assert_eq!(
        (reason(&refusal), fields(&refusal)),
        (told(Code::InvalidArgument, "INVALID_FIELD"), vec!["replay_id".to_owned()])
    );
    let filter = ReplayFilter { states: vec![DeliveryState::Pending.into()], ..Default::default() };
    let request = StartReplayRequest { filter: Some(filter), max_per_second: -1.0, ..Default::default() };
    let refusal = client.start_replay(request).await.expect_err("bad");
    assert_eq!(fields(&refusal), ["filter.states[0]", "max_per_second"]);
}

#[tokio::test]
async fn as_many_replays_run_as_may() {
    let stage = stage().await;
    // Each finds one that no other has put back, and waits a thousand seconds for its next.
    stage.fail(40, "a").await;
    for _ in 0..16 {
        start(&stage.service, StartReplayRequest { max_per_second: 0.001, ..Default::default() }).await;
    }
    let request = StartReplayRequest::default();
    let refusal = stage.service.client.clone().start_replay(request).await.expect_err("one too many");
    assert_eq!(reason(&refusal), told(Code::ResourceExhausted, "QUOTA"));
    let mut connection = support::connection(&stage.url).await;
    sqlx::query("update replays set state = 3, end_time = now() where state = 1")
        .execute(&mut connection)
        .await
        .expect("ended");
    start(&stage.service, StartReplayRequest { dry_run: true, ..Default::default() }).await;
}
