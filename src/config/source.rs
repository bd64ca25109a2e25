//! Where settings come from, and the reading of one with its problems collected.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use super::{SETTINGS, Setting};

/// The settings that have flags of their own.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// A TOML file of settings; a key `section.key` of it is `HOOKLANE_SECTION_KEY` in the environment
    #[arg(long, value_name = "FILE", env = "HOOKLANE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where gRPC and gRPC-Web are served; port 0 picks one [default: 127.0.0.1:50051]
    #[arg(long, value_name = "ADDR")]
    pub grpc_addr: Option<String>,
    /// Where /livez, /readyz, /health and /metrics are served; port 0 picks one [default: 127.0.0.1:9464]
    #[arg(long, value_name = "ADDR")]
    pub ops_addr: Option<String>,
    /// What this replica does: api, worker or both [default: api,worker]
    #[arg(long, value_name = "ROLES")]
    pub roles: Option<String>,
    /// The primary, postgres://user:password@host:port/database
    #[arg(skip)]
    pub database_url: Option<String>,
    /// Whether calls without authentication may come from other machines
    #[arg(skip)]
    pub insecure: bool,
}

/// Everything that is wrong with the settings, one a line.
#[derive(Debug, PartialEq, Eq)]
pub struct SettingProblems(Vec<String>);

impl std::error::Error for SettingProblems {}

impl fmt::Display for SettingProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// What was set, by key.
#[derive(Debug, Default)]
pub(super) struct Source {
    values: HashMap<&'static str, Value>,
    problems: Vec<String>,
}

#[derive(Debug)]
struct Value {
    text: String,
    /// How whoever set it calls it.
    name: String,
}

impl Source {
    /// File, environment and flags, the later over the earlier. Fails where the file cannot be read at all.
    pub(super) fn gather(flags: &Flags, environment: BTreeMap<String, String>) -> Result<Self, SettingProblems> {
        let mut source = Self::default();
        if let Some(path) = &flags.config {
            source.add_file(path)?;
        }
        source.add_environment(environment);
        for (key, value) in [
            ("grpc.addr", &flags.grpc_addr),
            ("ops.addr", &flags.ops_addr),
            ("roles", &flags.roles),
            ("database.url", &flags.database_url),
        ] {
            let flag = Setting::find(key).and_then(|setting| setting.flag).unwrap_or(key);
            if let Some(text) = value {
                source.values.insert(key, Value { text: text.clone(), name: flag.to_owned() });
            }
        }
        Ok(source)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), SettingProblems> {
        let problem = |words: String| SettingProblems(vec![format!("{}: {words}", path.display())]);
        let text = std::fs::read_to_string(path).map_err(|error| problem(format!("cannot be read: {error}")))?;
        let table: toml::Table = text.parse().map_err(|error| problem(format!("is not valid TOML: {error}")))?;
        let mut found = Vec::new();
        flatten("", &table, &mut found);
        for (key, value) in found {
            let name = format!("{key} in {}", path.display());
            match (Setting::find(&key), value) {
                (None, _) => {
                    self.problems.push(format!("{name}: is an unknown setting{}", nearest(&key, Setting::file_key)))
                }
                (Some(known), Some(text)) => self.add(known, name, text),
                (Some(_), None) => {
                    self.problems.push(format!("{name}: is neither a text, a number, a truth value nor a list"))
                }
            }
        }
        Ok(())
    }

    fn add_environment(&mut self, environment: BTreeMap<String, String>) {
        let by_variable: HashMap<String, &'static Setting> =
            SETTINGS.iter().map(|setting| (setting.variable(), setting)).collect();
        for (name, text) in environment {
            if let Some(known) = by_variable.get(&name) {
                self.add(known, name, text);
            } else if let Some(known) =
                name.strip_suffix("_FILE").and_then(|name| by_variable.get(name)).filter(|known| known.is_secret)
            {
                match std::fs::read_to_string(&text) {
                    Ok(content) => self.add(known, name, content.trim_end().to_owned()),
                    Err(error) => self.problems.push(format!("{name}: {text} cannot be read: {error}")),
                }
            } else if name.starts_with("HOOKLANE_") && !is_for_others(&name) {
                let nearest = nearest(&name, Setting::variable);
                self.problems.push(format!("{name}: is an unknown setting{nearest}"));
            }
        }
    }

    fn add(&mut self, setting: &Setting, name: String, text: String) {
        self.values.insert(setting.key, Value { text, name });
    }
}

/// What was meant, perhaps, and where all of them are.
fn nearest<T: AsRef<str>>(name: &str, name_of: impl Fn(&'static Setting) -> T) -> String {
    // One letter in four may be wrong; two that changed places are one.
    const LIKE: f64 = 0.75;
    let own = |name: &str| name.strip_prefix("HOOKLANE_").unwrap_or(name).to_owned();
    let like = |setting: &'static Setting| {
        let known = name_of(setting);
        (strsim::normalized_damerau_levenshtein(&own(name), &own(known.as_ref())), known)
    };
    let best = SETTINGS.iter().map(like).max_by(|(one, _), (other, _)| one.total_cmp(other));
    match best {
        Some((likeness, known)) if likeness > LIKE => {
            format!("; is {} meant? `hooklane settings` has all", known.as_ref())
        }
        _ => "; `hooklane settings` has all there are".to_owned(),
    }
}

/// Variables of our prefix that are no settings: of other commands, and those that Kubernetes sets in every pod for a
/// service called hooklane.
fn is_for_others(name: &str) -> bool {
    const OTHERS: &[&str] = &[
        "HOOKLANE_API_KEY",
        "HOOKLANE_API_KEY_FILE",
        "HOOKLANE_CA_FILE",
        "HOOKLANE_CLIENT_CERT_FILE",
        "HOOKLANE_CLIENT_KEY_FILE",
        "HOOKLANE_CONFIG",
        "HOOKLANE_PORT",
        "HOOKLANE_POSTGRES_BIN",
        "HOOKLANE_SECRET",
    ];
    OTHERS.contains(&name)
        || ["HOOKLANE_LISTEN_", "HOOKLANE_PORT_", "HOOKLANE_SERVICE_"].iter().any(|prefix| name.starts_with(prefix))
}

/// A table's leaves as `section.key`; `None` for a value that no setting can have. A key's own value beside a table of
/// the same name (`log` and `log.format`) is written `log.filter` in a file.
fn flatten(prefix: &str, table: &toml::Table, found: &mut Vec<(String, Option<String>)>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let named = SETTINGS.iter().find(|setting| setting.file_key() == key);
        let key = named.map_or(key, |setting| setting.key.to_owned());
        match value {
            toml::Value::Table(inner) => flatten(&key, inner, found),
            toml::Value::Array(items) => {
                let texts: Option<Vec<String>> = items.iter().map(scalar).collect();
                found.push((key, texts.map(|texts| texts.join(","))));
            }
            other => found.push((key, scalar(other))),
        }
    }
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// Reads settings one by one and remembers what is wrong with them.
#[derive(Debug)]
pub(super) struct Reader {
    source: Source,
    /// What was asked for, and its default.
    asked: Vec<(&'static Setting, String)>,
}

/// What a setting is here, and where that comes from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Effective {
    /// Its key in a file.
    pub key: &'static str,
    /// Its value; `None` of a secret.
    pub value: Option<String>,
    /// How whoever set it calls it; `None` where it is the default.
    pub source: Option<String>,
}

impl Reader {
    pub(super) const fn new(source: Source) -> Self {
        Self { source, asked: Vec::new() }
    }

    /// Every setting that was read, with its default.
    pub(super) fn asked(&self) -> &[(&'static Setting, String)] {
        &self.asked
    }

    /// Every setting that was read, with its value.
    pub(super) fn effective(&self) -> Vec<Effective> {
        let one = |(setting, default): &(&'static Setting, String)| {
            let set = self.source.values.get(setting.key);
            let value = set.map_or_else(|| default.clone(), |value| value.text.clone());
            Effective {
                key: setting.file_key(),
                value: (!setting.is_secret).then_some(value),
                source: set.map(|value| value.name.clone()),
            }
        };
        let mut all: Vec<_> = self.asked.iter().map(one).collect();
        all.sort_by_key(|setting| setting.key);
        all
    }

    /// A setting's value, or `default`, which `parse` must accept. `None` where it is refused: its problem is reported at
    /// the end, so what stands in for it never matters.
    pub(super) fn get<T>(
        &mut self,
        key: &'static str,
        default: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        debug_assert!(Setting::find(key).is_some(), "{key} is no setting");
        self.asked.extend(Setting::find(key).map(|setting| (setting, default.to_owned())));
        let text = self.source.values.get(key).map_or_else(|| default.to_owned(), |value| value.text.clone());
        parse(&text).map_err(|problem| self.refuse(key, &text, &problem)).ok()
    }

    /// Reports what is wrong with a setting's value, beside others that were read.
    pub(super) fn refuse(&mut self, key: &'static str, text: &str, problem: &str) {
        let set = self.source.values.get(key).map(|value| value.name.clone());
        let name = set.unwrap_or_else(|| Setting::find(key).map(Setting::variable).unwrap_or_default());
        let is_secret = Setting::find(key).is_some_and(|known| known.is_secret);
        self.source.problems.push(match is_secret || text.is_empty() {
            true => format!("{name}: {problem}"),
            false => format!("{name}: {text:?} {problem}"),
        });
    }

    /// Something else that is wrong.
    pub(super) fn report(&mut self, problem: String) {
        self.source.problems.push(problem);
    }

    /// The configuration, unless anything was wrong.
    pub(super) fn finish<T>(self, config: Option<T>) -> Result<T, SettingProblems> {
        config.filter(|_| self.source.problems.is_empty()).ok_or(SettingProblems(self.source.problems))
    }
}
