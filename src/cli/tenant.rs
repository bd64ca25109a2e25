//! `hooklane tenant erase`: removes everything of a tenant, in the database itself, while replicas run or while none does.

use super::Failure;
use super::database::{Where, failed};
use super::serve::connect_failure;
use super::show::counted;
use crate::domain::Problem;
use crate::domain::fields::Tenant;
use crate::store::{Erased, Erasure};

/// Rounds after which the tenant is said to be published to all the time.
const ROUNDS_MAX: usize = 10;

/// Erase a tenant
///
/// Works on the database that the replicas share.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Erase(EraseArgs),
}

/// Remove everything of a tenant, for good
///
/// Its API keys end at once, its endpoints are deleted, and then its events, deliveries, attempts, alerts, replays,
/// statistics and everything else are removed in batches, while everybody else goes on. It takes at least half a minute:
/// it looks again, until nothing is found and nothing that was under way can come. Interrupted, it can be started again.
/// A tenant that is still published to, in SQL or with a key for all tenants, is refused in the end (75).
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  hooklane tenant erase --tenant shop --yes")]
struct EraseArgs {
    /// The tenant
    #[arg(long, value_parser = parse_tenant)]
    tenant: Tenant,
    /// That it is meant: nothing brings it back
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    place: Where,
}

/// Does what is asked.
pub async fn run(args: Args) -> Result<(), Failure> {
    let Command::Erase(args) = args.command;
    erase(args).await
}

async fn erase(args: EraseArgs) -> Result<(), Failure> {
    if !args.yes {
        return Err(Failure::usage(format!(
            "everything of the tenant {} would be gone for good; say --yes",
            args.tenant
        )));
    }
    let config = args.place.settings()?;
    let erasure = Erasure::open(&config.store, args.tenant.clone()).await.map_err(|error| connect_failure(&error))?;
    let closed = erasure.close().await.map_err(failed)?;
    let (keys, endpoints) = (counted(closed.keys, "key", "keys"), counted(closed.endpoints, "endpoint", "endpoints"));
    super::note(&format!("{}: {keys} and {endpoints} closed", args.tenant));
    let mut rows = closed.keys;
    for round in 1..=ROUNDS_MAX {
        let erased: Erased = erasure
            .round(|table, rows| super::note(&format!("{table}: {}", counted(rows, "row", "rows"))))
            .await
            .map_err(failed)?;
        rows += erased.rows();
        if erased.rows() == 0 {
            return super::say(&format!("the tenant {} is erased: {}", args.tenant, counted(rows, "row", "rows")));
        }
        let removed = counted(erased.rows(), "row", "rows");
        super::note(&format!("round {round} removed {removed}; looking again for what was under way"));
        if !erasure.settle(&erased).await.map_err(failed)? {
            return Err(Failure::try_again(
                "a transaction that began before does not end, and may bring something of the tenant; start it again then",
            ));
        }
    }
    Err(Failure::try_again(format!(
        "something of the tenant {} is still published, in SQL or with a key for all tenants; end that and start it again",
        args.tenant
    )))
}

/// The tenant has to be written: the default one, too.
fn parse_tenant(text: &str) -> Result<Tenant, Problem> {
    if text.is_empty() {
        return Err(Problem::new("is no tenant; allowed are 1 to 64 characters of [a-zA-Z0-9._-]"));
    }
    Tenant::parse(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tenant_is_written_out() {
        assert_eq!(parse_tenant("shop").map(|tenant| tenant.to_string()), Ok("shop".to_owned()));
        for bad in ["", "*", "a b"] {
            assert!(parse_tenant(bad).is_err(), "{bad:?}");
        }
    }
}
