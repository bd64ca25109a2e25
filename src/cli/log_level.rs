//! `hooklane log-level`: shows and changes what a running replica logs.

use super::{Failure, health};

/// Show what a running replica logs, or change it
///
/// Without a filter it prints the one that holds. A filter is a level, or levels by module: info, hooklane=debug,
/// info,hooklane::delivery=debug. It holds until the replica ends, or --reset has the setting (log.filter) hold again.
/// Only programs on the replica's own machine may change it: in Kubernetes, run this in the pod.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  hooklane log-level\n  hooklane log-level info,hooklane::delivery=debug\n  hooklane log-level --reset\n  kubectl exec deploy/hooklane -- hooklane log-level debug"
)]
pub struct Args {
    /// What is to be logged from now on
    #[arg(value_name = "FILTER", conflicts_with = "reset")]
    filter: Option<String>,
    /// Log what the setting says again
    #[arg(long)]
    reset: bool,
    /// The replica's operations port; for one that listens on all addresses, this host's own
    #[arg(long, value_name = "HOST:PORT", env = "HOOKLANE_OPS_ADDR", default_value = "127.0.0.1:9464")]
    ops_addr: String,
}

/// Asks once, and prints the filter that holds.
pub async fn run(args: Args) -> Result<(), Failure> {
    let (method, body) = match (&args.filter, args.reset) {
        (Some(filter), _) => ("PUT", filter.as_str()),
        (None, true) => ("DELETE", ""),
        (None, false) => ("GET", ""),
    };
    let known = [200, 400, 403, 503];
    match health::ask(&args.ops_addr, method, "/log/filter", body, &known).await? {
        (200, filter) => super::say(&filter),
        (400, problem) => Err(Failure::usage(problem)),
        (403, problem) => Err(Failure::other(problem)),
        (_, problem) => Err(Failure::try_again(problem)),
    }
}
