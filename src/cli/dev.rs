//! `hooklane dev`: everything on one machine, with a PostgreSQL of its own.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::Failure;
use super::keys::new_entry;
use super::postgres::{DataDir, Durability, Options, Postgres, default_data_dir};
use super::serve::{Signals, load, start};
use crate::config::{Flags, Profile};
use crate::domain::keyring::Keyring;
use crate::telemetry::log;

/// Run everything on this machine, with a PostgreSQL of its own
///
/// Finds PostgreSQL's programs, starts a server of its own on a Unix socket (nothing of yours is touched), brings the
/// schema up to date and runs a replica. Secrets in it are sealed with a key that is made and kept beside the data.
/// Everything listens on loopback; plain http and private receivers are allowed; nobody is asked who they are. Works as
/// root too. With `--database-url` that database is used instead.
///
/// Prints one line when it is ready: `ready grpc=ADDR ops=ADDR`.
#[derive(clap::Args)]
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
/// Where in the data directory the master key is.
const KEYS_FILE: &str = "encryption.keys";

/// Runs until a signal.
pub async fn run(args: Args) -> Result<(), Failure> {
    let flags = Flags { database_url: args.database_url.clone(), ..args.flags.clone() };
    let mut config = load(Profile::Dev, &flags)?;
    log::start(&config.log);
    let mut signals = Signals::listen()?;
    let postgres = match config.store.database_url.is_empty() {
        true => {
            let data_dir = data_dir(&args)?;
            let postgres = own_postgres(args.postgres_bin, data_dir.as_deref()).await?;
            let encryption = &mut config.store.encryption;
            if encryption.keys.is_none() && !encryption.plaintext {
                encryption.keys = Some(own_keys(data_dir.as_deref())?);
            }
            Some(postgres)
        }
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

/// Where the data is kept; `None` where it is not.
fn data_dir(args: &Args) -> Result<Option<PathBuf>, Failure> {
    match (args.ephemeral, &args.data_dir) {
        (true, _) => Ok(None),
        (false, Some(dir)) => Ok(Some(dir.clone())),
        (false, None) => default_data_dir().map(Some).map_err(unavailable),
    }
}

async fn own_postgres(bin_dir: Option<PathBuf>, data_dir: Option<&Path>) -> Result<Postgres, Failure> {
    let data_dir = data_dir.map_or(DataDir::Ephemeral, |dir| DataDir::Persistent(dir.to_owned()));
    let options = Options { data_dir, bin_dir, durability: Durability::Full, extra_settings: Vec::new() };
    let postgres = Postgres::start(options).await.map_err(unavailable)?;
    postgres.create_database(DATABASE).await.map_err(unavailable)?;
    Ok(postgres)
}

/// The master key of this developer's own: kept beside the data, for this user alone, and made where there is none. The
/// directory is there by now, and locked.
fn own_keys(data_dir: Option<&Path>) -> Result<Keyring, Failure> {
    let parse = |text: &str| Keyring::parse(text.trim()).map_err(|problem| problem.to_string());
    let Some(dir) = data_dir else { return parse(&new_entry(None)?).map_err(Failure::internal) };
    let path = dir.join(KEYS_FILE);
    let failed = |problem: String| Failure::other(format!("{}: {problem}", path.display()));
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(&text).map_err(failed),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let entry = new_entry(None)?;
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path);
            file.as_mut()
                .map_err(|error| error.to_string())
                .and_then(|file| writeln!(file, "{}", *entry).map_err(|error| error.to_string()))
                .map_err(failed)?;
            parse(&entry).map_err(failed)
        }
        Err(error) => Err(failed(error.to_string())),
    }
}

fn unavailable(error: super::postgres::Error) -> Failure {
    Failure::unavailable(error.to_string())
}
