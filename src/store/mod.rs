//! Every SQL statement of the program, a file for each group of tables. No other module speaks to PostgreSQL.
//!
//! The verbs: publish, claim, complete, release, renew, retry, cancel, dismiss, replay, erase; the readers stand in `history`,
//! `dead_letters`, `stats` and `endpoints`.

mod alerts;
mod backlog;
mod clock;
mod conditions;
mod connections;
mod dead_letters;
mod directory;
mod endpoints;
mod erase;
mod error;
mod expire;
mod failures;
mod filter_errors;
mod gates;
mod gauges;
mod hints;
mod history;
mod idempotency;
mod inbox;
mod inline;
mod kept;
mod keys;
mod lists;
mod lost;
mod measure;
mod notes;
mod offers;
mod operate;
mod order;
mod partitions;
mod pausing;
#[doc(hidden)]
pub mod plans;
mod pool;
mod publish;
mod queue;
mod recent;
mod replays;
mod replicas;
mod retention;
mod rewrap;
mod secrets;
mod stats;
mod tail;
mod tallies;
mod trace;
mod turns;
mod types;
mod vault;

use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rand::TryRng as _;
use rand::rngs::SysRng;
use sqlx::types::Uuid;
use tokio::sync::Notify;

pub use self::alerts::{AlertFilter, UntoldAlert};
pub use self::backlog::Limits;
pub use self::clock::DbClock;
pub use self::conditions::OpenAlert;
pub use self::dead_letters::{DeadLetter, DeadLetterFilter, DeadLetterPlace, Dismissal};
pub use self::endpoints::{DeleteOutcome, EndpointFilter, LaneEndpoint, NewEndpoint, RegisterError, UpdateError};
pub use self::erase::{Closed, Erased, Erasure};
pub use self::error::{Error, Result};
pub use self::failures::FailurePage;
pub use self::gates::{Failing, Gates, HeldUp};
pub use self::hints::Hint;
pub use self::history::{DeliveryRecord, DeliveryRow, EventRecord, Waits};
pub use self::keys::{KEYS_MAX, KeyRecord, Keys, NewKey};
pub use self::lists::DeliveryFilter;
pub use self::notes::{NAMED_MAX, Note, Work};
pub use self::offers::{Offers, Taken};
pub use self::operate::{CancelRefused, RetryRefused};
pub use self::order::{Place as OrderPlace, Walk as OrderWalk};
pub use self::pool::{Config, ConnectError, Retention, URL_ALLOWED, check_url};
pub use self::publish::{InboxWalk, PublishError, Published, PublishedDelivery, Publisher, TakenUp};
pub use self::queue::{
    AttemptRecord, CANCELED_REASON, Claimed, Claims, Completion, Due, EXPIRED_REASON, Elsewhere, Followed, LEASE,
    LaneRequest, Settled, Settlement, Swept,
};
pub use self::replays::{NewReplay, Replay, ReplayFilter, ReplayState, StartReplayError, Worked};
pub use self::replicas::{DEAD_AFTER, Replica, Roll, Session};
pub use self::retention::Retired;
pub use self::rewrap::{KeyUse, Pass, Rewrap};
pub use self::secrets::{RotateError, Rotation};
pub use self::stats::{EndpointFigures, Figures, Quantiles};
pub use self::tail::{
    Batch, Cursor, Key, Page, Position, Snapshot, StreamKey, TailError, TimelineEvent, TimelineFilter, TransitionKind,
};
pub use self::tallies::Faltering;
pub use self::vault::Encryption;

use self::backlog::Backlog;
use self::connections::Connections;
use self::directory::Directory;
use self::filter_errors::FilterErrors;
use self::hints::Hints;
use self::publish::Judges;
use self::recent::Recent;
use self::stats::{DeadCounts, Stats};
use self::tallies::Tallies;
use self::vault::Vault;
use crate::domain::id::EndpointId;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Traces;

/// What a replica does: either, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// Serves gRPC.
    pub api: bool,
    /// Delivers.
    pub worker: bool,
}

/// The database, as the rest of the program sees it.
#[derive(Debug)]
pub struct Store {
    /// Publish, claim, complete: their plans are guarded (see `pool`).
    engine: Connections,
    /// Readers and rare writers, with the planner's defaults.
    reader: Connections,
    /// The live stream's, so that whoever replays the past holds up nobody who reads or writes.
    stream: Connections,
    /// Of the connection beside the pools.
    session_options: pool::SessionOptions,
    clock: DbClock,
    directory: Directory,
    backlog: Backlog,
    retention: Retention,
    recent: Recent,
    offers: Offers,
    filter_errors: FilterErrors,
    tallies: Tallies,
    judges: Judges,
    stream_key: StreamKey,
    vault: Vault,
    /// Whether other replicas are told of what this one did.
    notify: bool,
    /// Tells that this process has started a replay.
    replay_started: Notify,
    stats: Stats,
    dead_counts: DeadCounts,
    metrics: Arc<Metrics>,
    traces: OnceLock<Traces>,
    /// Names this process in attempts.
    replica: String,
    /// The row in `replicas` without which claims of this process give nothing; `None` while it never joined the others:
    /// then its claims are guarded by nothing but their fence.
    claims_as: RwLock<Option<Uuid>>,
    /// Of new work and new transitions. Never needed for correctness.
    hints: Hints,
}

impl Store {
    /// Connects, brings the schema up to date and makes the coming days' partitions.
    pub async fn open(config: &Config) -> std::result::Result<Arc<Self>, ConnectError> {
        let pool::Pools { engine, reader, stream, session_options } = pool::connect(config).await?;
        pool::migrate(&reader).await?;
        partitions::ensure(&reader).await?;
        let vault = Vault::new(config.encryption.clone());
        vault.check_keys(&reader).await?;
        let clock = DbClock::start(&reader).await?;
        let metrics = Arc::new(Metrics::new(config.event_types_max)?);
        measure::watch_pools(&metrics, [("engine", &engine), ("reader", &reader), ("stream", &stream)]);
        let backlog = Backlog::start(&reader, config.limits, metrics.queue_size.clone()).await?;
        let mut drawn = [0; 32];
        SysRng.try_fill_bytes(&mut drawn).map_err(ConnectError::Random)?;
        let stream_key = tail::ensure_stream_key(&reader, drawn).await?;
        let store = Self {
            engine,
            reader,
            stream,
            session_options,
            directory: Directory::default(),
            backlog,
            retention: config.retention,
            recent: Recent::default(),
            offers: Offers::default(),
            filter_errors: FilterErrors::new(metrics.filter_errors.clone()),
            tallies: Tallies::default(),
            judges: Judges::default(),
            stream_key,
            vault,
            notify: config.notify,
            replay_started: Notify::new(),
            stats: Stats::new(clock.new_uuid()),
            dead_counts: DeadCounts::default(),
            metrics,
            traces: OnceLock::new(),
            replica: config.replica.clone(),
            claims_as: RwLock::default(),
            hints: Hints::default(),
            clock,
        };
        store.tell_publish_limits(config.limits.payload_bytes_max).await?;
        Ok(Arc::new(store))
    }

    /// Brings the schema up to date and makes the coming days' partitions, nothing else.
    pub async fn migrate(config: &Config) -> std::result::Result<(), ConnectError> {
        let pool::Pools { reader, .. } = pool::connect(config).await?;
        pool::migrate(&reader).await?;
        partitions::ensure(&reader).await?;
        Ok(())
    }

    /// The database's clock.
    pub const fn clock(&self) -> &DbClock {
        &self.clock
    }

    /// What this replica counts and measures.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Has what is done for events recorded from now on.
    pub fn trace_into(&self, traces: Traces) {
        let _ = self.traces.set(traces);
    }

    /// Where what is done for events is recorded; `None` where it is not.
    pub fn traces(&self) -> Option<&Traces> {
        self.traces.get()
    }

    /// The API keys.
    pub fn keys(&self) -> Keys {
        Keys::over(self.reader.clone())
    }

    /// What names this process in attempts.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// From now on claims give something only while `replicas` has this row: a process that was stopped, or cut off, and
    /// goes on where it stood claims nothing that is another's by then.
    pub fn claim_as(&self, replica: Uuid) {
        *self.claims_as.write().unwrap_or_else(PoisonError::into_inner) = Some(replica);
    }

    /// Room for what is published here, which lanes of this process offer.
    pub const fn offers(&self) -> &Offers {
        &self.offers
    }

    /// Hints of endpoints with new work from now on. A slow reader misses some: its sweep finds what they told.
    pub fn due_hints(&self) -> tokio::sync::broadcast::Receiver<Hint> {
        self.hints.due()
    }

    /// Changes whenever the timeline has grown, as far as this process was told.
    pub fn growth_hints(&self) -> tokio::sync::watch::Receiver<u64> {
        self.hints.growth()
    }

    /// Changes whenever this process has added to the timeline.
    pub fn own_growth_hints(&self) -> tokio::sync::watch::Receiver<u64> {
        self.hints.own_growth()
    }

    /// Passes on what another replica told.
    pub fn take_in(&self, work: &Work) {
        self.hints.heard(work);
    }

    /// Whether the database answers by then.
    pub async fn ping(&self, limit: Duration) -> Result<Answered> {
        let began = Instant::now();
        let server_version = sqlx::query_scalar(PING).fetch_one(&self.reader.within(limit)).await?;
        Ok(Answered { server_version, took: began.elapsed() })
    }

    /// Re-reads what is only tracked: the clock's offset. Cheap; call it every few seconds.
    pub async fn track_clock(&self) -> Result<()> {
        self.clock.track(&self.reader.within(CLOCK_PATIENCE)).await
    }

    /// Makes the partitions of the coming days, where they are missing.
    pub async fn make_partitions(&self) -> Result<()> {
        partitions::ensure(&self.reader).await
    }

    /// Closes every connection, once the statements under way have ended.
    pub async fn close(&self) {
        self.engine.close().await;
        self.reader.close().await;
        self.stream.close().await;
    }

    fn claims_as(&self) -> Option<Uuid> {
        *self.claims_as.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something that lets an endpoint's requests through has changed, or may have.
    fn hint_changed(&self, endpoint: EndpointId) {
        self.hints.changed(endpoint);
    }

    fn hint(&self, due: Vec<Due>) {
        self.hints.made(due);
    }
}

/// The database's sign of life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Of PostgreSQL, such as `17.2`.
    pub server_version: String,
    /// How long it took, the wait for a connection included.
    pub took: Duration,
}

/// Debian's servers say more than the number.
const PING: &str = "select split_part(current_setting('server_version'), ' ', 1)";

/// How long the clock may take to be read; a later answer would tell an old time.
const CLOCK_PATIENCE: Duration = Duration::from_secs(2);
