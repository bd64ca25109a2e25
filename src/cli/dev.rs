//! `hooklane dev`: everything on one machine, with a PostgreSQL of its own.

use std::path::PathBuf;

use super::Failure;
use super::postgres::{DataDir, Durability, Options, Postgres, default_data_dir};
use super::serve::{Signals, load, start};
use crate::config::{Flags, Profile};
use crate::telemetry;

/// Run everything on this machine, with a PostgreSQL of its own
///
/// Finds PostgreSQL's programs, starts a server of its own on a Unix socket (nothing of yours is touched), brings the
/// schema up to date and runs a replica. Everything listens on loopback; plain http and private receivers are allowed;
/// nobody is asked who they are. Works as root too. With `--database-url` that database is used instead.
///
/// Prints one line when it is ready: `ready grpc=ADDR ops=ADDR`.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  hooklane dev\n  hooklane dev --ephemeral --grpc-addr 127.0.0.1:0 --ops-addr 127.0.0.1:0"
)]
pub struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Use this database instead of one of its own
    #[arg(long, value_name = "URL", conflicts_with_all = ["data_dir", "ephemeral"])]
    database_url: Option<String>,
    /// Where the data is kept between runs [default: ~/.local/share/hooklane/dev, for root /var/lib/hooklane/dev]
    #[arg(long, value_name = "DIR", conflicts_with = "ephemeral")]
    data_dir: Option<PathBuf>,
    /// Keep nothing: a fresh database that is removed at the end
    #[arg(long)]
    ephemeral: bool,
    /// Where PostgreSQL's programs are, if not in the usual places
    #[arg(long, value_name = "DIR", env = "HOOKLANE_POSTGRES_BIN")]
    postgres_bin: Option<PathBuf>,
}

/// The database inside a server of our own.
const DATABASE: &str = "hooklane";

/// Runs until a signal.
pub async fn run(args: Args) -> Result<(), Failure> {
    let flags = Flags { database_url: args.database_url.clone(), ..args.flags.clone() };
    let mut config = load(Profile::Dev, &flags)?;
    telemetry::start(&config.telemetry);
    let mut signals = Signals::listen()?;
    let postgres = match config.store.database_url.is_empty() {
        true => Some(own_postgres(args).await?),
        false => None,
    };
    if let Some(postgres) = &postgres {
        config.store.database_url = postgres.url(DATABASE);
    }
    let app = start(config).await?;
    signals.first().await;
    signals.drain(app.stop()).await?;
    if let Some(postgres) = postgres {
        postgres.stop().await.map_err(|error| Failure::other(error.to_string()))?;
    }
    Ok(())
}

async fn own_postgres(args: Args) -> Result<Postgres, Failure> {
    let unavailable = |error: super::postgres::Error| Failure::unavailable(error.to_string());
    let data_dir = match (args.ephemeral, args.data_dir) {
        (true, _) => DataDir::Ephemeral,
        (false, Some(dir)) => DataDir::Persistent(dir),
        (false, None) => DataDir::Persistent(default_data_dir().map_err(unavailable)?),
    };
    let options =
        Options { data_dir, bin_dir: args.postgres_bin, durability: Durability::Full, extra_settings: Vec::new() };
    let postgres = Postgres::start(options).await.map_err(unavailable)?;
    postgres.create_database(DATABASE).await.map_err(unavailable)?;
    Ok(postgres)
}
