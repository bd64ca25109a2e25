//! Gates in the database: what a claim gives through them, whoever asks, and the transitions of a circuit.

use std::time::Duration;

use hooklane::domain::attempt::AttemptTrigger;
use hooklane::domain::delivery::DeliveryState;
use hooklane::store::{LaneRequest, Store};

use crate::queue::{lane, lapse, retry, waiting};
use crate::support;

const HOUR: Duration = Duration::from_secs(3_600);

/// What a lane gets that knows the gates as they are.
async fn claim_knowing(store: &Store, request: LaneRequest) -> Vec<hooklane::store::Claimed> {
    let gates = store.gates(&[request.endpoint]).await.expect("read").remove(0);
    let request = LaneRequest { version: gates.version, circuit_until: gates.circuit_until, ..request };
    let claims = store.claim(&[request]).await.expect("claimed");
    assert!(claims.refused.is_empty());
    claims.claimed
}

#[tokio::test]
async fn an_open_circuit_gives_nothing_and_a_half_open_one_a_single_probe() {
    let (store, url, endpoint, _) = waiting(5).await;
    let mut admin = support::connection(&url).await;
    assert!(!store.open_circuit(endpoint, 1, HOUR, 3).await.expect("asked"), "it has not failed");
    sqlx::query("update endpoint_health set consecutive_failures = 3").execute(&mut admin).await.expect("failed");
    assert!(!store.open_circuit(endpoint, 2, HOUR, 3).await.expect("asked"), "of another version");
    assert!(store.open_circuit(endpoint, 1, HOUR, 3).await.expect("opened"));
    assert!(!store.open_circuit(endpoint, 1, HOUR, 3).await.expect("asked"), "it is open");
    let ignorant = store.claim(&[lane(endpoint, 5)]).await.expect("claimed");
    assert!(ignorant.claimed.is_empty());
    assert_eq!(ignorant.refused, [endpoint]);
    assert!(claim_knowing(&store, lane(endpoint, 5)).await.is_empty());
    let seen = store.sweep().await.expect("swept").remove(0);
    assert_eq!((seen.version, seen.circuit_until.is_some()), (1, true));

    let past = "update endpoints set circuit_until = now() - interval '1 second'";
    sqlx::query(past).execute(&mut admin).await.expect("over");
    assert!(store.claim(&[lane(endpoint, 5)]).await.expect("claimed").claimed.is_empty(), "who does not know");
    let probe = claim_knowing(&store, lane(endpoint, 5)).await;
    assert_eq!((probe.len(), probe[0].trigger, probe[0].openings), (1, AttemptTrigger::Probe, 1));
    let record = store.delivery(probe[0].id).await.expect("read").expect("there");
    assert_eq!(record.attempts[0].trigger, AttemptTrigger::Probe);
    assert!(!store.reopen_circuit(endpoint, 1, HOUR, 2).await.expect("asked"), "of another opening");
    assert!(store.reopen_circuit(endpoint, 1, HOUR, 1).await.expect("opened"));
    assert!(!store.close_circuit(endpoint, 1).await.expect("asked"), "of another opening");
    assert!(store.close_circuit(endpoint, 2).await.expect("closed"));
    store.complete(&[retry(&probe[0])]).await.expect("completed");
    let rest = store.claim(&[lane(endpoint, 9)]).await.expect("claimed").claimed;
    assert_eq!(rest.len(), 5);
    assert!(rest.iter().all(|one| one.trigger == AttemptTrigger::Schedule && one.openings == 0));
}

#[tokio::test]
async fn a_limited_endpoint_gives_nothing_to_a_lane_of_another_version() {
    let (store, url, endpoint, _) = waiting(2).await;
    let mut admin = support::connection(&url).await;
    sqlx::query("update endpoints set rate_per_second = 5, version = 7").execute(&mut admin).await.expect("limited");
    for version in [0, 6, 8] {
        let claims = store.claim(&[LaneRequest { version, ..lane(endpoint, 2) }]).await.expect("claimed");
        assert!(claims.claimed.is_empty() && claims.refused == [endpoint], "{version}");
    }
    let gates = store.gates(&[endpoint]).await.expect("read").remove(0);
    assert_eq!((gates.version, gates.rate_limit.map(|limit| limit.per_second)), (7, Some(5.0)));
    assert_eq!(claim_knowing(&store, lane(endpoint, 2)).await.len(), 2);
}

#[tokio::test]
async fn attempts_that_are_lost_behind_an_open_circuit_are_recorded() {
    let (store, url, endpoint, ids) = waiting(2).await;
    let claimed = store.claim(&[lane(endpoint, 1)]).await.expect("claimed").claimed;
    let open = "update endpoints set circuit_until = now() + interval '1 hour', circuit_opened_at = now(),
                circuit_openings = 1";
    sqlx::query(open).execute(&mut support::connection(&url).await).await.expect("opened");
    assert_eq!(store.lose_lapsed().await.expect("looked"), 0, "its lease holds");
    lapse(&url).await;
    assert_eq!(store.lose_lapsed().await.expect("looked"), 1);
    let row = store.delivery_row(claimed[0].id).await.expect("read").expect("there");
    assert_eq!((row.state, claimed[0].id), (DeliveryState::Retrying, ids[0]));
}
