//! `hooklane serve`: a replica for production, given a database; and what `dev` shares with it.

use std::collections::BTreeMap;

use tokio::signal::unix::{SignalKind, signal};

use super::Failure;
use crate::app::{App, StartError};
use crate::config::{Config, Flags, Profile};
use crate::store::{ConnectError, Error};
use crate::telemetry::log;

/// Run a replica: serve gRPC and deliver
///
/// Needs a PostgreSQL database (14 to 18) and nothing else. The schema is brought up to date at the start; any number of
/// replicas may start at once. Prints one line when it is ready: `ready grpc=ADDR ops=ADDR`.
///
/// SIGTERM or SIGINT drain: nothing more is accepted, requests under way end within the grace time, every result is put
/// on record, exit code 0. A second signal ends at once.
#[derive(clap::Args)]
#[command(
    after_long_help = "Example:\n  export DATABASE_URL=postgres://hooklane@db/hooklane\n  hooklane key create --name me --role \
                       admin --all-tenants\n  hooklane serve"
)]
pub struct Args {
    #[command(flatten)]
    flags: ServeFlags,
}

// What a replica for production is given. Not in the documentation, which would become that of the command.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ServeFlags {
    #[command(flatten)]
    flags: Flags,
    /// The primary, postgres://… [env: DATABASE_URL]
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Serve anybody who reaches the port, where `auth` is none and the address is not loopback
    #[arg(long)]
    insecure: bool,
}

impl ServeFlags {
    pub(super) fn read(self) -> Flags {
        Flags { database_url: self.database_url, insecure: self.insecure, ..self.flags }
    }
}

/// Runs until a signal.
pub async fn run(args: Args) -> Result<(), Failure> {
    let config = load(Profile::Serve, &args.flags.read())?;
    log::start(&config.log);
    keep_memory_to_itself();
    let mut signals = Signals::listen()?;
    let app = start(config).await?;
    signals.first().await;
    signals.drain(app.stop()).await
}

/// What is in memory are master keys, secrets and payloads: a process that crashes leaves none of it on a disk. Whoever
/// wants a core raises the limit of the running process (prlimit(1)).
fn keep_memory_to_itself() {
    let core = rlimit::Resource::CORE;
    if let Err(error) = core.get().and_then(|(_, hard)| core.set(0, hard)) {
        tracing::warn!(%error, "a crash may leave secrets in a core file: its limit could not be set");
    }
}

/// Reads the settings of this process.
pub(super) fn load(profile: Profile, flags: &Flags) -> Result<Config, Failure> {
    Config::load(profile, flags, environment(profile)).map_err(|problems| Failure::usage(problems.to_string()))
}

/// The variables that settings are read from.
pub(super) fn environment(profile: Profile) -> BTreeMap<String, String> {
    let mut environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    if profile == Profile::Dev {
        // Many a shell exports it for another program, whose database must not be migrated by a trial of this one.
        environment.retain(|name, _| !name.starts_with("DATABASE_URL"));
    }
    environment
}

/// Starts a replica and says so.
pub(super) async fn start(config: Config) -> Result<App, Failure> {
    let app = App::start(config).await.map_err(start_failure)?;
    let grpc = app.grpc_addr().map_or_else(|| "none".to_owned(), |addr| addr.to_string());
    super::say(&format!("ready grpc={grpc} ops={}", app.ops_addr()))?;
    Ok(app)
}

pub(super) fn start_failure(error: StartError) -> Failure {
    match error {
        StartError::Store(error) => connect_failure(&error),
        StartError::Bind { .. } | StartError::Tls(_) | StartError::Traces(_) => Failure::usage(error.to_string()),
        StartError::Egress(error) => Failure::internal(error.to_string()),
    }
}

pub(super) fn connect_failure(error: &ConnectError) -> Failure {
    match error {
        ConnectError::Url(_)
        | ConnectError::Version(_)
        | ConnectError::TransactionPooler
        | ConnectError::KeyMissing(_)
        | ConnectError::KeyDiffers(_) => Failure::usage(error.to_string()),
        ConnectError::Refused(_) | ConnectError::Store(Error::Unavailable(_)) => {
            Failure::unavailable(error.to_string())
        }
        ConnectError::Migrate(_) | ConnectError::Random(_) | ConnectError::Metrics(_) | ConnectError::Store(_) => {
            Failure::internal(error.to_string())
        }
    }
}

/// SIGTERM and SIGINT, taken from the start on so that none is missed.
pub(super) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::internal(format!("signals cannot be taken: {error}")));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Resolves with the next of either.
    pub(super) async fn first(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for the drain; a second signal ends it.
    pub(super) async fn drain(&mut self, drain: impl Future<Output = ()>) -> Result<(), Failure> {
        tracing::info!("draining; a second signal ends at once");
        tokio::select! {
            () = drain => Ok(()),
            () = self.first() => Err(Failure::other("ended by a second signal".to_owned())),
        }
    }
}
