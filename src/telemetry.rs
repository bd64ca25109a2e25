//! What a running replica tells of itself: logs on standard error, as text or JSON, filtered by level and module; and
//! metrics. At the bottom of the code map: whatever has something to tell uses it.

pub mod metrics;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How the process logs.
#[derive(Debug, Clone)]
pub struct Config {
    /// A tracing filter, such as `info` or `hooklane=debug,sqlx=warn`.
    pub filter: String,
    /// How a line looks.
    pub format: Format,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: one object a line.
    Json,
}

/// What is logged unless a setting says otherwise. PostgreSQL's notices tell of what exists already.
pub(crate) const DEFAULT_FILTER: &str = "info,sqlx=warn";

/// Checks a filter.
pub(crate) fn parse_filter(text: &str) -> Result<String, String> {
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("is not a filter ({error}); allowed is such as info or hooklane=debug")),
    }
}

/// Checks a format's name.
pub(crate) fn parse_format(text: &str) -> Result<Format, String> {
    match text {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        _ => Err("is not a format; allowed are text and json".to_owned()),
    }
}

/// Starts logging; does nothing where a test has started it before.
pub fn start(config: &Config) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&config.filter))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    let _ = match config.format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
}
