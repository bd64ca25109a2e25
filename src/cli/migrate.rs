//! `hooklane migrate`: brings the schema up to date and ends.

use super::Failure;
use super::database::Where;
use super::serve::connect_failure;
use crate::store::Store;

/// Bring the database's schema up to date and exit
///
/// `serve` does the same at its start. Safe to run while replicas run, and several times at once.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  hooklane migrate --database-url postgres://hooklane@db/hooklane")]
pub struct Args {
    #[command(flatten)]
    place: Where,
}

/// Migrates.
pub async fn run(args: Args) -> Result<(), Failure> {
    let config = args.place.settings()?;
    Store::migrate(&config.store).await.map_err(|error| connect_failure(&error))?;
    super::say("the schema is up to date")
}
