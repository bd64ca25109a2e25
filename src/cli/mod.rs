//! The command line: which commands there are, how they fail, and what they share.
//!
//! A command is a module with `Args` (clap) and `run(args)`. What a command does belongs into its module, not here.

pub mod alert;
pub mod bench;
pub mod check_config;
mod client;
pub mod completions;
mod database;
pub mod delivery;
pub mod demo;
pub mod dev;
pub mod dlq;
mod each;
pub mod endpoint;
pub mod event;
mod flags;
pub mod health;
pub mod key;
pub mod keys;
pub mod listen;
pub mod log_level;
pub mod migrate;
mod pages;
pub mod postgres;
pub mod publish;
pub mod replay;
mod secrets;
pub mod serve;
pub mod settings;
mod show;
pub mod stats;
pub mod tail;
pub mod tenant;
pub mod top;
pub mod verify;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _};
use tokio::signal::unix::{SignalKind, signal};

const LONG_ABOUT: &str = "\
Hooklane delivers webhooks: it accepts events over gRPC, commits them to PostgreSQL, and sends each to every \
endpoint that wants it, at least once, signed, retried, and visible live. One binary, one database, any number of \
replicas.";

const EXIT_CODES: &str = "\
Exit codes:
   0  done
  64  bad usage, setting or input
  69  the service or its database is unavailable
  70  an internal error
  75  try again later
   1  anything else, such as a call that was refused

`hooklane help COMMAND` explains a command and shows examples.";

/// The command line of `hooklane`.
#[derive(clap::Parser)]
#[command(name = "hooklane", version, about = "Webhook delivery over gRPC and PostgreSQL", long_about = LONG_ABOUT)]
#[command(after_long_help = EXIT_CODES, arg_required_else_help = true, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Demo(demo::Args),
    Dev(Box<dev::Args>),
    Serve(Box<serve::Args>),
    Migrate(migrate::Args),
    CheckConfig(Box<check_config::Args>),
    Settings(settings::Args),
    Health(Box<health::Args>),
    LogLevel(log_level::Args),
    Key(Box<key::Args>),
    Keys(keys::Args),
    Tenant(Box<tenant::Args>),
    Endpoint(Box<endpoint::Args>),
    Publish(Box<publish::Args>),
    Event(Box<event::Args>),
    Delivery(Box<delivery::Args>),
    Dlq(Box<dlq::Args>),
    Replay(Box<replay::Args>),
    Alert(Box<alert::Args>),
    Stats(Box<stats::Args>),
    Tail(Box<tail::Args>),
    Top(Box<top::Args>),
    Listen(Box<listen::Args>),
    Verify(Box<verify::Args>),
    Completions(completions::Args),
    Bench(Box<bench::Args>),
    #[command(hide = true)]
    BenchReceiver(bench::receiver::Args),
    #[command(hide = true)]
    BenchAttacker(bench::attacker::Args),
}

/// The command line as people see it: what their environment holds is nothing for help pages.
fn command_line() -> clap::Command {
    fn dress(command: clap::Command) -> clap::Command {
        command.mut_args(|arg| arg.hide_env_values(true)).mut_subcommands(dress)
    }
    dress(Cli::command())
}

/// The same for telling of mistakes. Of what was typed clap makes a usage in which that is required, as if nothing else
/// could be typed; the whole one of the command says more.
fn command_line_in_whole() -> clap::Command {
    fn tell_in_whole(mut command: clap::Command) -> clap::Command {
        let usage = command.render_usage().to_string();
        let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage).to_owned();
        command.override_usage(usage).mut_subcommands(tell_in_whole)
    }
    let mut command = command_line();
    // So that each knows the names before its own.
    command.build();
    tell_in_whole(command)
}

impl Cli {
    /// Reads a command line, the program's name first.
    pub fn read<I, T>(line: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T> + Clone,
        T: Into<std::ffi::OsString> + Clone,
    {
        let read = |command: clap::Command| {
            let mut matches = command.try_get_matches_from(line.clone())?;
            Self::from_arg_matches_mut(&mut matches)
        };
        match read(command_line()) {
            Err(stop) if !is_help(&stop) => read(command_line_in_whole()),
            read => read,
        }
    }

    /// Runs the command to its end.
    pub async fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Demo(args) => demo::run(args).await,
            Command::Dev(args) => dev::run(*args).await,
            Command::Serve(args) => serve::run(*args).await,
            Command::Migrate(args) => migrate::run(args).await,
            Command::CheckConfig(args) => check_config::run(*args),
            Command::Settings(args) => settings::run(&args),
            Command::Health(args) => health::run(*args).await,
            Command::LogLevel(args) => log_level::run(args).await,
            Command::Key(args) => key::run(*args).await,
            Command::Keys(args) => keys::run(args).await,
            Command::Tenant(args) => tenant::run(*args).await,
            Command::Endpoint(args) => endpoint::run(*args).await,
            Command::Publish(args) => publish::run(*args).await,
            Command::Event(args) => event::run(*args).await,
            Command::Delivery(args) => delivery::run(*args).await,
            Command::Dlq(args) => dlq::run(*args).await,
            Command::Replay(args) => replay::run(*args).await,
            Command::Alert(args) => alert::run(*args).await,
            Command::Stats(args) => stats::run(*args).await,
            Command::Tail(args) => tail::run(*args).await,
            Command::Top(args) => top::run(*args).await,
            Command::Listen(args) => listen::run(*args).await,
            Command::Verify(args) => verify::run(*args).await,
            Command::Completions(args) => completions::run(&args),
            Command::Bench(args) => bench::run(*args).await,
            Command::BenchReceiver(args) => bench::receiver::run(args).await,
            Command::BenchAttacker(args) => bench::attacker::run(args).await,
        }
    }
}

/// Why a command did not do what was asked: an exit code and words for standard error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// The command line, a setting or what was handed over is wrong (64).
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: 64, message: message.into() }
    }

    /// The service or the database cannot be reached (69).
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { code: 69, message: message.into() }
    }

    /// Something that should not happen did (70).
    pub fn internal(message: impl Into<String>) -> Self {
        Self { code: 70, message: message.into() }
    }

    /// The same call may well succeed later (75).
    pub fn try_again(message: impl Into<String>) -> Self {
        Self { code: 75, message: message.into() }
    }

    /// Anything else (1).
    pub fn other(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// The exit code.
    pub const fn code(&self) -> u8 {
        self.code
    }

    /// Tells the user, once, on standard error. A message without words (already told) stays untold.
    pub fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            // Nobody is left to tell when standard error is closed.
            let _ = writeln!(io::stderr(), "hooklane: {}", self.message.trim_end());
        }
        ExitCode::from(self.code)
    }
}

/// Answers what clap stopped at: help and version on standard output are a success, all else is bad usage (64).
pub fn explain(stop: &clap::Error) -> Result<(), Failure> {
    if is_help(stop) {
        // Nobody is left to tell when the output is closed.
        let _ = stop.print();
    }
    judge(stop)
}

fn is_help(stop: &clap::Error) -> bool {
    use ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    matches!(stop.kind(), DisplayHelp | DisplayVersion | DisplayHelpOnMissingArgumentOrSubcommand)
}

fn judge(stop: &clap::Error) -> Result<(), Failure> {
    if !is_help(stop) {
        let text = stop.render().to_string();
        return Err(Failure::usage(text.strip_prefix("error: ").unwrap_or(&text)));
    }
    // Help that was not asked for has gone to standard error and says all there is to say.
    if stop.use_stderr() { Err(Failure::usage("")) } else { Ok(()) }
}

/// Prints one line on standard output, at once even into a pipe.
pub fn say(line: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(output_failure)
}

/// What follows when standard output takes nothing more. A reader that has seen enough, such as `head`, is no trouble.
fn output_failure(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::other(""),
        _ => Failure::other(format!("standard output: {error}")),
    }
}

/// Tells people something on standard error.
pub fn note(line: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(io::stderr(), "hooklane: {line}");
}

/// Catches SIGINT and SIGTERM from this call on; the future ends with the first of them.
pub fn interrupted() -> io::Result<impl Future<Output = ()> + Send> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => (),
            _ = terminate.recv() => (),
        }
    })
}

/// Reads a span as people write it: `250ms`, `2s`, `1.5m`, `1h`, or `0`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const ALLOWED: &str = "is not a duration; allowed are a number and a unit: 250ms, 2s, 1m, 1h";
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| ALLOWED.to_owned())?;
    let seconds = match unit {
        "ms" => number / 1_000.0,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3_600.0,
        "" if number == 0.0 => 0.0,
        _ => return Err(ALLOWED.to_owned()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| ALLOWED.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn exit_code(line: &str) -> u8 {
        match Cli::read(line.split(' ')) {
            Ok(_) => panic!("{line} was accepted"),
            Err(stop) => judge(&stop).err().map_or(0, |failure| failure.code()),
        }
    }

    /// Every command, the program itself first.
    fn every_command() -> Vec<clap::Command> {
        fn add(command: clap::Command, all: &mut Vec<clap::Command>) {
            let below: Vec<_> = command.get_subcommands().cloned().collect();
            all.push(command);
            below.into_iter().for_each(|one| add(one, all));
        }
        let (mut whole, mut all) = (command_line_in_whole(), Vec::new());
        whole.build();
        add(whole, &mut all);
        all
    }

    #[test]
    fn a_mistake_is_told_with_the_whole_usage_of_the_command() {
        for (line, usage) in [
            ("hooklane dlq purge dlv_1 --endpoint ep_1", "hooklane dlq purge [OPTIONS] [ID]..."),
            ("hooklane endpoint add", "hooklane endpoint add [OPTIONS] <URL|--from <FILE>>"),
            ("hooklane endpoint add http://a --burst 5", "hooklane endpoint add [OPTIONS] <URL|--from <FILE>>"),
            ("hooklane publish", "hooklane publish [OPTIONS] <TYPE> [DATA]"),
            (
                "hooklane key create --name a --role admin",
                "hooklane key create [OPTIONS] --name <NAME> --role <ROLE> <--tenant <TENANT>|--all-tenants>",
            ),
            ("hooklane tail --since 1h --resume-token x", "hooklane tail [OPTIONS]"),
            ("hooklane tenant erase", "hooklane tenant erase [OPTIONS] --tenant <TENANT>"),
        ] {
            let Err(stop) = Cli::read(line.split(' ')) else { panic!("{line} was accepted") };
            let words = judge(&stop).unwrap_err().to_string();
            assert!(words.lines().any(|line| line == format!("Usage: {usage}")), "{words}");
        }
    }

    #[test]
    fn help_fits_a_narrow_terminal() {
        for command in every_command() {
            // Below the flags lines stay as they are: one that is too long is broken wherever that is.
            let below = command.get_after_long_help().or(command.get_after_help());
            let below = below.map(ToString::to_string).unwrap_or_default();
            let long = below.lines().find(|line| line.chars().count() > 80);
            assert_eq!(long, None, "{}", command.get_name());
            let page = command.term_width(80).render_long_help().to_string();
            let mut filled = page.lines().filter(|line| !line.starts_with("Usage:"));
            assert!(filled.all(|line| line.chars().count() <= 80), "{page}");
            assert!(!page.contains("[env:\n") && !page.contains("=]"), "{page}");
        }
    }

    #[test]
    fn what_refusals_say_was_typed_can_be_typed() {
        let all = every_command();
        let arguments = || all.iter().flat_map(clap::Command::get_arguments);
        let mut names: BTreeSet<String> =
            arguments().filter_map(|arg| Some(format!("--{}", arg.get_long()?))).collect();
        let positionals = arguments().filter(|arg| arg.is_positional()).flat_map(|arg| arg.get_value_names());
        names.extend(positionals.flatten().map(ToString::to_string));
        let tables =
            [flags::FILTERS, flags::ID, publish::TYPED, endpoint::TYPED, endpoint::NEW, dlq::PURGED, replay::TYPED];
        for (field, typed) in tables.into_iter().flatten() {
            assert!(names.contains(*typed), "{typed} for {field}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bad_usage_exits_64_and_help_0() {
        for line in ["hooklane", "hooklane nonsense", "hooklane listen --nonsense", "hooklane listen --status 99"] {
            assert_eq!(exit_code(line), 64, "{line}");
        }
        for line in ["hooklane --help", "hooklane --version", "hooklane help listen", "hooklane listen --help"] {
            assert_eq!(exit_code(line), 0, "{line}");
        }
    }

    #[test]
    fn durations_are_a_number_and_a_unit() {
        for (text, millis) in [("250ms", 250), ("2s", 2_000), ("1m", 60_000), ("1.5h", 5_400_000), ("0", 0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        let endless = format!("{}h", "9".repeat(30));
        for bad in ["", "s", "2", "2 s", "-1s", "1d", "1.2.3s", "infs", "é", &endless] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
