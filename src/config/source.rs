//! Where settings come from, and the reading of one with its problems collected.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use super::{SETTINGS, Setting};

/// The settings that have flags of their own.
#[derive(Clone, Default, clap::Args)]
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

/// Without the database's URL, which may have a password in it.
impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { config, grpc_addr, ops_addr, roles, database_url: _, insecure } = self;
        f.debug_struct("Flags")
            .field("config", config)
            .field("grpc_addr", grpc_addr)
            .field("ops_addr", ops_addr)
            .field("roles", roles)
            .field("insecure", insecure)
            .finish_non_exhaustive()
    }
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
    /// Given twice: nothing else is wrong with them.
    contested: Vec<&'static str>,
    problems: Vec<String>,
}

struct Value {
    text: String,
    /// How whoever set it calls it.
    name: String,
}

/// Without the text: some are secrets.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Value").field(&self.name).finish()
    }
}

impl Source {
    /// File, environment and flags, the later over the earlier. Fails where the file cannot be read at all.
    pub(super) fn gather(flags: &Flags, environment: BTreeMap<String, String>) -> Result<Self, SettingProblems> {
        let mut source = Self::default();
        if let Some(path) = &flags.config {
            source.add_file(path)?;
        }
        let given = flags.given();
        source.add_environment(&environment, |setting| given.iter().any(|(key, _)| *key == setting.key));
        for (key, text) in given {
            let flag = Setting::find(key).and_then(|setting| setting.flag).unwrap_or(key);
            source.values.insert(key, Value { text: text.clone(), name: flag.to_owned() });
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
                    let known = SETTINGS.iter().map(|setting| (setting.key.to_owned(), setting.variable()));
                    self.problems.push(format!("{name}: is an unknown setting{}", nearest(&key, known)));
                }
                (Some(known), Some(text)) => self.add(known, name, text),
                (Some(_), None) => {
                    self.problems.push(format!("{name}: is neither a text, a number, a truth value nor a list"))
                }
            }
        }
        Ok(())
    }

    /// What `is_flagged` says is given by a flag, which goes before any variable.
    fn add_environment(&mut self, environment: &BTreeMap<String, String>, is_flagged: impl Fn(&Setting) -> bool) {
        for setting in SETTINGS {
            let variable = setting.variable();
            let text = environment.get(&variable);
            // A variable that is there and empty names no file, and has no secret in it.
            let file_variable = setting.file_variable().unwrap_or_default();
            match (text, environment.get(&file_variable).filter(|path| !path.is_empty())) {
                (Some(text), Some(_)) if !text.is_empty() => {
                    if !is_flagged(setting) {
                        self.contested.push(setting.key);
                        self.problems.push(format!("{variable} and {file_variable} are both set; leave one out"));
                    }
                }
                (_, Some(path)) => match std::fs::read_to_string(path) {
                    Ok(content) => self.add(setting, file_variable, content.trim_end().to_owned()),
                    Err(error) => self.problems.push(format!("{file_variable}: {path} cannot be read: {error}")),
                },
                (Some(text), None) => self.add(setting, variable, text.clone()),
                (None, None) => {}
            }
        }
        let known: BTreeMap<String, String> = SETTINGS
            .iter()
            .flat_map(|setting| {
                let file = setting.file_variable().map(|variable| (variable, format!("{}_file", setting.key)));
                file.into_iter().chain([(setting.variable(), setting.key.to_owned())])
            })
            .collect();
        let is_ours = |name: &&String| name.starts_with("HOOKLANE_") && !is_for_others(name);
        for name in environment.keys().filter(is_ours).filter(|name| !known.contains_key(*name)) {
            let nearest = nearest(name, known.clone().into_iter());
            self.problems.push(format!("{name}: is an unknown setting{nearest}"));
        }
    }

    fn add(&mut self, setting: &Setting, name: String, text: String) {
        self.values.insert(setting.key, Value { text, name });
    }
}

impl Flags {
    /// The settings that are given, by key.
    fn given(&self) -> Vec<(&'static str, &String)> {
        let all = [
            ("grpc.addr", &self.grpc_addr),
            ("ops.addr", &self.ops_addr),
            ("roles", &self.roles),
            ("database.url", &self.database_url),
        ];
        all.into_iter().filter_map(|(key, text)| Some((key, text.as_ref()?))).collect()
    }
}

/// What was meant, perhaps, and where all of them are. Each of `known` is what a setting is called there, and what
/// somebody may well call it who knows its name elsewhere.
fn nearest(written: &str, known: impl Iterator<Item = (String, String)>) -> String {
    // Three letters in ten may be wrong; two that changed places are one.
    const LIKE: f64 = 0.7;
    let plain = |name: &str| {
        let name = name.to_lowercase().replace('.', "_");
        name.strip_prefix("hooklane_").map(str::to_owned).unwrap_or(name)
    };
    let written = plain(written);
    let likeness = |(name, elsewhere): (String, String)| {
        let like = likeness(&written, &plain(&name)).max(likeness(&written, &plain(&elsewhere)));
        (like, name)
    };
    match known.map(likeness).max_by(|(one, _), (other, _)| one.total_cmp(other)) {
        Some((like, name)) if like >= LIKE => format!("; is {name} meant? `hooklane settings` has all"),
        _ => "; `hooklane settings` has all there are".to_owned(),
    }
}

/// From 0 to 1. A word too much or too little says less than other letters do: `log_level` is like `log`.
fn likeness(written: &str, known: &str) -> f64 {
    let has_more = |long: &str, short: &str| long.strip_prefix(short).is_some_and(|rest| rest.starts_with('_'));
    let like = strsim::normalized_damerau_levenshtein(written, known);
    if has_more(written, known) || has_more(known, written) { 0.75 + like / 4.0 } else { like }
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

/// A table's leaves as `section.key`; `None` for a value that no setting can have.
fn flatten(prefix: &str, table: &toml::Table, found: &mut Vec<(String, Option<String>)>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
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
        toml::Value::Float(number) => Some(number.to_string()),
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
                key: setting.key,
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
        if self.source.contested.contains(&key) {
            return;
        }
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

#[cfg(test)]
mod tests {
    use super::super::{Config, Profile};
    use super::*;

    fn told(file: &str, variables: &[(&str, &str)], flags: Flags) -> String {
        told_as(Profile::Dev, file, variables, flags)
    }

    fn told_as(profile: Profile, file: &str, variables: &[(&str, &str)], flags: Flags) -> String {
        let content = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(content.path(), file).expect("written");
        let flags = Flags { config: Some(content.path().to_owned()), ..flags };
        let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let loaded = Config::load(profile, &flags, environment);
        let words = loaded.map_or_else(|problems| problems.to_string(), |_| String::new());
        words.replace(&content.path().display().to_string(), "FILE")
    }

    #[test]
    fn a_setting_in_a_file_is_told_by_the_name_that_it_has_there() {
        for (file, words) in [
            ("[log]\nfilter = \"debg\"", "log.filter in FILE: \"debg\" has \"debg\", which is no level"),
            ("[log]\nfilter = 1979-05-27", "log.filter in FILE: is neither a text"),
            ("[log]\nformat = \"xml\"", "log.format in FILE: \"xml\" is not a format"),
            ("log = \"info\"", "log in FILE: is an unknown setting; is log.filter meant?"),
            ("[log]\nlevel = \"info\"", "log.level in FILE: is an unknown setting; is log.filter meant?"),
            (
                "[database]\nurl_file = \"x\"",
                "database.url_file in FILE: is an unknown setting; is database.url meant?",
            ),
            ("[tls.cert]\nfile = \"x\"", "tls.cert.file in FILE: is an unknown setting; is tls.cert_file meant?"),
            ("[rate]\ntenant_per_second = -2.5", "rate.tenant_per_second in FILE: \"-2.5\" is neither"),
        ] {
            let told = told(file, &[], Flags::default());
            assert!(told.starts_with(words), "{words} in {told}");
        }
        assert_eq!(told("[alerts]\nfailure_rate = 0.25", &[], Flags::default()), "", "a share is a number");
    }

    #[test]
    fn a_secret_comes_from_a_variable_or_from_a_file_and_not_from_both() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().to_str().expect("text");
        for setting in SETTINGS.iter().filter(|setting| setting.is_secret) {
            let (variable, file_variable) = (setting.variable(), setting.file_variable().expect("a file"));
            let needed = [("DATABASE_URL", "postgres://localhost/x"), ("HOOKLANE_ENCRYPTION_PLAINTEXT", "true")];
            let both = [needed.as_slice(), &[(&variable, "canary"), (&file_variable, path)]].concat();
            let both = told_as(Profile::Serve, "", &both, Flags::default());
            assert_eq!(both, format!("{variable} and {file_variable} are both set; leave one out"));
            let file_alone = told("", &[(&variable, ""), (&file_variable, "/nowhere")], Flags::default());
            assert!(file_alone.starts_with(&format!("{file_variable}: /nowhere cannot be read")), "{file_alone}");
            let variable_alone = told("", &[(&variable, "canary"), (&file_variable, "")], Flags::default());
            assert!(variable_alone.starts_with(&format!("{variable}: ")), "{variable_alone}");
        }
        let flags = Flags { database_url: Some("postgres://localhost/x".to_owned()), ..Flags::default() };
        let both = [("DATABASE_URL", "canary"), ("DATABASE_URL_FILE", path)];
        assert_eq!(told("", &both, flags), "", "a flag goes before both");
    }
}
