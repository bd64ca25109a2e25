//! `hooklane settings`: every setting that there is.

use super::show::{Fields, Paint, Palette};
use super::{Failure, say};
use crate::config::{Described, describe, markdown};

/// Show every setting: what it is for, its default, and its names in files, environment and flags
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_long_help = "Examples:\n  hooklane settings\n  hooklane settings tls\n  hooklane settings --json | jq .key"
)]
pub struct Args {
    /// Those whose key has this in it
    #[arg(value_name = "PART", conflicts_with = "markdown")]
    part: Option<String>,
    /// The page docs/settings.md
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// A line of JSON for each
    #[arg(long)]
    json: bool,
}

/// Shows them.
pub fn run(args: &Args) -> Result<(), Failure> {
    if args.markdown {
        return say(markdown().trim_end());
    }
    let part = args.part.as_deref().unwrap_or_default();
    let wanted: Vec<_> = describe().into_iter().filter(|setting| setting.key.contains(part)).collect();
    if wanted.is_empty() {
        return Err(Failure::usage(format!("no setting has {part:?} in its key")));
    }
    for (place, setting) in wanted.iter().enumerate() {
        if args.json {
            let line = serde_json::to_string(setting)
                .map_err(|error| Failure::internal(format!("{} as JSON: {error}", setting.key)))?;
            say(&line)?;
            continue;
        }
        if place > 0 {
            say("")?;
        }
        print(setting)?;
    }
    Ok(())
}

fn print(setting: &Described) -> Result<(), Failure> {
    say(&Palette::for_stdout().paint(Paint::Strong, setting.key))?;
    let mut fields = Fields::default();
    fields.add("  meaning", setting.meaning);
    fields.add("  default", if setting.default.is_empty() { "none" } else { &setting.default });
    fields.add(
        "  in dev",
        setting.default_in_dev.as_deref().map_or("", |text| if text.is_empty() { "none" } else { text }),
    );
    fields.add("  environment", &setting.variable);
    fields.add("  from a file", setting.file_variable.as_deref().unwrap_or_default());
    fields.add("  flag", setting.flag.unwrap_or_default());
    fields.print()
}
