//! `hooklane completions`: what a shell needs to complete commands and flags.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, Failure, say};

/// Print what a shell needs to complete commands and flags
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_long_help = "Examples:\n  hooklane completions bash > /etc/bash_completion.d/hooklane\n  hooklane completions zsh > \
                       \"${fpath[1]}/_hooklane\"\n  hooklane completions fish > ~/.config/fish/completions/hooklane.fish"
)]
pub struct Args {
    /// Which shell
    shell: Shell,
}

/// Prints it.
pub fn run(args: &Args) -> Result<(), Failure> {
    let mut script = Vec::new();
    // Into memory: the generator panics where its output takes nothing more.
    clap_complete::generate(args.shell, &mut Cli::command(), "hooklane", &mut script);
    let script = String::from_utf8(script).map_err(|_| Failure::internal("the script is no text"))?;
    say(script.trim_end())
}
