//! `hooklane check-config`: whether a replica would start with the settings that there are, without starting it.

use super::serve::{ServeFlags, environment};
use super::show::{Cell, Column, Paint, Table};
use super::{Failure, note, say};
use crate::api::Tls;
use crate::config::{Config, Effective, Profile};

/// Check the settings, and show what is set and where
///
/// Reads file, environment and flags as `serve` does, certificates and keys included, and opens nothing: neither ports nor
/// the database. Exit code 64 where anything is wrong, with name, value and what is allowed of each.
#[derive(clap::Args)]
#[command(
    after_long_help = "Examples:\n  hooklane check-config --config /etc/hooklane/hooklane.toml\n  hooklane check-config --all --json"
)]
pub struct Args {
    #[command(flatten)]
    flags: ServeFlags,
    /// As `dev` would start
    #[arg(long, conflicts_with = "insecure")]
    dev: bool,
    /// Show what is at its default, too
    #[arg(long)]
    all: bool,
    /// A line of JSON for each
    #[arg(long)]
    json: bool,
}

/// Checks.
pub fn run(args: Args) -> Result<(), Failure> {
    let profile = if args.dev { Profile::Dev } else { Profile::Serve };
    let (config, effective) = Config::explain(profile, &args.flags.read(), environment(profile))
        .map_err(|problems| Failure::usage(problems.to_string()))?;
    if let Some(tls) = &config.api.edge.tls {
        Tls::check(tls).map_err(|error| Failure::usage(error.to_string()))?;
    }
    let shown: Vec<_> = effective.iter().filter(|setting| args.all || setting.source.is_some()).collect();
    if args.json {
        return shown.into_iter().try_for_each(|setting| say(&to_json(setting)?));
    }
    let mut table = Table::new(&[Column::left("setting"), Column::left("value"), Column::left("from")]);
    table.print(&shown.iter().map(|setting| row(setting)).collect::<Vec<_>>())?;
    note("the settings are good");
    Ok(())
}

fn to_json(setting: &Effective) -> Result<String, Failure> {
    serde_json::to_string(setting).map_err(|error| Failure::internal(format!("{} as JSON: {error}", setting.key)))
}

fn row(setting: &Effective) -> Vec<Cell> {
    let value = match setting.value.as_deref() {
        None if setting.source.is_none() => Cell::painted(Paint::Dim, "none"),
        None => Cell::painted(Paint::Dim, "(a secret)"),
        Some("") => Cell::painted(Paint::Dim, "none"),
        Some(value) => Cell::new(value),
    };
    let source = setting.source.as_deref().map_or_else(|| Cell::painted(Paint::Dim, "default"), Cell::new);
    vec![Cell::new(setting.key), value, source]
}
