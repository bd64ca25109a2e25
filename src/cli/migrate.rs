//! `hooklane migrate`: brings the schema up to date and ends.

use super::Failure;
use super::serve::{connect_failure, load};
use crate::config::{Flags, Profile};
use crate::store::Store;
use crate::telemetry::log;

/// Bring the database's schema up to date and exit
///
/// `serve` does the same at its start. Safe to run while replicas run, and several times at once.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  hooklane migrate --database-url postgres://hooklane@db/hooklane")]
pub struct Args {
    /// A TOML file of settings
    #[arg(long, value_name = "FILE", env = "HOOKLANE_CONFIG")]
    config: Option<std::path::PathBuf>,
    /// The primary, postgres://user:password@host:port/database [env: DATABASE_URL]
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
}

/// Migrates.
pub async fn run(args: Args) -> Result<(), Failure> {
    let flags = Flags { config: args.config, database_url: args.database_url, ..Flags::default() };
    let config = load(Profile::Migrate, &flags)?;
    log::start(&config.log);
    Store::migrate(&config.store).await.map_err(|error| connect_failure(&error))?;
    super::say("the schema is up to date")
}
