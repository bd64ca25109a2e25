//! Deliveries through a simulated network that stalls, drops and resets, to a receiver that does, too: by seeds, in a time
//! of its own. Each is sent and settled until it ends, as the engine would.
//!
//! A simulated network never sends a lost segment again: a connection that lost one is silent for ever, and nobody is
//! told. The egress has to live with that as with any silence.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};
use turmoil::net::{TcpListener, TcpStream};
use uuid::Uuid;

use super::*;
use crate::domain::delivery::{Decision, settle};
use crate::domain::retry::{Backoff, RetryPolicy};

const SEEDS: u64 = 12;
/// Deliveries under way at once, and how many each of them is followed by.
const SIDE_BY_SIDE: u128 = 3;
const ONE_AFTER_THE_OTHER: u128 = 4;
const DEADLINE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(2);

/// What the receiver remembers, by delivery and attempt: how often it was asked, and what it began to answer.
#[derive(Default)]
struct Seen {
    requests: HashMap<String, u32>,
    statuses: HashMap<String, u16>,
    /// What came of its answers on the other side.
    outcomes: HashSet<AttemptOutcome>,
}

/// The receiver's side of a simulation.
#[derive(Clone)]
struct Sky {
    seen: Arc<Mutex<Seen>>,
    is_stormy: Arc<AtomicBool>,
    /// How the receiver treats every request, whatever the storm.
    forced: Arc<Mutex<Option<Manner>>>,
    random: Arc<Mutex<StdRng>>,
}

impl Sky {
    fn of(seed: u64) -> Self {
        let random = Arc::new(Mutex::new(StdRng::seed_from_u64(seed)));
        Self { seen: Arc::default(), is_stormy: Arc::new(AtomicBool::new(true)), forced: Arc::default(), random }
    }

    fn draw(&self, sides: u32) -> u32 {
        self.random.lock().unwrap().random_range(0..sides)
    }

    fn moment(&self, up_to_ms: u32) -> Duration {
        Duration::from_millis(self.draw(up_to_ms).into())
    }
}

/// How a receiver treats a request.
#[derive(Debug, Clone, Copy)]
enum Manner {
    Answers(u16),
    /// Closes where it stands: after the request, or in the middle of its answer.
    Closes {
        midway: bool,
    },
    /// The same with a reset, because it has not read everything.
    Resets {
        midway: bool,
    },
    Stalls {
        midway: bool,
    },
}

fn manner(sky: &Sky) -> Manner {
    if let Some(forced) = *sky.forced.lock().unwrap() {
        return forced;
    }
    if !sky.is_stormy.load(Ordering::SeqCst) {
        return Manner::Answers(200);
    }
    let midway = sky.draw(2) == 0;
    match sky.draw(12) {
        0..=3 => Manner::Answers(200),
        4..=5 => Manner::Answers(503),
        6 => Manner::Answers(404),
        7..=8 => Manner::Closes { midway },
        9..=10 => Manner::Resets { midway },
        _ => Manner::Stalls { midway },
    }
}

async fn receive(sky: Sky) -> turmoil::Result {
    let listener = TcpListener::bind("0.0.0.0:80").await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let sky = sky.clone();
        tokio::spawn(async move { while_open(stream, &sky).await });
    }
}

/// Treats the requests of one connection; `None` when it is to end.
async fn while_open(mut stream: TcpStream, sky: &Sky) -> Option<()> {
    loop {
        let (name, length) = read_head(&mut stream).await?;
        let manner = manner(sky);
        if !matches!(manner, Manner::Resets { .. }) {
            stream.read_exact(&mut vec![0; length]).await.ok()?;
        }
        *sky.seen.lock().unwrap().requests.entry(name.clone()).or_default() += 1;
        sleep(sky.moment(300)).await;
        let (status, breaks_midway) = match manner {
            Manner::Answers(status) => (status, false),
            Manner::Closes { midway } | Manner::Resets { midway } | Manner::Stalls { midway } if midway => (200, true),
            Manner::Stalls { .. } => std::future::pending().await,
            Manner::Closes { .. } | Manner::Resets { .. } => return None,
        };
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{name}", name.len());
        sky.seen.lock().unwrap().statuses.insert(name.clone(), status);
        // In pieces, so that it can break anywhere.
        let cut = usize::try_from(sky.draw(u32::try_from(answer.len()).unwrap())).unwrap();
        stream.write_all(&answer.as_bytes()[..cut]).await.ok()?;
        sleep(sky.moment(100)).await;
        match manner {
            Manner::Stalls { .. } => std::future::pending().await,
            _ if breaks_midway => return None,
            _ => stream.write_all(&answer.as_bytes()[cut..]).await.ok()?,
        }
    }
}

/// A request's delivery and attempt, and the length of its body.
async fn read_head(stream: &mut TcpStream) -> Option<(String, usize)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
    let name = format!("{} {}", value("x-webhook-delivery: ")?, value("x-webhook-attempt: ")?);
    Some((name, value("content-length: ")?.parse().ok()?))
}

/// Holds and cuts the way between worker and receiver, again and again.
async fn weather(sky: Sky) {
    loop {
        sleep(sky.moment(1_000)).await;
        let lasts = sky.moment(1_500);
        match sky.draw(4) {
            0 => {
                turmoil::hold("worker", "receiver");
                sleep(lasts).await;
                turmoil::release("worker", "receiver");
            }
            1 => {
                turmoil::partition("worker", "receiver");
                sleep(lasts).await;
            }
            2 => {
                turmoil::partition_oneway("receiver", "worker");
                sleep(lasts).await;
            }
            _ => {
                turmoil::partition_oneway("worker", "receiver");
                sleep(lasts).await;
            }
        }
        turmoil::repair("worker", "receiver");
    }
}

/// Sends once, in time, and holds the result against what the receiver knows.
async fn send_checked(egress: &Egress, sky: &Sky, id: DeliveryId, attempt: u32) -> AttemptResult {
    let target = target(&format!("http://{}/", turmoil::lookup("receiver")), DEADLINE);
    let event = event(vec![b'0'; 1 + usize::try_from(sky.draw(100_000)).unwrap()]);
    let outgoing = Outgoing { format: PayloadFormat::Raw, delivery_id: id, attempt, ..outgoing(&target, &event) };
    let began = Instant::now();
    let result = egress.send(outgoing).await;
    let took = began.elapsed();
    assert!(took <= DEADLINE + TICK, "{took:?}");

    let name = format!("{id} {attempt}");
    let mut seen = sky.seen.lock().unwrap();
    seen.outcomes.insert(result.outcome);
    assert!(seen.requests.get(&name).is_none_or(|&times| times == 1), "{name} was sent more than once");
    match result.outcome {
        AttemptOutcome::Succeeded | AttemptOutcome::HttpError => {
            assert_eq!(Some(&result.status), seen.statuses.get(&name), "an answer to something else");
            let body = String::from_utf8(result.response_body.to_vec()).unwrap();
            assert!(name.starts_with(&body), "{name} was answered with {body}");
            assert_eq!(result.response_truncated, body != name);
        }
        AttemptOutcome::Timeout => assert!(took >= DEADLINE, "a timeout after {took:?}"),
        AttemptOutcome::ConnectFailed => assert!(!seen.requests.contains_key(&name), "{name} arrived all the same"),
        // An answer may be on its way when a reset overtakes it.
        AttemptOutcome::ProtocolError => {}
        other => panic!("{other:?}: {}", result.error),
    }
    result
}

/// Sends until nothing more follows; answers the last decision and how many attempts there were.
async fn deliver(egress: &Egress, sky: &Sky, id: DeliveryId, policy: &RetryPolicy) -> (Decision, u32) {
    for attempt in 1.. {
        let result = send_checked(egress, sky, id, attempt).await;
        match settle(attempt - 1, &result, policy, 0.5) {
            Decision::Retry { delay } => sleep(delay).await,
            Decision::Succeed => {
                assert_eq!(sky.seen.lock().unwrap().statuses[&format!("{id} {attempt}")], 200);
                return (Decision::Succeed, attempt);
            }
            Decision::Fail => {
                // Nothing that the network does ends a delivery before its retries are spent.
                assert!(result.status == 404 || attempt == policy.max_retries + 1, "{result:?}");
                return (Decision::Fail, attempt);
            }
        }
    }
    unreachable!("attempts have an end")
}

fn simulated_egress() -> Result<Egress, SetupError> {
    let rules = EgressRules {
        allow_http: true,
        allow_cidrs: vec!["192.168.0.0/16".parse().unwrap()],
        ..EgressRules::default()
    };
    let config = Config { rules, proxy: None, user_agent: "hooklane/1.2.3".to_owned() };
    Egress::with(config, RootCertStore::empty(), Resolver::default())
}

async fn weathered(sky: Sky) -> turmoil::Result {
    let egress = simulated_egress()?;
    let first = Duration::from_millis(100);
    let backoff = Backoff::exponential(first, 2.0, 4 * first).unwrap();
    let policy = RetryPolicy { backoff, jitter: 0.0, max_retries: 5 };

    let storm = tokio::spawn(weather(sky.clone()));
    let (egress, sky, policy) = (&egress, &sky, &policy);
    join_all((0..SIDE_BY_SIDE).map(|lane| async move {
        for n in 0..ONE_AFTER_THE_OTHER {
            deliver(egress, sky, id(lane * ONE_AFTER_THE_OTHER + n), policy).await;
        }
    }))
    .await;
    storm.abort();
    let _ = storm.await;
    turmoil::release("worker", "receiver");
    turmoil::repair("worker", "receiver");
    sky.is_stormy.store(false, Ordering::SeqCst);
    sleep(DEADLINE).await;

    // What was under way has left nothing behind, and of what was kept each broken one fails one attempt at most.
    let kept = stream::open();
    assert!(kept <= SIDE_BY_SIDE as usize, "{kept} connections are open");
    let (decision, attempts) = deliver(egress, sky, id(1_000), policy).await;
    assert_eq!(decision, Decision::Succeed);
    assert!(attempts as usize <= kept + 1, "{attempts} attempts with {kept} connections kept");
    assert_eq!(deliver(egress, sky, id(1_001), policy).await, (Decision::Succeed, 1));
    Ok(())
}

fn id(n: u128) -> DeliveryId {
    DeliveryId::from_uuid(Uuid::from_u128(n))
}

/// A worker and a receiver under one sky.
fn simulation<'s>(seed: u64, sky: &Sky) -> turmoil::Sim<'s> {
    let mut simulation = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(50))
        .simulation_duration(Duration::from_secs(600))
        .build();
    let receiver = sky.clone();
    simulation.host("receiver", move || receive(receiver.clone()));
    simulation
}

#[test]
fn every_delivery_ends_in_every_storm() {
    use AttemptOutcome::*;
    let mut outcomes = HashSet::new();
    for seed in 0..SEEDS {
        let sky = Sky::of(seed);
        let mut simulation = simulation(seed, &sky);
        simulation.client("worker", weathered(sky.clone()));
        simulation.run().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        outcomes.extend(sky.seen.lock().unwrap().outcomes.drain());
    }
    for outcome in [Succeeded, HttpError, Timeout, ConnectFailed, ProtocolError] {
        assert!(outcomes.contains(&outcome), "no storm brought {outcome:?}");
    }
}

/// One request after the other, each treated in another way; after each, what was kept is counted.
async fn one_by_one(sky: Sky) -> turmoil::Result {
    use AttemptOutcome::*;
    let egress = simulated_egress()?;
    for n in 0..60 {
        let midway = n % 2 == 0;
        let (manner, outcome) = match sky.draw(6) {
            0 => (Manner::Answers(200), Succeeded),
            1 => (Manner::Answers(503), HttpError),
            2 => (Manner::Answers(404), HttpError),
            3 => (Manner::Closes { midway }, ProtocolError),
            4 => (Manner::Resets { midway }, ProtocolError),
            _ => (Manner::Stalls { midway }, Timeout),
        };
        *sky.forced.lock().unwrap() = Some(manner);
        let result = send_checked(&egress, &sky, id(n), 1).await;
        // A head that came through before the rest broke off decides.
        let decided = midway && result.outcome == Succeeded && result.response_truncated;
        assert!(result.outcome == outcome || decided, "{manner:?}: {result:?}");
        let is_whole = matches!(manner, Manner::Answers(_));
        assert_eq!(stream::open(), usize::from(is_whole), "connections after {manner:?}");
    }
    Ok(())
}

#[test]
fn a_connection_that_broke_is_not_kept() {
    for seed in 0..SEEDS {
        let sky = Sky::of(seed);
        let mut simulation = simulation(seed, &sky);
        simulation.client("worker", one_by_one(sky));
        simulation.run().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}
