//! The queue's verbs: fenced, batched, and nothing lost on the way.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hooklane::domain::attempt::{AttemptOutcome, AttemptResult};
use hooklane::domain::delivery::DeliveryState;
use hooklane::domain::id::{DeliveryId, EndpointId, IdSet};
use hooklane::domain::schedule::Priority;
use hooklane::domain::time::Timestamp;
use hooklane::store::{
    AttemptRecord, CancelRefused, Claimed, Completion, DeleteOutcome, LaneRequest, Publisher, RetryRefused, Settlement,
    Store, TransitionKind,
};

use crate::publish::{event, register};
use crate::support;

pub(crate) const BEGINNING: Timestamp = Timestamp::from_micros(i64::MIN);

/// A store with one endpoint and `count` deliveries waiting for it.
pub(crate) async fn waiting(count: usize) -> (Arc<Store>, String, EndpointId, Vec<DeliveryId>) {
    let url = support::database().await;
    let store = Store::open(&support::config(url.clone())).await.expect("opens");
    let endpoint = register(&store, &[]).await;
    let publisher = Publisher::start(&store);
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(publisher.publish(event("order.created")).await.expect("published").deliveries[0].delivery_id);
    }
    (store, url, endpoint, ids)
}

pub(crate) fn lane(endpoint: EndpointId, room: u32) -> LaneRequest {
    let priority = Priority::Normal;
    LaneRequest { endpoint, priority, room, held: 0, ahead: 0, low_water: BEGINNING, version: 0, circuit_until: None }
}

async fn claim(store: &Store, endpoint: EndpointId, room: u32) -> Vec<Claimed> {
    store.claim(&[lane(endpoint, room)]).await.expect("claimed").claimed
}

fn completion(claimed: &Claimed, outcome: AttemptOutcome, settlement: Settlement) -> Completion {
    let result = AttemptResult {
        outcome,
        duration: Duration::from_millis(5),
        status: if outcome == AttemptOutcome::Succeeded { 200 } else { 503 },
        response_headers: vec![("content-type".to_owned(), "text/plain".to_owned())],
        response_body: Bytes::from_static(b"body\0\xff"),
        response_truncated: false,
        error: if outcome == AttemptOutcome::Succeeded {
            String::new()
        } else {
            "HTTP 503: Service Unavailable".to_owned()
        },
        retry_after: None,
    };
    Completion {
        id: claimed.id,
        endpoint: claimed.endpoint,
        claim_gen: claimed.claim_gen,
        attempt_count: claimed.attempt,
        attempt: Some(AttemptRecord {
            started_at: claimed.claimed_at,
            trigger: claimed.trigger,
            url: "http://127.0.0.1:9/".into(),
            result,
            is_operational: false,
        }),
        trace: None,
        settlement,
        order_key: claimed.order_key.clone(),
    }
}

pub(crate) fn success(claimed: &Claimed) -> Completion {
    completion(claimed, AttemptOutcome::Succeeded, Settlement::Succeeded)
}

pub(crate) fn retry(claimed: &Claimed) -> Completion {
    completion(claimed, AttemptOutcome::HttpError, Settlement::Retry { delay: Duration::ZERO })
}

async fn state(store: &Store, id: DeliveryId) -> DeliveryState {
    store.delivery_row(id).await.expect("read").expect("there").state
}

/// Makes every lease lapse now.
pub(crate) async fn lapse(url: &str) {
    let mut connection = support::connection(url).await;
    let statement = "update outstanding set lease_until = now() - interval '1 second' where state = 2";
    sqlx::query(statement).execute(&mut connection).await.expect("lapsed");
}

#[tokio::test]
async fn a_claim_takes_no_more_than_its_room_oldest_first_and_nothing_twice() {
    let (store, _, endpoint, ids) = waiting(10).await;
    let first = claim(&store, endpoint, 4).await;
    assert_eq!(first.iter().map(|one| one.id).collect::<Vec<_>>(), ids[..4]);
    let rest = claim(&store, endpoint, 100).await;
    assert_eq!(rest.iter().map(|one| one.id).collect::<Vec<_>>(), ids[4..]);
    assert!(claim(&store, endpoint, 100).await.is_empty());
    let events = store.payloads(&rest.iter().map(|one| one.event).collect::<Vec<_>>()).await.expect("read");
    assert_eq!(events.len(), 6);
}

#[tokio::test]
async fn claims_keep_to_the_endpoints_own_cap() {
    let (store, _, endpoint, _) = waiting(70).await;
    let request = LaneRequest { held: 60, ..lane(endpoint, 64) };
    assert_eq!(store.claim(&[request]).await.expect("claimed").claimed.len(), 4);
    let request = LaneRequest { held: 70, ..lane(endpoint, 64) };
    assert!(store.claim(&[request]).await.expect("claimed").claimed.is_empty());
    let request = LaneRequest { held: 70, ahead: 10, ..lane(endpoint, 64) };
    assert_eq!(
        store.claim(&[request]).await.expect("claimed").claimed.len(),
        4,
        "ahead of the cap by ten, six of them held"
    );
}

#[tokio::test]
async fn concurrent_claims_share_the_work_and_overlap_nowhere() {
    let (store, _, endpoint, ids) = waiting(60).await;
    let claims = (0..20).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { claim(&store, endpoint, 5).await })
    });
    let claimed = futures::future::try_join_all(claims).await.expect("no panic").concat();
    let distinct: HashSet<_> = claimed.iter().map(|one| one.id).collect();
    assert_eq!(distinct.len(), claimed.len());
    // Rows that another claim held at that moment were left out, not lost.
    let rest = claim(&store, endpoint, 64).await;
    assert_eq!(claimed.len() + rest.len(), ids.len());
}

#[tokio::test]
async fn a_success_moves_the_delivery_and_keeps_its_attempt() {
    let (store, _, endpoint, ids) = waiting(1).await;
    let claimed = claim(&store, endpoint, 1).await;
    assert_eq!(state(&store, ids[0]).await, DeliveryState::InFlight);
    let settled = store.complete(&[success(&claimed[0])]).await.expect("completed");
    assert!(settled.won.contains(&ids[0]));
    let record = store.delivery(ids[0]).await.expect("read").expect("there");
    assert_eq!(
        (record.row.state, record.row.attempt_count, record.row.last_status),
        (DeliveryState::Succeeded, 1, 200)
    );
    let [attempt] = record.attempts.as_slice() else { panic!("{:?}", record.attempts) };
    assert_eq!((attempt.number, attempt.outcome, attempt.status), (1, Some(AttemptOutcome::Succeeded), 200));
    assert_eq!(attempt.response_body.as_ref(), b"body\0\xff");
    assert_eq!(attempt.response_headers, [("content-type".to_owned(), "text/plain".to_owned())]);
    let health = store.endpoint(endpoint).await.expect("read").expect("there").health;
    assert_eq!((health.score, health.consecutive_failures, health.last_success_time.is_some()), (1.0, 0, true));
}

#[tokio::test]
async fn a_success_of_before_is_told_once_with_its_attempt() {
    let (store, url, endpoint, ids) = waiting(1).await;
    let start = Arc::new(store.timeline_cursor().await.expect("read"));
    assert_eq!(store.complete(&[success(&claim(&store, endpoint, 1).await[0])]).await.expect("completed").won.len(), 1);
    // As versions wrote it whose timeline had a row of every success.
    let before = "
        insert into timeline (time, xid, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count, number,
                              started_at, duration_us, status, trigger, outcome, response_truncated, tenant, event_type, url,
                              response_headers, response_body, replica)
        select time, xid, delivery_id, endpoint_id, event_id, kind, state, priority, attempt_count, number, started_at,
               duration_us, status, trigger, outcome, response_truncated, tenant, event_type, url, response_headers,
               response_body, replica
        from success_transitions;
        update settled_succeeded set xid = null, started_at = null, duration_us = null, trigger = null, url = null,
               response_truncated = null, response_headers = null, response_body = null, replica = null";
    sqlx::raw_sql(before).execute(&mut support::connection(&url).await).await.expect("as it was");
    let record = store.delivery(ids[0]).await.expect("read").expect("there");
    assert_eq!(record.attempts.iter().map(|one| (one.number, one.status)).collect::<Vec<_>>(), [(1, 200)]);
    let page = store.timeline_since(&start, None, 10).await.expect("read");
    let told: Vec<_> = page.events.iter().map(|one| (one.kind, one.attempt.is_some())).collect();
    assert_eq!(told, [(TransitionKind::Succeeded, true)]);
}

#[tokio::test]
async fn a_success_leaves_the_same_among_its_like_and_among_others() {
    const ROWS: &str = "
        select (to_jsonb(s) - array['id', 'event_id', 'settle_time', 'started_at', 'xid'])::text,
               (to_jsonb(t) - array['delivery_id', 'event_id', 'started_at', 'time', 'xid'])::text,
               (to_jsonb(h) - array['score', 'last_success_time', 'last_failure_time'])::text
        from settled_succeeded s join transitions t on t.delivery_id = s.id and t.number is not null
        join endpoint_health h on h.endpoint_id = s.endpoint_id
        where s.id = $1";
    let (store, url, endpoint, _) = waiting(5).await;
    let mut claimed = claim(&store, endpoint, 5).await;
    // A batch moves health in the order of ids, and those of one millisecond are in any.
    claimed.sort_unstable_by_key(|one| one.id);
    let mut connection = support::connection(&url).await;
    let mut left = Vec::new();
    // Each time after a failure, of which nothing is to be left.
    for (batches, of) in [
        (vec![vec![retry(&claimed[0])], vec![success(&claimed[1]), success(&claimed[2])]], 1),
        (vec![vec![retry(&claimed[3]), success(&claimed[4])]], 4),
    ] {
        for batch in batches {
            assert_eq!(store.complete(&batch).await.expect("completed").won.len(), batch.len());
        }
        let id = claimed[of].id.uuid();
        let rows: (String, String, String) =
            sqlx::query_as(ROWS).bind(id).fetch_one(&mut connection).await.expect("there");
        left.push(rows);
    }
    assert_eq!(left[0], left[1]);
}

#[tokio::test]
async fn each_success_of_a_batch_keeps_its_own_attempt() {
    const COUNT: usize = 40;
    for has_bodies in [true, false] {
        let (store, url, endpoint, _) = waiting(COUNT).await;
        // Some are claimed for the second time.
        claim(&store, endpoint, 10).await;
        lapse(&url).await;
        let claimed = claim(&store, endpoint, COUNT as u32).await;
        assert_eq!(claimed.iter().filter(|one| one.claim_gen == 2).count(), 10);
        let mut completions: Vec<_> = claimed.iter().map(success).collect();
        for (n, one) in completions.iter_mut().enumerate() {
            let attempt = one.attempt.as_mut().expect("one was made");
            attempt.url = format!("http://127.0.0.1:9/{}", n % 7).into();
            attempt.result.status = 200 + n as u16;
            attempt.result.duration = Duration::from_micros(n as u64);
            attempt.result.response_headers = vec![("x-n".to_owned(), (n % 11).to_string())];
            attempt.result.response_body = if has_bodies { n.to_string().into() } else { Bytes::new() };
            attempt.result.response_truncated = n % 3 == 0;
        }
        completions.sort_by_key(|one| std::cmp::Reverse(one.id));
        assert_eq!(store.complete(&completions).await.expect("completed").won.len(), COUNT);
        for one in completions {
            let expected = one.attempt.expect("one was made");
            let record = store.delivery(one.id).await.expect("read").expect("there");
            let kept = record.attempts.last().expect("it is kept");
            assert_eq!((kept.number, kept.status), (one.attempt_count, expected.result.status));
            assert_eq!((kept.url.as_str(), kept.duration), (&*expected.url, expected.result.duration));
            assert_eq!(kept.response_headers, expected.result.response_headers);
            assert_eq!(kept.response_body, expected.result.response_body);
            assert_eq!(kept.response_truncated, expected.result.response_truncated);
        }
    }
}

#[tokio::test]
async fn of_successes_only_those_of_current_claims_are_completed() {
    let (store, url, endpoint, _) = waiting(3).await;
    let stale = claim(&store, endpoint, 2).await;
    lapse(&url).await;
    let again = claim(&store, endpoint, 1).await;
    let fresh: Vec<_> = stale.iter().filter(|one| one.id != again[0].id).collect();
    // Both were claimed once; one of them was lost, and is another claim's by now.
    let settled = store.complete(&stale.iter().map(success).collect::<Vec<_>>()).await.expect("completed");
    assert_eq!(settled.won, IdSet::from_iter([fresh[0].id]));
    assert_eq!(state(&store, again[0].id).await, DeliveryState::InFlight);
    assert_eq!(store.complete(&[success(&again[0])]).await.expect("completed").won.len(), 1);
}

#[tokio::test]
async fn a_batch_of_every_kind_settles_in_one_go() {
    let (store, _, endpoint, _) = waiting(300).await;
    let mut claimed = claim(&store, endpoint, 64).await;
    // Beyond one statement's batch.
    for request in 1..5 {
        let lane = LaneRequest { held: 0, ..lane(endpoint, 59 + request) };
        claimed.extend(store.claim(&[lane]).await.expect("claimed").claimed);
    }
    assert_eq!(claimed.len(), 300);
    let completions: Vec<_> = claimed
        .iter()
        .enumerate()
        .map(|(n, one)| match n % 3 {
            0 => success(one),
            1 => retry(one),
            _ => completion(one, AttemptOutcome::HttpError, Settlement::Failed("HTTP 404: Not Found".to_owned())),
        })
        .collect();
    assert_eq!(store.complete(&completions).await.expect("completed").won.len(), 300);
    for (n, one) in claimed.iter().enumerate() {
        let record = store.delivery(one.id).await.expect("read").expect("there");
        let expected = [DeliveryState::Succeeded, DeliveryState::Retrying, DeliveryState::Failed][n % 3];
        assert_eq!(record.row.state, expected);
        assert_eq!(record.attempts.len(), 1);
        assert_eq!(record.row.reason.as_deref(), (n % 3 == 2).then_some("HTTP 404: Not Found"));
    }
}

#[tokio::test]
async fn a_lapsed_claim_is_due_again_and_the_lost_attempt_shows() {
    let (store, url, endpoint, ids) = waiting(1).await;
    claim(&store, endpoint, 1).await;
    assert!(claim(&store, endpoint, 1).await.is_empty());
    lapse(&url).await;
    let again = claim(&store, endpoint, 1).await;
    assert_eq!((again[0].attempt, again[0].lost_count, again[0].retries_spent), (2, 1, 0));
    let record = store.delivery(ids[0]).await.expect("read").expect("there");
    let outcomes: Vec<_> = record.attempts.iter().map(|attempt| (attempt.number, attempt.outcome)).collect();
    assert_eq!(outcomes, [(1, Some(AttemptOutcome::Lost)), (2, None)]);
}

#[tokio::test]
async fn a_stale_claim_completes_renews_and_releases_nothing() {
    let (store, url, endpoint, ids) = waiting(1).await;
    let stale = claim(&store, endpoint, 1).await;
    lapse(&url).await;
    let current = claim(&store, endpoint, 1).await;
    assert!(store.complete(&[success(&stale[0])]).await.expect("completed").won.is_empty());
    assert!(store.complete(&[retry(&stale[0])]).await.expect("completed").won.is_empty());
    assert!(store.renew(&[(ids[0], stale[0].claim_gen)]).await.expect("renewed").is_empty());
    store.release(&[(ids[0], stale[0].claim_gen)]).await.expect("released");
    assert_eq!(state(&store, ids[0]).await, DeliveryState::InFlight);
    assert_eq!(store.renew(&[(ids[0], current[0].claim_gen)]).await.expect("renewed"), [ids[0]]);
    assert_eq!(store.complete(&[success(&current[0])]).await.expect("completed").won.len(), 1);
}

#[tokio::test]
async fn of_many_claims_each_is_renewed_and_released_by_its_own_fence() {
    let (store, url, endpoint, _) = waiting(6).await;
    let early = claim(&store, endpoint, 3).await;
    lapse(&url).await;
    let claimed = claim(&store, endpoint, 6).await;
    let mut named: Vec<_> = claimed.iter().map(|one| (one.id, one.claim_gen)).collect();
    // Whatever order they are named in; one is named by a claim that is over.
    named.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
    let stale = named.iter().position(|(id, _)| *id == early[1].id).expect("it was claimed again");
    named[stale].1 = early[1].claim_gen;
    let current = || named.iter().map(|(id, _)| *id).filter(|id| *id != early[1].id);
    let renewed: HashSet<_> = store.renew(&named).await.expect("renewed").into_iter().collect();
    assert_eq!(renewed, current().collect());
    store.release(&named).await.expect("released");
    assert_eq!(state(&store, early[1].id).await, DeliveryState::InFlight);
    for id in current() {
        assert_ne!(state(&store, id).await, DeliveryState::InFlight);
    }
}

#[tokio::test]
async fn a_completion_that_is_written_again_changes_nothing() {
    let (store, _, endpoint, ids) = waiting(3).await;
    let claimed = claim(&store, endpoint, 3).await;
    let all = [success(&claimed[0]), retry(&claimed[1]), retry(&claimed[2])];
    assert_eq!(store.complete(&all).await.expect("completed").won.len(), 3);
    // The claim of a retried one is over, although its fence is the same until the next claim.
    assert!(store.complete(&all).await.expect("completed").won.is_empty());
    assert!(store.complete(&[success(&claimed[2])]).await.expect("completed").won.is_empty());
    for (id, expected) in [(ids[0], DeliveryState::Succeeded), (ids[1], DeliveryState::Retrying)] {
        let record = store.delivery(id).await.expect("read").expect("there");
        assert_eq!((record.row.state, record.attempts.len()), (expected, 1));
    }
    let again = claim(&store, endpoint, 3).await;
    assert_eq!(again.iter().map(|one| (one.attempt, one.retries_spent)).collect::<Vec<_>>(), [(2, 1), (2, 1)]);
}

#[tokio::test]
async fn a_released_claim_spends_no_attempt() {
    let (store, _, endpoint, ids) = waiting(1).await;
    let claimed = claim(&store, endpoint, 1).await;
    store.release(&[(ids[0], claimed[0].claim_gen)]).await.expect("released");
    assert_eq!(state(&store, ids[0]).await, DeliveryState::Pending);
    assert_eq!(claim(&store, endpoint, 1).await[0].attempt, 1);
}

#[tokio::test]
async fn a_waiting_delivery_is_canceled_at_once_and_one_in_flight_after_its_attempt() {
    let (store, _, endpoint, ids) = waiting(4).await;
    store.cancel(ids[3]).await.expect("canceled");
    assert_eq!(state(&store, ids[3]).await, DeliveryState::Canceled);
    let claimed = claim(&store, endpoint, 3).await;
    for id in &ids[..3] {
        store.cancel(*id).await.expect("asked for");
        assert_eq!(state(&store, *id).await, DeliveryState::InFlight);
    }
    let failed =
        completion(&claimed[2], AttemptOutcome::HttpError, Settlement::Failed("HTTP 404: Not Found".to_owned()));
    let all = [success(&claimed[0]), retry(&claimed[1]), failed];
    assert_eq!(store.complete(&all).await.expect("completed").won.len(), 3);
    assert_eq!(state(&store, ids[0]).await, DeliveryState::Succeeded);
    for id in &ids[1..3] {
        let record = store.delivery(*id).await.expect("read").expect("there");
        assert_eq!((record.row.state, record.attempts.len()), (DeliveryState::Canceled, 1));
        assert!(record.row.reason.expect("a reason").contains("cancel"));
    }
    assert!(matches!(store.cancel(ids[0]).await, Err(CancelRefused::Settled)));
}

#[tokio::test]
async fn a_retry_starts_a_fresh_budget_and_attempt_numbers_go_on() {
    let (store, _, endpoint, ids) = waiting(2).await;
    assert!(matches!(store.retry(ids[0]).await, Err(RetryRefused::NotSettled)));
    let claimed = claim(&store, endpoint, 1).await;
    assert!(matches!(store.retry(ids[0]).await, Err(RetryRefused::NotSettled)));
    let failed =
        completion(&claimed[0], AttemptOutcome::HttpError, Settlement::Failed("HTTP 404: Not Found".to_owned()));
    store.complete(&[failed]).await.expect("completed");
    store.retry(ids[0]).await.expect("retried");
    let again = claim(&store, endpoint, 10).await;
    let again = again.iter().find(|one| one.id == ids[0]).expect("due at once");
    assert_eq!((again.attempt, again.retries_spent), (2, 0));
    assert!(again.claim_gen > claimed[0].claim_gen + 1, "the fence grows with the retry too");
    store.complete(&[success(again)]).await.expect("completed");
    assert!(matches!(store.retry(ids[0]).await, Err(RetryRefused::Succeeded)));
    let unknown = DeliveryId::from_uuid(store.clock().new_uuid());
    assert!(matches!(store.retry(unknown).await, Err(RetryRefused::NotFound)));
}

#[tokio::test]
async fn a_deleted_endpoints_deliveries_are_canceled_and_cannot_be_retried() {
    let (store, url, endpoint, ids) = waiting(3).await;
    claim(&store, endpoint, 1).await;
    assert_eq!(store.delete_endpoint(endpoint, Some(99)).await.expect("answered"), DeleteOutcome::VersionMoved);
    assert_eq!(store.delete_endpoint(endpoint, None).await.expect("answered"), DeleteOutcome::Deleted);
    assert_eq!(store.delete_endpoint(endpoint, None).await.expect("answered"), DeleteOutcome::NotFound);
    assert_eq!(store.cancel_deleted(endpoint).await.expect("canceled"), 3, "two waiting, one in flight");
    assert!(claim(&store, endpoint, 10).await.is_empty());
    // The worker of the one in flight dies: its attempt is lost, and it ends canceled all the same.
    lapse(&url).await;
    assert_eq!(store.cancel_deleted(endpoint).await.expect("canceled"), 1);
    for id in &ids {
        assert_eq!(state(&store, *id).await, DeliveryState::Canceled);
        assert!(matches!(store.retry(*id).await, Err(RetryRefused::EndpointDeleted)));
    }
    let record = store.delivery(ids[0]).await.expect("read").expect("there");
    assert_eq!(record.attempts[0].outcome, Some(AttemptOutcome::Lost));
}

#[tokio::test]
async fn a_paused_endpoints_lost_attempts_are_recorded_though_nothing_is_claimed() {
    let (store, url, endpoint, ids) = waiting(3).await;
    let claimed = claim(&store, endpoint, 2).await;
    store.pause_endpoint(endpoint).await.expect("paused");
    assert!(claim(&store, endpoint, 10).await.is_empty());
    assert!(store.sweep().await.expect("swept").is_empty(), "nothing that could be claimed");
    assert_eq!(store.lose_lapsed().await.expect("looked"), 0, "their leases hold");
    lapse(&url).await;
    assert_eq!(store.lose_lapsed().await.expect("looked"), 2);
    assert_eq!(store.lose_lapsed().await.expect("looked"), 0);
    for one in &claimed {
        let record = store.delivery(one.id).await.expect("read").expect("there");
        assert_eq!(record.row.state, DeliveryState::Retrying);
        assert_eq!(
            record.attempts.iter().map(|attempt| attempt.outcome).collect::<Vec<_>>(),
            [Some(AttemptOutcome::Lost)]
        );
    }
    assert!(store.complete(&[success(&claimed[0])]).await.expect("completed").won.is_empty(), "the claim is over");
    store.resume_endpoint(endpoint).await.expect("resumed");
    let again = claim(&store, endpoint, 10).await;
    assert_eq!(again.len(), ids.len());
    let first = again.iter().find(|one| one.id == claimed[0].id).expect("it is due");
    assert_eq!((first.attempt, first.lost_count, first.retries_spent), (2, 1, 0));
}

#[tokio::test]
async fn the_sweep_finds_what_no_hint_told_of() {
    let (store, url, endpoint, _) = waiting(2).await;
    let other = register(&store, &["other"]).await;
    assert_eq!(
        store.sweep().await.expect("swept").iter().map(|seen| seen.due.endpoint).collect::<Vec<_>>(),
        [endpoint]
    );
    claim(&store, endpoint, 2).await;
    assert!(store.sweep().await.expect("swept").is_empty(), "everything is held");
    lapse(&url).await;
    let found = store.sweep().await.expect("swept");
    assert_eq!(found.iter().map(|seen| seen.due.endpoint).collect::<Vec<_>>(), [endpoint]);
    assert!(!found.iter().any(|seen| seen.due.endpoint == other));
}
