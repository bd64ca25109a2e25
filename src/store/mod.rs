//! Every SQL statement of the program, a file for each group of tables. No other module speaks to PostgreSQL.
//!
//! The verbs: publish, claim, complete, release, renew, retry, cancel; the readers stand in `history` and `endpoints`.

mod backlog;
mod clock;
mod connections;
mod directory;
mod endpoints;
mod error;
mod filter_errors;
mod history;
mod idempotency;
mod inline;
mod operate;
mod partitions;
mod pausing;
#[doc(hidden)]
pub mod plans;
mod pool;
mod publish;
mod queue;
mod recent;
mod secrets;
mod tail;
mod types;

use std::sync::Arc;
use std::time::Duration;

pub use self::backlog::Limits;
pub use self::clock::DbClock;
pub use self::endpoints::{DeleteOutcome, EndpointFilter, LaneEndpoint, NewEndpoint, RegisterError, UpdateError};
pub use self::error::{Error, Result};
pub use self::history::{DeliveryFilter, DeliveryRecord, DeliveryRow};
pub use self::operate::{CancelRefused, RetryRefused};
pub use self::pool::{Config, ConnectError};
pub use self::publish::{PublishError, Published, PublishedDelivery, Publisher};
pub use self::queue::{
    AttemptRecord, CANCELED_REASON, Claimed, Completion, Due, LEASE, LaneRequest, Settled, Settlement,
};
pub use self::secrets::{RotateError, Rotation};
pub use self::tail::{Cursor, TimelineEvent, TransitionKind};

use self::backlog::Backlog;
use self::connections::Connections;
use self::directory::Directory;
use self::filter_errors::FilterErrors;
use self::publish::Judges;
use self::recent::Recent;

/// The database, as the rest of the program sees it.
#[derive(Debug)]
pub struct Store {
    /// Publish, claim, complete: their plans are guarded (see `pool`).
    engine: Connections,
    /// Readers and rare writers, with the planner's defaults.
    reader: Connections,
    clock: DbClock,
    directory: Directory,
    backlog: Backlog,
    recent: Recent,
    filter_errors: FilterErrors,
    judges: Judges,
    /// Names this process in attempts.
    replica: String,
    /// Endpoints with new work, for whoever drives lanes in this process. A hint, never needed for correctness.
    due: tokio::sync::broadcast::Sender<Arc<[Due]>>,
    /// That `timeline` has grown. A hint as well.
    grown: tokio::sync::watch::Sender<u64>,
}

impl Store {
    /// Connects, brings the schema up to date and makes the coming days' partitions.
    pub async fn open(config: &Config) -> std::result::Result<Arc<Self>, ConnectError> {
        let (engine, reader) = pool::connect(config).await?;
        pool::migrate(&reader).await?;
        partitions::ensure(&reader).await?;
        let clock = DbClock::start(&reader).await?;
        let backlog = Backlog::start(&reader, config.limits).await?;
        Ok(Arc::new(Self {
            engine,
            reader,
            clock,
            directory: Directory::default(),
            backlog,
            recent: Recent::default(),
            filter_errors: FilterErrors::default(),
            judges: Judges::default(),
            replica: config.replica.clone(),
            due: tokio::sync::broadcast::channel(DUE_HINTS_MAX).0,
            grown: tokio::sync::watch::channel(0).0,
        }))
    }

    /// Brings the schema up to date and makes the coming days' partitions, nothing else.
    pub async fn migrate(config: &Config) -> std::result::Result<(), ConnectError> {
        let (_, reader) = pool::connect(config).await?;
        pool::migrate(&reader).await?;
        partitions::ensure(&reader).await?;
        Ok(())
    }

    /// The database's clock.
    pub const fn clock(&self) -> &DbClock {
        &self.clock
    }

    /// What names this process in attempts.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// Hints of endpoints with new work from now on. A slow reader misses some: its sweep finds what they told.
    pub fn due_hints(&self) -> tokio::sync::broadcast::Receiver<Arc<[Due]>> {
        self.due.subscribe()
    }

    /// Changes whenever this process has added to the timeline.
    pub fn growth_hints(&self) -> tokio::sync::watch::Receiver<u64> {
        self.grown.subscribe()
    }

    /// Whether the database answers by then.
    pub async fn ping(&self, limit: Duration) -> Result<()> {
        sqlx::query("select 1").execute(&self.reader.within(limit)).await?;
        Ok(())
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
    }

    fn hint(&self, due: Vec<Due>) {
        self.grown.send_modify(|count| *count += 1);
        if !due.is_empty() {
            // Nobody listening is no error: the sweep finds the work.
            let _ = self.due.send(due.into());
        }
    }
}

/// How long the clock may take to be read; a later answer would tell an old time.
const CLOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Batches of hints kept for a slow reader.
const DUE_HINTS_MAX: usize = 1_024;
