//! Connections: how they are opened, with which guarded settings, and how the schema is brought up to date.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};

use super::backlog::Limits;
use super::connections::{Connections, Doubt};
use super::error::Error;
use super::vault::Encryption;
use crate::domain::Problem;

/// Which database, and how much of it this process takes.
#[derive(Clone)]
pub struct Config {
    /// `postgres://…`, the primary.
    pub database_url: String,
    /// How many connections this replica opens at most.
    pub connections_max: u32,
    /// Whether it tells others of what it did. They find it without, later.
    pub notify: bool,
    /// Names this process in attempts.
    pub replica: String,
    /// When publishes are refused or fail at once.
    pub limits: Limits,
    /// How long what is done is kept.
    pub retention: Retention,
    /// How secrets are kept.
    pub encryption: Encryption,
    /// Event types that metrics tell apart.
    pub event_types_max: usize,
}

/// Without the URL, which may have a password in it.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { database_url: _, connections_max, notify, replica, limits, retention, encryption, event_types_max } =
            self;
        f.debug_struct("Config")
            .field("connections_max", connections_max)
            .field("notify", notify)
            .field("replica", replica)
            .field("limits", limits)
            .field("retention", retention)
            .field("encryption", encryption)
            .field("event_types_max", event_types_max)
            .finish_non_exhaustive()
    }
}

/// How long what is done is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// How long a delivery is kept that succeeded.
    pub succeeded: Duration,
    /// How long one is kept that failed, expired or was canceled.
    pub failed: Duration,
    /// How long a failed delivery is a dead letter; not longer than it is kept.
    pub dead_letters: Duration,
    /// How long attempts that failed and other transitions are kept; not shorter than deliveries, with which successes are.
    pub timeline: Duration,
    /// How long events are kept, at least: as long as deliveries, whenever those are settled.
    pub payloads: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        let days = |count: u64| Duration::from_secs(count * 24 * 3600);
        Self { succeeded: days(30), failed: days(30), dead_letters: days(7), timeline: days(30), payloads: days(30) }
    }
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL cannot be read.
    #[error("the database URL is not valid: {0}; allowed is postgres://user:password@host:port/database")]
    Url(#[source] sqlx::Error),
    /// The server answered and refused us: an unknown role or database, a wrong password.
    #[error("the database refused the connection: {0}")]
    Refused(#[source] sqlx::Error),
    /// The server is too old.
    #[error("the database is PostgreSQL {0}; supported are 14 to 18")]
    Version(u32),
    /// Something between us and PostgreSQL shares connections by transaction.
    #[error("the database URL leads to a transaction pooler; Hooklane needs a direct or session-pooled connection")]
    TransactionPooler,
    /// The schema could not be brought up to date.
    #[error("the schema could not be migrated: {0}")]
    Migrate(#[source] MigrateError),
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes: {0}")]
    Random(#[source] rand::rngs::SysError),
    /// Something in the database is sealed with a key that the settings do not have.
    #[error(
        "the database holds secrets sealed with the key {0}, which encryption.keys does not have; add it behind the others"
    )]
    KeyMissing(String),
    /// The settings have another key of an id that is known.
    #[error("encryption.keys has another key {0} than the one that secrets in the database are sealed with")]
    KeyDiffers(String),
    /// The metrics could not be made.
    #[error("the metrics could not be set up: {0}")]
    Metrics(#[from] crate::telemetry::metrics::Error),
    /// A statement failed.
    #[error(transparent)]
    Store(#[from] Error),
}

impl From<sqlx::Error> for ConnectError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// A newer version may have migrated already: its changes are such that this one can go on beside it.
static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!("./migrations");
    migrator.set_ignore_missing(true);
    migrator
});

/// Statistics taken while the hot table is empty turn a queue's statements into scans over everything, so the engine's
/// connections leave the planner nothing but index scans and nested loops. The batch arrays that are unnested hold
/// hundreds of rows at most.
const ENGINE_PLANNER: [(&str, &str); 6] = [
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_sort", "off"),
    // One plan for every batch: planning anew costs more than executing a small one.
    ("plan_cache_mode", "force_generic_plan"),
];

/// What every connection has: our schema first, and an end to whatever hangs. The server gives up a statement before we
/// give up its connection ([`PATIENCE`]), so that one which is slow costs no connection.
const EVERY_CONNECTION: [(&str, &str); 7] = [
    ("search_path", "hooklane,pg_catalog"),
    ("application_name", "hooklane"),
    ("timezone", "UTC"),
    ("statement_timeout", "8s"),
    ("idle_in_transaction_session_timeout", "15s"),
    ("tcp_user_timeout", "20s"),
    ("jit", "off"),
];

/// How long an answer is waited for. With the wait for a connection this bounds how long work stands still after a link
/// that swallowed packets works again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a migration may take: it rewrites or indexes what is there.
const MIGRATION_STATEMENT_TIMEOUT: &str = "set statement_timeout = '30s'";

/// How this process reaches the database.
pub(super) struct Pools {
    /// The engine's.
    pub(super) engine: Connections,
    /// The readers'.
    pub(super) reader: Connections,
    /// The live stream's.
    pub(super) stream: Connections,
    /// Of the one connection beside the pools, by which this replica is one of several.
    pub(super) session_options: SessionOptions,
}

/// How the session is opened: with the database's password, which whoever prints it must not.
pub(super) struct SessionOptions(pub(super) PgConnectOptions);

impl fmt::Debug for SessionOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionOptions(…)")
    }
}

/// A database's URL as it has to be written.
pub const URL_ALLOWED: &str = "postgres://user:password@host:port/database";

/// Whether the URL is one of a database, without calling there. What is wrong is told without the URL, which may have a
/// password in it.
pub fn check_url(url: &str) -> Result<(), Problem> {
    // The driver takes any scheme for its own.
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(Problem::new(format!("is no URL of PostgreSQL; allowed is {URL_ALLOWED}")));
    }
    let wrong = |error: &dyn fmt::Display| {
        let words = format!(
            "is no URL of PostgreSQL: {error}; allowed is {URL_ALLOWED}, with special characters of user and password \
             encoded by %"
        );
        Problem::new(words)
    };
    match PgConnectOptions::from_str(url) {
        Ok(_) => Ok(()),
        Err(sqlx::Error::Configuration(cause)) => Err(wrong(&cause)),
        Err(error) => Err(wrong(&error)),
    }
}

/// The pools and what the session is opened with: together `connections_max` connections.
pub(super) async fn connect(config: &Config) -> Result<Pools, ConnectError> {
    let options = PgConnectOptions::from_str(&config.database_url)
        .map_err(ConnectError::Url)?
        .statement_cache_capacity(64)
        .log_statements(tracing::log::LevelFilter::Trace)
        .log_slow_statements(tracing::log::LevelFilter::Debug, Duration::from_secs(1));
    let streams_max = (config.connections_max / 8).clamp(1, 3);
    let readers_max = (config.connections_max / 3).saturating_sub(streams_max).max(2);
    let for_readers = for_readers(options.clone());
    // One connection outside the pool first: a pool tries until its time is up and then tells no reason.
    let mut probe = for_readers.connect().await.map_err(connect_error)?;
    check_server(&mut probe).await?;
    // Whatever its farewell meets, it is gone.
    let _ = probe.close().await;
    let doubt = Doubt::none();
    let open = |max: u32, options: PgConnectOptions| Connections::open_lazily(max, options, &doubt, PATIENCE);
    let session_options = SessionOptions(super::replicas::for_session(for_readers.clone()));
    let reader = open(readers_max, for_readers);
    // Its statements meet how many rows follow on a transaction, which the planner cannot know, and every few
    // milliseconds dozens of days' partitions, which take it longer than the reading.
    let stream = open(streams_max, for_engine(options.clone()));
    let engine_max = config.connections_max.saturating_sub(readers_max + streams_max + 1).max(2);
    Ok(Pools { engine: open(engine_max, for_engine(options)), reader, stream, session_options })
}

/// The options of a reader's connection. Readers' filters are mostly absent: planned for the values at hand, conditions on
/// null fall away.
pub(super) fn for_readers(options: PgConnectOptions) -> PgConnectOptions {
    options.options(EVERY_CONNECTION).options([("plan_cache_mode", "force_custom_plan")])
}

/// The options of a connection whose plans are guarded.
pub(super) fn for_engine(options: PgConnectOptions) -> PgConnectOptions {
    options.options(EVERY_CONNECTION).options(ENGINE_PLANNER)
}

/// PgBouncer refuses start-up parameters it does not know (08P01), and only transaction pooling makes them unknowable.
/// Class 28: authorization; 3D000: no such database.
fn connect_error(error: sqlx::Error) -> ConnectError {
    let code = error.as_database_error().and_then(|refusal| refusal.code()).unwrap_or_default();
    match code.as_ref() {
        "08P01" => ConnectError::TransactionPooler,
        "3D000" => ConnectError::Refused(error),
        code if code.starts_with("28") => ConnectError::Refused(error),
        _ => error.into(),
    }
}

async fn check_server(connection: &mut PgConnection) -> Result<(), ConnectError> {
    let (version, search_path): (i32, String) =
        sqlx::query_as("select current_setting('server_version_num')::int, current_setting('search_path')")
            .fetch_one(connection)
            .await?;
    // A pooler that ignores start-up parameters gave us a connection without our settings.
    if !search_path.starts_with("hooklane") {
        return Err(ConnectError::TransactionPooler);
    }
    match u32::try_from(version / 10_000).unwrap_or_default() {
        14.. => Ok(()),
        older => Err(ConnectError::Version(older)),
    }
}

/// Applies what is missing. Replicas that start at once take turns by the migrator's advisory lock.
pub(super) async fn migrate(connections: &Connections) -> Result<(), ConnectError> {
    // Not given back: the pool's others have another timeout.
    let mut connection = connections.lend().await?;
    // The migrator keeps its own table in the first schema of the search path, so that schema comes first.
    let exists: bool =
        sqlx::query_scalar("select to_regnamespace('hooklane') is not null").fetch_one(&mut *connection).await?;
    if !exists {
        match sqlx::query("create schema if not exists hooklane").execute(&mut *connection).await.map_err(Error::from) {
            // Two sessions that create it at once: one of them finds the name taken. It exists, then.
            Ok(_) | Err(Error::Data(_)) => {}
            Err(other) => return Err(other.into()),
        }
    }
    sqlx::query(MIGRATION_STATEMENT_TIMEOUT).execute(&mut *connection).await?;
    MIGRATOR.run(&mut *connection).await.map_err(ConnectError::Migrate)
}
