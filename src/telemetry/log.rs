//! Logs: on standard error, as text or JSON, filtered by level and module; the filter can be changed while the process
//! runs. There is one log for a process, whoever runs in it.

use std::fmt;
use std::io::IsTerminal;
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, reload};

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

/// What is logged unless a setting says otherwise.
pub(crate) const DEFAULT_FILTER: &str = "info";

/// What goes with every filter that would say more of these: PostgreSQL's notices tell of what exists already, and what a
/// pool waits for is told by whoever waits. A filter that names them, or what they belong to, has its own way.
const QUIET: [(&str, LevelFilter); 2] = [("sqlx", LevelFilter::WARN), ("sqlx_core::pool", LevelFilter::ERROR)];

/// What the log tells of single deliveries, in filters.
pub(crate) const DELIVERY: &str = "hooklane::delivery";

/// Tells of a failure after which the same is tried again by itself. That the database is away is told once, by whoever
/// watches over it (membership, health); that everything else waits for it is for whoever looks closer.
macro_rules! tried_again {
    ($error:ident, $line:literal) => {
        if $error.is_absence() {
            tracing::debug!(%$error, $line);
        } else {
            tracing::warn!(%$error, $line);
        }
    };
}
pub(crate) use tried_again;

/// How many a line names that is about many.
const FEW: usize = 10;

/// The first of many, and how many more there are, for a line about all of them: enough to find what they have in common,
/// however many they are. Nothing is written unless the line is.
pub(crate) fn few<I>(many: I) -> impl fmt::Display
where
    I: IntoIterator<Item: fmt::Display> + Clone,
{
    fmt::from_fn(move |f| {
        let mut many = many.clone().into_iter();
        for (place, one) in many.by_ref().take(FEW).enumerate() {
            let space = if place == 0 { "" } else { " " };
            write!(f, "{space}{one}")?;
        }
        match many.count() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    })
}

/// The running log: what was asked for at the start, what holds now, and how to change it.
#[derive(Debug)]
struct Control {
    setting: String,
    present: Mutex<String>,
    handle: reload::Handle<EnvFilter, Registry>,
}

static CONTROL: OnceLock<Control> = OnceLock::new();

/// Why the filter stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The text is no filter.
    #[error("{0}")]
    Invalid(String),
    /// Nothing that this process started writes its log.
    #[error("this process writes no log of its own")]
    NoLog,
}

/// Checks a filter; answers it with what goes with it.
pub(crate) fn parse_filter(text: &str) -> Result<String, String> {
    const ALLOWED: &str = "allowed is such as info, hooklane=debug or info,hooklane::engine=debug";
    // A level that is misspelt reads as the name of a module, of which nothing would be logged, nor of any other.
    let is_level = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
    let is_path = |word: &str| word == "hooklane" || word.contains("::") || word.contains('[');
    let mut directives = text.split(',');
    if let Some(word) = directives.find(|word| !word.contains('=') && !is_level(word) && !is_path(word)) {
        return Err(format!("has {word:?}, which is no level; {ALLOWED}"));
    }
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(with_quiet(text)),
        Err(error) => Err(format!("is not a filter ({error}); {ALLOWED}")),
    }
}

/// The filter with what of [`QUIET`] it would say more of, and does not name.
fn with_quiet(text: &str) -> String {
    // Without a level for all, whatever is not named stays silent.
    let for_all = text.split(',').rev().find_map(|word| word.parse().ok()).unwrap_or(LevelFilter::OFF);
    let targets = || text.split(',').filter_map(|directive| directive.split(['[', '=']).next());
    let is_named = |quiet: &str| targets().any(|target| !target.is_empty() && quiet.starts_with(target));
    let quiet = QUIET.into_iter().filter(|(target, level)| for_all > *level && !is_named(target));
    quiet.fold(text.to_owned(), |whole, (target, level)| format!("{whole},{target}={level}"))
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
    let (filter, handle) = reload::Layer::new(EnvFilter::new(&config.filter));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    let lines = match config.format {
        Format::Text => lines.boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        let (setting, present) = (config.filter.clone(), Mutex::new(config.filter.clone()));
        let _ = CONTROL.set(Control { setting, present, handle });
    }
}

/// The filter that holds now; `None` where this process has no log of its own.
pub fn filter() -> Option<String> {
    Some(CONTROL.get()?.present.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Has another filter hold from now on, or with `None` the one of the setting; answers it.
pub fn change_filter(text: Option<&str>) -> Result<String, ChangeError> {
    let control = CONTROL.get().ok_or(ChangeError::NoLog)?;
    let wanted = match text {
        Some(text) => parse_filter(text).map_err(ChangeError::Invalid)?,
        None => control.setting.clone(),
    };
    let mut present = control.present.lock().unwrap_or_else(PoisonError::into_inner);
    // Told once, by whichever of the two lets it through.
    let is_told_before = tracing::enabled!(tracing::Level::INFO);
    let tell = || tracing::info!(from = *present, to = wanted, "the log's filter changes");
    if is_told_before {
        tell();
    }
    control.handle.reload(EnvFilter::new(&wanted)).map_err(|_| ChangeError::NoLog)?;
    if !is_told_before {
        tell();
    }
    present.clone_from(&wanted);
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_about_many_names_a_few_and_counts_the_rest() {
        assert_eq!(few(0..0).to_string(), "");
        assert_eq!(few(&[7]).to_string(), "7");
        assert_eq!(few(1..=10).to_string(), "1 2 3 4 5 6 7 8 9 10");
        assert_eq!(few(1..=1_000).to_string(), "1 2 3 4 5 6 7 8 9 10 and 990 more");
    }

    #[test]
    fn a_filter_names_levels_and_modules_and_a_misspelt_level_is_no_module() {
        for good in [
            "info",
            "INFO",
            "off",
            "hooklane=debug",
            "hooklane",
            "warn,hooklane::engine=trace",
            "hooklane::delivery",
            "info,[call{method=Publish}]=debug",
        ] {
            assert!(parse_filter(good).is_ok_and(|whole| whole.starts_with(good)), "{good}");
        }
        for bad in ["debg", "", "info,,warn", "hooklane=loud", "info,verbose"] {
            let problem = parse_filter(bad).expect_err(bad);
            assert!(problem.contains("hooklane=debug"), "{problem}");
        }
    }

    #[test]
    fn the_database_driver_stays_quiet_unless_it_is_named() {
        for (text, whole) in [
            (DEFAULT_FILTER, "info,sqlx=warn,sqlx_core::pool=error"),
            ("debug,hooklane=trace", "debug,hooklane=trace,sqlx=warn,sqlx_core::pool=error"),
            ("debug,sqlx::query=debug", "debug,sqlx::query=debug,sqlx=warn,sqlx_core::pool=error"),
            ("info,sqlx_core=debug", "info,sqlx_core=debug,sqlx=warn"),
            ("info,sqlx_core::pool=info", "info,sqlx_core::pool=info,sqlx=warn"),
            ("trace,sqlx=debug", "trace,sqlx=debug"),
            // Nothing that the filter leaves out comes back.
            ("off", "off"),
            ("error", "error"),
            ("warn", "warn,sqlx_core::pool=error"),
            ("hooklane=debug", "hooklane=debug"),
        ] {
            assert_eq!(parse_filter(text).as_deref(), Ok(whole));
        }
    }
}
