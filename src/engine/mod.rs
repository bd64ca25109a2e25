//! The engine: takes due deliveries from the database, sends them, and puts what came of them back.
//!
//! A scheduler keeps a lane for each endpoint with work and claims for all hungry lanes at once; attempts run as tasks of
//! their own; a completer gathers their results into batches. Whatever they know is a hint: the database decides, and
//! a process that starts anew needs nothing of what this one knew.

pub mod maintenance;
pub mod membership;

mod attempt;
mod claims;
mod completer;
mod gate;
mod inbox;
mod judge;
mod lane;
mod leases;
mod roster;
mod scheduler;
mod spans;
mod told;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::judge::Judgement;
use self::leases::Leases;
use self::membership::Membership;
use self::roster::Roster;
pub use self::scheduler::Rates;
use crate::domain::cloudevents::SourceTemplate;
use crate::domain::retry::RetryDefaults;
use crate::egress::Egress;
use crate::store::{Completion, Publisher, Store};
use crate::telemetry::log::few;

/// How the engine works.
#[derive(Debug, Clone)]
pub struct Config {
    /// When failures are retried at endpoints that do not say.
    pub retries: RetryDefaults,
    /// Requests under way at once in this process, about: beyond it a lane gets one at a time. Bounds memory and
    /// sockets.
    pub in_flight_max: usize,
    /// How many requests a second the installation makes, and each tenant gets.
    pub rates: Rates,
    /// How long requests under way may go on after a shutdown began.
    pub grace: Duration,
    /// Where CloudEvents say that they come from, of events that were published in SQL.
    pub cloudevents_source: SourceTemplate,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            retries: RetryDefaults::default(),
            in_flight_max: 16_000,
            rates: Rates::default(),
            grace: Duration::from_secs(30),
            cloudevents_source: SourceTemplate::default(),
        }
    }
}

/// What the parts of the engine share.
struct Shared {
    store: Arc<Store>,
    egress: Egress,
    roster: Roster,
    leases: Leases,
    /// Running attempts.
    attempts: TaskTracker,
    /// One for each completer.
    desks: [completer::Desk; completer::COMPLETERS],
    /// Whether what is published in SQL is taken up here.
    takes_up: watch::Sender<bool>,
}

/// A result for its completer, and what is to be judged by it, where it says something.
type Ending = (Completion, Option<Judgement>);

impl Shared {
    /// Hands a result to a completer; waits while that one has more than enough. Fails only once the completers have ended:
    /// after the grace time, when the attempt becomes LOST.
    async fn record(&self, completion: Completion, judgement: Option<Judgement>) {
        completer::hand_in(&self.desks, (completion, judgement)).await;
    }
}

/// Results that wait for their batch; beyond it attempts wait with theirs, and nothing further is claimed.
const COMPLETIONS_MAX: usize = 4_096;

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    work: JoinHandle<()>,
}

impl Engine {
    /// Starts delivering what falls to this replica. With `shutdown` it claims no more, hands back what was claimed but
    /// not started, leaves its lanes to the other replicas, lets requests under way end within the grace time, and puts
    /// every result on record.
    pub fn start(
        store: Arc<Store>,
        publisher: Publisher,
        membership: Membership,
        egress: Egress,
        config: Config,
        shutdown: CancellationToken,
    ) -> Self {
        let (desks, results) = completer::Desk::all(COMPLETIONS_MAX);
        let shared = Arc::new(Shared {
            roster: Roster::new(config.retries.clone()),
            store,
            egress,
            leases: Leases::default(),
            attempts: TaskTracker::new(),
            desks,
            takes_up: watch::Sender::new(false),
        });
        let taking_up =
            inbox::run(publisher, config.cloudevents_source.clone(), shared.takes_up.subscribe(), shutdown.clone());
        let taking_up = tokio::spawn(taking_up);
        Self { work: tokio::spawn(run(shared, membership, results, config, shutdown, taking_up)) }
    }

    /// Waits until the engine has ended.
    pub async fn ended(self) {
        // A panic in the engine has been reported by the panic hook; there is nothing left to wait for.
        let _ = self.work.await;
    }
}

async fn run(
    shared: Arc<Shared>,
    mut membership: Membership,
    results: Vec<mpsc::Receiver<Ending>>,
    config: Config,
    shutdown: CancellationToken,
    taking_up: JoinHandle<()>,
) {
    let all_done = CancellationToken::new();
    let completer = completer::start(&shared, results);
    let renewal = tokio::spawn(leases::renew_while_held(Arc::clone(&shared), all_done.clone()));

    scheduler::run(&shared, &config, &mut membership, shutdown).await;
    // What is under way may well end in time; another replica that begins meanwhile waits for it, row by row.
    let _ = tokio::time::timeout(TAKE_UP_MAX, taking_up).await;
    // Nothing is claimed any more, and the others count what is still in flight here.
    membership.resign().await;

    shared.attempts.close();
    let _ = tokio::time::timeout(config.grace, shared.attempts.wait()).await;
    completer.flush(FLUSH_MAX).await;
    // Requests that outlast the grace time, and results that the database did not take in time.
    let left = shared.leases.ids();
    if !left.is_empty() {
        tracing::warn!(
            attempts = left.len(),
            deliveries = %few(&left),
            trace_ids = %few(shared.leases.trace_ids(left.iter().copied())),
            "attempts did not end in time; they will show as LOST"
        );
    }
    all_done.cancel();
    let _ = renewal.await;
}

/// Forever, without an instant.
async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

/// How long what is being taken up of the inbox may take at the end.
const TAKE_UP_MAX: Duration = Duration::from_secs(2);
/// How long results that are already here may take to be put on record at the end.
const FLUSH_MAX: Duration = Duration::from_secs(4);
